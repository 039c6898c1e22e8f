"""Orders against a tape: each rule of the model, then what holds whatever happens."""

from __future__ import annotations

from collections import Counter
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.records import BUY, CLEAR, LAST, MISSING, NO_SIDE, SELL, Batch, Levels, Quotes, Trades
from feeds.replay import ReplayFeed
from feeds.resting import FAR
from feeds.store import open_recording
from feeds.tape import Tape
from feeds.venue import Entry, Match, Outcome
from tests.scripted import BTC, ETH, INSTRUMENTS
from tests.scripted import Tape as Script
from ticker.history import History, HistoryOptions

RECORDING = Path(__file__).parents[2] / "shared" / "data" / "recordings" / "binance_spot_20240808"


class Market:
    """A market that shows bids 100, 99, 98 and offers 102, 103, 104 of 10 lots each, and entries beside it."""

    def __init__(self, *, book: bool = True) -> None:
        self.history, self.script = History(INSTRUMENTS, HistoryOptions()), Script()
        self.tape = Tape(self.history)
        self._keys = count(1)
        self.quote(100, 10, 102, 10)
        if book:
            bids = [(BUY, price, 10) for price in (100, 99, 98)]
            self.book(*bids, *[(SELL, price, 10) for price in (102, 103, 104)], snapshot=True)

    def happen(self, batch: Batch) -> list[Match]:
        self.history.apply(batch, lambda event: None)
        return self.tape.moved(batch)

    def quote(self, bid: int, bid_qty: int, ask: int, ask_qty: int) -> list[Match]:
        return self.happen(self.script.quotes((BTC, bid, bid_qty, ask, ask_qty)))

    def print(self, side: int, price: int, qty: int) -> list[Match]:
        return self.happen(self.script.trades((BTC, side, price, qty)))

    def book(self, *rows: tuple[int, int, int], snapshot: bool = False) -> list[Match]:
        return self.happen(self.script.levels(BTC, *rows, snapshot=snapshot))

    def enter(self, side: int, price: int | None, qty: int, **more: Any) -> Outcome:
        terms = {"owner": 1, "instrument": BTC, **more}
        return self.tape.enter(Entry(key=next(self._keys), side=side, price=price, qty=qty, **terms))

    def rest(self, side: int, price: int, qty: int, **more: Any) -> int:
        assert self.enter(side, price, qty, **more) == ([], [], qty, False)
        return max(self.tape._resting)

    def ahead(self, key: int) -> int:
        return self.tape._resting[key].ahead


@pytest.fixture
def market():
    return Market()


def fills(matches: list[Match]) -> list[tuple[int, int, int]]:
    return [(match.key, match.price, match.qty) for match in matches]


# ------------------------------------------------------------------------------------- entries that can trade


def test_an_entry_walks_the_displayed_depth(market):
    assert market.tape.walk(BTC, BUY, None, 25, 1) == [(102, 10), (103, 10), (104, 5)]
    matches, withdrawn, rests, met = market.enter(BUY, None, 25)
    assert matches == [Match(1, 102, 10, False), Match(1, 103, 10, False), Match(1, 104, 5, False)]
    assert (withdrawn, rests, met) == ([], 0, False)


def test_an_entry_takes_up_to_its_limit_and_rests_with_the_rest(market):
    assert market.enter(SELL, 99, 25) == ([Match(1, 100, 10, False), Match(1, 99, 10, False)], [], 5, False)
    assert market.ahead(1) == 0


@pytest.mark.parametrize(("price", "rests"), [(103, False), (None, True), (None, False)])
def test_what_may_not_rest_is_dropped(market, price, rests):
    outcome = market.enter(BUY, price, 100, rests=rests)
    assert (sum(match.qty for match in outcome.matches), outcome.rests) == (20 if price else 30, 0)
    assert market.print(SELL, 1, 100) == []


def test_nothing_trades_where_nothing_is_displayed():
    market = Market(book=False)
    market.quote(MISSING, 0, 102, 10)
    assert market.enter(SELL, None, 5) == ([], [], 0, False)


def test_the_touch_is_fresher_than_the_book(market):
    market.quote(100, 10, 103, 4)  # the book still shows 102
    assert market.tape.walk(BTC, BUY, None, 100, 1) == [(103, 4), (104, 10)]


