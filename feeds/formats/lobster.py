"""LOBSTER's reconstructed NASDAQ books: a message file, and beside it the order book after each message.

With the order book file the book comes by level. Without it it comes order by order; then orders from before the
first message are not known, and what happens to them changes nothing. Prices are dollars times 10,000, times seconds
after midnight in New York. Source: https://lobsterdata.com/info/DataStructure.php
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt

from feeds.clock import NS
from feeds.errors import RecordingError
from feeds.formats.delimited import FLOAT, INT, Rows, rows
from feeds.formats.format import Assembly, Chunk, Part, ReadOptions, Values
from feeds.formats.ladder import Ladder, Ladders
from feeds.formats.source import Source
from feeds.instruments import MAX_UNITS
from feeds.records import ADD, CANCEL, LAST, NO_SIDE

Mask = npt.NDArray[np.bool_]

VENUE: Final = "NASDAQ"
#: Prices are so many to the dollar.
_SCALE: Final = 10_000.0
#: What stands for a price where there is no level, on the bid side negative.
_NO_LEVEL: Final = 9_999_999_999
_SECONDS: Final = 86_400
#: Offsets of New York's time in hours, in winter and in summer.
_WINTER, _SUMMER = -5, -4

# Types of messages; 7, a halt, concerns no order.
_SUBMITTED, _REDUCED, _DELETED, _EXECUTED, _HIDDEN, _CROSSED, _HALTED = range(1, 8)

_MESSAGE: Final = {"time": FLOAT} | dict.fromkeys(("type", "id", "size", "price", "direction"), INT)
_LINE: Final = re.compile(rb"[0-9]{4,5}(\.[0-9]{1,12})?,[1-7],[0-9]+,-?[0-9]+,-?[0-9]+,-?[01]\r?(\n|$)")
_BOOK_LINE: Final = re.compile(rb"-?[0-9]+(,-?[0-9]+){3,}\r?(\n|$)")
#: "AAPL_2012-06-21_34200000_57600000_message_10.csv"
_FILE_NAME: Final = re.compile(r"([A-Z.]{1,10})_(\d{4}-\d{2}-\d{2})_\d+_\d+_(message|orderbook)_([1-9]\d{0,2})\.csv")


class Lobster:
    """The format; see the module."""

    name = "lobster"

    def recognises(self, head: bytes, file_name: str) -> bool:
        """Return whether the first line is a message, or it is an order book file by name."""
        match = _FILE_NAME.fullmatch(file_name)
        is_book = match is not None and match[3] == "orderbook"
        return (_BOOK_LINE if is_book else _LINE).match(head) is not None

    def read(self, source: Source, options: ReadOptions) -> Iterator[Chunk]:
        """Yield the prints and the book; an order book in one archive with its messages is read with those."""
        match = _FILE_NAME.fullmatch(source.file_name)
        if match is None:
            form = "SYMBOL_YYYY-MM-DD_start_end_message_levels.csv"
            raise RecordingError(f"{source.name}: the date is only in the name, so keep LOBSTER's, {form}")
        if match[3] == "orderbook":
            if source.member is not None and source.beside(source.file_name.replace("_orderbook_", "_message_")):
                return iter(())
            raise RecordingError(f"{source.name}: is read together with its message file; name only that one")
        names: dict[str, Values] = {"symbol": options.symbol or match[1], "venue": options.venue or VENUE}
        reader = _Reader(names, _midnight(source, match[2]))
        book = source.beside(source.file_name.replace("_message_", "_orderbook_"))
        return reader.orders(source) if book is None else reader.levels(source, book, int(match[4]))


def _midnight(source: Source, text: str) -> int:
    """Return the beginning of a day in New York, ns UTC.

    By the rule since 2007, when LOBSTER's data begin; the clock changes on Sundays, when there is no trading.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise RecordingError(f"{source.name}: {text} is no date") from None
    summer = _sunday(day.year, 3, 2) <= day < _sunday(day.year, 11, 1)
    return ((day - date(1970, 1, 1)).days * 24 - (_SUMMER if summer else _WINTER)) * 3_600 * NS


def _sunday(year: int, month: int, which: int) -> date:
    first = date(year, month, 1)
    return first + timedelta(days=(6 - first.weekday()) % 7 + 7 * (which - 1))


