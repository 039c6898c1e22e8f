"""What trading costs in money and in time: fees and latency, each behind a small interface."""

from __future__ import annotations

import random
from typing import Annotated, Protocol

import msgspec


class FeeModel(Protocol):
    """What a fill costs."""

    def fee(self, cost: int, *, maker: bool) -> int:
        """Return the fee of a fill, in the unit of ``cost`` (ticks times lots), at least 0."""
        ...

    @property
    def worst_ppm(self) -> int:
        """The highest fee, in millionths of the cost; so much is held for an open order."""
        ...


class MakerTaker(msgspec.Struct, frozen=True):
    """A share of what was paid: one for orders that rested, another for those that traded at once.

    Attributes:
        maker_ppm: Millionths of the cost.
        taker_ppm: Millionths of the cost.
    """

    maker_ppm: int
    taker_ppm: int

    @property
    def worst_ppm(self) -> int:
        """See :class:`FeeModel`."""
        return max(self.maker_ppm, self.taker_ppm)

    def fee(self, cost: int, *, maker: bool) -> int:
        """Return the fee, what is less than a unit counted as nothing."""
        return cost * (self.maker_ppm if maker else self.taker_ppm) // 1_000_000


class LatencyModel(Protocol):
    """How long a request is on its way to the exchange."""

    def delay_s(self) -> float:
        """Return the delay (s) of the next request; requests of one connection never overtake each other."""
        ...


class LatencyOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The delay of order requests: fixed, and a uniform part on top.

    Attributes:
        fixed_ms: Every request takes this long.
        jitter_ms: And up to this much longer.
        seed: Of the jitter.
    """

    fixed_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    jitter_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    seed: int = 0

    @property
    def delays(self) -> bool:
        """Whether there is any."""
        return self.fixed_ms + self.jitter_ms > 0


class UniformLatency:
    """A fixed delay and a uniform part on top; a :class:`LatencyModel`."""

    def __init__(self, options: LatencyOptions) -> None:
        self._options = options
        self._random = random.Random(options.seed)

    def delay_s(self) -> float:
        """See :class:`LatencyModel`."""
        return (self._options.fixed_ms + self._options.jitter_ms * self._random.random()) / 1000
