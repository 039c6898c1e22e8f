"""The native profile's promise, kept from the client's side: of every event a subscriber knows what became of it.

``last - prev = n + conflated + dropped``, ``prev`` is the ``last`` before, and the last value always arrives; through
any mix of rates, modes, policies, stalls, live interval changes, resyncs and returns with ``resume``.
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from feeds.records import BUY, SELL, Marker
from tests.scripted import BTC, ETH, HAPPENINGS, START_NS, Tape, frames, open_market, open_outbox, sweeps
from ticker.binary import CHANNELS, DTYPES
from ticker.history import HistoryOptions
from ticker.market import Market
from ticker.subscriber import Lag, Subscriber, Subscription
from ticker.topics.topic import TopicKey

VARIANTS = {"ticker": "bbo", "trade": "", "book": 10, "ohlc": 1}
#: What a ticker row of these tests takes.
ROW_BYTES = 224
CROWD = 60
EXAMPLES = int(os.environ.get("ACCOUNTING_EXAMPLES", "150"))


class Stream:
    """One stream as a native client follows it, checking every message."""

    def __init__(self) -> None:
        self.epoch = ""
        self.last: int | None = None
        self.owed = 0
        self.rows: list[Any] = []
        self.sums = {"events": 0, "n": 0, "conflated": 0, "dropped": 0}
        self.levels: tuple[dict[float, float], dict[float, float]] = ({}, {})

    def take(self, message: Any) -> None:
        pos, data = message["pos"], message["data"]
        if pos["epoch"] != self.epoch:
            self.owed = 0
        if message["type"] == "snapshot":
            assert pos["prev"] is None
            self.levels = ({}, {})
            self.rows = []
        else:
            assert pos["epoch"] == self.epoch or pos["prev"] == 0
            assert pos["prev"] == ((self.last or 0) if pos["epoch"] == self.epoch else 0)
            assert pos["last"] - pos["prev"] == pos["n"] + pos["conflated"] + pos["dropped"]
            assert min(pos["n"], pos["conflated"], pos["dropped"]) >= 0
            assert pos["n"] == len(data) > 0
            if pos["epoch"] == self.epoch and pos["prev"] < self.owed:  # it came back for these, every one
                assert pos["conflated"] == pos["dropped"] == 0
            self.sums["events"] += pos["last"] - pos["prev"]
            for name in ("n", "conflated", "dropped"):
                self.sums[name] += pos[name]
        self.epoch, self.last = pos["epoch"], pos["last"]
        self.rows += data
        if message["channel"] == "book":
            for row in data:
                self._apply(row)

    def _apply(self, row: Any) -> None:
        for side, changes in zip(self.levels, (row["bids"], row["asks"]), strict=True):
            for level in changes:
                side[level["price"]] = level["qty"]
                if not level["qty"]:
                    del side[level["price"]]


class Reader:
    """A native subscriber over a wire that a test can clog."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.wire, self.outbox = open_outbox()
        self.lost = False
        self.slow = False
        self.told = 0
        self.lags: list[Lag] = []
        self.subscriber = Subscriber(self.outbox, self._cut_off, lambda _, lag: self.lags.append(lag))
        self.outbox.on_writable.append(lambda: market.broadcaster.writable(self.subscriber))
        self.streams: dict[tuple[str, int], Stream] = defaultdict(Stream)
        self.began: dict[tuple[str, int], dict[str, int]] = {}

    def _cut_off(self, reason: str) -> None:
        self.lost = True

    def find(self, channel: str, listing: int) -> Subscription | None:
        for subscription in self.subscriber.subscriptions.values():
            if subscription.key.channel == channel and listing in subscription.listings:
                return subscription
        return None

    def read(self) -> list[Any]:
        taken, self.wire.taken = bytes(self.wire.taken), bytearray()
        messages: list[Any] = []
        for opcode, payload in frames(taken):
            messages += [json.loads(payload)] if opcode == 1 else self._unpacked(payload)
        self.told += len(messages)
        for message in messages:
            symbol = message["data"][0]["symbol"]
            self.streams[message["channel"], self.market.listings.id_of(symbol)].take(message)
        return messages

    def _unpacked(self, payload: bytes) -> list[Any]:
        """Rows of a struct message, as the JSON messages of one row each that say the same."""
        channel = {number: name for name, number in CHANNELS.items()}[payload[0]]
        messages, levels = [], []
        for record in np.frombuffer(payload, DTYPES[channel]):
            if channel == "book":
                levels.append(record)
                if not record["end"]:
                    assert (record["last"], record["n"]) == (record["prev"] if record["type"] else record["last"], 0)
                    continue
            row = {name: record[name] for name in record.dtype.names} | {
                "symbol": self.market.listings.names[record["listing"]],
                "bids": [level for level in levels if level["side"] == BUY],
                "asks": [level for level in levels if level["side"] == SELL],
            }
            pos = {name: record[name].item() for name in ("last", "n", "conflated", "dropped")}
            pos |= {"epoch": f"{record['epoch']:08x}", "prev": record["prev"].item() if record["type"] else None}
            kind, levels = "update" if record["type"] else "snapshot", []
            messages.append({"channel": channel, "type": kind, "pos": pos, "data": [row]})
        assert not levels
        return messages

    def subscribe(
        self, channel: str, listing: int, interval_ms: int, mode: Any, on_slow: Any, packed: bool = False,
        *, resume: bool = False,
    ) -> bool | None:  # fmt: skip
        """Subscribe to one stream; says whether a resume was recovered."""
        interval_ms = 0 if mode == "raw" else interval_ms
        key = TopicKey(channel, VARIANTS[channel], interval_ms, mode, native=True, packed=packed)
        stream = self.streams[channel, listing]
        after = (stream.epoch, stream.last) if resume and stream.last is not None else None
        broadcaster = self.market.broadcaster
        subscription = broadcaster.join(self.subscriber, key, [listing], on_slow=on_slow)
        standing = broadcaster.standing(key, listing, snapshot=True, resume=after)
        every_event = mode in ("batch", "raw") and channel != "book"  # where an event may show nothing
        stream.owed = standing.head if standing.recovered and every_event else 0
        if not standing.recovered:
            stream.epoch, stream.last, stream.rows = standing.epoch, None, []
        self.began[channel, listing] = dict(stream.sums)
        broadcaster.begin(subscription, {listing: standing.mark})
        return standing.recovered


