"""Records a feed: every event goes to a log on disk, beside whatever else is done with it.

:meth:`Recorder.take` is sync and costs an append to a list. A few times a second what was taken goes to a worker thread
as one group, which writes it; nobody waits for the disk. What is not written yet is bounded: beyond that, and while
the disk refuses, rows are dropped and counted, the market goes on, and a gap marker stands where they are missing.

If the process is killed, at most the rows of the last ``flush_s`` are lost, and those that were just being written. If
the machine loses its power, those of ``sync_s`` more, as far as the disk keeps its word.

:class:`Tape` is the log with its rotation and has no idea of time; this module must not know Parquet
(:mod:`feeds.compaction` makes that of a log).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import msgspec
import trio

from feeds import clock
from feeds.errors import RecordingError
from feeds.feed import Feed
from feeds.keyframes import EVERY_ROWS
from feeds.layout import TABLES
from feeds.records import Batch, Event, Marker
from feeds.tapelog import (
    MARKER,
    ROWS,
    Header,
    Lock,
    LogWriter,
    SegmentReader,
    repair,
    rows_of,
    segment_number,
    segment_path,
    segments,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: After the disk has refused, it is tried again this often.
RETRY_S: Final = 5.0


class RecorderOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and how a feed is recorded.

    Attributes:
        path: Folder and name of the recording.
        flush_s: What is taken is written this often.
        sync_s: The disk is asked to keep it this often at most.
        buffer_rows: Rows that may wait to be written, besides those being written; one batch may in any case.
        segment_bytes: A segment of the log ends when it has this many bytes.
        segment_s: And when it is this old.
        keyframe_rows: Rows of books between two keyframes in the recording; 0: none.
    """

    path: str
    flush_s: Annotated[float, msgspec.Meta(ge=0.01, le=60)] = 0.2
    sync_s: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    buffer_rows: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000
    segment_bytes: Annotated[int, msgspec.Meta(ge=1)] = 256 << 20
    segment_s: Annotated[float, msgspec.Meta(gt=0)] = 3600.0
    keyframe_rows: Annotated[int, msgspec.Meta(ge=0)] = EVERY_ROWS


class RecorderStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded so far.

    Attributes:
        state: ``recording``, ``refused`` (by the disk; it is tried again) or ``ended``.
        rows: Rows written.
        size: Bytes written, in all segments.
        segments: Segments begun.
        lost: Rows that were not recorded, because the disk refused them or was too slow.
        errors: How often the disk has refused.
        waiting: Rows taken and not written yet.
        waiting_s: For how long the oldest of them has waited, at most.
    """

    state: Literal["recording", "refused", "ended"]
    rows: int
    size: int
    segments: int
    lost: int
    errors: int
    waiting: int
    waiting_s: float


class Tape:
    """A log that is written, segment after segment; blocks.

    Attributes:
        rows: Rows appended.
        size: Bytes appended.
        begun: Segments begun.

    Args:
        prefix: Folder and name.
        header: Of every segment.
        options: When a segment ends, and how often the disk is asked to keep it.
        now: Monotonic time, s.

    Raises:
        OSError: The first segment cannot be written.
        RecordingError: The log is in use.
    """

    def __init__(self, prefix: Path, header: Header, options: RecorderOptions, now: float) -> None:
        self.rows = self.size = self.begun = self._synced_size = 0
        self._prefix, self._header, self._options = prefix, header, options
        earlier = segments(prefix)
        self._number = segment_number(earlier[-1]) if earlier else 0
        self._began = self._synced = now
        self._segment: LogWriter | None = None
        self._begin(now)
        self._lock = Lock(segments(prefix)[0])

    def _begin(self, now: float) -> LogWriter:
        self._segment = LogWriter(segment_path(self._prefix, self._number + 1), self._header)
        self._number += 1
        self.begun += 1
        self.size += self._segment.size
        self._began = self._synced = now
        self._synced_size = self.size
        return self._segment

    def write(self, events: Sequence[Event], now: float) -> None:
        """Append events: neighbouring batches as one group of rows.

        Raises:
            OSError: The disk refused; of the events those are written that ``rows`` counts. The next call begins a
                new segment.
        """
        try:
            segment = self._segment or self._begin(now)
            if segment.size >= self._options.segment_bytes or now - self._began >= self._options.segment_s:
                segment.sync()
                segment.close()
                self._segment = None
                segment = self._begin(now)
            for is_marker, run in groupby(events, key=lambda event: isinstance(event, Marker)):
                self._append(segment, is_marker, run)
            if self.owes_sync(now):
                segment.sync()
                self._synced, self._synced_size = now, self.size
        except OSError:
            # After a failed write or sync nobody knows what the disk has of this file: leave it as it is.
            failed, self._segment = self._segment, None
            if failed is not None:
                failed.close()
            raise

    def owes_sync(self, now: float) -> bool:
        """Whether something was appended that the disk should be asked to keep by now."""
        return self.size > self._synced_size and now - self._synced >= self._options.sync_s

    def _append(self, segment: LogWriter, is_marker: bool, run: Iterable[Event]) -> None:
        before = segment.size
        if is_marker:
            for marker in run:
                segment.append(MARKER, msgspec.json.encode(marker))
        elif batches := [event for event in run if isinstance(event, Batch) and len(event)]:
            segment.append(ROWS, rows_of(batches))
            self.rows += sum(map(len, batches))
        self.size += segment.size - before

    def close(self) -> None:
        """End the log.

        Raises:
            OSError: The disk did not keep the end of it.
        """
        try:
            if self._segment is not None:
                self._segment.sync()
        finally:
            if self._segment is not None:
                self._segment.close()
            self._lock.close()


def open_tape(feed: Feed, options: RecorderOptions, now: float) -> Tape:
    """Begin the log of a feed; one that was left by a process that was killed is repaired and goes on.

    Raises:
        RecordingError: There is a recording of that name, it is being recorded, its log is of other instruments, or
            the folder cannot be written.
    """
    prefix = Path(options.path)
    header = Header(feed=feed.name, mode=feed.mode, instruments=tuple(feed.instruments))
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        _refuse_recordings(prefix)
        if earlier := segments(prefix):
            _take_up(prefix, earlier, header)
        return Tape(prefix, header, options, now)
    except OSError as error:
        raise RecordingError(f"{prefix}: cannot be recorded to ({error}); check the folder and its space") from error


def _refuse_recordings(prefix: Path) -> None:
    name = re.compile(rf"{re.escape(prefix.name)}(-\d+)?\.({'|'.join(TABLES)})\.parquet")
    for file in prefix.parent.iterdir():
        if name.fullmatch(file.name):
            raise RecordingError(f"{file}: there is a recording of that name; choose another, or move it away")


def _take_up(prefix: Path, earlier: Sequence[Path], header: Header) -> None:
    """Repair a log that was left, and make sure that it can go on."""
    lock = Lock(earlier[0])
    try:
        for path in earlier:
            if (damage := repair(path)) is not None:
                logger.warning("%s", damage)
        for path in segments(prefix):
            reader = SegmentReader(path)
            next(reader.events(), None)
            if reader.header is None or reader.header.instruments != header.instruments:
                raise RecordingError(f"{path}: has other instruments; make a recording of it: ticker compact {prefix}")
    finally:
        lock.close()
    logger.warning("%s: there is a log that was not finished; it goes on after a gap", prefix)


class Recorder:
    """Records a feed; see the module.

    Args:
        feed: Where the events come from.
        options: Where they go.
    """

    def __init__(self, feed: Feed, options: RecorderOptions) -> None:
        self._feed = feed
        self._options = options
        self._limiter = trio.CapacityLimiter(1)
        self._state: Literal["recording", "refused", "ended"] = "recording"
        self._tape: Tape | None = None
        self._taken: list[Event] = []
        self._waiting = self._lost = self._errors = 0
        self._writing = 0  # rows that the worker thread has
        self._written_at = self._retry_at = 0.0
        self._hole: Marker | None = None  # what is to be said before the next event

    def take(self, event: Event) -> None:
        """Take in an event; rows for which there is no room are dropped and counted."""
        if isinstance(event, Marker):
            self._take_marker(event)
        elif self._state != "recording" or not self._has_room(len(event)):
            self._drop(len(event), event.ts)
        else:
            if self._hole is not None:
                self._taken.append(self._hole)
                self._hole = None
            self._taken.append(event)
            self._waiting += len(event)

    def _has_room(self, rows: int) -> bool:
        """Whether rows may wait too; after some were dropped, none may before the others were written."""
        return not self._waiting or (self._hole is None and self._waiting + rows <= self._options.buffer_rows)

    def _take_marker(self, marker: Marker) -> None:
        if self._hole is None and self._state == "recording":
            self._taken.append(marker)
        elif marker.kind != "end":
            self._note(marker)

    def _note(self, hole: Marker) -> None:
        """Have a marker stand where something is missing; the beginning of an epoch says more than a gap."""
        if self._hole is None or hole.kind == "epoch":
            self._hole = hole

    def _drop(self, rows: int, ts: int) -> None:
        if rows:
            self._lost += rows
            self._note(Marker(kind="gap", ts=ts, reason="rows were not recorded: the disk refused or was too slow"))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the log, write what is taken until cancelled, and then the rest.

        A cancel waits for what is being written; afterwards the log is closed.

        Raises:
            RecordingError: The log cannot be begun; see :func:`open_tape`.
        """
        self._written_at = trio.current_time()
        self._tape = await self._in_thread(partial(open_tape, self._feed, self._options, self._written_at))
        task_status.started()
        try:
            while True:
                await trio.sleep(self._options.flush_s)
                await self._flush(self._tape)
        finally:
            # No deadline: a write cannot be abandoned midway, and without the close nobody else may use the log.
            with trio.CancelScope(shield=True):
                await self._flush(self._tape)
                await self._close(self._tape)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    async def _flush(self, tape: Tape) -> None:
        """Write what was taken so far; while the disk refuses, try now and then whether it still does."""
        now = trio.current_time()
        if self._state == "refused":
            if now >= self._retry_at:
                await self._try_again(tape, now)
            return
        events, self._taken = self._taken, []
        self._writing, self._waiting = self._waiting, 0
        target = tape.rows + self._writing
        try:
            if events or tape.owes_sync(now):
                await self._in_thread(partial(tape.write, events, now))
            self._written_at = now
        except OSError as error:
            self._refused(error, now, [*events, *self._taken], target - tape.rows + self._waiting)
            self._taken, self._waiting = [], 0
        self._writing = 0

    def _refused(self, error: OSError, now: float, events: Sequence[Event], rows: int) -> None:
        self._state, self._retry_at = "refused", now + RETRY_S
        self._errors += 1
        for event in events:
            if isinstance(event, Marker) and event.kind == "epoch":
                self._note(event)
        self._drop(rows, events[-1].ts if events else clock.wall_ns())
        logger.error(
            "recording %s has stopped: %s; %d rows are lost and the market goes on; trying again every %g s",
            self._options.path, error, self._lost, RETRY_S,
        )  # fmt: skip

    async def _try_again(self, tape: Tape, now: float) -> None:
        hole = self._hole or Marker(kind="gap", ts=clock.wall_ns(), reason="the disk refused")
        self._hole = None
        try:
            await self._in_thread(partial(tape.write, [hole], now))
        except OSError:
            self._errors += 1
            self._retry_at = now + RETRY_S
            self._note(hole)
            return
        self._state, self._written_at = "recording", now
        logger.warning("recording %s goes on after a gap; %d rows are lost", self._options.path, self._lost)

    async def _close(self, tape: Tape) -> None:
        self._state = "ended"
        try:
            await self._in_thread(tape.close)
        except OSError as error:
            self._errors += 1
            logger.error("recording %s: the disk did not keep the end: %s", self._options.path, error)

    def statistics(self) -> RecorderStatistics:
        """Return what was recorded so far."""
        tape, waiting = self._tape, self._waiting + self._writing
        return RecorderStatistics(
            state=self._state,
            rows=tape.rows if tape else 0,
            size=tape.size if tape else 0,
            segments=tape.begun if tape else 0,
            lost=self._lost,
            errors=self._errors,
            waiting=waiting,
            waiting_s=trio.current_time() - self._written_at if waiting else 0.0,
        )
