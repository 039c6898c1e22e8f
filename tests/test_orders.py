"""Orders: what is entered, how it is filled, and what its account is told."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.records import BUY, SELL
from tests.scripted import BTC, INSTRUMENTS, Tape
from ticker.errors import Code, RequestError
from ticker.history import History, HistoryOptions
from ticker.listings import Listings
from ticker.orders.exchange import Exchange, NewOrder, Report, units_of
from ticker.orders.gateway import QUEUE_DEPTH, Gateway
from ticker.wire import Request, SubscribeParams

ONE = 10**8  # lots of 1 BTC


class Market:
    """An exchange with one account and a book of two levels a side."""

    def __init__(self) -> None:
        self.history, self.tape = History(INSTRUMENTS, HistoryOptions()), Tape()
        self.exchange = Exchange(self.history, max_open_orders=3)
        self.exchange.open_account("a", {"BTC": 10, "USD": 1000})
        self.exchange.open_account("b", {"BTC": 10, "USD": 1000})
        self.happen(
            self.tape.levels(BTC, (BUY, 990, ONE), (BUY, 980, ONE), (SELL, 1010, ONE), (SELL, 1020, ONE), snapshot=True)
        )
        self.happen(self.tape.quotes((BTC, 990, ONE, 1010, ONE)))

    def happen(self, batch: Any) -> list[Report]:
        self.history.apply(batch, lambda event: None)
        return self.exchange.market_moved(batch)

    def place(self, side: int, qty: int, limit: int | None = None, account: str = "a", **more: Any) -> list[Report]:
        terms = {"symbol": "BTC/USD", "instrument": BTC, "immediate": False, "cl_ord_id": "", **more}
        return self.exchange.place(NewOrder(account=account, side=side, qty=qty, limit=limit, **terms))

    def owns(self, asset: str, account: str = "a") -> Decimal:
        return Decimal(self.exchange.balances(account)[asset]).scaleb(-self.exchange.scale[asset])


@pytest.fixture
def market():
    return Market()


def types(reports: list[Report]) -> list[str]:
    return [report.exec_type for report in reports]


def test_a_market_order_walks_the_displayed_book(market):
    reports = market.place(BUY, ONE + ONE // 2)
    assert [(r.exec_type, r.last_price, r.last_qty, r.status) for r in reports] == [
        ("new", 0, 0, "new"), ("trade", 1010, ONE, "partially_filled"), ("trade", 1020, ONE // 2, "filled"),
        ("filled", 0, 0, "filled"),
    ]  # fmt: skip
    assert (market.owns("BTC"), market.owns("USD")) == (Decimal("11.5"), Decimal(1000) - Decimal("101") - Decimal("51"))


def test_what_the_book_does_not_show_of_a_market_order_is_cancelled(market):
    last = market.place(SELL, 3 * ONE)[-1]
    assert (last.exec_type, last.status, last.reason) == ("canceled", "canceled", "ioc_remainder")
    assert (last.cum_qty, last.leaves_qty) == (2 * ONE, 0)


def test_a_market_order_without_a_market_is_refused(market):
    market.happen(market.tape.levels(BTC, (SELL, 1010, 0), (SELL, 1020, 0)))
    market.history.ask_px[BTC] = -(2**63)
    with pytest.raises(RequestError) as error:
        market.place(BUY, ONE)
    assert error.value.code is Code.NO_MARKET


def test_a_limit_order_takes_what_it_may_and_rests_with_the_rest(market):
    reports = market.place(BUY, 2 * ONE, 1010)
    assert types(reports) == ["new", "trade"]
    (rest,) = market.exchange.open_orders("a")
    assert (rest.leaves_qty, rest.status) == (ONE, "partially_filled")


@pytest.mark.parametrize("side", [BUY, SELL])
def test_a_resting_order_is_filled_at_its_price_when_the_tape_trades_through_it(market, side):
    limit = 985 if side == BUY else 1015
    if side == SELL:
        market.happen(market.tape.levels(BTC, (BUY, 990, ONE)))
    market.place(side, ONE, limit)
    assert market.happen(market.tape.trades((BTC, -side, limit, 5))) == []  # at its price: others were there first
    through = market.happen(market.tape.trades((BTC, -side, limit - side, 5)))
    assert [(r.exec_type, r.last_price, r.maker) for r in through] == [("trade", limit, True), ("filled", 0, False)]
    assert market.exchange.open_orders("a") == []


def test_a_resting_order_is_filled_when_the_opposite_touch_reaches_it(market):
    market.place(BUY, ONE, 1000)
    assert types(market.happen(market.tape.quotes((BTC, 990, ONE, 1000, ONE)))) == ["trade", "filled"]


def test_funds_held_by_open_orders_cannot_be_spent_twice(market):
    market.place(BUY, 6 * ONE, 900)  # holds 540 of 1000 USD
    with pytest.raises(RequestError) as error:
        market.place(BUY, 6 * ONE, 900)
    assert error.value.code is Code.INSUFFICIENT_FUNDS
    (order,) = market.exchange.open_orders("a")
    market.exchange.cancel("a", order.order_id)
    market.place(BUY, 11 * ONE, 900)


def test_a_cl_ord_id_is_unique_among_open_orders(market):
    market.place(BUY, ONE, 900, cl_ord_id="x")
    market.place(BUY, ONE, 900, account="b", cl_ord_id="x")
    with pytest.raises(RequestError) as error:
        market.place(BUY, ONE, 900, cl_ord_id="x")
    assert error.value.code is Code.DUPLICATE_CL_ORD_ID
    market.exchange.cancel("a", cl_ord_id="x")
    market.place(BUY, ONE, 900, cl_ord_id="x")


def test_another_accounts_order_answers_like_one_that_does_not_exist(market):
    (report,) = market.place(BUY, ONE, 900, cl_ord_id="mine")
    answers = []
    for order_id in (report.order_id, "O999999999999"):
        with pytest.raises(RequestError) as error:
            market.exchange.cancel("b", order_id)
        answers.append((error.value.text, error.value.code))
    with pytest.raises(RequestError):
        market.exchange.cancel("b", cl_ord_id="mine")
    assert answers[0] == answers[1]
    assert len(market.exchange.open_orders("a")) == 1
    assert market.exchange.open_orders("b") == []


def test_open_orders_are_limited(market):
    for _ in range(3):
        market.place(BUY, ONE // 10, 900)
    with pytest.raises(RequestError) as error:
        market.place(BUY, ONE // 10, 900)
    assert error.value.code is Code.TOO_MANY_ORDERS


@pytest.mark.parametrize("text", ["0", "-1", "0.05", "1e20", "0.123456789"])
def test_prices_off_the_grid_or_out_of_range_are_refused(text):
    with pytest.raises(RequestError) as error:
        units_of(Decimal(text), 1, 1, "price")
    assert error.value.code is Code.INVALID_ORDER


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([BUY, SELL]), st.integers(1, 3 * ONE), st.integers(970, 1030)),
        max_size=30,
    ),
    moves=st.lists(st.tuples(st.integers(960, 1000), st.integers(1, 40)), max_size=10),
)
@settings(max_examples=60, deadline=None)
def test_orders_keep_the_fix_invariants_and_money_only_moves_by_fills(steps, moves):
    market = Market()
    market.exchange._max_open = 1000
    spent = {"a": [0, 0], "b": [0, 0]}
    seen: dict[str, Report] = {}

    def check(reports: list[Report]) -> None:
        for report in reports:
            before = seen.get(report.order_id)
            terminal = report.status in ("filled", "canceled")
            assert report.leaves_qty == (0 if terminal else report.order.qty - report.cum_qty)
            assert before is None or report.cum_qty >= before.cum_qty
            assert (before is None) == (report.exec_type == "new")
            if report.exec_type == "trade":
                moved = spent[report.order.account]
                moved[0] += report.order.side * report.last_qty
                moved[1] -= report.order.side * report.last_qty * report.last_price
            seen[report.order_id] = report

    for account, side, qty, limit in steps:
        try:
            check(market.place(side, qty, limit, account))
        except RequestError as error:
            assert error.code is Code.INSUFFICIENT_FUNDS  # noqa: PT017 - one of two outcomes
        if moves:
            bid, spread = moves.pop()
            check(market.happen(market.tape.quotes((BTC, bid, ONE, bid + spread, ONE))))
    for account, (lots, cost) in spent.items():
        balances = market.exchange.balances(account)
        assert balances["BTC"] == 10 * ONE + lots
        assert balances["USD"] == 1000 * 10**9 + cost
        assert min(balances.values()) >= 0


class Client:
    """Keeps what the gateway says, in order."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def accept(self, request: Request, time_in: str, result: dict[str, Any]) -> None:
        self.said.append(("accept", result))

    def refuse(self, request: Request, time_in: str, error: RequestError) -> None:
        self.said.append(("refuse", error.text))

    def send(self, message: Any) -> None:
        self.said.append((message.channel, message.type, message.sequence))


