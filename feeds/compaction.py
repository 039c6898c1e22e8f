"""Makes a recording in Parquet of a log.

What the log says between the rows is said by the rows in a recording: the first row of each instrument and table after
a gap is flagged GAP, and keyframes are added (:mod:`feeds.keyframes`). A new epoch whose times go on is a gap too; its
``seq`` goes on behind that of the epoch before. One whose times run back, such as a loop, is a *take* of its own: a log
``NAME`` becomes ``NAME``, ``NAME-2`` and so on.

This module must not know of event loops: it reads and writes as fast as the disk lets it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.errors import RecordingError
from feeds.instruments import Instruments
from feeds.keyframes import EVERY_ROWS, Keyframes
from feeds.records import GAP, MISSING, Batch, Event, Table
from feeds.store import Recording, write_recording
from feeds.tapelog import Damage, Lock, SegmentReader, read_log, repair, segments

TableT = TypeVar("TableT", bound=Table)


class Compacted(msgspec.Struct, frozen=True, kw_only=True):
    """What a log has become.

    Attributes:
        recordings: One for each take; none if the log had no rows.
        damage: What was wrong with the log, segment by segment.
        log_bytes: Bytes that the log had, in segments that are no longer there.
    """

    recordings: tuple[Recording, ...]
    damage: tuple[Damage, ...]
    log_bytes: int


def compact(prefix: str | os.PathLike[str], *, keyframe_rows: int = EVERY_ROWS) -> Compacted:
    """Make recordings of a log, and remove it once they are safely on disk.

    If it is interrupted, the log is as it was and can be compacted again; takes that are recordings already stay. No
    other recording is written over.

    Args:
        prefix: Folder and name.
        keyframe_rows: Rows of books after which a keyframe comes; 0: there are none, and ``seq`` is as it was.

    Raises:
        RecordingError: There is no such log, it is being recorded, it cannot be read or made a recording of, or there
            is another recording of that name. The log is still there.
    """
    path = Path(prefix)
    if not (paths := segments(path)):
        raise RecordingError(f"{path}: there is no log to compact; looked for {path.name}.0001.tape")
    lock = Lock(paths[0])
    try:
        damage = [found for segment in paths if (found := repair(segment)) is not None]
        paths = segments(path)
        recordings = _written(path, paths, keyframe_rows)
        size = sum(segment.stat().st_size for segment in paths)
        for segment in reversed(paths):  # the first one, with the lock, goes last
            segment.unlink()
    except OSError as error:
        raise RecordingError(f"{path}: cannot be compacted ({error}); the log is still there") from error
    finally:
        lock.close()
    return Compacted(recordings=tuple(recordings), damage=tuple(damage), log_bytes=size)


def _written(prefix: Path, paths: Sequence[Path], keyframe_rows: int) -> list[Recording]:
    if not paths:
        return []
    header = SegmentReader(paths[0])
    for _ in header.events():
        break
    assert header.header is not None, "it was repaired"
    instruments = Instruments(header.header.instruments)
    recordings = []
    for number, take in groupby(Takes(len(instruments)).cut(read_log(paths)), key=itemgetter(0)):
        path = prefix if number == 1 else prefix.with_name(f"{prefix.name}-{number}")
        batches: Iterator[Batch] = (batch for _, batch in take)
        if keyframe_rows:
            batches = map(Keyframes(keyframe_rows).add, batches)
        recordings.append(write_recording(path, instruments, batches, replace=False))
    return recordings


class Takes:
    """Cuts the events of a log into takes whose rows are in order, and flags what follows a gap.

    Args:
        instruments: How many there are.
    """

    def __init__(self, instruments: int) -> None:
        self._missed = np.zeros((3, instruments), np.bool_)  # by table: whose next row follows a gap
        self._take = 1
        self._shift = 0
        self._last_ts = self._last_seq = MISSING

    def cut(self, events: Iterator[Event]) -> Iterator[tuple[int, Batch]]:
        """Yield each batch that has rows with the number of its take, counted from 1."""
        fresh = False
        for event in events:
            if isinstance(event, Batch):
                if len(event):
                    yield self._take_in(event, fresh)
                    fresh = False
            elif event.kind != "end" and self._last_ts != MISSING:
                self._missed[:] = True
                fresh = fresh or event.kind == "epoch"

    def _take_in(self, batch: Batch, fresh: bool) -> tuple[int, Batch]:
        tables = [table for table in (batch.trades, batch.quotes, batch.levels) if len(table)]
        if fresh:
            self._begin(min(int(t.ts_recv[0]) for t in tables), min(int(t.seq[0]) for t in tables))
        self._last_ts = max(int(t.ts_recv[-1]) for t in tables)
        self._last_seq = max(int(t.seq[-1]) for t in tables) + self._shift
        return self._take, Batch(
            ts=batch.ts,
            trades=self._mended(batch.trades, self._missed[0]),
            quotes=self._mended(batch.quotes, self._missed[1]),
            levels=self._mended(batch.levels, self._missed[2]),
        )

    def _begin(self, ts: int, seq: int) -> None:
        """An epoch begins with a row of that ``ts_recv`` and ``seq``."""
        if ts < self._last_ts:
            self._take += 1
            self._shift = 0
            self._missed[:] = False
        else:
            self._shift = max(0, self._last_seq + 1 - seq)

    def _mended(self, table: TableT, missed: npt.NDArray[np.bool_]) -> TableT:
        """Return a table with its numbers behind those of the epoch before, and GAP where something is missing."""
        changes: dict[str, npt.NDArray[Any]] = {}
        if self._shift:
            changes["seq"] = table.seq + self._shift
        if len(table) and missed.any():
            ids, first = np.unique(table.instrument, return_index=True)
            flags = table.flags.copy()
            flags[first[missed[ids]]] |= GAP
            missed[ids] = False
            changes["flags"] = flags
        return msgspec.structs.replace(table, **changes) if changes else table
