"""The order book against a matcher that is nothing but a list, searched from its beginning for every trade."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.matching import Level, Order, OrderBook, Side
from feeds.records import BUY, SELL
from feeds.transcript import NOTHING, Transcript
from feeds.venue import Match, SelfTrade

reproducible = settings(deadline=None, derandomize=True)


class Resting:
    """An order of the reference."""

    def __init__(self, key: int, owner: int, side: int, price: int, qty: int, display: int) -> None:
        self.key, self.owner, self.side, self.price, self.display = key, owner, side, price, display
        self.shown, self.hidden = 0, qty
        self.show()

    def show(self) -> None:
        self.shown = min(self.hidden, self.display or self.hidden)
        self.hidden -= self.shown

    def values(self) -> tuple[int, ...]:
        return self.key, self.owner, self.shown, self.hidden


class Naive:
    """Price-time priority by the letter: the orders in one list, the oldest first."""

    def __init__(self) -> None:
        self.orders: list[Resting] = []

    def enter(
        self, key: int, owner: int, side: int, price: int | None, qty: int, display: int, rests: bool, how: SelfTrade
    ) -> tuple[list[tuple[int, int, int, int]], list[int], bool]:
        """Return the trades (maker, taker, price, qty), the keys withdrawn, and whether it met its owner."""
        trades, withdrawn, met = [], [], False
        while qty and not met:
            meets = [o for o in self.orders if o.side == -side and (price is None or (price - o.price) * side >= 0)]
            if not meets:
                break
            maker = min(meets, key=lambda o: o.price * side)  # of equals the first, which is the oldest
            if owner and maker.owner == owner:
                if how != "cancel_newest":
                    self.orders.remove(maker)
                    withdrawn.append(maker.key)
                met = how != "cancel_oldest"
                continue
            traded = min(qty, maker.shown)
            trades.append((maker.key, key, maker.price, traded))
            qty -= traded
            maker.shown -= traded
            if not maker.shown:
                self.orders.remove(maker)
                if maker.hidden:
                    maker.show()
                    self.orders.append(maker)
        if qty and rests and price is not None and not met:
            self.orders.append(Resting(key, owner, side, price, qty, display))
        return trades, withdrawn, met

    def reduce(self, order: Resting, qty: int) -> None:
        order.shown = min(order.shown, qty)
        order.hidden = qty - order.shown

    def queues(self) -> dict[tuple[int, int], list[tuple[int, ...]]]:
        found: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        for order in self.orders:
            found.setdefault((order.side, order.price), []).append(order.values())
        return found


class Desk:
    """An order book, the reference, and what has been traded by everybody."""

    def __init__(self) -> None:
        self.transcript = Transcript(1)
        self.book = OrderBook(0, 100, self.transcript)
        self.naive = Naive()
        self.orders: dict[int, Order] = {}
        self.bought: dict[int, int] = {}

    def enter(
        self, owner: int, side: int, price: int | None, qty: int, display: int, rests: bool, how: SelfTrade
    ) -> None:
        key = len(self.orders) + 1
        order = self.orders[key] = Order(side, qty, key, owner, display)
        foreseen = self.book.walk(side, price, qty, owner, self_trade=how)
        prints = len(self.transcript.prints) // 4
        met = self.book.enter(order, price, rests, how)
        self.book.close_event(key)
        trades, withdrawn, naive_met = self.naive.enter(key, owner, side, price, qty, display, rests, how)
        assert met == naive_met
        assert self.transcript.take_withdrawn() == withdrawn
        assert foreseen == by_price(trades)
        assert self.transcript.take_fills() == self._matches(trades, prints)
        flat = self.transcript.prints[4 * prints :]
        assert flat == [n for k, t in enumerate(trades) for n in (t[2], t[3], side, prints + k + 1)]
        self.check()

    def _matches(self, trades: list[tuple[int, int, int, int]], prints: int) -> list[Match]:
        """The fills of those who have an owner: the maker's before the taker's."""
        matches = []
        for number, (maker, taker, price, qty) in enumerate(trades, prints + 1):
            for key in (maker, taker):
                order = self.orders[key]
                self.bought[order.owner] = self.bought.get(order.owner, 0) + order.side * qty
                if order.owner:
                    matches.append(Match(key, price, qty, key == maker, number))
        return matches

    def amend(self, place: int, price: int, qty: int, how: SelfTrade) -> None:
        """Amend one of the resting orders, as a venue does."""
        resting = self.naive.orders[place % len(self.naive.orders)]
        order = self.orders[resting.key]
        if price == resting.price and qty <= resting.shown + resting.hidden:
            self.naive.reduce(resting, qty)
            self.book.reduce(order, qty)
        else:
            self.cancel(place)
            self.enter(resting.owner, resting.side, price, qty, resting.display, True, how)
        self.check()

    def cancel(self, place: int) -> None:
        resting = self.naive.orders.pop(place % len(self.naive.orders))
        self.book.cancel(self.orders[resting.key])
        self.check()

    def check(self) -> None:
        """The same queues on both sides, in the same order, with totals, and ranks as they should be."""
        assert {**queues(self.book.bids, BUY), **queues(self.book.asks, SELL)} == self.naive.queues()
        assert sum(self.bought.values()) == 0
        resting = {o.key for o in self.naive.orders}
        assert {key for key, order in self.orders.items() if order.qty} == resting


def by_price(trades: list[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
    levels: dict[int, int] = {}
    for _, _, price, qty in trades:
        levels[price] = levels.get(price, 0) + qty
    return list(levels.items())


def queues(side: Side, sign: int) -> dict[tuple[int, int], list[tuple[int, ...]]]:
    """What stands in one side, having looked at how it hangs together."""
    assert side.ranks == sorted(side.levels)
    assert side.ranks[0] == NOTHING
    assert not list(side.levels[NOTHING])
    for level in side:
        orders = list(level)
        assert level.lots == sum(o.qty for o in orders)
        assert [o.before for o in orders] == [None, *orders[:-1]]
        assert (level.head, level.tail) == (orders[0], orders[-1])
        assert {o.level for o in orders} == {level}
    return {(sign, level.rank * sign): [(o.key, o.owner, o.qty, o.hidden) for o in level] for level in side}


#: All that an action could need; what is there more often is chosen more often. Prices are from two ticks below the
#: middle to two above, so that some rest in a queue and some cross a level or two.
CHOICES = (
    ("enter",) * 8 + ("amend", "cancel"),
    (0, 1, 2),
    (BUY, SELL),
    (98, 99, 99, 100, 100, 101, 101, 102, None),
    range(1, 13),
    (0, 1, 3),
    (True, True, True, False),
    ("cancel_newest", "cancel_oldest", "cancel_both"),
)


def chosen(number: int) -> list:
    """One of each choice; a number, because drawing one is eight times as fast as drawing eight."""
    picked = []
    for choice in CHOICES:
        number, place = divmod(number, len(choice))
        picked.append(choice[place])
    return picked


@settings(reproducible, max_examples=200)
@given(st.lists(st.integers(0, prod(map(len, CHOICES)) - 1), min_size=20, max_size=60))
def test_any_sequence_matches_as_by_the_letter(numbers):
    desk = Desk()
    for place, (name, owner, side, price, qty, display, rests, how) in enumerate(map(chosen, numbers)):
        if name == "enter":
            desk.enter(owner, side, price, qty, display, rests, how)
        elif desk.naive.orders and name == "cancel":
            desk.cancel(7 * place)
        elif desk.naive.orders:
            desk.amend(7 * place, price or 100, qty, how)


class Entered(NamedTuple):
    book: OrderBook
    transcript: Transcript

    def order(self, side: int, price: int, qty: int, **terms: int) -> Order:
        order = Order(side, qty, **terms)
        self.book.enter(order, price)
        return order


def entered() -> Entered:
    transcript = Transcript(1)
    return Entered(OrderBook(0, 100, transcript), transcript)


def keys(level: Level) -> list[int]:
    return [order.key for order in level]


def test_better_prices_first_and_of_one_price_the_oldest():
    book, transcript = market = entered()
    for key, price in ((1, 101), (2, 100), (3, 101), (4, 100)):
        market.order(SELL, price, 5, key=key, owner=key)
    book.enter(Order(BUY, 12, 9, 9), 101)
    book.close_event(0)
    assert [(m.key, m.price, m.qty) for m in transcript.take_fills() if m.maker] == [
        (2, 100, 5),
        (4, 100, 5),
        (1, 101, 2),
    ]
    assert (book.last, book.trades) == (101, 3)


def test_an_iceberg_goes_to_the_back_with_every_slice():
    book, transcript = market = entered()
    iceberg = market.order(SELL, 100, 10, key=1, owner=1, display=4)
    market.order(SELL, 100, 3, key=2, owner=2)
    assert book.asks.best.lots == 7
    book.enter(Order(BUY, 5), None)
    assert keys(book.asks.best) == [2, 1]
    assert (iceberg.qty, iceberg.hidden, book.asks.best.lots) == (4, 2, 6)
    book.enter(Order(BUY, 7), None)
    assert (iceberg.qty, iceberg.hidden, book.asks.best.lots) == (1, 0, 1)
    book.close_event(0)
    assert sum(m.qty for m in transcript.take_fills() if m.key == 1) == 9


def test_what_an_iceberg_hides_is_within_reach_but_not_beyond_an_order_that_stops_the_taker():
    book, _ = market = entered()
    market.order(SELL, 100, 9, key=1, owner=1, display=2)
    market.order(SELL, 100, 3, key=2, owner=2)
    assert book.walk(BUY, 100, 20, 3) == [(100, 12)]
    assert book.walk(BUY, 100, 20, 2, self_trade="cancel_oldest") == [(100, 9)]
    assert book.walk(BUY, 100, 20, 2, self_trade="cancel_newest") == [(100, 2)]
    assert book.walk(BUY, 100, 1, 2, self_trade="cancel_both") == [(100, 1)]


def test_less_keeps_its_place_and_hidden_lots_go_first():
    book, _ = market = entered()
    iceberg = market.order(BUY, 100, 10, key=1, display=4)
    market.order(BUY, 100, 5, key=2)
    book.reduce(iceberg, 6)
    assert (iceberg.qty, iceberg.hidden, book.bids.best.lots) == (4, 2, 9)
    book.reduce(iceberg, 3)
    assert (iceberg.qty, iceberg.hidden, book.bids.best.lots) == (3, 0, 8)
    assert keys(book.bids.best) == [1, 2]


def test_an_order_that_is_stopped_at_once_changes_no_level():
    book, transcript = market = entered()
    market.order(SELL, 100, 5, key=1, owner=1)
    rows = len(transcript.levels)
    assert book.enter(Order(BUY, 5, 2, 1), 100, True, "cancel_newest")
    assert len(transcript.levels) == rows
    assert not book.bids.best.lots


def test_an_empty_side_is_met_by_nobody():
    book, transcript = entered()
    assert not book.enter(Order(BUY, 5), None)
    assert book.walk(SELL, None, 5, 1) == []
    assert (transcript.prints, book.bids.best.lots) == ([], 0)
