"""A recorded tape played back: from files to a channel, as its playback asks for.

:mod:`feeds.merge` says in which order rows come, :mod:`feeds.pace` when, and :mod:`feeds.playback` what its
listeners want; here is what waits: for time, for commands, for files and for the reader. Row groups are read ahead in
a worker thread, one per table. This module must not know of Parquet or of who listens.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any

import msgspec
import trio

from feeds.clock import KEEP, GapPolicy, parse_gap
from feeds.errors import FeedError, OptionError
from feeds.instants import parse_duration, parse_instant
from feeds.merge import Events, Merge, Track, whole_instants
from feeds.merged import open_recordings
from feeds.pace import BATCH_ROWS, Pace
from feeds.playback import Playback, ReplayStatistics, checked_speed
from feeds.records import Batch, Event, Marker, Table
from feeds.sources import Playable


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Options of a replay, as a configuration file has them.

    Attributes:
        path: What :func:`feeds.store.open_recording` takes; several are merged, see :mod:`feeds.merged`.
        offset: By name of a recording, what is added to its receive times ("+250ms").
        speed: Tape seconds per second, 0.01 to 10,000, or infinity for as fast as possible.
        loop: Whether to begin again at the end.
        gap: "keep" plays silences as recorded; "cap:SECONDS" shortens longer ones to that; "skip" jumps over those
            of more than a second.
        start_paused: Whether to stand still before the first row.
        from_: Begin at this instant, as :func:`feeds.instants.parse_instant` takes it; empty for the start.
        to: End before this instant; empty for the end.
    """

    path: str | tuple[str, ...]
    offset: dict[str, str] = {}
    speed: float = 1.0
    loop: bool = False
    gap: str = "keep"
    start_paused: bool = False
    from_: str = ""
    to: str = ""

    def __post_init__(self) -> None:
        if not self.path:
            raise OptionError("path: there is no recording to replay")
        checked_speed(self.speed)
        parse_gap(self.gap)
        for offset in self.offset.values():
            parse_duration(offset)
        for instant in (self.from_, self.to):
            if instant:
                parse_instant(instant, 0)


def open_replay(
    options: ReplayOptions, *, hold_end: bool = False, wait_start: Callable[[], Awaitable[None]] | None = None
) -> ReplayFeed:
    """Return the feed that the options ask for; ``hold_end`` and ``wait_start`` as :class:`ReplayFeed` has them.

    Raises:
        RecordingError: A recording cannot be opened.
        OptionError: The options do not fit the recordings.
    """
    paths = (options.path,) if isinstance(options.path, str) else options.path
    tape = open_recordings(paths, {name: parse_duration(text) for name, text in options.offset.items()})
    return ReplayFeed(
        tape,
        speed=options.speed,
        loop=options.loop,
        gap=parse_gap(options.gap),
        start_paused=options.start_paused,
        from_ns=parse_instant(options.from_, tape.start_ns) if options.from_ else None,
        to_ns=parse_instant(options.to, tape.start_ns) if options.to else None,
        hold_end=hold_end,
        wait_start=wait_start,
    )


async def _refill_ahead(track: Track[Any], chunks: trio.MemoryReceiveChannel[Any]) -> None:
    if track.hungry:
        try:
            track.load(await chunks.receive())
        except trio.EndOfChannel:
            track.load(None)


async def _read_ahead(
    chunks: Generator[Table, None, None], out: trio.MemorySendChannel[Table], limiter: trio.CapacityLimiter
) -> None:
    """Send chunks as they are wanted, each read in a worker thread while the one before it is played.

    A cancel waits for the chunk being read; nothing of the file stays open after it.
    """
    with out, contextlib.closing(chunks):
        while (chunk := await trio.to_thread.run_sync(next, chunks, None, limiter=limiter)) is not None:
            await out.send(chunk)


@contextlib.contextmanager
def _single_error() -> Iterator[None]:
    """Let what goes wrong in a nursery leave it as itself: whoever runs a feed catches FeedError, not groups of it.

    When several things went wrong at once the others are in the traceback, as the context of the one raised.
    """
    try:
        yield
    except ExceptionGroup as group:
        error: Exception = group.subgroup(FeedError) or group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error  # noqa: B904 - it has a cause of its own, which `from` would replace


