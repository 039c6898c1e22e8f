"""Requests and their answers, one client at a time; every message of the protocol against a golden transcript."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from feeds.records import BUY, SELL
from feeds.replay import ReplayFeed
from feeds.store import open_recording, write_recording
from tests.scripted import BTC, ETH, INSTRUMENTS, START_NS, FakeWire, Tape, frames, market_of, open_market, open_outbox
from ticker import __version__
from ticker.bus import Bus
from ticker.history import HistoryOptions
from ticker.library import Library
from ticker.market import Market
from ticker.replays import Replays, ReplaysOptions
from ticker.session import Session, SessionOptions

GOLDEN = Path(__file__).parent / "golden"


class Client:
    """A client that speaks to a session directly."""

    def __init__(self, market: Market, *, native: bool = False, replays: Replays | None = None, **options: Any) -> None:
        self.wire: FakeWire
        self.wire, self.outbox = open_outbox()
        self.session = Session(1, self.outbox, market, SessionOptions(**options), native=native, replays=replays)

    def ask(self, method: str, **params: Any) -> list[Any]:
        """Send a request and return what comes back at once."""
        return self.say(json.dumps({"method": method, "params": params, "req_id": 1}))

    def say(self, text: str | bytes) -> list[Any]:
        self.session.receive(text)
        return self.wire.messages()


@pytest.fixture
def fixed_time(monkeypatch):
    monkeypatch.setattr("feeds.clock.wall_ns", lambda: START_NS)


@pytest.fixture
async def market(nursery, fixed_time):
    market = open_market()
    nursery.start_soon(market.broadcaster.run)
    await market.gateway.recover()
    nursery.start_soon(market.gateway.run)
    return market


@pytest.fixture
def client(market):
    return Client(market)


async def settle() -> None:
    await trio.sleep(1)
    await trio.testing.wait_all_tasks_blocked()


def compare(name: str, transcript: str) -> None:
    """Compare with a golden file; UPDATE_GOLDEN=1 writes it anew."""
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(transcript)
    assert transcript == (GOLDEN / name).read_text()


REQUESTS = [
    '{"method":"ping","req_id":1}',
    '{"method":"ping"}',
    '{"method":"subscribe","params":{"channel":"instrument"},"req_id":2}',
    '{"method":"subscribe","params":{"channel":"ticker","symbol":["BTC/USD","ETH/USDT","NO/PE"]},"req_id":3}',
    '{"method":"subscribe","params":{"channel":"ticker","symbol":"BTC/USD","event_trigger":"bbo"},"req_id":4}',
    '{"method":"subscribe","params":{"channel":"ticker","symbol":["BTC/USD"]},"req_id":5}',
    '{"method":"subscribe","params":{"channel":"book","symbol":["BTC/USD"],"depth":25},"req_id":6}',
    '{"method":"subscribe","params":{"channel":"book","symbol":["BTC/USD"],"depth":11},"req_id":7}',
    '{"method":"subscribe","params":{"channel":"trade","symbol":["BTC/USD","ETHUSDT"],"snapshot":true},"req_id":8}',
    '{"method":"subscribe","params":{"channel":"ohlc","symbol":["BTC/USD"],"interval":5},"req_id":9}',
    '{"method":"subscribe","params":{"channel":"ohlc","symbol":["BTC/USD"],"interval":2},"req_id":10}',
    '{"method":"subscribe","params":{"channel":"nothing","symbol":["BTC/USD"]},"req_id":11}',
    '{"method":"subscribe","params":{"channel":"ticker"},"req_id":12}',
    '{"method":"subscribe","params":{"channel":"executions","token":"any"},"req_id":13}',
    '{"method":"subscribe","params":{"channel":"balances","token":"any"},"req_id":14}',
    '{"method":"unsubscribe","params":{"channel":"ticker","symbol":["BTC/USD","ETHUSDT","NO/PE"]},"req_id":15}',
    '{"method":"unsubscribe","params":{"channel":"instrument"},"req_id":16}',
    '{"method":"unsubscribe","params":{"channel":"instrument"},"req_id":17}',
    '{"method":"frobnicate","req_id":18}',
    '{"method":"ping","req_id":NaN}',
    "[]",
    '{"method":"add_order","params":{"order_type":"limit","side":"buy","symbol":"BTC/USD","order_qty":0.5,'
    '"limit_price":100.2,"cl_ord_id":"my-1","token":"any"},"req_id":19}',
    '{"method":"add_order","params":{"order_type":"limit","side":"buy","symbol":"BTC/USD","order_qty":0.5,'
    '"limit_price":99.0,"cl_ord_id":"my-2"},"req_id":20}',
    '{"method":"add_order","params":{"order_type":"market","side":"sell","symbol":"BTC/USD","order_qty":5},"req_id":21}',
    '{"method":"cancel_order","params":{"cl_ord_id":["my-2"]},"req_id":22}',
    '{"method":"cancel_order","params":{"cl_ord_id":["my-2"]},"req_id":23}',
    '{"method":"add_order","params":{"order_type":"limit","side":"buy","symbol":"BTC/USD","order_qty":0.5,'
    '"limit_price":100.25},"req_id":24}',
]


async def test_every_message_of_the_protocol_is_as_the_golden_transcript_has_it(autojump_clock, market, client):
    """Set UPDATE_GOLDEN=1 to write the transcript anew; then read the difference."""
    tape, lines = Tape(), []
    book = [(BUY, 1000, 50_000_000), (BUY, 999, 70_000_000), (SELL, 1001, 20_000_000), (SELL, 1002, 90_000_000)]

    def note() -> None:
        lines.extend("<- " + payload for payload in client.wire.payloads())

    client.session.begin()
    note()
    market.broadcaster.publish(tape.levels(BTC, *book, snapshot=True))
    market.broadcaster.publish(tape.quotes((BTC, 1000, 50_000_000, 1001, 20_000_000), (ETH, 5, 1, 6, 1)))
    market.broadcaster.publish(tape.trades((BTC, BUY, 1001, 10_000_000), (BTC, SELL, 1000, 5), (ETH, BUY, 6, 1)))
    for request in REQUESTS:
        lines.append("-> " + request)
        client.session.receive(request)
        await settle()
        note()
    lines.append("-- the market moves")
    batches = [
        tape.levels(BTC, (BUY, 1000, 0), (SELL, 1001, 30_000_000)),
        tape.quotes((BTC, 999, 70_000_000, 1001, 30_000_000)),
        tape.trades((BTC, SELL, 999, 25), (ETH, BUY, 7, 12345)),
    ]
    for batch in batches:
        market.happened(batch)
        await settle()
        note()
    lines.append("-- silence")
    client.session.beat()
    client.session.beat()
    note()
    lines.append("-- the server stops")
    client.session.tell_status("maintenance", 1000)
    note()
    transcript = "\n".join(lines).replace(f'"version":"{__version__}"', '"version":"VERSION"') + "\n"
    compare("kraken_v2.txt", transcript)


async def test_the_result_of_an_acknowledgement_can_be_sent_back_as_it_is(autojump_clock, market, client):
    for params in (
        {"channel": "ticker", "event_trigger": "bbo"}, {"channel": "book", "depth": 100},
        {"channel": "ohlc", "interval": 60}, {"channel": "trade", "snapshot": True},
    ):  # fmt: skip
        (first,) = client.ask("subscribe", symbol=["BTC/USD"], **params)
        (removed,) = client.ask("unsubscribe", **first["result"])
        (second,) = client.ask("subscribe", **first["result"])
        assert removed["success"]
        assert second["result"] == first["result"]


async def test_a_reply_precedes_the_data_it_causes(autojump_clock, market, client):
    market.broadcaster.publish(Tape().quotes((BTC, 1, 1, 2, 1)))
    reply, snapshot = client.ask("subscribe", channel="ticker", symbol=["BTC/USD"])
    assert reply["success"]
    assert snapshot["type"] == "snapshot"


async def test_a_symbol_named_twice_is_subscribed_once(autojump_clock, market, client):
    assert len(client.ask("subscribe", channel="ticker", symbol=["BTC/USD", "BTC/USD"])) == 1


async def test_more_subscriptions_than_allowed_are_refused_one_by_one(autojump_clock, market):
    client = Client(market, max_subscriptions=1)
    replies = client.ask("subscribe", channel="ticker", symbol=["BTC/USD", "ETHUSDT"])
    assert [reply["success"] for reply in replies] == [True, False]
    assert "may have 1 subscriptions" in replies[1]["error"]


async def test_too_many_requests_are_refused_and_the_session_lives(autojump_clock, market):
    client = Client(market, requests_per_s=10, requests_burst=3)
    assert [client.ask("ping")[0]["method"] for _ in range(3)] == ["pong"] * 3
    (refusal,) = client.ask("ping")
    assert (refusal["success"], refusal["error"]) == (False, "EGeneral:Too many requests")
    assert (refusal["method"], refusal["req_id"]) == ("ping", 1)
    (refusal,) = client.say('{"method":"ping","req_id":NaN}')
    assert refusal["error"] == "EGeneral:Too many requests"
    assert "method" not in refusal
    assert client.say(b"{}")[0]["error"] == "EGeneral:Too many requests"
    await trio.sleep(0.1)
    assert client.ask("ping")[0]["method"] == "pong"


@pytest.mark.parametrize(("rate", "burst"), [(5, 5), (0.5, 1)])
async def test_a_rate_alone_limits_what_may_come_at_once(autojump_clock, market, rate, burst):
    client = Client(market, requests_per_s=rate)
    answers = [client.ask("ping")[0] for _ in range(burst + 1)]
    assert [answer.get("success") for answer in answers] == [None] * burst + [False]


async def test_a_binary_message_is_refused(autojump_clock, market, client):
    (refusal,) = client.say(b'{"method":"ping"}')
    assert refusal["success"] is False


async def test_a_heartbeat_comes_only_into_silence_and_only_to_subscribers(autojump_clock, market, client):
    client.session.beat()
    client.session.beat()
    assert client.wire.messages() == []
    client.ask("subscribe", channel="ticker", symbol=["BTC/USD"])
    client.session.beat()
    assert client.wire.messages() == []
    client.session.beat()
    client.session.beat()
    assert client.wire.messages() == [{"channel": "heartbeat"}] * 2
    client.ask("ping")
    client.session.beat()
    assert client.wire.messages() == []


@pytest.mark.parametrize("channel", ["instrument", "balances", "executions"])
async def test_a_native_heartbeat_comes_to_subscribers_of_anything(autojump_clock, market, channel):
    """A subscriber of instruments got the plain one, and only into silence."""
    client = Client(market, native=True)
    client.session.beat()
    assert client.wire.messages() == []
    client.ask("subscribe", channel=channel)
    await settle()
    client.wire.messages()
    for _ in range(2):
        client.session.beat()
        (beat,) = client.wire.messages()
        assert (beat["channel"], beat["data"]) == ("heartbeat", [])
        assert beat["ts"].startswith("2026")


async def test_a_session_that_ends_leaves_nothing_behind(autojump_clock, market, client):
    for channel in ("ticker", "trade", "book", "ohlc"):
        client.ask("subscribe", channel=channel, symbol=["BTC/USD"])
    for channel in ("executions", "balances"):
        client.ask("subscribe", channel=channel)
    client.session.forget(clean=True)
    assert market.broadcaster.statistics().subscriptions == 0
    assert not market.gateway.reads(client.session)


async def test_the_slowest_are_told_why_they_are_cut_off(autojump_clock, market, client):
    client.session._data._own._subscriber.cut_off("too far behind")
    client.session.end(1001, "later")
    assert client.session.close == (4008, "too far behind")


@pytest.mark.parametrize("native", [True, False])
async def test_a_native_client_is_noticed_of_what_was_too_slow_before_it_is_cut_off(
    autojump_clock, nursery, fixed_time, native
):
    market, tape = open_market(options=HistoryOptions(trade_rows=10)), Tape()
    await market.gateway.recover()
    client = Client(market, native=native)
    nursery.start_soon(market.broadcaster.run)
    nursery.start_soon(client.outbox.run)
    client.ask("subscribe", channel="ticker", symbol=["BTC/USD"])
    client.ask("subscribe", channel="trade", symbol=["BTC/USD"])
    client.wire.set_room(0)
    for _ in range(100):
        market.broadcaster.publish(tape.trades((BTC, BUY, 1000, 1)))
        await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(3)
    client.wire.set_room(None)
    await settle()
    assert client.session.close[0] == 4008
    notices = [message["data"] for message in client.wire.messages() if message["channel"] == "notice"]
    row = {"code": 2301, "name": "SLOW_CONSUMER", "sub_id": 2, "lag_ms": 3000, "conflated": 0, "dropped": 0}
    assert notices[1:] == ([[row]] if native else [])  # the first one is of the ticker, which has caught up


NATIVE_REQUESTS = [
    '{"method":"subscribe","params":{"channel":"ticker","symbol":["*"],"event_trigger":"bbo","interval_ms":250},'
    '"req_id":1}',
    '{"method":"subscribe","params":{"channel":"trade","symbol":["BTC/USD"],"numbers":"string","snapshot":true},'
    '"req_id":2}',
    '{"method":"subscribe","params":{"channel":"book","symbol":["BTC/USD"],"mode":"raw","on_slow":"drop_oldest"},'
    '"req_id":3}',
    '{"method":"subscribe","params":{"channel":"ohlc","symbol":["BTC/USD"],"interval_ms":1000},"req_id":4}',
    '{"method":"subscribe","params":{"channel":"trade","symbol":["ETHUSDT"],"resume":{"epoch":"EPOCH","after":1}},'
    '"req_id":5}',
    '{"method":"subscribe","params":{"channel":"ticker","symbol":["ETH/USDT"],"resume":{"epoch":"old","after":1}},'
    '"req_id":6}',
    '{"method":"subscribe","params":{"channel":"book","symbol":["ETHUSDT"],"interval_ms":60001},"req_id":7}',
    '{"method":"subscribe","params":{"channel":"book","symbol":["ETHUSDT"],"mode":7},"req_id":8}',
    '{"method":"subscribe","params":{"channel":"trade","symbol":["ETH/USDT"],"encoding":"struct"},"req_id":9}',
    '{"method":"update_subscription","params":{"sub_id":1,"interval_ms":100},"req_id":10}',
    '{"method":"update_subscription","params":{"sub_id":99,"interval_ms":100},"req_id":11}',
    '{"method":"resync","params":{"channel":"book","symbol":["BTC/USD"]},"req_id":12}',
    '{"method":"resync","params":{"channel":"book","symbol":["ETHUSDT"]},"req_id":13}',
    '{"method":"list_subscriptions","req_id":14}',
]


async def test_every_message_of_the_native_profile_is_as_the_golden_transcript_has_it(
    autojump_clock, market, nursery, monkeypatch
):
    monkeypatch.setattr(market.history, "epoch", "c0ffee00")
    client, tape, lines = Client(market, native=True), Tape(), []
    nursery.start_soon(client.outbox.run)

    def note() -> None:
        lines.extend("<- " + payload for payload in client.wire.payloads())

    def happen() -> None:
        for batch in (
            tape.quotes((BTC, 1000 + tape.seq, 5, 1100, 20), (ETH, 5, 1, 6, 1)),
            tape.quotes((BTC, 1001 + tape.seq, 5, 1100, 20)),
            tape.trades((BTC, BUY, 1001, 10), (ETH, BUY, 6, 1), (ETH, BUY, 7, 1)),
            tape.levels(BTC, (BUY, 1000 + tape.seq, 5), (SELL, 1100, 7), snapshot=tape.seq < 9),
        ):
            market.broadcaster.publish(batch)

    client.session.begin()
    happen()
    for request in NATIVE_REQUESTS:
        lines.append("-> " + request)
        client.session.receive(request.replace("EPOCH", market.history.epoch))
        await settle()
        note()
    for _ in range(2):
        lines.append("-- the market moves")
        happen()
        await settle()
        note()
    lines.append("-- a second")
    client.session.beat()
    note()
    lines.append("-- the socket is clogged for two seconds, and the market moves")
    client.wire.set_room(0)
    happen()
    await settle()
    happen()
    await settle()
    client.wire.set_room(None)
    await settle()
    note()
    compare("native.txt", "\n".join(lines).replace(f'"version":"{__version__}"', '"version":"VERSION"') + "\n")


async def test_a_packed_ticker_is_read_with_one_frombuffer(autojump_clock, market):
    client, tape = Client(market, native=True), Tape()
    replies = client.ask("subscribe", channel="ticker", symbol=["*"], event_trigger="bbo", encoding="struct")
    dtype = np.dtype([tuple(field) for field in replies[0]["ext"]["dtype"]])
    listings = {reply["ext"]["listing"]: reply["result"]["symbol"] for reply in replies}
    market.broadcaster.publish(tape.quotes((BTC, 1000, 5, 1100, 20), (ETH, 500, 1, 600, 1)))
    await settle()
    for bid in (1001, 1002):
        market.broadcaster.publish(tape.quotes((BTC, bid, 5, 1100, 20)))
    await settle()
    first, second = [
        np.frombuffer(payload, dtype) for opcode, payload in frames(bytes(client.wire.taken)) if opcode == 2
    ]
    assert [listings[int(i)] for i in first["listing"]] == ["BTC/USD", "ETHUSDT"]
    assert first["prev"].tolist() == [-1, -1]
    assert first["bid"].tolist() == [100.0, 5.0]
    assert np.isnan(first["price"]).all()
    assert [second[name].item() for name in ("prev", "last", "n", "conflated", "dropped")] == [1, 3, 1, 1, 0]
    assert second["bid"].item() == 100.2


async def test_plain_clients_know_nothing_of_the_native_profile(autojump_clock, market, client):
    (reply,) = client.ask(
        "subscribe", channel="ticker", symbol=["BTC/USD"], interval_ms="5", mode="raw", resume=1, session=5
    )
    assert "ext" not in reply
    assert reply["result"] == {"channel": "ticker", "symbol": "BTC/USD", "snapshot": True, "event_trigger": "trades"}
    for method in ("update_subscription", "resync", "list_subscriptions"):
        assert client.ask(method)[0]["error"] == f"Unknown method {method}"


OWN_TAPE_REQUESTS = [
    '{"method":"subscribe","params":{"channel":"replay"},"req_id":1}',
    '{"method":"subscribe","params":{"channel":"replay"},"req_id":2}',
    '{"method":"subscribe","params":{"channel":"replay","session":"desk1"},"req_id":3}',
    '{"method":"unsubscribe","params":{"channel":"replay"},"req_id":4}',
    '{"method":"unsubscribe","params":{"channel":"replay"},"req_id":5}',
]


async def test_every_message_about_the_servers_own_tape_is_as_the_golden_transcript_has_it(
    autojump_clock, nursery, fixed_time, monkeypatch, tmp_path
):
    autojump_clock.autojump_threshold = 0.1  # the recording is read in a thread
    monkeypatch.setattr("ticker.bulletin.LOOK_S", 1e6)
    monkeypatch.setattr("ticker.bulletin.REPORT_S", 1e6)
    monkeypatch.setattr("ticker.history.secrets.token_hex", lambda _: "c0ffee00")
    tape = Tape()
    rows = [tape.trades((BTC, BUY, 1000 + k, 1), (ETH, BUY, 5, 1)) for k in range(3)]
    write_recording(tmp_path / "day1", INSTRUMENTS, rows)
    feed = ReplayFeed(open_recording(tmp_path / "day1"), start_paused=True)
    market = market_of(feed, HistoryOptions(), ReplaysOptions(digest_events=4))
    await market.gateway.recover()
    client, lines = Client(market, native=True), []
    nursery.start_soon(market.broadcaster.run)
    nursery.start_soon(feed.run, Bus(market.happened, market.marked))
    await settle()

    def note() -> None:
        lines.extend("<- " + payload for payload in client.wire.payloads())

    for request in OWN_TAPE_REQUESTS:
        if '"req_id":4' in request:
            lines.append("-- somebody resumes the tape over HTTP, and it is played to its end")
            feed.playback.resume()
            market.bulletin.report()
            await settle()
            note()
        lines.append("-> " + request)
        client.session.receive(request)
        note()
    client = Client(market)
    lines += ["-- a client without the native profile", "-> " + OWN_TAPE_REQUESTS[0]]
    client.session.receive(OWN_TAPE_REQUESTS[0])
    note()
    compare("own_tape.txt", "\n".join(lines) + "\n")


REPLAY_REQUESTS = [
    '{"method":"replay_sources","req_id":1}',
    '{"method":"replay_start","params":{"source":"day1","session":"desk1","symbol":"BTC/USD","speed":0,'
    '"start_paused":true,"to":"2026-01-02T09:04:31.004Z"},"req_id":2}',
    '{"method":"subscribe","params":{"channel":"ticker","symbol":["BTC/USD"],"interval_ms":0,"session":"desk1"},'
    '"req_id":3}',
    '{"method":"subscribe","params":{"channel":"trade","symbol":["BTC/USD"],"session":"desk1"},"req_id":4}',
    '{"method":"subscribe","params":{"channel":"book","symbol":["BTC/USD"],"session":"desk1"},"req_id":5}',
    '{"method":"subscribe","params":{"channel":"ohlc","symbol":["BTC/USD"],"session":"desk1"},"req_id":6}',
    '{"method":"replay_control","params":{"session":"desk1","action":"step"},"req_id":7}',
    '{"method":"replay_control","params":{"session":"desk1","action":"step","events":1},"req_id":8}',
    '{"method":"replay_control","params":{"session":"desk1","action":"speed","speed":2.5},"req_id":9}',
    '{"method":"replay_control","params":{"session":"desk1","action":"step","to":"2026-01-02T09:04:32Z"},"req_id":10}',
    '{"method":"replay_control","params":{"session":"desk1","action":"seek","to":"2026-01-02T09:04:31.002Z"},'
    '"req_id":11}',
    '{"method":"list_subscriptions","req_id":12}',
    '{"method":"unsubscribe","params":{"channel":"ohlc","symbol":["BTC/USD"],"session":"desk1"},"req_id":13}',
    '{"method":"replay_control","params":{"session":"desk1","action":"stop"},"req_id":14}',
    '{"method":"replay_control","params":{"session":"desk1","action":"resume"},"req_id":15}',
    '{"method":"replay_start","params":{"source":"../day1"},"req_id":16}',
]


async def test_every_message_of_a_replay_is_as_the_golden_transcript_has_it(
    autojump_clock, market, nursery, monkeypatch, tmp_path
):
    autojump_clock.autojump_threshold = 0.1  # recordings are read in a thread
    monkeypatch.setattr("ticker.bulletin.LOOK_S", 1e6)  # rows of the clock come between others at any place
    monkeypatch.setattr("ticker.bulletin.REPORT_S", 1e6)
    epochs = itertools.count(1)
    monkeypatch.setattr("ticker.history.secrets.token_hex", lambda _: f"e{next(epochs):07d}")
    tape, lines = Tape(), []
    rows = [tape.levels(BTC, (BUY, 1000, 5), (SELL, 1001, 7), snapshot=True)]
    rows += [tape.trades((BTC, BUY, 1001, 1), (ETH, BUY, 5, 1)), tape.trades((BTC, SELL, 1000, 2))]
    write_recording(tmp_path / "day1", INSTRUMENTS, rows)
    options = ReplaysOptions(directory=str(tmp_path), digest_events=2)
    replays = Replays(Library(options.directory), options, HistoryOptions())
    nursery.start_soon(replays.run)
    client = Client(market, native=True, replays=replays)
    for number, request in enumerate(REPLAY_REQUESTS, 1):
        lines.append("-> " + request)
        client.session.receive(request)
        while f'"req_id":{number}}}'.encode() not in client.wire.taken:
            await trio.testing.wait_all_tasks_blocked(0.01)
        await trio.sleep(0.5)
        lines.extend("<- " + payload for payload in client.wire.payloads())
    compare("replay.txt", "\n".join(lines).replace(f'"version":"{__version__}"', '"version":"VERSION"') + "\n")
