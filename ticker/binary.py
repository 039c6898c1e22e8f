"""Packed records for ``encoding: "struct"`` of the native profile: one ``np.frombuffer`` reads a whole message.

Every record is little-endian and unaligned and says by itself which stream it is of and what was left out before it.
Prices and quantities are float64, the double nearest to the exact decimal, NaN where there is none. It knows columns;
it must not know topics or subscribers.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from feeds.records import MISSING
from ticker.history import TickerColumns

BINARY: Final = 0x82  #: first byte of an unfragmented binary frame
NO_PREV: Final = -1  #: ``prev`` of a snapshot

_HEAD: Final = [
    ("channel", "u1"),  # 1 ticker
    ("type", "u1"),  # 0 snapshot, 1 update
    ("listing", "<u4"),  # as in the acknowledgement's ext
    ("epoch", "<u4"),  # the epoch read as a hexadecimal number
    ("prev", "<i8"),
    ("last", "<i8"),
    ("n", "<u4"),
    ("conflated", "<u4"),
    ("dropped", "<u4"),
    ("ts", "<i8"),  # ns UTC
]
_TICKER: Final = (
    "bid", "bid_qty", "ask", "ask_qty", "price", "volume", "vwap", "low", "high", "change", "change_pct",
)  # fmt: skip
#: Which of the ticker's columns are counted in ticks and which in lots; ``change_pct`` is in percent.
_TICKS: Final = ("bid", "ask", "price", "vwap", "low", "high", "change")
_LOTS: Final = ("bid_qty", "ask_qty", "volume")

CHANNELS: Final = {"ticker": 1}
DTYPES: Final[dict[str, np.dtype[np.void]]] = {"ticker": np.dtype([*_HEAD, *[(name, "<f8") for name in _TICKER]])}

Records = npt.NDArray[np.void]
F64 = npt.NDArray[np.float64]


def head(channel: str, epoch: str, listings: Any, prev: Any, last: Any) -> Records:  # noqa: ANN401 - array-likes
    """Return records with their heads filled in.

    Args:
        channel: A key of :data:`DTYPES`.
        epoch: The numbering.
        listings: Listing ids, shape ``(m,)``.
        prev: Positions known before each record, shape ``(m,)``; :data:`NO_PREV` makes it a snapshot.
        last: Positions after it, shape ``(m,)``.
    """
    records = np.zeros(len(listings), DTYPES[channel])
    records["channel"] = CHANNELS[channel]
    records["listing"] = listings
    records["epoch"] = int(epoch, 16)
    follow(records, prev, last)
    return records


def follow(records: Records, prev: Any, last: Any) -> None:  # noqa: ANN401 - array-likes
    """Say in the heads of records up to where their readers knew the streams; arguments as of :func:`head`."""
    before, after = np.asarray(prev, np.int64), np.asarray(last, np.int64)
    update = before != NO_PREV
    records["type"] = records["n"] = update
    records["prev"], records["last"] = before, after
    records["conflated"] = np.where(update, after - before - 1, 0)


def fill_ticker(records: Records, columns: TickerColumns, price_scale: F64, qty_scale: F64) -> None:
    """Fill in the rows of ticker records.

    Args:
        records: Shape ``(m,)``.
        columns: Shape ``(m,)`` each.
        price_scale: Ticks per unit of price, shape ``(m,)``.
        qty_scale: Lots per unit of quantity, shape ``(m,)``.
    """
    records["ts"] = columns.ts
    for name, column in zip(_TICKER, columns.values, strict=True):
        scale = price_scale if name in _TICKS else qty_scale if name in _LOTS else 1.0
        records[name] = np.where(column == MISSING, np.nan, column / scale)


@functools.cache
def described(channel: str) -> list[list[str]]:
    """Return a dtype as JSON: ``np.dtype([tuple(field) for field in described])`` makes it again."""
    dtype = DTYPES[channel]
    return [[name, dtype[name].str] for name in dtype.names or ()]
