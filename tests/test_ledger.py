"""The ledger: the same events always come to the same state, and nothing is made or lost."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.records import BUY, SELL
from tests.trading import ONE, Pit, accounts
from ticker.errors import RequestError
from ticker.orders import events
from ticker.orders.accounts import AccountOptions, Accounts
from ticker.orders.ledger import DIGITS, Ledger, text_of, units_of
from ticker.orders.order import OPEN, TRANSITIONS, key_of

GOLDEN = Path(__file__).parent / "golden"
SIDES = st.sampled_from([BUY, SELL])
LOTS = st.integers(1, 3 * ONE)
TICKS = st.integers(970, 1030)
ORDER = st.fixed_dictionaries(
    {
        "side": SIDES,
        "qty": LOTS,
        "limit": TICKS,
        "time_in_force": st.sampled_from(["gtc", "ioc", "fok"]),
        "self_trade": st.sampled_from(["cancel_newest", "cancel_oldest", "cancel_both"]),
        "cl_ord_id": st.sampled_from(["", "x", "y"]),
        "reduce_only": st.booleans(),
    }
)
STOP = st.fixed_dictionaries(
    {
        "side": SIDES,
        "qty": LOTS,
        "order_type": st.sampled_from(["stop-loss", "take-profit"]),
        "trigger": TICKS,
        "reduce_only": st.booleans(),
    }
)
TRADE = st.tuples(SIDES, TICKS, LOTS)
ACCOUNT = st.sampled_from("ab")
STEP = st.one_of(
    st.tuples(st.just("place"), st.tuples(ACCOUNT, ORDER)),
    st.tuples(st.just("place"), st.tuples(ACCOUNT, STOP)),
    st.tuples(st.just("cancel"), st.integers(1, 20)),
    st.tuples(st.just("amend"), st.tuples(st.integers(1, 20), LOTS, TICKS)),
    st.tuples(st.just("place_all"), st.tuples(ACCOUNT, st.lists(st.one_of(ORDER, STOP), max_size=3))),
    st.tuples(st.just("trade"), st.lists(TRADE, min_size=1, max_size=4)),
    st.tuples(st.just("book"), st.tuples(SIDES, TICKS, st.integers(0, 2 * ONE))),
)


def do(pit: Pit, step: str, what) -> None:
    try:
        if step == "place":
            account, terms = what
            pit.place(account=account, **terms)
        elif step == "place_all":
            account, orders = what
            pit.place_all(*[pit.wanted(**terms) for terms in orders], account=account)
        elif step == "trade":
            pit.trade(*what)
        elif step == "book":
            pit.book(what)
        else:
            number, *change = what if step == "amend" else (what,)
            order = pit.exchange.ledger.orders.get(number)
            if order is not None and order.open:
                if step == "cancel":
                    pit.cancel(order, order.account)
                elif not order.waits:
                    pit.amend(order, order.account, qty=change[0], limit=change[1])
    except RequestError:
        pit._drain()


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_any_run_keeps_what_must_hold(steps):
    pit = Pit(accounts(fees=(10.0, 25.0)))
    for step, what in steps:
        do(pit, step, what)
    check_reports(pit)
    check_reducing(pit)
    check_money(pit)
    check_holds(pit)
    again = Ledger()
    for payload in pit.journal:
        again.apply(events.decode(payload))
    assert again.snapshot() == pit.exchange.ledger.snapshot()
    restored = Ledger()
    restored.restore(again.snapshot())
    assert restored.snapshot() == again.snapshot()
    assert {a.name: a for a in restored.accounts.values()} == {a.name: a for a in again.accounts.values()}


HALVES = st.sampled_from([ONE // 2, ONE])
INSIDE = st.integers(995, 1005)  # nothing is ahead of an order there
REDUCING = st.fixed_dictionaries({"side": SIDES, "qty": HALVES, "limit": INSIDE, "reduce_only": st.booleans()})
REDUCING_STEP = st.one_of(
    st.tuples(st.just("place_all"), st.tuples(ACCOUNT, st.lists(REDUCING, min_size=1, max_size=3))),
    st.tuples(st.just("trade"), st.lists(st.tuples(SIDES, INSIDE, LOTS), min_size=1, max_size=4)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(REDUCING_STEP, max_size=20))
def test_no_order_that_may_but_reduce_a_position_opens_or_turns_one(steps):
    pit = Pit()
    pit.place(BUY, ONE)
    pit.place(SELL, ONE, account="b")
    for step, what in steps:
        do(pit, step, what)
    check_reducing(pit)
    check_holds(pit)


def check_reports(pit: Pit) -> None:
    """FIX invariants, contiguous numbers, unique fills."""
    of_order, of_account = defaultdict(list), defaultdict(list)
    for report in pit.reports:
        of_order[report.key].append(report)
        of_account[report.account].append(report.sequence)
        is_open = report.status in OPEN
        assert report.leaves_qty == (report.terms.qty - report.cum_qty if is_open else 0)
        assert 0 <= report.cum_qty <= report.terms.qty
    for sequences in of_account.values():
        assert sequences == list(range(1, len(sequences) + 1))
    for reports in of_order.values():
        assert [r.exec_seq for r in reports] == list(range(1, len(reports) + 1))
        assert reports[0].exec_type == "new"
        filled = [r.cum_qty for r in reports]
        assert filled == sorted(filled)
        assert sum(r.exec_type in ("filled", "canceled", "expired") for r in reports) <= 1
    fills = [r.exec_id for r in pit.reports if r.exec_type == "trade"]
    assert fills == list(range(1, len(fills) + 1))
    for r in pit.reports:
        if r.exec_type == "trade" and r.terms.limit is not None:
            assert (r.last_price - r.terms.limit) * r.terms.side <= 0


def check_reducing(pit: Pit) -> None:
    """An order that may only reduce a position has never opened one or turned it."""
    positions: dict[str, int] = defaultdict(int)
    for r in pit.reports:
        if r.exec_type == "trade":
            assert not r.terms.reduce_only or r.last_qty <= -r.terms.side * positions[r.account]
            positions[r.account] += r.terms.side * r.last_qty
    for account in pit.exchange.ledger.accounts.values():
        for side in (BUY, SELL):
            assert account.open_lots["BTC/USD", side, True] <= account.reducible("BTC/USD", side)


def check_money(pit: Pit) -> None:
    """What an account has gained it has paid for, and the difference is fees."""
    for account in "ab":
        fills = [r for r in pit.reports if r.exec_type == "trade" and r.account == account]
        goods = sum(r.terms.side * r.last_qty for r in fills)
        spent = sum(r.terms.side * r.last_qty * r.last_price + r.last_fee for r in fills)
        state = pit.exchange.ledger.accounts[account]
        assert state.balances["BTC"] == 10 * 10**DIGITS + goods * 10 ** (DIGITS - 8)
        assert state.balances["USD"] == 1000 * 10**DIGITS - spent * 10 ** (DIGITS - 9)
        position = state.position("BTC/USD")
        paid = sum(r.last_fee for r in fills)
        assert (position.qty, position.fees) == (goods, paid)
        assert position.cost - position.realized == spent - paid


def check_holds(pit: Pit) -> None:
    """What is held is what the open orders would spend, and it is there."""
    ledger = pit.exchange.ledger
    for account in "ab":
        held: dict[str, int] = defaultdict(int)
        for order in ledger.open_orders(account):
            held[ledger.spends("BTC/USD", order.terms.side)] += ledger.holding(order)
        state = ledger.accounts[account]
        assert state.held == {asset: units for asset, units in held.items() if units}
        assert all(state.balances[asset] >= units for asset, units in state.held.items())


def test_terminal_statuses_lead_nowhere():
    assert {status for status, _ in TRANSITIONS} == OPEN


def test_orders_that_ended_long_ago_are_forgotten_with_their_cl_ord_id():
    pit = Pit()
    ledger = Ledger(remembered=2)
    for name in "xyz":
        pit.place(BUY, ONE, 900, cl_ord_id=name)
        pit.cancel()
    for payload in pit.journal:
        ledger.apply(events.decode(payload))
    assert [ledger.find("a", cl_ord_id=name) is not None for name in "xyz"] == [False, True, True]


def test_reports_are_kept_for_who_comes_back_or_it_is_said_that_they_are_not():
    pit = Pit()
    pit.place(BUY, ONE, 900)
    pit.cancel()
    ledger = pit.exchange.ledger
    assert [r.exec_type for r in ledger.recent("a", 1)] == ["canceled"]
    assert ledger.recent("a", 2) == []
    assert ledger.recent("a", 3) is None
    restored = Ledger()
    restored.restore(ledger.snapshot())
    assert (restored.recent("a", 2), restored.recent("a", 1)) == ([], None)


def test_what_outgrows_64_bits_is_in_the_snapshot():
    rich = AccountOptions(balances={"USD": "1e13"}, maker_bps=25.0)
    pit, much = Pit(Accounts({"a": rich})), 2**62 // 1000
    pit.place(BUY, much, 1000)
    for _ in range(5):
        pit.trade((SELL, 1000, much - 1))
        pit.amend(pit.order, qty=pit.order.cum_qty + much)
    ledger, restored = pit.exchange.ledger, Ledger()
    assert ledger.accounts["a"].position("BTC/USD").cost == pit.order.cost > 2**64
    restored.restore(ledger.snapshot())
    assert (restored.accounts, restored.orders) == (ledger.accounts, ledger.orders)


def test_a_snapshot_of_an_earlier_version_is_read():
    pit = Pit(accounts(fees=(10.0, 25.0)))  # what that version was asked
    pit.place(BUY, 2 * ONE, cl_ord_id="x")
    pit.place(SELL, ONE, 1030, reduce_only=True)
    pit.place(BUY, ONE, 900, account="b")
    pit.place(SELL, ONE // 2)
    ledger, restored = pit.exchange.ledger, Ledger()
    restored.restore((GOLDEN / "ledger.msgpack").read_bytes())
    for order in restored.orders.values():
        order.body = ledger.orders[order.key].body  # a test's digests are not those of another process
    assert restored.snapshot() == ledger.snapshot()


@given(st.integers(-(10**30), 10**30))
def test_money_as_text(units):
    assert units_of(text_of(units)) == units


@pytest.mark.parametrize(
    "text", ["", "O", "O1", "X000000000001", "O00000000000\u0661", "O0000000000011", "-00000000001"]
)
def test_an_id_that_is_none_names_no_order(text):
    assert key_of(text) == 0
