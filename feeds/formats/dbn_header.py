"""What a DBN file says before its records: version, dataset, and which id stands for which symbol on which day.

Source: https://databento.com/docs/standards-and-conventions/databento-binary-encoding, and the published crate ``dbn``.
This module must not know what a record holds.
"""

from __future__ import annotations

import struct
from datetime import date
from typing import IO, Final

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.errors import RecordingError
from feeds.records import I32, I64

MAGIC: Final = b"DBN"
VERSIONS: Final = (1, 2, 3)
#: A header that names two million symbols in full.
MAX_HEADER_BYTES: Final = 512 << 20

_DAY_NS: Final = 86_400_000_000_000
_EPOCH: Final = date(1970, 1, 1).toordinal()
#: Version 1 has no field for the width of its symbols.
_WIDTH_V1: Final = 22
#: Bytes of fields of fixed size and what is reserved; a schema's definition and lists of symbols follow.
_FIXED: Final = 100
#: The kind of symbols ("stype") that are instrument ids.
_BY_ID: Final = 0
_U32: Final = struct.Struct("<I")

_PUBLISHERS: Final = (
    "GLBX XNAS XBOS XPSX BATS BATY EDGA EDGX XNYS XCIS XASE XCHI XCIS XCIS MEMX EPRL FINN FINC FINY AMXO XBOX XCBO "
    "EMLD EDGO GMNI XISX MCRY XMIO ARCO OPRA MPRL XNDQ XBXO C2OX XPHL BATO MXOP IEXG XCHI XCIS IEXG EPRL ARCX XNYS "
    "XNYS XNAS XNAS XCHI XCIS IEXG EPRL XNAS XNYS FINN FINY FINC IFEU NDEX DBEQ EQUS SPHR XCHI XCIS IEXG EPRL XNAS "
    "XNYS FINN FINY FINC BATS BATY EDGA EDGX XBOS XPSX MEMX XASE ARCX LTSE XNAS FINN FINC XOFF XOFF XBOS XPSX XBOS "
    "XPSX EQUS XCIS XNYS EQUS EQUS EQUS EQUS IFUS XOFF IFLL XOFF XEUR XEEE XOFF XOFF XCBF XOFF OCEA MXTO IEXO MAIN "
    "XASE XBOS XCIS TXSE 24EQ EPRL XISX EDGA EDGX LTSE XCHI XNYS ARCX XNAS MEMX IEXG XPSX BATY BATS FINN FINY FINC "
    "XADF CTA UTP MSCI FTSE INAV MSTAR CCCY CGI CDEF XTKS XTKT XOSE MAIN MSCI FTSE INAV MSTAR CCCY CGI CDEF"
)
#: Venues by publisher id, from 1. Source: ``publishers`` of the published Python package ``databento`` 0.88.
VENUES: Final = tuple(_PUBLISHERS.split())