def test_a_book_with_a_gap_is_not_believed(market):
    market.history.books[BTC].stale = True
    assert market.tape.walk(BTC, BUY, None, 100, 1) == [(102, 10)]


def test_what_is_taken_stays_taken_for_everybody(market):
    market.enter(BUY, 102, 4, rests=False)
    assert market.tape.walk(BTC, BUY, 102, 10, 2) == [(102, 6)]
    assert market.enter(BUY, 103, 8, owner=2, rests=False).matches == [Match(2, 102, 6, False), Match(2, 103, 2, False)]
    market.print(BUY, 102, 1)
    market.quote(99, 3, 102, 10)  # the offer is as it was
    assert market.tape.walk(BTC, BUY, 103, 100, 1) == [(103, 8)]


@pytest.mark.parametrize(
    ("refresh", "then"),
    [
        (lambda market: market.book((SELL, 102, 10)), [(102, 10), (103, 7)]),
        (lambda market: market.book((SELL, 103, 10)), [(103, 10)]),
        (lambda market: market.quote(100, 10, 102, 9), [(102, 9), (103, 7)]),
        (lambda market: [market.quote(100, 10, price, 10) for price in (103, 102)], [(102, 10), (103, 7)]),
        (lambda market: [market.quote(100, 10, 101, 5)], [(101, 5), (103, 7)]),
        (lambda market: market.book((SELL, 102, 3), (SELL, 103, 3), snapshot=True), [(102, 10), (103, 3)]),
        (lambda market: market.book((BUY, 102, 3)), [(103, 7)]),
    ],
)
def test_a_level_is_there_again_when_it_is_refreshed(market, refresh, then):
    market.enter(BUY, 103, 13, rests=False)
    refresh(market)
    assert market.tape.walk(BTC, BUY, 103, 100, 1) == then


def test_markets_are_apart(market):
    market.enter(BUY, 102, 10)
    market.happen(market.script.quotes((ETH, 100, 10, 102, 10)))
    assert market.tape.walk(ETH, BUY, 102, 10, 1) == [(102, 10)]


# ------------------------------------------------------------------------------------- entries that rest


def test_prints_consume_the_queue_ahead_before_they_fill(market):
    key = market.rest(BUY, 100, 5)
    assert market.print(SELL, 100, 8) == []
    assert market.print(SELL, 100, 4) == [Match(key, 100, 2, True, market.script.seq)]
    assert fills(market.print(SELL, 100, 100)) == [(key, 100, 3)]
    assert market.print(SELL, 100, 100) == []


def test_a_print_with_an_aggressor_of_the_same_side_was_another_queue(market):
    key = market.rest(BUY, 101, 5)
    assert market.print(BUY, 101, 3) == []
    assert fills(market.print(NO_SIDE, 101, 3)) == [(key, 101, 3)]
    assert fills(market.print(SELL, 101, 3)) == [(key, 101, 2)]


def test_a_print_without_a_side_is_used_once(market):
    buy, sell = market.rest(BUY, 101, 5), market.rest(SELL, 101, 5, owner=2)
    assert fills(market.print(NO_SIDE, 101, 8)) == [(buy, 101, 5), (sell, 101, 3)]


def test_prints_of_nothing_fill_nothing(market):
    market.rest(BUY, 101, 5)
    assert market.print(SELL, 101, 0) == market.print(SELL, 90, 0) == []


@pytest.mark.parametrize("side", [BUY, SELL])
def test_a_print_through_the_price_fills_all(market, side):
    key = market.rest(side, 100 if side == BUY else 102, 500, display=10)
    assert fills(market.print(-side, 101 - 2 * side, 1)) == [(key, 101 - side, 500)]


def test_the_queue_ahead_never_exceeds_what_is_displayed(market):
    key, deeper = market.rest(BUY, 100, 5), market.rest(BUY, 99, 5)
    for bid, qty, ahead in ((100, 12, 10), (100, 4, 4), (100, 9, 4), (99, 7, 0), (101, 3, 0)):
        market.quote(bid, qty, 102, 10)
        assert market.ahead(key) == ahead
    assert market.ahead(deeper) == 7
    market.book((BUY, 99, 3))
    assert market.ahead(deeper) == 3
    market.book((BUY, 100, 1), snapshot=True)
    assert market.ahead(deeper) == 3  # it is behind everything that is displayed: nobody knows
    market.book((BUY, 98, 1))
    market.book((BUY, 99, 0))
    assert market.ahead(deeper) == 0


