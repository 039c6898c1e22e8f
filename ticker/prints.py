"""The last trades of every instrument: a ring of rows each, in one array. It knows columns and positions only."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from feeds.records import I32, I64, Trades

#: A trade as a snapshot shows it: side, price ticks, qty lots, trade_id, ts (ns).
Print = tuple[int, int, int, int, int]

_ROW: Final = np.dtype([("side", "i1"), ("price", "i8"), ("qty", "i8"), ("trade_id", "i8"), ("ts", "i8")])
#: Bytes that a trade takes.
ROW_BYTES: Final = _ROW.itemsize


class Prints:
    """The trades of ``count`` instruments, ``rows`` of each.

    The trade at position *p* of an instrument, counted from 1, is at ``(p - 1) % rows`` of its ring. Memory is
    taken by the operating system's pages as trades come, not when the ring is made.

    Attributes:
        rows: Trades kept of each instrument.
    """

    def __init__(self, count: int, rows: int) -> None:
        self.rows = rows
        self._ring: npt.NDArray[np.void] = np.zeros((count, rows), _ROW)

    def add(self, trades: Trades, times: I64, before: I64) -> None:
        """Keep a batch.

        Args:
            trades: Shape ``(m,)`` each.
            times: When each happened, int64 ns, shape ``(m,)``.
            before: Trades of each instrument before this batch, int64, shape ``(count,)``.
        """
        order = np.argsort(trades.instrument, kind="stable")
        ids = trades.instrument[order]
        starts = np.flatnonzero(np.diff(ids, prepend=-1))
        sizes = np.diff(starts, append=len(ids))
        rank = np.arange(len(ids)) - np.repeat(starts, sizes)
        last = rank >= np.repeat(sizes, sizes) - self.rows  # of more than the ring holds, only what would be left
        order, ids, rank = order[last], ids[last], rank[last]
        rows = np.empty(len(ids), _ROW)
        rows["side"], rows["price"], rows["qty"] = trades.side[order], trades.price[order], trades.qty[order]
        rows["trade_id"], rows["ts"] = trades.trade_id[order], times[order]
        self._ring[ids, (before[ids] + rank) % self.rows] = rows

    def between(self, instrument: int, after: int, last: int) -> list[Print]:
        """Return the trades from position ``after + 1`` to ``last``, all of which must still be there."""
        return self._ring[instrument, np.arange(after, last) % self.rows].tolist()  # type: ignore[no-any-return]

    def at(self, instruments: I32, positions: I64) -> npt.NDArray[np.void]:
        """Return trades that must still be there, with the fields of :data:`Print`.

        Args:
            instruments: Whose, shape ``(m,)``.
            positions: Which of theirs, shape ``(m,)``.
        """
        return self._ring[instruments, (positions - 1) % self.rows]
