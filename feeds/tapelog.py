"""The append log of a recording: every event in order, in frames that are whole or not there.

While a feed is recorded its events go to ``NAME.0001.tape``, ``NAME.0002.tape`` and so on, the *segments* of the log.
A segment is a sequence of frames: first a :class:`Header`, then groups of rows and markers as they came. The groups
of all tables in one log keep the total order, which a stream for each table would lose.

A frame is 16 bytes, four little-endian uint32, and a payload: size of the payload, number of the frame in its
segment, kind, and the CRC-32 of everything else in the frame. So a frame that was cut off, overwritten, repeated or
left out is noticed, and reading stops before it. Rows are their columns as they are in memory. For 30,000 rows that
took 0.02 µs a row with the CRC and the write, as much as Arrow IPC batches of the same columns; with lz4 those took
0.09 for half the bytes, with zstd 0.14 for a third. A log lives until it is compacted, so cheap goes before small.

What holds: a frame that was appended outlives the process, however it ends, because the kernel has it. It outlives the
machine from the next :meth:`LogWriter.sync` on, as far as the disk keeps its word.

This module must not know of feeds, event loops or Parquet; everything in it may block.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import numpy as np

from feeds.errors import RecordingError
from feeds.instruments import Instrument
from feeds.records import Batch, Event, Levels, Marker, Quotes, Table, Trades

TableT = TypeVar("TableT", bound=Table)

FORMAT: Final = 1
#: Kinds of frames.
HEADER: Final = 1
MARKER: Final = 2
ROWS: Final = 3

_HEAD: Final = struct.Struct("<IIII")
_COVERED: Final = struct.Struct("<III")  # what of the head the CRC covers
#: In front of the columns: market time, and the rows of each table.
_COUNTS: Final = struct.Struct("<qIII")


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first frame of a segment.

    Attributes:
        format: Of the log; :data:`FORMAT`.
        feed: Name of the feed.
        mode: ``sim``, ``replay`` or ``relay``.
        instruments: What the ids in the rows mean, the same in all segments of a log.
    """

    format: int = FORMAT
    feed: str
    mode: str
    instruments: tuple[Instrument, ...]


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a segment stops to be readable.

    Attributes:
        path: The segment.
        at: Offset of the first frame that is not whole.
        size: Bytes from there to the end.
        why: In words.
    """

    path: Path
    at: int
    size: int
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why} at byte {self.at:,}; the last {self.size:,} bytes are left out"


def rows_of(batches: Sequence[Batch]) -> bytes:
    """Return the payload of a frame with the rows of some batches, in their order."""
    tables = (
        Trades.concatenate([b.trades for b in batches]),
        Quotes.concatenate([b.quotes for b in batches]),
        Levels.concatenate([b.levels for b in batches]),
    )
    columns = [
        column.astype(np.dtype(table.DTYPES[name]).newbyteorder("<"), copy=False).tobytes()
        for table in tables
        for name, column in table.columns().items()
    ]
    return b"".join([_COUNTS.pack(batches[-1].ts, *map(len, tables)), *columns])


def batch_of(payload: bytes) -> Batch:
    """Return the rows of a frame: the reverse of :func:`rows_of`.

    Raises:
        ValueError: The payload is not as long as it says.
    """
    ts, *rows = _COUNTS.unpack_from(payload)
    trades, at = _table_of(Trades, payload, _COUNTS.size, rows[0])
    quotes, at = _table_of(Quotes, payload, at, rows[1])
    levels, at = _table_of(Levels, payload, at, rows[2])
    if at != len(payload):
        raise ValueError(f"a group of rows has {len(payload) - at} bytes too many")
    return Batch(ts=ts, trades=trades, quotes=quotes, levels=levels)


def _table_of(kind: type[TableT], payload: bytes, at: int, rows: int) -> tuple[TableT, int]:
    columns = {}
    for name, dtype in kind.DTYPES.items():
        stored = np.dtype(dtype).newbyteorder("<")
        columns[name] = np.frombuffer(payload, stored, rows, at).astype(dtype)  # a copy, aligned and writable
        at += rows * stored.itemsize
    return kind(**columns), at


def _crc(size: int, number: int, kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_COVERED.pack(size, number, kind)))


class LogWriter:
    """One segment while it grows.

    Attributes:
        path: Its file.
        size: Bytes in whole frames.

    Raises:
        OSError: It exists, or cannot be written.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.size = 0
        self._number = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self.append(HEADER, msgspec.json.encode(header))
            self.sync()
            _sync_folder(path.parent)
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    def append(self, kind: int, payload: bytes) -> None:
        """Write a frame; when this returns it outlives the process.

        Raises:
            OSError: It could not be written. The segment ends before it and is not to be used any more.
        """
        crc = _crc(len(payload), self._number, kind, payload)
        frame = memoryview(_HEAD.pack(len(payload), self._number, kind, crc) + payload)
        try:
            done = 0
            while done < len(frame):  # a full disk may take a part
                done += os.write(self._file, frame[done:])
        except OSError:
            self._cut_back()
            raise
        self.size += len(frame)
        self._number += 1

    def _cut_back(self) -> None:
        """Take away a frame that was begun; where that fails too, its CRC tells a reader."""
        try:
            os.ftruncate(self._file, self.size)
        except OSError:
            return

    def sync(self) -> None:
        """Have the disk keep what was appended; when this returns it outlives the machine.

        Raises:
            OSError: The disk did not; what becomes of the frames since the last time is not known.
        """
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file, without waiting for the disk."""
        os.close(self._file)


def _sync_folder(folder: Path) -> None:
    """Have the disk keep the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SegmentReader:
    """Reads a segment up to its end or to the first frame that is not whole.

    Attributes:
        path: Its file.
        header: What it begins with; None if that cannot be read.
        frames: Whole frames so far.
        end: Offset behind the last of them.
        damage: Why reading stopped before the end of the file; None before that, and if it did not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header | None = None
        self.frames = 0
        self.end = 0
        self.damage: Damage | None = None

    def events(self) -> Iterator[Event]:
        """Yield batches, one for each group of rows, and markers.

        Raises:
            RecordingError: The file cannot be read, or is of another version of the format.
        """
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                while self.end < size:
                    try:
                        event = self._next(file.read, size)
                    except (ValueError, struct.error, msgspec.MsgspecError) as error:
                        self.damage = Damage(path=self.path, at=self.end, size=size - self.end, why=str(error))
                        return
                    if event is not None:
                        yield event
        except OSError as error:
            raise RecordingError(f"{self.path}: cannot be read ({error})") from error

    def _next(self, read: Callable[[int], bytes], file_size: int) -> Event | None:
        """Read a frame; return None for a header.

        Raises:
            ValueError: It is not whole.
        """
        head = read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise ValueError("the head of a frame is cut off")
        size, number, kind, crc = _HEAD.unpack(head)
        if size > file_size - self.end - _HEAD.size:
            raise ValueError("a frame is cut off")
        payload = read(size)
        if len(payload) < size or _crc(size, number, kind, payload) != crc:
            raise ValueError("a frame is damaged")
        if number != self.frames:
            raise ValueError(f"frame {number} is where frame {self.frames} should be")
        event = self._decoded(kind, payload)
        self.frames += 1
        self.end += _HEAD.size + size
        return event

    def _decoded(self, kind: int, payload: bytes) -> Event | None:
        if (kind == HEADER) != (self.frames == 0):
            raise ValueError("a segment does not begin with its only header")
        if kind == ROWS:
            return batch_of(payload)
        if kind == MARKER:
            return msgspec.json.decode(payload, type=Marker)
        if kind != HEADER:
            raise ValueError(f"a frame is of the unknown kind {kind}")
        self.header = msgspec.json.decode(payload, type=Header)
        if self.header.format != FORMAT:
            raise RecordingError(f"{self.path}: is of format {self.header.format}; this version reads {FORMAT}")
        return None


def repair(path: Path) -> Damage | None:
    """Cut a segment off at the first frame that is not whole, and have it say so: a gap marker takes its place.

    What is cut off is kept beside it in ``NAME.0001.tape.cut``. A segment that has not even a header becomes that
    file as a whole. Nothing may be writing the segment.

    Returns:
        What was found; None if every frame is whole.

    Raises:
        RecordingError: The file cannot be read or written.
    """
    reader, ts = SegmentReader(path), 0
    for event in reader.events():
        ts = event.ts
    damage = reader.damage
    if reader.header is None:
        damage = damage or Damage(path=path, at=0, size=0, why="there is no header")
    if damage is None:
        return None
    try:
        rest = path.with_name(f"{path.name}.cut")
        if reader.header is None:
            path.replace(rest)
        else:
            _cut(path, rest, reader, Marker(kind="gap", ts=ts, reason=damage.why))
        _sync_folder(path.parent)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be repaired ({error}); check the folder and its space") from error
    return damage


def _cut(path: Path, rest: Path, reader: SegmentReader, marker: Marker) -> None:
    payload = msgspec.json.encode(marker)
    head = _HEAD.pack(len(payload), reader.frames, MARKER, _crc(len(payload), reader.frames, MARKER, payload))
    with path.open("r+b") as file:
        file.seek(reader.end)
        with rest.open("ab") as kept:
            kept.write(file.read())
        file.seek(reader.end)
        file.truncate()
        file.write(head + payload)
        file.flush()
        os.fsync(file.fileno())


def segments(prefix: Path) -> list[Path]:
    """Return the segments of a log, in order; empty if there is no such log."""
    pattern = re.compile(re.escape(prefix.name) + r"\.(\d{4,})\.tape")
    files = prefix.parent.iterdir() if prefix.parent.is_dir() else []
    return sorted((file for file in files if pattern.fullmatch(file.name)), key=segment_number)


def segment_number(path: Path) -> int:
    """Return the number in the name of a segment."""
    return int(path.suffixes[-2][1:])


def segment_path(prefix: Path, number: int) -> Path:
    """Return the file of a segment."""
    return prefix.with_name(f"{prefix.name}.{number:04d}.tape")


def read_log(paths: Iterable[Path]) -> Iterator[Event]:
    """Yield the events of repaired segments; where one is missing, a gap marker.

    Raises:
        RecordingError: A segment cannot be read, or has a frame that is not whole.
    """
    expected, ts = 1, 0
    for path in paths:
        if (number := segment_number(path)) != expected:
            yield Marker(kind="gap", ts=ts, reason=f"segment {expected} is missing")
        reader = SegmentReader(path)
        for event in reader.events():
            ts = event.ts
            yield event
        if reader.damage is not None:
            raise RecordingError(str(reader.damage))
        expected = number + 1


class Lock:
    """Says that a log is in use, as long as it is open; the end of the process ends it too.

    Args:
        path: First segment of the log.

    Raises:
        RecordingError: Another process uses it, or it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise RecordingError(f"{path}: cannot be opened ({error})") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise RecordingError(f"{path}: is being recorded by another process; stop that first") from None

    def close(self) -> None:
        """Let others use the log."""
        os.close(self._file)


class LogInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a log holds, as far as it can be read.

    Attributes:
        segments: How many files.
        size: Bytes in them.
        rows: By "trades", "quotes", "book".
        gaps: Reasons of the gap markers, in order.
        epochs: How often numbering and state began anew.
        start_ns: Market time of the first group of rows, ns UTC; None if there are no rows.
        end_ns: Market time of the last.
        damage: Segments that stop to be readable before their end.
        in_use: Whether it is being recorded now; an unfinished frame at the end is then no damage.
    """

    segments: int
    size: int
    rows: dict[str, int]
    gaps: tuple[str, ...]
    epochs: int
    start_ns: int | None
    end_ns: int | None
    damage: tuple[Damage, ...]
    in_use: bool


def survey(prefix: Path) -> LogInfo:
    """Read a log, also one that is being written, and return what it holds; changes nothing.

    Raises:
        RecordingError: There is no such log, or it cannot be read.
    """
    paths = segments(prefix)
    if not paths:
        raise RecordingError(f"{prefix}: no log; looked for {prefix.name}.0001.tape")
    rows = dict.fromkeys(("trades", "quotes", "book"), 0)
    markers: list[Marker] = []
    times: list[int] = []
    damage: list[Damage] = []
    for reader in map(SegmentReader, paths):
        for event in reader.events():
            if isinstance(event, Marker):
                markers.append(event)
                continue
            for kind, table in zip(rows, (event.trades, event.quotes, event.levels), strict=True):
                rows[kind] += len(table)
            times = [*times[:1], event.ts]
        if reader.damage is not None:
            damage.append(reader.damage)
    return LogInfo(
        segments=len(paths),
        size=sum(path.stat().st_size for path in paths),
        rows=rows,
        gaps=tuple(marker.reason for marker in markers if marker.kind == "gap"),
        epochs=sum(marker.kind == "epoch" for marker in markers),
        start_ns=times[0] if times else None,
        end_ns=times[-1] if times else None,
        damage=tuple(damage),
        in_use=_in_use(paths[0]),
    )


def _in_use(path: Path) -> bool:
    try:
        Lock(path).close()
    except RecordingError:
        return True
    return False