def test_a_better_price_than_the_touch_has_nobody_ahead(market):
    assert market.ahead(market.rest(BUY, 101, 5)) == 0


def test_behind_everything_displayed_what_is_displayed_first_is_ahead(market):
    key = market.rest(BUY, 90, 5)
    assert market.print(SELL, 90, 10**9) == []
    market.book((BUY, 90, 6))
    assert market.ahead(key) == 6
    market = Market(book=False)
    key = market.rest(SELL, 103, 5)
    assert market.ahead(key) == FAR
    market.quote(100, 10, 103, 8)
    assert market.ahead(key) == 8


def test_before_any_quote_nobody_knows_who_waits():
    market = Market(book=False)
    eth = market.enter(BUY, 50, 5, instrument=ETH)
    assert (eth.rests, market.ahead(1)) == (5, FAR)
    market.happen(market.script.quotes((ETH, 50, 3, 60, 1)))
    assert market.ahead(1) == 3


@pytest.mark.parametrize("by", ["quote", "book"])
def test_the_opposite_touch_fills_at_the_limit_with_what_it_displays(market, by):
    first, second, third = market.rest(BUY, 101, 3), market.rest(BUY, 101, 4), market.rest(BUY, 100, 50)
    if by == "quote":
        matches = market.quote(100, 10, 99, 9)
    else:
        market = market_without_quotes()
        first, second, third = market.rest(BUY, 101, 3), market.rest(BUY, 101, 4), market.rest(BUY, 100, 50)
        matches = market.book((SELL, 99, 9))
    assert matches == [Match(first, 101, 3, True), Match(second, 101, 4, True), Match(third, 100, 2, True)]
    assert market.tape.walk(BTC, BUY, 99, 5, 1) == []


def market_without_quotes() -> Market:
    market = Market(book=False)
    market.history.mark(type("Marker", (), {"kind": "epoch"})())
    market.history._quoted[:] = False
    market.book(*[(BUY, p, 10) for p in (100, 99, 98)], *[(SELL, p, 10) for p in (102, 103, 104)], snapshot=True)
    return market


def test_deeper_levels_that_reach_the_limit_fill_too(market):
    key = market.rest(BUY, 101, 30)
    market.book((SELL, 101, 4))
    assert fills(market.quote(99, 1, 100, 9)) == [(key, 101, 9), (key, 101, 4)]
    assert market.quote(99, 1, 100, 9) == []


def test_entries_of_one_price_share_a_print_in_the_order_of_time(market):
    first = market.rest(BUY, 100, 3)
    market.quote(100, 14, 102, 10)
    second, third = market.rest(BUY, 100, 4, owner=2), market.rest(BUY, 100, 5)
    # 10 of the market, 3 of ours, 4 of the market, 4 of ours, of the last one 1
    assert fills(market.print(SELL, 100, 10 + 3 + 4 + 4 + 1)) == [(first, 100, 3), (second, 100, 4), (third, 100, 1)]


def test_each_slice_of_an_iceberg_queues_anew(market):
    iceberg = market.rest(BUY, 100, 10, display=4)
    other = market.rest(BUY, 100, 3)
    assert fills(market.print(SELL, 100, 13)) == [(iceberg, 100, 3)]
    assert fills(market.print(SELL, 100, 5)) == [(iceberg, 100, 1), (other, 100, 3)]
    assert market.ahead(iceberg) == 10 - 1
    assert fills(market.print(SELL, 100, 12)) == [(iceberg, 100, 3)]


def test_a_print_goes_on_through_the_queue_before_the_next_slice(market):
    iceberg = market.rest(BUY, 100, 10, display=4)
    assert fills(market.print(SELL, 100, 10 + 4 + 6)) == [(iceberg, 100, 4)]
    assert market.ahead(iceberg) == 10 - 6


