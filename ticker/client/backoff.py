"""How long to wait before trying again. It knows no clock: it says for how long, and its caller waits."""

from __future__ import annotations

import random
from typing import Final


class Backoff:
    """Delays between attempts, so that clients which broke off together do not come back together.

    "Decorrelated jitter" of AWS's "Exponential Backoff And Jitter": from the least to three times the last delay.

    Args:
        random: Where the jitter comes from.
    """

    FIRST_S: Final = 0.5
    LIMIT_S: Final = 10.0

    def __init__(self, random: random.Random) -> None:
        self._random = random
        self._delay = self.FIRST_S

    def next(self) -> float:
        """Return the next delay, in seconds."""
        self._delay = min(self.LIMIT_S, self._random.uniform(self.FIRST_S, 3 * self._delay))
        return self._delay

    def reset(self) -> None:
        """Begin with short delays again."""
        self._delay = self.FIRST_S
