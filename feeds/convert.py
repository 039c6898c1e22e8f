"""Recordings made of files in any of the formats of :mod:`feeds.formats`.

It puts the pieces together: sources in one order, what is to be said about them, and the files of the layout. What
any format means it must not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa

from feeds import formats, layout
from feeds.errors import RecordingError
from feeds.formats.format import Format, ReadOptions
from feeds.formats.merge import Tape, merged, times
from feeds.formats.source import Source, open_sources
from feeds.inference import Inference
from feeds.instruments import Instrument, Instruments
from feeds.records import MISSING
from feeds.store import Silences, instruments_file, path_of, read_instruments, write_instruments
from feeds.survey import Survey, TableSummary
from feeds.tablefile import ROW_GROUP, TableFile, published
from feeds.tapelog import segments

#: With more sources than these, where each begins is looked up first, so that they need not all be open at once.
MANY: Final = 16

_PART: Final = re.compile(r"(.+)\.(trades|quotes|book|instruments)\.parquet")


class ConvertOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to convert.

    Attributes:
        format: Name of the format of all sources; None to tell each by its content.
        symbol: The instrument, for sources that name none.
        venue: What the column ``venue`` says instead of what the sources do.
        skip_bad: Leave bad rows out and count them instead of stopping at the first.
        force: Write over a recording of that name.
    """

    format: str | None = None
    symbol: str | None = None
    venue: str | None = None
    skip_bad: bool = False
    force: bool = False


class SourceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What was read of one source.

    Attributes:
        name: Its path, and the member of an archive.
        format: The format it was read as.
        refused: Bad rows left out.
        complaints: What was wrong with the first of them.
        passed_over: How many sound records had no place in a recording, by what they are.
    """

    name: str
    format: str
    refused: int
    complaints: tuple[str, ...]
    passed_over: dict[str, int]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion has found.

    Attributes:
        sources: In the order in which they were named.
        rows: In all tables.
        start_ns: First ``ts_recv``, ns UTC.
        end_ns: Last ``ts_recv``, ns UTC.
        silences: Stretches of more than a second in which nothing was received.
        tables: Those that have rows.
        instruments: With their precisions.
    """

    sources: tuple[SourceSummary, ...]
    rows: int
    start_ns: int
    end_ns: int
    silences: Silences
    tables: tuple[TableSummary, ...]
    instruments: Instruments


#: Is told how many bytes of all sources have been read, and how many there are.
Progress = Callable[[int, int], object]


class Conversion:
    """Sources that are to become one recording.

    Args:
        paths: Files, archives, or the prefixes of recordings; of rows received at the same instant those of the
            source that is named first come first.
        options: How to read them.
    """

    def __init__(self, paths: Sequence[Path], options: ConvertOptions) -> None:
        self._paths, self._options = paths, options
        self._sources: list[tuple[int, Source, Format]] = []
        self._known: dict[str, Instrument] = {}

    def _find(self) -> None:
        """Find the sources, with their ranks and formats, and what is known of their instruments."""
        self._sources.clear()
        ranks: dict[Path, int] = {}  # of recordings, all of whose files have one
        for path in (file for named in self._paths for file in _files(named)):
            part = _PART.fullmatch(path.name)
            if part and part[2] == "instruments":
                self._known |= {instrument.symbol: instrument for instrument in read_instruments(path)}
                continue
            for source in open_sources(path, skip_bad=self._options.skip_bad):
                rank = len(self._sources)
                if part:
                    rank = ranks.setdefault(path.with_name(part[1]), rank)
                self._sources.append((rank, source, self._format(source)))

    def _format(self, source: Source) -> Format:
        name = self._options.format
        return formats.detect(source) if name is None else formats.by_name(name)

    def check(self, progress: Progress | None = None) -> Summary:
        """Read everything and write nothing; here books are looked at too.

        Raises:
            RecordingError: A source is missing, of no known format or cannot be read; or a row is bad and bad rows
                are not skipped.
        """
        return self._run(Survey(books=True), [], progress)

    def write(self, prefix: Path, progress: Progress | None = None) -> Summary:
        """Write a recording. Every file is whole before it gets its name.

        Args:
            prefix: Folder and name; an existing folder.
            progress: Called now and then.

        Raises:
            RecordingError: As :meth:`check`; there is such a recording already, or a log that will become it; or it
                cannot be written.
        """
        existing = [path for part in (*layout.TABLES, "instruments") if (path := _part(prefix, part)).exists()]
        if existing and not self._options.force:
            raise RecordingError(f"{existing[0]}: is there already; choose another name, or write over it with --force")
        if not prefix.parent.is_dir():
            raise RecordingError(f"{prefix.parent}: there is no such folder")
        if log := segments(prefix):
            raise RecordingError(
                f"{log[0]}: is to become a recording of that name; choose another, or compact it first"
            )
        encoding = _Encoding()
        writers = [_Writer(table, _part(prefix, table), encoding) for table in layout.TABLES]
        instruments = instruments_file(_part(prefix, "instruments"))
        with published(prefix, [writer.file for writer in writers], instruments):
            with encoding:
                summary = self._run(Survey(), writers, progress)
                for writer in writers:
                    writer.finish()
            write_instruments(instruments, summary.instruments)
        return summary

    def _run(self, survey: Survey, writers: Sequence[_Writer], progress: Progress | None) -> Summary:
        self._find()
        inference, venues = Inference(), _Venues()
        rows = dict.fromkeys(layout.TABLES, 0)
        for chunk in merged(list(self._tapes())):
            survey.add(chunk)
            for table, batch in chunk.items():
                venues.check(batch)
                inference.update(table, Path(table), rows[table], batch)
                rows[table] += batch.num_rows
            for writer in writers:
                if writer.table in chunk:
                    writer.add(chunk[writer.table])
            if progress is not None:
                progress(sum(s.consumed for _, s, _ in self._sources), sum(s.size for _, s, _ in self._sources))
        if not sum(rows.values()):
            raise RecordingError("the sources hold no rows that could be used")
        return self._summary(survey, sum(rows.values()), inference.instruments())

    def _tapes(self) -> Iterator[Tape]:
        options = ReadOptions(symbol=self._options.symbol, venue=self._options.venue)
        for rank, source, known in self._sources:
            start = _start(source, known, options) if len(self._sources) > MANY else MISSING
            yield Tape(rank, start, partial(known.read, source, options))

    def _summary(self, survey: Survey, rows: int, inferred: Instruments) -> Summary:
        sources = tuple(
            SourceSummary(
                name=s.name,
                format=f.name,
                refused=s.refused,
                complaints=tuple(s.complaints),
                passed_over=dict(s.passed_over),
            )
            for _, s, f in self._sources
        )
        return Summary(
            sources=sources,
            rows=rows,
            start_ns=survey.start_ns,
            end_ns=survey.end_ns,
            silences=survey.silences,
            tables=survey.tables(),
            instruments=Instruments(_settled(i, self._known.get(i.symbol)) for i in inferred),
        )