def test_an_iceberg_that_is_alone_shows_slice_after_slice(market):
    iceberg = market.rest(BUY, 101, 10, display=4)
    other = market.rest(BUY, 101, 3)
    assert fills(market.print(SELL, 101, 12)) == [
        (iceberg, 101, 4),
        (other, 101, 3),
        (iceberg, 101, 4),
        (iceberg, 101, 1),
    ]


def test_an_amend_keeps_its_place_only_where_price_stays_and_quantity_does_not_grow(market):
    first, second = market.rest(BUY, 101, 5), market.rest(BUY, 101, 5)
    assert market.tape.amend(first, 101, 4) == ([], [], 4, False)
    assert fills(market.print(SELL, 101, 1)) == [(first, 101, 1)]
    assert market.tape.amend(first, 101, 4).rests == 4
    assert fills(market.print(SELL, 101, 6)) == [(second, 101, 5), (first, 101, 1)]
    assert market.tape.amend(first, 101, 1) == ([], [], 1, False)
    assert fills(market.print(SELL, 101, 100)) == [(first, 101, 1)]
    first = market.rest(BUY, 101, 5)
    assert market.tape.amend(first, 102, 12) == ([Match(first, 102, 10, False)], [], 2, False)


def test_a_cancelled_entry_is_gone(market):
    key = market.rest(BUY, 100, 5)
    market.tape.cancel(key)
    market.tape.cancel(key)
    assert market.print(SELL, 50, 100) == []


def test_a_new_epoch_forgets_everything(market):
    market.rest(BUY, 100, 5)
    market.enter(BUY, 102, 5)
    market.tape.clear()
    assert market.print(SELL, 50, 100) == []
    assert market.tape.walk(BTC, BUY, 102, 10, 1) == [(102, 10)]


@pytest.mark.parametrize(
    ("policy", "outcome"),
    [
        ("cancel_newest", ([(102, 10)], [], 0, True)),
        ("cancel_oldest", ([(102, 10), (103, 10)], [1, 2], 10, False)),
        ("cancel_both", ([(102, 10)], [1], 0, True)),
    ],
)
def test_an_owner_does_not_trade_with_itself(market, policy, outcome):
    market.rest(SELL, 102, 5)
    market.rest(SELL, 103, 5)
    market.rest(SELL, 102, 5, owner=2)
    matches, *rest = market.enter(BUY, 103, 30, self_trade=policy)
    assert ([(match.price, match.qty) for match in matches], *rest) == outcome
    others = {resting.entry.key for resting in market.tape._resting.values() if resting.entry.side == SELL}
    assert others == {1, 2, 3} - set(rest[0])


def test_what_the_market_fills_first_does_not_meet_its_owner(market):
    market.rest(SELL, 103, 5)
    assert market.enter(BUY, 103, 15) == ([Match(2, 102, 10, False), Match(2, 103, 5, False)], [], 0, False)


def test_entries_of_different_owners_do_not_trade_with_each_other(market):
    market.rest(SELL, 101, 5)
    assert market.enter(BUY, 101, 5, owner=2) == ([], [], 5, False)


def test_a_book_by_order_shortens_queues_too(market):
    key = market.rest(BUY, 99, 5)
    levels = Levels(
        ts_recv=np.array([1]), ts_event=np.array([1]), seq=np.array([10**6]), instrument=np.array([BTC], np.int32),
        flags=np.array([LAST], np.uint8), action=np.array([CLEAR], np.int8), side=np.array([0], np.int8),
        price=np.array([MISSING]), qty=np.array([0]), order_id=np.array([0], np.uint64),
    )  # fmt: skip
    market.quote(100, 10, 102, 10)
    market.happen(Batch(ts=1, levels=levels))
    assert market.ahead(key) == 10  # behind all that is displayed now, which is the touch
    market.book((BUY, 99, 2))
    assert market.ahead(key) == 2


# ------------------------------------------------------------------------------------- whatever happens

