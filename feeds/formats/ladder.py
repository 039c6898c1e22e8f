"""Books given whole, so many levels a side in every record, as changes of a book.

What a ladder no longer shows is removed: whether it is still there further down, the source does not say. The first
ladder of an instrument is a snapshot. This module must not know whose ladders they are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from feeds.records import BUY, CLEAR, I8, I64, LAST, NO_SIDE, SELL, SET, SNAPSHOT, U8

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Ladder(NamedTuple):
    """One side of books, one row per record: float64, shape ``(records, levels)``; NaN where there is no level."""

    price: F64
    qty: F64


class Changes(NamedTuple):
    """Rows of a book, in the order of their records.

    Attributes:
        record: Which record a row comes from, for taking its times and its symbol.
        flags: uint8: SNAPSHOT in the first record of an instrument, LAST in the last row of each record.
        action: int8, CLEAR or SET.
        side: int8.
        price: float64, NaN in a CLEAR.
        qty: float64, 0 where a level goes; NaN in a CLEAR.
    """

    record: I64
    flags: U8
    action: I8
    side: I8
    price: F64
    qty: F64


class Ladders:
    """What the last ladder of each instrument was."""

    def __init__(self) -> None:
        self._last: dict[str, list[Ladder]] = {}

    def changes(self, symbols: list[str], codes: npt.NDArray[np.int32], bids: Ladder, asks: Ladder) -> Changes:
        """Return how each record differs from the one of its instrument before it.

        Args:
            symbols: Names.
            codes: Shape ``(records,)``: the position in ``symbols`` of each record's.
            bids: In any order of levels; the same number of levels in every call.
            asks: Likewise.
        """
        parts = []
        for code in np.unique(codes).tolist():
            records = np.flatnonzero(codes == code)
            known = self._last.get(symbols[code])
            if known is None:
                parts.append(_cleared(int(records[0])))
            sides = [Ladder(side.price[records], side.qty[records]) for side in (bids, asks)]
            for sign, side, last in zip((BUY, SELL), sides, known or (None, None), strict=True):
                parts += _side(records, sign, side, last)
            self._last[symbols[code]] = [Ladder(side.price[-1].copy(), side.qty[-1].copy()) for side in sides]
            if known is None:
                first = int(records[0])
                parts = [p._replace(flags=p.flags | (p.record == first) * np.uint8(SNAPSHOT)) for p in parts]
        return _in_order(parts)


def _cleared(record: int) -> Changes:
    nothing = np.full(1, np.nan)
    flags, action, side = np.zeros(1, np.uint8), np.full(1, CLEAR, np.int8), np.full(1, NO_SIDE, np.int8)
    return Changes(np.array([record]), flags, action, side, nothing, nothing)


def _side(records: I64, sign: int, now: Ladder, last: Ladder | None) -> list[Changes]:
    """Return what goes and what is set on one side of one instrument."""
    before = [
        np.vstack((np.full_like(column[:1], np.nan) if last is None else last[i][np.newaxis], column[:-1]))
        for i, column in enumerate(now)
    ]
    # Most records repeat most sides, or most prices in their places; only the rest is looked for in other places.
    moved = ((now.price != before[0]) | (now.qty != before[1])).any(axis=1).nonzero()[0]
    price, qty, old_price, old_qty = now.price[moved], now.qty[moved], before[0][moved], before[1][moved]
    absent, was_absent = np.isnan(price), np.isnan(old_price)
    gone, changed = np.zeros_like(absent), (qty != old_qty) & ~absent
    shifted = ((price != old_price) & ~(absent & was_absent)).any(axis=1).nonzero()[0]
    same = price[shifted][:, :, np.newaxis] == old_price[shifted][:, np.newaxis, :]
    kept = (same & (qty[shifted][:, :, np.newaxis] == old_qty[shifted][:, np.newaxis, :])).any(axis=2)
    gone[shifted] = ~same.any(axis=1) & ~was_absent[shifted]
    changed[shifted] = ~kept & ~absent[shifted]
    return [
        _rows(records[moved], sign, gone, old_price, np.zeros_like(old_qty)),
        _rows(records[moved], sign, changed, price, qty),
    ]


def _rows(records: I64, sign: int, picked: Mask, price: F64, qty: F64) -> Changes:
    record = records[picked.nonzero()[0]]
    count = len(record)
    action, side = np.full(count, SET, np.int8), np.full(count, sign, np.int8)
    return Changes(record, np.zeros(count, np.uint8), action, side, price[picked], qty[picked])


def _in_order(parts: list[Changes]) -> Changes:
    record = np.concatenate([part.record for part in parts])
    order = np.argsort(record, kind="stable")
    record = record[order]
    last = np.append(record[1:] != record[:-1], True)[: len(order)]
    return Changes(
        record,
        np.concatenate([part.flags for part in parts])[order] | last * np.uint8(LAST),
        np.concatenate([part.action for part in parts])[order],
        np.concatenate([part.side for part in parts])[order],
        np.concatenate([part.price for part in parts])[order],
        np.concatenate([part.qty for part in parts])[order],
    )