def _files(path: Path) -> list[Path]:
    """Return the files that a path means: its own, or those of the recording with that prefix."""
    if path.is_dir():
        raise RecordingError(f"{path}: is a folder; name the files in it")
    parts = [_part(path, part) for part in (*layout.TABLES, "instruments")]
    return [path] if path.exists() else [part for part in parts if part.exists()] or [path]


def _part(prefix: Path, part: str) -> Path:
    return path_of(prefix.parent, prefix.name, part)


def _start(source: Source, known: Format, options: ReadOptions) -> int:
    """Return the first ``ts_recv`` of a source, read apart so that nothing is counted twice."""
    for chunk in known.read(source.again(skip_bad=True), options):
        if chunk:
            return min(int(times(rows)[0]) for rows in chunk.values())
    return MISSING


def _settled(inferred: Instrument, known: Instrument | None) -> Instrument:
    """Return what the source's own file of instruments says, if the rows bear it out."""
    fits = known is not None and (
        known.price_precision >= inferred.price_precision and known.qty_precision >= inferred.qty_precision
    )
    return known if known is not None and fits else inferred


class _Venues:
    """Sees to it that no symbol stands for the instruments of two venues: rows would be told apart no more."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}

    def check(self, rows: pa.RecordBatch) -> None:
        symbol, venue = rows.column("symbol"), rows.column("venue")
        width = len(venue.dictionary)
        pairs = np.bincount(symbol.indices.to_numpy() * np.int64(width) + venue.indices.to_numpy())
        for pair in np.flatnonzero(pairs).tolist():
            name, place = symbol.dictionary[pair // width].as_py(), venue.dictionary[pair % width].as_py()
            if (other := self._of.setdefault(name, place)) != place:
                raise RecordingError(
                    f"{name} is there from {other} and from {place}; convert them apart, or say with --venue that both "
                    "are one"
                )


class _Encoding:
    """A thread that encodes rows while the next ones are read: pyarrow works without the interpreter's lock.

    At most one piece of work is under way, so memory is bounded by the rows at hand and those being written. On leaving
    it nothing is under way, whatever happened.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "encoding")
        self._under_way: Future[object] | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()

    def start(self, work: Callable[[], object]) -> None:
        """Start the work once what is under way is done, and raise what went wrong with that."""
        self.wait()
        self._under_way = self._thread.submit(work)

    def wait(self) -> None:
        """Wait for what is under way, and raise what went wrong with it."""
        if self._under_way is not None:
            self._under_way.result()


class _Writer:
    """One table on its way into its file: rows are gathered into whole row groups."""

    def __init__(self, table: str, path: Path, encoding: _Encoding) -> None:
        self.table = table
        self._encoding = encoding
        self.file = TableFile(path, layout.SCHEMAS[table])
        self._parts: list[pa.RecordBatch] = []
        self._gathered = 0

    def add(self, rows: pa.RecordBatch) -> None:
        self._parts.append(rows)
        self._gathered += rows.num_rows
        if self._gathered >= ROW_GROUP:
            self._write(self._gathered - self._gathered % ROW_GROUP)

    def _write(self, count: int) -> None:
        rows = pa.Table.from_batches(self._parts).unify_dictionaries()
        self._encoding.start(partial(self.file.write, rows.slice(0, count)))
        self._parts, self._gathered = rows.slice(count).to_batches(), rows.num_rows - count

    def finish(self) -> None:
        """Write what is left."""
        if self._gathered:
            self._write(self._gathered)
        self._encoding.start(self.file.finish)
