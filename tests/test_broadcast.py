"""Groups, sweeps, slow subscribers: whatever happens on the way, everybody ends up knowing everything."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.records import BUY, SELL, Marker
from tests.scripted import BTC, ETH, HAPPENINGS, START_NS, FakeWire, Tape, open_market, open_outbox, sweeps
from ticker.codec import frame
from ticker.history import HistoryOptions
from ticker.market import Market
from ticker.subscriber import Lag, Subscriber, Subscription
from ticker.topics.topic import TopicKey

TICKER = TopicKey("ticker", "bbo", 100)
EVERY = TopicKey("ticker", "bbo", 0, "raw")
TRADE = TopicKey("trade", mode="raw")
BOOK = TopicKey("book", 10, mode="raw")
OHLC = TopicKey("ohlc", 1)
KEYS = (TICKER, EVERY, TRADE, BOOK, OHLC)
BTC_USD, ETHUSDT, ETH_USDT = 0, 1, 2


class Reader:
    """A subscriber that keeps what it was told the way a client does."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.wire, self.outbox = open_outbox()
        self.cut_off: list[str] = []
        self.lags: list[Lag] = []
        self.subscriber = Subscriber(self.outbox, self.cut_off.append, lambda _, lag: self.lags.append(lag))
        self.outbox.on_writable.append(lambda: market.broadcaster.writable(self.subscriber))
        self.tickers: dict[str, Any] = {}
        self.trades: dict[str, list[int]] = defaultdict(list)
        self.books: dict[str, tuple[dict[float, float], dict[float, float]]] = {}
        self.candles: dict[tuple[str, str], Any] = {}

    def having(self, key: TopicKey) -> Subscription | None:
        return next((s for s in self.subscriber.subscriptions.values() if s.key == key), None)

    def subscribe(self, key: TopicKey, *listings: int, snapshot: bool = True) -> None:
        broadcaster, had = self.market.broadcaster, self.having(key)
        on_slow = "disconnect" if key.channel == "trade" else "conflate"
        subscription = broadcaster.join(
            self.subscriber, key, listings, on_slow=on_slow, into=None if had is None else had.id
        )
        marks = {listing: broadcaster.standing(key, listing, snapshot=snapshot).mark for listing in listings}
        broadcaster.begin(subscription, marks)

    def unsubscribe(self, key: TopicKey, listing: int) -> None:
        had = self.having(key)
        assert had is not None
        self.market.broadcaster.unsubscribe(had, [listing])

    def read(self) -> list[Any]:
        """Take in what arrived and return it."""
        messages = self.wire.messages()
        for message in messages:
            for row in message["data"]:
                getattr(self, f"_{message['channel']}")(message["type"], row)
        return messages

    def _ticker(self, kind: str, row: Any) -> None:
        self.tickers[row["symbol"]] = (row["bid"], row["ask"])

    def _trade(self, kind: str, row: Any) -> None:
        assert kind == "update"
        self.trades[row["symbol"]].append(row["trade_id"])

    def _book(self, kind: str, row: Any) -> None:
        if kind == "snapshot":
            self.books[row["symbol"]] = ({}, {})
        for side, levels in zip(self.books[row["symbol"]], (row["bids"], row["asks"]), strict=True):
            for level in levels:
                side[level["price"]] = level["qty"]
                if not level["qty"]:
                    del side[level["price"]]

    def _ohlc(self, kind: str, row: Any) -> None:
        self.candles[row["symbol"], row["interval_begin"]] = row


async def settle(seconds: float = 1.0) -> None:
    await trio.sleep(seconds)
    await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def market(nursery, autojump_clock):
    market = open_market()
    nursery.start_soon(market.broadcaster.run)
    return market


@pytest.fixture
def tape():
    return Tape()


@pytest.fixture
def reader(market, nursery):
    reader = Reader(market)
    nursery.start_soon(reader.outbox.run)
    return reader


