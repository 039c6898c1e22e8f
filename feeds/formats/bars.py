"""Bars (open, high, low, close, volume) as four prints that give the same bar again.

It is an old simplification: the way between low and high is taken to have been the shorter one. What else a bar may
say (trades, takers' volume, turnover) is lost. A volume below four units has to be divided into decimals that its
market may not have, one contract into four prints of 0.25; one below four units of the eighth decimal cannot be
divided and is all in the close, so that the other prints, of no size, are in no candle. This module must not know
whose bars they are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from feeds.instruments import MAX_UNITS
from feeds.records import I64

F64 = npt.NDArray[np.float64]

#: Vendors print volumes with no more decimals.
_DECIMALS = 8
_FINEST = 10.0**_DECIMALS
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
        volume: At most :data:`feeds.instruments.MAX_UNITS`. Divided among the four into whole units, below four units
            to the eighth decimal; the close has what is left over.
    """
    first, high, low, close = ohlc
    rising = close >= first
    price = np.stack((first, np.where(rising, low, high), np.where(rising, high, low), close), axis=1)
    third = (end - start) // 3
    ts = np.stack((start, start + third, end - third, end), axis=1)
    whole = np.floor(volume / 4)
    quarter = np.where(whole > 0, whole, np.floor(np.rint(volume * _FINEST) / 4) / _FINEST)
    # A large volume is the sum of floats only to the decimals that it has room for itself.
    scale = 10.0 ** np.clip(np.floor(np.log10(MAX_UNITS / np.maximum(volume, 1.0))), 0, _DECIMALS)
    qty = np.stack((quarter, quarter, quarter, np.rint((volume - 3 * quarter) * scale) / scale), axis=1)
    return Prints(ts.ravel(), price.ravel(), qty.ravel())
