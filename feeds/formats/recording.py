"""Our own recordings: a table's Parquet file, or Arrow IPC (file or stream) with the same columns.

Arrow IPC is read from the beginning to the end, so it may be packed; its dictionaries have to come before the batches
that use them, as pyarrow writes them. The ``seq`` of rows is kept, so that the files of one recording can be put
together again. This module must not know where the other files of a recording are.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feeds import layout
from feeds.errors import RecordingError
from feeds.formats.arrow_messages import unpacked_bytes
from feeds.formats.format import Chunk, ReadOptions, ReceiveClock, Values, build
from feeds.formats.numbers import fits
from feeds.formats.source import Source
from feeds.records import ADD, CLEAR, FILL, MODIFY, SELL, SET

Mask = npt.NDArray[np.bool_]

#: Rows read at once.
_ROWS: Final = 65_536
#: Bytes of a batch of Arrow IPC, which is in memory whole: about two million rows. Feather files have 65,536.
MAX_BATCH_BYTES: Final = 128 << 20
_PARQUET, _ARROW, _STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_ARROW_HEAD: Final = 8  #: bytes before the first message of a file
_PLACED: Final = (SET, ADD, MODIFY)
#: Columns that every row has a value in.
_NEEDED: Final = ("ts_recv", "seq", "symbol", "evt_flags")


class Recording:
    """The format; see the module."""

    name = "recording"

    def recognises(self, head: bytes, file_name: str) -> bool:
        """Return whether it begins as Parquet or as Arrow IPC does."""
        return head.startswith((_PARQUET, _ARROW, _STREAM))

    def read(self, source: Source, options: ReadOptions) -> Iterator[Chunk]:
        """Yield the rows of the one table in the file."""
        clock, last, first_row = ReceiveClock(), -1, 1
        with _readable(source):
            for batch in _batches(source):
                table = _table(source, batch.schema)
                good = _good(source, table, first_row, batch)
                first_row += batch.num_rows
                if good.num_rows:
                    seq = good.column("seq").to_numpy()
                    if seq[0] <= last or np.any(seq[1:] <= seq[:-1]):
                        raise RecordingError(f"{source.name}: seq does not increase; sort the rows by ts_recv and seq")
                    last = int(seq[-1])
                    yield {table: build(table, _columns(table, good, clock, options))}


@contextlib.contextmanager
def _readable(source: Source) -> Iterator[None]:
    """Translate what pyarrow and the system raise about a file; the one border for their exceptions."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError, struct.error, MemoryError) as error:
        why = str(error).partition("\n")[0]
        raise RecordingError(f"{source.name}: cannot be read as Parquet or Arrow IPC ({why}); damaged?") from error


def _batches(source: Source) -> Iterator[pa.RecordBatch]:
    head = source.head()
    if head.startswith((_ARROW, _STREAM)):
        _check_sizes(source)
        with _messages(source) as stream, pa.ipc.open_stream(stream) as reader:
            for batch in reader:
                yield from _pieces(batch)
    elif not head.startswith(_PARQUET):
        raise RecordingError(f"{source.name}: is neither Parquet nor Arrow IPC")
    elif not _is_plain(source):
        raise RecordingError(f"{source.name}: is packed Parquet, which is read by jumping about in it; unpack it")
    else:
        with pq.ParquetFile(source.path, page_checksum_verification=True, pre_buffer=False) as parquet:
            for i in range(parquet.num_row_groups):
                yield from parquet.iter_batches(_ROWS, row_groups=[i])
                source.consumed = source.size * (i + 1) // parquet.num_row_groups


def _is_plain(source: Source) -> bool:
    with source.path.open("rb") as file:
        return source.member is None and file.read(len(_PARQUET)) == _PARQUET


@contextlib.contextmanager
def _messages(source: Source) -> Iterator[io.BufferedReader]:
    """Return a reader of Arrow's messages; a file is a stream with a beginning and an end around it."""
    with source.open() as stream:
        if stream.peek(len(_ARROW)).startswith(_ARROW):
            stream.read(_ARROW_HEAD)
        yield stream


