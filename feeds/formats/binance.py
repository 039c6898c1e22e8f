"""Binance's public data (data.binance.vision): trades, aggTrades, klines, bookTicker and T_DEPTH, as CSV in a zip.

Spot files have no header, newer futures files have one; the order of columns is the same. Times are milliseconds,
in spot files since 2025-01-01 microseconds, and there is no receive time.
Source: https://github.com/binance/binance-public-data
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feeds.errors import RecordingError
from feeds.formats.bars import CONDITION, prints
from feeds.formats.delimited import FLOAT, INT, WORD, Rows, rows
from feeds.formats.events import ends, with_next
from feeds.formats.format import Assembly, Chunk, Part, ReadOptions, Values
from feeds.formats.source import Source
from feeds.records import BUY, GAP, I64, LAST, SELL, SET, SNAPSHOT, U8

Mask = npt.NDArray[np.bool_]

VENUE: Final = "BINANCE"
_US: Final = 1_000  # ns

#: ``is_buyer_maker``: a buyer who was there already was hit by a seller.
_AGGRESSOR: Final = {"true": SELL, "True": SELL, "TRUE": SELL, "false": BUY, "False": BUY, "FALSE": BUY}
_SIDE: Final = {"b": BUY, "a": SELL}
_UPDATE: Final = {"set": 0, "snap": SNAPSHOT}
#: "BTCUSDT-trades-2024-08-08.csv", "BTCUSDT_240927-1m-2024-08.csv"
_FILE_NAME: Final = re.compile(
    r"([A-Z0-9_]{2,40})-(?:trades|aggTrades|bookTicker|[0-9]{1,2}(?:s|m|h|d|w|mo))-[0-9-]+\.csv"
)


class _Table(msgspec.Struct, frozen=True):
    """One table's columns.

    Attributes:
        header: How the first line begins where it holds names.
        shape: A regular expression for a line of values, each one letter: i (integer), f (other number), b (true or
            false), x (anything else).
        names: Our names of the columns, in order; a file may lack the last.
        types: Those that are read.
    """

    header: str
    shape: str
    names: tuple[str, ...]
    types: dict[str, pa.DataType]


_OHLCV: Final = ("open", "high", "low", "close", "volume")
_QUOTE: Final = ("bid_px", "bid_qty", "ask_px", "ask_qty")
_PRINT: Final = {"id": INT, "price": FLOAT, "qty": FLOAT, "time": INT, "is_buyer_maker": WORD}
_TABLES: Final = {
    "trades": _Table(
        "id,price,qty,quote_qty,time,is_buyer_maker",
        "i[if]{3}ib{1,2}",
        ("id", "price", "qty", "quote_qty", "time", "is_buyer_maker", "is_best_match"),
        _PRINT,
    ),
    "agg_trades": _Table(
        "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker",
        "i[if]{2}iiib{1,2}",
        ("id", "price", "qty", "first_id", "last_id", "time", "is_buyer_maker", "is_best_match"),
        _PRINT,
    ),
    "klines": _Table(
        "open_time,open,high,low,close,volume,close_time",
        "i[if]{5}i[if]i[if]{3}",
        ("time", *_OHLCV, "end", "quote_volume", "count", "taker_volume", "taker_quote_volume", "ignore"),
        {"time": INT, "end": INT} | dict.fromkeys(_OHLCV, FLOAT),
    ),
    "book_ticker": _Table(
        "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time",
        "i[if]{4}ii",
        ("id", *_QUOTE, "transaction_time", "time"),
        {"id": INT, "time": INT, "transaction_time": INT} | dict.fromkeys(_QUOTE, FLOAT),
    ),
    "depth": _Table(
        "symbol,timestamp,first_update_id,last_update_id,side,update_type,price,qty,pu",
        "$.",  # matches nothing: there is always a header
        ("symbol", "time", "first_id", "id", "side", "update_type", "price", "qty", "pu"),
        {"symbol": WORD, "side": WORD, "update_type": WORD, "price": FLOAT, "qty": FLOAT}
        | dict.fromkeys(("time", "id", "pu"), INT),
    ),
}
#: Times at or above this are microseconds; as milliseconds they would be after the year 5000.
_MICROSECONDS: Final = 10**14
#: Milliseconds end here, in 2262, where int64 nanoseconds do; from here to 1973 in microseconds there is no time.
_END_MS: Final = 2**63 // 1_000_000
#: No time is below this: 2001 in milliseconds.
_EARLIEST: Final = 10**12


class Binance:
    """The format; see the module."""

    name = "binance"

    def recognises(self, head: bytes, file_name: str) -> bool:
        """Return whether the first line has the shape of one of the tables, or is its header."""
        return _told(head) is not None

    def read(self, source: Source, options: ReadOptions) -> Iterator[Chunk]:
        """Yield the rows of a file of any of the tables."""
        told = _told(source.head())
        if told is None:
            raise RecordingError(f"{source.name}:1: is no line of Binance's {', '.join(_TABLES)}")
        name, columns, header = told
        table = _TABLES[name]
        times = [column for column in ("time", "end", "transaction_time") if column in table.types]
        parts = rows(source, table.names[:columns], table.types, header=header)
        reader = _Reader(options.venue or VENUE, "" if name == "depth" else _symbol(source, options))
        return {
            "trades": reader.trades,
            "agg_trades": reader.trades,
            "klines": reader.bars,
            "book_ticker": reader.quotes,
            "depth": reader.levels,
        }[name](_stamped(part, times) for part in parts)


def _told(head: bytes) -> tuple[str, int, bool] | None:
    """Return table, number of columns and whether there is a header, as the first line tells."""
    line = head.partition(b"\n")[0].rstrip(b"\r").decode("ascii", "replace")
    values = line.split(",")
    shape = "".join(map(_shape, values))
    for name, table in _TABLES.items():
        if line.startswith(table.header) and len(values) <= len(table.names):
            return name, len(values), True
        if re.fullmatch(table.shape, shape) and int(values[table.names.index("time")]) >= _EARLIEST:
            return name, len(values), False
    return None


def _shape(value: str) -> str:
    if value in _AGGRESSOR:
        return "b"
    if re.fullmatch("[0-9]{1,18}", value):
        return "i"
    return "f" if re.fullmatch(r"[0-9]{1,18}\.[0-9]{0,18}", value) else "x"


def _symbol(source: Source, options: ReadOptions) -> str:
    match = _FILE_NAME.fullmatch(source.file_name)
    symbol = options.symbol or (match and match[1])
    if not symbol:
        raise RecordingError(f"{source.name}: neither the file nor its name says the symbol; give it with --symbol")
    return symbol


def _stamped(part: Rows, names: Sequence[str]) -> Rows:
    """Return the rows whose times, in milliseconds or microseconds, nanoseconds can hold."""
    part = part.stamped(_US, *names)
    for name in names:
        times = part.ints(name)
        part = part.keep((times < _END_MS) | (times >= _MICROSECONDS), "is no time of this age", name)
    return part


def _ns(times: I64) -> I64:
    return np.where(times < _MICROSECONDS, times * 1_000, times) * _US


class _Reader:
    """Turns the rows of one file into chunks; one method per kind of table."""

    def __init__(self, venue: str, symbol: str) -> None:
        self._names: dict[str, Values] = {"venue": venue, "symbol": symbol}
        self._assembly = Assembly()

    def _shared(self, part: Rows, event: str = "time") -> dict[str, Values]:
        return self._names | {"ts_recv": _ns(part.ints("time")), "ts_event": _ns(part.ints(event))}

    def trades(self, parts: Iterator[Rows]) -> Iterator[Chunk]:
        """Yield prints; an aggregated trade is one print under the id of the aggregate."""
        for part in parts:
            part = part.present("id", "price", "qty").sound(["price"], ["qty"]).known("is_buyer_maker", _AGGRESSOR)
            own: dict[str, Values] = {
                "price": part.floats("price"),
                "qty": part.floats("qty"),
                "side": part.codes("is_buyer_maker", _AGGRESSOR),
                "trade_id": part.array("id"),
                "venue_seq": part.array("id"),
            }
            yield self._assembly.chunk(self._shared(part), Part("trades", own, LAST))

    def bars(self, parts: Iterator[Rows]) -> Iterator[Chunk]:
        """Yield the four prints of each bar, see :mod:`feeds.formats.bars`."""
        prices = ("open", "high", "low", "close")
        for part in parts:
            part = part.present(*prices, "volume").sound(prices, ["volume"])
            part = part.keep(part.ints("end") >= part.ints("time"), "is before the bar begins", "end")
            first, high, low, close = (part.floats(name) for name in prices)
            bars = prints(
                _ns(part.ints("time")), _ns(part.ints("end")), (first, high, low, close), part.floats("volume")
            )
            shared = self._names | {"ts_recv": bars.ts, "ts_event": bars.ts}
            own: dict[str, Values] = {"price": bars.price, "qty": bars.qty, "cond": CONDITION}
            yield self._assembly.chunk(shared, Part("trades", own, LAST))

    def quotes(self, parts: Iterator[Rows]) -> Iterator[Chunk]:
        """Yield best bids and offers; they are received when the event was sent, after the transaction."""
        for part in parts:
            part = part.present("id").sound(["bid_px", "ask_px"], ["bid_qty", "ask_qty"])
            own: dict[str, Values] = {"venue_seq": part.array("id")}
            for side in ("bid", "ask"):
                own[f"{side}_px"], own[f"{side}_qty"] = part.touch(f"{side}_px", f"{side}_qty")
            yield self._assembly.chunk(self._shared(part, "transaction_time"), Part("quotes", own, LAST))

    def levels(self, parts: Iterator[Rows]) -> Iterator[Chunk]:
        """Yield changes of levels; rows with one update id are one event.

        An update names the last id of the one before it (``pu``); where that is another, one was lost.
        """
        last: dict[str, int] = {}
        good = (
            part.present("symbol", "id", "pu", "price", "qty")
            .sound(["price"], ["qty"])
            .known("side", _SIDE)
            .known("update_type", _UPDATE)
            for part in parts
        )
        for part, following in with_next(good):
            end = ends(part, following, "symbol", "time", "id")
            snapshot = part.codes("update_type", _UPDATE).view(np.uint8)
            flags = snapshot | end * np.uint8(LAST) | _lost(part, snapshot, last) * np.uint8(GAP)
            own: dict[str, Values] = {
                "action": SET,
                "side": part.codes("side", _SIDE),
                "price": part.floats("price"),
                "qty": part.floats("qty"),
                "venue_seq": part.array("id"),
            }
            shared = self._shared(part) | {"symbol": part.array("symbol")}
            yield self._assembly.chunk(shared, Part("book", own, flags))


def _lost(part: Rows, snapshot: U8, last: dict[str, int]) -> Mask:
    """Return the rows before which an update of their instrument is missing; ``last`` keeps the ids up."""
    codes, symbols = part.array("symbol").indices.to_numpy(), part.array("symbol").dictionary.to_pylist()
    ids, previous, lost = part.ints("id"), part.ints("pu"), np.zeros(len(part), np.bool_)
    for code in np.unique(codes).tolist():
        own = np.flatnonzero(codes == code)
        before = np.append(last.get(symbols[code], previous[own[0]]), ids[own[:-1]])
        lost[own] = (ids[own] != before) & (previous[own] != before) & (snapshot[own] == 0)
        last[symbols[code]] = int(ids[own[-1]])
    return lost
