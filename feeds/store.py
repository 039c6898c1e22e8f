"""Recordings on disk: finding, opening, streaming, describing and writing them.

A recording is a name in a folder: ``NAME.trades.parquet``, ``NAME.quotes.parquet``, ``NAME.book.parquet``, of which
at least one exists, and optionally ``NAME.instruments.parquet``. What the columns are is :mod:`feeds.layout`'s
business. Files are read in pieces of at most one row group, so a recording may be larger than memory. This module
must not know of pacing: it hands out tables as fast as they are asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow.parquet as pq

from feeds import layout
from feeds.errors import RecordingError
from feeds.inference import Inference
from feeds.instruments import MAX_PRECISION, Instruments
from feeds.records import GAP, I64, LAST, MISSING, SNAPSHOT, Batch, Levels, Quotes, Table, Trades
from feeds.remembered import LONG_ROWS, recall, remember
from feeds.restore import Restorer
from feeds.sources import Source
from feeds.tablefile import ROW_GROUP, TableFile, is_unfinished, published
from feeds.tablereader import TableReader, readable

logger = logging.getLogger(__name__)

#: Rows at once where instruments are inferred: its many temporaries then fit into a cache (30 % faster).
SCAN_ROWS: Final = 16_384
#: While they are, this many rows are a line in the log: some seconds.
REPORT_ROWS: Final = 20_000_000
#: A silence is a stretch of tape longer than this in which nothing was received.
SILENCE_NS: Final = 1_000_000_000


class Recording:
    """A recording that was found and whose files look right; rows are read, and checked, as they are asked for.

    Attributes:
        name: The last part of its prefix, "binance_spot_20240808".
        instruments: From ``NAME.instruments.parquet``, else inferred from all prices and quantities.
        tables: Rows of each table that exists, by "trades", "quotes", "book".
        start_ns: First ``ts_recv`` of any table, ns UTC.
        end_ns: Last ``ts_recv`` of any table, ns UTC.
    """

    def __init__(self, name: str, instruments: Instruments, files: Iterable[TableReader]) -> None:
        self.name = name
        self.instruments = instruments
        self._files = {file.kind: file for file in files}
        self.tables: Mapping[str, int] = {kind: file.rows for kind, file in self._files.items()}
        filled = [file for file in self._files.values() if file.rows]
        self.start_ns = min(file.start_ns for file in filled)
        self.end_ns = max(file.end_ns for file in filled)
        self._restorer = Restorer(self._files.get("book"), self._files.get("quotes"), instruments)

    def venue(self) -> str:
        """Return what the first row of a file says; empty if it says nothing."""
        file = next(file for file in self._files.values() if file.rows)
        return file.first_venue()

    @property
    def sources(self) -> Sequence[Source]:
        """Itself: a tape of one source."""
        return (self,)

    @property
    def rows(self) -> int:
        """Rows in all tables together."""
        return sum(self.tables.values())

    def trades(self, from_ns: int | None = None) -> Iterator[Trades]:
        """Yield the trades in tape order, at most a row group at a time; nothing if there is no such table.

        Args:
            from_ns: Leave out, without reading them, those received before this instant (ns UTC).

        Raises:
            RecordingError: While iterating, at the first row that is not fit for the bus.
        """
        return self._stream("trades", from_ns)

    def quotes(self, from_ns: int | None = None) -> Iterator[Quotes]:
        """Yield the quotes, as :meth:`trades` does."""
        return self._stream("quotes", from_ns)

    def levels(self, from_ns: int | None = None) -> Iterator[Levels]:
        """Yield the rows of the book, as :meth:`trades` does."""
        return self._stream("book", from_ns)

    def _stream(self, kind: str, from_ns: int | None) -> Iterator[Any]:
        file = self._files.get(kind)
        return iter(()) if file is None else file.tables(self.instruments, from_ns)

    def state_before(self, ts_ns: int) -> Batch:
        """Return the market as all rows received before an instant (ns UTC) left it, see :mod:`feeds.restore`.

        Raises:
            RecordingError: A row on which it rests is not fit for the bus.
        """
        return self._restorer.state_before(ts_ns)


def path_of(folder: Path, name: str, part: str) -> Path:
    """Return where a recording has a part: one of its tables, or "instruments"."""
    return folder / f"{name}.{part}.parquet"


def _names_in(folder: Path) -> list[str]:
    """Return the names of the recordings in a folder, sorted."""
    suffixes = [f".{kind}.parquet" for kind in layout.TABLES]
    files = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted({f.removesuffix(s) for f in files for s in suffixes if f.endswith(s) and f != s})


def _locate(path: Path) -> tuple[Path, str]:
    """Return folder and name of the recording that ``path`` (a prefix, a file or a folder) means."""
    for part in (*layout.TABLES, "instruments"):
        if path.name.endswith(suffix := f".{part}.parquet"):
            if not path.exists():
                raise RecordingError(f"{path}: there is no such file")
            return path.parent, path.name.removesuffix(suffix)
    if path.name in (names := _names_in(path.parent)):
        return path.parent, path.name
    if path.is_dir():
        return path, _only(path, _names_in(path))
    if path.exists():
        raise RecordingError(f"{path}: not a file of a recording; `ticker convert {path} -o NAME` makes one of it")
    nearby = f"; {path.parent} has {', '.join(names)}" if names else ""
    raise RecordingError(f"{path}: no recording; looked for {path.name}.{{trades,quotes,book}}.parquet{nearby}")


def _only(folder: Path, names: list[str]) -> str:
    if not names:
        raise RecordingError(f"{folder}: holds no recording; looked for NAME.{{trades,quotes,book}}.parquet")
    if len(names) > 1:
        choices = ", ".join(str(folder / name) for name in names)
        raise RecordingError(f"{folder}: holds {len(names)} recordings; choose one of {choices}")
    return names[0]


def open_recording(path: str | os.PathLike[str]) -> Recording:
    """Return the recording at a prefix, at one of its files, or in a folder that holds just one.

    Reads footers and the ends of each file, and, where no instruments file says them, all prices and quantities
    to learn the precision of each symbol; of a long recording that is remembered (:mod:`feeds.remembered`).

    Raises:
        RecordingError: It is missing, ambiguous, unreadable, empty or not in the layout.
    """
    folder, name = _locate(Path(path))
    paths = {kind: path_of(folder, name, kind) for kind in layout.TABLES}
    files = [TableReader(kind, file) for kind, file in paths.items() if file.exists()]
    if not any(file.rows for file in files):
        raise RecordingError(f"{folder / name}: the recording holds no rows; record it again")
    manifest = path_of(folder, name, "instruments")
    instruments = read_instruments(manifest) if manifest.exists() else _learned(name, files)
    return Recording(name, instruments, files)


def read_instruments(path: Path) -> Instruments:
    """Return the instruments of a recording's own file of them.

    Raises:
        RecordingError: It is unreadable, not in the layout, holds a null, or a precision that no number can have.
    """
    if is_unfinished(path):
        raise RecordingError(f"{path}: is empty: the recording was not written to its end; write it again")
    with readable(path):
        table = pq.ParquetFile(path).read()
    layout.check_schema(path, table.schema, layout.INSTRUMENTS_SCHEMA)
    if any(table.column(name).null_count for name in layout.INSTRUMENTS_SCHEMA.names):
        raise RecordingError(f"{path}: holds a null; every instrument must be given in full")
    for name in ("price_precision", "qty_precision"):
        for symbol, decimals in zip(table["symbol"].to_pylist(), table[name].to_pylist(), strict=True):
            if not 0 <= decimals <= MAX_PRECISION:
                raise RecordingError(f"{path}: {name} of {symbol} is {decimals}; allowed is 0 to {MAX_PRECISION}")
    return layout.instruments_from_table(table)


def _learned(name: str, files: list[TableReader]) -> Instruments:
    """Return the instruments of a recording that does not name them; of a long one they are remembered."""
    long = sum(file.rows for file in files) >= LONG_ROWS
    paths = [file.path for file in files]
    instruments = recall(paths) if long else None
    if instruments is None:
        if long:
            logger.info("recording %s names no instruments; learning them from all rows, this first time", name)
        instruments = _infer(files)
        if long:
            remember(paths, instruments)
    return instruments


def _infer(files: list[TableReader]) -> Instruments:
    inference = Inference()
    done, total = 0, sum(file.rows for file in files)
    for file in files:
        values = [*layout.PRICES[file.kind], *layout.QUANTITIES[file.kind]]
        row = 0
        with readable(file.path):
            for batch in file.record_batches(["venue", "symbol", *values], rows=SCAN_ROWS):
                inference.update(file.kind, file.path, row, batch)
                row += batch.num_rows
                if (done + row) // REPORT_ROWS > (done + row - batch.num_rows) // REPORT_ROWS:
                    logger.info("learned from %d of %d rows", done + row, total)
        done += row
    return inference.instruments()


class Silences(msgspec.Struct, frozen=True, kw_only=True):
    """Stretches of more than a second in which nothing was received.

    Attributes:
        count: How many.
        longest_ns: Length of the longest; 0 if there is none.
        longest_at_ns: ``ts_recv`` of the last row before the longest, ns UTC; None if there is none.
    """

    count: int
    longest_ns: int
    longest_at_ns: int | None


class TableInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What one table of a recording holds.

    Attributes:
        table: "trades", "quotes" or "book".
        rows: All rows.
        columns: The columns that hold a value in at least one row, in the file's order.
        rows_by_symbol: Rows of each symbol that has any.
        start_ns: First ``ts_recv``, ns UTC; 0 without rows.
        end_ns: Last ``ts_recv``, ns UTC; 0 without rows.
        silences: Within this table.
        inversions: How often ``ts_event`` is earlier than in the last row before it that has one.
        without_ts_event: Rows without an event time.
        gap_rows: Rows flagged as following a loss.
        snapshot_rows: Rows flagged as part of a snapshot.
        snapshots: Runs of such rows of one symbol, each up to its last-of-event flag.
    """

    table: str
    rows: int
    columns: tuple[str, ...]
    rows_by_symbol: dict[str, int]
    start_ns: int
    end_ns: int
    silences: Silences
    inversions: int
    without_ts_event: int
    gap_rows: int
    snapshot_rows: int
    snapshots: int


class RecordingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording holds.

    Attributes:
        name: Its name.
        rows: Rows in all tables.
        start_ns: First ``ts_recv``, ns UTC.
        end_ns: Last ``ts_recv``, ns UTC.
        silences: Of all tables together: none of them has a row.
        tables: One entry per table that exists.
    """

    name: str
    rows: int
    start_ns: int
    end_ns: int
    silences: Silences
    tables: tuple[TableInfo, ...]


class _Survey:
    """Counts over one table, taken chunk by chunk."""

    def __init__(self, instruments: int) -> None:
        self.by_instrument = np.zeros(instruments, dtype=np.int64)
        self.inversions = self.without_ts_event = self.gap_rows = self.snapshot_rows = self.snapshots = 0
        self._silences: list[I64] = []
        self._last_recv = self._last_event = MISSING
        self._open_snapshot = -1  # the instrument whose snapshot the last row left unfinished

    def add(self, table: Table) -> None:
        self.by_instrument += np.bincount(table.instrument, minlength=len(self.by_instrument))
        self._add_times(table)
        self.gap_rows += int(np.count_nonzero(table.flags & GAP))
        in_snapshot = (table.flags & SNAPSHOT) != 0
        self.snapshot_rows += int(np.count_nonzero(in_snapshot))
        # The instrument whose snapshot goes on after each row; a row in one that does not go on begins another.
        unfinished = np.where(in_snapshot & ((table.flags & LAST) == 0), table.instrument, -1)
        before = np.concatenate(([self._open_snapshot], unfinished[:-1]))
        self.snapshots += int(np.count_nonzero(in_snapshot & (before != table.instrument)))
        self._open_snapshot = int(unfinished[-1])

    def _add_times(self, table: Table) -> None:
        recv = table.ts_recv
        if self._last_recv != MISSING:
            recv = np.concatenate(([self._last_recv], recv))
        at = np.flatnonzero(np.diff(recv) > SILENCE_NS)
        self._silences.append(np.column_stack((recv[at], recv[at + 1])))
        self._last_recv = int(recv[-1])
        event = np.concatenate(([self._last_event], table.ts_event[table.ts_event != MISSING]))
        self.inversions += int(np.count_nonzero(event[1:] < event[:-1]))
        self.without_ts_event += len(table) - len(event) + 1
        self._last_event = int(event[-1])

    def silences(self) -> I64:
        """Return int64 ns, shape ``(n, 2)``: the rows before and after each silence, in tape order."""
        return np.concatenate([np.empty((0, 2), dtype=np.int64), *self._silences])


def _sum_up(silences: I64) -> Silences:
    if not len(silences):
        return Silences(count=0, longest_ns=0, longest_at_ns=None)
    lengths = silences[:, 1] - silences[:, 0]
    at = int(np.argmax(lengths))
    return Silences(count=len(silences), longest_ns=int(lengths[at]), longest_at_ns=int(silences[at, 0]))


def _common(a: I64, b: I64) -> I64:
    """Return the intersections longer than :data:`SILENCE_NS` of two sorted lists of disjoint intervals."""
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        start, end = max(a[i, 0], b[j, 0]), min(a[i, 1], b[j, 1])
        if end - start > SILENCE_NS:
            found.append((start, end))
        if a[i, 1] < b[j, 1]:
            i += 1
        else:
            j += 1
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def describe(recording: Recording) -> RecordingInfo:
    """Return counts over a whole recording; reads, and so checks, every row of it.

    Raises:
        RecordingError: A row is not fit for the bus.
    """
    silences = np.array([[recording.start_ns, recording.end_ns]], dtype=np.int64)
    tables = []
    streams = {"trades": recording.trades, "quotes": recording.quotes, "book": recording.levels}
    for kind, file in recording._files.items():
        survey = _Survey(len(recording.instruments))
        for table in streams[kind]():
            survey.add(table)
        tables.append(_table_info(recording, file, survey))
        if file.rows:
            # Before its first and after its last row a table is as silent as can be.
            ends = ([[recording.start_ns, file.start_ns]], [[file.end_ns, recording.end_ns]])
            silences = _common(silences, np.concatenate((ends[0], survey.silences(), ends[1])))
    return RecordingInfo(
        name=recording.name,
        rows=recording.rows,
        start_ns=recording.start_ns,
        end_ns=recording.end_ns,
        silences=_sum_up(silences),
        tables=tuple(tables),
    )


def _columns_with_values(file: TableReader) -> tuple[str, ...]:
    # Read, not looked up: asking pyarrow for the statistics of a damaged footer ends the process.
    filled: dict[str, bool] = {}
    for batch in file.record_batches():
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            filled[name] = filled.get(name, False) or column.null_count < batch.num_rows
    return tuple(name for name in filled if filled[name])


def _table_info(recording: Recording, file: TableReader, survey: _Survey) -> TableInfo:
    counts = zip(recording.instruments, survey.by_instrument.tolist(), strict=True)
    return TableInfo(
        table=file.kind,
        rows=file.rows,
        columns=_columns_with_values(file),
        rows_by_symbol={instrument.symbol: n for instrument, n in counts if n},
        start_ns=file.start_ns,
        end_ns=file.end_ns,
        silences=_sum_up(survey.silences()),
        inversions=survey.inversions,
        without_ts_event=survey.without_ts_event,
        gap_rows=survey.gap_rows,
        snapshot_rows=survey.snapshot_rows,
        snapshots=survey.snapshots,
    )


class _Writer:
    """One table on its way into its file: rows are gathered into whole row groups."""

    def __init__(self, kind: str, path: Path, instruments: Instruments, venue: str) -> None:
        self._kind, self._path, self._instruments, self._venue = kind, path, instruments, venue
        self._parts: list[Table] = []
        self._gathered = 0
        self._last = (MISSING, MISSING)
        self.file = TableFile(path, layout.SCHEMAS[kind])

    def add(self, table: Table) -> None:
        if len(table):
            self._check_order(table)
            self._parts.append(table)
            self._gathered += len(table)
        if self._gathered >= ROW_GROUP:
            self._write(self._gathered - self._gathered % ROW_GROUP)

    def _check_order(self, table: Table) -> None:
        recv = np.concatenate(([self._last[0]], table.ts_recv))
        seq = np.concatenate(([self._last[1]], table.seq))
        if np.any(recv[1:] < recv[:-1]) or np.any(seq[1:] <= seq[:-1]):
            raise RecordingError(f"{self._path}: rows out of order; record one epoch of a feed at a time")
        self._last = (int(recv[-1]), int(seq[-1]))

    def _write(self, count: int) -> None:
        rows = type(self._parts[0]).concatenate(self._parts)
        self._parts, self._gathered = [rows.slice(count, len(rows))], len(rows) - count
        self.file.write(layout.encode(self._kind, rows.slice(0, count), self._instruments, self._venue))

    def finish(self) -> bool:
        """Write what is left; return whether there were any rows at all."""
        if self._gathered:
            self._write(self._gathered)
        return self.file.finish()


def write_recording(
    prefix: str | os.PathLike[str],
    instruments: Instruments,
    batches: Iterable[Batch],
    *,
    venue: str = "TICKER",
    replace: bool = True,
) -> Recording:
    """Write one epoch of a feed as a recording, and return it opened.

    Every file is complete before any gets its name, so what is cut short leaves an older recording of that name as it
    was; see :func:`feeds.tablefile.published`.

    Args:
        prefix: Folder and name; an existing folder.
        instruments: What the ids in the batches mean; written to ``NAME.instruments.parquet``.
        batches: In tape order; they are read one by one and not kept.
        venue: What the column ``venue`` says.
        replace: Whether to write over a recording of that name, if it is not the very same.

    Raises:
        RecordingError: There are no rows, they are out of order, there is a recording that is not to be replaced, or
            the files cannot be written.
    """
    folder, name = Path(prefix).parent, Path(prefix).name
    writers = [_Writer(kind, path_of(folder, name, kind), instruments, venue) for kind in layout.TABLES]
    manifest = instruments_file(path_of(folder, name, "instruments"))
    with published(Path(prefix), [writer.file for writer in writers], manifest, replace=replace):
        for batch in batches:
            for writer, table in zip(writers, (batch.trades, batch.quotes, batch.levels), strict=True):
                writer.add(table)
        if not sum(writer.finish() for writer in writers):
            raise RecordingError(f"{prefix}: nothing to record; the feed gave no rows")
        write_instruments(manifest, instruments)
    return open_recording(prefix)


def instruments_file(path: Path) -> TableFile:
    """Return a recording's own file of instruments, as it is to be published with its tables."""
    return TableFile(path, layout.INSTRUMENTS_SCHEMA)


def write_instruments(file: TableFile, instruments: Instruments) -> None:
    """Fill and complete a file of instruments."""
    file.write(layout.instruments_to_table(instruments))
    file.finish()
