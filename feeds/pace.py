"""The pace of a tape: what is to be emitted now, or until when to wait, as pure code.

The tape is paced by ``ts_recv``, the time at which the recorder saw each row. Everything that is due is emitted at
once, so a late wake-up is caught up with in one batch instead of one sleep per row. Rows of one instant are never
divided, and at any speed the same rows come in the same order.

This module must not know of channels, files or how anybody waits: it is told what time it is.
"""

from __future__ import annotations

import math
from typing import Final

from feeds.clock import GapPolicy, ReplayClock
from feeds.merge import Events, Merge
from feeds.playback import Playback
from feeds.records import Batch

#: Rows after which a batch ends with its instant: about a millisecond of work for a reader, so that others get
#: their turn and a command its effect.
BATCH_ROWS: Final = 8_192


class Pace:
    """Plays one epoch of a tape as its playback asks for.

    Args:
        merge: The rows, from the beginning of the epoch on; its hungry tracks are loaded before each poll.
        playback: What is wanted.
        events: Where events end.
        gap: What becomes of silences.
        ts_ns: Where the epoch begins, ns UTC.
        now: Monotonic time, s.
    """

    def __init__(
        self, merge: Merge, playback: Playback, events: Events, *, gap: GapPolicy, ts_ns: int, now: float
    ) -> None:
        self._merge = merge
        self._playback = playback
        self._events = events
        self._gap = gap
        self._clock = ReplayClock(ts_ns, now, playback.speed)
        self._last_ns = ts_ns  # how far silences have been reckoned with
        self._rested_at_ns: int | None = None  # where the tape stands still

    def poll(self, now: float) -> Batch | float | None:
        """Return the batch to emit now, else the monotonic time (s) to wait until, else None at the tape's end.

        Args:
            now: Monotonic time, s.

        Returns:
            ``math.inf`` where only a command goes on. A command may make any wait shorter.
        """
        playback = self._playback
        next_ns = self._merge.next_ns()
        if next_ns is not None and next_ns > playback.end_ns:
            next_ns = None
        self._keep_clock(now, next_ns)
        if playback.wants_rest(next_ns):
            return math.inf
        if next_ns is None:
            return None
        if playback.paused:
            return self._step(next_ns)
        return self._rush(now) if math.isinf(playback.speed) else self._paced(now, next_ns)

    def _keep_clock(self, now: float, next_ns: int | None) -> None:
        """Let the clock stand still or go on, at the speed that is wanted."""
        if self._clock.speed != self._playback.speed:
            self._clock.set_speed(now, self._playback.speed)
        if self._playback.paused:
            if self._rested_at_ns is None:
                # A row that is overdue is still the next: the clock stands no later than it.
                ahead_ns = self._playback.end_ns if next_ns is None else next_ns
                self._rested_at_ns = min(self._clock.tape_at(now), ahead_ns)
        elif self._rested_at_ns is not None:
            self._clock.jump(now, self._rested_at_ns)
            self._rested_at_ns = None

    def _step(self, next_ns: int) -> Batch:
        playback = self._playback
        if next_ns < playback.until_ns:
            batch = self._take(min(playback.until_ns - 1, playback.end_ns))
        else:
            batch = self._merge.take(next_ns)
            if self._events.ends_with(batch):
                playback.finish_event()
        self._last_ns = self._rested_at_ns = batch.ts
        return batch

    def _rush(self, now: float) -> Batch:
        batch = self._take(self._playback.end_ns)
        self._clock.jump(now, batch.ts)
        return batch

    def _paced(self, now: float, next_ns: int) -> Batch | float:
        self._clock.leave_out(self._gap.left_out(next_ns - self._last_ns))
        self._last_ns = next_ns
        if (due := self._clock.due(next_ns)) > now:
            return due
        # Rounding may put the clock a nanosecond before the row it was set for.
        tape_ns = max(next_ns, self._clock.tape_at(now))
        batch = self._take(min(self._merge.before_silence(tape_ns, self._gap.longest_ns), self._playback.end_ns))
        self._count_lateness(batch, tape_ns)
        return batch

    def _take(self, upto_ns: int) -> Batch:
        batch = self._merge.take(self._merge.within(upto_ns, BATCH_ROWS))
        self._events.watch(batch.levels)
        self._last_ns = batch.ts
        return batch

    def _count_lateness(self, batch: Batch, tape_ns: int) -> None:
        for table in (batch.trades, batch.quotes, batch.levels):
            if len(table):
                self._playback.lateness.add((tape_ns - table.ts_recv) / (self._clock.speed * 1e6))
