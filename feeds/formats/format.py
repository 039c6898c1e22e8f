"""What a format is: something that knows its own files by their content and reads them as rows of a recording.

A format yields exactly what a recording's Parquet files hold (:data:`feeds.layout.SCHEMAS`), so what follows it
(merging, checking, writing) knows no vendor. This module must not know any vendor either, nor how files are opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feeds import layout
from feeds.formats.source import Source
from feeds.records import BAD_TS_RECV, I64, MISSING, U8

#: Rows by table ("trades", "quotes", "book"), each in ``feeds.layout.SCHEMAS[table]``, tables without rows left out.
#: A chunk is everything that the source says from one of its records to another, in all tables: every ``seq`` of a
#: chunk is above every one of the chunk before it. About 16,000 to 64,000 rows, so that memory stays bounded.
Chunk = dict[str, pa.RecordBatch]


class ReadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the user says about sources that do not say it themselves.

    Attributes:
        symbol: The instrument, for files that name none; they may have it in their name.
        venue: What the column ``venue`` says instead of what the format would.
    """

    symbol: str | None = None
    venue: str | None = None


class Format(Protocol):
    """One vendor's way to write market data.

    Attributes:
        name: For ``--format`` and for messages: "tardis", "binance".
    """

    name: str

    def recognises(self, head: bytes, file_name: str) -> bool:
        """Return whether this looks like one of its files.

        By content first, so that a renamed file is still known. Called with whatever users have: it must not raise.

        Args:
            head: The first bytes (up to :data:`feeds.formats.source.HEAD_BYTES`) after decompression; the last line
                of it may be cut off.
            file_name: The file's own name without the suffixes of compression, "BTCUSDT-trades-2024-08-08.csv".
        """

    def read(self, source: Source, options: ReadOptions) -> Iterator[Chunk]:
        """Yield the rows of a source in its own order, without ever holding all of them.

        ``ts_recv`` never decreases, over all tables in the order of ``seq``: :class:`ReceiveClock` sees to it. Where
        a source has no receive time it is the event's. ``seq`` counts rows over all tables, :class:`Numbering`.
        A row that cannot be used goes to :meth:`Source.refuse` and, if that returns, is left out.

        Raises:
            RecordingError: A row is bad and bad rows are not skipped, or no row of the source can be used.
        """


class ReceiveClock:
    """Keeps a source's receive times from running backwards, which a replay could not pace.

    A time that is earlier than one before it is held at the latest seen, and its row is to be flagged
    :data:`~feeds.records.BAD_TS_RECV`. One of these goes through all rows of a source, whatever their table.
    """

    def __init__(self) -> None:
        self._latest = MISSING  # before every real one

    def hold(self, times: I64) -> tuple[I64, U8]:
        """Return receive times (int64 ns) that never decrease, and the flags (uint8) of their rows."""
        if not len(times):
            return times, np.zeros(0, np.uint8)
        held = np.maximum.accumulate(times)
        np.maximum(held, self._latest, out=held)
        self._latest = int(held[-1])
        return held, (held != times).view(np.uint8) * np.uint8(BAD_TS_RECV)


class Numbering:
    """Counts the rows of a source over all its tables."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> I64:
        """Return the next ``count`` numbers, int64."""
        first, self._next = self._next, self._next + count
        return np.arange(first, self._next, dtype=np.int64)


#: What :func:`build` takes for a column: an array, or one value for all rows.
Values: TypeAlias = npt.NDArray[Any] | pa.Array | str | int

#: Columns that are zero where a format has nothing to say.
_ZERO: Final = frozenset({"evt_flags", "side", "action"})


def build(table: str, columns: Mapping[str, Values]) -> pa.RecordBatch:
    """Return rows in the schema of ``table``.

    Args:
        table: "trades", "quotes" or "book".
        columns: By name; ``ts_recv`` must be an array. Times are int64 ns UTC, :data:`~feeds.records.MISSING` where
            there is none; prices and quantities float64, NaN where there is none. What is left out becomes null, or
            0 for flags, side and action.
    """
    rows = len(columns["ts_recv"])  # type: ignore[arg-type]
    schema = layout.SCHEMAS[table]
    return pa.record_batch([_column(field, columns.get(field.name), rows) for field in schema], schema=schema)


def _column(field: pa.Field, values: Values | None, rows: int) -> pa.Array:
    if values is None and field.name in _ZERO:
        values = 0
    if values is None:
        return pa.nulls(rows, field.type)
    if isinstance(values, str):
        return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([values]))
    if isinstance(values, int):
        return pa.repeat(pa.scalar(values, field.type), rows)
    array = _from_numpy(field.type, values) if isinstance(values, np.ndarray) else values
    if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    return array if array.type == field.type else array.cast(field.type)


def _from_numpy(kind: pa.DataType, values: npt.NDArray[Any]) -> pa.Array:
    """Return an array without copying where every value is there."""
    if pa.types.is_timestamp(kind):
        absent = values == MISSING
        return pa.array(values, mask=absent if absent.any() else None).view(kind)
    if values.dtype.kind == "f":
        absent = np.isnan(values)
        return pa.array(values, mask=absent if absent.any() else None)
    return pa.array(values)


class Part(NamedTuple):
    """The rows that a run of records makes in one table.

    Attributes:
        table: "trades", "quotes" or "book".
        columns: As :func:`build` takes them, without those that the records have.
        flags: uint8 of the rows; those of the receive clock are added.
        record: int64, never decreasing: which record each row is of. None where each record is one row.
    """

    table: str
    columns: Mapping[str, Values]
    flags: U8 | int = 0
    record: I64 | None = None


class Assembly:
    """Puts the rows of one source together: holds their times and counts them."""

    def __init__(self) -> None:
        self._clock, self._numbering = ReceiveClock(), Numbering()

    def chunk(self, shared: Mapping[str, Values], *parts: Part) -> Chunk:
        """Return the rows of the next records, numbered record by record and in the order of ``parts`` inside one.

        Args:
            shared: Columns of the records, ``ts_recv`` (int64 array) among them, as :func:`build` takes them.
            parts: Their rows, each table once.
        """
        held, late = self._clock.hold(shared["ts_recv"])  # type: ignore[arg-type]
        shared = {**shared, "ts_recv": held, "evt_flags": late}
        records = [np.arange(len(held)) if part.record is None else part.record for part in parts]
        chunk = {}
        for part, record, seq in zip(parts, records, self._number(records), strict=True):
            if len(record):
                taken = shared if part.record is None else {n: _taken(v, record) for n, v in shared.items()}
                flags = taken["evt_flags"] | np.uint8(part.flags)  # type: ignore[operator]
                chunk[part.table] = build(part.table, {**taken, **part.columns, "seq": seq, "evt_flags": flags})
        return chunk

    def _number(self, records: list[I64]) -> list[I64]:
        numbers = self._numbering.take(sum(map(len, records)))
        if len(records) == 1:
            return [numbers]
        seq = np.empty_like(numbers)
        seq[np.argsort(np.concatenate(records), kind="stable")] = numbers
        return np.split(seq, np.cumsum([len(record) for record in records])[:-1])


def _taken(values: Values, record: I64) -> Values:
    if isinstance(values, np.ndarray):
        return values[record]
    return values if isinstance(values, (str, int)) else values.take(pa.array(record))