async def test_the_first_event_goes_at_once_then_one_flush_per_interval_and_the_last_value_arrives(
    autojump_clock, market, tape, reader
):
    reader.subscribe(TICKER, BTC_USD)
    seen: list[tuple[float, float]] = []
    start = trio.current_time()
    for bid in range(100, 125):
        market.broadcaster.publish(tape.quotes((BTC, bid, 1, 200, 1)))
        await trio.sleep(0.012)
        seen += [(round(trio.current_time() - start, 3), m["data"][0]["bid"]) for m in reader.read()]
    await settle()
    seen += [(-1.0, m["data"][0]["bid"]) for m in reader.read()]
    assert seen == [(0.012, 10.0), (0.108, 10.8), (0.204, 11.6), (0.3, 12.4)]


async def test_interval_0_shows_every_single_event_even_of_one_batch(autojump_clock, market, tape, reader):
    reader.subscribe(EVERY, BTC_USD)
    market.broadcaster.publish(tape.quotes(*[(BTC, bid, 1, 200, 1) for bid in (100, 101, 102)]))
    await settle()
    assert [(m["type"], m["data"][0]["bid"]) for m in reader.read()] == [
        ("snapshot", 10.0), ("update", 10.1), ("update", 10.2),
    ]  # fmt: skip


async def test_a_newcomer_is_shown_the_present_state_and_one_without_data_gets_its_snapshot_with_the_first(
    autojump_clock, market, tape, reader
):
    market.broadcaster.publish(tape.quotes((BTC, 100, 1, 200, 1)))
    market.broadcaster.publish(tape.levels(BTC, (BUY, 100, 5), (SELL, 101, 6), snapshot=True))
    reader.subscribe(TICKER, BTC_USD, ETHUSDT)
    reader.subscribe(BOOK, BTC_USD, ETHUSDT)
    assert [(m["channel"], m["type"], m["data"][0]["symbol"]) for m in reader.read()] == [
        ("ticker", "snapshot", "BTC/USD"), ("book", "snapshot", "BTC/USD"),
    ]  # fmt: skip
    market.broadcaster.publish(tape.levels(ETH, (BUY, 100, 5), snapshot=True))
    await settle()
    first, second = reader.read()  # the touch of a book stands in for the quotes that ETH does not have
    assert (first["channel"], first["type"], first["data"][0]["symbol"]) == ("ticker", "snapshot", "ETHUSDT")
    assert (second["channel"], second["type"], second["data"][0]["symbol"]) == ("book", "snapshot", "ETHUSDT")


async def test_without_snapshot_only_changes_are_told(autojump_clock, market, tape, reader):
    market.broadcaster.publish(tape.quotes((BTC, 100, 1, 200, 1)))
    reader.subscribe(TICKER, BTC_USD, snapshot=False)
    await settle()
    assert reader.read() == []
    market.broadcaster.publish(tape.quotes((BTC, 101, 1, 200, 1)))
    await settle()
    assert [m["type"] for m in reader.read()] == ["update"]


async def test_each_name_of_an_instrument_is_answered_under_that_name(autojump_clock, market, tape, reader):
    reader.subscribe(TRADE, ETHUSDT)
    reader.subscribe(TRADE, ETH_USDT)
    market.broadcaster.publish(tape.trades((ETH, BUY, 100, 1)))
    await settle()
    assert sorted(m["data"][0]["symbol"] for m in reader.read()) == ["ETH/USDT", "ETHUSDT"]


async def test_a_second_name_subscribed_while_book_events_wait_misses_none_of_them(
    autojump_clock, market, tape, reader
):
    reader.subscribe(BOOK, ETHUSDT)
    market.broadcaster.publish(tape.levels(ETH, (BUY, 100, 5), (SELL, 101, 6), snapshot=True))
    await settle()
    market.broadcaster.publish(tape.levels(ETH, (BUY, 99, 7)))
    reader.subscribe(BOOK, ETH_USDT)
    market.broadcaster.publish(tape.levels(ETH, (BUY, 98, 8)))
    await settle()
    reader.read()
    assert (
        reader.books["ETH/USDT"]
        == reader.books["ETHUSDT"]
        == ({1.0: 0.0005, 0.99: 0.0007, 0.98: 0.0008}, {1.01: 0.0006})
    )


