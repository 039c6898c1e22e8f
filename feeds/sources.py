"""What can be played: rows in the order in which they were received, and the market at any instant of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from feeds.instruments import Instruments
from feeds.records import Batch, Levels, Quotes, Trades


class Source(Protocol):
    """Rows in the order in which one recorder saw them."""

    def trades(self, from_ns: int | None = None) -> Iterator[Trades]:
        """Yield the trades received at or after an instant (ns UTC), or all."""

    def quotes(self, from_ns: int | None = None) -> Iterator[Quotes]:
        """Yield the quotes, as :meth:`trades` does."""

    def levels(self, from_ns: int | None = None) -> Iterator[Levels]:
        """Yield the rows of books, as :meth:`trades` does."""


class Playable(Protocol):
    """What can be played: a :class:`feeds.store.Recording`, or several of them.

    Attributes:
        name: What it is called.
        instruments: Of all rows.
        start_ns: First ``ts_recv``, ns UTC.
        end_ns: Last ``ts_recv``, ns UTC.
    """

    name: str
    instruments: Instruments
    start_ns: int
    end_ns: int

    @property
    def sources(self) -> Sequence[Source]:
        """What is merged, by rank."""

    def state_before(self, ts_ns: int) -> Batch:
        """Return the market as all rows before an instant (ns UTC) left it, as rows of that instant."""
