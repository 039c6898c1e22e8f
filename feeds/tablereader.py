"""One table's file as it is read: found by time, streamed from there in pieces of at most a row group.

Where in a file an instant is, is found by looking at the receive times of a few row groups, never by the statistics in
the footer: those may be missing, and asking pyarrow for those of a damaged footer ends the process. What the columns
are is :mod:`feeds.layout`'s business. This module must not know of recordings or of who reads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feeds import layout
from feeds.errors import RecordingError
from feeds.instruments import Instruments
from feeds.records import I64
from feeds.tablefile import ROW_GROUP


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Translate what pyarrow and the system raise about a file; the one border for their exceptions.

    Raises:
        RecordingError: In place of what they raise.
    """
    try:
        yield
    except FileNotFoundError:
        raise RecordingError(f"{path}: there is no such file") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        why = str(error).partition("\n")[0]
        raise RecordingError(f"{path}: cannot be read as Parquet ({why}); truncated? Copy it again") from error


def times_of(batch: pa.RecordBatch | pa.Table) -> I64:
    """Return the column ``ts_recv``, int64 ns UTC; 0 for null, which is refused when its row is read."""
    times: I64 = batch.column("ts_recv").cast(pa.int64()).fill_null(0).to_numpy()
    return times


class TableReader:
    """One table's file, whose footer and ends look right.

    Attributes:
        kind: "trades", "quotes" or "book".
        path: The file.
        rows: How many it has.
        start_ns: ``ts_recv`` of the first, ns UTC; 0 without rows.
        end_ns: ``ts_recv`` of the last, ns UTC; 0 without rows.

    Raises:
        RecordingError: It cannot be read or is not in the layout.
    """

    def __init__(self, kind: str, path: Path) -> None:
        self.kind = kind
        self.path = path
        self._ends_seen: dict[int, tuple[int, int]] = {}
        with readable(path), pq.ParquetFile(path) as file:
            layout.check_schema(path, file.schema_arrow, layout.SCHEMAS[kind])
            self._columns = file.schema_arrow.names
            self.rows: int = file.metadata.num_rows
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self._filled = [i for i, size in enumerate(sizes) if size]
            self._sizes = [size for size in sizes if size]
            ends = [self._ends(file, i) for i in (0, -1)] if self._filled else [(0, 0), (0, 0)]
            self.start_ns, self.end_ns = ends[0][0], ends[1][1]

    @property
    def groups(self) -> int:
        """How many row groups have rows; they are numbered from 0."""
        return len(self._filled)

    def first_row(self, group: int) -> int:
        """Return how many rows come before a row group."""
        return sum(self._sizes[:group])

    def first_venue(self) -> str:
        """Return what the first row has as its venue; empty if it has none."""
        if "venue" not in self._columns:
            return ""
        batch = next(self.record_batches(["venue"], rows=1))
        return batch.column("venue")[0].as_py() or ""

    def _ends(self, file: pq.ParquetFile, group: int) -> tuple[int, int]:
        """Return the first and last ``ts_recv`` of a row group."""
        if group not in self._ends_seen:
            times = times_of(file.read_row_group(self._filled[group], columns=["ts_recv"]))
            self._ends_seen[group] = int(times[0]), int(times[-1])
        return self._ends_seen[group]

    def group_at(self, ts_ns: int) -> int:
        """Return the first row group that has a row at or after an instant (ns UTC); :attr:`groups` if none has."""
        if not self.rows or ts_ns > self.end_ns:
            return self.groups
        low, high = 0, self.groups - 1
        with readable(self.path), pq.ParquetFile(self.path) as file:
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if self._ends(file, middle)[1] >= ts_ns else (middle + 1, high)
        return low

    def read(self, group: int, columns: list[str]) -> pa.Table:
        """Return some columns of one row group."""
        options = {"read_dictionary": ["symbol"], "page_checksum_verification": True}
        with readable(self.path), pq.ParquetFile(self.path, **options) as file:
            return file.read_row_group(self._filled[group], columns=columns)

    def record_batches(
        self, columns: list[str] | None = None, *, group: int = 0, rows: int = ROW_GROUP
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows from a row group on in the file's order, at most ``rows`` at a time, as the file has them."""
        options = {"read_dictionary": ["symbol"], "page_checksum_verification": True, "pre_buffer": False}
        with readable(self.path), pq.ParquetFile(self.path, **options) as file:
            batches = file.iter_batches(rows, columns=columns, row_groups=self._filled[group:])
            while (batch := next(batches, None)) is not None:
                yield batch

    def tables(
        self, instruments: Instruments, from_ns: int | None = None, *, group: int = 0, row: int = 0
    ) -> Generator[Any, None, None]:
        """Yield the rows from an instant (ns UTC) or a place on as tables of integers.

        Args:
            instruments: Where symbols have their ids from.
            from_ns: Where to begin, instead of at a place.
            group: The row group to begin in.
            row: How many of its rows to leave out.

        Raises:
            RecordingError: While iterating, at the first row that is not fit for the bus.
        """
        if from_ns is not None:
            group = self.group_at(from_ns)
        decoder = layout.Decoder(self.kind, self.path, instruments, first_row=self.first_row(group))
        with readable(self.path):  # damaged text shows when it is decoded
            for batch in self.record_batches(layout.needed(self.kind), group=group):
                left_out = row if from_ns is None else int(times_of(batch).searchsorted(from_ns))
                left_out = min(left_out, batch.num_rows)
                row = max(0, row - batch.num_rows)
                decoder.skip(left_out)
                if rest := batch.num_rows - left_out:
                    yield decoder.decode(batch.slice(left_out, rest))
                    from_ns = None
