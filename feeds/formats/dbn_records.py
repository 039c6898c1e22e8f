"""The records of DBN that have rows in a recording, as numpy sees them, and those rows.

Prices are int64 in units of 1e-9, the largest one for none; times are uint64 ns, the largest one for none, which is
-1 as int64. Layouts are the same in versions 1 to 3. Source: https://databento.com/docs/schemas-and-data-formats

This module must not know how records are found in a file, of symbols beyond their codes, or of times that run
backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from feeds.formats import bars
from feeds.formats.ladder import Ladder, Ladders
from feeds.records import ADD, CANCEL, CLEAR, FILL, I32, I64, LAST, MISSING, MODIFY, NO_SIDE, SNAPSHOT, TRADE, U8

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
#: 1-D, of one of the dtypes below.
Records = npt.NDArray[np.void]

#: The shortest record, and what all begin with: length in words, kind, publisher, instrument, ts_event.
HEADER: Final = np.dtype(
    {
        "names": ["length", "rtype", "publisher", "instrument", "ts_event"],
        "formats": ["u1", "u1", "<u2", "<u4", "<i8"],
        "offsets": [0, 1, 2, 4, 8],
        "itemsize": 16,
    }
)

#: Records of these kinds say which symbol an id stands for, with texts of 22 bytes in version 1 and 71 since.
SYMBOL_MAPPING: Final = 22
#: Kinds that have no rows in a recording, as the messages call them.
PASSED_OVER: Final = {
    17: "ohlcv of no known interval",
    18: "status",
    19: "definition",
    20: "imbalance",
    21: "error message",
    SYMBOL_MAPPING: "symbol mapping",
    23: "system message",
    24: "statistics",
}

_NO_PRICE: Final = np.iinfo(np.int64).max
_LEVELS: Final = 10


def _dtype(size: int, **fields: tuple[str, int]) -> np.dtype[Any]:
    formats, offsets = zip(*fields.values(), strict=True)
    return np.dtype(
        {
            "names": [*HEADER.names, *fields],  # type: ignore[misc]
            "formats": [*(HEADER[name] for name in HEADER.names), *formats],  # type: ignore[union-attr]
            "offsets": [0, 1, 2, 4, 8, *offsets],
            "itemsize": size,
        }
    )


_PRINT: Final = {
    "price": ("<i8", 16),
    "size": ("<u4", 24),
    "action": ("u1", 28),
    "side": ("u1", 29),
    "flags": ("u1", 30),
    "ts_recv": ("<i8", 32),
    "sequence": ("<u4", 44),
}
_LEVEL: Final = np.dtype(
    {
        "names": ["bid_px", "ask_px", "bid_sz", "ask_sz"],
        "formats": ["<i8", "<i8", "<u4", "<u4"],
        "offsets": [0, 8, 16, 20],
        "itemsize": 32,
    }
)
_TRADE: Final = _dtype(48, **_PRINT)
_TOP: Final = _dtype(80, **_PRINT, levels=(_LEVEL, 48))  # type: ignore[arg-type]
_TEN: Final = _dtype(368, **_PRINT, levels=((_LEVEL, _LEVELS), 48))  # type: ignore[arg-type]
_ORDER: Final = _dtype(
    56,
    order_id=("<u8", 16),
    price=("<i8", 24),
    size=("<u4", 32),
    flags=("u1", 36),
    action=("u1", 38),
    side=("u1", 39),
    ts_recv=("<i8", 40),
    sequence=("<u4", 52),
)
_BAR: Final = _dtype(56, ohlc=(("<i8", 4), 16), volume=("<u8", 48))  # type: ignore[arg-type]


class Rows(NamedTuple):
    """Rows of one table.

    Attributes:
        table: "trades", "quotes" or "book".
        event: int64, never decreasing: which event of a :class:`Part` each row belongs to.
        columns: The table's own, by name; evt_flags, if there, is added to the event's.
    """

    table: str
    event: I64
    columns: dict[str, npt.NDArray[Any]]


class Part(NamedTuple):
    """What the records of one kind in a block of a file say: events in order, and the rows they make.

    Attributes:
        record: int64, never decreasing: the record of each event, counted in the block.
        ts_recv: int64 ns UTC.
        ts_event: int64 ns UTC, or MISSING.
        flags: uint8.
        sequence: int64.
        code: int32, the code of its symbol.
        rows: In the order in which the rows of one event follow each other.
    """

    record: I64
    ts_recv: I64
    ts_event: I64
    flags: U8
    sequence: I64
    code: I32
    rows: list[Rows]


class Context(NamedTuple):
    """What rows depend on beside their records: symbols by code, and the books of ten levels as last seen."""

    names: list[str]
    ladders: Ladders


class Kind(NamedTuple):
    """How one kind of record is read.

    Attributes:
        name: The schema's.
        dtype: Its layout.
        faults: Yields which records are unfit, and why.
        rows: Returns their rows, one event a record.
        interval_ns: How long a bar is; None for what is not a bar.
    """

    name: str
    dtype: np.dtype[Any]
    faults: Callable[[Records], Iterator[tuple[Mask, str]]]
    rows: Callable[[Records, I32, Context], list[Rows]]
    interval_ns: int | None = None


def receive_times(records: Records) -> I64:
    """Return int64 ns UTC, negative where a record has neither a receive time nor an event time."""
    event: I64 = records["ts_event"]
    if "ts_recv" not in records.dtype.names:  # type: ignore[operator]
        return event
    received: I64 = records["ts_recv"]
    return received if received.min() >= 0 else np.where(received < 0, event, received)


def part(kind: Kind, records: Records, record: I64, code: I32, context: Context) -> Part:
    """Return what sound records of one kind say.

    Args:
        kind: Their kind.
        records: Without those that have faults.
        record: int64: which record of the block each is.
        code: int32: the code of each one's symbol.
        context: What their rows depend on.
    """
    if kind.interval_ns is not None:
        return _bars(records, record, code, kind.interval_ns)
    event = np.where(records["ts_event"] < 0, MISSING, records["ts_event"])
    sequence = records["sequence"].astype(np.int64)
    rows = kind.rows(records, code, context)
    return Part(record, receive_times(records), event, records["flags"].copy(), sequence, code, rows)


def _letters(**values: int) -> npt.NDArray[np.int8]:
    table = np.full(256, _UNKNOWN, np.int8)
    for letter, value in values.items():
        table[ord(letter)] = value
    return table


_UNKNOWN: Final = 127
_NOTHING: Final = 126  # an action that changes nothing
#: Of a trade the aggressor's side, of anything else the order's: A(sk), B(id), N(one).
_SIDES: Final = _letters(A=-1, B=1, N=NO_SIDE)
_ACTIONS: Final = _letters(A=ADD, C=CANCEL, M=MODIFY, R=CLEAR, T=TRADE, F=FILL, N=_NOTHING)


def _price(units: npt.NDArray[Any]) -> F64:
    # Division rounds correctly, so up to 9,007,199 this is the very float that the decimal text reads as.
    prices = units / 1e9
    prices[units == _NO_PRICE] = np.nan
    return prices


def _faults_of_print(records: Records) -> Iterator[tuple[Mask, str]]:
    traded = records["action"] == ord("T")
    yield traded & (records["price"] == _NO_PRICE), "a trade has no price"
    yield traded & (_SIDES[records["side"]] == _UNKNOWN), "side is none of A, B, N"


def _faults_of_order(records: Records) -> Iterator[tuple[Mask, str]]:
    action = _ACTIONS[records["action"]]
    yield action == _UNKNOWN, "action is none of A, C, M, R, T, F, N"
    yield _SIDES[records["side"]] == _UNKNOWN, "side is none of A, B, N"
    priced = (action == ADD) | (action == MODIFY) | (action == TRADE)
    yield priced & (records["price"] == _NO_PRICE), "an add, a modify or a trade has no price"


def _no_faults(records: Records) -> Iterator[tuple[Mask, str]]:
    yield from ()


def _faults_of_bar(records: Records) -> Iterator[tuple[Mask, str]]:
    yield (records["ohlc"] == _NO_PRICE).any(axis=1), "a bar lacks a price"


def _trades(records: Records, *_: object) -> list[Rows]:
    traded = np.flatnonzero(records["action"] == ord("T"))
    if len(traded) < len(records):
        records = records[traded]
    price, qty = _price(records["price"]), records["size"].astype(np.float64)
    return [Rows("trades", traded, {"price": price, "qty": qty, "side": _SIDES[records["side"]]})]


def _quotes(records: Records, *_: object) -> list[Rows]:
    levels = records["levels"]
    columns = {}
    for side in ("bid", "ask"):
        price = _price(levels[f"{side}_px"])
        qty = levels[f"{side}_sz"].astype(np.float64)
        qty[np.isnan(price)] = np.nan
        columns |= {f"{side}_px": price, f"{side}_qty": qty}
    return [Rows("quotes", np.arange(len(records)), columns)]


def _quotes_and_trades(records: Records, *_: object) -> list[Rows]:
    # A trade comes with the quote that it met.
    return _quotes(records) + _trades(records)


def _ten_levels(records: Records, code: I32, context: Context) -> list[Rows]:
    levels = records["levels"]
    sides = []
    for side in ("bid", "ask"):
        price = _price(levels[f"{side}_px"])
        sides.append(Ladder(price, np.where(np.isnan(price), np.nan, levels[f"{side}_sz"])))
    changes = context.ladders.changes(context.names, code, *sides)
    columns = {"action": changes.action, "side": changes.side, "price": changes.price, "qty": changes.qty}
    return [Rows("book", changes.record, {**columns, "evt_flags": changes.flags}), *_trades(records)]


def _orders(records: Records, *_: object) -> list[Rows]:
    action = _ACTIONS[records["action"]]
    # What changes nothing is kept only where it ends an event, as a cancel of nothing.
    kept = np.flatnonzero((action != _NOTHING) | (records["flags"] & LAST != 0))
    of = records if len(kept) == len(records) else records[kept]
    action = action[kept]
    nothing, clear = action == _NOTHING, action == CLEAR
    price, qty = _price(of["price"]), of["size"].astype(np.float64)
    if nothing.any() or clear.any():
        action = np.where(nothing, np.int8(CANCEL), action)
        qty[nothing] = 0.0
        price[clear] = qty[clear] = np.nan
    columns = {"action": action, "side": _SIDES[of["side"]], "price": price, "qty": qty, "order_id": of["order_id"]}
    return [*_trades(records), Rows("book", kept, columns)]


def _bars(records: Records, record: I64, code: I32, interval_ns: int) -> Part:
    """Return bars as prints; those of several instruments in one order of time."""
    start: I64 = records["ts_event"]
    ohlc = [_price(records["ohlc"][:, i]) for i in range(4)]
    prints = bars.prints(start, start + (interval_ns - 1), tuple(ohlc), records["volume"].astype(np.float64))  # type: ignore[arg-type]
    order = np.argsort(prints.ts, kind="stable")
    count = len(order)
    rows = Rows("trades", np.arange(count), {"price": prints.price[order], "qty": prints.qty[order]})
    rows.columns["cond"] = np.zeros(count, np.int32)
    of = order // 4
    nothing = np.zeros(count, np.int64)
    ts = prints.ts[order]
    return Part(np.maximum.accumulate(record[of]), ts, ts, np.zeros(count, np.uint8), nothing, code[of], [rows])


_SECOND: Final = 1_000_000_000


def _bar(name: str, seconds: int) -> Kind:
    return Kind(name, _BAR, _faults_of_bar, lambda *_: [], seconds * _SECOND)


#: By the number in a record's header ("rtype"). The consolidated ones differ only in what is not read here.
KINDS: Final[dict[int, Kind]] = {
    0: Kind("trades", _TRADE, _faults_of_print, _trades),
    1: Kind("mbp-1", _TOP, _faults_of_print, _quotes_and_trades),
    10: Kind("mbp-10", _TEN, _faults_of_print, _ten_levels),
    32: _bar("ohlcv-1s", 1),
    33: _bar("ohlcv-1m", 60),
    34: _bar("ohlcv-1h", 3_600),
    35: _bar("ohlcv-1d", 86_400),
    36: _bar("ohlcv-eod", 86_400),
    160: Kind("mbo", _ORDER, _faults_of_order, _orders),
    177: Kind("cmbp-1", _TOP, _faults_of_print, _quotes_and_trades),
    192: Kind("cbbo-1s", _TOP, _no_faults, _quotes),
    193: Kind("cbbo-1m", _TOP, _no_faults, _quotes),
    194: Kind("tcbbo", _TOP, _faults_of_print, _quotes_and_trades),
    195: Kind("bbo-1s", _TOP, _no_faults, _quotes),
    196: Kind("bbo-1m", _TOP, _no_faults, _quotes),
    197: Kind("tbbo", _TOP, _faults_of_print, _quotes_and_trades),
}
