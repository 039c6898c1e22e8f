"""Keyframes: the whole of every book, again and again, so that a reader can begin in the middle of a tape.

A keyframe is what a venue's snapshot is: for each instrument a CLEAR and then the book, all rows flagged SNAPSHOT and
the last one LAST too. Whoever reads from the beginning sees nothing new in it. It stands at the end of an instant,
after every row with that ``ts_recv``, and where it comes depends only on the rows before it, not on how they are cut
into batches: recorded again, a tape with keyframes gets no others.

``seq`` of the rows behind a keyframe grows by the rows that it has. This module must not know of files or time.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
import numpy as np

from feeds.book import Books
from feeds.records import CLEAR, I64, LAST, MISSING, SNAPSHOT, Batch, Levels, Table

TableT = TypeVar("TableT", bound=Table)

#: Rows of books between two keyframes: about 25 ms of work for a reader that begins in between.
EVERY_ROWS: Final = 50_000
#: At least so many times its own rows lie between a keyframe and the next, so that large books cost a quarter at most.
SPARSE: Final = 4


class Keyframes:
    """Adds keyframes to a stream of one epoch.

    Args:
        every_rows: Rows of books after which a keyframe comes.
    """

    def __init__(self, every_rows: int = EVERY_ROWS) -> None:
        self._every = self._threshold = every_rows
        self._books = Books()
        self._known: set[int] = set()
        self._open: set[int] = set()  # instruments in the middle of an event
        self._rows = 0  # of books, since the last keyframe
        self._shift = 0  # rows added so far

    def add(self, batch: Batch) -> Batch:
        """Return a batch with the keyframes that are due in it, and with ``seq`` counting all of them.

        Rows of one instant must not be divided between batches.
        """
        shift, levels, pieces = self._shift, batch.levels, list[Levels]()
        cuts: list[tuple[int, int]] = []  # after which instant there are how many rows more
        start = 0
        while start < len(levels):
            stop, due = self._look_ahead(levels, start)
            rows = levels.slice(start, stop)
            pieces.append(_moved(rows, self._shift))
            self._apply(rows)
            start, ts = stop, int(rows.ts_recv[-1])
            if due and not self._open and self._trusted():
                size = self._size_of_snapshot(rows, ts)
                if not size:
                    keyframe = self._keyframe(ts, _last_seq(batch, ts) + self._shift)
                    pieces.append(keyframe)
                    size = len(keyframe)
                    self._shift += size
                    cuts.append((ts, size))
                self._rows, self._threshold = 0, max(self._every, SPARSE * size)
        return Batch(
            ts=batch.ts,
            trades=_renumbered(batch.trades, shift, cuts),
            quotes=_renumbered(batch.quotes, shift, cuts),
            levels=Levels.concatenate(pieces),
        )

    def _look_ahead(self, levels: Levels, start: int) -> tuple[int, bool]:
        """Return the end of the instant at which a keyframe is due, or of the rows, and whether one is due there."""
        at = start + max(0, self._threshold - self._rows - 1)
        if at >= len(levels):
            return len(levels), False
        return int(levels.ts_recv.searchsorted(levels.ts_recv[at], side="right")), True

    def _apply(self, rows: Levels) -> None:
        for _ in self._books.apply(rows):
            pass
        self._rows += len(rows)
        ids, last = np.unique(rows.instrument[::-1], return_index=True)
        whole = rows.flags[::-1][last] & LAST != 0
        self._known.update(ids.tolist())
        self._open -= set(ids[whole].tolist())
        self._open |= set(ids[~whole].tolist())

    def _trusted(self) -> list[int]:
        """Return the instruments whose book is known; a stale one waits for a snapshot of its own."""
        return [i for i in sorted(self._known) if not self._books[i].stale]

    def _size_of_snapshot(self, rows: Levels, ts: int) -> int:
        """Return how many rows of an instant are a snapshot of every book; 0 if they are not."""
        rows = rows.slice(int(rows.ts_recv.searchsorted(ts)), len(rows))
        rows = rows.take(rows.flags & SNAPSHOT != 0)
        cleared = set(rows.instrument[rows.action == CLEAR].tolist())
        return len(rows) if cleared.issuperset(self._trusted()) else 0

    def _keyframe(self, ts: int, seq: int) -> Levels:
        """Return every book as it is at an instant; ``seq`` is that of the row before."""
        books = [(i, self._books.rows(i)) for i in self._trusted()]
        sizes = [len(rows) for _, rows in books]
        n = sum(sizes)
        flags = np.full(n, SNAPSHOT, np.uint8)
        flags[np.cumsum(sizes, dtype=np.int64) - 1] |= LAST
        columns = zip(*(row for _, rows in books for row in rows), strict=True)
        names = ("action", "side", "price", "qty", "order_id")
        return Levels(
            ts_recv=np.full(n, ts),
            ts_event=np.full(n, MISSING),
            seq=np.arange(seq + 1, seq + 1 + n),
            instrument=np.repeat(np.array([i for i, _ in books], np.int32), sizes),
            flags=flags,
            **{name: np.array(c, Levels.DTYPES[name]) for name, c in zip(names, columns, strict=True)},
        )


def _last_seq(batch: Batch, ts: int) -> int:
    """Return the ``seq`` of the last row up to an instant; there is one."""
    tables = (batch.trades, batch.quotes, batch.levels)
    counts = [int(table.ts_recv.searchsorted(ts, side="right")) for table in tables]
    return max(int(table.seq[count - 1]) for table, count in zip(tables, counts, strict=True) if count)


def _moved(table: TableT, by: int | I64) -> TableT:
    return msgspec.structs.replace(table, seq=table.seq + by)


def _renumbered(table: TableT, shift: int, cuts: list[tuple[int, int]]) -> TableT:
    """Return a table with ``seq`` moved on by what was inserted before each row."""
    by = np.full(len(table), shift)
    for ts, size in cuts:
        by[table.ts_recv > ts] += size
    return _moved(table, by)
