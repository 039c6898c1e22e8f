"""What the messages of a capture say, gathered as columns: one event a message, and its rows.

This module must not know any venue, nor how a message is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feeds.formats.format import Assembly, Chunk
from feeds.formats.source import Source
from feeds.formats.table_rows import TableRows, with_nulls
from feeds.records import BUY, CLEAR, GAP, I64, LAST, NO_SIDE, SELL, SET, SNAPSHOT

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
#: Price and quantity.
Level = tuple[float, float]

#: Bids and asks, in any order.
Sides = tuple[list[Level], list[Level]]

_CLEARED: Final[Level] = (math.nan, math.nan)


class Gathering:
    """Takes events one by one and gives them back as a chunk.

    Times are int ns UTC; ``ident`` is what the venue numbers the event by. Either may be MISSING.

    Attributes:
        line: The line that the next events come from; set by the reader.
        ts: When it was received; set by the reader.
        symbols: Those of all events so far, numbered in the order of their first.
    """

    def __init__(self, source: Source) -> None:
        self.line = 0
        self.ts = 0
        self._source = source
        self._assembly = Assembly()
        self.symbols: dict[str, int] = {}
        self._begin()

    def _begin(self) -> None:
        self._events: list[int] = []  # line, ts, ts_event, ident, symbol of each
        self._trades: list[float] = []  # event, price, qty, side of each
        self._quotes: list[float] = []  # event, four numbers of each
        self._books: list[int] = []  # event, flags, rows of clear, bids, asks of each
        self._levels: list[Level] = []

    def _event(self, symbol: str, ts_event: int, ident: int) -> int:
        """Enter an event and return its number in this chunk."""
        events = self._events
        code = self.symbols.setdefault(symbol, len(self.symbols))
        events += (self.line, self.ts, ts_event, ident, code)
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

    def chunk(self, venue: str) -> Chunk:
        """Return the rows of the events so far, and begin anew; empty if there are none.

        Raises:
            RecordingError: A price or a quantity is not one, and bad rows are not skipped.
        """
        if not self._events:
            return {}
        line, ts, ts_event, ident, code = _columns(self._events, 5, np.int64)
        tables = self._sound(line, [self._trade_rows(ident), self._quote_rows(), self._book_rows()])
        symbols = pa.DictionaryArray.from_arrays(code.astype(np.int32), pa.array(list(self.symbols)))
        self._begin()
        shared = {
            "ts_recv": ts,
            "ts_event": ts_event,
            "venue_seq": with_nulls(ident),
            "symbol": symbols,
            "venue": venue,
        }
        return self._assembly.chunk(shared, *(rows.part() for rows in tables))

    def _trade_rows(self, ident: I64) -> tuple[TableRows, Mask]:
        event, price, qty, side = _columns(self._trades, 4, np.float64)
        record = event.astype(np.int64)
        columns = {"price": price, "qty": qty, "side": side.astype(np.int8), "trade_id": ident[record]}
        return TableRows("trades", columns, np.full(len(record), LAST, np.uint8), record), _numbers(price, qty)

    def _quote_rows(self) -> tuple[TableRows, Mask]:
        event, *numbers = _columns(self._quotes, 5, np.float64)
        sound = np.ones(len(event), np.bool_)
        for price, qty in (numbers[:2], numbers[2:]):
            sound &= _numbers(price, qty)
            empty = (price == 0.0) & (qty == 0.0)
            price[empty] = qty[empty] = np.nan
        columns = dict(zip(("bid_px", "bid_qty", "ask_px", "ask_qty"), numbers, strict=True))
        return TableRows("quotes", columns, np.full(len(event), LAST, np.uint8), event.astype(np.int64)), sound

    def _book_rows(self) -> tuple[TableRows, Mask]:
        event, flags, *counts = _columns(self._books, 5, np.int64)
        rows = np.array(counts).T
        total = rows.sum(axis=1)
        side = np.repeat(np.tile(np.array([NO_SIDE, BUY, SELL], np.int8), len(event)), rows.ravel())
        price, qty = _columns(chain.from_iterable(self._levels), 2, np.float64, len(self._levels))
        clear = side == NO_SIDE
        ends = np.cumsum(total)
        row_flags = np.repeat(flags & SNAPSHOT, total)
        row_flags[ends - total] |= flags & GAP
        row_flags[ends - 1] |= LAST
        action = np.where(clear, np.int8(CLEAR), np.int8(SET))
        columns = {"action": action, "side": side, "price": price, "qty": qty}
        return TableRows("book", columns, row_flags.astype(np.uint8), np.repeat(event, total)), clear | _numbers(
            price, qty
        )

    def _sound(self, line: I64, tables: list[tuple[TableRows, Mask]]) -> list[TableRows]:
        """Return the rows without those of events that hold a number that is none."""
        unfit = np.unique(np.concatenate([rows.event[~sound] for rows, sound in tables]))
        if not len(unfit):
            return [rows for rows, _ in tables]
        for number in line[unfit].tolist():
            self._source.refuse(number, "a price or a quantity is negative or not a number")
        return [rows.picked(np.flatnonzero(~np.isin(rows.event, unfit))) for rows, _ in tables]


def _columns(values: Iterable[Any], width: int, dtype: type, rows: int | None = None) -> npt.NDArray[Any]:
    """Return numbers that came row after row as ``width`` columns."""
    count = len(values) if rows is None else rows * width  # type: ignore[arg-type]
    return np.ascontiguousarray(np.fromiter(values, dtype, count).reshape(-1, width).T)


def _numbers(price: F64, qty: F64) -> Mask:
    """Return where both are numbers that a market can have."""
    sound: Mask = np.isfinite(price) & np.isfinite(qty) & (price >= 0.0) & (qty >= 0.0)
    return sound