def order(qty: str = "1") -> Request:
    params = {
        "order_type": "limit",
        "side": "buy",
        "symbol": "BTC/USD",
        "order_qty": Decimal(qty),
        "limit_price": Decimal(200),
    }
    return Request("add_order", params)


async def test_the_reply_precedes_the_rows_and_sequences_are_contiguous(nursery, autojump_clock):
    market = Market()
    gateway = Gateway(market.exchange, Listings(INSTRUMENTS))
    nursery.start_soon(gateway.run)
    client = Client()
    for channel in ("executions", "balances"):
        gateway.subscribe(client, Request("subscribe"), "", SubscribeParams(channel))
    client.said.clear()
    gateway.submit(client, order(), "")
    gateway.submit(client, order("10000000"), "")
    gateway.submit(client, order(), "")
    await trio.testing.wait_all_tasks_blocked()
    assert client.said == [
        ("accept", {"order_id": "O000000000001"}), ("executions", "update", 2), ("balances", "update", 2),
        ("refuse", "EOrder:Insufficient funds"),
        ("accept", {"order_id": "O000000000002"}), ("executions", "update", 3), ("balances", "update", 3),
    ]  # fmt: skip


async def test_a_full_queue_refuses_and_enters_nothing(autojump_clock):
    market = Market()
    gateway = Gateway(market.exchange, Listings(INSTRUMENTS))
    client = Client()
    for _ in range(QUEUE_DEPTH):
        gateway.submit(client, order(), "")
    with pytest.raises(RequestError) as error:
        gateway.submit(client, order(), "")
    assert error.value.code is Code.BUSY
