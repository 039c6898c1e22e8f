"""Orders of clients among the agents of an order book: they show, they print, and nothing comes from nowhere."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import trio
import trio.testing

from feeds.market import MarketFeed, MarketOptions
from feeds.records import BUY, SELL, Batch, Marker
from tests.scripted import market_of
from tests.test_gateway import Client
from tests.trading import types
from ticker.errors import RequestError
from ticker.history import History, HistoryOptions
from ticker.market import Market
from ticker.orders import events
from ticker.orders.accounts import AccountOptions, Accounts
from ticker.orders.exchange import Change, Exchange, Wanted
from ticker.orders.ledger import DIGITS, Ledger
from ticker.orders.order import Report, Terms
from ticker.wire import Request

START = 1_750_000_000_000_000_000
NAMES = "alice", "bob", "carol"
BTC = 0
BALANCES = {"BTC": "1000", "USD": "100000000", "ETH": "1000"}


class Floor:
    """An exchange over the books of a market that a test moves by hand, window by window.

    Attributes:
        history: The market's state.
        fills: Of every account, as they were reported.
        trades: Every print so far: (lots, aggressor, ticks) by instrument and trade id.
        chain: Digest of every event so far, in order.
    """

    def __init__(self, seed: int = 1, *, maker_bps: float = 0.0, taker_bps: float = 0.0) -> None:
        options = MarketOptions(symbols=("BTC/USD", "ETH/USD"), rate=2_000.0, seed=seed, start_ns=START)
        self.feed = MarketFeed(options)
        self.history = History(self.feed.instruments, HistoryOptions())
        terms = AccountOptions(balances=BALANCES, maker_bps=maker_bps, taker_bps=taker_bps)
        self.exchange = Exchange(self.history, self.feed.venue, Accounts(dict.fromkeys(NAMES, terms)), Ledger())
        self.fills: list[Report] = []
        self.trades: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._hash = hashlib.sha256()
        self._windows: Iterator[Batch] = self.feed.windows()
        self.exchange.new_epoch()
        self.move()

    def move(self, windows: int = 1) -> list[Report]:
        """Let the agents act, and return what that does to clients."""
        reports = []
        for _ in range(windows):
            reports += self.take(self.compute())
        return reports

    def compute(self) -> Batch:
        """Let the agents act; what that does is not known yet."""
        return next(self._windows)

    def take(self, batch: Batch) -> list[Report]:
        """Take in what the agents have done, and return what that does to clients."""
        self.history.apply(batch, lambda event: None)
        self.exchange.moved(batch)
        rows = batch.trades
        columns = (rows.instrument, rows.trade_id, rows.qty, rows.side, rows.price)
        for instrument, number, *what in zip(*[column.tolist() for column in columns], strict=True):
            assert (instrument, number) not in self.trades
            self.trades[instrument, number] = tuple(what)
        return self._drain()

    def _drain(self) -> list[Report]:
        happened, reports = self.exchange.drain()
        for event in happened:
            self._hash.update(events.encode(event))
        self.fills += [report for report in reports if report.exec_type == "trade"]
        return reports

    @property
    def chain(self) -> str:
        return self._hash.hexdigest()

    def place(self, account: str, side: int, qty: int, limit: int | None = None, **more: Any) -> list[Report]:
        kind = more.pop("order_type", "market" if limit is None else "limit")
        symbol = more.pop("symbol", "BTC/USD")
        terms = Terms(symbol=symbol, name=symbol, side=side, qty=qty, limit=limit, order_type=kind, **more)
        self.order, _ = self.exchange.place(account, Wanted(terms, ""), idempotent=True)
        return self._drain()

    def cancel(self, account: str) -> list[Report]:
        self.exchange.cancel(account, self.order.key, "")
        return self._drain()

    def shown(self, side: int, price: int) -> int:
        """Lots that subscribers see at a price."""
        return dict(self.history.books[BTC].top(side, 1_000)).get(price, 0)

    def touch(self, side: int) -> int:
        return self.history.books[BTC].top(side, 1)[0][0]


@pytest.fixture
def floor() -> Floor:
    return Floor()


def test_an_order_shows_in_the_book_until_it_is_cancelled(floor):
    price = floor.touch(BUY) - 7  # between two prices of agents
    assert floor.shown(BUY, price) == 0
    assert types(floor.place("alice", BUY, 123, price)) == ["new"]
    floor.move()
    assert floor.shown(BUY, price) == 123
    floor.cancel("alice")
    floor.move()
    assert floor.shown(BUY, price) == 0


def test_a_market_order_takes_from_agents_and_prints_under_the_numbers_of_its_fills(floor):
    offers = floor.history.books[BTC].top(SELL, 2)
    qty = offers[0][1] + offers[1][1] // 2
    fills = [report for report in floor.place("alice", BUY, qty) if report.exec_type == "trade"]
    assert [(report.last_price, report.last_qty) for report in fills if report.last_price == offers[0][0]]
    assert sum(report.last_qty for report in fills) == qty
    floor.move()
    for report in fills:
        assert floor.trades[BTC, report.trade_id] == (report.last_qty, BUY, report.last_price)


def test_two_clients_trade_with_each_other_at_the_price_of_who_was_there_first(floor):
    bid, ask = floor.touch(BUY), floor.touch(SELL)
    price = (bid + ask) // 2
    assert bid < price < ask
    floor.place("alice", SELL, 500, price)
    reports = floor.place("bob", BUY, 500, price, time_in_force="ioc")
    made, taken = [report for report in reports if report.exec_type == "trade"]
    assert {made.account, taken.account} == {"alice", "bob"}
    assert made.trade_id == taken.trade_id
    floor.move()
    assert floor.trades[BTC, taken.trade_id] == (500, BUY, price)
    assert floor.exchange.ledger.accounts["bob"].position("BTC/USD").qty == 500
    assert floor.exchange.ledger.accounts["alice"].position("BTC/USD").qty == -500


def test_agents_come_to_a_resting_order_that_is_better_than_theirs(floor):
    floor.place("alice", SELL, 1_000, floor.touch(SELL) - 1, post_only=True)
    reports = floor.move(400)
    assert [report.exec_type for report in reports][-1] == "filled"
    assert all(report.maker for report in reports if report.exec_type == "trade")


def until_sold(floor: Floor) -> Batch:
    """Let the agents act until they buy what is offered for sale best; return the batch that shows it, not taken in."""
    price, batch = floor.order.terms.limit, floor.compute()
    while price not in batch.trades.price[batch.trades.side == BUY]:
        floor.take(batch)
        batch = floor.compute()
    return batch


@pytest.mark.parametrize("what", ["one", "all"])
def test_a_request_between_a_fill_and_the_batch_that_shows_it_is_too_late(floor, what):
    floor.place("alice", SELL, 1, floor.touch(SELL) - 1, post_only=True)
    order, batch = floor.order, until_sold(floor)
    if what == "all":
        assert floor.exchange.cancel_all("alice", "user") == 0
    else:
        with pytest.raises(RequestError, match="Unknown order"):
            floor.exchange.open_order("alice", order.key, "")  # to amend or cancel it
    assert types(floor.take(batch)) == ["trade", "filled"]
    assert floor.exchange.ledger.accounts["alice"].position("BTC/USD").qty == -1


def test_an_order_between_a_fill_and_the_batch_that_shows_it_meets_the_position_after_the_fill(floor):
    floor.place("alice", BUY, 2)
    floor.place("alice", SELL, 2, floor.touch(SELL) - 1, reduce_only=True)
    batch = until_sold(floor)
    floor.place("alice", SELL, 1)
    floor.take(batch)
    assert floor.exchange.ledger.accounts["alice"].position("BTC/USD").qty == -1


def test_fok_counts_on_nothing_of_its_own_account(floor):
    inside = (floor.touch(BUY) + floor.touch(SELL)) // 2
    floor.place("alice", SELL, 500, inside)
    reports = floor.place("alice", BUY, 500, inside, time_in_force="fok")
    assert types(reports)[-1] == "canceled"
    floor.place("bob", SELL, 500, inside)
    assert "filled" in types(floor.place("carol", BUY, 1_000, inside, time_in_force="fok"))


def trade_at_random(floor: Floor, seed: int, steps: int = 300) -> None:
    """Let three accounts do all kinds of things, and the market move between them."""
    chance = random.Random(seed)
    for step in range(steps):
        name, side = chance.choice(NAMES), chance.choice((BUY, SELL))
        middle, kind = (floor.touch(BUY) + floor.touch(SELL)) // 2, chance.random()
        limit = max(1, middle + chance.randint(-60, 60))
        more: dict[str, Any] = {"cl_ord_id": f"c{step}", "self_trade": chance.choice(("cancel_newest", "cancel_both"))}
        more["reduce_only"] = chance.random() < 0.3
        late = floor.compute() if chance.random() < 0.3 else None  # a batch that is on its way meanwhile
        try:
            if kind < 0.25:
                floor.place(name, side, chance.randint(1, 3_000_000), **more)
            elif kind < 0.5:
                floor.place(name, side, chance.randint(1, 3_000_000), limit, **more)
            elif kind < 0.6:
                floor.place(name, side, 2_000_000, limit, order_type="iceberg", display=150_000, **more)
            elif kind < 0.7:
                floor.place(name, side, 500_000, limit, time_in_force=chance.choice(("ioc", "fok")), **more)
            elif kind < 0.8 and (mine := list(floor.exchange.ledger.open_orders(name))):
                order = floor.exchange.open_order(name, chance.choice(mine).key, "")
                floor.exchange.amend(name, order, Change(limit=limit, qty=order.cum_qty + chance.randint(1, 10**6)))
                floor._drain()
            elif mine := list(floor.exchange.ledger.open_orders(name)):
                floor.exchange.cancel(name, chance.choice(mine).key, "")
                floor._drain()
        except RequestError:
            pass
        if late is not None:
            floor.take(late)
        floor.move(chance.randint(0, 3))
    floor.move()


@pytest.mark.parametrize("seed", range(4))
def test_every_fill_is_in_a_print_and_money_and_coins_change_by_fills_and_fees_alone(seed):
    floor = Floor(seed + 1, maker_bps=2.0, taker_bps=5.0)
    trade_at_random(floor, seed)
    assert len(floor.fills) > 100
    cash: Counter[str] = Counter()
    coins: Counter[str] = Counter()
    sides: Counter[tuple[int, int]] = Counter()
    for fill in floor.fills:  # each is a print, or a part of one
        side, number = fill.terms.side, fill.trade_id
        qty, aggressor, price = floor.trades[BTC, number]
        assert fill.last_price == price
        assert (side == aggressor) is not fill.maker
        sides[number, side] += fill.last_qty
        assert sides[number, side] <= qty  # the rest of that side is an agent's
        cash[fill.account] -= side * price * fill.last_qty + fill.last_fee
        assert not fill.terms.reduce_only or fill.last_qty <= -side * coins[fill.account]
        coins[fill.account] += side * fill.last_qty
    instrument, one = floor.feed.instruments[BTC], 10**DIGITS
    for name in NAMES:
        account = floor.exchange.ledger.accounts[name]
        dollars = Fraction(cash[name], 10 ** (instrument.price_precision + instrument.qty_precision))
        assert Fraction(account.balances["USD"], one) == int(BALANCES["USD"]) + dollars
        coin = Fraction(coins[name], 10**instrument.qty_precision)
        assert Fraction(account.balances["BTC"], one) == int(BALANCES["BTC"]) + coin


def test_the_same_seed_and_the_same_commands_make_the_same_journal():
    chains = set()
    for market, commands in ((1, 5), (1, 5), (2, 5), (1, 6)):
        floor = Floor(market)
        trade_at_random(floor, commands, steps=80)
        chains.add((market, commands, floor.chain))
    assert len(chains) == 3
    assert len({chain for *_, chain in chains}) == 3


async def served(feed: MarketFeed, market: Market, seconds: float) -> None:
    """Run the market for a while, as a server does."""
    send, receive = trio.open_memory_channel[Any](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        with trio.move_on_after(seconds):
            async for event in receive:
                if isinstance(event, Marker):
                    await market.marked(event)
                else:
                    market.happened(event)
        nursery.cancel_scope.cancel()


async def test_a_served_market_takes_orders_into_its_books(autojump_clock):
    feed = MarketFeed(MarketOptions(symbols=("BTC/USD",), start_ns=START))
    market, client = market_of(feed, HistoryOptions()), Client()
    await market.gateway.recover()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(market.gateway.run)
        nursery.start_soon(market.broadcaster.run)
        await served(feed, market, 0.1)
        price = market.history.books[BTC].top(BUY, 1)[0][0] - 7
        params = {
            "symbol": "BTC/USD",
            "side": "buy",
            "order_type": "limit",
            "limit_price": price / 10,
            "order_qty": 0.5,
        }
        market.gateway.submit(client, Request(method="add_order", params=params), "")
        await trio.sleep(0.01)
        assert [method for method, _ in client.replies()] == ["add_order"]
        batch = feed.venue.publish(feed.venue.now_ns + 1)
        assert (price, 50_000_000) in zip(batch.levels.price.tolist(), batch.levels.qty.tolist(), strict=True)
        nursery.cancel_scope.cancel()