def _check_sizes(source: Source) -> None:
    """Refuse a source of which one batch, or all dictionaries together, would unpack to too much."""
    dictionaries = 0
    with _messages(source.again(skip_bad=True)) as stream:
        for message in pa.ipc.MessageReader.open_stream(stream):
            size = unpacked_bytes(message)
            if message.type == "dictionary":
                dictionaries = size = dictionaries + size
            if size > MAX_BATCH_BYTES:
                raise RecordingError(
                    f"{source.name}: a {message.type} unpacks to {size:,} bytes, over {MAX_BATCH_BYTES:,}; write it in "
                    "smaller batches, or as Parquet"
                )


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    batch.validate(full=True)
    for start in range(0, batch.num_rows, _ROWS):
        yield batch.slice(start, _ROWS)


def _table(source: Source, schema: pa.Schema) -> str:
    """Return which table has these columns."""
    told = (schema.metadata or {}).get(b"table", b"").decode("ascii", "replace")
    tables = (
        [told]
        if told in layout.TABLES
        else [
            name
            for name, columns in layout.SCHEMAS.items()
            if {f.name for f in columns} - layout.OPTIONAL <= set(schema.names)
        ]
    )
    if not tables:
        raise RecordingError(f"{source.name}: has the columns of none of {', '.join(layout.TABLES)}")
    layout.check_schema(source.path, schema, layout.SCHEMAS[tables[0]])
    return tables[0]


def _good(source: Source, table: str, first_row: int, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows that a recording can hold; the others are refused by their numbers."""
    good = np.ones(batch.num_rows, np.bool_)
    for name, fine, why in _checks(table, batch):
        for at in np.flatnonzero(good & ~fine).tolist():
            source.refuse(first_row + at, f"{name} {why} ({batch.column(name)[at]})")
        good &= fine
    return batch if good.all() else batch.filter(pa.array(good))


def _checks(table: str, batch: pa.RecordBatch) -> Iterator[tuple[str, Mask, str]]:
    """Yield a column, which of its rows are fine, and what the others are."""
    for name in _NEEDED:
        yield name, _there(batch.column(name)), "is empty"
    for name in (*layout.PRICES[table], *layout.QUANTITIES[table]):
        yield name, fits(_floats(batch.column(name))), "is no number that can be printed"
    for name in layout.QUANTITIES[table]:
        yield name, ~(_floats(batch.column(name)) < 0.0), "is negative"
    if table != "quotes":
        yield "side", _between(batch.column("side"), SELL, -SELL), "is none of -1, 0, 1"
    if table == "trades":
        yield "price", ~np.isnan(_floats(batch.column("price"))), "is empty"
    elif table == "book":
        action = batch.column("action")
        yield "action", _between(action, SET, FILL), "is no action"
        placed = np.isin(pc.fill_null(action, CLEAR).to_numpy(zero_copy_only=False), _PLACED)
        yield "price", ~(placed & np.isnan(_floats(batch.column("price")))), "is empty in a set, add or modify"


def _there(column: pa.Array) -> Mask:
    valid: Mask = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _between(column: pa.Array, least: int, most: int) -> Mask:
    values = pc.fill_null(column, most + 1).to_numpy(zero_copy_only=False)
    return (values >= least) & (values <= most)  # type: ignore[no-any-return]


def _floats(column: pa.Array) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False)
    return values


def _columns(table: str, batch: pa.RecordBatch, clock: ReceiveClock, options: ReadOptions) -> dict[str, Values]:
    columns: dict[str, Any] = {
        name: batch.column(name) for name in layout.SCHEMAS[table].names if name in batch.schema.names
    }
    for name in (*layout.PRICES[table], *layout.QUANTITIES[table]):
        columns[name] = _floats(columns[name])
    if table == "trades":
        columns["qty"] = np.nan_to_num(columns["qty"])
    columns["ts_recv"], late = clock.hold(columns["ts_recv"].cast(pa.int64()).to_numpy())
    columns["evt_flags"] = columns["evt_flags"].to_numpy() | late
    columns["venue"] = options.venue or _named(columns.get("venue", ""))
    return columns


def _named(venue: Values) -> Values:
    """Return venues that are all there: "" for null, as for a column that is missing."""
    if isinstance(venue, pa.Array) and not _there(venue).all():
        return pc.fill_null(venue.cast(pa.string()), "")
    return venue
