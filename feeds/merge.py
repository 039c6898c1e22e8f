"""The merge of a tape's tables by the time they were received, as pure code.

The total order of a tape is (``ts_recv``, rank of the source, ``seq``): what one recorder saw at an instant comes in
the order in which it saw it, and of several recordings that saw something at one instant the one named first comes
first. A batch keeps the tables apart, so merging is finding how far to go in each; only rows of several recordings
are sorted, and numbered anew, because each recording counts for itself.

This module must not know of files, clocks or who asks.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Final, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.clock import NS
from feeds.records import I64, LAST, SNAPSHOT, Batch, Levels, Quotes, Table, Trades

TableT = TypeVar("TableT", bound=Table)


def whole_instants(chunks: Iterable[TableT]) -> Generator[TableT, None, None]:
    """Yield the same rows, cut so that no ``ts_recv`` appears in two chunks; empty chunks vanish."""
    held: TableT | None = None
    for chunk in chunks:
        if not len(chunk):
            continue
        rows = chunk if held is None else type(chunk).concatenate([held, chunk])
        cut = int(np.searchsorted(rows.ts_recv, rows.ts_recv[-1]))
        if cut:
            yield rows.slice(0, cut)
        held = rows.slice(cut, len(rows))
    if held is not None:
        yield held


class Track(Generic[TableT]):
    """One table as the merge sees it: the chunk at hand and how much of it is still to come."""

    def __init__(self, empty: TableT) -> None:
        self._chunk = self._nothing = empty
        self._at = 0
        self._ended = False

    @property
    def hungry(self) -> bool:
        """Whether the next chunk, or the news that there is none, must be loaded before the merge goes on."""
        return self._at == len(self._chunk) and not self._ended

    def load(self, chunk: TableT | None) -> None:
        """Give it the next chunk of :func:`whole_instants`, or None at the end."""
        if chunk is None:
            self._ended = True
        else:
            self._chunk, self._at = chunk, 0

    @property
    def times(self) -> I64:
        """The ``ts_recv`` of the rows still to come from this chunk; a view."""
        return self._chunk.ts_recv[self._at :]

    def take(self, upto_ns: int) -> TableT:
        """Return the rows up to and including an instant, as views."""
        count = int(self.times.searchsorted(upto_ns, side="right"))
        if not count:
            return self._nothing  # most batches of a paced tape have rows in one table only
        self._at += count
        return self._chunk.slice(self._at - count, self._at)


def in_order(pieces: list[list[Any]], first: int) -> list[Any]:
    """Return the rows of several sources as one table of each kind, in the total order and numbered in it.

    Args:
        pieces: By kind of table, by rank of the source: tables of one type.
        first: The ``seq`` of the first row; the others count up from it, over all tables.
    """
    flat = [(rank, table) for group in pieces for rank, table in enumerate(group)]
    ranks = np.concatenate([np.full(len(table), rank) for rank, table in flat])
    times = np.concatenate([table.ts_recv for _, table in flat])
    numbers = np.empty(len(times), dtype=np.int64)
    order = np.lexsort((np.concatenate([table.seq for _, table in flat]), ranks, times))
    numbers[order] = np.arange(first, first + len(times))
    tables, at = [], 0
    for group in pieces:
        rows = type(group[0]).concatenate(group)
        own = numbers[at : at + len(rows)]
        at += len(rows)
        tables.append(msgspec.structs.replace(rows.take(np.argsort(own)), seq=np.sort(own)))
    return tables


class Merge:
    """The k-way merge of trades, quotes and book of one or several sources.

    Whoever drives it loads every hungry one of :attr:`tracks`, asks when the next row is due, and takes what is due.

    Args:
        sources: How many recordings there are; their rank is their place.

    Attributes:
        trades, quotes, levels: By rank.
    """

    def __init__(self, sources: int = 1) -> None:
        self.trades = [Track(Trades.empty()) for _ in range(sources)]
        self.quotes = [Track(Quotes.empty()) for _ in range(sources)]
        self.levels = [Track(Levels.empty()) for _ in range(sources)]
        self._taken = 0

    @property
    def tracks(self) -> list[Track[Any]]:
        """Every table of every source."""
        return [*self.trades, *self.quotes, *self.levels]

    def _times(self) -> list[I64]:
        return [times for track in self.tracks if len(times := track.times)]

    def next_ns(self) -> int | None:
        """Return the ``ts_recv`` of the next row; None at the end of the tape."""
        return min((int(times[0]) for times in self._times()), default=None)

    def within(self, upto_ns: int, rows: int) -> int:
        """Return the first instant (ns) by which ``rows`` rows have come, or ``upto_ns`` if that is earlier."""
        times = [times[: int(times.searchsorted(upto_ns, side="right"))] for times in self._times()]
        if sum(map(len, times)) <= rows:
            return upto_ns
        soonest = np.concatenate([column[:rows] for column in times])
        return int(np.partition(soonest, rows - 1)[rows - 1])

    def before_silence(self, upto_ns: int, longest_ns: int) -> int:
        """Return the last instant (ns) before the first silence longer than ``longest_ns``, at most ``upto_ns``."""
        first = self.next_ns()
        if first is None or upto_ns - first <= longest_ns:
            return upto_ns
        due = [times[: int(times.searchsorted(upto_ns, side="right"))] for times in self._times()]
        times = np.sort(np.concatenate(due))
        silent = np.flatnonzero(np.diff(times) > longest_ns)
        return int(times[silent[0]]) if len(silent) else upto_ns

    def take(self, upto_ns: int) -> Batch:
        """Return the rows up to an instant that is not before :meth:`next_ns`.

        It stops earlier where one of the tables must first be loaded again: that bounds the batch by what is loaded.
        """
        times = self._times()
        upto_ns = min(upto_ns, *(int(t[-1]) for t in times))
        last = max(int(t[i - 1]) for t in times if (i := int(t.searchsorted(upto_ns, side="right"))))
        pieces = [[track.take(upto_ns) for track in group] for group in (self.trades, self.quotes, self.levels)]
        if len(self.trades) > 1:
            trades, quotes, levels = in_order(pieces, self._taken)
        else:
            trades, quotes, levels = (group[0] for group in pieces)
        batch = Batch(ts=last, trades=trades, quotes=quotes, levels=levels)
        self._taken += len(batch)
        return batch


class Events:
    """Finds where the events of a tape end, for a tape that is stepped.

    An event is all rows of one instant, and of the instants after it in which a venue's event that it left open goes
    on: one of whose rows none is flagged LAST yet. A snapshot leaves nothing open, nor does an instrument of which no
    row outside a snapshot was flagged LAST so far: its source sets no such flag.

    Args:
        instruments: How many there are.
    """

    #: A venue's event that is not at its end after so much tape (ns) has lost it. The longest of the 47,022 of
    #: cme_ESH4_20231225 lasts 0.95 ms.
    LONGEST_NS: Final = NS

    def __init__(self, instruments: int) -> None:
        self._marks_last: npt.NDArray[np.bool_] = np.zeros(instruments, dtype=np.bool_)
        self._open: set[int] = set()
        self._began_ns: int | None = None

    def watch(self, levels: Levels) -> None:
        """Look at rows that are not stepped."""
        if not len(levels):
            return
        self._marks_last[levels.instrument[(levels.flags & (LAST | SNAPSHOT)) == LAST]] = True
        self._open.clear()
        self._began_ns = None

    def ends_with(self, batch: Batch) -> bool:
        """Take in the rows of an instant and return whether the event ends with it."""
        if self._began_ns is None:
            self._began_ns = batch.ts
        levels = batch.levels
        for instrument, flags in zip(levels.instrument.tolist(), levels.flags.tolist(), strict=True):
            if flags & LAST:
                self._open.discard(instrument)
                self._marks_last[instrument] |= not flags & SNAPSHOT
            elif not flags & SNAPSHOT and self._marks_last[instrument]:
                self._open.add(instrument)
        if self._open and batch.ts - self._began_ns < self.LONGEST_NS:
            return False
        self._open.clear()
        self._began_ns = None
        return True
