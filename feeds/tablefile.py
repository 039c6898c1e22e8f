"""The Parquet files of a recording while they grow: they have their names only once all of them are whole.

What is cut short therefore leaves an older recording of that name as it was. This module must not know what is in a
table.
"""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import glob
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from feeds.errors import RecordingError

#: Rows in a row group, and the most that are read at once.
ROW_GROUP: Final = 65_536


class TableFile:
    """A file of a recording under a temporary name, which no other writer has.

    It is locked as long as it has a writer. One that was killed leaves it, until the next file gets its name.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        self._schema = schema
        self._descriptor: int | None = None
        self._parquet: Any = None

    def write(self, rows: pa.Table) -> None:
        """Append rows as row groups of :data:`ROW_GROUP`, the last one smaller: give whole ones until the end."""
        if self._parquet is None:
            self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self._parquet = _writer(self._temporary, self._schema)
        self._parquet.write_table(rows, row_group_size=ROW_GROUP)

    def finish(self) -> bool:
        """Complete the file and have the disk keep it; return whether there were any rows at all."""
        if self._parquet is None or self._descriptor is None:
            return False
        self._parquet.close()
        os.fsync(self._descriptor)
        return True

    def is_there(self) -> bool:
        """Whether what has the file's name is the same, byte for byte; of a table without rows, that nothing has."""
        if self._parquet is None or not self.path.exists():
            return self._parquet is None and not self.path.exists()
        return filecmp.cmp(self._temporary, self.path, shallow=False)

    def publish(self) -> None:
        """Give the file its name; a table that had no rows leaves no file, not even an older one."""
        if self._parquet is None:
            self.path.unlink(missing_ok=True)
        else:
            self._temporary.replace(self.path)

    def hold_place(self) -> None:
        """Have an empty file stand where this one will; by another name first, as the older one may have links."""
        empty = self._temporary.with_suffix(".empty")
        empty.touch()
        empty.replace(self.path)

    def remove_leftovers(self) -> None:
        """Remove what writers of such a file have left that were killed."""
        for path in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.tmp"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), _opened(path) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def abandon(self) -> None:
        """Leave nothing under the temporary name."""
        if self._parquet is not None:
            self._parquet.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def published(
    prefix: Path, tables: Sequence[TableFile], instruments: TableFile, *, replace: bool = True
) -> Iterator[None]:
    """Give the files of a recording their names once the block has filled them; else nothing is left of them.

    Several names cannot be given at once. In between the file of instruments is empty, and with that nothing can be
    opened. So whenever it ends, by an error, with the process or with the machine, there is the older recording or the
    new one as a whole, or one that is refused; never files of both that pass for one.

    Args:
        prefix: The recording's folder and name, for the error.
        tables: All of its tables.
        instruments: Its file of instruments.
        replace: Whether to write over a recording of that name. Else there may only be the very same, which then
            stays, or what was left of one that was not published to its end.

    Raises:
        RecordingError: In place of what the system raises; or there is a recording that is not to be replaced.
    """
    files = [*tables, instruments]
    try:
        yield
        with _opened(instruments.path.parent) as folder:
            fcntl.flock(folder, fcntl.LOCK_EX)  # against files of two writers that publish at the same moment
            for file in files:
                file.remove_leftovers()
            if replace or not _is_published(prefix, files):
                instruments.hold_place()
                os.fsync(folder)
                for table in tables:
                    table.publish()
                os.fsync(folder)
                instruments.publish()
                os.fsync(folder)
    except OSError as error:
        raise RecordingError(f"{prefix}: cannot be written ({error}); check the folder and its space") from error
    finally:
        for file in files:
            file.abandon()


def _is_published(prefix: Path, files: Sequence[TableFile]) -> bool:
    """Return whether all files, the one of instruments last, are there already, each the very same.

    Raises:
        RecordingError: There is another recording.
    """
    if is_unfinished(files[-1].path) or not any(file.path.exists() for file in files):
        return False
    if not all(file.is_there() for file in files):
        raise RecordingError(f"{prefix}: there is another recording of that name; move it away")
    return True


def is_unfinished(instruments: Path) -> bool:
    """Return whether a file of instruments holds the place of the one with which a recording is whole."""
    return instruments.exists() and instruments.stat().st_size == 0


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Return the descriptor of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # No two rows have the same number or id, so a dictionary of them only costs: a million trades with ids take 0.24 s
    # and 10.1 MB with one, 0.17 s and 8.0 MB as differences.
    numbers, ids = ("ts_recv", "ts_event", "seq", "venue_seq"), ("trade_id",)
    differences = dict.fromkeys(numbers, "DELTA_BINARY_PACKED") | dict.fromkeys(ids, "DELTA_BYTE_ARRAY")
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=[name for name in schema.names if name not in differences],
        column_encoding={name: differences[name] for name in schema.names if name in differences},
        write_page_index=True,
        write_page_checksum=True,
    )