class Interval(msgspec.Struct, frozen=True):
    """A symbol stands for an id from one day up to, but without, another; days count from 1970-01-01."""

    first: int
    end: int
    symbol: str


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says about itself.

    Attributes:
        version: 1, 2 or 3.
        dataset: "GLBX.MDP3"; the part before the point is the venue where there is only one.
        tail_bytes: What follows each record: the time at which it was sent, or nothing.
        intervals: By instrument id, which symbols it stands for and when.
    """

    version: int
    dataset: str
    tail_bytes: int
    intervals: dict[int, list[Interval]]


def read_header(reader: IO[bytes], name: str) -> Header:
    """Read a header and leave the reader at the first record.

    Args:
        reader: At the beginning of a file.
        name: What messages call the file.

    Raises:
        RecordingError: It is no DBN, of a version that is not known, or damaged.
    """
    start = reader.read(8)
    if len(start) < 8 or start[:3] != MAGIC:
        raise RecordingError(f"{name}: is not DBN: it does not begin with {MAGIC.decode()} and the length of a header")
    version, length = start[3], _U32.unpack_from(start, 4)[0]
    if version not in VERSIONS:
        raise RecordingError(f"{name}: is DBN version {version}; versions {VERSIONS[0]} to {VERSIONS[-1]} are known")
    if length > MAX_HEADER_BYTES:
        raise RecordingError(f"{name}: has a header of {length:,} bytes; is it damaged?")
    data = _exactly(reader, length)
    try:
        return _parse(version, data)
    except (struct.error, ValueError, IndexError) as error:
        raise RecordingError(f"{name}: its header is damaged or cut off ({error}); fetch the file again") from error


def _exactly(reader: IO[bytes], length: int) -> bytes:
    """Read piece by piece: a length that is wrong must not take memory that no byte of the file fills."""
    pieces, missing = [], length
    while missing and (piece := reader.read(min(missing, 1 << 20))):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _parse(version: int, data: bytes) -> Header:
    if len(data) < _FIXED:
        raise ValueError(f"{len(data)} bytes")
    # Dataset, schema, start, end and limit come first; version 1 still has a count of records behind them.
    at = 42 if version > 1 else 50
    named_by_id = data[at] == _BY_ID
    width = struct.unpack_from("<H", data, at + 3)[0] if version > 1 else _WIDTH_V1
    if not width:
        raise ValueError("symbols of 0 bytes")
    fields = _Fields(data, _FIXED, width)
    fields.skip(fields.count())
    for _ in ("symbols", "partial", "not found"):
        fields.skip(fields.count() * width)
    intervals: dict[int, list[Interval]] = {}
    for _ in range(fields.count()):
        symbol = fields.text()
        for _ in range(fields.count()):
            first, end, other = fields.day(), fields.day(), fields.text()
            # Whichever of the two is the id: files can be asked for by symbol or by id.
            ident, named = (symbol, other) if named_by_id else (other, symbol)
            if ident.isdecimal():
                intervals.setdefault(int(ident), []).append(Interval(first, end, named))
    tail_bytes = 8 if data[at + 2] else 0
    return Header(version=version, dataset=text(data[:16]), tail_bytes=tail_bytes, intervals=intervals)


def text(data: bytes) -> str:
    """Return what a field of fixed size holds before its first zero."""
    return data.partition(b"\0")[0].decode("utf-8", "replace")


class _Fields:
    """Walks over the lists at the end of a header; a walk beyond the end raises struct.error or ValueError."""

    def __init__(self, data: bytes, at: int, width: int) -> None:
        self._data, self._at, self._width = data, at, width

    def count(self) -> int:
        (value,) = _U32.unpack_from(self._data, self._at)
        self._at += 4
        return int(value)

    def day(self) -> int:
        """Return a date, written as the decimal YYYYMMDD, as days from 1970-01-01."""
        value = self.count()
        return date(value // 10_000, value // 100 % 100, value % 100).toordinal() - _EPOCH

    def text(self) -> str:
        end = self._at + self._width
        if end > len(self._data):
            raise ValueError("it ends within a symbol")
        value = text(self._data[self._at : end])
        self._at = end
        return value

    def skip(self, size: int) -> None:
        self._at += size


class Symbols:
    """Names what a record is of; the names found so far have dense codes, in the order of their first record.

    An id that no mapping names is called by its number. What is traded at another venue than the dataset's own gets
    the venue's name behind it, "AAPL@FINN": it has a book of its own, and the datasets of several venues hold many.

    Attributes:
        names: By code.
        venues: By code.
    """

    def __init__(self, header: Header) -> None:
        self.names: list[str] = []
        self.venues: list[str] = []
        self._intervals = header.intervals
        self._home = header.dataset.partition(".")[0] or "DATABENTO"
        self._later: dict[int, str] = {}
        self._codes: dict[int, int] = {}
        self._code_of_name: dict[str, int] = {}

    def rename(self, instrument: int, symbol: str) -> None:
        """Take in a mapping that came among the records, as in captures of a live stream."""
        self._later[instrument] = symbol
        self._codes.clear()

    def codes(self, publisher: npt.NDArray[np.uint16], instrument: npt.NDArray[np.uint32], ts: I64) -> I32:
        """Return the code of each record's symbol.

        Args:
            publisher: uint16.
            instrument: uint32.
            ts: int64 ns UTC, not negative: mappings are by day.
        """
        count = len(ts)
        same_day = int(ts.min()) // _DAY_NS == int(ts.max()) // _DAY_NS
        if same_day and (instrument == instrument[0]).all() and (publisher == publisher[0]).all():
            publisher, instrument, ts = publisher[:1], instrument[:1], ts[:1]
        day = (ts // _DAY_NS).astype(np.uint64)
        keys = day << np.uint64(48) | publisher.astype(np.uint64) << np.uint64(32) | instrument
        if len(keys) < count:
            return np.full(count, self._code(int(keys[0])), np.int32)
        found, places = np.unique(keys, return_inverse=True)
        return np.array([self._code(key) for key in found.tolist()], np.int32)[places]

    def _code(self, key: int) -> int:
        code = self._codes.get(key)
        if code is None:
            name, venue = self._name(key >> 48, key >> 32 & 0xFFFF, key & 0xFFFFFFFF)
            code = self._codes[key] = self._code_of_name.setdefault(name, len(self.names))
            if code == len(self.names):
                self.names.append(name)
                self.venues.append(venue)
        return code

    def _name(self, day: int, publisher: int, instrument: int) -> tuple[str, str]:
        named = self._later.get(instrument)
        if named is None:
            days = self._intervals.get(instrument, ())
            named = next((i.symbol for i in days if i.first <= day < i.end), str(instrument))
        venue = VENUES[publisher - 1] if 0 < publisher <= len(VENUES) else self._home
        return (named if venue == self._home else f"{named}@{venue}"), venue
