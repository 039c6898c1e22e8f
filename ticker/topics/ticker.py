"""The ``ticker`` channel: the newest state of each instrument, as JSON rows or as packed records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from feeds.records import I32, Batch
from ticker import binary
from ticker.codec import frame
from ticker.history import History, TickerRow
from ticker.listings import Listings
from ticker.topics.topic import EMPTY, NOTHING, CatchUp, Flush, Mark, Marks, OnSlow, Piece, Topic, TopicKey, joined

#: More snapshots than fit a part of a catch-up.
SNAPSHOTS_AT_ONCE: Final = 1024


class TickerTopic(Topic):
    """Latest price, best bid and offer, and 24-hour statistics."""

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        position = history.quote_position if key.variant == "bbo" else history.trade_position
        super().__init__(key, history, listings, position)
        self._prepared: dict[int, TickerRow] = {}  # rows of a catch-up under way, by instrument
        self._latest: dict[int, str] = {}  # by listing: the row that was told last

    def _adopt(self, donor: Topic, listing: int, instrument: int) -> None:
        super()._adopt(donor, listing, instrument)
        assert isinstance(donor, TickerTopic)
        if listing in donor._latest:
            self._latest[listing] = donor._latest[listing]

    def _listing_unwanted(self, listing: int) -> None:
        self._latest.pop(listing, None)

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`."""
        known = self._seen if self._every_event else self._told
        moved = (self._position > known) & self._mask
        if not moved.any():
            return
        self.dirty = True
        if self._every_event:
            ids = np.flatnonzero(moved).astype(np.int32)
            self._seen[ids] = self._position[ids]
            positions = self._position[ids].tolist()
            for i, position, row in zip(ids.tolist(), positions, self._history.ticker_rows(ids), strict=True):
                for listing in self._wanted[i]:
                    self._enter(listing, position, self._codecs[listing].ticker(*row))

    def _collect_state(self, flush: Flush) -> None:
        ids = np.flatnonzero((self._position > self._told) & self._mask).astype(np.int32)
        listings = [listing for i in ids.tolist() for listing in self._wanted[i]]
        if len(listings) > len(ids):  # an instrument goes by several names
            ids = np.repeat(ids, [len(self._wanted[i]) for i in ids.tolist()])
        if not listings:
            return
        before, now = self._told[ids].tolist(), self._position[ids].tolist()
        self._told[ids] = self._position[ids]
        codecs = self._codecs
        each = zip(listings, self._history.ticker_rows(ids), strict=True)
        texts = [codecs[listing].ticker(row, exact) for listing, (row, exact) in each]
        self._latest.update(zip(listings, texts, strict=True))
        flush.pieces = dict(zip(listings, self._updates(texts, before, now), strict=True))
        flush.before = dict(zip(listings, before, strict=True))
        flush.counts = [(last - prev, 1, 0) if prev else (0, 0, 0) for prev, last in zip(before, now, strict=True)]

    def _updates(self, texts: list[str], before: list[int], now: list[int]) -> list[bytes]:
        """Return a message for each row; written out, because these few lines are much of what 10,000 rows/s cost."""
        framed, each = self._framed, zip(texts, before, now, strict=True)
        if not self.key.native:
            updates = [framed(f'{{"channel":"ticker","type":"update","data":[{text}]}}'.encode()) for text in texts]
        else:
            head = f'{{"channel":"ticker","type":"update","pos":{{"epoch":"{self._history.epoch}","prev":'
            tail = f',"dropped":0,"window_ms":{self.key.interval_ms}}},"data":['
            updates = [
                framed(f'{head}{prev},"last":{last},"n":1,"conflated":{last - prev - 1}{tail}{text}]}}'.encode())
                for text, prev, last in each
            ]
        for k in [k for k, prev in enumerate(before) if not prev]:
            updates[k] = self._update(texts[k], 0, now[k]).data
        return updates

    def _update(self, row: str, prev: int, last: int) -> Piece:
        """Return a message of one row; the first of an epoch is a snapshot for everybody."""
        return self._say("update", row, prev, last, 1) if prev else self._say("snapshot", row, None, last, 0)

    def _piece_of_rows(self, listing: int, after: int, rows: Sequence[tuple[int, str]], dropped: int = 0) -> Piece:
        if not rows:
            return EMPTY
        self._latest[listing] = rows[-1][1]
        if not self.key.native:
            # Clients of Kraken's tickers read the first row of a message and no other.
            return joined([self._update(row, position - 1, position) for position, row in rows])
        if after:
            return super()._piece_of_rows(listing, after, rows, dropped)
        position, row = rows[0]
        start = self._say("snapshot", row, None, position, 0)
        return joined([start, super()._piece_of_rows(listing, position, rows[1:])])

    def _present(self, listing: int) -> Mark:
        """What was told last, if it is kept; else a subscriber that returns gets ahead of the others."""
        if self._every_event or listing in self._latest:
            return self.mark(listing)
        return self._now(listing)

    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        text = self._latest.get(listing)
        if text is None:
            row = self._row(self._listings.instrument_of[listing])
            text = self._codecs[listing].ticker(*row)
        return self._say("update", text, mark.position, told.position, 1)

    def catch_up(self, marks: Marks, on_slow: OnSlow) -> CatchUp:
        """See :meth:`Topic.catch_up`; a newcomer's many snapshots are computed together."""
        fresh = [listing for listing, mark in marks.items() if mark is NOTHING][:SNAPSHOTS_AT_ONCE]
        instruments = [self._listings.instrument_of[listing] for listing in fresh]
        rows = self._history.ticker_rows(np.array(instruments, np.int32)) if len(fresh) > 1 else []
        self._prepared = dict(zip(instruments, rows, strict=False))
        try:
            return super().catch_up(marks, on_slow)
        finally:
            self._prepared = {}

    def _row(self, instrument: int) -> TickerRow:
        row = self._prepared.get(instrument)
        return self._history.ticker_rows(np.array([instrument], np.int32))[0] if row is None else row

    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        instrument = self._listings.instrument_of[listing]
        if not self._history.known(instrument):
            return EMPTY, self.mark(listing)
        row = self._row(instrument)
        now = self._now(listing)
        return self._say("snapshot", self._codecs[listing].ticker(*row), None, now.position, 0), now

    def reset(self) -> None:
        """See :meth:`Topic.reset`."""
        super().reset()
        self._latest.clear()


