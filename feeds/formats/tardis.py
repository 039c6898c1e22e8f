"""tardis.dev's CSV: trades, quotes, incremental_book_L2, book_snapshot_N, derivative_ticker, told by their header.

Times are microseconds; ``local_timestamp`` is the receive time. Source: https://docs.tardis.dev/downloadable-csv-files
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feeds.errors import RecordingError
from feeds.formats.delimited import FLOAT, INT, TEXT, WORD, Rows, rows
from feeds.formats.events import ends, with_next
from feeds.formats.format import Assembly, Chunk, Part, ReadOptions, Values
from feeds.formats.ladder import Ladder, Ladders
from feeds.formats.source import Source
from feeds.records import BUY, I64, LAST, NO_SIDE, SELL, SET, SNAPSHOT

F64 = npt.NDArray[np.float64]

_SHARED: Final = {"exchange": WORD, "symbol": WORD, "timestamp": INT, "local_timestamp": INT}
_START: Final = b"exchange,symbol,timestamp,local_timestamp,"
_US: Final = 1_000  # ns

#: The columns that make each table, and how they are parsed.
_TABLES: Final[dict[str, dict[str, pa.DataType]]] = {
    "trades": {"id": TEXT, "side": WORD, "price": FLOAT, "amount": FLOAT},
    "incremental_book_L2": {"is_snapshot": WORD, "side": WORD, "price": FLOAT, "amount": FLOAT},
    "quotes": dict.fromkeys(("bid_price", "bid_amount", "ask_price", "ask_amount"), FLOAT),
    "derivative_ticker": {"funding_rate": FLOAT, "open_interest": FLOAT, "last_price": FLOAT},
}
_AGGRESSOR: Final = {"buy": BUY, "sell": SELL, "unknown": NO_SIDE, "": NO_SIDE}
_SIDE: Final = {"bid": BUY, "ask": SELL}
_BOOL: Final = {"true": 1, "false": 0}
_SIDES: Final = ("bids", "asks")
_VALUES: Final = ("price", "amount")
_LEVEL: Final = re.compile(r"(bids|asks)\[([0-9]{1,4})\]\.(price|amount)")


class Tardis:
    """The format; see the module."""

    name = "tardis"

    def recognises(self, head: bytes, file_name: str) -> bool:
        """Return whether the header is one of tardis'."""
        return head.startswith(_START) and _table(_header(head)) is not None

    def read(self, source: Source, options: ReadOptions) -> Iterator[Chunk]:
        """Yield the rows of a file of any of the tables."""
        names = _header(source.head())
        table = _table(names)
        if table is None:
            raise RecordingError(
                f"{source.name}:1: the header is none of tardis' ({', '.join(_TABLES)}, book_snapshot)"
            )
        types = _SHARED | (_TABLES.get(table) or {name: FLOAT for name in names if _LEVEL.fullmatch(name)})
        parts = (part.stamped(_US, "local_timestamp", "timestamp") for part in rows(source, names, types, header=True))
        reader = _Reader(options, sum(name.endswith("].price") for name in types) // 2)
        return {
            "trades": reader.trades,
            "quotes": reader.quotes,
            "incremental_book_L2": reader.levels,
            "derivative_ticker": reader.last_prices,
            "book_snapshot": reader.ladders,
        }[table](part.present("exchange", "symbol") for part in parts)


def _header(head: bytes) -> list[str]:
    return head.partition(b"\n")[0].rstrip(b"\r").decode("ascii", "replace").split(",")


def _table(names: list[str]) -> str | None:
    if len(set(names)) != len(names):
        return None
    for table, columns in _TABLES.items():
        if columns.keys() | _SHARED.keys() <= set(names):
            return table
    levels = {name for name in names if _LEVEL.fullmatch(name)}
    whole = {name for i in range(len(levels) // 4) for name in _level(i)}
    return "book_snapshot" if levels and levels == whole and _SHARED.keys() <= set(names) else None


def _level(i: int) -> list[str]:
    return [f"{side}[{i}].{value}" for side in _SIDES for value in _VALUES]


class _Reader:
    """Turns the rows of one file into chunks; one method per table."""

    def __init__(self, options: ReadOptions, levels: int) -> None:
        self._venue, self._levels = options.venue, levels
        self._assembly = Assembly()

    def _shared(self, part: Rows) -> dict[str, Values]:
        return {
            "ts_recv": part.ints("local_timestamp") * _US,
            "ts_event": part.ints("timestamp") * _US,
            "symbol": part.array("symbol"),
            "venue": self._venue or part.array("exchange"),
        }

    def trades(self, parts: Iterator[Rows]) -> Iterator[Chunk]:
        """Yield prints; ``side`` is the aggressor's."""
        for part in parts:
            part = part.present("price", "amount").sound(["price"], ["amount"]).known("side", _AGGRESSOR)
            own: dict[str, Values] = {
                "price": part.floats("price"),
                "qty": part.floats("amount"),
                "side": part.codes("side", _AGGRESSOR),
                "trade_id": part.array("id"),
            }
            yield self._assembly.chunk(self._shared(part), Part("trades", own, LAST))

    def quotes(self, parts: Iterator[Rows]) -> Iterator[Chunk]:
        """Yield best bids and offers; a side without a price, or with neither price nor size, is absent."""
        for part in parts:
            part = part.sound(["bid_price", "ask_price"], ["bid_amount", "ask_amount"])
            own: dict[str, Values] = {}
            for side in ("bid", "ask"):
                own[f"{side}_px"], own[f"{side}_qty"] = part.touch(f"{side}_price", f"{side}_amount")
            yield self._assembly.chunk(self._shared(part), Part("quotes", own, LAST))

    def last_prices(self, parts: Iterator[Rows]) -> Iterator[Chunk]:
        """Yield each change of an instrument's last price as a print of no size.

        Funding, open interest, index and mark price have no column in a recording; they are left out.
        """
        last: dict[str, float] = {}
        for part in parts:
            part = part.sound(["last_price"])
            prices = part.floats("last_price")
            record = _changes(part.array("symbol"), prices, last)
            own: dict[str, Values] = {"price": prices[record], "qty": np.zeros(len(record)), "cond": "last_price"}
            yield self._assembly.chunk(self._shared(part), Part("trades", own, LAST, record))

    def levels(self, parts: Iterator[Rows]) -> Iterator[Chunk]:
        """Yield changes of levels; rows of one instrument with one receive time are one event.

        A run of snapshot rows replaces the book, which is what the flag means in a recording too.
        """
        good = (
            part.present("price", "amount")
            .sound(["price"], ["amount"])
            .known("side", _SIDE)
            .known("is_snapshot", _BOOL)
            for part in parts
        )
        for part, following in with_next(good):
            flags = part.codes("is_snapshot", _BOOL).astype(np.uint8) * np.uint8(SNAPSHOT)
            flags |= ends(part, following, "local_timestamp", "symbol") * np.uint8(LAST)
            own: dict[str, Values] = {
                "action": SET,
                "side": part.codes("side", _SIDE),
                "price": part.floats("price"),
                "qty": part.floats("amount"),
            }
            yield self._assembly.chunk(self._shared(part), Part("book", own, flags))

    def ladders(self, parts: Iterator[Rows]) -> Iterator[Chunk]:
        """Yield how each snapshot of the top of a book differs from the one before it."""
        ladders = Ladders()
        prices, amounts = ([f"{side}[{i}].{what}" for side in _SIDES for i in range(self._levels)] for what in _VALUES)
        for part in parts:
            part = part.sound(prices, amounts)
            if not len(part):
                continue
            symbol = part.array("symbol")
            bids, asks = (self._ladder(part, side) for side in _SIDES)
            changes = ladders.changes(symbol.dictionary.to_pylist(), symbol.indices.to_numpy(), bids, asks)
            own = {name: getattr(changes, name) for name in ("action", "side", "price", "qty")}
            yield self._assembly.chunk(self._shared(part), Part("book", own, changes.flags, changes.record))

    def _ladder(self, part: Rows, side: str) -> Ladder:
        columns = ([part.floats(f"{side}[{i}].{what}") for i in range(self._levels)] for what in _VALUES)
        return Ladder(*(np.column_stack(column) for column in columns))


def _changes(symbol: pa.DictionaryArray, prices: F64, last: dict[str, float]) -> I64:
    """Return where an instrument's price is there and another one than before; ``last`` is kept up."""
    codes, found = symbol.indices.to_numpy(), [np.zeros(0, np.int64)]
    for code, name in enumerate(symbol.dictionary.to_pylist()):
        records = np.flatnonzero((codes == code) & ~np.isnan(prices))
        if len(records):
            own = prices[records]
            found.append(records[own != np.append(last.get(name, np.nan), own[:-1])])
            last[name] = float(own[-1])
    return np.sort(np.concatenate(found))
