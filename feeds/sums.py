"""Sums and extremes of trades, all at once or after every single one of them.

It must not know of periods or windows; whoever calls it decides what is added up.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final, Self

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.records import I64, MISSING

F64 = npt.NDArray[np.float64]

#: The lowest price of no trades at all.
HIGHEST: Final = int(np.iinfo(np.int64).max)


class Sums(msgspec.Struct, frozen=True):
    """Trades summed up, in one row per instrument. Those of size 0 do not count.

    Attributes:
        open: int64 ticks; means nothing where ``count`` is 0.
        low: int64 ticks; :data:`HIGHEST` where there was no trade.
        high: int64 ticks; :data:`~feeds.records.MISSING`, the least int64, where there was no trade.
        volume: float64 lots.
        notional: float64, ticks times lots.
        count: int64 trades.
    """

    open: I64
    low: I64
    high: I64
    volume: F64
    notional: F64
    count: I64

    def begun(self, begun: npt.NDArray[np.bool_]) -> Self:
        """Return these sums where something has begun, and elsewhere those of no trade at all."""
        return type(self)(
            open=self.open,
            low=np.where(begun, self.low, HIGHEST),
            high=np.where(begun, self.high, MISSING),
            volume=np.where(begun, self.volume, 0.0),
            notional=np.where(begun, self.notional, 0.0),
            count=np.where(begun, self.count, 0),
        )

    def pick(self, rows: npt.NDArray[Any]) -> Self:
        """Return the rows picked by an index array."""
        return type(self)(*(getattr(self, name)[rows] for name in self.__struct_fields__))

    def after_each(self, price: I64, qty: I64, bounds: npt.NDArray[np.intp]) -> Self:
        """Return the sums after each of some trades, added one after another.

        Args:
            price: int64 ticks, shape ``(m,)``, ordered by instrument.
            qty: int64 lots, shape ``(m,)``.
            bounds: Where the trades of each row of these sums begin, and ``m``.
        """
        sized, starts = qty > 0, bounds[:-1]
        first = np.minimum.reduceat(np.where(sized, np.arange(len(qty)), len(qty) - 1), starts)
        opened = np.where(self.count > 0, self.open, price[first])
        return type(self)(
            open=np.repeat(opened, np.diff(bounds)),
            low=accumulated(np.minimum, np.where(sized, price, HIGHEST), bounds, self.low),
            high=accumulated(np.maximum, np.where(sized, price, MISSING), bounds, self.high),
            volume=accumulated(np.add, qty.astype(np.float64), bounds, self.volume),
            notional=accumulated(np.add, price.astype(np.float64) * qty, bounds, self.notional),
            count=accumulated(np.add, sized.astype(np.int64), bounds, self.count),
        )


def accumulated(
    ufunc: np.ufunc, values: npt.NDArray[Any], bounds: npt.NDArray[np.intp], before: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return what a ufunc makes of each value and all those before it in its stretch, strictly one after another.

    Args:
        ufunc: Of two arguments.
        values: Shape ``(m,)``.
        bounds: Where each stretch begins, and ``m``; none is empty.
        before: What comes before the first value of each stretch, of the dtype of ``values``.
    """
    result = values.copy()
    result[bounds[:-1]] = ufunc(before, result[bounds[:-1]])
    for start, stop in pairwise(bounds.tolist()):
        if stop - start > 1:
            ufunc.accumulate(result[start:stop], out=result[start:stop])
    return result
