"""The control of a tape: what its listeners ask for, and where it is.

:class:`Playback` is a remote control and a counter, no more. Whoever holds it says pause, seek or step, at any time
and in any state; whoever plays the tape is woken, looks at what is wanted and reports what it did. Everything is sync
and nothing waits. This module must not know of clocks, files or the tape's rows.

An *event* of a tape is what :meth:`Playback.step` counts: all rows, of every table and instrument, of one instant
(``ts_recv``), and with them the instants in which a venue's event that began there goes on, up to its row flagged
LAST (:class:`feeds.merge.Events` finds its end). So a book is never left in the middle of a change.

All instants are half-open: ``seek(t)`` and ``step_until(t)`` both leave the tape with every row before ``t`` told and
the first row at or after ``t`` as the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.errors import OptionError
from feeds.records import Batch

State = Literal["waiting", "playing", "paused", "ended", "stopped"]

MIN_SPEED: Final = 0.01
MAX_SPEED: Final = 10_000.0


def parse_speed(text: str) -> float:
    """Return the speed that "10", "0.5", "10x" or "max" means; ``math.inf`` for max.

    Raises:
        OptionError: It is none of these, or not from 0.01 to 10,000.
    """
    word = text.strip().lower()
    if word in ("max", "inf"):
        return math.inf
    try:
        speed = float(word.removesuffix("x"))
    except ValueError:
        speed = math.nan
    return checked_speed(speed, text)


def checked_speed(speed: float, shown: object = None) -> float:
    """Return ``speed`` if it is allowed.

    Args:
        speed: Tape seconds per second, or ``math.inf``.
        shown: What the message says was given; ``speed`` by default.

    Raises:
        OptionError: It is not from 0.01 to 10,000, nor infinite.
    """
    if MIN_SPEED <= speed <= MAX_SPEED or speed == math.inf:
        return speed
    shown = speed if shown is None else shown
    raise OptionError(f"speed {shown!r} is not a number from {MIN_SPEED:g} to {MAX_SPEED:,.0f}, or 'max'")


class ReplayStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Where a replay is and how well it keeps time.

    Attributes:
        state: ``waiting`` for its first reader, ``playing``, ``paused``, ``ended``, or ``stopped`` for good.
        speed: Tape seconds per second; infinity for as fast as the reader takes it.
        rows: Rows of the tape emitted so far, over all epochs; those that restate the market after a seek not counted.
        batches: Batches emitted so far, over all epochs, restating ones not counted.
        epochs: How many there have been: each start, seek and loop begins one.
        passes: How often the tape was begun by itself: once, and once more at each loop.
        position_ns: ``ts_recv`` of the last row emitted, ns UTC; where the epoch began before its first.
        start_ns: Where the tape, or the part of it that is played, begins, ns UTC.
        end_ns: Where it ends, ns UTC; nothing after it is played.
        progress: Share of its time that lies behind the position, 0 to 1.
        lateness_p50_ms: Median over all rows of how long after its due instant a row was emitted; the upper edge of
            its histogram bin, at most 12 % above the truth. 0 at infinite speed, where nothing is due.
        lateness_p99_ms: The 99th percentile, as exact.
        lateness_max_ms: The greatest, exact.
    """

    state: State
    speed: float
    rows: int
    batches: int
    epochs: int
    passes: int
    position_ns: int
    start_ns: int
    end_ns: int
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


def _ignore() -> None:
    """Stand in for ``on_change`` while nobody plays the tape."""


