"""Simulated agents of one order book: what they enter and when, with no idea of where the price should be.

The flow is that of Cont, Stoikov and Talreja, "A stochastic model for order book dynamics", Operations Research 58
(2010), 549-563: limit orders arrive as Poisson processes whose rates depend on the distance from the opposite best
price, every resting order is cancelled at a rate that depends on its distance, and market orders arrive at a constant
rate. The rates are those that they estimated for a stock in Tokyo (their table 2), per unit of model time.

What is added to it, each from a source:

* The signs of market orders have a long memory. Lillo, Mike and Farmer, "Theory for long memory in supply and demand",
  Physical Review E 71 (2005), 066122: traders split large *hidden orders* into pieces. A fixed number of them is at
  work; each market order is a piece of one picked at random, and one that is finished is replaced by another, whose
  side is random and whose number of pieces follows a Pareto law of exponent 1.5. The autocorrelation of signs then
  decays like the lag to the power of -0.5.
* A market order takes at most what the best price offers. Farmer, Gillemot, Lillo, Mike and Sen, "What really causes
  large price changes?", Quantitative Finance 4 (2004), 383-397: traders seldom take more than that.

What is simplified: orders do not answer to each other, so the price does not know that signs can be predicted and
trends more than a real one; sizes are independent and lognormal instead of all one; agents have no cash and no limit.

It knows one book and its own random numbers. It must not know other instruments, clients, or the wall time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np

from feeds.clock import NS
from feeds.instruments import MAX_UNITS
from feeds.matching import Order, OrderBook
from feeds.records import BUY, I64, SELL

#: Limit orders of one side by distance in steps, 1 and further; beyond the fifth ``k / i**alpha`` with their fit.
NEAR_RATES: Final = (1.85, 1.51, 1.09, 0.88, 0.77)
LIMIT_K: Final = 1.92
LIMIT_ALPHA: Final = 0.52
#: Cancellations of one resting order by its distance; the fifth stands for all beyond.
CANCEL_RATES: Final = (0.71, 0.81, 0.68, 0.56, 0.47)
#: Market orders of one side.
MARKET_RATE: Final = 0.94

#: Steps from the opposite best price to the furthest limit order: the law cannot be summed to infinity.
REACH: Final = 50
#: Hidden orders at work. The autocorrelation falls with it, roughly like its power -0.5.
PARENTS: Final = 5
#: Exponent of the Pareto law of their length, and their longest: without it a mean of many would never settle.
PARENT_ALPHA: Final = 1.5
MAX_PIECES: Final = 1_000
#: Of a size's logarithm, as in :class:`feeds.ticks.Ticks`.
SIZE_DEVIATION: Final = 1.0

LIMIT_RATES: Final = np.array([*NEAR_RATES, *[LIMIT_K / i**LIMIT_ALPHA for i in range(len(NEAR_RATES) + 1, REACH + 1)]])
_LIMITS: Final = 2 * float(LIMIT_RATES.sum())
_ARRIVALS: Final = _LIMITS + 2 * MARKET_RATE
_MOST_CANCELS: Final = max(CANCEL_RATES)
#: Signed distances of limit orders, and the distribution function of both sides together.
_DISTANCES: Final = np.concatenate([side * np.arange(1, REACH + 1) for side in (BUY, SELL)])
_SHARES: Final = np.concatenate([LIMIT_RATES, LIMIT_RATES]).cumsum()[:-1] / _LIMITS
#: Order events in a unit of model time: every limit order has, later, one end.
EVENTS: Final = 2 * _LIMITS

#: One event's numbers: its kind, a choice, a limit order's signed distance, a size, a new hidden order's signed
#: pieces, and the time to the next event in units of its mean.
_Numbers = tuple[float, float, int, int, int, float]


class Terrain(msgspec.Struct, frozen=True):
    """Where agents of one instrument trade.

    Attributes:
        price: At which the market opens, ticks.
        step: Distance of two prices at which they quote, ticks.
        lots: Median size of an order.
    """

    price: int
    step: int
    lots: float

    @property
    def floor(self) -> int:
        """The lowest offer that they believe, ticks: all their bids fit under it, and above zero."""
        return self.step * (REACH + 1)

    @property
    def ceiling(self) -> int:
        """The highest bid that they believe, ticks."""
        return MAX_UNITS // 4


class Agents:
    """Those who trade in one book.

    Together they are a Markov chain in continuous time: the next event comes after an exponential time whose mean
    depends on how many orders rest. Cancellations are drawn at the largest rate that any order has and then accepted or
    not (thinning), and an order that has traded is noticed when it would have been cancelled. So nothing has to be
    counted when clients take orders away, and how time is cut into windows changes nothing.

    Args:
        book: Theirs; empty. They fill it with what would rest after a long time without market orders: at each
            distance a Poisson number of orders, whose mean is the rate of arrival by that of cancellation.
        terrain: Where they trade.
        seed: Of their random numbers.
        start_ns: Market time at which they begin, ns UTC.
        events_per_s: Order events that they make in a second of market time, in the mean.
    """

    #: Events whose numbers are drawn at once; beyond it a call of numpy costs less than a tenth of an event.
    BLOCK = 256

    def __init__(
        self, book: OrderBook, terrain: Terrain, seed: np.random.SeedSequence, *, start_ns: int, events_per_s: float
    ) -> None:
        self._book = book
        self._step = terrain.step
        self._span = REACH * terrain.step
        self._lowest = {BUY: terrain.floor, SELL: -terrain.ceiling}
        self._log_lots = math.log(terrain.lots)
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._unit_ns = EVENTS / events_per_s * NS
        self._resting: list[Order] = []
        self._open(terrain.price)
        self._parents: list[int] = self._draw_parents(PARENTS).tolist()
        self._numbers = self._draw()
        self._due_ns = start_ns + self._pause(self._random.standard_exponential())

    def act(self, until_ns: int) -> None:
        """Do what is due up to ``until_ns`` (ns UTC)."""
        numbers, close_event = self._numbers, self._book.close_event
        while self._due_ns <= until_ns:
            kind, choice, distance, lots, pieces, wait = next(numbers)
            kind *= _ARRIVALS + _MOST_CANCELS * len(self._resting)
            if kind < _LIMITS:
                happened = self._quote(distance, lots)
            elif kind < _ARRIVALS:
                happened = self._trade(choice, lots, pieces)
            else:
                happened = self._cancel(int((kind - _ARRIVALS) / _MOST_CANCELS), choice)
            if happened:
                close_event(self._due_ns)
            self._due_ns += self._pause(wait)

    def _pause(self, wait: float) -> int:
        """Return the time to the next event, ns, at least 1; ``wait`` is in units of its mean."""
        return 1 + int(wait * self._unit_ns / (_ARRIVALS + _MOST_CANCELS * len(self._resting)))

    def _open(self, price: int) -> None:
        """Fill the book around a price."""
        means = LIMIT_RATES / [*CANCEL_RATES, *[CANCEL_RATES[-1]] * (REACH - len(CANCEL_RATES))]
        bid = price // self._step * self._step
        for side, best in ((BUY, bid), (SELL, bid + self._step)):
            counts = self._random.poisson(means)
            counts[0] = max(counts[0], 1)
            distances = np.repeat(np.arange(REACH), counts)
            for distance, lots in zip(distances.tolist(), self._draw_lots(len(distances)).tolist(), strict=True):
                order = Order(side, lots)
                self._book.enter(order, best - side * distance * self._step)
                self._resting.append(order)

    def _draw(self) -> Iterator[_Numbers]:
        """Return the numbers of one event after the other, endless."""
        random, block = self._random, self.BLOCK
        while True:
            kinds, choices, places = random.random((3, block))
            distances = _DISTANCES[np.searchsorted(_SHARES, places, side="right")]
            columns = (kinds, choices, distances, self._draw_lots(block), self._draw_parents(block))
            waits = random.standard_exponential(block)
            yield from zip(*[column.tolist() for column in columns], waits.tolist(), strict=True)

    def _draw_lots(self, count: int) -> I64:
        """Return sizes of orders, lots."""
        lots = np.exp(self._log_lots + SIZE_DEVIATION * self._random.standard_normal(count))
        sizes: I64 = lots.clip(1.0, MAX_UNITS).astype(np.int64)
        return sizes

    def _draw_parents(self, count: int) -> I64:
        """Return numbers of pieces of hidden orders, below 0 to sell."""
        pieces = (1.0 - self._random.random(count)) ** (-1 / PARENT_ALPHA)
        signs = np.where(self._random.random(count) < 0.5, BUY, SELL)
        lengths: I64 = np.minimum(pieces, MAX_PIECES).astype(np.int64) * signs
        return lengths

    def _quote(self, distance: int, lots: int) -> bool:
        """Enter a limit order ``distance`` steps from the best price of the other side; below 0 to sell."""
        book = self._book
        if distance > 0:
            side, own, against = BUY, book.bids, book.asks
        else:
            side, own, against, distance = SELL, book.asks, book.bids, -distance
        limit = -against.ranks[-1]
        if not self._lowest[side] <= limit <= own.ranks[-1] + self._span:
            limit = self._believed(side, limit)
        rank = ((limit - 1) // self._step + 1 - distance) * self._step
        order = Order(side, lots)
        book.enter(order, rank * side)
        self._resting.append(order)
        return True

    def _believed(self, side: int, limit: int) -> int:
        """Return what stands for the best price of the other side where that is missing, or out of all proportion.

        Where a side is empty, or the spread wider than the furthest limit order, agents gather around the last price,
        so that nobody can lead them away with one order. Below the floor (above the ceiling) they take what is offered
        instead of following it.
        """
        return max(self._lowest[side], min(limit, self._book.last * side + self._step))

    def _trade(self, choice: float, lots: int, pieces: int) -> bool:
        """Enter a market order, a piece of a hidden one; return whether there was anything to trade with."""
        parents = self._parents
        picked = int(choice * PARENTS)
        side = BUY if parents[picked] > 0 else SELL
        parents[picked] = parents[picked] - side or pieces
        book = self._book
        lots = min(lots, (book.asks if side == BUY else book.bids).best.lots)
        if lots:
            book.enter(Order(side, lots), None)
        return lots > 0

    def _cancel(self, place: int, choice: float) -> bool:
        """Cancel the order at a place in the list if that is accepted; return whether it was."""
        book, resting = self._book, self._resting
        place = min(place, len(resting) - 1)  # rounding may lead one too far
        order = resting[place]
        rests = order.qty > 0
        if rests:
            against = book.asks if order.side == BUY else book.bids
            steps = -((order.level.rank + against.ranks[-1]) // self._step)
            if choice * _MOST_CANCELS >= CANCEL_RATES[min(steps, len(CANCEL_RATES)) - 1]:
                return False
            book.cancel(order)
        last = resting.pop()
        if last is not order:
            resting[place] = last
        return rests
