"""What becomes of orders: accepted, filled, amended, ended, refused."""

from __future__ import annotations

import pickle

import pytest

from feeds.records import BUY, SELL
from tests.scripted import BTC, START_NS
from tests.trading import ONE, Pit, accounts, types
from ticker.errors import Code, RequestError
from ticker.orders.accounts import AccountOptions, Accounts, Limits
from ticker.orders.events import Amended, Canceled, Expired, Filled, Triggered
from ticker.orders.exchange import Change, Exchange
from ticker.orders.ledger import Ledger


@pytest.fixture
def pit():
    return Pit()


# Entering


def test_new_is_reported_even_of_an_order_that_is_filled_at_once(pit):
    reports = pit.place(BUY, ONE + ONE // 2)
    assert [(r.exec_type, r.last_price, r.last_qty, r.status) for r in reports] == [
        ("new", 0, 0, "new"), ("trade", 1010, ONE, "partially_filled"), ("trade", 1020, ONE // 2, "filled"),
        ("filled", 0, 0, "filled"),
    ]  # fmt: skip
    assert (pit.owns("BTC"), pit.owns("USD")) == (11.5, 1000 - 101 - 51)


def test_what_the_book_does_not_show_of_a_market_order_is_cancelled(pit):
    last = pit.place(SELL, 3 * ONE)[-1]
    assert (last.exec_type, last.reason, last.cum_qty, last.leaves_qty) == ("canceled", "ioc_remainder", 2 * ONE, 0)


def test_a_market_order_without_a_market_is_refused(pit):
    pit.book((SELL, 1010, 0), (SELL, 1020, 0))
    assert pit.refusal(BUY, ONE) is Code.NO_MARKET


def test_a_limit_order_takes_what_it_may_and_rests_with_the_rest(pit):
    assert types(pit.place(BUY, 2 * ONE, 1010)) == ["new", "trade"]
    assert (pit.order.leaves_qty, pit.order.status, pit.held("USD")) == (ONE, "partially_filled", 101)


def test_ioc_never_rests_and_fok_trades_all_or_nothing(pit):
    assert pit.place(BUY, 2 * ONE, 1010, time_in_force="ioc")[-1].reason == "ioc_remainder"
    assert types(pit.place(BUY, 3 * ONE, 1020, time_in_force="fok")) == ["new", "canceled"]
    assert (pit.order.cum_qty, pit.reports[-1].reason) == (0, "fok")


def test_fok_trades_nothing_where_an_order_of_its_own_account_would_stop_it(pit):
    pit.place(SELL, ONE, 1015)
    terms = {"time_in_force": "fok", "self_trade": "cancel_newest"}
    assert pit.place(BUY, 2 * ONE, 1020, **terms)[-1].reason == "fok"
    assert pit.order.cum_qty == 0


def test_a_market_order_that_meets_its_own_account_first_is_stopped_and_not_refused(pit):
    pit.place(SELL, ONE, 1005)
    pit.book((SELL, 1010, 0), (SELL, 1020, ONE))
    assert pit.place(BUY, ONE, self_trade="cancel_newest")[-1].reason == "stp"


def test_post_only_is_refused_where_it_would_take(pit):
    assert pit.refusal(BUY, ONE, 1010, post_only=True) is Code.POST_ONLY
    assert types(pit.place(BUY, ONE, 1000, post_only=True)) == ["new"]


def test_a_resting_order_fills_as_maker_at_its_price_when_the_tape_trades_through_it(pit):
    pit.place(BUY, ONE, 985)
    reports = pit.trade((SELL, 984, 5))
    assert [(r.exec_type, r.last_price, r.maker) for r in reports] == [("trade", 985, True), ("filled", 0, False)]


def test_fees_are_paid_in_the_quote_currency_by_maker_and_taker(pit):
    pit = Pit(accounts(fees=(10.0, 20.0)))
    pit.place(BUY, ONE)
    assert float(pit.owns("USD")) == pytest.approx(1000 - 101 * 1.002)
    pit.place(BUY, ONE, 1000)
    assert float(pit.held("USD")) == 100.2  # the higher fee is held
    pit.trade((SELL, 999, 5))
    assert float(pit.owns("USD")) == pytest.approx(1000 - 101 * 1.002 - 100 * 1.001)
    assert pit.held("USD") == 0


# What is refused


def test_funds_held_by_open_orders_cannot_be_spent_twice(pit):
    pit.place(BUY, 6 * ONE, 900)  # holds 540 of 1000 USD
    assert pit.refusal(BUY, 6 * ONE, 900) is Code.INSUFFICIENT_FUNDS
    pit.cancel()
    pit.place(BUY, 11 * ONE, 900)
    assert pit.refusal(SELL, 11 * ONE, 2000) is Code.INSUFFICIENT_FUNDS


@pytest.mark.parametrize(
    ("limits", "order", "code"),
    [
        (Limits(open_orders=1), (BUY, ONE, 900), Code.TOO_MANY_ORDERS),
        (Limits(notional=85), (BUY, ONE, 900), Code.NOTIONAL_LIMIT),
        (Limits(position=1.5), (BUY, ONE, 900), Code.POSITION_LIMIT),
        (Limits(collar_pct=10), (SELL, ONE, 880), Code.PRICE_COLLAR),
    ],
)
def test_limits_of_an_account(limits, order, code):
    pit = Pit(accounts(limits))
    pit.trade((BUY, 1000, 1))
    pit.place(BUY, ONE, 800 if code is Code.NOTIONAL_LIMIT else 950)
    assert pit.refusal(*order) is code
    pit.place(*order, account="b")


def test_price_times_quantity_stays_within_64_bits():
    pit = Pit()
    assert pit.refusal(BUY, 2**52, 2**52) is Code.INVALID_ORDER


def test_a_sale_is_reckoned_with_the_best_price_that_it_meets():
    pit = Pit(Accounts({"a": AccountOptions(balances={"BTC": "1e11", "USD": "1e11"})}))
    pit.book((BUY, 990, 2**54 - 1), (BUY, 980, 0), (BUY, 1, 2**60))
    assert pit.refusal(SELL, 2**54, 1) is Code.INVALID_ORDER
    pit.place(SELL, 2**53, 1)
    assert pit.order.cost == 990 * 2**53 < 2**63


def test_the_kill_switch_cancels_everything_and_lets_nothing_in_until_it_is_released(pit):
    pit.place(BUY, ONE, 900)
    assert pit.exchange.halt("a", halted=True) == 1
    pit._drain()
    assert pit.exchange.ledger.orders[1].status == "canceled"
    assert pit.refusal(BUY, ONE, 900) is Code.HALTED
    pit.place(BUY, ONE, 900, account="b")
    pit.exchange.halt("a", halted=False)
    pit.place(BUY, ONE, 900)


# Ids


def test_a_cl_ord_id_is_an_idempotency_key_for_good(pit):
    pit.place(BUY, ONE, 900, cl_ord_id="x")
    first = pit.order
    assert (pit.place(BUY, ONE, 900, cl_ord_id="x"), pit.duplicate, pit.order) == ([], True, first)
    assert pit.refusal(BUY, ONE, 901, cl_ord_id="x") is Code.DUPLICATE_CL_ORD_ID
    pit.cancel(first)
    assert (pit.place(BUY, ONE, 900, cl_ord_id="x"), pit.duplicate) == ([], True)
    pit.place(BUY, ONE, 901, cl_ord_id="x", account="b")


def test_for_plain_clients_a_cl_ord_id_is_unique_among_open_orders(pit):
    pit.place(BUY, ONE, 900, cl_ord_id="x", idempotent=False)
    assert pit.refusal(BUY, ONE, 900, cl_ord_id="x", idempotent=False) is Code.DUPLICATE_CL_ORD_ID
    pit.cancel()
    assert types(pit.place(BUY, ONE, 900, cl_ord_id="x", idempotent=False)) == ["new"]


def test_a_batch_is_entered_whole_or_not_at_all(pit):
    good = pit.wanted(BUY, ONE, 900)
    with pytest.raises(RequestError) as error:
        pit.exchange.place_all("a", [good, pit.wanted(BUY, 11 * ONE, 900)], idempotent=True)
    assert error.value.code is Code.INSUFFICIENT_FUNDS  # each alone could be paid
    assert pit.exchange.drain() == ([], [])
    placed = pit.exchange.place_all("a", [good, pit.wanted(SELL, ONE, 2000)], idempotent=True)
    assert [order.terms.side for order, _ in placed] == [BUY, SELL]


def test_orders_of_others_are_unknown(pit):
    pit.place(BUY, ONE, 900, cl_ord_id="x")
    for key, name in ((pit.order.key, ""), (0, "x"), (99, ""), (0, "")):
        with pytest.raises(RequestError) as error:
            pit.exchange.cancel("b", key, name)
        assert (error.value.code, error.value.text) == (Code.UNKNOWN_ORDER, "EOrder:Unknown order")


# Amending


def test_an_amended_order_keeps_its_ids_and_what_is_held_follows(pit):
    pit.place(BUY, 2 * ONE, 900)
    assert types(pit.amend(pit.order, qty=ONE, limit=910)) == ["amended"]
    assert (pit.order.key, pit.order.leaves_qty, pit.held("USD")) == (1, ONE, 91)


def test_an_amendment_to_a_price_that_trades_trades(pit):
    pit.place(BUY, ONE, 900)
    assert types(pit.amend(pit.order, limit=1010)) == ["amended", "trade", "filled"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"qty": ONE}, Code.INVALID_ORDER),  # so much has been filled
        ({"qty": 20 * ONE}, Code.INSUFFICIENT_FUNDS),
        ({"limit": 1020, "post_only": True}, Code.POST_ONLY),
        ({"trigger": 900}, Code.INVALID_ORDER),
        ({"display": 900}, Code.INVALID_ORDER),
    ],
)
def test_a_refused_amendment_changes_nothing(pit, change, code):
    pit.place(BUY, 2 * ONE, 1010)
    before = pit.exchange.ledger.snapshot()
    with pytest.raises(RequestError) as error:
        pit.exchange.amend("a", pit.order, Change(**change))
    assert (error.value.code, pit.exchange.ledger.snapshot()) == (code, before)
    assert pit.exchange.drain() == ([], [])