class Playback:
    """Control and position of one tape.

    The first half is for those who listen: commands, each of which takes effect before the next batch. After
    :meth:`stop` none of them has the tape play again. The second half is for the one who plays the tape.

    Args:
        start_ns: Where the tape begins, ns UTC.
        end_ns: Where it ends, ns UTC.
        speed: Tape seconds per second, 0.01 to 10,000, or ``math.inf``.
        paused: Whether it begins paused.

    Attributes:
        start_ns, end_ns: As given.
        on_change: Called after every command; whoever plays the tape puts its own waking here.
        lateness: What the player counts.

    Raises:
        OptionError: The speed is out of range.
    """

    def __init__(self, start_ns: int, end_ns: int, *, speed: float = 1.0, paused: bool = False) -> None:
        self.start_ns = start_ns
        self.end_ns = end_ns
        self.on_change: Callable[[], None] = _ignore
        self.lateness = LatenessHistogram()
        self._speed = checked_speed(speed)
        self._phase: Literal["waiting", "running", "ended", "stopped"] = "waiting"
        self._paused = paused
        self._seek_ns: int | None = None
        self._steps = 0
        self._until_ns = start_ns
        self._position_ns = start_ns
        self._rows = self._batches = self._epochs = self._passes = 0

    # For those who listen

    @property
    def state(self) -> State:
        """What the tape is doing."""
        if self._phase != "running":
            return self._phase
        return "paused" if self._paused else "playing"

    @property
    def speed(self) -> float:
        """Tape seconds per second; ``math.inf`` for as fast as the reader takes it."""
        return self._speed

    def pause(self) -> None:
        """Stand still, and forget steps that were not done yet."""
        self._forget_steps()
        self._paused = True
        self.on_change()

    def resume(self) -> None:
        """Play on from where the tape stands; a tape that has ended needs a :meth:`seek`."""
        self._forget_steps()
        self._paused = False
        self.on_change()

    def set_speed(self, speed: float) -> None:
        """Go on at another speed, also if paused.

        Raises:
            OptionError: It is not from 0.01 to 10,000, nor infinite.
        """
        self._speed = checked_speed(speed)
        self.on_change()

    def seek(self, ts_ns: int) -> None:
        """Go to an instant: a new epoch begins there, with the state of the market just before it.

        A paused tape stays paused and shows that state; one that has ended plays again. Steps that were not done
        are forgotten.

        Args:
            ts_ns: ns UTC; before the start it means the start, after the end the end.
        """
        if self._phase == "stopped":
            return
        if self._phase == "ended":
            self._phase = "running"
        self._forget_steps()
        self._seek_ns = self._position_ns = min(max(ts_ns, self.start_ns), self.end_ns)
        self.on_change()

    def step(self, events: int = 1) -> None:
        """Play so many events at once and stand still after them; the tape is paused.

        Steps add up: two steps of one, however close, are two events.

        Raises:
            OptionError: It is not at least one event.
        """
        if events < 1:
            raise OptionError(f"step of {events} events; it goes forward, by at least 1")
        self._paused = True
        self._steps += events
        self.on_change()

    def step_until(self, ts_ns: int) -> None:
        """Play everything before an instant (ns UTC) at once and stand still there; the tape is paused.

        Where the tape is past it already nothing is played.
        """
        self._forget_steps()
        self._paused, self._until_ns = True, ts_ns
        self.on_change()

    def stop(self) -> None:
        """End for good: an end marker comes, and whoever plays the tape returns."""
        self._phase = "stopped"
        self.on_change()

    def statistics(self) -> ReplayStatistics:
        """Return where the tape is and how late its rows were."""
        return ReplayStatistics(
            state=self.state,
            speed=self._speed,
            rows=self._rows,
            batches=self._batches,
            epochs=self._epochs,
            passes=self._passes,
            position_ns=self._position_ns,
            start_ns=self.start_ns,
            end_ns=self.end_ns,
            progress=1.0 if self._phase == "ended" else self.progress_at(self._position_ns),
            lateness_p50_ms=self.lateness.percentile(0.50),
            lateness_p99_ms=self.lateness.percentile(0.99),
            lateness_max_ms=self.lateness.max_ms,
        )

    def progress_at(self, ts_ns: int) -> float:
        """Return the share of the tape's time that lies behind an instant of it, ns UTC."""
        length = self.end_ns - self.start_ns
        return (ts_ns - self.start_ns) / length if length else 0.0

    def _forget_steps(self) -> None:
        self._steps, self._until_ns = 0, self.start_ns

    # For the one who plays the tape

    @property
    def stopped(self) -> bool:
        """Whether to return."""
        return self._phase == "stopped"

    @property
    def paused(self) -> bool:
        """Whether nothing is played but what is stepped."""
        return self._paused

    @property
    def interrupted(self) -> bool:
        """Whether the epoch is over before the tape is: somebody seeks or stops."""
        return self._seek_ns is not None or self.stopped

    @property
    def until_ns(self) -> int:
        """Everything before this instant (ns UTC) is to be played at once, if the tape is paused."""
        return self._until_ns

    def wants_rest(self, next_ns: int | None) -> bool:
        """Whether to stand still before what comes next.

        Args:
            next_ns: ``ts_recv`` (ns UTC) of the next row; None where there is none.
        """
        return self._paused and not self._steps and (next_ns is None or next_ns >= self._until_ns)

    def take_seek(self) -> int | None:
        """Return the instant (ns UTC) to go to, once; None if nobody seeks."""
        seek_ns, self._seek_ns = self._seek_ns, None
        return seek_ns

    def begin_epoch(self, ts_ns: int, *, by_itself: bool) -> None:
        """Note that an epoch begins at an instant (ns UTC), by itself or because somebody seeks."""
        if by_itself and self._passes:
            self._until_ns = self.start_ns  # what was to be played before an instant has been
        self._epochs += 1
        self._passes += by_itself
        self._position_ns = ts_ns

    def start(self) -> None:
        """Note that there is a reader, so that the tape may move."""
        if not self.stopped:
            self._phase = "running"

    def tell(self, batch: Batch) -> None:
        """Note that a batch of the tape is emitted."""
        self._rows += len(batch)
        self._batches += 1
        self._position_ns = batch.ts

    def finish_event(self) -> None:
        """Note that an event was stepped to its end."""
        self._steps = max(0, self._steps - 1)

    def finish(self) -> None:
        """Note that the tape has ended."""
        self._forget_steps()
        if not self.stopped:
            self._phase = "ended"
