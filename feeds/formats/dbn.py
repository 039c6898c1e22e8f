"""Databento's DBN, versions 1 to 3: trades, mbp-1, mbp-10, mbo, tbbo, bbo, their consolidated relatives, and bars.

A file may hold records of several kinds. Where two kinds tell the same story of an instrument (trades, and the
trades inside of mbp-1) the one that came first tells it, else every trade would be there twice and two sources would
change one book. What has no place in a recording (status, definitions, statistics) is passed over and counted.

Source: https://databento.com/docs/standards-and-conventions/databento-binary-encoding. This module must not know what
is inside of a header or a record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feeds.errors import RecordingError
from feeds.formats import dbn_events, dbn_header, dbn_records
from feeds.formats.dbn_events import Events, Tellers
from feeds.formats.dbn_header import Header, Symbols
from feeds.formats.dbn_records import BARS, HEADER, HEADER_BYTES, KINDS, SYMBOL_MAPPING, Context, Records
from feeds.formats.format import Assembly, Chunk, ReadOptions
from feeds.formats.ladder import Ladders
from feeds.formats.source import Source
from feeds.records import I32, I64, MISSING, U8

#: Bytes read at a time: 43,470 trades, or 5,670 books of ten levels; whole records if all are of one kind.
BLOCK_BYTES: Final = 54 * 38_640
#: Bars of one time that are waited for, 3.7 MB; of more instruments those in one piece are in order.
MOST_WAITING: Final = 65_536
#: The length of a record is written in words of four bytes.
_WORD: Final = 4


class Dbn:
    """The format; see the module."""

    name = "dbn"

    def recognises(self, head: bytes, file_name: str) -> bool:
        """Return whether the file begins like DBN, of whatever version."""
        return head.startswith(dbn_header.MAGIC) and len(head) >= 8

    def read(self, source: Source, options: ReadOptions) -> Iterator[Chunk]:
        """Yield the rows of a file; its symbols are the ones it was asked for, "ESU4", else the numbers of its ids."""
        with source.open() as reader:
            header = dbn_header.read_header(reader, source.name)
            blocks = _Blocks(source, header, options.venue)
            empty = True
            for data, offsets in _records(source, reader):
                for chunk in blocks.chunks(data, offsets):
                    empty = False
                    yield chunk
        if empty:
            raise RecordingError(f"{source.name}: no record of it has a place in a recording{blocks.instead()}")


def _records(source: Source, reader: Any) -> Iterator[tuple[bytes, I64]]:  # noqa: ANN401 - io.BufferedReader
    """Yield pieces of a file and where in them the whole records begin; bars of one time are in one piece."""
    rest, number, more = b"", 1, True
    while more:
        fresh = reader.read(BLOCK_BYTES)
        data = rest + fresh
        if not data:
            return
        offsets, end = _offsets(data)
        unknown = end < len(data) and data[end] * _WORD < HEADER_BYTES
        more = bool(fresh) and not unknown
        if more and (waiting := _waiting(data, offsets)):
            offsets, end = offsets[:-waiting], int(offsets[-waiting])
        if len(offsets):
            yield data, offsets
        number += len(offsets)
        rest = data[end:]
    if unknown:
        source.refuse(number, f"a record of {rest[0] * _WORD} bytes; what follows cannot be told apart")
    elif rest:
        source.refuse(number, f"the record is cut off after {len(rest)} of {rest[0] * _WORD} bytes")


def _waiting(data: bytes, offsets: I64) -> int:
    """Return how many records at the end are bars of one time, of which there may be more in the next piece.

    Their prints are put in order with those of the other bars of that time, which a piece that ends among them could
    not do.
    """
    if not len(offsets) or data[offsets[-1] + 1] not in BARS:
        return 0
    heads = _view(data, offsets, HEADER)
    others = np.flatnonzero(~np.isin(heads["rtype"], BARS) | (heads["ts_event"] != heads["ts_event"][-1]))
    waiting = len(offsets) - (int(others[-1]) + 1 if len(others) else 0)
    return waiting if waiting <= MOST_WAITING else 0


def _offsets(data: bytes) -> tuple[I64, int]:
    """Return where the whole records begin, and where the last one ends: at a cut, or at a length that cannot be."""
    size = data[0] * _WORD
    even = np.zeros(0, np.int64)
    if size >= HEADER_BYTES:
        count = len(data) // size
        # Each record says where the next one begins, so if all that lie at even distances say the same, these are all.
        if (np.frombuffer(data, np.uint8, count * size)[::size] == data[0]).all():
            even = np.arange(count) * size
    at, offsets, least = len(even) * size, [], HEADER_BYTES // _WORD
    while at < len(data) and data[at] >= least and at + data[at] * _WORD <= len(data):
        offsets.append(at)
        at += data[at] * _WORD
    return (np.append(even, np.array(offsets, np.int64)) if offsets else even), at


def _view(data: bytes, offsets: I64, dtype: np.dtype[Any]) -> Records:
    """Return the records at the offsets: a view where they lie at even distances, else copies."""
    step = int(offsets[1] - offsets[0]) if len(offsets) > 1 else dtype.itemsize
    if (np.diff(offsets) == step).all():
        view: Records = np.ndarray(len(offsets), dtype, data, int(offsets[0]), (step,))
        return view
    content = np.frombuffer(data, np.uint8)[offsets[:, np.newaxis] + np.arange(dtype.itemsize)]
    copies: Records = content.view(dtype)[:, 0]
    return copies


class _Blocks:
    """Turns blocks of records into chunks; it carries what spans blocks."""

    def __init__(self, source: Source, header: Header, venue: str | None) -> None:
        self._source, self._venue = source, venue
        self._symbols, self._tail_bytes = Symbols(header), header.tail_bytes
        self._mapping = dbn_records.mapping(header.version)
        self._assembly, self._ladders = Assembly(), Ladders()
        self._first = 1  # the number of a block's first record
        self._bars: bool | None = None  # whether bars are told, as they are only where they come alone
        self._tellers = Tellers()

    def chunks(self, data: bytes, offsets: I64) -> Iterator[Chunk]:
        """Yield the rows of the records at the offsets; a mapping of a symbol holds for what comes after it."""
        numbers = np.frombuffer(data, np.uint8)[offsets + 1]
        told = self._told(np.flatnonzero(np.bincount(numbers)).tolist(), numbers)
        mapped = numbers == SYMBOL_MAPPING
        cuts = np.flatnonzero(mapped[1:] & ~mapped[:-1]) + 1
        for piece, kinds in zip(np.split(offsets, cuts), np.split(numbers, cuts), strict=True):
            if kinds[0] == SYMBOL_MAPPING:
                self._rename(data, piece, np.flatnonzero(kinds == SYMBOL_MAPPING))
            maybe = [self._events(number, data, piece, np.flatnonzero(kinds == number)) for number in told]
            said = self._tellers.own([events for events in maybe if events is not None], self._source)
            self._first += len(piece)
            # Prints of bars have other columns than trades; where both are told, which is rare, bars come first.
            for bars in (True, False):
                events = dbn_events.merged([events for events in said if (events.kind in BARS) == bars])
                if events and (chunk := self._rows(events)):
                    yield chunk

    def instead(self) -> str:
        """Return what the records were, for the message that none of them could be used."""
        seen = ", ".join(self._source.passed_over)
        return f": it holds {seen}; fetch another schema" if seen else ""

    def _told(self, found: list[int], numbers: U8) -> list[int]:
        """Return the kinds that have rows, and count the records of the others."""
        told = [number for number in found if number in KINDS]
        if self._bars is None and told:
            self._bars = all(KINDS[number].interval_ns for number in told)
        told = [number for number in told if self._bars or not KINDS[number].interval_ns]
        for number in found:
            if number not in told:
                count = int(np.count_nonzero(numbers == number))
                self._source.pass_over(dbn_records.name(number), count)
        return told

    def _rename(self, data: bytes, offsets: I64, places: I64) -> None:
        places = self._whole(data, offsets, places, self._mapping)
        if len(places):
            for mapping in _view(data, offsets[places], self._mapping):
                self._symbols.rename(int(mapping["instrument"]), dbn_header.text(mapping["symbol"]))

    def _whole(self, data: bytes, offsets: I64, places: I64, dtype: np.dtype[Any]) -> I64:
        """Return the places of the records that are as long as they should be."""
        size = dtype.itemsize + self._tail_bytes
        wrong = np.frombuffer(data, np.uint8)[offsets[places]] != size // _WORD
        return self._without(places, wrong, f"the record has not the {size} bytes of its kind")

    def _without(self, places: I64, unfit: npt.NDArray[np.bool_], why: str) -> I64:
        if not unfit.any():
            return places
        for place in places[unfit].tolist():
            self._source.refuse(self._first + place, why)
        return places[~unfit]

    def _events(self, number: int, data: bytes, offsets: I64, places: I64) -> Events | None:
        """Return what the records of one kind say, None if none of them can be used."""
        kind = KINDS[number]
        places = self._whole(data, offsets, places, kind.dtype)
        for fault in kind.faults:
            if len(places):
                places = self._without(places, fault.unfit(_view(data, offsets[places], kind.dtype)), fault.why)
        if not len(places):
            return None
        records = _view(data, offsets[places], kind.dtype)
        code = self._symbols.codes(records["publisher"], records["instrument"], dbn_records.receive_times(records))
        return dbn_records.events(number, records, places, code, Context(self._symbols.names, self._ladders))

    def _rows(self, events: Events) -> Chunk:
        shared = {
            "ts_recv": events.ts_recv,
            "ts_event": events.ts_event,
            "venue_seq": pa.array(events.sequence, mask=events.sequence == MISSING),
            "symbol": _words(events.code, self._symbols.names),
            "venue": self._venue or _words(events.code, self._symbols.venues),
        }
        return self._assembly.chunk(shared, *(rows.part() for rows in events.tables))


def _words(codes: I32, words: list[str]) -> pa.DictionaryArray:
    """Return words by their codes; the dictionary holds those in use, each once."""
    first = int(codes[0])
    if (codes == first).all():
        return pa.DictionaryArray.from_arrays(np.zeros(len(codes), np.int32), pa.array([words[first]]))
    places: dict[str, int] = {}
    lookup = np.zeros(len(words), np.int32)
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        lookup[code] = places.setdefault(words[code], len(places))
    return pa.DictionaryArray.from_arrays(lookup[codes], pa.array(list(places)))
