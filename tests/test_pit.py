"""Clients' entries among orders of agents: what they are told, what is published, and that both are the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.book import Books
from feeds.matching import Order
from feeds.pit import Pit
from feeds.records import BUY, LAST, MISSING, SELL, SNAPSHOT, Batch
from feeds.venue import Entry, Match, Outcome, Venue

reproducible = settings(deadline=None, derandomize=True)
NOW = 1_000


def entry(key: int, side: int, price: int | None, qty: int, **terms) -> Entry:
    return Entry(**{"key": key, "owner": key, "instrument": 0, "side": side, "price": price, "qty": qty, **terms})


def opened(*orders: tuple[int, int, int]) -> Pit:
    """A pit with one instrument and orders of agents: side, price, quantity."""
    pit = Pit([100], NOW)
    for side, price, qty in orders or ((BUY, 99, 10), (SELL, 101, 10)):
        act(pit, side, price, qty)
    return pit


def act(pit: Pit, side: int, price: int | None, qty: int, ts: int = NOW, instrument: int = 0) -> Order:
    """Let an agent enter an order."""
    order = Order(side, qty)
    pit.books[instrument].enter(order, price)
    pit.books[instrument].close_event(ts)
    return order


def prints(batch: Batch) -> list[tuple[int, int, int, int]]:
    trades = batch.trades
    columns = (trades.trade_id, trades.price, trades.qty, trades.side)
    return list(zip(*[column.tolist() for column in columns], strict=True))


def levels(batch: Batch) -> list[tuple[int, int, int, int]]:
    table = batch.levels
    return list(zip(*[c.tolist() for c in (table.side, table.price, table.qty, table.flags)], strict=True))


def test_it_is_a_venue():
    venue: Venue = opened()
    assert venue.moved(Batch(ts=NOW)) == []


def test_a_resting_entry_shows_in_the_book_and_its_fill_prints_under_one_number():
    pit = opened()
    pit.opening()
    assert pit.enter(entry(1, BUY, 100, 7)) == Outcome([], [], 7, False)
    batch = pit.publish(NOW + 10)
    assert levels(batch) == [(BUY, 100, 7, LAST)]
    assert (batch.quotes.bid_px.tolist(), batch.quotes.bid_qty.tolist()) == ([100], [7])
    assert batch.levels.ts_recv.tolist() == [NOW]
    assert pit.moved(batch) == []
    act(pit, SELL, None, 5, NOW + 12)
    batch = pit.publish(NOW + 20)
    assert prints(batch) == [(1, 100, 5, SELL)]
    assert levels(batch) == [(BUY, 100, 2, LAST)]
    assert pit.moved(batch) == [Match(1, 100, 5, True, 1)]
    assert pit.moved(batch) == []


def test_both_clients_of_a_trade_are_told_its_number_at_once():
    pit = opened()
    pit.enter(entry(1, SELL, 100, 3))
    outcome = pit.enter(entry(2, BUY, 101, 5))
    assert outcome == Outcome(
        [Match(1, 100, 3, True, 1), Match(2, 100, 3, False, 1), Match(2, 101, 2, False, 2)], [], 0, False
    )
    assert pit.moved(pit.publish(NOW)) == []
    with pytest.raises(KeyError):
        pit.amend(1, 100, 1)


def test_an_entry_without_a_price_takes_what_there_is_and_never_rests():
    pit = opened()
    assert pit.walk(0, BUY, None, 25, 1) == [(101, 10)]
    outcome = pit.enter(entry(1, BUY, None, 25))
    assert [m.qty for m in outcome.matches] == [10]
    assert outcome.rests == 0
    assert pit.walk(0, BUY, None, 1, 1) == []


def test_the_displayed_slice_is_what_the_book_shows_and_the_rest_trades_too():
    pit = opened()
    assert pit.enter(entry(1, SELL, 100, 20, display=5)).rests == 20
    assert pit.walk(0, BUY, 100, 50, 2) == [(100, 20)]
    assert levels(pit.publish(NOW))[-1] == (SELL, 100, 5, LAST)
    outcome = pit.enter(entry(2, BUY, 100, 12))
    assert [m.qty for m in outcome.matches if m.key == 1] == [5, 5, 2]
    assert levels(pit.publish(NOW)) == [(SELL, 100, 3, LAST)]


@pytest.mark.parametrize(
    ("how", "outcome", "walked"),
    [
        ("cancel_newest", Outcome([Match(3, 100, 2, False, 1)], [], 0, True), [(100, 2)]),
        ("cancel_oldest", Outcome([Match(3, 100, 2, False, 1), Match(3, 101, 6, False, 2)], [2], 0, False),
         [(100, 2), (101, 6)]),
        ("cancel_both", Outcome([Match(3, 100, 2, False, 1)], [2], 0, True), [(100, 2)]),
    ],
)  # fmt: skip
def test_entries_of_one_owner_do_not_trade_with_each_other(how, outcome, walked):
    pit = opened((SELL, 100, 2), (SELL, 101, 10))
    pit.enter(entry(2, SELL, 100, 5, owner=7))
    assert pit.walk(0, BUY, 101, 8, 7, self_trade=how) == walked
    assert pit.enter(entry(3, BUY, 101, 8, owner=7, self_trade=how)) == outcome


def test_amended_to_less_it_keeps_its_place_and_else_it_loses_it():
    pit = opened()
    for key in (1, 2):
        pit.enter(entry(key, BUY, 100, 5))
    assert pit.amend(1, 100, 4) == Outcome([], [], 4, False)
    act(pit, SELL, None, 1)
    pit.publish(NOW)
    assert pit.amend(1, 100, 6) == Outcome([], [], 6, False)
    act(pit, SELL, None, 6)
    batch = pit.publish(NOW)
    assert pit.moved(batch) == [Match(1, 100, 1, True, 1), Match(2, 100, 5, True, 2), Match(1, 100, 1, True, 3)]
    assert levels(batch)[-1] == (BUY, 100, 5, LAST)


def test_what_an_iceberg_hides_counts_when_it_is_amended():
    pit = opened()
    pit.enter(entry(1, BUY, 100, 20, display=5))
    pit.enter(entry(2, BUY, 100, 5))
    assert pit.amend(1, 100, 12) == Outcome([], [], 12, False)
    act(pit, SELL, 100, 5)
    assert pit.moved(pit.publish(NOW)) == [Match(1, 100, 5, True, 1)]
    assert pit.amend(1, 100, 7) == Outcome([], [], 7, False)


def test_amended_to_a_price_that_is_offered_it_trades():
    pit = opened()
    pit.enter(entry(1, BUY, 98, 15, display=3))
    assert pit.amend(1, 101, 12) == Outcome([Match(1, 101, 10, False, 1)], [], 2, False)
    assert levels(pit.publish(NOW))[-3:] == [(BUY, 98, 0, 0), (SELL, 101, 0, 0), (BUY, 101, 2, LAST)]


def test_cancelled_it_is_gone_and_an_unknown_key_is_passed_over():
    pit = opened()
    pit.enter(entry(1, BUY, 100, 5))
    for _ in range(2):
        pit.cancel(1)
    assert levels(pit.publish(NOW))[-1] == (BUY, 100, 0, LAST)
    assert pit.walk(0, SELL, 100, 5, 2) == []


def test_clear_takes_out_clients_and_leaves_agents():
    pit = opened()
    pit.enter(entry(1, BUY, 99, 5))
    pit.enter(entry(2, SELL, 100, 5))
    pit.clear()
    assert [[(abs(v.rank), v.lots) for v in side] for side in (pit.books[0].bids, pit.books[0].asks)] == [
        [(99, 10)], [(101, 10)],
    ]  # fmt: skip


def test_fills_of_several_instruments_come_in_the_order_of_time():
    pit = Pit([100, 100], NOW)
    for instrument in (0, 1):
        pit.enter(entry(instrument + 1, BUY, 100, 5, instrument=instrument))
    for ts, instrument in ((3, 0), (5, 0), (2, 1), (4, 1)):
        act(pit, SELL, None, 1, NOW + ts, instrument)
    batch = pit.publish(NOW + 10)
    assert [match.key for match in pit.moved(batch)] == [2, 1, 2, 1]
    assert batch.trades.instrument.tolist() == [1, 0, 1, 0]
    assert batch.trades.trade_id.tolist() == [1, 1, 2, 2]


def test_what_happened_before_the_opening_is_not_published():
    pit = opened()
    pit.enter(entry(1, BUY, 100, 5))
    batch = pit.opening()
    assert levels(batch) == [
        (0, MISSING, 0, SNAPSHOT), (BUY, 100, 5, SNAPSHOT), (BUY, 99, 10, SNAPSHOT), (SELL, 101, 10, SNAPSHOT | LAST),
    ]  # fmt: skip
    assert len(pit.publish(NOW)) == 0


def test_a_book_may_open_with_nothing_on_a_side():
    pit = opened((SELL, 101, 10))
    quotes = pit.opening().quotes
    assert (quotes.bid_px.tolist(), quotes.bid_qty.tolist(), quotes.ask_px.tolist()) == ([MISSING], [0], [101])
    act(pit, SELL, 102, 1)
    assert len(pit.publish(NOW).quotes) == 0


def test_a_side_that_is_empty_is_quoted_as_missing():
    pit = opened()
    pit.opening()
    pit.enter(entry(1, SELL, None, 10))
    quotes = pit.publish(NOW).quotes
    assert (quotes.bid_px.tolist(), quotes.bid_qty.tolist(), quotes.ask_px.tolist()) == ([MISSING], [0], [101])


sides = st.sampled_from([BUY, SELL])
limits = st.one_of(st.integers(97, 103), st.none())
actions = st.one_of(
    st.tuples(
        st.just("agents"),
        st.lists(st.tuples(st.integers(0, 1), sides, limits, st.integers(1, 9)), max_size=5),
    ),
    st.tuples(
        st.just("client"), st.integers(0, 1), sides, limits, st.integers(1, 9), st.integers(1, 3),
        st.sampled_from([0, 2]), st.sampled_from(["cancel_newest", "cancel_oldest", "cancel_both"]),
    ),
    st.tuples(st.just("amend"), st.integers(1, 30), st.integers(97, 103), st.integers(1, 9)),
    st.tuples(st.just("cancel"), st.integers(1, 30)),
)  # fmt: skip


class Checked:
    """A pit of two instruments of which every batch is read, and every client's fills are kept."""

    def __init__(self) -> None:
        self.pit = Pit([100, 100], NOW)
        for instrument in (0, 1):
            act(self.pit, BUY, 95, 5, NOW, instrument)
            act(self.pit, SELL, 105, 5, NOW, instrument)
        self.books = Books()
        self.entries: dict[int, Entry] = {}
        self.open: dict[int, int] = {}
        self.matches: list[tuple[int, Match]] = []
        self.prints: set[tuple[int, int, int, int]] = set()
        self.seq: list[int] = []
        self.touch: dict[int, tuple[int, ...]] = {}
        self.read(self.pit.opening())

    def agents(self, orders: list[tuple[int, int, int | None, int]]) -> None:
        """Let agents enter orders in the next window, one instrument after the other, and have it published."""
        for instrument in (0, 1):
            for ts, (of, side, price, qty) in enumerate(orders, self.pit.now_ns + 1):
                if of == instrument:
                    act(self.pit, side, price, qty, ts, instrument)
        batch = self.pit.publish(self.pit.now_ns + 10)
        self.read(batch)
        self.fill(self.pit.moved(batch))

    def client(
        self, instrument: int, side: int, price: int | None, qty: int, owner: int, display: int, how: str
    ) -> None:
        key = len(self.entries) + 1
        self.entries[key] = Entry(
            key=key, owner=owner, instrument=instrument, side=side, price=price, qty=qty, display=display,
            self_trade=how,
        )  # fmt: skip
        self.open[key] = qty
        foreseen = self.pit.walk(instrument, side, price, qty, owner, self_trade=how)
        outcome = self.pit.enter(self.entries[key])
        taken: dict[int, int] = {}
        for match in outcome.matches:
            if match.key == key:
                taken[match.price] = taken.get(match.price, 0) + match.qty
        assert list(taken.items()) == foreseen
        self.note(key, outcome)

    def note(self, key: int, outcome: Outcome) -> None:
        self.fill(outcome.matches)
        for gone in outcome.withdrawn:
            del self.open[gone]
        if not outcome.rests:
            assert not self.open.pop(key) or self.entries[key].price is None or outcome.self_trade
        else:
            assert outcome.rests == self.open[key]

    def fill(self, matches: list[Match]) -> None:
        for match in matches:
            self.matches.append((self.entries[match.key].instrument, match))
            self.open[match.key] -= match.qty
            if match.maker and not self.open[match.key]:
                del self.open[match.key]

    def amend(self, key: int, price: int, qty: int) -> None:
        if key in self.open:
            self.open[key] = qty
            self.note(key, self.pit.amend(key, price, qty))

    def cancel(self, key: int) -> None:
        self.pit.cancel(key)
        self.open.pop(key, None)

    def read(self, batch: Batch) -> None:
        for instrument, trade in zip(batch.trades.instrument.tolist(), prints(batch), strict=True):
            self.prints.add((instrument, *trade[:3]))
        for _ in self.books.apply(batch.levels):
            pass
        for table in (batch.trades, batch.quotes, batch.levels):
            assert (np.diff(table.ts_recv) >= 0).all()
            assert (table.ts_recv <= batch.ts).all()
        seq = np.sort(np.concatenate([table.seq for table in (batch.trades, batch.quotes, batch.levels)])).tolist()
        self.seq += seq
        for instrument, book in enumerate(self.pit.books):
            published = self.books[instrument]
            for side, ours in ((BUY, book.bids), (SELL, book.asks)):
                assert published.top(side, 100) == [(abs(level.rank), level.lots) for level in ours]
        for instrument, *touch in zip(*[c.tolist() for c in list(batch.quotes.columns().values())[3:]], strict=True):
            self.touch[instrument] = tuple(touch[1:])
        for instrument in (0, 1):
            bid, ask = (self.books[instrument].side(side).best or (MISSING, 0) for side in (BUY, SELL))
            assert self.touch[instrument] == (*bid, *ask)

    def close(self) -> None:
        """Every fill of a client is on the tape, at its price and quantity; the numbering has no gaps."""
        self.agents([])
        assert {(i, m.trade_id, m.price, m.qty) for i, m in self.matches} <= self.prints
        for number in {(i, m.trade_id) for i, m in self.matches}:
            assert sum((i, m.trade_id) == number for i, m in self.matches) <= 2
        assert self.seq == list(range(1, len(self.seq) + 1))
        for instrument in (0, 1):
            ids = sorted(number for i, number, *_ in self.prints if i == instrument)
            assert ids == list(range(1, len(ids) + 1))


@settings(reproducible, max_examples=150)
@given(st.lists(actions, max_size=50))
def test_any_market_publishes_what_is_in_its_books_and_tells_clients_what_it_prints(steps):
    checked = Checked()
    for name, *arguments in steps:
        getattr(checked, name)(*arguments)
    checked.close()
