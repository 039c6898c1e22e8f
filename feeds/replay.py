"""A recorded tape played back: the merge of its tables, and the pace at which it comes.

The tape is paced by ``ts_recv``, the time at which the recorder saw each row. The feed sleeps until the next row is
due and then emits *everything* that is due, so a late wake-up is caught up with in one batch instead of one sleep
per row. Rows of one instant are never divided between batches, and at any speed the same rows come in the same
order. Row groups are read ahead in a worker thread, one per table.

:class:`Merge` is the whole of it without waiting; :class:`ReplayFeed` adds the clock and the channel. This module
must not know of Parquet or of who listens.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from typing import Final, Generic, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import trio

from feeds.clock import NS, ReplayClock
from feeds.errors import FeedError, OptionError
from feeds.records import I64, Batch, Event, Levels, Marker, Quotes, Table, Trades
from feeds.store import Recording

TableT = TypeVar("TableT", bound=Table)

MIN_SPEED: Final = 0.1
MAX_SPEED: Final = 1000.0
#: Rows in a batch at infinite speed: about a millisecond of work for a reader, so that others get their turn.
BATCH_ROWS: Final = 8_192

_NEVER: Final = 2**63 - 1


class GapPolicy(msgspec.Struct, frozen=True):
    """What becomes of silences, stretches of tape in which no table has a row.

    Attributes:
        longest_ns: A silence longer than this, in tape time, is shortened.
        played_ns: How long it then lasts, in tape time.
    """

    longest_ns: int
    played_ns: int

    def left_out(self, silence_ns: int) -> int:
        """Return how much (ns) of a silence is not played."""
        return silence_ns - self.played_ns if silence_ns > self.longest_ns else 0


KEEP: Final = GapPolicy(_NEVER, _NEVER)
SKIP: Final = GapPolicy(NS, 0)


def cap(seconds: float) -> GapPolicy:
    """Return the policy by which no silence lasts longer than ``seconds`` of tape time."""
    return GapPolicy(round(seconds * NS), round(seconds * NS))


def parse_speed(text: str) -> float:
    """Return the speed that "10", "0.5", "10x" or "max" means; ``math.inf`` for max.

    Raises:
        OptionError: It is none of these, or not from 0.1 to 1000.
    """
    word = text.strip().lower()
    if word in ("max", "inf"):
        return math.inf
    try:
        speed = float(word.removesuffix("x"))
    except ValueError:
        speed = math.nan
    return _checked_speed(speed, text)


def _checked_speed(speed: float, shown: object) -> float:
    if MIN_SPEED <= speed <= MAX_SPEED or speed == math.inf:
        return speed
    raise OptionError(f"speed {shown!r} is not a number from {MIN_SPEED:g} to {MAX_SPEED:g}, or 'max'")


def parse_gap(text: str) -> GapPolicy:
    """Return the policy that "keep", "skip" or "cap:SECONDS" means.

    Raises:
        OptionError: It is none of these.
    """
    word, _, number = text.strip().lower().partition(":")
    if not number and word in ("keep", "skip"):
        return KEEP if word == "keep" else SKIP
    with contextlib.suppress(ValueError):
        if word == "cap" and 0.0 < (seconds := float(number)) < math.inf:
            return cap(seconds)
    raise OptionError(f"gap {text!r} is not 'keep', 'skip' or 'cap:SECONDS' with more than 0 seconds")


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a replay, as a configuration file has them.

    Attributes:
        path: What :func:`feeds.store.open_recording` takes.
        speed: Tape seconds per second, 0.1 to 1000, or infinity for as fast as possible.
        loop: Whether to begin again at the end.
        gap: "keep" plays silences as recorded; "cap:SECONDS" shortens longer ones to that; "skip" jumps over those
            of more than a second.
    """

    path: str
    speed: float = 1.0
    loop: bool = False
    gap: str = "keep"

    def __post_init__(self) -> None:
        _checked_speed(self.speed, self.speed)
        parse_gap(self.gap)


class ReplayStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Where a replay is and how well it keeps time.

    Attributes:
        state: ``waiting`` for its first reader, ``playing`` or ``ended``.
        rows: Rows emitted so far, over all passes.
        batches: Batches emitted so far, over all passes.
        passes: How often the tape has been begun.
        position_ns: ``ts_recv`` of the last row emitted, ns UTC; the start of the tape before the first.
        progress: Share of the tape's time that has been played in this pass, 0 to 1.
        lateness_p50_ms: Median over all rows of how long after its due instant a row was emitted; the upper edge of
            its histogram bin, at most 12 % above the truth. 0 at infinite speed, where nothing is due.
        lateness_p99_ms: The 99th percentile, as exact.
        lateness_max_ms: The greatest, exact.
    """

    state: Literal["waiting", "playing", "ended"]
    rows: int
    batches: int
    passes: int
    position_ns: int
    progress: float
    lateness_p50_ms: float
    lateness_p99_ms: float
    lateness_max_ms: float


class LatenessHistogram:
    """Counts of lateness in fixed bins, 20 to a decade from 0.01 ms to 100 s: constant memory for any tape."""

    EDGES_MS: Final = np.geomspace(0.01, 1e5, 7 * 20 + 1)

    def __init__(self) -> None:
        self._counts = np.zeros(len(self.EDGES_MS) + 1, dtype=np.int64)
        self.max_ms = 0.0

    def add(self, late_ms: npt.NDArray[np.float64]) -> None:
        """Count values, float64 ms, at least one."""
        self._counts += np.bincount(self.EDGES_MS.searchsorted(late_ms), minlength=len(self._counts))
        self.max_ms = max(self.max_ms, float(late_ms.max()))

    def percentile(self, share: float) -> float:
        """Return the upper edge (ms) of the bin that holds the ``share`` quantile; 0 when nothing was counted."""
        total = int(self._counts.sum())
        if not total:
            return 0.0
        at = int(np.searchsorted(np.cumsum(self._counts), share * total))
        return min(self.max_ms, float(self.EDGES_MS[at])) if at < len(self.EDGES_MS) else self.max_ms


def whole_instants(chunks: Iterable[TableT]) -> Generator[TableT, None, None]:
    """Yield the same rows, cut so that no ``ts_recv`` appears in two chunks; empty chunks vanish."""
    held: TableT | None = None
    for chunk in chunks:
        if not len(chunk):
            continue
        rows = chunk if held is None else type(chunk).concatenate([held, chunk])
        cut = int(np.searchsorted(rows.ts_recv, rows.ts_recv[-1]))
        if cut:
            yield rows.slice(0, cut)
        held = rows.slice(cut, len(rows))
    if held is not None:
        yield held


class Source(Generic[TableT]):
    """One table as the merge sees it: the chunk at hand and how much of it is still to come."""

    def __init__(self, empty: TableT) -> None:
        self._chunk = self._nothing = empty
        self._at = 0
        self._ended = False

    @property
    def hungry(self) -> bool:
        """Whether the next chunk, or the news that there is none, must be loaded before the merge goes on."""
        return self._at == len(self._chunk) and not self._ended

    def load(self, chunk: TableT | None) -> None:
        """Give it the next chunk of :func:`whole_instants`, or None at the end."""
        if chunk is None:
            self._ended = True
        else:
            self._chunk, self._at = chunk, 0

    @property
    def times(self) -> I64:
        """The ``ts_recv`` of the rows still to come from this chunk; a view."""
        return self._chunk.ts_recv[self._at :]

    def take(self, upto_ns: int) -> TableT:
        """Return the rows up to and including an instant, as views."""
        count = int(self.times.searchsorted(upto_ns, side="right"))
        if not count:
            return self._nothing  # most batches of a paced tape have rows in one table only
        self._at += count
        return self._chunk.slice(self._at - count, self._at)


class Merge:
    """The k-way merge of trades, quotes and book by ``ts_recv``, as pure code.

    Whoever drives it loads every :meth:`hungry` source, asks when the next row is due, and takes what is due. A
    batch keeps the tables apart, so merging is finding how far to go in each.
    """

    def __init__(self) -> None:
        self.trades = Source(Trades.empty())
        self.quotes = Source(Quotes.empty())
        self.levels = Source(Levels.empty())

    @property
    def hungry(self) -> bool:
        """Whether a source must be loaded first."""
        return self.trades.hungry or self.quotes.hungry or self.levels.hungry

    def _times(self) -> list[I64]:
        return [times for source in (self.trades, self.quotes, self.levels) if len(times := source.times)]

    def next_ns(self) -> int | None:
        """Return the ``ts_recv`` of the next row; None at the end of the tape."""
        return min((int(times[0]) for times in self._times()), default=None)

    def after_rows(self, rows: int) -> int:
        """Return the instant (ns) at which ``rows`` rows, or all that are loaded, will have come."""
        times = np.concatenate([times[:rows] for times in self._times()])
        at = min(rows, len(times)) - 1
        return int(np.partition(times, at)[at])

    def before_silence(self, upto_ns: int, longest_ns: int) -> int:
        """Return the last instant (ns) before the first silence longer than ``longest_ns``, at most ``upto_ns``."""
        first = self.next_ns()
        if first is None or upto_ns - first <= longest_ns:
            return upto_ns
        due = [times[: int(times.searchsorted(upto_ns, side="right"))] for times in self._times()]
        times = np.sort(np.concatenate(due))
        silent = np.flatnonzero(np.diff(times) > longest_ns)
        return int(times[silent[0]]) if len(silent) else upto_ns

    def take(self, upto_ns: int) -> Batch:
        """Return the rows up to an instant that is not before :meth:`next_ns`.

        It stops earlier where one of the tables must first be loaded again: that bounds the batch by what is loaded.
        """
        times = self._times()
        upto_ns = min(upto_ns, *(int(t[-1]) for t in times))
        last = max(int(t[i - 1]) for t in times if (i := int(t.searchsorted(upto_ns, side="right"))))
        return Batch(
            ts=last,
            trades=self.trades.take(upto_ns),
            quotes=self.quotes.take(upto_ns),
            levels=self.levels.take(upto_ns),
        )


def _refill(source: Source[TableT], chunks: Iterator[TableT]) -> None:
    if source.hungry:
        source.load(next(chunks, None))


async def _refill_ahead(source: Source[TableT], chunks: trio.MemoryReceiveChannel[TableT]) -> None:
    if source.hungry:
        try:
            source.load(await chunks.receive())
        except trio.EndOfChannel:
            source.load(None)


async def _read_ahead(
    chunks: Generator[TableT, None, None], out: trio.MemorySendChannel[TableT], limiter: trio.CapacityLimiter
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


async def _start_at_once() -> None:
    """Stand in for ``wait_start`` where there is nothing to wait for."""


class ReplayFeed:
    """Plays a recording; a :class:`feeds.feed.Feed`.

    A recording whose book does not begin with a snapshot is played as it is.

    Attributes:
        name: The recording's.
        mode: "replay".
        instruments: The recording's.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        speed: float = 1.0,
        loop: bool = False,
        gap: GapPolicy = KEEP,
        wait_start: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Prepare to play; nothing is read yet.

        Args:
            recording: The tape.
            speed: Tape seconds per second, 0.1 to 1000, or ``math.inf``.
            loop: Whether to begin again at the end, with a new epoch and the recorded times.
            gap: What becomes of silences.
            wait_start: Awaited once, after the first epoch marker and before the first batch; a server holds the
                tape with it until somebody listens.

        Raises:
            OptionError: The speed is out of range.
        """
        self.name = recording.name
        self.mode = "replay"
        self.instruments = recording.instruments
        self._recording = recording
        self._speed = _checked_speed(speed, speed)
        self._loop = loop
        self._gap = gap
        self._wait_start = wait_start or _start_at_once
        self._state: Literal["waiting", "playing", "ended"] = "waiting"
        self._rows = self._batches = self._passes = 0
        self._position_ns = recording.start_ns
        self._lateness = LatenessHistogram()

    def slices(self, rows: int = BATCH_ROWS) -> Iterator[Batch]:
        """Yield the tape once in batches of about ``rows`` rows, as fast as they are asked for.

        Reads files in the calling thread, and counts nothing in :meth:`statistics`.

        Raises:
            RecordingError: A row is not fit for the bus.
        """
        merge, recording = Merge(), self._recording
        trades, quotes = whole_instants(recording.trades()), whole_instants(recording.quotes())
        levels = whole_instants(recording.levels())
        while True:
            _refill(merge.trades, trades)
            _refill(merge.quotes, quotes)
            _refill(merge.levels, levels)
            if merge.next_ns() is None:
                return
            yield merge.take(merge.after_rows(rows))

    async def run(self, out: trio.abc.SendChannel[Event]) -> None:
        """Play the tape: an epoch marker, batches, and at the end an end marker or, in a loop, the next epoch.

        A cancel leaves no file open and no thread running.

        Raises:
            RecordingError: A row is not fit for the bus.
        """
        recording, reason = self._recording, "the recording begins"
        while True:
            self._position_ns = recording.start_ns
            await out.send(Marker(kind="epoch", ts=recording.start_ns, reason=reason))
            if self._passes == 0:
                await self._wait_start()
            self._passes += 1
            self._state = "playing"
            with _single_error():
                await self._play(out)
            if not self._loop:
                break
            reason = "the recording begins again"
        self._state = "ended"
        await out.send(Marker(kind="end", ts=recording.end_ns, reason="the recording has ended"))

    async def _play(self, out: trio.abc.SendChannel[Event]) -> None:
        """Play the tape once, with one reader per table beside the player."""
        merge, recording = Merge(), self._recording
        trades_in, trades = trio.open_memory_channel[Trades](0)
        quotes_in, quotes = trio.open_memory_channel[Quotes](0)
        levels_in, levels = trio.open_memory_channel[Levels](0)

        async def refill() -> None:
            await _refill_ahead(merge.trades, trades)
            await _refill_ahead(merge.quotes, quotes)
            await _refill_ahead(merge.levels, levels)

        # One thread for all: more would only compete with the event loop for the interpreter.
        limiter = trio.CapacityLimiter(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_ahead, whole_instants(recording.trades()), trades_in, limiter)
            nursery.start_soon(_read_ahead, whole_instants(recording.quotes()), quotes_in, limiter)
            nursery.start_soon(_read_ahead, whole_instants(recording.levels()), levels_in, limiter)
            await refill()
            if math.isinf(self._speed):
                await self._rush(merge, refill, out)
            else:
                await self._pace(merge, refill, out)

    async def _rush(
        self, merge: Merge, refill: Callable[[], Awaitable[None]], out: trio.abc.SendChannel[Event]
    ) -> None:
        while merge.next_ns() is not None:
            await self._emit(merge.take(merge.after_rows(BATCH_ROWS)), out)
            await refill()

    async def _pace(
        self, merge: Merge, refill: Callable[[], Awaitable[None]], out: trio.abc.SendChannel[Event]
    ) -> None:
        last_ns = self._recording.start_ns
        clock = ReplayClock(last_ns, trio.current_time(), self._speed)
        while (due_ns := merge.next_ns()) is not None:
            clock.leave_out(self._gap.left_out(due_ns - last_ns))
            await trio.sleep_until(clock.due(due_ns))
            # Rounding may put the clock a nanosecond before the row it was set for.
            tape_ns = max(due_ns, clock.tape_at(trio.current_time()))
            batch = merge.take(merge.before_silence(tape_ns, self._gap.longest_ns))
            self._count_lateness(batch, tape_ns)
            last_ns = batch.ts
            await self._emit(batch, out)
            await refill()

    def _count_lateness(self, batch: Batch, tape_ns: int) -> None:
        for table in (batch.trades, batch.quotes, batch.levels):
            if len(table):
                self._lateness.add((tape_ns - table.ts_recv) / (self._speed * 1e6))

    async def _emit(self, batch: Batch, out: trio.abc.SendChannel[Event]) -> None:
        await out.send(batch)
        self._rows += len(batch)
        self._batches += 1
        self._position_ns = batch.ts

    def statistics(self) -> ReplayStatistics:
        """Return where the replay is and how late its rows were."""
        length = self._recording.end_ns - self._recording.start_ns
        played = self._position_ns - self._recording.start_ns
        return ReplayStatistics(
            state=self._state,
            rows=self._rows,
            batches=self._batches,
            passes=self._passes,
            position_ns=self._position_ns,
            progress=1.0 if self._state == "ended" else (played / length if length else 0.0),
            lateness_p50_ms=self._lateness.percentile(0.50),
            lateness_p99_ms=self._lateness.percentile(0.99),
            lateness_max_ms=self._lateness.max_ms,
        )