class _Bell:
    """Wakes the one task that plays the tape."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        self._rung.set()

    def reset(self) -> None:
        """Forget what was rung for before the caller looks at it."""
        if self._rung.is_set():
            self._rung = trio.Event()

    async def wait(self, until: float) -> None:
        """Wait until it is rung, at most until a monotonic time (s)."""
        with trio.move_on_at(until):
            await self._rung.wait()


class ReplayFeed:
    """Plays a recording; a :class:`feeds.feed.Feed`.

    A recording whose book does not begin with a snapshot is played as it is.

    Attributes:
        name: The recording's.
        mode: "replay".
        instruments: The recording's.
        playback: Its control, usable at any time from any task of the same loop.
    """

    def __init__(
        self,
        recording: Playable,
        *,
        speed: float = 1.0,
        loop: bool = False,
        gap: GapPolicy = KEEP,
        start_paused: bool = False,
        from_ns: int | None = None,
        to_ns: int | None = None,
        hold_end: bool = False,
        wait_start: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Prepare to play; nothing is read yet.

        Args:
            recording: The tape: a :class:`feeds.store.Recording` or a :class:`feeds.merged.MergedRecording`.
            speed: Tape seconds per second, 0.01 to 10,000, or ``math.inf``.
            loop: Whether to begin again at the end, with a new epoch and the recorded times.
            gap: What becomes of silences.
            start_paused: Whether to stand still before the first row.
            from_ns: Play nothing before this instant (ns UTC), but begin with the market as it then was.
            to_ns: Play nothing at or after this instant (ns UTC).
            hold_end: Whether :meth:`run` waits at the end of the tape for somebody to seek; it then returns only
                after :meth:`~feeds.playback.Playback.stop`.
            wait_start: Awaited once, after the first epoch marker and before the first row; a server holds the
                tape with it until somebody listens.

        Raises:
            OptionError: The speed is out of range, or the tape has nothing between ``from_ns`` and ``to_ns``.
        """
        self.name = recording.name
        self.mode = "replay"
        self.instruments = recording.instruments
        start_ns = recording.start_ns if from_ns is None else max(from_ns, recording.start_ns)
        end_ns = recording.end_ns if to_ns is None else min(to_ns - 1, recording.end_ns)
        if start_ns > end_ns:
            raise OptionError(f"recording {recording.name} has nothing between 'from' and 'to'")
        self.playback = Playback(start_ns, end_ns, speed=speed, paused=start_paused)
        self._recording = recording
        self._loop = loop
        self._gap = gap
        self._hold_end = hold_end
        self._wait_start = wait_start
        self._events = Events(len(recording.instruments))
        self._bell = _Bell()

    def slices(self, rows: int = BATCH_ROWS) -> Iterator[Batch]:
        """Yield the tape once in batches of about ``rows`` rows, as fast as they are asked for.

        If it begins in the middle of the recording, the first batch is the market as it then was. Reads files in the
        calling thread, and counts nothing in :meth:`statistics`.

        Raises:
            RecordingError: A row is not fit for the bus.
        """
        playback, merge = self.playback, Merge(len(self._recording.sources))
        if playback.start_ns > self._recording.start_ns:
            state = self._recording.state_before(playback.start_ns)
            if len(state):
                yield state
        tables = self._tables(playback.start_ns)
        while True:
            for track, chunks in zip(merge.tracks, tables, strict=True):
                if track.hungry:
                    track.load(next(chunks, None))
            next_ns = merge.next_ns()
            if next_ns is None or next_ns > playback.end_ns:
                return
            yield merge.take(merge.within(playback.end_ns, rows))

    def _tables(self, from_ns: int) -> list[Generator[Any, None, None]]:
        """Return the rows from an instant on, one stream for each track of the merge."""
        sources = self._recording.sources
        tables: list[Callable[[int], Iterator[Any]]] = [source.trades for source in sources]
        tables += [source.quotes for source in sources]
        tables += [source.levels for source in sources]
        return [whole_instants(table(from_ns)) for table in tables]

    async def run(self, out: trio.abc.SendChannel[Event]) -> None:
        """Play the tape: an epoch marker, batches, and at the end an end marker or, in a loop, the next epoch.

        Each seek begins an epoch too. A cancel waits for the row group that is being read or restored from; it leaves
        no file open and no thread running.

        Raises:
            RecordingError: A row is not fit for the bus.
        """
        playback = self.playback
        playback.on_change = self._bell.ring
        ts_ns = playback.start_ns
        await self._begin(out, ts_ns, "the recording begins", by_itself=True)
        await self._hold_start()
        playback.start()
        while not playback.stopped:
            if (seek_ns := playback.take_seek()) is not None:
                ts_ns = seek_ns
                await self._begin(out, ts_ns, "the replay was moved", by_itself=False)
            with _single_error():
                await self._play(out, ts_ns)
            if playback.interrupted:
                continue
            if self._loop:
                ts_ns = playback.start_ns
                await self._begin(out, ts_ns, "the recording begins again", by_itself=True)
            elif not await self._end(out):
                return
        await out.send(Marker(kind="end", ts=playback.statistics().position_ns, reason="the replay was stopped"))

    async def _begin(self, out: trio.abc.SendChannel[Event], ts_ns: int, reason: str, *, by_itself: bool) -> None:
        self.playback.begin_epoch(ts_ns, by_itself=by_itself)
        await out.send(Marker(kind="epoch", ts=ts_ns, reason=reason))
        if ts_ns > self._recording.start_ns:
            state = await trio.to_thread.run_sync(self._recording.state_before, ts_ns)
            if len(state):
                await out.send(state)

    async def _hold_start(self) -> None:
        """Wait for whoever listens first, or for a stop."""
        if self._wait_start is None:
            return
        with trio.CancelScope() as waiting:
            self.playback.on_change = lambda: waiting.cancel() if self.playback.stopped else None
            await self._wait_start()
        self.playback.on_change = self._bell.ring

    async def _end(self, out: trio.abc.SendChannel[Event]) -> bool:
        """End the tape; return whether it goes on, because somebody has sought."""
        playback = self.playback
        playback.finish()
        await out.send(Marker(kind="end", ts=playback.end_ns, reason="the recording has ended"))
        while self._hold_end and not playback.interrupted:
            self._bell.reset()
            await self._bell.wait(math.inf)
        return self._hold_end and not playback.stopped

    async def _play(self, out: trio.abc.SendChannel[Event], ts_ns: int) -> None:
        """Play one epoch to the end of the tape or until it is interrupted, one reader per table beside the player."""
        if self.playback.interrupted:  # while the market was restored
            return
        merge = Merge(len(self._recording.sources))
        channels = [trio.open_memory_channel[Any](0) for _ in merge.tracks]
        # One thread for all: more would only compete with the event loop for the interpreter.
        limiter = trio.CapacityLimiter(1)

        async def refill() -> None:
            with self._until_interrupted():
                for track, (_, chunks) in zip(merge.tracks, channels, strict=True):
                    await _refill_ahead(track, chunks)

        async with trio.open_nursery() as nursery:
            for table, (into, _) in zip(self._tables(ts_ns), channels, strict=True):
                nursery.start_soon(_read_ahead, table, into, limiter)
            await refill()
            pace = Pace(merge, self.playback, self._events, gap=self._gap, ts_ns=ts_ns, now=trio.current_time())
            await self._pace(pace, refill, out)
            nursery.cancel_scope.cancel()

    @contextlib.contextmanager
    def _until_interrupted(self) -> Iterator[None]:
        """Give up what is waited for as soon as somebody seeks or stops: chunks of this epoch are of no use then."""
        with trio.CancelScope() as waiting:

            def look() -> None:
                self._bell.ring()
                if self.playback.interrupted:
                    waiting.cancel()

            self.playback.on_change = look
            try:
                yield
            finally:
                self.playback.on_change = self._bell.ring

    async def _pace(self, pace: Pace, refill: Callable[[], Awaitable[None]], out: trio.abc.SendChannel[Event]) -> None:
        while not self.playback.interrupted:
            self._bell.reset()
            todo = pace.poll(trio.current_time())
            if todo is None:
                return
            if isinstance(todo, Batch):
                self.playback.tell(todo)  # first: a reader that waits must not find the tape behind what it has
                await out.send(todo)
                await refill()
            else:
                await self._bell.wait(todo)

    def statistics(self) -> ReplayStatistics:
        """Return where the replay is and how late its rows were."""
        return self.playback.statistics()
