"""Which numbers a recording can hold: those whose decimals can be printed, and told from those of their neighbours.

This module must not know where they come from.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from feeds import layout
from feeds.instruments import MAX_UNITS

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: What a number is that does not :func:`fits`.
UNFIT: Final = f"has over {layout.MAX_DECIMALS} decimals or is too large"
_FINEST: Final = 10.0**layout.MAX_DECIMALS
#: The largest number of which all :data:`feeds.layout.MAX_DECIMALS` decimals can be told.
_FINE: Final = MAX_UNITS / _FINEST


def fits(values: F64) -> Mask:
    """Return where a number can be printed so that it is told from its neighbours; true where it is NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        good: Mask = (np.rint(values * _FINEST) / _FINEST == values) & (np.abs(values) <= _FINE)
        if not good.all():
            good[~good] = _fits_coarsely(values[~good])
    return good


def _fits_coarsely(values: F64) -> Mask:
    """Allow a number as many decimals as its size leaves room for, and the error of arithmetic."""
    with np.errstate(divide="ignore"):
        scale = 10.0 ** np.clip(np.floor(np.log10(MAX_UNITS / np.abs(values))), 0, layout.MAX_DECIMALS)
    size = np.abs(values)
    near = np.abs(np.rint(values * scale) / scale - values) <= size * layout.DECIMAL_TOLERANCE
    fit: Mask = np.isnan(values) | (near & (size <= MAX_UNITS))
    return fit