async def test_a_trade_snapshot_and_the_trades_after_it_do_not_overlap(autojump_clock, market, tape, reader):
    other = Reader(market)
    other.subscribe(TRADE, BTC_USD)
    market.broadcaster.publish(tape.trades((BTC, BUY, 100, 1)))  # waits for the sweep
    reader.subscribe(TRADE, BTC_USD)
    market.broadcaster.publish(tape.trades((BTC, BUY, 101, 1)))
    await settle()
    assert [[r["trade_id"] for r in m["data"]] for m in reader.wire.messages()] == [[1, 2]]


async def test_a_subscriber_that_cannot_be_written_to_is_told_the_newest_state_when_it_can(
    autojump_clock, market, tape, reader
):
    reader.subscribe(TICKER, BTC_USD)
    market.broadcaster.publish(tape.quotes((BTC, 100, 1, 200, 1)))
    await settle()
    reader.wire.set_room(0)
    for bid in range(101, 150):
        market.broadcaster.publish(tape.quotes((BTC, bid, 1, 200, 1)))
        await trio.sleep(0.1)
    reader.read()
    reader.wire.set_room(None)
    await settle()
    assert [m["data"][0]["bid"] for m in reader.read()] == [14.9]
    assert market.broadcaster.statistics().fallen_behind == 1


async def test_a_slow_subscriber_of_a_lossless_channel_gets_every_trade_or_is_cut_off(autojump_clock, tape, nursery):
    market = open_market(options=HistoryOptions(trade_rows=1))  # 50 of each are kept all the same
    reader = Reader(market)
    nursery.start_soon(market.broadcaster.run)
    nursery.start_soon(reader.outbox.run)
    reader.subscribe(TRADE, BTC_USD)
    reader.wire.set_room(0)
    for _ in range(5):
        market.broadcaster.publish(tape.trades((BTC, BUY, 100, 1)))
        await settle(0.1)
    reader.wire.set_room(None)
    await settle()
    reader.read()
    assert reader.trades["BTC/USD"] == [1, 2, 3, 4, 5]
    reader.wire.set_room(0)
    for _ in range(51):
        market.broadcaster.publish(tape.trades((BTC, BUY, 100, 1)))
        await settle(0.1)
    assert reader.cut_off == []
    reader.wire.set_room(None)
    await settle()
    assert reader.read() == []
    assert len(reader.cut_off) == 1


async def test_a_subscription_changed_in_the_middle_of_a_sweep_loses_nothing(
    autojump_clock, market, tape, nursery, monkeypatch
):
    monkeypatch.setattr("ticker.broadcast.SLICE_S", 0.0)
    monkeypatch.setattr("ticker.broadcast.CHUNK_BYTES", 1)
    readers = [Reader(market) for _ in range(6)]
    for reader in readers:
        reader.subscribe(TRADE, BTC_USD)
    market.broadcaster.publish(tape.trades((BTC, BUY, 100, 1), (ETH, BUY, 100, 1)))
    while not readers[0].wire.taken:
        await trio.lowlevel.checkpoint()
    assert not readers[5].wire.taken  # the sweep is under way and has not reached the last one
    readers[5].subscribe(TRADE, ETHUSDT, snapshot=False)
    readers[4].unsubscribe(TRADE, BTC_USD)
    await settle()
    for reader in readers:
        reader.read()
    assert readers[5].trades == {"BTC/USD": [1]}
    assert readers[4].trades == {}


