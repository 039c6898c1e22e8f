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
from feeds.formats.dbn_events import Events
from feeds.formats.dbn_header import Symbols
from feeds.formats.dbn_records import HEADER_BYTES, KINDS, SYMBOL_MAPPING, Context, Records
from feeds.formats.format import Assembly, Chunk, ReadOptions
from feeds.formats.ladder import Ladders
from feeds.formats.source import Source
from feeds.formats.table_rows import TableRows, with_nulls
from feeds.records import I32, I64, U8

#: Bytes read at a time: 43,690 trades, or 5,698 books of ten levels.
BLOCK_BYTES: Final = 1 << 21
#: The length of a record is written in words of four bytes.
_WORD: Final = 4
#: In the table of who tells an instrument's story.
_NOBODY: Final = -1
#: A file may have been written with the time at which each record was sent behind it.
_TS_OUT: Final = 8


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
            blocks = _Blocks(source, Symbols(header), header.version, options.venue)
            empty = True
            for data, offsets in _records(source, reader):
                chunk = blocks.chunk(data, offsets)
                if chunk:
                    empty = False
                    yield chunk
        if empty:
            raise RecordingError(f"{source.name}: no record of it has a place in a recording{blocks.instead()}")


def _records(source: Source, reader: Any) -> Iterator[tuple[bytes, I64]]:  # noqa: ANN401 - io.BufferedReader
    """Yield pieces of a file and where in them the whole records begin."""
    rest, number = b"", 1
    while data := reader.read(BLOCK_BYTES):
        data = rest + data
        offsets, end = _offsets(data)
        if len(offsets):
            yield data, offsets
        number += len(offsets)
        rest = data[end:]
        if rest and rest[0] * _WORD < HEADER_BYTES:
            source.refuse(number, f"a record of {rest[0] * _WORD} bytes; what follows cannot be told apart")
            return
    if rest:
        source.refuse(number, f"the record is cut off after {len(rest)} of {rest[0] * _WORD} bytes")


def _offsets(data: bytes) -> tuple[I64, int]:
    """Return where the whole records begin, and where the last one ends: at a cut, or at a length that cannot be."""
    size = data[0] * _WORD
    if size >= HEADER_BYTES:
        count = len(data) // size
        # Each record says where the next one begins, so if all that lie at even distances say the same, these are all.
        if (np.frombuffer(data, np.uint8, count * size)[::size] == data[0]).all():
            return np.arange(count) * size, count * size
    offsets, at, least = [], 0, HEADER_BYTES // _WORD
    while at < len(data) and data[at] >= least and at + data[at] * _WORD <= len(data):
        offsets.append(at)
        at += data[at] * _WORD
    return np.array(offsets, np.int64), at


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

    def __init__(self, source: Source, symbols: Symbols, version: int, venue: str | None) -> None:
        self._source, self._symbols, self._venue = source, symbols, venue
        self._mapping = dbn_records.mapping(version)
        self._assembly, self._ladders = Assembly(), Ladders()
        self._first = 1  # the number of a block's first record
        self._tellers: dict[str, npt.NDArray[np.int16]] = {}

    def chunk(self, data: bytes, offsets: I64) -> Chunk:
        """Return the rows of the records at the offsets; empty if they have none."""
        numbers = np.frombuffer(data, np.uint8)[offsets + 1]
        found = np.flatnonzero(np.bincount(numbers)).tolist()
        told = self._told(found, numbers)
        if SYMBOL_MAPPING in found:
            self._rename(data, offsets, np.flatnonzero(numbers == SYMBOL_MAPPING))
        said = [self._events(number, data, offsets, np.flatnonzero(numbers == number)) for number in told]
        self._first += len(offsets)
        events = dbn_events.merged([events for events in said if events is not None])
        return self._rows(events) if events else {}

    def instead(self) -> str:
        """Return what the records were, for the message that none of them could be used."""
        seen = ", ".join(self._source.passed_over)
        return f": there is {seen}; fetch another schema" if seen else ""

    def _told(self, found: list[int], numbers: U8) -> list[int]:
        """Return the kinds that have rows, and count the records of the others."""
        told = [number for number in found if number in KINDS]
        # Beside real trades and quotes bars say nothing new.
        told = [number for number in told if not KINDS[number].interval_ns] or told
        for number in found:
            if number not in told:
                count = int(np.count_nonzero(numbers == number))
                self._source.pass_over(dbn_records.name(number), count)
        return told

    def _rename(self, data: bytes, offsets: I64, places: I64) -> None:
        # Mappings come before what they name, so it does no harm that they hold for the whole block.
        for mapping in _view(data, offsets[self._whole(data, offsets, places, self._mapping)], self._mapping):
            self._symbols.rename(int(mapping["instrument"]), dbn_header.text(mapping["symbol"]))

    def _whole(self, data: bytes, offsets: I64, places: I64, dtype: np.dtype[Any]) -> I64:
        """Return the places of the records that are as long as they should be."""
        excess = np.frombuffer(data, np.uint8)[offsets[places]] * np.int64(_WORD) - dtype.itemsize
        wrong = (excess != 0) & (excess != _TS_OUT)
        return self._without(places, wrong, f"the record has not the {dtype.itemsize} bytes of its kind")

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
        context = Context(self._symbols.names, self._ladders)
        events = dbn_records.events(kind, records, places, code, context)
        return events._replace(tables=[self._own(number, events.code, rows) for rows in events.tables])

    def _own(self, number: int, code: I32, rows: TableRows) -> TableRows:
        """Return the rows of the instruments whose story in this table a kind tells, which it does if it is first."""
        tellers = self._tellers.get(rows.table, np.zeros(0, np.int16))
        if len(tellers) < len(self._symbols.names):
            tellers = np.append(tellers, np.full(len(self._symbols.names) - len(tellers), _NOBODY, np.int16))
            self._tellers[rows.table] = tellers
        codes = code if rows.some is None else code[rows.some]
        tellers[codes[tellers[codes] == _NOBODY]] = number
        own = tellers[codes] == number
        if own.all():
            return rows
        self._source.pass_over(f"{rows.table} told twice", int(np.count_nonzero(~own)))
        return rows.picked(np.flatnonzero(own))

    def _rows(self, events: Events) -> Chunk:
        shared = {
            "ts_recv": events.ts_recv,
            "ts_event": events.ts_event,
            "venue_seq": with_nulls(events.sequence),
            "symbol": _words(events.code, self._symbols.names),
            "venue": self._venue or _words(events.code, self._symbols.venues),
        }
        return self._assembly.chunk(shared, *(rows.part() for rows in events.tables))


def _words(codes: I32, words: list[str]) -> pa.DictionaryArray:
    """Return words by their codes; the dictionary holds those in use, each once."""
    places: dict[str, int] = {}
    lookup = np.zeros(len(words), np.int32)
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        lookup[code] = places.setdefault(words[code], len(places))
    return pa.DictionaryArray.from_arrays(lookup[codes], pa.array(list(places), pa.string()))
