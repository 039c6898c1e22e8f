"""The ``trade`` channel: every trade; those that a subscriber missed are taken from the history."""

from __future__ import annotations

from itertools import islice

import numpy as np

from feeds.records import Batch
from ticker.history import History
from ticker.listings import Listings
from ticker.topics.topic import EMPTY, Flush, Mark, Piece, Topic, TopicKey


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

    def _rows_after(self, listing: int, after: int) -> list[tuple[int, str]]:
        i, trade = self._listings.instrument_of[listing], self._codecs[listing].trade
        first = max(after, self.oldest(listing))
        count = int(self._told[i]) - first
        rows = islice(self._history.prints(i, int(self._position[i]) - first), count)
        return [(position, trade(*row)) for position, row in enumerate(rows, first + 1)]

    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        ((_, row),) = self._rows_after(listing, told.position - 1)
        return self._say("update", row, mark.position, told.position, 1)

    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        i, trade = self._listings.instrument_of[listing], self._codecs[listing].trade
        mark = self._now(listing)
        rows = [trade(*row) for row in self._history.prints(i, self._history.SNAPSHOT_TRADES)]
        return (self._say("snapshot", ",".join(rows), None, mark.position, 0) if rows else EMPTY), mark
