"""What fanload is told and what it answers: subscribers of one kind, and what reached them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from ticker.binary import DTYPES

NATIVE: Final = "ticker.v1"


class Audience(msgspec.Struct, frozen=True):
    """Subscribers of one kind.

    Attributes:
        number: How many.
        messages: What each of them sends once it is connected.
        lines: A file with a message per line; subscriber i sends line i besides.
        native: Whether they offer the native subprotocol.
        examine: Every how manieth looks into the frames that it gets; the others count bytes, by which frames and rows
            are scaled up. 1 is exact.
        ages: Whether the age of every frame is looked at.
        wakeful: Whether it never sleeps while it counts, so that no sender pays for waking it.
    """

    number: int
    messages: tuple[str, ...] = ()
    lines: Path | None = None
    native: bool = False
    examine: int = 1
    ages: bool = True
    wakeful: bool = False

    def arguments(self) -> list[str]:
        """Return the options of fanload."""
        found = ["-n", str(self.number), "-e", str(self.examine)]
        found += [part for message in self.messages for part in ("-m", message)]
        found += ["-f", str(self.lines)] if self.lines else []
        found += ["-o", NATIVE, "-r", str(DTYPES["ticker"].itemsize)] if self.native else []
        found += ["-l"] if self.ages else []
        return found + (["-b"] if self.wakeful else [])


class Load(msgspec.Struct, frozen=True):
    """What fanload measured while it counted.

    Attributes:
        secs: Length of the counting.
        frames: Data frames, over all subscribers.
        rows: Rows in them.
        bytes: Their payload.
        server_cpu_s: CPU time of the server, user and system.
        min_ms: Least age of a frame on arrival; -1 if ages were not asked for.
        p50_ms: The median age.
        p99_ms: The 99th percentile of the same.
        max_ms: The greatest.
        least: Frames of the subscriber that got the fewest, of those that were examined.
        most: Frames of the one that got the most.
        closed: Subscribers whose connection ended.
    """

    secs: float
    frames: int
    rows: int
    bytes: int
    server_cpu_s: float
    min_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    least: int
    most: int
    closed: int

    @property
    def cpu_us(self) -> float:
        """CPU time of the server per delivered frame, in µs."""
        return 1e6 * self.server_cpu_s / self.frames

    @property
    def core_share(self) -> float:
        """The share of a core that the server took."""
        return self.server_cpu_s / self.secs

    @property
    def rows_per_s(self) -> float:
        """Rows that reached the subscribers per second."""
        return self.rows / self.secs

    @property
    def mb_per_s(self) -> float:
        """Megabytes of payload per second."""
        return self.bytes / self.secs / 1e6