class PackedTickerTopic(TickerTopic):
    """The ticker as binary records; what is joined goes out as one message."""

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        super().__init__(key, history, listings)
        self._sent = np.zeros(len(listings.names), binary.DTYPES["ticker"])  # by listing: told last; no last if none
        self._made: dict[int, tuple[Mark, Piece]] = {}  # what a catch-up under way tells, by listing

    def _adopt(self, donor: Topic, listing: int, instrument: int) -> None:
        super()._adopt(donor, listing, instrument)
        assert isinstance(donor, PackedTickerTopic)
        self._sent[listing] = donor._sent[listing]

    def _listing_unwanted(self, listing: int) -> None:
        self._sent["last"][listing] = 0

    def reset(self) -> None:
        """See :meth:`Topic.reset`."""
        super().reset()
        self._sent["last"] = 0

    def _records(self, ids: I32, listings: Sequence[int], prev: Sequence[int], last: Sequence[int]) -> binary.Records:
        instruments = self._listings.instruments
        records = binary.head("ticker", self._history.epoch, listings, prev, last)
        columns = self._history.ticker_columns(ids)
        binary.fill_ticker(records, columns, instruments.price_scale[ids], instruments.qty_scale[ids])
        return records

    def _collect_state(self, flush: Flush) -> None:
        ids = np.flatnonzero((self._position > self._told) & self._mask).astype(np.int32)
        pairs = [(i, listing) for i in ids.tolist() for listing in self._wanted[i]]
        if not pairs:
            return
        rows = np.array([i for i, _ in pairs], np.int32)
        listings = [listing for _, listing in pairs]
        before, now = self._told[rows].tolist(), self._position[rows].tolist()
        self._told[ids] = self._position[ids]
        records = self._records(rows, listings, [position or binary.NO_PREV for position in before], now)
        self._sent[listings] = records
        for listing, p, last, record in zip(listings, before, now, _packed(records), strict=True):
            flush.add(listing, p, Piece(record, last - p if p else 0, 1 if p else 0))

    def catch_up(self, marks: Marks, on_slow: OnSlow) -> CatchUp:
        """See :meth:`Topic.catch_up`; all records are made together: one by one, each costs 200 µs.

        Who returns is told what was told last, as with JSON: told the present, it would be ahead of its group, and in a
        market that moves all the time it would never be in step again.
        """
        listings, epoch = np.fromiter(marks, np.int32, len(marks)), self._history.epoch
        ids = np.array([self._listings.instrument_of[listing] for listing in marks], np.int32)
        known = [mark.position if mark and mark.epoch == epoch else binary.NO_PREV for mark in marks.values()]
        records = self._sent[listings]
        fresh = (np.array(known) == binary.NO_PREV) | (records["last"] == 0)
        last = np.where(fresh, self._position[ids], records["last"])
        if fresh.any():
            records[fresh] = self._records(ids[fresh], listings[fresh], last[fresh], last[fresh])
        binary.follow(records, known, last)
        for listing, prev, position, data in zip(marks, known, last.tolist(), _packed(records), strict=True):
            counts = (0, 0) if prev == binary.NO_PREV else (position - prev, 1)
            self._made[listing] = self._at(position), Piece(data, *counts)
        try:
            return Topic.catch_up(self, marks, on_slow)
        finally:
            self._made = {}

    def _present(self, listing: int) -> Mark:
        return self._made[listing][0]

    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        return self._made[listing][1]

    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        if not self._history.known(self._listings.instrument_of[listing]):
            return EMPTY, self.mark(listing)
        now, piece = self._made[listing]
        return piece, now

    def enclosed(self, data: bytes) -> bytes:
        """See :meth:`Topic.enclosed`."""
        return frame(data, binary.BINARY) if data else data


def _packed(records: binary.Records) -> list[bytes]:
    """Return the bytes of every record."""
    packed, size = records.tobytes(), records.itemsize
    return [packed[start : start + size] for start in range(0, len(packed), size)]
