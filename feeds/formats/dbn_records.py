"""The records of DBN that have rows in a recording, as numpy sees them, and those rows.

Prices are int64 in units of 1e-9, the largest one for none; times are uint64 ns, the largest one for none, which is
-1 as int64. Layouts are the same in versions 1 to 3. Source: https://databento.com/docs/schemas-and-data-formats

This module must not know how records are found in a file, of symbols beyond their codes, or of times that run
backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from feeds.formats import bars
from feeds.formats.dbn_events import Events, TableRows
from feeds.formats.ladder import Ladder, Ladders
from feeds.formats.numbers import fits
from feeds.instruments import MAX_UNITS
from feeds.records import ADD, CANCEL, CLEAR, FILL, I32, I64, LAST, MISSING, MODIFY, NO_SIDE, SNAPSHOT, TRADE

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
#: 1-D, of one of the dtypes below.
Records = npt.NDArray[np.void]

#: Records of this kind say which symbol an id stands for.
SYMBOL_MAPPING: Final = 22
#: Kinds that have no rows in a recording.
_PASSED_OVER: Final = {
    17: "bars of no known interval",
    18: "status",
    19: "definitions",
    20: "imbalances",
    21: "error messages",
    SYMBOL_MAPPING: "symbol mappings",
    23: "system messages",
    24: "statistics",
}

_NO_PRICE: Final = np.iinfo(np.int64).max
_DAY_NS: Final = 86_400_000_000_000
#: The last time at which a bar of a day can begin.
_LAST_NS: Final = np.iinfo(np.int64).max - _DAY_NS
_LEVELS: Final = 10


def _dtype(itemsize: int, /, **fields: tuple[Any, int]) -> np.dtype[Any]:
    """Return the layout of a record: what all begin with, and further fields (type and offset)."""
    whole = {"length": ("u1", 0), "rtype": ("u1", 1), "publisher": ("<u2", 2), "instrument": ("<u4", 4)}
    return _struct(itemsize, **whole, ts_event=("<i8", 8), **fields)


def _struct(itemsize: int, /, **fields: tuple[Any, int]) -> np.dtype[Any]:
    formats, offsets = zip(*fields.values(), strict=True)
    layout: Any = {"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": itemsize}
    dtype: np.dtype[Any] = np.dtype(layout)
    return dtype


#: What all records begin with, which is also the shortest record.
HEADER: Final = _dtype(16)
HEADER_BYTES: Final = HEADER.itemsize

_PRINT: Final[dict[str, tuple[Any, int]]] = {
    "price": ("<i8", 16),
    "size": ("<u4", 24),
    "action": ("u1", 28),
    "side": ("u1", 29),
    "flags": ("u1", 30),
    "ts_recv": ("<i8", 32),
    "sequence": ("<u4", 44),
}
_LEVEL: Final = _struct(32, bid_px=("<i8", 0), ask_px=("<i8", 8), bid_sz=("<u4", 16), ask_sz=("<u4", 20))
_TRADE: Final = _dtype(48, **_PRINT)
_TOP: Final = _dtype(80, **_PRINT, levels=(_LEVEL, 48))
_TEN: Final = _dtype(368, **_PRINT, levels=((_LEVEL, _LEVELS), 48))
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
_BAR: Final = _dtype(56, ohlc=(("<i8", 4), 16), volume=("<u8", 48))


class Context(NamedTuple):
    """What rows depend on beside their records: symbols by code, and the books of ten levels as last seen."""

    names: list[str]
    ladders: Ladders


class Fault(NamedTuple):
    """Which records are unfit for a recording, and why."""

    unfit: Callable[[Records], Mask]
    why: str


class Kind(NamedTuple):
    """How one kind of record is read.

    Attributes:
        name: The schema's.
        dtype: Its layout.
        faults: What its records may have wrong with them.
        rows: Returns their rows.
        interval_ns: How long a bar is, whose prints are events of their own; 0 for what is no bar.
    """

    name: str
    dtype: np.dtype[Any]
    faults: tuple[Fault, ...]
    rows: Callable[[Records, I32, Context], list[TableRows]]
    interval_ns: int = 0


def receive_times(records: Records) -> I64:
    """Return int64 ns UTC, negative where a record has neither a receive time nor an event time."""
    event: I64 = records["ts_event"]
    if "ts_recv" not in records.dtype.names:  # type: ignore[operator]
        return event
    received: I64 = records["ts_recv"]
    return received if received.min() >= 0 else np.where(received < 0, event, received)


def events(number: int, records: Records, record: I64, code: I32, context: Context) -> Events:
    """Return what sound records of one kind say.

    Args:
        number: Of their kind.
        records: Without those that have faults.
        record: int64: which record of the block each is.
        code: int32: the code of each one's symbol.
        context: What their rows depend on.
    """
    kind = KINDS[number]
    if kind.interval_ns:
        return _bars(number, records, record, code)
    event = np.where(records["ts_event"] < 0, MISSING, records["ts_event"])
    sequence = records["sequence"].astype(np.int64)
    return Events(number, record, receive_times(records), event, sequence, code, kind.rows(records, code, context))


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


def _without_time(records: Records) -> Mask:
    times = receive_times(records)
    lacking: Mask = (times < 0) | (times > _LAST_NS)
    return lacking


def _without_price(records: Records) -> Mask:
    lacking: Mask = records["price"] == _NO_PRICE
    return lacking


def _unfit(prices: npt.NDArray[np.int64]) -> Mask:
    """Return which records have a price that cannot be printed.

    Args:
        prices: Of shape ``(records,)`` or ``(records, prices)``.
    """
    # Nine decimals are all that there are, so only what is large can be unfit.
    unfit: Mask = ((prices > MAX_UNITS) | (prices < -MAX_UNITS)) & (prices != _NO_PRICE)
    if unfit.any():
        unfit[unfit] = ~fits(_price(prices[unfit]))
    return unfit if unfit.ndim == 1 else np.logical_or.reduce(unfit, axis=1)


def _unfit_level(records: Records) -> Mask:
    return _unfit(records["levels"]["bid_px"]) | _unfit(records["levels"]["ask_px"])


def _without_side(records: Records) -> Mask:
    lacking: Mask = _SIDES[records["side"]] == _UNKNOWN
    return lacking


def _order_without_price(records: Records) -> Mask:
    action = _ACTIONS[records["action"]]
    priced = (action == ADD) | (action == MODIFY) | (action == TRADE)
    lacking: Mask = priced & _without_price(records)
    return lacking


def _bar_without_price(records: Records) -> Mask:
    lacking: Mask = (records["ohlc"] == _NO_PRICE).any(axis=1)
    return lacking


_NO_TIME: Final = Fault(_without_time, "it has neither a receive time nor an event time that can be")
_TOO_LARGE: Final = "a price is too large for its decimals"
_PRINT_FAULTS: Final = (
    _NO_TIME,
    Fault(lambda records: _is_trade(records) & _without_price(records), "the trade has no price"),
    Fault(lambda records: _is_trade(records) & _without_side(records), "the side is none of A, B, N"),
    Fault(lambda records: _is_trade(records) & _unfit(records["price"]), _TOO_LARGE),
)
_UNFIT_LEVEL: Final = Fault(_unfit_level, _TOO_LARGE)
_QUOTE_FAULTS: Final = (_NO_TIME, _UNFIT_LEVEL)
_BOTH_FAULTS: Final = (*_PRINT_FAULTS, _UNFIT_LEVEL)
_ORDER_FAULTS: Final = (
    _NO_TIME,
    Fault(lambda records: _ACTIONS[records["action"]] == _UNKNOWN, "the action is none of A, C, M, R, T, F, N"),
    Fault(_without_side, "the side is none of A, B, N"),
    Fault(_order_without_price, "an add, a modify or a trade has no price"),
    Fault(lambda records: _unfit(records["price"]), _TOO_LARGE),
)
_BAR_FAULTS: Final = (
    _NO_TIME,
    Fault(_bar_without_price, "the bar lacks a price"),
    Fault(lambda records: _unfit(records["ohlc"]), _TOO_LARGE),
    Fault(lambda records: records["volume"] > MAX_UNITS, "the volume is too large"),
)


def _is_trade(records: Records) -> Mask:
    traded: Mask = records["action"] == ord("T")
    return traded


def _picked(records: Records, picked: Mask) -> tuple[Records, I64 | None]:
    """Return some of the records and which they are, None for all."""
    if picked.all():
        return records, None
    places = np.flatnonzero(picked)
    return records[places], places


def _trades(records: Records, *_: object) -> list[TableRows]:
    of, record = _picked(records, _is_trade(records))
    columns = _columns(price=_price(of["price"]), qty=of["size"].astype(np.float64), side=_SIDES[of["side"]])
    return [TableRows("trades", columns, of["flags"], record)]


def _columns(**columns: npt.NDArray[Any] | str) -> dict[str, npt.NDArray[Any] | str]:
    return columns


def _quotes(records: Records, *_: object) -> list[TableRows]:
    levels = records["levels"]
    columns: dict[str, F64] = {}
    for side in ("bid", "ask"):
        price = _price(levels[f"{side}_px"])
        qty = levels[f"{side}_sz"].astype(np.float64)
        qty[np.isnan(price)] = np.nan
        columns |= {f"{side}_px": price, f"{side}_qty": qty}
    return [TableRows("quotes", columns, records["flags"])]


def _quotes_and_trades(records: Records, *_: object) -> list[TableRows]:
    # A trade comes with the quote that it met.
    return _quotes(records) + _trades(records)


def _ten_levels(records: Records, code: I32, context: Context) -> list[TableRows]:
    levels = records["levels"]
    sides = []
    for side in ("bid", "ask"):
        price = _price(levels[f"{side}_px"])
        sides.append(Ladder(price, np.where(np.isnan(price), np.nan, levels[f"{side}_sz"])))
    changes = context.ladders.changes(context.names, code, *sides)
    # Every record is a whole book, so every one that changes it ends an event, and none restarts it.
    flags = records["flags"][changes.record] & np.uint8(~(LAST | SNAPSHOT) & 0xFF) | changes.flags
    columns = _columns(action=changes.action, side=changes.side, price=changes.price, qty=changes.qty)
    return [*_trades(records), TableRows("book", columns, flags, changes.record)]


def _orders(records: Records, *_: object) -> list[TableRows]:
    action = _ACTIONS[records["action"]]
    # What changes nothing is kept only where it ends an event, as a cancel of nothing.
    of, record = _picked(records, (action != _NOTHING) | (records["flags"] & LAST != 0))
    action = action if record is None else action[record]
    nothing, clear = action == _NOTHING, action == CLEAR
    price, qty = _price(of["price"]), of["size"].astype(np.float64)
    action[nothing], qty[nothing] = CANCEL, 0.0
    price[clear] = qty[clear] = np.nan
    side, order_id = _SIDES[of["side"]], of["order_id"]
    columns = _columns(action=action, side=side, price=price, qty=qty, order_id=order_id)
    return [*_trades(records), TableRows("book", columns, of["flags"], record)]


def _bars(number: int, records: Records, record: I64, code: I32) -> Events:
    """Return the prints of bars, those of several instruments in one order of time."""
    start: I64 = records["ts_event"]
    first, high, low, close = (_price(records["ohlc"][:, i]) for i in range(4))
    volume = records["volume"].astype(np.float64)
    prints = bars.prints(start, start + (KINDS[number].interval_ns - 1), (first, high, low, close), volume)
    order = np.argsort(prints.ts, kind="stable")
    of, ts = order // 4, prints.ts[order]
    columns = _columns(price=prints.price[order], qty=prints.qty[order], cond=bars.CONDITION)
    nothing = np.full(len(order), MISSING)
    rows = TableRows("trades", columns, np.zeros(len(order), np.uint8))
    return Events(number, np.maximum.accumulate(record[of]), ts, ts, nothing, code[of], [rows])


_SECOND: Final = 1_000_000_000


def _bar(name: str, seconds: int) -> Kind:
    return Kind(name, _BAR, _BAR_FAULTS, lambda *_: [], seconds * _SECOND)


#: By the number in a record's header ("rtype"). The consolidated ones differ only in what is not read here.
KINDS: Final[dict[int, Kind]] = {
    0: Kind("trades", _TRADE, _PRINT_FAULTS, _trades),
    1: Kind("mbp-1", _TOP, _BOTH_FAULTS, _quotes_and_trades),
    10: Kind("mbp-10", _TEN, _BOTH_FAULTS, _ten_levels),
    32: _bar("ohlcv-1s", 1),
    33: _bar("ohlcv-1m", 60),
    34: _bar("ohlcv-1h", 3_600),
    35: _bar("ohlcv-1d", 86_400),
    36: _bar("ohlcv-eod", 86_400),
    160: Kind("mbo", _ORDER, _ORDER_FAULTS, _orders),
    177: Kind("cmbp-1", _TOP, _BOTH_FAULTS, _quotes_and_trades),
    192: Kind("cbbo-1s", _TOP, _QUOTE_FAULTS, _quotes),
    193: Kind("cbbo-1m", _TOP, _QUOTE_FAULTS, _quotes),
    194: Kind("tcbbo", _TOP, _BOTH_FAULTS, _quotes_and_trades),
    195: Kind("bbo-1s", _TOP, _QUOTE_FAULTS, _quotes),
    196: Kind("bbo-1m", _TOP, _QUOTE_FAULTS, _quotes),
    197: Kind("tbbo", _TOP, _BOTH_FAULTS, _quotes_and_trades),
}

#: The kinds of bars.
BARS: Final = [number for number, kind in KINDS.items() if kind.interval_ns]


def name(number: int) -> str:
    """Return what messages call the records of a kind."""
    return KINDS[number].name if number in KINDS else _PASSED_OVER.get(number, f"records of kind {number}")


def mapping(version: int) -> np.dtype[Any]:
    """Return the layout of a :data:`SYMBOL_MAPPING`: its texts grew with version 2."""
    return _dtype(80, symbol=("S22", 38)) if version == 1 else _dtype(176, symbol=("S71", 89))