STREAMS = st.tuples(st.sampled_from(sorted(VARIANTS)), st.integers(0, 1))
MODES = ["merge", "batch", "raw"]
INTERVALS = st.sampled_from([0, 10, 100, 250])
WAYS = st.tuples(
    INTERVALS,
    st.sampled_from(MODES),
    st.sampled_from(["conflate", "drop_oldest", "disconnect"]),
    st.booleans(),
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("quote"), st.integers(0, 1), st.integers(1, 50)),
        st.tuples(st.just("trade"), st.integers(0, 1), st.integers(1, 4)),
        st.tuples(st.just("book"), st.integers(0, 1), st.integers(1, 30)),
        st.tuples(st.just("room"), st.integers(0, 1), st.sampled_from([0, 0, 300, 3000, None])),
        st.tuples(st.just("toggle"), st.integers(0, 1), st.tuples(STREAMS, WAYS, st.booleans())),
        st.tuples(st.just("retune"), st.integers(0, 1), st.tuples(STREAMS, INTERVALS)),
        st.tuples(st.just("resync"), st.integers(0, 1), STREAMS),
        st.tuples(st.just("wait"), st.just(0), st.sampled_from([0.0, 0.001, 0.05, 0.3])),
        st.tuples(st.just("epoch"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


#: The interval changes before the first book of an epoch was told: that must be a snapshot all the same.
RETUNED_EARLY = [
    ("book", 1, 1), ("toggle", 1, (("book", 1), (10, "batch", "drop_oldest"), False)), ("epoch", 0, 0),
    ("retune", 1, (("book", 1), 0)),
]  # fmt: skip

#: Somebody comes back while an event that it does not know waits for its flush.
BACK_BEFORE_A_FLUSH = [
    ("toggle", 1, (("ticker", 0), (10, "batch", "conflate"), False)), ("quote", 0, 1),
    ("toggle", 1, (("ticker", 0), (0, "merge", "conflate"), False)),
    ("toggle", 1, (("ticker", 0), (10, "batch", "drop_oldest"), True)),
]  # fmt: skip


@given(actions=ACTIONS, interrupted=st.booleans())
@example(actions=RETUNED_EARLY, interrupted=False)
@example(actions=BACK_BEFORE_A_FLUSH, interrupted=False)
@settings(max_examples=EXAMPLES, deadline=None)
def test_the_accounting_is_exact_whatever_happens(actions, interrupted):
    with sweeps(interrupted=interrupted):
        trio.run(run_actions, actions, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_hundred_thousand_messages_in_one_run_account_for_everything():
    chance = random.Random(20261123)
    how = {
        "quote": lambda: (chance.randint(0, 1), chance.randint(1, 50)),
        "trade": lambda: (chance.randint(0, 1), chance.randint(1, 4)),
        "book": lambda: (chance.randint(0, 1), chance.randint(1, 30)),
        "room": lambda: (chance.randrange(CROWD), chance.choice([0, 3000, None, None, None, None])),
        "toggle": lambda: (chance.randrange(CROWD), (stream(), way(), chance.random() < 0.7)),
        "retune": lambda: (chance.randrange(CROWD), (stream(), chance.choice([0, 10, 100, 250]))),
        "resync": lambda: (chance.randrange(CROWD), stream()),
        "wait": lambda: (0, chance.choice([0.0, 0.001, 0.001, 0.02])),
        "epoch": lambda: (0, 0),
    }
    weights = {"quote": 30, "trade": 30, "book": 30, "room": 3, "toggle": 8, "retune": 2, "resync": 2, "wait": 60}

    def stream() -> tuple[str, int]:
        return chance.choice(sorted(VARIANTS)), chance.randint(0, 1)

    def way() -> tuple[int, str, str, bool]:
        mode, on_slow = chance.choice(MODES), chance.choice(["conflate", "drop_oldest", "disconnect"])
        return chance.choice([0, 10, 100]), mode, on_slow, chance.random() < 0.3

    names = chance.choices([*weights, "epoch"], [*weights.values(), 0.05], k=14_000)
    actions = [
        ("toggle", who, ((channel, listing), way(), False))
        for who in range(CROWD) for channel in VARIANTS for listing in (0, 1)
    ]  # fmt: skip
    actions += [(name, *how[name]()) for name in names]
    told = trio.run(run_actions, actions, CROWD, clock=trio.testing.MockClock(autojump_threshold=0))
    assert told >= 100_000


async def run_actions(actions: list[Any], count: int = 2) -> int:
    """Have all that happen to some readers and check what they know; return how many messages they were sent."""
    market, tape = open_market(), Tape()
    traded: dict[int, list[int]] = {BTC: [], ETH: []}
    told = 0
    opening(market, tape)
    readers = [Reader(market) for _ in range(count)]
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
                readers[who].slow = readers[who].slow or value is not None
            elif what == "wait":
                await trio.sleep(value)
            elif what == "epoch":
                await market.broadcaster.mark(Marker(kind="epoch", ts=START_NS, reason="again"))
                traded = {BTC: [], ETH: []}
                opening(market, tape)
            elif not readers[who].lost:
                act(market, readers[who], what, value)
            elif count > 2:  # who was cut off comes again as somebody else
                market.broadcaster.remove(readers[who].subscriber)
                told += readers[who].told
                readers[who] = Reader(market)
                nursery.start_soon(readers[who].outbox.run)
        for reader in readers:
            reader.wire.set_room(None)
        await trio.sleep(1)
        await trio.testing.wait_all_tasks_blocked()
        for reader in readers:
            reader.read()
            told += reader.told
            if not reader.lost:
                check(market, reader, traded)
        nursery.cancel_scope.cancel()
    return told


def opening(market: Market, tape: Tape) -> None:
    for instrument in (BTC, ETH):
        market.broadcaster.publish(tape.levels(instrument, (BUY, 100, 5), (SELL, 200, 6), snapshot=True))


def act(market: Market, reader: Reader, what: str, value: Any) -> None:
    (channel, listing), *rest = value if what != "resync" else (value,)
    had = reader.find(channel, listing)
    if what == "retune" and had is not None:
        interval_ms = 0 if had.key.mode == "raw" else rest[0]
        market.broadcaster.retune(had, msgspec.structs.replace(had.key, interval_ms=interval_ms))
    elif what == "resync" and had is not None:
        market.broadcaster.resync(had, [listing])
    elif what == "toggle" and had is not None:
        if reader.wire.room is None and not reader.outbox.behind:
            reader.read()
        market.broadcaster.unsubscribe(had, [listing])
    elif what == "toggle" and reader.wire.room is None and not reader.outbox.behind:
        reader.read()
        way, resume = rest
        reader.subscribe(channel, listing, *way, resume=resume)


def check(market: Market, reader: Reader, traded: dict[int, list[int]]) -> None:
    history = market.history
    for subscription in reader.subscriber.subscriptions.values():
        (listing,) = subscription.listings
        key, i = subscription.key, market.listings.instrument_of[listing]
        stream = reader.streams[key.channel, listing]
        position = {
            "ticker": history.quote_position, "trade": history.trade_position, "book": history.book_position,
            "ohlc": history.candle_position,
        }[key.channel][i]  # fmt: skip
        scale = market.listings.instruments[i].price_scale
        if key.channel == "book":
            qty_scale = market.listings.instruments[i].qty_scale
            for side, levels in zip((BUY, SELL), stream.levels, strict=True):
                assert levels == {p / scale: q / qty_scale for p, q in history.books[i].top(side, 10)}
        elif position:
            assert stream.last == position
        if key.channel == "ticker" and position:
            assert (stream.rows[-1]["bid"], stream.rows[-1]["ask"]) == (
                history.bid_px[i] / scale,
                history.ask_px[i] / scale,
            )
        if key.channel == "trade" and traded[i]:
            assert stream.rows[-1]["trade_id"] == traded[i][-1]
        if key.channel == "ohlc" and traded[i]:
            candle = history.candles.current(0, i)
            assert candle is not None
            assert stream.rows[-1]["close"] == candle.close / scale
        totals, before = subscription.totals(), reader.began[key.channel, listing]
        sums = {name: value - before[name] for name, value in stream.sums.items()}
        assert (totals.published, totals.delivered, totals.conflated, totals.dropped) == (
            sums["events"], sums["n"], sums["conflated"], sums["dropped"],
        )  # fmt: skip
        if key.mode != "merge" and key.channel != "book" and not reader.slow:  # where an event may show nothing
            assert (totals.conflated, totals.dropped) == (0, 0)


async def settle(seconds: float = 1.0) -> None:
    await trio.sleep(seconds)
    await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def market(nursery, autojump_clock):
    market = open_market()
    nursery.start_soon(market.broadcaster.run)
    return market


@pytest.fixture
def reader(market, nursery):
    reader = Reader(market)
    nursery.start_soon(reader.outbox.run)
    return reader


async def test_a_batch_subscriber_returns_to_exactly_the_rows_it_missed(autojump_clock, market, reader):
    tape = Tape()
    reader.subscribe("trade", 0, 100, "batch", "disconnect")
    market.broadcaster.publish(tape.trades(*[(BTC, BUY, 100, 1)] * 3))
    await settle()
    reader.read()
    subscription = reader.find("trade", 0)
    assert subscription is not None
    market.broadcaster.unsubscribe(subscription, [0])
    market.broadcaster.publish(tape.trades(*[(BTC, BUY, 100, 1)] * 4))
    assert reader.subscribe("trade", 0, 100, "batch", "disconnect", resume=True)
    market.broadcaster.publish(tape.trades((BTC, BUY, 100, 1)))
    await settle()
    reader.read()
    assert [row["trade_id"] for row in reader.streams["trade", 0].rows] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("after", [("another", 2), (None, 99)])
async def test_a_resume_that_cannot_be_is_answered_with_a_snapshot(autojump_clock, market, reader, after):
    tape = Tape()
    market.broadcaster.publish(tape.trades(*[(BTC, BUY, 100, 1)] * 3))
    stream = reader.streams["trade", 0]
    stream.epoch, stream.last = after[0] or market.history.epoch, after[1]
    assert reader.subscribe("trade", 0, 0, "raw", "disconnect", resume=True) is False
    (message,) = reader.read()
    assert (message["type"], message["pos"]["prev"], message["pos"]["last"]) == ("snapshot", None, 3)


async def test_a_merge_subscriber_returns_with_one_message(autojump_clock, market, reader):
    tape = Tape()
    market.broadcaster.publish(tape.quotes((BTC, 1, 1, 2, 1)))
    reader.subscribe("ticker", 0, 100, "merge", "conflate")
    reader.read()
    subscription = reader.find("ticker", 0)
    assert subscription is not None
    market.broadcaster.unsubscribe(subscription, [0])
    for bid in range(2, 9):
        market.broadcaster.publish(tape.quotes((BTC, bid, 1, 20, 1)))
    assert reader.subscribe("ticker", 0, 100, "merge", "conflate", resume=True)
    (message,) = reader.read()
    assert message["pos"] | {"epoch": ""} == {
        "epoch": "", "prev": 1, "last": 8, "n": 1, "conflated": 6, "dropped": 0, "window_ms": 100,
    }  # fmt: skip
    assert message["data"][0]["bid"] == 0.8


@pytest.mark.parametrize("options", [{"event_rows": 10}, {"event_bytes": 10 * ROW_BYTES + 1}], ids=["rows", "bytes"])
async def test_drop_oldest_says_what_was_lost(autojump_clock, nursery, options):
    market, tape = open_market(options=HistoryOptions(**options)), Tape()
    reader = Reader(market)
    nursery.start_soon(market.broadcaster.run)
    nursery.start_soon(reader.outbox.run)
    reader.subscribe("ticker", 0, 0, "raw", "drop_oldest")
    market.broadcaster.publish(tape.quotes((BTC, 1, 1, 200, 1)))
    await settle()
    reader.wire.set_room(0)
    for bid in range(2, 52):
        market.broadcaster.publish(tape.quotes((BTC, bid, 1, 200, 1)))
        await settle(0.01)
    reader.wire.set_room(None)
    await settle()
    last = reader.read()[-1]["pos"]
    assert (last["prev"], last["last"], last["n"], last["conflated"], last["dropped"]) == (1, 51, 10, 0, 40)
    assert [lag.dropped for lag in reader.lags] == [40]


async def away(market: Market, reader: Reader, tape: Tape, channel: str, on_slow: str = "disconnect") -> None:
    """Subscribe to every event, leave, and miss some."""
    reader.subscribe(channel, 0, 100, "batch", on_slow)
    happen(market, tape, range(1, 4))
    await settle()
    reader.read()
    subscription = reader.find(channel, 0)
    assert subscription is not None
    market.broadcaster.unsubscribe(subscription, [0])
    happen(market, tape, range(4, 9))


def happen(market: Market, tape: Tape, values: range) -> None:
    for value in values:
        market.broadcaster.publish(tape.quotes((BTC, value, 1, 200, 1)))
        market.broadcaster.publish(tape.levels(BTC, (BUY, 80 + value, 1)))
        market.broadcaster.publish(tape.trades((BTC, BUY, 100 + value, 1)))


@pytest.mark.parametrize("on_slow", ["disconnect", "conflate", "drop_oldest"])
@pytest.mark.parametrize("channel", ["ticker", "trade", "book", "ohlc"])
async def test_who_returns_gets_exactly_what_it_missed(autojump_clock, market, reader, channel, on_slow):
    tape = Tape()
    opening(market, tape)
    await away(market, reader, tape, channel, on_slow)
    await trio.sleep(29)
    before = len(reader.streams[channel, 0].rows)
    assert reader.subscribe(channel, 0, 100, "batch", on_slow, resume=True)
    await settle()
    messages = reader.read()
    assert sum(message["pos"]["n"] for message in messages) == 5
    assert len(reader.streams[channel, 0].rows) - before == 5
    assert {message["type"] for message in messages} == {"update"}


@pytest.mark.parametrize("channel", ["ticker", "book", "ohlc"])
async def test_nothing_is_kept_for_ever_for_who_does_not_return(autojump_clock, market, reader, channel):
    tape = Tape()
    opening(market, tape)
    await away(market, reader, tape, channel)
    assert len(market.broadcaster._channels) == 1
    await trio.sleep(31)
    happen(market, tape, range(9, 10))
    assert market.broadcaster._channels == {}
    assert reader.subscribe(channel, 0, 100, "batch", "disconnect", resume=True) is False


async def test_only_so_much_is_kept_for_those_who_left(autojump_clock, market, reader, monkeypatch):
    monkeypatch.setattr("ticker.broadcast.MAX_LINGERING", 3)
    for interval_ms in range(10):
        for _ in range(2):  # coming and going again and again is one thing to keep
            reader.subscribe("ticker", 0, interval_ms, "batch", "conflate")
            subscription = reader.find("ticker", 0)
            assert subscription is not None
            market.broadcaster.unsubscribe(subscription, [0])
    assert [key.interval_ms for key in market.broadcaster._channels] == [7, 8, 9]
