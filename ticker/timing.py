"""Durations of something that happens again and again: a histogram since the start, and the most recent ones."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from itertools import accumulate
from typing import Final


class Timing:
    """Counts durations.

    Attributes:
        total_s: Their sum, in seconds.
    """

    #: Upper bounds of the buckets, in seconds. The last bucket has none.
    BOUNDS: Final = (
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5,
    )  # fmt: skip
    #: How many recent ones the quantiles are of.
    RECENT: Final = 256

    def __init__(self) -> None:
        self.total_s = 0.0
        self._counts = [0] * (len(self.BOUNDS) + 1)
        self._recent: deque[float] = deque(maxlen=self.RECENT)

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.total_s += seconds
        self._counts[bisect_left(self.BOUNDS, seconds)] += 1
        self._recent.append(seconds)

    def buckets(self) -> list[tuple[str, int]]:
        """Return upper bounds as text and how many were at most that long, as Prometheus has its histograms."""
        return list(zip([*map(str, self.BOUNDS), "+Inf"], accumulate(self._counts), strict=True))

    def recent(self, share: float) -> float:
        """Return the duration (s) that a share of the most recent ones did not exceed; 0.0 before the first."""
        ordered = sorted(self._recent) or [0.0]
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
