"""What order books cost, in CPU time of their process. Run from the project: ``PYTHONPATH=. python FILE``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from statistics import median

import numpy as np

from feeds.agents import Agents, Terrain
from feeds.market import MarketFeed, MarketOptions
from feeds.matching import Order, OrderBook
from feeds.records import LAST
from feeds.transcript import Transcript
from feeds.venue import SelfTrade
from tests.benchmarks.bench_simulate import Idle, core_share
from tests.benchmarks.report import Row, print_table

REPEATS = 5
EVENTS = 200_000
TARGET = 150_000

TERRAIN = Terrain(1_000_000, 20, 1e6)

#: An order entered (-1, side, lots, limit), or one cancelled: its place among those entered.
Action = tuple[int, int, int, int | None]


class NotedBook(OrderBook):
    """A book that notes what agents do in it."""

    def __init__(self) -> None:
        super().__init__(0, TERRAIN.price, Transcript(1))
        self.actions: list[Action] = []
        self._places: dict[Order, int] = {}

    def enter(
        self, order: Order, price: int | None, rests: bool = True, self_trade: SelfTrade = "cancel_newest"
    ) -> bool:
        self._places[order] = len(self._places)
        self.actions.append((-1, order.side, order.qty, price))
        return super().enter(order, price, rests, self_trade)

    def cancel(self, order: Order) -> None:
        self.actions.append((self._places[order], 0, 0, None))
        super().cancel(order)


def agents_in(book: OrderBook) -> Agents:
    """Return agents who make an event in a millisecond."""
    return Agents(book, TERRAIN, np.random.SeedSequence(1), start_ns=0, events_per_s=1_000.0)


def noted() -> tuple[list[Action], int]:
    """Return what agents do in one book, and how many numbers they draw for it; not every cancellation is accepted."""
    book, drawn = NotedBook(), count()
    agents = agents_in(book)
    agents._numbers = (numbers for numbers, _ in zip(agents._numbers, drawn, strict=False))
    agents.act(EVENTS * 1_000_000)
    return book.actions, next(drawn)


def matched(done: list[Action]) -> None:
    """Do it again, with nothing but the book."""
    book = OrderBook(0, TERRAIN.price, Transcript(1))
    orders: list[Order] = []
    for place, side, lots, price in done:
        if place < 0:
            orders.append(order := Order(side, lots))
            book.enter(order, price)
        else:
            book.cancel(orders[place])
        book.close_event(0)


def read(done: list[Action]) -> None:
    """Read it and make the orders, without a book."""
    orders: list[Order] = []
    for place, side, lots, _ in done:
        if place < 0:
            orders.append(Order(side, lots))


def per_second(number: int, work: Callable[[], object]) -> float:
    """Return how many a second of CPU time that is."""
    began = time.process_time()
    work()
    return number / (time.process_time() - began)


def feed(symbols: int, rate: float) -> MarketFeed:
    """Return a market of that many pairs."""
    return MarketFeed(MarketOptions(symbols=tuple(f"S{i}/USD" for i in range(symbols)), rate=rate, start_ns=0))


def market_per_second(symbols: int) -> float:
    """Return order events per second of CPU time of a whole market that is not paced: drawn, matched, as columns."""
    batches = feed(symbols, 20_000.0 * symbols).windows()
    for _ in islice(batches, 3):
        pass
    began = time.process_time()
    events = 0
    while events < EVENTS:
        events += int(np.count_nonzero(next(batches).levels.flags & LAST))
    return events / (time.process_time() - began)


def draw(numbers: int) -> None:
    """Draw random numbers of events and read them, and nothing else."""
    for _ in islice(agents_in(OrderBook(0, TERRAIN.price, Transcript(1)))._numbers, numbers):
        pass


def rows() -> Iterator[Row]:
    """Measure, the contenders taking turns; each the median."""
    done, drawn = noted()
    turns = [
        (
            per_second(len(done), lambda: matched(done)),
            per_second(len(done), lambda: read(done)),
            market_per_second(6),
            per_second(EVENTS, lambda: draw(drawn)),
        )
        for _ in range(REPEATS)
    ]
    matching, loop, market, drawing = (median(column) for column in zip(*turns, strict=True))
    yield Row(
        what="matching alone: one book, the orders and cancellations of its agents, with what is published noted",
        figure=f"{matching:,.0f} order events/s of one core",
        compared_with=f"a loop that reads them and makes the orders: {loop:,.0f}/s ({loop / matching:.1f} times)",
        target=f"{TARGET:,}",
        reached=matching >= TARGET,
    )
    yield Row(
        what="whole market of 6 symbols, not paced: drawn, matched, as columns",
        figure=f"{market:,.0f} order events/s of one core",
        compared_with=f"drawing and reading their random numbers: {drawing:,.0f}/s ({drawing / market:.1f} times)",
        target=f"{TARGET:,}",
        reached=market >= TARGET,
    )
    bare = median(core_share(Idle()) for _ in range(3))
    for symbols, rate in ((6, 1_200.0), (1_000, 20_000.0)):
        yield Row(
            what=f"market paced by the clock, {symbols:,} symbols, {rate:,.0f} order events/s",
            figure=f"{median(core_share(feed(symbols, rate)) for _ in range(3)):.1%} of a core",
            compared_with=f"trio sending an empty window as often: {bare:.1%}",
        )


if __name__ == "__main__":
    print_table("feeds.market", rows())
