"""The relay: what another server sends becomes rows again, and nothing is missed unnoticed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

from feeds.book import Books
from feeds.errors import FeedError
from feeds.instruments import Instrument
from feeds.records import BUY, CLEAR, GAP, LAST, MISSING, SELL, SNAPSHOT, Batch, Levels, Marker, Quotes, Trades
from feeds.replay import ReplayFeed
from feeds.store import open_recording
from tests.scripted import INSTRUMENTS, START_NS, Tape
from tests.serving import ScriptedFeed, open_house
from ticker.client import ConnectionLost
from ticker.pairs import instruments_of, units
from ticker.relay import RelayFeed, RelayOptions, open_relay

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"
real = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not here")

#: What a relay cannot know of a row, or not exactly.
OWN = {"ts_recv", "ts_event", "seq", "flags"}


def url_of(house):
    return f"ws://127.0.0.1:{house.port}/v2"


async def subscribed(house):
    """Wait until the relay has its three subscriptions."""
    while house.market.broadcaster.statistics().subscriptions < 3:  # noqa: ASYNC110 - there is nothing else to wait for
        await trio.sleep(0.01)


class Relayed:
    """A relay under way, and what it has written."""

    def __init__(self, house, feed, events):
        self.house, self.feed, self._events = house, feed, events

    async def next(self):
        """Return the next event; a relay that says nothing for a minute has lost it."""
        with trio.fail_after(60):
            return await self._events.receive()

    async def after(self, event):
        """Have something happen at the source, and return what the relay makes of it."""
        await self.house.feed.tell(event)
        return await self.next()


@asynccontextmanager
async def relayed(*symbols, instruments=INSTRUMENTS):
    """Relay a market, by default one of which BTC/USD and ETHUSDT have a book, and nothing else."""
    async with open_house(ScriptedFeed(instruments), tcp=True) as house:
        feed = await open_relay(RelayOptions(url=url_of(house), symbols=symbols))
        send, receive = trio.open_memory_channel(1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run, send)
            relay = Relayed(house, feed, receive)
            assert (await relay.next()).kind == "epoch"
            await subscribed(house)
            yield relay
            nursery.cancel_scope.cancel()


def values(table):
    return {name: column.tolist() for name, column in table.columns().items() if name not in OWN}


async def test_instruments_are_the_servers(autojump_clock):
    async with open_house(ScriptedFeed(INSTRUMENTS), tcp=True) as house:
        feed = await open_relay(RelayOptions(url=url_of(house)))
        assert list(feed.instruments) == list(INSTRUMENTS)  # aliases too
        assert (feed.name, feed.mode) == (f"relay-127.0.0.1-{house.port}", "relay")
        some = await open_relay(RelayOptions(url=url_of(house), symbols=("ETHUSDT",)))
        assert [i.symbol for i in some.instruments] == ["ETHUSDT"]


async def test_a_symbol_that_the_server_does_not_have_is_said(autojump_clock):
    async with open_house(ScriptedFeed(INSTRUMENTS), tcp=True) as house:
        with pytest.raises(FeedError, match="no pair ABC; it has BTC/USD, ETHUSDT"):
            await open_relay(RelayOptions(url=url_of(house), symbols=("ABC",)))


async def test_no_server_is_said():
    with pytest.raises(FeedError, match=r"no server at ws://127\.0\.0\.1:1/v2"):
        await open_relay(RelayOptions(url="ws://127.0.0.1:1/v2"))


async def test_every_row_comes_through(autojump_clock):
    tape = Tape()
    async with relayed() as relay:
        for sent in (tape.trades((0, BUY, 1001, 7), (0, SELL, 1002, 8)), tape.trades((1, 0, 5, 10**12))):
            got = await relay.after(sent)
            assert values(got.trades) == values(sent.trades)
        sent = tape.quotes((0, 1000, 5, 1010, 6))
        assert values((await relay.after(sent)).quotes) == values(sent.quotes)
        sent = tape.quotes((0, MISSING, 0, 1010, 6))
        assert values((await relay.after(sent)).quotes) == values(sent.quotes)
        sent = tape.levels(0, (BUY, 999, 5), (SELL, 1001, 6), snapshot=True)
        got = await relay.after(sent)
        assert values(got.levels) == values(sent.levels)
        assert got.levels.flags.tolist() == [SNAPSHOT, SNAPSHOT, SNAPSHOT | LAST]
        sent = tape.levels(0, (BUY, 999, 0), (BUY, 998, 4))
        got = await relay.after(sent)
        assert values(got.levels) == values(sent.levels)
        assert got.levels.flags.tolist() == [0, LAST]
        told = relay.feed.statistics()
        assert (told.native, told.rows, told.holes, told.mismatches, told.connections) == (True, 10, 0, 0, 1)


async def test_times_are_those_of_the_message_and_of_its_arrival(autojump_clock):
    tape = Tape()
    async with relayed() as relay:
        batches = [await relay.after(tape.trades((0, BUY, 1001, 7))) for _ in range(3)]
        assert [b.trades.ts_event[0] for b in batches] == [START_NS + n * 1_000_000 for n in (1, 2, 3)]
        assert [b.trades.seq[0] for b in batches] == [1, 2, 3]
        arrived = [b.trades.ts_recv[0] for b in batches]
        assert arrived == sorted(arrived)
        assert arrived[0] > START_NS + 10**15  # wall time of this run, not of the tape


async def test_only_the_symbols_that_were_asked_for_come(autojump_clock):
    tape = Tape()
    async with relayed("ETHUSDT") as relay:
        await relay.house.feed.tell(tape.trades((0, BUY, 1, 1)))
        got = await relay.after(tape.trades((1, BUY, 2, 2)))
        assert got.trades.price.tolist() == [2]
        assert got.trades.instrument.tolist() == [0]


async def test_names_of_any_kind_are_served_and_relayed(autojump_clock):
    """A per cent sign or a quotation mark in a symbol ended the server."""
    names = ("50% OFF", 'A"B', "A\\B", "UD:1V: GN 2912", "BTC-28JUN24-70000.5-C", "币安人生USDT")
    odd = [Instrument(symbol=name, base=name, quote="", price_precision=1, qty_precision=8) for name in names]
    async with relayed(instruments=odd) as relay:
        assert [i.symbol for i in relay.feed.instruments] == list(names)
        tape = Tape()
        for who in range(len(names)):
            assert (await relay.after(tape.trades((who, BUY, 1001, 7)))).trades.instrument.tolist() == [who]
            assert (await relay.after(tape.quotes((who, 999, 5, 1010, 6)))).quotes.instrument.tolist() == [who]
            sent = tape.levels(who, (BUY, 999, 5), snapshot=True)
            assert set((await relay.after(sent)).levels.instrument.tolist()) == {who}
        assert relay.feed.statistics().holes == 0


# --- losses


async def test_after_a_lost_connection_exactly_what_was_missed_comes(autojump_clock):
    tape = Tape()
    async with relayed() as relay:
        await relay.after(tape.quotes((0, 999, 5, 1010, 6)))
        await relay.after(tape.levels(0, (BUY, 999, 5), snapshot=True))
        await relay.after(tape.trades((0, BUY, 1, 1)))
        (session,) = relay.house.server.sessions.values()
        assert relay.feed.statistics().connected
        session.end(4008, "slow")
        await relay.house.wait_empty()
        await trio.testing.wait_all_tasks_blocked()
        assert not relay.feed.statistics().connected
        for value in (2, 3, 4):
            await relay.house.feed.tell(tape.trades((0, BUY, value, 1)))
            await relay.house.feed.tell(tape.quotes((0, 999 + value, 5, 1010, 6)))
            await relay.house.feed.tell(tape.levels(0, (BUY, 999 + value, 5)))
        got = []
        while sum(map(len, got)) < 9:
            got.append(await relay.next())
        assert np.concatenate([b.trades.price for b in got]).tolist() == [2, 3, 4]
        assert np.concatenate([b.quotes.bid_px for b in got]).tolist() == [1001, 1002, 1003]
        assert np.concatenate([b.levels.price for b in got]).tolist() == [1001, 1002, 1003]
        assert not any((table.flags & GAP).any() for b in got for table in (b.trades, b.quotes, b.levels))
        told = relay.feed.statistics()
        assert (told.connected, told.connections, told.holes, told.missing) == (True, 2, 0, 0)


async def test_a_relay_of_many_symbols_comes_back(autojump_clock):
    """Each request once resumed all symbols, and from a thousand on the server refused it as too long, for ever."""
    names = [f"S{n:04d}/USD" for n in range(1500)]
    many = [Instrument(symbol=name, base=name[:-4], quote="USD", price_precision=1, qty_precision=8) for name in names]
    tape = Tape()
    async with relayed(instruments=many) as relay:
        await relay.after(tape.trades((1499, BUY, 1, 1)))
        (session,) = relay.house.server.sessions.values()
        session.end(4008, "slow")
        await relay.house.wait_empty()
        await relay.house.feed.tell(tape.trades((1499, BUY, 2, 1)))
        assert (await relay.next()).trades.price.tolist() == [2]
        told = relay.feed.statistics()
        assert (told.connections, told.holes) == (2, 0)


async def test_after_too_long_an_absence_what_is_missing_is_counted_and_flagged(autojump_clock):
    tape = Tape()
    async with relayed() as relay:
        await relay.after(tape.quotes((0, 999, 5, 1010, 6)))
        await relay.after(tape.levels(0, (BUY, 999, 5), snapshot=True))
        (session,) = relay.house.server.sessions.values()
        relay.feed._epoch = relay.house.market.history.epoch
        relay.feed._positions = {"trade": {"BTC/USD": 0}, "ticker": {"BTC/USD": -9}, "book": {"BTC/USD": -9}}
        session.end(4008, "slow")  # and what was known is older than what is kept
        await relay.house.wait_empty()
        got = [await relay.next(), await relay.next()]
        (quotes,) = [b.quotes for b in got if len(b.quotes)]
        (levels,) = [b.levels for b in got if len(b.levels)]
        assert quotes.flags.tolist() == [SNAPSHOT | GAP | LAST]
        assert levels.flags.tolist() == [SNAPSHOT | GAP, SNAPSHOT | LAST]
        told = relay.feed.statistics()
        assert (told.holes, told.missing) == (2, 20)


async def test_a_server_that_began_anew_is_a_new_epoch(autojump_clock):
    tape = Tape()
    async with relayed() as relay:
        await relay.after(tape.quotes((0, 999, 5, 1010, 6)))
        await relay.after(tape.levels(0, (BUY, 999, 5), snapshot=True))
        await relay.after(tape.trades((0, BUY, 1, 1), (0, BUY, 2, 1)))
        await relay.house.feed.tell(Marker(kind="epoch", ts=START_NS, reason="again"))
        marker = await relay.after(tape.trades((0, BUY, 3, 1)))
        assert (marker.kind, marker.reason) == ("epoch", "the server began a new epoch")
        got = await relay.next()
        assert (got.trades.price.tolist(), got.trades.flags.tolist()) == ([3], [LAST])
        got = await relay.after(tape.levels(0, (BUY, 998, 5), snapshot=True))
        assert got.levels.action[0] == CLEAR
        assert relay.feed.statistics().holes == 0


async def test_a_book_that_does_not_come_right_is_asked_for_again(autojump_clock):
    tape = Tape()
    async with relayed() as relay:
        await relay.after(tape.quotes((0, 999, 5, 1010, 6)))  # else the book's touch stands in for quotes
        await relay.after(tape.levels(0, (BUY, 999, 5), (BUY, 998, 5), snapshot=True))
        relay.feed._books[0].set_level(BUY, 998, 6)  # as if something had gone wrong here
        await relay.after(tape.levels(0, (BUY, 997, 5)))
        got = await relay.next()
        assert got.levels.flags.tolist() == [SNAPSHOT | GAP, SNAPSHOT, SNAPSHOT, SNAPSHOT | LAST]
        books = Books()
        list(books.apply(got.levels))
        assert books[0].top(BUY, 9) == [(999, 5), (998, 5), (997, 5)]
        assert not books[0].stale
        got = await relay.after(tape.levels(0, (BUY, 996, 5)))
        assert got.levels.flags.tolist() == [LAST]
        assert relay.feed.statistics().mismatches == 1


async def test_the_end_of_the_servers_feed_is_the_end(autojump_clock):
    async with relayed() as relay:
        marker = await relay.after(Marker(kind="end", ts=START_NS, reason="over"))
        assert (marker.kind, marker.reason) == ("end", "the server's feed has ended")


async def test_a_server_that_wants_nobody_back_is_not_asked_again(autojump_clock):
    async with open_house(ScriptedFeed(INSTRUMENTS), tcp=True) as house:
        feed = await open_relay(RelayOptions(url=url_of(house)))
        send, _receive = trio.open_memory_channel(100)
        async with trio.open_nursery() as nursery:

            async def throw_out():
                await subscribed(house)
                (session,) = house.server.sessions.values()
                session.end(4500, "go away")

            nursery.start_soon(throw_out)
            with pytest.raises(FeedError, match="4500"):
                await feed.run(send)


# --- a Kraken server without the native profile


async def test_a_plain_server_is_relayed_too(autojump_clock, monkeypatch):
    monkeypatch.setattr("ticker.relay.NATIVE", "none")
    tape = Tape()
    async with relayed() as relay:
        got = await relay.after(tape.trades((0, BUY, 1, 1)))
        assert got.trades.price.tolist() == [1]
        assert (await relay.after(tape.quotes((0, 999, 5, 1010, 6)))).quotes.bid_px.tolist() == [999]
        await relay.after(tape.levels(0, (BUY, 999, 5), snapshot=True))
        assert not relay.feed.statistics().native
        (session,) = relay.house.server.sessions.values()
        session.end(4008, "slow")
        await relay.house.wait_empty()
        assert (await relay.next()).kind == "gap"  # what was missed then, nobody can tell
        assert (await relay.next()).quotes.flags.tolist() == [SNAPSHOT | GAP | LAST]
        assert (await relay.next()).levels.flags.tolist() == [SNAPSHOT | GAP, SNAPSHOT | LAST]
        got = await relay.after(tape.trades((0, BUY, 2, 1)))
        assert got.trades.flags.tolist() == [GAP | LAST]


# --- messages


def feed_of():
    return RelayFeed(RelayOptions(url="ws://test/v2"), INSTRUMENTS)


def trade_message(prev, last, n=1, *, epoch="e", conflated=0, dropped=0):
    row = {
        "symbol": "BTC/USD", "side": "buy", "price": Decimal("100.1"), "qty": Decimal("0.5"), "ord_type": "market",
        "trade_id": last, "timestamp": "2026-01-02T09:04:31.000001Z",
    }  # fmt: skip
    pos = {"epoch": epoch, "prev": prev, "last": last, "n": n, "conflated": conflated, "dropped": dropped}
    return {"channel": "trade", "type": "update", "pos": pos, "data": [row] * n}


@pytest.mark.parametrize(
    ("second", "missing"),
    [
        (trade_message(1, 2), 0),
        (trade_message(1, 4, 3), 0),
        (trade_message(4, 5), 3),
        (trade_message(1, 9, 1, dropped=7), 7),
        (trade_message(1, 9, 1, conflated=7), 7),
        (trade_message(None, 9), 7),
    ],
)
def test_a_hole_in_the_positions_is_counted_and_flagged(second, missing):
    feed = feed_of()
    list(feed.events(trade_message(0, 1)))
    rows = [row for event in feed.events(second) for row in event.trades.flags.tolist()]
    assert all(bool(flags & GAP) == (missing > 0 and at == 0) for at, flags in enumerate(rows))
    told = feed.statistics()
    assert (told.missing, told.holes) == (missing, int(missing > 0))


def without(message, key):
    return {name: value for name, value in message.items() if name != key}


@pytest.mark.parametrize(
    "message",
    [
        without(trade_message(1, 2), "type"),
        {**trade_message(1, 2), "data": 5},
        {**trade_message(1, 2), "data": [5]},
        {**trade_message(1, 2), "data": [{}]},
        {**trade_message(1, 2), "data": [{"symbol": []}]},
        {**trade_message(1, 2), "pos": {"epoch": "e"}},
        {**trade_message(1, 2), "pos": 7},
        *(
            {**trade_message(1, 2), "data": [{**trade_message(1, 2)["data"][0], key: value}]}
            for key, value in (("price", "x"), ("price", None), ("qty", {}), ("side", []), ("timestamp", "noon"))
        ),
        {"channel": "book", "type": "update", "data": [{"symbol": "BTC/USD", "bids": [{}]}]},
        {"channel": "ticker", "type": "update", "data": [{"symbol": "BTC/USD", "bid": 1}]},
    ],
)
def test_a_message_that_lacks_something_ends_the_connection_and_nothing_is_resumed_behind_it(message):
    feed = feed_of()
    list(feed._understood(trade_message(0, 1)))
    with pytest.raises(ConnectionLost, match="not of this protocol"):
        feed._understood(message)
    assert not any(feed._positions.values())


async def test_after_a_message_that_lacks_something_a_gap_is_told(autojump_clock, monkeypatch):
    tape = Tape()
    async with relayed() as relay:
        await relay.after(tape.trades((0, BUY, 1, 1)))
        with monkeypatch.context() as patch:
            patch.setattr("ticker.codec.rfc3339", lambda _: "noon")
            await relay.house.feed.tell(tape.trades((0, BUY, 2, 1)))
            await relay.house.wait_empty()
        assert (await relay.next()).kind == "gap"
        got = await relay.after(tape.trades((0, BUY, 3, 1)))
        while not len(got.trades):  # the ticker begins with a snapshot
            got = await relay.next()
        assert got.trades.price.tolist() == [3]


@pytest.mark.parametrize(
    "changes", [{"price_precision": 10**9}, {"qty_precision": "8"}, {"qty_min": None}, {"price_increment": "x"}]
)
def test_a_pair_that_is_none_is_said(changes):
    pair = {
        "symbol": "A/B", "base": "A", "quote": "B", "price_precision": 1, "qty_precision": 8,
        "price_increment": Decimal("0.1"), "qty_increment": 1, "qty_min": 1,
    }  # fmt: skip
    assert instruments_of([pair], ())[0].symbol == "A/B"
    with pytest.raises(FeedError, match=f"is no pair: .*{next(iter(changes))}"):
        instruments_of([pair | changes], ())


def test_a_new_epoch_is_a_marker_and_no_hole():
    feed = feed_of()
    list(feed.events(trade_message(0, 7)))
    marker, batch = feed.events(trade_message(0, 1, epoch="f"))
    assert marker.kind == "epoch"
    assert batch.trades.flags.tolist() == [LAST]
    assert feed.statistics().holes == 0


def test_levels_behind_the_depth_are_taken_away(monkeypatch):
    monkeypatch.setattr("ticker.relay.DEPTH", 2)
    feed = feed_of()
    levels = [{"price": Decimal(price), "qty": Decimal("1.0")} for price in ("10.0", "9.0", "8.0")]
    message = {"channel": "book", "type": "snapshot", "data": [{"symbol": "BTC/USD", "bids": levels[:2], "asks": []}]}
    list(feed.events(message))
    (batch,) = feed.events({**message, "type": "update", "data": [{"symbol": "BTC/USD", "bids": [
        {"price": Decimal("9.5"), "qty": Decimal("1.0")}], "asks": []}]})  # fmt: skip
    assert batch.levels.price.tolist() == [95, 90]
    assert batch.levels.qty.tolist() == [10**8, 0]
    assert batch.levels.flags.tolist()[-1] & LAST


def test_messages_without_rows_say_nothing():
    feed = feed_of()
    for message in (
        {"channel": "status", "type": "update", "data": [{"system": "online"}]},
        {"channel": "heartbeat"},
        {"channel": "trade", "type": "update", "data": []},
        {"channel": "trade", "type": "update", "data": [{"symbol": "ABC/USD"}]},
    ):
        assert list(feed.events(message)) == []


@pytest.mark.parametrize(("value", "precision", "whole"), [(Decimal("100.10"), 1, 1001), (7, 2, 700), (0, 0, 0)])
def test_numbers_become_integers_exactly(value, precision, whole):
    assert units(value, precision) == whole


@pytest.mark.parametrize(("value", "precision"), [(Decimal("0.01"), 1), (Decimal("1e20"), 0), (2**53, 0)])
def test_a_number_that_is_none_of_the_instrument_is_refused(value, precision):
    with pytest.raises(FeedError, match="decimals cannot say"):
        units(value, precision)


def test_second_names_become_aliases():
    pair = {
        "base": "BTC", "quote": "USDT", "price_precision": 2, "price_increment": Decimal("0.25"), "qty_precision": 3,
        "qty_increment": Decimal("0.001"), "qty_min": Decimal("0.010"),
    }  # fmt: skip
    (instrument,) = instruments_of([{"symbol": "BTCUSDT", **pair}, {"symbol": "BTC/USDT", **pair}], ())
    assert (instrument.symbol, instrument.aliases) == ("BTCUSDT", ("BTC/USDT",))
    assert (instrument.price_increment, instrument.qty_increment, instrument.qty_min) == (25, 1, 10)


# --- a whole recording


@real
async def test_a_relayed_recording_has_every_trade_and_quote_of_the_file_and_its_book(autojump_clock):
    recording = open_recording(RECORDINGS / "binance_spot_20240808")
    heard = trio.Event()

    class Beginning(ReplayFeed):
        """The first rows of the recording, which begin when somebody listens."""

        async def run(self, out):
            await out.send(Marker(kind="epoch", ts=recording.start_ns, reason="start"))
            await heard.wait()
            for batch in part:
                await out.send(batch)
            await out.send(Marker(kind="end", ts=part[-1].ts, reason="over"))

    part = []
    for batch in ReplayFeed(recording).slices(500):
        part.append(batch)
        if sum(len(b) for b in part) > 7_000:
            break
    source = Beginning(recording)
    got = []
    async with open_house(source, tcp=True) as house:
        feed = await open_relay(RelayOptions(url=url_of(house)))
        send, receive = trio.open_memory_channel(10_000)
        async with trio.open_nursery() as nursery:

            async def listen():
                await subscribed(house)
                heard.set()

            nursery.start_soon(listen)
            nursery.start_soon(feed.run, send)
            async for event in receive:
                if isinstance(event, Batch):
                    got.append(event)
                elif event.kind == "end":
                    break
    for kind, name in ((Trades, "trades"), (Quotes, "quotes")):
        sent = kind.concatenate([getattr(b, name) for b in part])
        came = kind.concatenate([getattr(b, name) for b in got])
        assert len(came) == len(sent)
        for i in (0, 1):  # within a channel and a flush, symbol comes after symbol
            assert values(came.take(came.instrument == i)) == values(sent.take(sent.instrument == i))
    here, there = Books(), Books()
    list(here.apply(Levels.concatenate([b.levels for b in got])))
    list(there.apply(Levels.concatenate([b.levels for b in part])))
    for i in (0, 1):
        for side in (BUY, SELL):
            assert here[i].top(side, 1000) == there[i].top(side, 1000)
    told = feed.statistics()
    assert (told.holes, told.mismatches) == (0, 0)
