"""Clocks: the one place that reads wall time, and the clock that maps a tape onto it.

Inside the market time is virtual: int64 nanoseconds that a tape or a simulation carries. Only
:class:`ReplayClock` relates it to the monotonic seconds of :func:`trio.current_time`, and it is itself without
any clock: the caller says what time it is, so a test needs no waiting.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import Final, Self

import msgspec

from feeds.errors import OptionError

NS = 1_000_000_000
_NEVER: Final = 2**63 - 1


def wall_ns() -> int:
    """Return the wall time, int ns UTC."""
    return time.time_ns()  # noqa: TID251 - this is where wall time comes from


def since_s(ts_ns: int) -> float:
    """Return how long ago the wall clock showed an instant (ns UTC), in seconds."""
    return (wall_ns() - ts_ns) / NS


def check_speed(speed: float) -> None:
    """Pass if a market can run at a speed.

    Raises:
        OptionError: It is not above 0.
    """
    if not speed > 0:
        raise OptionError(f"speed: {speed} is not allowed; allowed is any number above 0, and inf")


class ReplayClock:
    """Maps monotonic seconds to tape nanoseconds at a speed.

    The mapping is a line through an anchor; leaving out a silence or changing the speed moves the anchor, so
    that no error accumulates over a long replay.

    Attributes:
        speed: Tape seconds per second; ``math.inf`` means as fast as the reader takes it.
    """

    def __init__(self, tape_ns: int, now: float, speed: float = 1.0) -> None:
        self._tape_ns = tape_ns
        self._now = now
        self.speed = speed

    @classmethod
    def begun(cls, tape_ns: int, now: float, speed: float, *, at_wall: bool) -> Self:
        """Return a clock that shows ``tape_ns`` at ``now``; ``at_wall``: that showed it when the wall clock did.

        Whoever makes a market with the time of the wall may have other things to start before it runs.
        """
        return cls(tape_ns, now - since_s(tape_ns) if at_wall else now, speed)

    def tape_at(self, now: float) -> int:
        """Return the tape time (ns) reached at monotonic time ``now`` (s)."""
        if math.isinf(self.speed):
            return self._tape_ns
        return self._tape_ns + math.floor((now - self._now) * self.speed * NS)

    def due(self, tape_ns: int) -> float:
        """Return the monotonic time (s) at which ``tape_ns`` is reached; ``-inf`` at infinite speed."""
        if math.isinf(self.speed):
            return -math.inf
        return self._now + (tape_ns - self._tape_ns) / (self.speed * NS)

    def jump(self, now: float, tape_ns: int) -> None:
        """Move the clock so that ``tape_ns`` is reached at ``now``."""
        self._now, self._tape_ns = now, tape_ns

    def leave_out(self, duration_ns: int) -> None:
        """Take a stretch out of the tape ahead: all later tape times come that much (ns of tape) earlier.

        Nothing is rounded and nobody looks at the time, so a tape with any number of silences left out stays exact.
        """
        self._tape_ns += duration_ns

    def set_speed(self, now: float, speed: float) -> None:
        """Go on from the tape time of ``now`` at another speed."""
        self._now, self._tape_ns, self.speed = now, self.tape_at(now), speed


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
    longest_ns = round(min(seconds * NS, _NEVER))
    return GapPolicy(longest_ns, longest_ns)


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
