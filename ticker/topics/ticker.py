"""The ``ticker`` channel: the newest state of each instrument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from feeds.records import Batch
from ticker import binary
from ticker.history import Afterwards, History, TickerColumns
from ticker.listings import Listings
from ticker.topics.topic import EMPTY, NOTHING, CatchUp, Flush, Mark, Marks, OnSlow, Piece, Topic, TopicKey, joined
from ticker.topics.wording import Row, Rows

#: More snapshots than fit a part of a catch-up.
SNAPSHOTS_AT_ONCE: Final = 1024


class TickerTopic(Topic):
    """Latest price, best bid and offer, and 24-hour statistics."""

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        position = history.quote_position if key.variant == "bbo" else history.trade_position
        super().__init__(key, history, listings, position)
        self._prepared: dict[int, Row] = {}  # rows of a catch-up under way, by listing
        self._latest: dict[int, Row] = {}  # by listing: the row that was told last

    def _adopt(self, donor: Topic, listing: int, instrument: int) -> None:
        super()._adopt(donor, listing, instrument)
        assert isinstance(donor, TickerTopic)
        if listing in donor._latest:
            self._latest[listing] = donor._latest[listing]

    def _listing_unwanted(self, listing: int) -> None:
        self._latest.pop(listing, None)

    def _rows_now(self, listings: Sequence[int]) -> list[Row]:
        """Return the row of each listing as it is now."""
        return self._rows_of(listings, self._history.ticker_columns(self.instruments(listings)))

    def _rows_of(self, listings: Sequence[int], columns: TickerColumns) -> list[Row]:
        """Return tickers as rows, each of its listing."""
        ids, instruments = self.instruments(listings), self._listings.instruments
        scales = instruments.price_scale[ids], instruments.qty_scale[ids]
        if self.key.packed:
            return binary.ticker_bodies(columns, *scales)
        codecs = self._listings.quoted_codecs if self.key.quoted else self._listings.codecs
        each = zip(listings, columns.rows(*scales), strict=True)
        return [codecs[listing].ticker(row, exact) for listing, (row, exact) in each]

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`."""
        known = self._seen if self._every_event else self._told
        moved = (self._position > known) & self._mask
        if not moved.any():
            return
        self.dirty = True
        if self._every_event:
            ids = np.flatnonzero(moved)
            self._seen[ids] = self._position[ids]
            listings = self._listings_of(ids)
            for listing, row in zip(listings, self._rows_now(listings), strict=True):
                self._enter(listing, int(self._position[self._listings.instrument_of[listing]]), row)

    def applied_each(self, batch: Batch, afterwards: Afterwards) -> None:
        """See :meth:`Topic.applied_each`."""
        if not self._every_event:
            self.applied(batch)
            return
        events = afterwards.tickers
        assert events is not None
        mine = np.flatnonzero((events.is_quote == (self.key.variant == "bbo")) & self._mask[events.instrument])
        self._enter_each(
            events.instrument[mine],
            events.seq[mine],
            lambda listings, which: self._rows_of(listings, events.tickers.pick(mine[which])),
        )

    def _collect_state(self, flush: Flush) -> None:
        moved = np.flatnonzero((self._position > self._told) & self._mask)
        listings = self._listings_of(moved)
        if not listings:
            return
        ids = self.instruments(listings)
        before, now = self._told[ids].tolist(), self._position[ids].tolist()
        self._told[moved] = self._position[moved]
        rows = self._rows_now(listings)
        self._latest.update(zip(listings, rows, strict=True))
        told = self._wording.updates(listings, before, now, rows)
        for k in [k for k, prev in enumerate(before) if not prev]:
            told[k] = self._update(listings[k], rows[k], 0, now[k]).data
        flush.pieces = dict(zip(listings, told, strict=True))
        flush.before = dict(zip(listings, before, strict=True))
        flush.counts = [(last - prev, 1, 0) if prev else (0, 0, 0) for prev, last in zip(before, now, strict=True)]

    def _update(self, listing: int, row: Row, prev: int, last: int) -> Piece:
        """Return a message of one row; the first of an epoch is a snapshot for everybody."""
        return self._say(listing, prev or None, [(last, row)])

    def _piece_of_rows(self, listing: int, after: int, rows: Rows, dropped: int = 0) -> Piece:
        if not rows:
            return EMPTY
        self._latest[listing] = rows[-1][1]
        if not self.key.native:
            # Clients of Kraken's tickers read the first row of a message and no other.
            return joined([self._update(listing, row, position - 1, position) for position, row in rows])
        if after:
            return super()._piece_of_rows(listing, after, rows, dropped)
        return joined([self._say(listing, None, rows[:1]), super()._piece_of_rows(listing, rows[0][0], rows[1:])])

    def _present(self, listing: int) -> Mark:
        """What was told last, if it is kept; else a subscriber that returns gets ahead of the others.

        Told the present, it would never be in step again in a market that moves all the time.
        """
        if self._every_event or listing in self._latest:
            return self.mark(listing)
        return self.now(listing)

    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        row = self._latest.get(listing)
        return self._say(listing, mark.position, [(told.position, self._row(listing) if row is None else row)])

    def catch_up(self, marks: Marks, on_slow: OnSlow) -> CatchUp:
        """See :meth:`Topic.catch_up`; a newcomer's many snapshots are computed together: alone each costs 200 µs."""
        fresh = [listing for listing, mark in marks.items() if mark is NOTHING][:SNAPSHOTS_AT_ONCE]
        self._prepared = dict(zip(fresh, self._rows_now(fresh), strict=True)) if len(fresh) > 1 else {}
        try:
            return super().catch_up(marks, on_slow)
        finally:
            self._prepared = {}

    def _row(self, listing: int) -> Row:
        row = self._prepared.get(listing)
        return self._rows_now([listing])[0] if row is None else row

    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        if not self._history.known(self._listings.instrument_of[listing]):
            return EMPTY, self.mark(listing)
        now = self.now(listing)
        return self._say(listing, None, [(now.position, self._row(listing))]), now

    def reset(self) -> None:
        """See :meth:`Topic.reset`."""
        super().reset()
        self._latest.clear()
