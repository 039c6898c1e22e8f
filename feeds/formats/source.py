"""A file to be read, whatever it is packed in: its bytes, its name, and what was wrong with it.

Compression is told by the first bytes, never by the name. What comes out of it is capped, so that a bomb ends in an
error. This module must not know what the bytes mean.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

import msgspec
import pyarrow as pa

from feeds.errors import RecordingError

#: How much of a source its format is told by.
HEAD_BYTES: Final = 65_536
#: How many complaints about bad rows are kept in words; the rest is only counted.
COMPLAINTS: Final = 10

#: How many kinds of records that have no place are told apart, and how much of their names is kept.
NAMES: Final = 32
NAME_LENGTH: Final = 40

#: With more bad rows than these a file is another format, or nothing to play.
MAX_REFUSED: Final = 100_000

#: Bytes unpacked at once, and so the most that is lost before a place where a packed file is damaged.
STEP: Final = 1 << 16

_GZIP, _ZSTD, _ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
_SUFFIXES: Final = (".gz", ".zst", ".zstd")
#: Everything that unpacking damaged bytes raises; RuntimeError and NotImplementedError are zipfile's, of members
#: that are encrypted or packed in a way it does not know.
_UNPACKING: Final = (
    *(OSError, EOFError, zlib.error, zipfile.BadZipFile, pa.ArrowException, RuntimeError, NotImplementedError),
    *(ValueError, OverflowError),
)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much may come out of a packed file.

    Attributes:
        max_bytes: Bytes after unpacking.
        max_ratio: Unpacked bytes per packed byte. Market data packs 5 to 50 times; gzip can reach 1,030.
        free_bytes: Below this many unpacked bytes the ratio does not count.
    """

    max_bytes: int = 256 << 30
    max_ratio: int = 250
    free_bytes: int = 32 << 20


class Source:
    """One stream of bytes to read: a plain file, a packed one, or one member of an archive.

    Attributes:
        path: The file on disk.
        name: How messages call it: its path, and after a colon the member of an archive.
        member: The member of an archive that it is, all of which are read; None for a file.
        file_name: Its own name without the suffixes of compression, "BTCUSDT-trades-2024-08-08.csv".
        size: Bytes on disk; with :attr:`consumed` the measure of progress.
        consumed: Bytes of the file on disk read so far.
        refused: Rows that were left out.
        complaints: Why, ``file:line: reason``, for the first :data:`COMPLAINTS` of them.
        passed_over: How many sound records had no place in a recording, by what they are.
    """

    def __init__(
        self, path: Path, member: str | None = None, *, skip_bad: bool = False, limits: Limits | None = None
    ) -> None:
        self.path, self.member = path, member
        self.name = str(path) if member is None else f"{path}:{member}"
        self.file_name = _bare(Path(member or path.name).name)
        self.size = path.stat().st_size
        self.consumed = 0
        self.refused = 0
        self.complaints: list[str] = []
        self.passed_over: Counter[str] = Counter()
        self._skip_bad = skip_bad
        self._limits = limits or Limits()

    @contextlib.contextmanager
    def open(self) -> Iterator[io.BufferedReader]:
        """Return a reader of the unpacked bytes, from the beginning.

        Reading raises RecordingError where the bytes cannot be unpacked, or are too many.
        """
        with contextlib.ExitStack() as stack:
            try:
                raw = stack.enter_context(self.path.open("rb"))
                unpacked = stack.enter_context(_unpacked(raw, self.member))
            except _UNPACKING as error:
                raise RecordingError(f"{self.name}: cannot be opened ({_first_line(error)})") from error
            # BufferedReader asks for at least so much at a time.
            yield stack.enter_context(io.BufferedReader(_Capped(self, raw, unpacked.readinto, self._limits), 1 << 18))

    def head(self) -> bytes:
        """Return the first bytes, at most :data:`HEAD_BYTES`, or what can be read of them; nothing is counted."""
        with self.again(skip_bad=True).open() as reader:
            return reader.read(HEAD_BYTES)

    def again(self, *, skip_bad: bool) -> Source:
        """Return the same bytes with nothing counted yet."""
        return Source(self.path, self.member, skip_bad=skip_bad, limits=self._limits)

    def beside(self, file_name: str) -> Source | None:
        """Return the source of another name, packed the same way, in the same folder or archive; None without one."""
        if self.member is not None:
            with self.path.open("rb") as file:
                member = str(PurePosixPath(self.member).with_name(file_name))
                found = member in _members(file)
            return Source(self.path, member, skip_bad=self._skip_bad, limits=self._limits) if found else None
        path = self.path.with_name(self.path.name.replace(self.file_name, file_name))
        return Source(path, skip_bad=self._skip_bad, limits=self._limits) if path.is_file() else None

    def refuse(self, line: int | None, why: str) -> None:
        """Take note of a bad row that is now left out.

        Args:
            line: Its line, or the number of its record, from 1; None if it is not a matter of one row.
            why: What is wrong, with the value: "price is not a number ('abc')".

        Raises:
            RecordingError: Bad rows are not to be skipped, or there are over :data:`MAX_REFUSED` of them.
        """
        complaint = f"{self.name}: {why}" if line is None else f"{self.name}:{line}: {why}"
        if not self._skip_bad:
            raise RecordingError(f"{complaint}; mend it, or leave bad rows out with --skip-bad")
        self.refused += 1
        if self.refused > MAX_REFUSED:
            raise RecordingError(f"{complaint}; over {MAX_REFUSED:,} rows are bad: is it another format? See --format")
        if len(self.complaints) < COMPLAINTS:
            self.complaints.append(complaint)

    def pass_over(self, what: str, count: int = 1) -> None:
        """Count sound records that have no place in a recording: status messages, heartbeats.

        What a file itself calls them may be anything: names are shortened, and after :data:`NAMES` of them they are
        counted together.
        """
        what = what[:NAME_LENGTH]
        if what not in self.passed_over and len(self.passed_over) >= NAMES:
            what = "others"
        self.passed_over[what] += count