@pytest.mark.parametrize("pressing", [False, True])
async def test_a_sweep_gives_way_for_longer_and_more_often_where_something_is_pressing(
    autojump_clock, market, tape, monkeypatch, pressing
):
    monkeypatch.setattr("ticker.broadcast.SHORT_CHUNK", 2)
    monkeypatch.setattr("ticker.broadcast.SHORT_SLICE_S", -1.0)
    monkeypatch.setattr(market.broadcaster, "_pressing", lambda: pressing)
    readers = [Reader(market) for _ in range(6)]
    told: list[int] = []  # how many knew of it at each turn of the loop

    async def watch() -> None:
        while True:
            told.append(sum(bool(reader.wire.taken) for reader in readers))
            await trio.lowlevel.checkpoint()

    for reader in readers:
        reader.subscribe(TRADE, BTC_USD, snapshot=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        market.broadcaster.publish(tape.trades((BTC, BUY, 100, 1)))
        while told[-1:] != [6]:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    between = [turn for turn in told if 0 < turn < 6]
    assert sorted(set(between)) == ([2, 4] if pressing else [])
    if pressing:
        assert all(between.count(known) >= 4 - 1 for known in (2, 4))


async def test_a_sweep_never_writes_into_a_frame_that_is_not_finished(autojump_clock, market, tape, nursery):
    reader = Reader(market)
    reader.subscribe(EVERY, BTC_USD)
    reader.wire.set_room(10)
    market.broadcaster.publish(tape.quotes((BTC, 100, 1, 200, 1)))
    await settle()
    reader.wire.set_room(None)  # and nobody has written the rest yet
    market.broadcaster.publish(tape.quotes((BTC, 101, 1, 200, 1)))
    await settle()
    assert len(reader.wire.taken) == 10
    nursery.start_soon(reader.outbox.run)
    await settle()
    assert [m["data"][0]["bid"] for m in reader.read()] == [10.0, 10.1]


async def test_nothing_is_kept_for_subscribers_that_left(autojump_clock, market, tape, reader):
    for key in KEYS:
        reader.subscribe(key, BTC_USD, ETHUSDT)
    assert market.broadcaster.statistics().subscriptions == len(KEYS)
    market.broadcaster.remove(reader.subscriber)
    assert market.broadcaster.statistics().subscriptions == 0
    assert market.broadcaster._channels == {}


async def test_a_new_epoch_begins_with_snapshots_and_forgets_the_old_book(autojump_clock, market, tape, reader):
    for key in (TICKER, BOOK, OHLC):
        reader.subscribe(key, BTC_USD)
    for _ in range(2):
        market.broadcaster.publish(tape.levels(BTC, (BUY, 100, 5), (SELL, 101, 6), snapshot=True))
        market.broadcaster.publish(tape.quotes((BTC, 100, 1, 200, 1)))
        market.broadcaster.publish(tape.trades((BTC, BUY, 100, 1)))
        await settle()
        assert {(m["channel"], m["type"]) for m in reader.read()} >= {
            ("ticker", "snapshot"), ("book", "snapshot"), ("ohlc", "snapshot"),
        }  # fmt: skip
        await market.broadcaster.mark(Marker(kind="epoch", ts=START_NS, reason="again"))


# Whatever happens

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("quote"), st.integers(0, 1), st.integers(1, 50)),
        st.tuples(st.just("trade"), st.integers(0, 1), st.integers(1, 4)),
        st.tuples(st.just("book"), st.integers(0, 1), st.integers(1, 30)),
        st.tuples(st.just("room"), st.integers(0, 2), st.sampled_from([0, 1, 50, 700, None])),
        st.tuples(st.just("toggle"), st.integers(0, 2), st.tuples(st.sampled_from(KEYS), st.integers(0, 2))),
        st.tuples(st.just("reply"), st.integers(0, 2), st.sampled_from([0, 200])),
        st.tuples(st.just("wait"), st.just(0), st.sampled_from([0.0, 0.001, 0.05, 0.3])),
    ),
    max_size=60,
)


@given(actions=ACTIONS, interrupted=st.booleans())
@settings(max_examples=300, deadline=None)
def test_whatever_happens_everybody_ends_up_knowing_everything(actions, interrupted):
    with sweeps(interrupted=interrupted):
        trio.run(run_actions, actions, clock=trio.testing.MockClock(autojump_threshold=0))


