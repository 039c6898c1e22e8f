"""The Parquet layout of recordings: its schemas, and the border between its floats and the bus's integers.

Everything that a recording can have wrong with it is found here, because a row is looked at once, as it becomes
integers. This module must not know of paths to choose from, pacing or feeds: it sees one record batch at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feeds.errors import RecordingError
from feeds.instruments import MAX_UNITS, Instrument, Instruments
from feeds.records import ADD, FILL, I32, I64, MISSING, MODIFY, SET, U64, Levels, Quotes, Table, Trades

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: More decimals than this are not inferred: they are averages or noise; where they are meant, a file must say so.
MAX_DECIMALS: Final = 9
#: How far a float may lie from the decimal it stands for, relative: four units in the last place. Exactly parsed
#: text needs none of it; 0.1 + 0.2 needs one.
DECIMAL_TOLERANCE: Final = 2.0**-50
#: Above this, ``value * scale`` may round to a neighbour of the right integer and is corrected.
EXACT_UNITS: Final = 2**51

TABLES: Final[dict[str, type[Table]]] = {"trades": Trades, "quotes": Quotes, "book": Levels}
#: The float columns of each table: prices, then quantities.
PRICES: Final = {"trades": ("price",), "quotes": ("bid_px", "ask_px"), "book": ("price",)}
QUANTITIES: Final = {"trades": ("qty",), "quotes": ("bid_qty", "ask_qty"), "book": ("qty",)}
#: Columns that a recording has for people and other programs; nothing here needs them.
OPTIONAL: Final = frozenset({"venue", "venue_seq", "cond"})

_TIME = pa.timestamp("ns", tz="UTC")
_WORD = pa.dictionary(pa.int32(), pa.string())
_SHARED = [
    pa.field("ts_recv", _TIME, nullable=False),
    pa.field("ts_event", _TIME),
    pa.field("seq", pa.int64(), nullable=False),
    pa.field("venue", _WORD, nullable=False),
    pa.field("symbol", _WORD, nullable=False),
    pa.field("evt_flags", pa.uint8(), nullable=False),
    pa.field("venue_seq", pa.int64()),
]
_OWN = {
    "trades": [
        pa.field("price", pa.float64(), nullable=False),
        pa.field("qty", pa.float64(), nullable=False),
        pa.field("side", pa.int8(), nullable=False),
        pa.field("trade_id", pa.string()),
        pa.field("cond", _WORD),
    ],
    "quotes": [pa.field(name, pa.float64()) for name in ("bid_px", "bid_qty", "ask_px", "ask_qty")],
    "book": [
        pa.field("action", pa.int8(), nullable=False),
        pa.field("side", pa.int8(), nullable=False),
        pa.field("price", pa.float64()),
        pa.field("qty", pa.float64()),
        pa.field("order_id", pa.uint64()),
    ],
}
SCHEMAS: Final[dict[str, pa.Schema]] = {
    kind: pa.schema(_SHARED + own, metadata={"tick_schema": "1", "table": kind}) for kind, own in _OWN.items()
}
INSTRUMENTS_SCHEMA: Final = pa.schema(
    [
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("base", pa.string(), nullable=False),
        pa.field("quote", pa.string(), nullable=False),
        pa.field("price_precision", pa.int64(), nullable=False),
        pa.field("qty_precision", pa.int64(), nullable=False),
        pa.field("price_increment", pa.int64(), nullable=False),
        pa.field("qty_increment", pa.int64(), nullable=False),
        pa.field("qty_min", pa.int64(), nullable=False),
        pa.field("aliases", pa.list_(pa.string()), nullable=False),
    ],
    metadata={"tick_schema": "1", "table": "instruments"},
)


def needed(kind: str) -> list[str]:
    """Return the columns that decoding the table ``kind`` reads, in the order of its schema."""
    return [name for name in SCHEMAS[kind].names if name not in OPTIONAL]


def check_schema(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    """Compare a file's columns with the layout's; optional columns may be absent, unknown ones are ignored.

    Raises:
        RecordingError: A column is missing or has another type.
    """
    for field in expected:
        if field.name in OPTIONAL:
            continue
        if field.name not in found.names:
            raise RecordingError(f"{path}: column {field.name!r} is missing; the layout wants it as {field.type}")
        is_type = _plain(found.field(field.name).type)
        if is_type != _plain(field.type):
            raise RecordingError(f"{path}: column {field.name!r} is {is_type}, not {field.type}; convert the column")


def _plain(kind: pa.DataType) -> pa.DataType:
    """Drop what only concerns storage or show: dictionaries, the width of string offsets, the zone of an instant."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit, tz="UTC")
    return pa.string() if pa.types.is_large_string(kind) else kind