def test_an_iceberg_shows_a_fifteenth_of_itself_at_least_also_once_it_is_amended(pit):
    assert pit.refusal(BUY, ONE, 990, order_type="iceberg", display=ONE // 16) is Code.INVALID_ORDER
    pit.place(BUY, ONE, 990, order_type="iceberg", display=ONE // 15 + 1)
    for change in ({"display": ONE // 16}, {"qty": 2 * ONE}):
        with pytest.raises(RequestError, match="display_qty"):
            pit.exchange.amend("a", pit.order, Change(**change))


# Stops, and the end of time


def test_a_stop_waits_until_its_price_is_traded_and_then_takes(pit):
    pit.place(SELL, ONE, order_type="stop-loss", trigger=980)
    assert pit.trade((SELL, 981, 1)) == []
    reports = pit.trade((SELL, 980, 1))
    assert [(r.exec_type, r.status) for r in reports] == [
        ("status", "triggered"), ("trade", "filled"), ("filled", "filled"),
    ]  # fmt: skip
    assert reports[1].last_price == 990


@pytest.mark.parametrize(
    ("side", "order_type", "waits_for"),
    [(BUY, "stop-loss", 1), (BUY, "take-profit", -1), (SELL, "stop-loss", -1), (SELL, "take-profit", 1)],
)
def test_which_way_a_stop_waits(pit, side, order_type, waits_for):
    pit.trade((BUY, 1000, 1))
    trigger = 1000 + 5 * waits_for
    pit.place(side, ONE, order_type=order_type, trigger=trigger)
    assert pit.order.status == "new"
    assert pit.trade((BUY, 1000 - 50 * waits_for, 1)) == []
    assert types(pit.trade((BUY, trigger + waits_for, 1)))[0] == "status"


def test_a_stop_whose_price_is_reached_already_is_active_at_once(pit):
    pit.trade((BUY, 1000, 1))
    assert types(pit.place(SELL, ONE, order_type="stop-loss", trigger=1000))[:2] == ["new", "status"]


def test_a_stop_limit_rests_at_its_limit(pit):
    pit.place(BUY, ONE, 1005, order_type="stop-loss-limit", trigger=1004)
    assert types(pit.trade((BUY, 1004, 1))) == ["status"]
    assert types(pit.trade((SELL, 1000, 1))) == ["trade", "filled"]


def test_a_stop_that_money_does_not_reach_any_more_is_cancelled(pit):
    pit.place(BUY, 9 * ONE, order_type="stop-loss", trigger=1030)
    pit.book((SELL, 1010, 0), (SELL, 1020, 0), (SELL, 1500, 100 * ONE))
    assert pit.trade((BUY, 1030, 1))[-1].reason == "insufficient_funds"


def test_a_stop_can_be_amended_to_a_price_that_is_reached(pit):
    pit.trade((BUY, 1000, 1))
    pit.place(SELL, ONE, order_type="stop-loss", trigger=900)
    assert types(pit.amend(pit.order, trigger=1000))[:2] == ["amended", "status"]


def test_a_stop_that_another_has_ended_does_not_trigger(pit):
    pit.place(BUY, 2 * ONE)
    pit.place(SELL, 2 * ONE, order_type="stop-loss", trigger=980)
    pit.place(SELL, 2 * ONE, order_type="stop-loss", trigger=985, reduce_only=True)
    reports = pit.trade((SELL, 970, 1))
    assert (pit.order.status, pit.position()) == ("canceled", 0)
    assert "status" not in [r.exec_type for r in reports if r.key == pit.order.key]
    assert types(pit.trade((SELL, 970, 1))) == []
    pit.restart()


@pytest.mark.parametrize("event", [Triggered, Expired, Filled, Canceled, Amended])
def test_what_cannot_happen_is_raised_and_neither_changes_nor_reaches_the_journal(pit, event):
    pit.place(BUY, ONE, 900)
    pit.cancel()
    happened = {
        Triggered: Triggered(0, 1), Expired: Expired(0, 1), Filled: Filled(0, 1, 900, ONE, 0, True, 0),
        Canceled: Canceled(0, 1, "user"), Amended: Amended(0, 1, pit.order.terms),
    }[event]  # fmt: skip
    before = pit.exchange.ledger.snapshot()
    with pytest.raises(KeyError):
        pit.exchange._happen(happened)
    assert (pit.exchange.ledger.snapshot(), pit.exchange.drain()) == (before, ([], []))


def test_gtd_expires_in_market_time(pit):
    pit.place(BUY, ONE, 900, time_in_force="gtd", expire_ns=START_NS + 5_000_000)
    while pit.tape.ns < START_NS + 4_000_000:
        assert pit.trade((BUY, 1000, 1)) == []
    assert [(r.exec_type, r.status) for r in pit.trade((BUY, 1000, 1))] == [("expired", "expired")]
    assert pit.held("USD") == 0


# Positions


def test_reduce_only_is_at_most_the_position_and_shrinks_with_it(pit):
    assert pit.refusal(SELL, ONE, 1100, reduce_only=True) is Code.REDUCE_ONLY  # what it began with is no position
    pit.place(BUY, 2 * ONE)
    pit.place(SELL, 2 * ONE, 1100, reduce_only=True)
    reducing = pit.order
    assert pit.refusal(SELL, 1, 1100, reduce_only=True) is Code.REDUCE_ONLY
    pit.book((BUY, 1000, ONE))
    pit.place(SELL, ONE)
    assert (reducing.leaves_qty, reducing.status) == (ONE, "new")
    pit.book((BUY, 1000, ONE // 2), (BUY, 990, ONE))
    pit.place(SELL, ONE)
    assert (reducing.status, pit.reports[-1].reason) == ("canceled", "reduce_only")


def test_orders_of_a_batch_promise_the_same_position_only_once(pit):
    pit.place(BUY, ONE)
    twice = [pit.wanted(SELL, ONE, reduce_only=True, cl_ord_id=name) for name in "xy"]
    for enter in (pit.exchange.check, pit.exchange.place_all):
        with pytest.raises(RequestError) as error:
            enter("a", twice, idempotent=True)
        assert (error.value.code, pit.exchange.drain()) == (Code.REDUCE_ONLY, ([], []))


def test_the_limit_of_a_position_holds_for_a_batch_as_a_whole():
    pit = Pit(accounts(Limits(position=1.5)))
    with pytest.raises(RequestError) as error:
        pit.place_all(*[pit.wanted(BUY, ONE, 900, cl_ord_id=name) for name in "xy"])
    assert error.value.code is Code.POSITION_LIMIT


@pytest.mark.parametrize(("first", "left"), [(ONE, 0), (ONE // 2, ONE // 2), (2 * ONE, 0)])
@pytest.mark.parametrize("terms", [{}, {"limit": 1100}, {"order_type": "stop-loss", "trigger": 900}])
def test_a_reducing_order_gets_what_the_orders_of_its_batch_before_it_leave_of_the_position(pit, first, left, terms):
    pit.place(BUY, ONE)
    _, reducing = pit.place_all(pit.wanted(SELL, first), pit.wanted(SELL, ONE, reduce_only=True, **terms))
    assert reducing.leaves_qty + reducing.cum_qty == left
    assert pit.position() == ONE - first - reducing.cum_qty
    pit.trade((BUY, 1101, 1))  # what rests is as large as the order
    assert pit.position() == (ONE - first - left if "limit" in terms else ONE - first - reducing.cum_qty)


@pytest.mark.parametrize(
    ("plain", "reducing"), [(ONE, {"limit": 1110}), (ONE // 4, {"limit": 1110}), (ONE, {"limit": 1090})]
)
def test_orders_that_fill_in_one_batch_of_the_tape_do_not_turn_a_position(pit, plain, reducing):
    pit.place(BUY, ONE)
    pit.place(SELL, plain, 1100)
    pit.place(SELL, ONE, reduce_only=True, **reducing)
    pit.trade((BUY, 1105, ONE), (BUY, 1115, ONE))
    before = max(0, ONE - plain) if reducing["limit"] > 1100 else ONE
    assert (pit.order.cum_qty, pit.order.open, pit.position()) == (before, False, ONE - plain - before)
    assert pit.trade((BUY, 1200, ONE)) == []


def test_what_is_left_of_a_reducing_order_that_was_cut_while_it_filled_still_rests(pit):
    pit.place(BUY, ONE)
    pit.place(SELL, ONE // 4, 1004)
    pit.place(SELL, ONE, 1005, reduce_only=True)
    pit.trade((BUY, 1004, ONE // 4), (BUY, 1005, ONE // 4))
    assert (pit.order.leaves_qty, pit.position()) == (ONE // 2, ONE // 2)
    pit.trade((BUY, 1006, 1))
    assert (pit.order.status, pit.position()) == ("filled", 0)


def test_profit_is_reckoned_at_average_cost(pit):
    pit.place(BUY, 2 * ONE)  # 1010 and 1020
    position = pit.exchange.ledger.accounts["a"].positions["BTC/USD"]
    pit.place(SELL, ONE)  # at 990
    assert (position.qty, position.cost, position.realized) == (ONE, 1015 * ONE, (990 - 1015) * ONE)
    pit.place(SELL, 2 * ONE, 980)  # the rest at 980, which turns it
    assert (position.qty, position.realized) == (0, (990 - 1015 + 980 - 1015) * ONE)
    pit.trade((BUY, 981, ONE))
    assert (position.qty, position.cost) == (-ONE, -980 * ONE)


@pytest.mark.parametrize(
    "terms",
    [
        {"limit": 2000, "time_in_force": "gtd", "expire_ns": 2**62},
        {"limit": 2000, "reduce_only": True},
        {"limit": 1, "time_in_force": "gtd", "expire_ns": 2**62, "reduce_only": True},  # is filled at once
        {"order_type": "stop-loss", "trigger": 5},
        {"limit": 2000, "order_type": "take-profit-limit", "trigger": 2000, "time_in_force": "gtd", "expire_ns": 2**62},
    ],
)
def test_nothing_is_kept_of_orders_that_have_ended(pit, terms):
    def size() -> int:
        exchange = pit.exchange
        return len(pickle.dumps((exchange._expiries, exchange._stops, exchange._outside, exchange.ledger.accounts)))

    pit.place(BUY, 2 * ONE)
    before = size()
    for _ in range(1000):
        pit.place(SELL, 1, **terms)
        if pit.order.open:
            pit.cancel()
    assert size() < before + 1000


# Epochs, and coming back


def test_a_new_epoch_cancels_what_is_open(pit):
    pit.place(BUY, ONE, 900)
    pit.exchange.new_epoch()
    assert [(r.exec_type, r.reason) for r in pit.exchange.drain()[1]] == [("canceled", "seek")]


def test_orders_of_the_journal_return_to_the_market_once_it_is_known(pit):
    pit.place(BUY, ONE, 900)
    pit.place(SELL, ONE, order_type="stop-loss", trigger=900)
    ledger = Ledger()
    ledger.restore(pit.exchange.ledger.snapshot())
    again = Pit(pit.accounts)
    again.exchange = Exchange(again.history, again.venue, again.accounts, ledger)
    again.exchange.new_epoch()
    assert again.trade((SELL, 950, 1)) == []  # they enter with this event, and what comes next can fill them
    assert types(again.trade((SELL, 899, 1))) == ["trade", "filled", "status", "trade", "filled"]


@pytest.mark.parametrize("change", [{"qty": ONE // 2}, {"limit": 910}, {"display": ONE // 4}])
def test_an_order_that_waits_to_return_can_be_amended_and_returns_as_it_is_then(pit, change):
    pit.place(BUY, ONE, 900, order_type="iceberg", display=ONE // 5)
    key = pit.order.key
    pit.restart()
    order = pit.exchange.ledger.orders[key]
    assert types(pit.amend(order, **change)) == ["amended"]
    assert pit.book((BUY, 990, ONE), (SELL, 1010, ONE), snapshot=True) == []
    while order.open:  # slice by slice
        assert pit.trade((SELL, 890, ONE)) != []
    assert pit.trade((SELL, 890, ONE)) == []
    assert (order.cum_qty, order.cost) == (order.terms.qty, order.terms.qty * order.terms.limit)


def test_a_stop_that_waits_to_return_can_be_amended(pit):
    pit.place(SELL, ONE, order_type="stop-loss", trigger=900)
    pit.restart()
    order = pit.exchange.ledger.orders[pit.order.key]
    pit.amend(order, trigger=950)
    pit.book((BUY, 990, ONE), snapshot=True)
    assert types(pit.trade((SELL, 950, 1)))[0] == "status"


@pytest.mark.parametrize(("plain", "left"), [(ONE // 2, ONE // 2), (ONE, 0)])
def test_a_reducing_order_is_cut_by_one_that_returns_before_it(pit, plain, left):
    pit.place(BUY, ONE)
    pit.place(SELL, plain, 1100)
    pit.place(SELL, ONE, 1200, reduce_only=True)
    key = pit.order.key
    pit.restart()
    pit.book((BUY, 1110, ONE), (SELL, 1120, ONE), snapshot=True)
    assert (pit.exchange.ledger.orders[key].leaves_qty, pit.position()) == (left, ONE - plain)
    pit.trade((BUY, 1201, 1))
    assert pit.position() == 0


def test_when_the_market_has_ended_orders_end_and_no_more_are_taken(pit):
    pit.place(BUY, ONE, 900)
    pit.history.ended = True
    pit.exchange.ended()
    assert pit.exchange.drain()[1][-1].reason == "feed_ended"
    assert pit.refusal(BUY, ONE, 900) is Code.NO_MARKET


def test_orders_of_one_account_do_not_meet(pit):
    pit.place(SELL, ONE, 1005)
    own = pit.order
    pit.place(BUY, ONE, 1005, self_trade="cancel_oldest")
    assert (own.status, pit.order.status) == ("canceled", "new")
    assert any(r.reason == "stp" for r in pit.reports)


def test_nothing_is_looked_at_twice_for_an_instrument_that_nobody_orders(pit):
    assert pit.happen(pit.tape.quotes((1 - BTC, 5, 1, 6, 1))) == []
