"""What the messages of a capture say, gathered as columns: one event a message, and its rows.

This module must not know any venue, nor how a message is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Set
from itertools import chain
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feeds import layout
from feeds.formats.format import Assembly, Chunk, Part
from feeds.formats.numbers import UNFIT, fits
from feeds.formats.source import Source
from feeds.instruments import MAX_UNITS
from feeds.records import BUY, CLEAR, GAP, I64, LAST, MISSING, NO_SIDE, SELL, SET, SNAPSHOT, U8

#: A price or a quantity. Whoever decodes one as this knows that it is a number, and one that a market can have; that
#: it can be printed, :class:`Gathering` sees to.
Number = Annotated[float, msgspec.Meta(ge=0.0, le=float(MAX_UNITS))]
#: Price and quantity.
Level = tuple[Number, Number]

#: Bids and asks, in any order.
Sides = tuple[list[Level], list[Level]]

_CLEARED: Final[Level] = (math.nan, math.nan)


class Gathering:
    """Takes events one by one and gives them back as a chunk.

    Times are int ns UTC; ``ident`` is what the venue numbers the event by. Either may be MISSING.

    Attributes:
        ts: When the next events were received; set by the reader.
        line: Which line of the source says so; set by the reader.
        symbols: Those of all events so far, numbered in the order of their first.
    """

    def __init__(self) -> None:
        self.ts = self.line = 0
        self._assembly = Assembly()
        self._broken: set[int] = set()  # symbols of whose books a change was left out
        self.symbols: dict[str, int] = {}
        self._begin()

    def _begin(self) -> None:
        self._events: list[int] = []  # ts, ts_event, ident, symbol, line of each
        self._trades: list[float] = []  # event, price, qty, side of each
        self._quotes: list[float] = []  # event, four numbers of each
        self._books: list[int] = []  # event, flags, rows of clear, bids, asks of each
        self._levels: list[Level] = []

    def _event(self, symbol: str, ts_event: int, ident: int) -> int:
        """Enter an event and return its number in this chunk."""
        events = self._events
        code = self.symbols.setdefault(symbol, len(self.symbols))
        events += (self.ts, ts_event, ident, code, self.line)
        return len(events) // 5 - 1

    def trade(self, symbol: str, ts_event: int, ident: int, print_: tuple[float, float, int]) -> None:
        """Take in a trade: price, quantity and the aggressor's side."""
        self._trades += (self._event(symbol, ts_event, ident), *print_)

    def quote(self, symbol: str, ts_event: int, ident: int, quote: tuple[float, float, float, float]) -> None:
        """Take in the best bid and its quantity, the best offer and its quantity; 0 and 0 where there is none."""
        self._quotes += (self._event(symbol, ts_event, ident), *quote)

    def snapshot(self, symbol: str, ts_event: int, ident: int, sides: Sides) -> None:
        """Take in a whole book."""
        self._levels.append(_CLEARED)
        self._book(self._event(symbol, ts_event, ident), SNAPSHOT, 1, sides)

    def changes(self, symbol: str, ts_event: int, ident: int, sides: Sides, *, gap: bool) -> None:
        """Take in the levels of a book that changed, at least one; ``gap`` says that something before is missing."""
        self._book(self._event(symbol, ts_event, ident), GAP if gap else 0, 0, sides)

    def _book(self, event: int, flags: int, clears: int, sides: Sides) -> None:
        bids, asks = sides
        self._books += (event, flags, clears, len(bids), len(asks))
        self._levels += bids
        self._levels += asks

    def chunk(self, venue: str, source: Source) -> Chunk:
        """Return the rows of the events so far, and begin anew; empty if there are none.

        An event with a number that cannot be printed is refused; if that returns, it is left out, and what comes next
        of its book is marked.
        """
        if not self._events:
            return {}
        ts, ts_event, ident, code, line = _columns(self._events, 5, np.int64)
        parts = self._trades_part(ident), self._quotes_part(), self._book_part()
        if unfit := _unfit(parts):
            for event, why in sorted(unfit.items()):
                source.refuse(int(line[event]), why)
        if unfit or self._broken:
            parts = self._without(unfit.keys(), code, *parts)
        symbols = pa.DictionaryArray.from_arrays(code.astype(np.int32), pa.array(list(self.symbols)))
        self._begin()
        shared = {
            "ts_recv": ts,
            "ts_event": ts_event,
            "venue_seq": pa.array(ident, mask=ident == MISSING),
            "symbol": symbols,
            "venue": venue,
        }
        return self._assembly.chunk(shared, *parts)

    def _without(self, unfit: Set[int], code: I64, trades: Part, quotes: Part, book: Part) -> tuple[Part, Part, Part]:
        """Return the rows of all other events; in a book the first one after an event left out has the flag GAP."""
        record: I64 = book.record  # type: ignore[assignment]
        flags: U8 = book.flags  # type: ignore[assignment]
        for event, at in zip(*(column.tolist() for column in np.unique(record, return_index=True)), strict=True):
            symbol = int(code[event])
            if event in unfit:
                self._broken.add(symbol)
            elif symbol in self._broken:
                self._broken.remove(symbol)
                flags[at] |= GAP
        left_out = np.fromiter(unfit, np.int64, len(unfit))
        return _outside(trades, left_out), _outside(quotes, left_out), _outside(book, left_out)

    def _trades_part(self, ident: I64) -> Part:
        event, price, qty, side = _columns(self._trades, 4, np.float64)
        record = event.astype(np.int64)
        columns = {"price": price, "qty": qty, "side": side.astype(np.int8), "trade_id": ident[record]}
        return Part("trades", columns, np.full(len(record), LAST, np.uint8), record)

    def _quotes_part(self) -> Part:
        event, *numbers = _columns(self._quotes, 5, np.float64)
        for price, qty in (numbers[:2], numbers[2:]):
            empty = (price == 0.0) & (qty == 0.0)
            price[empty] = qty[empty] = np.nan
        columns = dict(zip(("bid_px", "bid_qty", "ask_px", "ask_qty"), numbers, strict=True))
        return Part("quotes", columns, np.full(len(event), LAST, np.uint8), event.astype(np.int64))

    def _book_part(self) -> Part:
        event, flags, *counts = _columns(self._books, 5, np.int64)
        rows = np.array(counts).T
        total = rows.sum(axis=1)
        side = np.repeat(np.tile(np.array([NO_SIDE, BUY, SELL], np.int8), len(event)), rows.ravel())
        price, qty = _columns(chain.from_iterable(self._levels), 2, np.float64, len(self._levels))
        ends = np.cumsum(total)
        row_flags = np.repeat(flags & SNAPSHOT, total)
        row_flags[ends - total] |= flags & GAP
        row_flags[ends - 1] |= LAST
        action = np.where(side == NO_SIDE, np.int8(CLEAR), np.int8(SET))
        columns = {"action": action, "side": side, "price": price, "qty": qty}
        return Part("book", columns, row_flags.astype(np.uint8), np.repeat(event, total))


