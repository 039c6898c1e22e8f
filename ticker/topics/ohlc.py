"""The ``ohlc`` channel: candles of one length."""

from __future__ import annotations

import numpy as np

from feeds.analytics import Candles
from feeds.records import I64, Batch
from ticker.history import Afterwards, History
from ticker.listings import Listings
from ticker.topics.topic import EMPTY, Flush, Mark, Piece, Topic, TopicKey
from ticker.topics.wording import Row


class OhlcTopic(Topic):
    """Candles of one length: the running one whenever it changes, and the last word on one that closed."""

    #: How many candles a snapshot has.
    SNAPSHOT_CANDLES = 60

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        super().__init__(key, history, listings, history.candle_position)
        self._minutes = int(key.variant)
        self._row = Candles.INTERVALS.index(self._minutes)

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`."""
        if not len(batch.trades):
            return
        known = self._seen if self._every_event else self._told
        moved = np.flatnonzero((self._position > known) & self._mask)
        self.dirty = self.dirty or bool(len(moved))
        if self._every_event:
            for i in moved.tolist():
                position = int(self._position[i])
                self._seen[i] = position
                candle = self._history.candles.current(self._row, i)
                if candle is not None:
                    for listing in self._wanted[i]:
                        self._enter(listing, position, self._codecs[listing].candle(candle, self._minutes))

    def applied_each(self, batch: Batch, afterwards: Afterwards) -> None:
        """See :meth:`Topic.applied_each`."""
        if not self._every_event:
            self.applied(batch)
            return
        columns = afterwards.candles[self._minutes]
        mine = np.flatnonzero(self._mask[columns.instrument])

        def rows_of(listings: list[int], which: I64) -> list[Row]:
            each = zip(listings, columns.candles(mine[which]), strict=True)
            return [self._codecs[listing].candle(candle, self._minutes) for listing, candle in each]

        self._enter_each(columns.instrument[mine], columns.seq[mine], rows_of)

    def _collect_state(self, flush: Flush) -> None:
        for i in np.flatnonzero((self._position > self._told) & self._mask).tolist():
            prev, last = int(self._told[i]), int(self._position[i])
            self._tell(i, last)
            for listing in self._wanted[i]:
                flush.add(listing, prev, self._candles(listing, prev, last))

    def _candles(self, listing: int, prev: int, last: int) -> Piece:
        """Return the candles that the events after ``prev`` changed; from the start of an epoch, a snapshot."""
        i = self._listings.instrument_of[listing]
        current = self._history.candles.current(self._row, i)
        if current is None:
            return EMPTY
        candles = [(last, current)]  # with the positions of their last trades, the newest first
        position = int(self._position[i]) - current.trades  # where the oldest of them began
        for closed in reversed(self._history.candles.closed(self._row, i)):
            if position <= prev or (not prev and len(candles) > self.SNAPSHOT_CANDLES):
                break
            candles.append((position, closed))
            position -= closed.trades
        codec = self._codecs[listing]
        rows = [(end, codec.candle(candle, self._minutes)) for end, candle in reversed(candles)]
        return self._say(listing, prev or None, rows)

    def _present(self, listing: int) -> Mark:
        """Candles are shown as they are now, so who is behind gets ahead of what was flushed."""
        if self._every_event:
            return self.mark(listing)
        return self.now(listing)

    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        return self._candles(listing, mark.position, told.position)

    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        mark = self.now(listing)
        return self._candles(listing, 0, mark.position), mark
