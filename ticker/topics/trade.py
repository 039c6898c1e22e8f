"""The ``trade`` channel: every trade; those that a subscriber missed are taken from the history."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from feeds.records import I64, Batch
from ticker import binary
from ticker.history import History
from ticker.listings import Listings
from ticker.topics.topic import EMPTY, Flush, Mark, Piece, Topic, TopicKey
from ticker.topics.wording import Rows


class TradeTopic(Topic):
    """Every trade, in order; in mode ``merge`` the last one of each flush. Missed trades are the history's."""

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        super().__init__(key, history, listings, history.trade_position)

    @property
    def resumable(self) -> bool:
        """See :attr:`Topic.resumable`; it is the history that keeps trades."""
        return False

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`."""
        if not self.dirty and len(batch.trades):
            self.dirty = bool(((self._position > self._told) & self._mask).any())

    def _collect_rows(self, flush: Flush) -> None:
        self._collect_state(flush)

    def _collect_state(self, flush: Flush) -> None:
        for i in np.flatnonzero((self._position > self._told) & self._mask).tolist():
            prev = int(self._told[i])
            self._tell(i, int(self._position[i]))
            for listing in self._wanted[i]:
                if self._every_event:
                    piece = self._missed_rows(listing, prev, "drop_oldest")
                else:
                    piece = self._merged(listing, self._at(prev), self.mark(listing))
                flush.add(listing, prev, piece)

    def oldest(self, listing: int) -> int:
        """See :meth:`Topic.oldest`."""
        return self._history.oldest_print(self._listings.instrument_of[listing])

    def _rows_after(self, listing: int, after: int) -> Rows:
        i, trade = self._listings.instrument_of[listing], self._codecs[listing].trade
        first = max(after, self.oldest(listing))
        count = int(self._told[i]) - first
        rows = islice(self._history.prints(i, int(self._position[i]) - first), count)
        return [(position, trade(*row)) for position, row in enumerate(rows, first + 1)]

    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        return self._say(listing, mark.position, self._rows_after(listing, told.position - 1))

    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        i, trade = self._listings.instrument_of[listing], self._codecs[listing].trade
        mark = self.now(listing)
        rows = [(mark.position, trade(*row)) for row in self._history.prints(i, self._history.SNAPSHOT_TRADES)]
        return (self._say(listing, None, rows) if rows else EMPTY), mark


class PackedTradeTopic(TradeTopic):
    """Every trade as records, made for a whole flush at once: a recording is played faster than rows can be printed."""

    def _collect_rows(self, flush: Flush) -> None:
        moved = np.flatnonzero((self._position > self._told) & self._mask)
        listings = self._listings_of(moved)
        ids = self.instruments(listings)
        before, now = self._told[ids], self._position[ids]
        self._told[moved] = self._position[moved]
        for listing, prev, piece in zip(listings, before.tolist(), self._pieces(listings, before, now), strict=True):
            flush.add(listing, prev, piece)

    def _rows_since(self, listing: int, after: int, dropped: int) -> Piece:
        (piece,) = self._pieces([listing], np.array([after]), self._told[self.instruments([listing])])
        return piece

    def _pieces(self, listings: Sequence[int], after: I64, last: I64) -> list[Piece]:
        """Return every trade of some listings behind positions ``after`` and up to ``last``, as far as it is kept."""
        ids = self.instruments(listings)
        first = np.maximum(after, self._history.oldest_prints(ids))
        counts = last - first
        ends = np.cumsum(counts)
        starts = ends - counts
        owner = np.repeat(np.arange(len(ids)), counts)
        positions = np.arange(len(owner)) - (starts - first - 1)[owner]
        numbers = self._listings.first + np.asarray(listings)
        records = binary.updates("trade", self._history.epoch, numbers[owner], positions - 1, positions)
        records["prev"][starts], records["dropped"][starts] = after, first - after
        trades, instruments = self._history.prints_at(ids[owner], positions), self._listings.instruments
        for name in ("ts", "trade_id", "side"):
            records[name] = trades[name]
        records["price"] = trades["price"] / instruments.price_scale[ids][owner]
        records["qty"] = trades["qty"] / instruments.qty_scale[ids][owner]
        each = zip(starts.tolist(), ends.tolist(), (last - after).tolist(), strict=True)
        return [
            Piece(records[start:end].tobytes(), events, end - start, events - (end - start))
            for start, end, events in each
        ]