class _Reader:
    """Turns the messages of one day into chunks."""

    def __init__(self, names: dict[str, Values], midnight: int) -> None:
        self._names, self._midnight = names, midnight
        self._assembly = Assembly()

    def orders(self, source: Source) -> Iterator[Chunk]:
        """Yield prints, and the book order by order."""
        for part in _messages(source):
            kind, sign = part.ints("type"), part.ints("direction").astype(np.int8)
            record = np.flatnonzero((kind <= _EXECUTED) & (sign != NO_SIDE))
            book: dict[str, Values] = {
                "action": np.where(kind[record] == _SUBMITTED, np.int8(ADD), np.int8(CANCEL)),
                "side": sign[record],
                "price": part.ints("price")[record] / _SCALE,
                "qty": part.ints("size")[record].astype(np.float64),
                "order_id": part.ints("id")[record].view(np.uint64),
            }
            yield self._assembly.chunk(self._shared(part), _prints(part), Part("book", book, LAST, record))

    def levels(self, source: Source, book: Source, count: int) -> Iterator[Chunk]:
        """Yield prints, and how the levels changed with each message."""
        ladders = Ladders()
        for part, state in _aligned(source, _messages(source), _books(book, count)):
            codes = np.zeros(len(part), np.int32)
            changes = ladders.changes([""], codes, _ladder(state, "bid", count), _ladder(state, "ask", count))
            own = {name: getattr(changes, name) for name in ("action", "side", "price", "qty")}
            parts = _prints(part), Part("book", own, changes.flags, changes.record)
            yield self._assembly.chunk(self._shared(part), *parts)

    def _shared(self, part: Rows) -> dict[str, Values]:
        times = np.rint(part.floats("time") * NS).astype(np.int64) + self._midnight
        return self._names | {"ts_recv": times, "ts_event": times}


def _messages(source: Source) -> Iterator[Rows]:
    for part in rows(source, tuple(_MESSAGE), _MESSAGE, header=False):
        part = part.present(*_MESSAGE)
        part = part.keep((part.floats("time") >= 0) & (part.floats("time") < _SECONDS), "is not of a day", "time")
        part = part.keep((part.ints("type") >= _SUBMITTED) & (part.ints("type") <= _HALTED), "is not 1 to 7", "type")
        part = part.keep(np.abs(part.ints("direction")) <= 1, "is not -1, 0 or 1", "direction")
        part = part.keep((part.ints("size") >= 0) & (part.ints("id") >= 0), "or id is negative", "size")
        part = part.keep(np.abs(part.ints("price")) <= _NO_LEVEL, "is too large", "price")
        part = part.keep(part.ints("size") <= MAX_UNITS, "is too large", "size")
        if len(part):
            yield part


def _prints(part: Rows) -> Part:
    """Return executions; a resting order's direction is the opposite of the aggressor's, a cross has none."""
    kind = part.ints("type")
    record = np.flatnonzero((kind >= _EXECUTED) & (kind <= _CROSSED))
    side = np.where(kind == _CROSSED, NO_SIDE, -part.ints("direction")).astype(np.int8)
    own: dict[str, Values] = {
        "price": part.ints("price")[record] / _SCALE,
        "qty": part.ints("size")[record].astype(np.float64),
        "side": side[record],
    }
    return Part("trades", own, LAST, record)


def _books(source: Source, count: int) -> Iterator[Rows]:
    names = [f"{side}_{what}[{i}]" for i in range(count) for side in ("ask", "bid") for what in ("price", "size")]
    for part in rows(source, names, dict.fromkeys(names, INT), header=False):
        for name in names:
            if "size" in name:
                part = part.keep(~(part.ints(name) > MAX_UNITS), "is too large", name)
        yield part


def _ladder(part: Rows, side: str, count: int) -> Ladder:
    price, size = (np.column_stack([part.ints(f"{side}_{w}[{i}]") for i in range(count)]) for w in ("price", "size"))
    absent = (np.abs(price) >= _NO_LEVEL) | (size <= 0)
    return Ladder(np.where(absent, np.nan, price / _SCALE), np.where(absent, np.nan, size))


def _aligned(source: Source, messages: Iterator[Rows], books: Iterator[Rows]) -> Iterator[tuple[Rows, Rows]]:
    """Yield the rows that stand in the same lines of both files; messages without a book are refused."""
    left, right = next(messages, None), next(books, None)
    while left is not None and right is not None:
        upto = min(left.lines[-1], right.lines[-1])
        here = left.where(left.lines <= upto)
        there = np.isin(here.lines, right.lines)
        _refuse_all(source, here.where(~there))
        if there.any():
            yield here.where(there), right.where(np.isin(right.lines, here.lines))
        left, right = left.where(left.lines > upto), right.where(right.lines > upto)
        left = left if len(left) else next(messages, None)
        right = right if len(right) else next(books, None)
    while left is not None:
        _refuse_all(source, left)
        left = next(messages, None)


def _refuse_all(source: Source, part: Rows) -> None:
    for line in part.lines.tolist():
        source.refuse(line, "has no line in the order book file")