SIDES = st.sampled_from([BUY, SELL])
PRICES, LOTS = st.integers(96, 106), st.integers(1, 30)
HAPPENINGS = st.one_of(
    st.tuples(st.just("quote"), st.integers(97, 102), st.integers(0, 20), st.integers(1, 4), st.integers(0, 20)),
    st.tuples(st.just("print"), st.sampled_from([BUY, SELL, NO_SIDE]), PRICES, st.integers(0, 60)),
    st.tuples(st.just("book"), SIDES, PRICES, st.integers(0, 20), st.booleans()),
)
COMMANDS = st.one_of(
    st.tuples(
        st.just("enter"), SIDES, st.one_of(st.none(), PRICES), LOTS, st.integers(0, 3),
        st.sampled_from(["cancel_newest", "cancel_oldest", "cancel_both"]), st.integers(1, 2), st.booleans(),
    ),
    st.tuples(st.just("amend"), st.integers(0, 20), PRICES, LOTS),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
)  # fmt: skip


class Checked(Market):
    """A market that checks after every step what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, int] = {}
        self.entries: dict[int, Entry] = {}
        self.queues: dict[int, tuple[int, int]] = {}  # by key: shown, ahead

    def step(self, name: str, *values: Any) -> None:
        getattr(self, f"do_{name}")(*values)
        resting = self.tape._resting
        assert {key: one.open for key, one in resting.items()} == self.open
        assert all(0 < one.shown <= one.open and one.ahead >= 0 for one in resting.values())
        for side in self.tape._sides.values():
            for queue in side.queues.values():
                ahead = [one.ahead for one in queue.values()]
                assert ahead == sorted(ahead)
        for taken in self.tape._taken.values():
            assert all(lots <= displayed for lots, displayed in taken._levels.values())
        self.queues = {key: (one.shown, one.ahead) for key, one in resting.items()}

    def filled(self, matches: list[Match]) -> None:
        for match in matches:
            entry = self.entries[match.key]
            self.open[match.key] -= match.qty
            assert match.qty > 0 <= self.open[match.key]
            assert entry.price is None or (entry.price - match.price) * entry.side >= 0
            assert match.price == entry.price or not match.maker
            if not self.open[match.key]:
                del self.open[match.key]

    def happened(self, matches: list[Match]) -> None:
        self.filled(matches)
        assert all(match.maker for match in matches)
        renewed = {match.key for match in matches if self.entries[match.key].display}
        for key, (_, ahead) in self.queues.items():
            if key in self.open and key not in renewed:
                assert self.ahead(key) <= ahead

    def do_quote(self, bid: int, bid_qty: int, spread: int, ask_qty: int) -> None:
        prices = (bid if bid_qty else MISSING), (bid + spread if ask_qty else MISSING)
        self.happened(self.quote(prices[0], bid_qty, prices[1], ask_qty))

    def do_print(self, side: int, price: int, qty: int) -> None:
        matches = self.print(side, price, qty)
        assert sum(match.qty for match in matches if match.price == price) <= qty
        assert all(match.trade_id == self.script.seq for match in matches)
        self.happened(matches)

    def do_book(self, side: int, price: int, qty: int, snapshot: bool) -> None:
        self.happened(self.book((side, price, qty), snapshot=snapshot))

    def do_enter(
        self, side: int, price: int | None, qty: int, display: int, policy: str, owner: int, rests: bool
    ) -> None:
        walk = self.tape.walk(BTC, side, price, qty, owner, self_trade=policy)
        key = max(self.entries, default=0) + 1
        entry = Entry(
            key=key, owner=owner, instrument=BTC, side=side, price=price, qty=qty, display=display, rests=rests,
            self_trade=policy,
        )  # fmt: skip
        self.entries[key], self.open[key] = entry, qty
        self.done(key, self.tape.enter(entry), walk)

    def do_amend(self, which: int, price: int, qty: int) -> None:
        if self.open:
            key = sorted(self.open)[which % len(self.open)]
            entry = self.entries[key]
            keeps = price == entry.price and qty <= self.open[key]
            ahead = self.ahead(key)
            self.entries[key], self.open[key] = msgspec.structs.replace(entry, price=price, qty=qty), qty
            self.done(key, self.tape.amend(key, price, qty), None)
            assert not keeps or self.ahead(key) == ahead

    def done(self, key: int, outcome: Outcome, walk: list[tuple[int, int]] | None) -> None:
        assert walk is None or [(match.price, match.qty) for match in outcome.matches] == walk
        self.filled(outcome.matches)
        for withdrawn in outcome.withdrawn:
            assert self.entries[withdrawn].owner == self.entries[key].owner
            del self.open[withdrawn]
        assert outcome.rests in (0, self.open.get(key, 0))
        if not outcome.rests:
            self.open.pop(key, None)

    def do_cancel(self, which: int) -> None:
        if self.open:
            key = sorted(self.open)[which % len(self.open)]
            self.tape.cancel(key)
            del self.open[key]


@given(steps=st.lists(st.one_of(HAPPENINGS, COMMANDS), max_size=60))
@settings(max_examples=150, deadline=None)
def test_the_invariants_hold(steps):
    market = Checked()
    for step in steps:
        market.step(*step)


ROWS = st.one_of(
    st.tuples(st.just("quote"), st.integers(97, 102), st.integers(1, 20), st.integers(1, 4), st.integers(1, 20)),
    st.tuples(st.just("print"), st.sampled_from([BUY, SELL, NO_SIDE]), PRICES, st.integers(0, 60)),
)


@given(
    entries=st.lists(st.tuples(SIDES, PRICES, LOTS, st.integers(1, 2)), min_size=1, max_size=12),
    rows=st.lists(ROWS, min_size=1, max_size=20),
)
@settings(max_examples=100, deadline=None)
def test_fills_do_not_depend_on_how_the_tape_is_cut_into_batches(entries, rows):
    whole, single = Market(book=False), Market(book=False)
    for side, price, qty, owner in entries:
        for market in (whole, single):
            market.enter(side, price, qty, owner=owner)
    batches = []
    for kind, *values in rows:
        if kind == "quote":
            bid, bid_qty, spread, ask_qty = values
            batches.append(whole.script.quotes((BTC, bid, bid_qty, bid + spread, ask_qty)))
        else:
            batches.append(whole.script.trades((BTC, *values)))
    together = Batch(
        ts=batches[-1].ts,
        trades=Trades.concatenate([batch.trades for batch in batches]),
        quotes=Quotes.concatenate([batch.quotes for batch in batches]),
    )
    matches = [match for batch in batches for match in single.happen(batch)]
    assert whole.happen(together) == matches
    for side in (BUY, SELL):
        assert whole.tape.walk(BTC, side, None, 100, 1) == single.tape.walk(BTC, side, None, 100, 1)
    rest_of_whole, rest_of_single = (
        {key: (resting.open, resting.ahead) for key, resting in market.tape._resting.items()}
        for market in (whole, single)
    )
    assert rest_of_whole == rest_of_single


@pytest.mark.skipif(not RECORDING.parent.is_dir(), reason=f"no recordings in {RECORDING.parent}")
def test_in_a_recording_prints_fill_no_more_than_was_printed_since_an_entry_joined():
    recording = open_recording(RECORDING)
    history = History(recording.instruments, HistoryOptions())
    tape, keys = Tape(history), count(1)
    joined: dict[int, tuple[Entry, int]] = {}
    printed: Counter[tuple[int, int]] = Counter()  # lots so far, by the side that rested and price
    filled: Counter[int] = Counter()
    by_prints: Counter[int] = Counter()
    for event in chain.from_iterable(batch.by_event() for batch in islice(ReplayFeed(recording).slices(), 2)):
        history.apply(event, lambda event: None)
        trades = event.trades.take(event.trades.instrument == 0)
        for price, qty, side in zip(trades.price.tolist(), trades.qty.tolist(), trades.side.tolist(), strict=True):
            printed[-side, price] += qty
        for match in tape.moved(event):
            entry, before = joined[match.key]
            filled[match.key] += match.qty
            assert match.price == entry.price
            assert filled[match.key] <= entry.qty
            if match.trade_id and trades.price[0] == entry.price:
                by_prints[match.key] += match.qty
                assert by_prints[match.key] <= printed[entry.side, entry.price] - before
        if len(event.quotes) and event.quotes.seq[0] % 50 == 0 and history.quote_position[0]:
            for side, touch in ((BUY, int(history.bid_px[0])), (SELL, int(history.ask_px[0]))):
                entry = Entry(key=next(keys), owner=2 + side, instrument=0, side=side, price=touch, qty=1_000_000)
                assert tape.enter(entry) == ([], [], entry.qty, False)
                joined[entry.key] = entry, printed[side, touch]
    assert len(by_prints) > 5
    assert len(filled) > 20