def open_sources(path: Path, *, skip_bad: bool = False, limits: Limits | None = None) -> list[Source]:
    """Return the sources in a file: each member of a zip archive in the order of their names, else the file itself.

    Raises:
        RecordingError: There is no such file, or it is an archive without a file in it or that cannot be read.
    """
    try:
        with path.open("rb") as file:
            members = _members(file) if file.read(4) == _ZIP else [None]
        sources = [Source(path, member, skip_bad=skip_bad, limits=limits) for member in members]
    except FileNotFoundError:
        raise RecordingError(f"{path}: there is no such file") from None
    except _UNPACKING as error:
        raise RecordingError(f"{path}: cannot be opened ({_first_line(error)})") from error
    if not sources:
        raise RecordingError(f"{path}: the archive holds no file")
    return sources


def _members(file: IO[bytes]) -> list[str | None]:
    with zipfile.ZipFile(file) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
    return [name for name in sorted(names) if not _of_macos(PurePosixPath(name))]


def _of_macos(name: PurePosixPath) -> bool:
    """Return whether a member is one of those that macOS packs beside a folder's own files."""
    return "__MACOSX" in name.parts or name.name.startswith("._") or name.name == ".DS_Store"


def _bare(name: str) -> str:
    while name.lower().endswith(_SUFFIXES):
        name = name[: name.rindex(".")]
    return name


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _unpacked(raw: IO[bytes], member: str | None) -> Iterator[Any]:
    """Return something with ``readinto`` that gives the bytes inside."""
    magic = raw.read(4)
    raw.seek(0)
    if member is not None:
        with zipfile.ZipFile(raw) as archive, archive.open(member) as file:
            yield file
    elif magic.startswith(_GZIP):
        with gzip.GzipFile(fileobj=raw) as file:
            yield file
    elif magic == _ZSTD:
        with pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd") as file:
            yield file
    else:
        yield raw


class _Capped(io.RawIOBase):
    """What comes out of a packed file, counted; the one border for what unpacking raises."""

    def __init__(self, source: Source, raw: IO[bytes], readinto: Callable[[Any], int], limits: Limits) -> None:
        self._source, self._raw, self._readinto, self._limits = source, raw, readinto, limits
        self._count = 0
        self._damaged = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - a writable buffer, which has no name before 3.12
        if self._damaged:
            return 0  # asked again, some unpackers give once more what they gave before
        try:
            count = self._readinto(memoryview(buffer)[:STEP])
        except _UNPACKING as error:
            # What came before is good, so whoever skips bad rows keeps it.
            self._damaged = True
            self._source.refuse(None, f"is damaged or cut off after {self._count:,} bytes ({_first_line(error)})")
            return 0
        self._count += count
        self._source.consumed = self._raw.tell()
        self._check()
        return count

    def _check(self) -> None:
        limits, count, name = self._limits, self._count, self._source.name
        if count > limits.max_bytes:
            raise RecordingError(f"{name}: unpacks to more than {limits.max_bytes:,} bytes; split it, or unpack it")
        if count > limits.free_bytes and count > limits.max_ratio * self._source.consumed:
            raise RecordingError(
                f"{name}: unpacks to over {limits.max_ratio} times its size; unpack it if that is right"
            )
