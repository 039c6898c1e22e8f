"""Packed records for ``encoding: "struct"`` of the native profile: one ``np.frombuffer`` reads a whole message.

A record is a head, which says of which stream it is and what was left out before it, and a body with the fields of its
channel. All are little-endian and unaligned. Prices and quantities are float64, the double nearest to the exact
decimal, NaN where there is none. It knows columns and rows; it must not know topics or subscribers.

A book's event takes one record for each level that it changes. Its last record has ``end`` set and accounts for the
event; those before it say where the reader stands already (``prev == last``, ``n`` 0), so sums over records are right.
A snapshot begins with the first record of type 0 after an ``end``; an empty book is one record of side 0.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from feeds.analytics import Candle
from feeds.clock import NS
from feeds.instruments import Instrument
from feeds.records import BUY, MISSING, NO_SIDE, SELL
from ticker.history import TickerColumns

BINARY: Final = 0x82  #: first byte of an unfragmented binary frame
NO_PREV: Final = -1  #: ``prev`` of a snapshot

_HEAD: Final = [
    ("channel", "u1"),  # see CHANNELS
    ("type", "u1"),  # 0 snapshot, 1 update
    ("listing", "<u4"),  # as in the acknowledgement's ext
    ("epoch", "<u4"),  # the epoch read as a hexadecimal number
    ("prev", "<i8"),
    ("last", "<i8"),
    ("n", "<u4"),
    ("conflated", "<u4"),
    ("dropped", "<u4"),
]
#: Packs a head; its arguments are the fields.
head: Final = struct.Struct("<BBIIqqIII").pack

_TICKER: Final = (
    "bid", "bid_qty", "ask", "ask_qty", "price", "volume", "vwap", "low", "high", "change", "change_pct",
)  # fmt: skip
#: Which of the ticker's columns are counted in ticks and which in lots; ``change_pct`` is in percent.
_TICKS: Final = ("bid", "ask", "price", "vwap", "low", "high", "change")
_LOTS: Final = ("bid_qty", "ask_qty", "volume")

_TS: Final = ("ts", "<i8")  # ns UTC, the ``timestamp`` of JSON rows
_SIDE: Final = ("side", "i1")  # as in feeds.records: BUY (a bid), SELL (an ask), NO_SIDE
_BODIES: Final[dict[str, list[tuple[str, str]]]] = {
    "ticker": [_TS, *[(name, "<f8") for name in _TICKER]],
    "trade": [_TS, ("trade_id", "<i8"), _SIDE, ("price", "<f8"), ("qty", "<f8")],
    "book": [_TS, _SIDE, ("end", "u1"), ("price", "<f8"), ("qty", "<f8"), ("checksum", "<u4")],
    "ohlc": [
        _TS, *[(name, "<f8") for name in ("open", "high", "low", "close", "vwap", "volume")], ("trades", "<u4"),
        ("interval_begin", "<i8"), ("interval", "<u4"),
    ],
}  # fmt: skip

CHANNELS: Final = {"ticker": 1, "trade": 2, "book": 3, "ohlc": 4}
BODIES: Final[dict[str, np.dtype[np.void]]] = {channel: np.dtype(fields) for channel, fields in _BODIES.items()}
DTYPES: Final[dict[str, np.dtype[np.void]]] = {
    channel: np.dtype([*_HEAD, *fields]) for channel, fields in _BODIES.items()
}

Records = npt.NDArray[np.void]
F64 = npt.NDArray[np.float64]

_pack_trade: Final = struct.Struct("<qqbdd").pack
_pack_level: Final = struct.Struct("<qbBddI").pack
_pack_candle: Final = struct.Struct("<qddddddIqI").pack


class RecordCodec:
    """Packs the rows of one instrument into bodies; :class:`ticker.codec.RowCodec` prints them, with the same methods.

    Tickers are packed by column, see :func:`ticker_bodies`.

    Args:
        instrument: Gives the scales.
    """

    def __init__(self, instrument: Instrument) -> None:
        self._price_scale, self._qty_scale = instrument.price_scale, instrument.qty_scale

    def trade(self, side: int, price: int, qty: int, trade_id: int, ts: int) -> bytes:
        """Return a trade: aggressor's side, ticks, lots, id, int ns UTC."""
        return _pack_trade(ts, trade_id, side, price / self._price_scale, qty / self._qty_scale)

    def book(self, bids: Iterable[tuple[int, int]], asks: Iterable[tuple[int, int]], checksum: int, ts: int) -> bytes:
        """Return the bodies of a book event, joined; levels are (price ticks, qty lots), quantity 0 deletes."""
        p, q = self._price_scale, self._qty_scale
        levels = [(BUY, price / p, qty / q) for price, qty in bids]
        levels += [(SELL, price / p, qty / q) for price, qty in asks]
        ends = [0] * (len(levels) - 1) + [1]
        levels = levels or [(NO_SIDE, np.nan, np.nan)]
        each = zip(levels, ends, strict=True)
        return b"".join([_pack_level(ts, side, end, price, qty, checksum) for (side, price, qty), end in each])

    def candle(self, candle: Candle, minutes: int) -> bytes:
        """Return a candle of ``minutes``."""
        p = self._price_scale
        return _pack_candle(
            candle.begin_ns + minutes * 60 * NS, candle.open / p, candle.high / p, candle.low / p, candle.close / p,
            candle.vwap / p, candle.volume / self._qty_scale, candle.trades, candle.begin_ns, minutes,
        )  # fmt: skip


def ticker_bodies(columns: TickerColumns, price_scale: F64, qty_scale: F64) -> list[bytes]:
    """Return the bodies of tickers.

    Args:
        columns: Shape ``(m,)`` each.
        price_scale: Ticks per unit of price, shape ``(m,)``.
        qty_scale: Lots per unit of quantity, shape ``(m,)``.
    """
    bodies = np.empty(len(columns.ts), BODIES["ticker"])
    bodies["ts"] = columns.ts
    for name, column in zip(_TICKER, columns.values, strict=True):
        scale = price_scale if name in _TICKS else qty_scale if name in _LOTS else 1.0
        bodies[name] = np.where(column == MISSING, np.nan, column / scale)
    untraded = np.isnan(bodies["price"])
    bodies["vwap"][untraded] = bodies["change_pct"][untraded] = np.nan
    packed, size = bodies.tobytes(), bodies.itemsize
    return [packed[start : start + size] for start in range(0, len(packed), size)]


def updates(channel: str, epoch: str, listings: Any, prev: Any, last: Any) -> Records:  # noqa: ANN401 - array-likes
    """Return records of one event each, with their heads filled in as if nothing was left out before any of them.

    Args:
        channel: A key of :data:`DTYPES`.
        epoch: The numbering.
        listings: Their numbers, shape ``(m,)``.
        prev: Positions known before each record, shape ``(m,)``.
        last: Positions after it, shape ``(m,)``.
    """
    records = np.zeros(len(listings), DTYPES[channel])
    records["channel"] = CHANNELS[channel]
    records["type"] = records["n"] = 1
    records["listing"] = listings
    records["epoch"] = int(epoch, 16)
    records["prev"], records["last"] = prev, last
    return records


@functools.cache
def described(channel: str) -> list[list[str]]:
    """Return a dtype as JSON: ``np.dtype([tuple(field) for field in described])`` makes it again."""
    dtype = DTYPES[channel]
    return [[name, dtype[name].str] for name in dtype.names or ()]