def floats(column: pa.Array, null: float) -> F64:
    """Return a float column as float64, with ``null`` where it has none."""
    if column.null_count:
        column = pc.fill_null(column, null)
    values: F64 = column.to_numpy(zero_copy_only=False)
    return values


def symbol_codes(column: pa.Array) -> tuple[I32, list[str | None]]:
    """Return a symbol column as int32 positions (-1 for null) in a list of symbols, and that list."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    indices = encoded.indices
    if indices.null_count:
        indices = pc.fill_null(indices, -1)
    codes: I32 = indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return codes, encoded.dictionary.to_pylist()


class Decoder:
    """Turns the record batches of one table file, in their order, into tables of integers.

    It carries what spans batches: the row number, the last time and the last sequence number.

    Args:
        kind: Of table.
        path: Named in messages.
        instruments: Where symbols have their ids from.
        first_row: How many rows of the file come before the first.
    """

    def __init__(self, kind: str, path: Path, instruments: Instruments, *, first_row: int = 0) -> None:
        self._kind = kind
        self._path = path
        self._instruments = instruments
        self._ids = {name: instruments.id_of(name) for name in instruments.names}
        self._row = first_row
        self._last_ts = self._last_seq = MISSING  # before every real one

    def skip(self, rows: int) -> None:
        """Leave out rows of the file."""
        self._row += rows

    def decode(self, batch: pa.RecordBatch) -> Table:
        """Return the rows of ``batch``, which must hold the columns of :func:`needed` and at least one row.

        Raises:
            RecordingError: A row is not fit for the bus; the message names file, row and column.
        """
        build = {"trades": self._trades, "quotes": self._quotes, "book": self._levels}[self._kind]
        table = build(batch, self._shared(batch))
        self._row += batch.num_rows
        return table

    def _refuse(
        self, bad: Mask, why: str, column: npt.NDArray[Any] | None = None, remedy: str = "mend or leave out the row"
    ) -> None:
        if bad.any():
            at = int(np.argmax(bad))
            value = "" if column is None else f" ({column[at]})"
            raise RecordingError(f"{self._path}: row {self._row + at}: {why}{value}; {remedy}")

    def _shared(self, batch: pa.RecordBatch) -> dict[str, npt.NDArray[Any]]:
        received = batch.column("ts_recv")
        if received.null_count:
            self._refuse(received.is_null().to_numpy(zero_copy_only=False), "ts_recv is null")
        columns = {
            "ts_recv": self._times(received),
            "ts_event": self._times(batch.column("ts_event")),
            "seq": self._ints(batch, "seq"),
            "instrument": self._instrument(batch.column("symbol")),
            "flags": self._ints(batch, "evt_flags"),
        }
        self._last_ts = self._check_order("ts_recv", columns["ts_recv"], self._last_ts, "runs backwards")
        self._last_seq = self._check_order("seq", columns["seq"], self._last_seq + 1, "does not increase", 1)
        return columns

    def _check_order(self, name: str, column: I64, least: int, what: str, step: int = 0) -> int:
        """Refuse a column that starts below ``least`` or rises by less than ``step``; return its last value."""
        below = column < least  # of these only the first row counts
        np.less(column[1:], column[:-1] + step, out=below[1:])
        self._refuse(below, f"{name} {what}: sort the file by ts_recv and seq", column)
        return int(column[-1])

    def _times(self, column: pa.Array) -> I64:
        ints = column.cast(pa.int64())
        times: I64 = (pc.fill_null(ints, MISSING) if ints.null_count else ints).to_numpy(zero_copy_only=False)
        return times

    def _ints(self, batch: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
        column = batch.column(name)
        if column.null_count:
            self._refuse(column.is_null().to_numpy(zero_copy_only=False), f"{name} is null")
        ints: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return ints

    def _code(self, batch: pa.RecordBatch, name: str, least: int, most: int) -> npt.NDArray[Any]:
        codes = self._ints(batch, name)
        if codes.min() < least or codes.max() > most:
            self._refuse((codes < least) | (codes > most), f"{name} is not one of {least} to {most}", codes)
        return codes

    def _instrument(self, column: pa.Array) -> I32:
        codes, symbols = symbol_codes(column)
        known = [-1 if s is None else self._ids.get(s, -1) for s in symbols]
        lookup = np.array([*known, -1], dtype=np.int32)  # the last place is for null, whose code is -1
        instrument = lookup[codes]
        self._refuse(instrument < 0, f"symbol is null or not among the instruments {', '.join(list(self._ids)[:8])}")
        return instrument

    def _units(self, name: str, values: F64, instrument: I32, scales: F64) -> I64:
        """Return values as the integers meant, by the scales of all instruments; there is no NaN among the values."""
        scale = scales[instrument]
        with np.errstate(over="ignore"):
            units = np.rint(values * scale)
        largest = max(units.max(), -units.min())
        if largest > MAX_UNITS:
            why = f"{name} is beyond {MAX_UNITS} units of its last decimal"
            self._refuse(np.abs(units) > MAX_UNITS, why, values)
        if largest > EXACT_UNITS:
            near = np.abs(units) > EXACT_UNITS
            units[near] += np.rint((values[near] - units[near] / scale[near]) * scale[near])
        odd = units / scale != values
        if odd.any():
            odd[odd] = inexact(values[odd], scale[odd])
            self._refuse_rounding(odd, name, values, instrument)
        return units.astype(np.int64)

    def _refuse_rounding(self, odd: Mask, name: str, values: F64, instrument: I32) -> None:
        if odd.any():
            symbol = self._instruments[int(instrument[np.argmax(odd)])].symbol
            why = f"{name} has more decimals than the instruments say of {symbol}"
            self._refuse(odd, why, values, "give it more in the instruments file, or round the column")

    def _price(self, batch: pa.RecordBatch, name: str, instrument: I32) -> I64:
        values, scales = floats(batch.column(name), np.nan), self._instruments.price_scale
        absent = np.isnan(values)
        if not absent.any():
            return self._units(name, values, instrument, scales)
        ticks = self._units(name, np.where(absent, 0.0, values), instrument, scales)
        ticks[absent] = MISSING
        return ticks

    def _qty(self, batch: pa.RecordBatch, name: str, instrument: I32, absent: Mask | None = None) -> I64:
        """Return lots; 0 for null and, whatever the file says, where ``absent``."""
        values = floats(batch.column(name), 0.0)
        if absent is not None and absent.any():
            values = np.where(absent, 0.0, values)
        if not values.min() >= 0.0:  # which NaN is not either
            self._refuse(~(values >= 0.0), f"{name} is negative or not a number", values)
        return self._units(name, values, instrument, self._instruments.qty_scale)

    def _trades(self, batch: pa.RecordBatch, shared: dict[str, npt.NDArray[Any]]) -> Trades:
        instrument = shared["instrument"]
        price = self._price(batch, "price", instrument)
        self._refuse(price == MISSING, "a trade has no price")
        return Trades(
            **shared,
            price=price,
            qty=self._qty(batch, "qty", instrument),
            side=self._code(batch, "side", -1, 1),
            trade_id=self._trade_ids(batch.column("trade_id")),
        )

    def _trade_ids(self, column: pa.Array) -> I64:
        column = column.cast(pa.string())  # a program may have written them as a dictionary
        # 18 digits always fit into int64; longer ones are names, not numbers.
        numeric = pc.fill_null(pc.match_substring_regex(column, r"^[0-9]{1,18}$"), False)
        ids: I64 = pc.fill_null(pc.if_else(numeric, column, "0").cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        is_number = numeric.to_numpy(zero_copy_only=False)
        if not is_number.all():
            # Its row, which is the same from wherever the file is read.
            ids = np.where(is_number, ids, np.arange(self._row + 1, self._row + 1 + len(ids)))
        return ids

    def _quotes(self, batch: pa.RecordBatch, shared: dict[str, npt.NDArray[Any]]) -> Quotes:
        instrument = shared["instrument"]
        bid_px = self._price(batch, "bid_px", instrument)
        ask_px = self._price(batch, "ask_px", instrument)
        return Quotes(
            **shared,
            bid_px=bid_px,
            bid_qty=self._qty(batch, "bid_qty", instrument, bid_px == MISSING),
            ask_px=ask_px,
            ask_qty=self._qty(batch, "ask_qty", instrument, ask_px == MISSING),
        )

    def _levels(self, batch: pa.RecordBatch, shared: dict[str, npt.NDArray[Any]]) -> Levels:
        instrument = shared["instrument"]
        action = self._code(batch, "action", SET, FILL)
        price = self._price(batch, "price", instrument)
        placed = (action == SET) | (action == ADD) | (action == MODIFY)
        self._refuse((price == MISSING) & placed, "a set, add or modify has no price")
        ids: U64 = pc.fill_null(batch.column("order_id"), 0).to_numpy(zero_copy_only=False)
        return Levels(
            **shared,
            action=action,
            side=self._code(batch, "side", -1, 1),
            price=price,
            qty=self._qty(batch, "qty", instrument),
            order_id=ids,
        )


def _words(text: str, rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(rows, dtype=np.int32), pa.array([text]))


def _decimals(units: I64, scale: F64, absent: Mask) -> pa.Array:
    # Division rounds correctly, so this is the very float that reading the decimal text would give.
    return pa.array(units / scale, mask=absent)


def encode(kind: str, table: Table, instruments: Instruments, venue: str) -> pa.Table:
    """Return a table of integers in the layout of ``kind``: the reverse of :class:`Decoder`."""
    rows, empty = len(table), table.ts_event == MISSING
    symbols = pa.array([i.symbol for i in instruments])
    columns: dict[str, Any] = {
        "ts_recv": pa.array(table.ts_recv).cast(_TIME),
        "ts_event": pa.array(table.ts_event, mask=empty).cast(_TIME),
        "seq": table.seq,
        "venue": _words(venue, rows),
        "symbol": pa.DictionaryArray.from_arrays(table.instrument, symbols),
        "evt_flags": table.flags,
        "venue_seq": pa.nulls(rows, pa.int64()),
        "cond": pa.nulls(rows, _WORD),
    }
    values = table.columns()
    price_scale, qty_scale = instruments.price_scale[table.instrument], instruments.qty_scale[table.instrument]
    for price, qty in zip(PRICES[kind], QUANTITIES[kind], strict=True):
        absent = values[price] == MISSING
        columns[price] = _decimals(values[price], price_scale, absent)
        columns[qty] = _decimals(values[qty], qty_scale, absent & (values[qty] == 0))
    if isinstance(table, Trades):
        columns |= {"side": table.side, "trade_id": pa.array(table.trade_id).cast(pa.string())}
    elif isinstance(table, Levels):
        ids = pa.array(table.order_id, mask=table.order_id == 0)
        columns |= {"action": table.action, "side": table.side, "order_id": ids}
    return pa.table({name: columns[name] for name in SCHEMAS[kind].names}, schema=SCHEMAS[kind])


def instruments_to_table(instruments: Instruments) -> pa.Table:
    """Return instruments in :data:`INSTRUMENTS_SCHEMA`, one row each, in the order of their dense ids."""
    names = INSTRUMENTS_SCHEMA.names
    return pa.table({n: [getattr(i, n) for i in instruments] for n in names}, schema=INSTRUMENTS_SCHEMA)


def instruments_from_table(table: pa.Table) -> Instruments:
    """Return the instruments of a table in :data:`INSTRUMENTS_SCHEMA`."""
    rows = table.select(INSTRUMENTS_SCHEMA.names).to_pylist()
    return Instruments(Instrument(**{**row, "aliases": tuple(row["aliases"])}) for row in rows)


def inexact(values: F64, scale: F64) -> Mask:
    """Return where ``values * scale`` are no integers, whatever the error of arithmetic."""
    off: Mask = np.abs(np.rint(values * scale) / scale - values) > np.abs(values) * DECIMAL_TOLERANCE
    return off