def _unfit(parts: Iterable[Part]) -> dict[int, str]:
    """Return the events with a number that cannot be printed, and what the first one is."""
    unfit: dict[int, str] = {}
    for part in parts:
        for name in (*layout.PRICES[part.table], *layout.QUANTITIES[part.table]):
            values: Any = part.columns[name]
            bad = np.flatnonzero(~fits(values))
            for event, value in zip(part.record[bad].tolist(), values[bad].tolist(), strict=True):  # type: ignore[index]
                unfit.setdefault(event, f"{name} {UNFIT} ({value})")
    return unfit


def _outside(part: Part, events: I64) -> Part:
    """Return the rows of a part that are not of these events."""
    kept = ~np.isin(part.record, events)  # type: ignore[arg-type]
    columns: dict[str, Any] = {name: column[kept] for name, column in part.columns.items()}  # type: ignore[index]
    return Part(part.table, columns, part.flags[kept], part.record[kept])  # type: ignore[index]


def _columns(values: Iterable[Any], width: int, dtype: type, rows: int | None = None) -> npt.NDArray[Any]:
    """Return numbers that came row after row as ``width`` columns."""
    count = len(values) if rows is None else rows * width  # type: ignore[arg-type]
    return np.ascontiguousarray(np.fromiter(values, dtype, count).reshape(-1, width).T)
