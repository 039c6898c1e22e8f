"""Entries that rest beside a market that does not see them: their queues, and what is taken of the displayed depth.

:class:`RestingSide` keeps entries by price and time, each with the market's lots that come first. :class:`Taken` keeps
what entries have used up of the depth that a market displays. This module must not know of batches or of matches;
:mod:`feeds.tape` decides what happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from feeds.book import BookSide
from feeds.venue import Entry

#: Beyond every price, and more than every quantity that a market displays.
FAR: Final = 2**62


class Resting:
    """An entry that rests.

    Attributes:
        entry: As entered or last amended.
        price: Its limit.
        open: Lots to trade.
        shown: Lots of them that take part in the queue; fewer than ``open`` in an iceberg.
        ahead: Lots of the market that come first.
    """

    __slots__ = ("ahead", "entry", "open", "price", "shown")

    def __init__(self, entry: Entry, price: int, lots: int, ahead: int) -> None:
        self.entry = entry
        self.price = price
        self.open = lots
        self.shown = min(entry.display or lots, lots)
        self.ahead = ahead


#: Entries of one price by key, in the order of time. None has more ahead than one behind it.
Queue = dict[int, Resting]


class RestingSide:
    """The entries on one side of an instrument, by price."""

    __slots__ = ("_prices", "queues", "side")

    def __init__(self, side: int) -> None:
        self.side = side
        self.queues: dict[int, Queue] = {}
        self._prices = BookSide(side)  # what is entered as quantity does not matter

    @property
    def best(self) -> int | None:
        """The best price, ticks."""
        best = self._prices.best
        return best and best[0]

    def add(self, resting: Resting) -> None:
        """Put an entry behind all others of its price."""
        queue = self.queues.get(resting.price)
        if queue is None:
            queue = self.queues[resting.price] = {}
            self._prices.put(resting.price, 1)
        else:
            shrink(queue, resting.ahead)
        queue[resting.entry.key] = resting

    def renew(self, resting: Resting, lots: int, ahead: int) -> None:
        """Let an iceberg show ``lots`` behind all others of its price."""
        queue = self.queues[resting.price]
        del queue[resting.entry.key]
        shrink(queue, ahead)
        resting.shown, resting.ahead = lots, ahead
        queue[resting.entry.key] = resting

    def remove(self, resting: Resting) -> None:
        """Take an entry out."""
        queue = self.queues[resting.price]
        del queue[resting.entry.key]
        if not queue:
            del self.queues[resting.price]
            self._prices.put(resting.price, 0)

    def first(self, price: int, *, through: bool = False) -> Resting | None:
        """Return the oldest entry of the best price, if that is ``price`` or better; ``through``: if better."""
        best = self.best
        if best is None or (best - price) * self.side < through:
            return None
        return next(iter(self.queues[best].values()))

    def reached(self, price: int | None) -> Iterator[Resting]:
        """Yield the entries at a price or better, None for all, the best price and the oldest first."""
        for level, _ in self._prices:
            if price is not None and (level - price) * self.side < 0:
                return
            yield from self.queues[level].values()

    def touch(self, price: int, qty: int) -> None:
        """The market's best price on this side is now ``price``, with ``qty`` lots: nothing is ahead of better ones."""
        for level, _ in self._prices:
            if (level - price) * self.side <= 0:
                break
            shrink(self.queues[level], 0)
        if price in self.queues:
            shrink(self.queues[price], qty)


def shrink(queue: Queue, lots: int) -> None:
    """No entry has more ahead than ``lots``."""
    for resting in reversed(queue.values()):
        if resting.ahead <= lots:
            break
        resting.ahead = lots


class Taken:
    """What has been taken of the displayed levels of one side of an instrument, by price: (lots, lots displayed)."""

    __slots__ = ("_levels", "_side")

    def __init__(self, side: int) -> None:
        self._side = side
        self._levels: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._levels)

    def at(self, price: int) -> int:
        """Return the lots taken at a price."""
        return self._levels.get(price, (0, 0))[0]

    def add(self, price: int, lots: int, displayed: int) -> None:
        """Take lots at a price where so many are displayed."""
        self._levels[price] = self.at(price) + lots, displayed

    def refresh(self, price: int) -> None:
        """The level is new."""
        self._levels.pop(price, None)

    def touch(self, price: int, qty: int) -> None:
        """The best price now shows ``qty`` lots: better levels are gone, and another quantity is a new one."""
        for level, (_, displayed) in list(self._levels.items()):
            if (level - price) * self._side > 0 or (level == price and displayed != qty):
                del self._levels[level]

    def clear(self) -> None:
        """Every level is new."""
        self._levels.clear()
