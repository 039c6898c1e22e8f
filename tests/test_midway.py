"""Joining, asking again, changing the interval and leaving while something waits for its flush."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import trio
import trio.testing

from feeds.records import BUY, SELL, Batch
from tests.scripted import BTC, ETH, START_NS, Tape, frames, open_market
from tests.test_session import Client
from ticker.binary import DTYPES
from ticker.market import Market
from ticker.marketdata import ROOMY

VARIANTS: dict[str, dict[str, Any]] = {"ticker": {"event_trigger": "bbo"}, "trade": {}, "book": {}, "ohlc": {}}


class Happenings:
    """Events, the k-th of which has the price 1000 + k."""

    instrument = BTC

    def __init__(self, market: Market) -> None:
        self._market, self._tape, self._numbers = market, Tape(), itertools.count()

    async def __call__(self, channel: str, count: int = 1) -> None:
        """Have so many of a channel happen, and everybody who is due told."""
        make: dict[str, Callable[[int], Batch]] = {
            "ticker": lambda k: self._tape.quotes((self.instrument, 1000 + k, 1, 9000, 1)),
            "trade": lambda k: self._tape.trades((self.instrument, BUY, 1000 + k, 1)),
            "book": lambda k: self._tape.levels(self.instrument, (BUY, 1000 + k, 1), (SELL, 9000, 1), snapshot=not k),
        }
        make["ohlc"] = make["trade"]
        for _ in range(count):
            self._market.broadcaster.publish(make[channel](next(self._numbers)))
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def market(nursery, autojump_clock, monkeypatch):
    monkeypatch.setattr("feeds.clock.wall_ns", lambda: START_NS)
    market = open_market()
    nursery.start_soon(market.broadcaster.run)
    return market


@pytest.fixture
def happen(market):
    return Happenings(market)


def native(market: Market) -> Client:
    client = Client(market, native=True)
    client.wire.messages()
    return client


def subscribe(client: Client, channel: str, **params: Any) -> tuple[Any, list[Any]]:
    """Return the acknowledgement and the messages that follow at once."""
    ack, *data = client.ask("subscribe", channel=channel, symbol=["BTC/USD"], **VARIANTS[channel] | params)
    return ack, data


def of(channel: str, messages: list[Any]) -> list[Any]:
    return [message for message in messages if message.get("channel") == channel]


@pytest.mark.parametrize("channel", VARIANTS)
@pytest.mark.parametrize("mode", ["merge", "batch"])
async def test_a_snapshot_and_a_resync_show_the_present_whatever_the_interval(
    autojump_clock, market, happen, channel, mode
):
    first, second = native(market), native(market)
    await happen(channel)
    subscribe(first, channel, interval_ms=60_000, mode=mode)
    await happen(channel)
    await happen(channel, 2)  # these wait for a minute
    ack, _ = subscribe(second, channel, interval_ms=60_000, mode=mode, snapshot=True)
    first.wire.messages()
    await happen(channel, 2)
    (snapshot,) = of(channel, first.ask("resync", channel=channel, symbol=["BTC/USD"], **VARIANTS[channel]))
    assert (ack["ext"]["head"], snapshot["type"], snapshot["pos"]["last"]) == (4, "snapshot", 6)
    await trio.sleep(61)
    for client in (first, second):
        assert of(channel, client.wire.messages()) == [] or client is second


@pytest.mark.parametrize("channel", VARIANTS)
async def test_who_joins_without_a_snapshot_hears_what_comes_after_and_every_row_of_it(
    autojump_clock, market, happen, channel
):
    first, second = native(market), native(market)
    await happen(channel)
    subscribe(first, channel, interval_ms=5000, mode="batch")
    await happen(channel)
    await happen(channel, 2)  # these wait
    ack, data = subscribe(second, channel, interval_ms=5000, mode="batch", snapshot=False)
    assert (ack["ext"]["head"], data) == (4, [])
    await happen(channel, 3)
    await trio.sleep(6)
    messages = of(channel, second.wire.messages())
    assert [(m["pos"]["prev"], m["pos"]["last"], m["pos"]["n"]) for m in messages] == [(4, 7, 3)]


@pytest.mark.parametrize("channel", VARIANTS)
@pytest.mark.parametrize(("before", "after"), [(0, 1000), (1000, 0), (1000, 200)])
async def test_an_interval_changed_leaves_out_no_row_also_where_others_have_the_new_one(
    autojump_clock, market, happen, channel, before, after
):
    """The topic with the new interval is there already, and has nothing from before it was asked for."""
    client, other = native(market), native(market)
    subscribe(client, channel, interval_ms=before, mode="batch", on_slow="disconnect")
    await happen(channel)
    await happen(channel, 2)
    subscribe(other, channel, interval_ms=after, mode="batch")
    await happen(channel, 2)
    client.ask("update_subscription", sub_id=1, interval_ms=after)
    await happen(channel, 2)
    await trio.sleep(2)
    (row,) = client.ask("list_subscriptions")[-1]["result"]["subscriptions"]
    told = 7 - (channel in ("ticker", "book"))  # whose first event is a snapshot
    assert (row["published"], row["delivered"], row["interval_ms"]) == (told, told, after)
    assert not client.outbox.sealed


@pytest.mark.parametrize("channel", VARIANTS)
@pytest.mark.parametrize("mode", ["merge", "batch"])
@pytest.mark.parametrize("encoding", ["json", "struct"])
async def test_nobody_can_have_known_what_is_before_the_first_event(
    autojump_clock, market, happen, channel, mode, encoding
):
    client = native(market)
    await happen(channel, 3)
    resume = {"epoch": market.history.epoch, "after": -1}
    params = {"channel": channel, "symbol": ["BTC/USD"], "mode": mode, "encoding": encoding, "resume": resume}
    client.session.receive(json.dumps({"method": "subscribe", "params": params | VARIANTS[channel]}))
    (_, ack), *_ = frames(bytes(client.wire.taken))
    assert json.loads(ack)["ext"]["recovered"] is False


async def test_a_connection_has_a_bounded_number_of_topics(autojump_clock, market, monkeypatch):
    monkeypatch.setattr("ticker.marketdata.MAX_TOPICS", 3)
    client = native(market)
    for channel in ("trade", "book", "ohlc"):
        assert subscribe(client, channel, interval_ms=100)[0]["success"]
    (refused,) = client.ask("subscribe", channel="ticker", symbol=["BTC/USD", "ETH/USDT"])
    assert (refused["success"], refused["ext"]["name"]) == (False, "TOO_MANY_SUBSCRIPTIONS")
    assert client.ask("subscribe", channel="trade", symbol=["ETH/USDT"], interval_ms=100)[0]["success"]
    assert not client.ask("update_subscription", sub_id=4, interval_ms=50)[0]["success"]
    assert client.ask("update_subscription", sub_id=4, interval_ms=100)[0]["success"]


async def test_a_stream_in_which_something_waits_is_not_idle(autojump_clock, market, happen):
    client = native(market)
    subscribe(client, "trade", interval_ms=60_000)
    await happen("trade")
    await happen("trade")
    states = []
    for _ in range(70):
        await trio.sleep(1)
        await happen("ticker")  # the market lives
        client.session.beat()
        states += [row["state"] for beat in of("heartbeat", client.wire.messages()) for row in beat["data"]]
    assert set(states[:60]) == {"live"}
    assert states[-1] == "idle"


@pytest.mark.parametrize("on_slow", ["drop_oldest", "disconnect"])
async def test_what_merges_conflates_and_is_acknowledged_so(autojump_clock, market, on_slow):
    ack, _ = subscribe(native(market), "ticker", on_slow=on_slow)
    assert ack["result"]["on_slow"] == "conflate"


async def test_a_notice_says_what_all_of_the_slowness_cost(autojump_clock, market, happen, nursery, monkeypatch):
    """Also if it takes several parts to catch up."""
    monkeypatch.setattr("ticker.topics.topic.PIECE_BYTES", 1)
    client, happen.instrument = native(market), ETH
    nursery.start_soon(client.outbox.run)
    client.ask("subscribe", channel="trade", symbol=["ETHUSDT", "ETH/USDT"], mode="batch", on_slow="conflate")
    await happen("trade")
    client.wire.set_room(0)
    await happen("trade")
    await happen("trade", 9)
    client.wire.set_room(100)  # not enough for the message of one name
    await trio.sleep(1)
    client.wire.set_room(None)
    await trio.sleep(1)
    (notice,) = [row for message in of("notice", client.wire.messages()) for row in message["data"]]
    (row,) = client.ask("list_subscriptions")[-1]["result"]["subscriptions"]
    assert (notice["conflated"], notice["dropped"]) == (row["conflated"], row["dropped"]) == (18, 0)


async def test_records_of_tickers_without_a_trade_have_no_figures_of_trades(autojump_clock, market, happen):
    client = native(market)
    await happen("ticker")
    params = {"channel": "ticker", "symbol": ["BTC/USD"], "event_trigger": "bbo", "encoding": "struct"}
    client.session.receive(json.dumps({"method": "subscribe", "params": params}))
    (record,) = np.frombuffer(dict(frames(bytes(client.wire.taken)))[2], DTYPES["ticker"])
    missing = [name for name in ("price", "vwap", "low", "high", "change", "change_pct") if not np.isnan(record[name])]
    assert (missing, record["bid"]) == ([], 100.0)


async def test_symbols_that_a_plain_client_asks_for_one_by_one_share_their_messages(autojump_clock, market):
    client = Client(market)
    for listed in market.listings.instruments:
        client.ask("subscribe", channel="trade", symbol=[listed.symbol])
    assert market.broadcaster.statistics().subscriptions == -(-len(market.listings.instruments) // ROOMY) == 1


async def test_what_comes_from_a_source_that_is_away_is_stale(autojump_clock, market, happen):
    gone: list[bool] = []
    client = native(msgspec.structs.replace(market, away=lambda: bool(gone)))
    subscribe(client, "trade")
    await happen("trade")
    states = []
    for _ in range(2):
        await trio.sleep(1.5)
        client.session.beat()
        states += [row["state"] for beat in of("heartbeat", client.wire.messages()) for row in beat["data"]]
        gone.append(True)
    assert states == ["live", "stale"]
