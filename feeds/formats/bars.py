"""Bars (open, high, low, close, volume) as the four prints that give the same bar again.

It is an old simplification, and one that loses nothing of the bar: the way between low and high is taken to have
been the shorter one. This module must not know whose bars they are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from feeds.records import I64

F64 = npt.NDArray[np.float64]

#: What the column ``cond`` of such prints says.
CONDITION = "bar"


class Prints(NamedTuple):
    """Four prints a bar, in order: int64 ns UTC, float64 price, float64 quantity."""

    ts: I64
    price: F64
    qty: F64


def prints(start: I64, end: I64, ohlc: tuple[F64, F64, F64, F64], volume: F64) -> Prints:
    """Return each bar as open, the nearer extreme, the other one and close, at even distances of time.

    Args:
        start: int64 ns UTC of a bar's first instant.
        end: int64 ns UTC of its last.
        ohlc: Open, high, low, close.
        volume: Divided among the four to the eighth decimal; the close has what is left over.
    """
    first, high, low, close = ohlc
    rising = close >= first
    price = np.stack((first, np.where(rising, low, high), np.where(rising, high, low), close), axis=1)
    third = (end - start) // 3
    ts = np.stack((start, start + third, end - third, end), axis=1)
    quarter = np.floor(volume * 25e6) / 1e8
    qty = np.stack((quarter, quarter, quarter, np.round(volume - 3 * quarter, 8)), axis=1)
    return Prints(ts.ravel(), price.ravel(), qty.ravel())