async def run_actions(actions: list[Any]) -> None:
    market, tape = open_market(), Tape()
    for instrument in (BTC, ETH):
        market.broadcaster.publish(tape.levels(instrument, (BUY, 100, 5), (SELL, 200, 6), snapshot=True))
    traded: dict[int, list[int]] = {BTC: [], ETH: []}
    readers = [Reader(market) for _ in range(3)]
    owed: list[dict[tuple[TopicKey, int], int]] = [{} for _ in readers]  # trades before the subscription began
    async with trio.open_nursery() as nursery:
        nursery.start_soon(market.broadcaster.run)
        for reader in readers:
            nursery.start_soon(reader.outbox.run)
        for what, who, value in actions:
            if what in HAPPENINGS:
                batch = HAPPENINGS[what](tape, who, value)
                traded[who] += batch.trades.trade_id.tolist()
                market.broadcaster.publish(batch)
            elif what == "room":
                readers[who].wire.set_room(value)
            elif what == "wait":
                await trio.sleep(value)
            elif what == "reply":  # goes the same way as the data, and its rest before any data
                readers[who].outbox.push(frame(b'{"channel":"reply","data":[]}' + b" " * value))
            else:
                toggle(market, readers[who], owed[who], traded, *value)
        for reader in readers:
            reader.wire.set_room(None)
        await trio.sleep(1)
        await trio.testing.wait_all_tasks_blocked()
        for reader, starts in zip(readers, owed, strict=True):
            reader.read()
            check(market, reader, starts, traded)
        nursery.cancel_scope.cancel()


def toggle(
    market: Market, reader: Reader, starts: dict[Any, int], traded: dict[int, list[int]], key: TopicKey, listing: int
) -> None:
    had = reader.having(key)
    if had is not None and listing in had.listings:
        reader.unsubscribe(key, listing)
        starts.pop((key, listing))
        return
    reader.subscribe(key, listing, snapshot=key != TRADE)
    starts[key, listing] = len(traded[market.listings.instrument_of[listing]])


def check(
    market: Market, reader: Reader, starts: dict[tuple[TopicKey, int], int], traded: dict[int, list[int]]
) -> None:
    history = market.history
    for (key, listing), start in starts.items():
        name, i = market.listings.names[listing], market.listings.instrument_of[listing]
        scale = market.listings.instruments[i].price_scale
        if key.channel == "ticker":
            assert reader.tickers[name] == (history.bid_px[i] / scale, history.ask_px[i] / scale)
        elif key.channel == "trade":
            expected = traded[i][start:]
            assert reader.trades[name][len(reader.trades[name]) - len(expected) :] == expected
            assert sorted(set(reader.trades[name])) == reader.trades[name]
        elif key.channel == "book":
            qty_scale = market.listings.instruments[i].qty_scale
            for side, levels in zip((BUY, SELL), reader.books[name], strict=True):
                top = history.books[i].top(side, 10)
                assert levels == {price / scale: qty / qty_scale for price, qty in top}
        elif traded[i]:
            candle = history.candles.current(0, i)
            assert candle is not None
            newest = max(begin for symbol, begin in reader.candles if symbol == name)
            row = reader.candles[name, newest]
            assert (row["trades"], row["close"]) == (candle.trades, candle.close / scale)


@pytest.mark.parametrize("hold_s", [0.02, 0.0])
async def test_a_feed_waits_for_the_end_of_a_sweep_but_not_for_long(
    autojump_clock, market, tape, nursery, monkeypatch, hold_s
):
    monkeypatch.setattr("ticker.broadcast.HOLD_S", hold_s)
    readers = [Reader(market) for _ in range(30)]
    for reader in readers:
        nursery.start_soon(reader.outbox.run)
        reader.subscribe(EVERY, BTC_USD)
    await market.broadcaster.wait_swept()  # there is none
    with sweeps(interrupted=True):
        market.broadcaster.publish(tape.quotes((BTC, 100, 1, 200, 1)))
        while not readers[0].wire.taken:  # the sweep has begun
            await trio.lowlevel.checkpoint()
        await market.broadcaster.wait_swept()
        told = sum(len(reader.read()) for reader in readers)
    assert told > 0
    assert (told == 30) == (hold_s > 0)


def test_the_fake_wire_is_as_strict_as_a_socket():
    wire = FakeWire()
    wire.set_room(3)
    assert wire.send(b"12345") == 3
    with pytest.raises(BlockingIOError):
        wire.send(b"45")
    wire.set_room(None)
    assert wire.send(b"45") == 2
    assert wire.taken == b"12345"
