"""The client: replies find their request, messages their reader, and a stream outlives its connections."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial

import msgspec
import pytest
import trio
import trio.testing
import trio_websocket

from feeds.instruments import Instrument
from tests.serving import BTC, ETH, ScriptedFeed, open_house, quotes_batch, trades_batch
from ticker.client import (
    Connection,
    ConnectionLost,
    ConnectionRefused,
    StateChange,
    Subscription,
    connection,
    open_connection,
    open_stream,
)
from ticker.client.backoff import Backoff
from ticker.client.connection import distinct
from ticker.client.stream import STREAM_BUFFER

BOTH = ("BTC/USD", "ETH/USD")


def url_of(house):
    return f"ws://127.0.0.1:{house.port}/v2"


class FakeSocket:
    """The two methods of a WebSocket that a connection uses, with the server's side in the test's hands."""

    def __init__(self):
        self.sent = []
        self.may_send = trio.Event()
        self.may_send.set()
        self._in, self._out = trio.open_memory_channel(100)

    def say(self, *messages):
        for message in messages:
            self._in.send_nowait(msgspec.json.encode(message).decode())

    def say_text(self, text):
        self._in.send_nowait(text)

    def close(self):
        self._in.close()

    async def send_message(self, text):
        await self.may_send.wait()
        self.sent.append(msgspec.json.decode(text))

    async def get_message(self):
        try:
            return await self._out.receive()
        except trio.EndOfChannel:
            raise trio_websocket.ConnectionClosed(trio_websocket.CloseReason(4008, "too slow")) from None


@pytest.fixture
def fake():
    return FakeSocket()


@pytest.fixture
def opened(fake):
    return Connection("ws://test/v2", fake)


@asynccontextmanager
async def odd_server(handler):
    """A WebSocket server on a loopback port that does what ``handler`` does; gives its URL."""
    async with trio.open_nursery() as nursery:

        async def handle(request):
            socket = await request.accept()
            await handler(socket)

        server = await nursery.start(partial(trio_websocket.serve_websocket, handle, "127.0.0.1", 0, ssl_context=None))
        yield f"ws://127.0.0.1:{server.port}/v2"
        nursery.cancel_scope.cancel()


# --- requests and replies


async def test_every_request_gets_its_own_reply_whatever_the_order(opened, fake):
    replies = {}

    async def ask(name):
        replies[name] = await opened.request("ping", {"name": name})

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(ask, name)
        await trio.testing.wait_all_tasks_blocked()
        for request in reversed(fake.sent):
            fake.say({"method": "pong", "req_id": request["req_id"], "echo": request["params"]["name"]})
    assert {name: reply["echo"] for name, reply in replies.items()} == {"a": "a", "b": "b", "c": "c"}


async def test_a_reader_and_a_request_do_not_steal_from_each_other(opened, fake):
    got = []

    async def iterate():
        async for message in opened:
            got.append(message["n"])
            if len(got) == 3:
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(iterate)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(opened.request, "ping")
        await trio.testing.wait_all_tasks_blocked()
        fake.say({"channel": "x", "n": 1}, {"channel": "x", "n": 2}, {"method": "pong", "req_id": 1})
        await trio.testing.wait_all_tasks_blocked()
        fake.say({"channel": "x", "n": 3})
    assert got == [1, 2, 3]


async def test_when_the_task_that_reads_is_cancelled_another_one_goes_on(opened, fake):
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def wait_in_vain():
            with scope:
                await opened.receive()

        nursery.start_soon(wait_in_vain)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(opened.request, "ping")
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        fake.say({"channel": "x", "n": 1}, {"method": "pong", "req_id": 1})
    assert list(opened.unread) == [{"channel": "x", "n": 1}]


async def test_a_bad_symbol_fails_alone(autojump_clock):
    async with open_house(tcp=True) as house, open_connection(url_of(house)) as market:
        replies = await market.subscribe("ticker", ["BTC/USD", "FOO/USD", "BTC/USD"], event_trigger="bbo")
    good, bad = replies
    assert good["result"] == {"channel": "ticker", "symbol": "BTC/USD", "snapshot": True, "event_trigger": "bbo"}
    assert (bad["success"], bad["symbol"]) == (False, "FOO/USD")


async def test_a_request_refused_as_a_whole_has_one_reply(autojump_clock):
    async with open_house(tcp=True) as house, open_connection(url_of(house)) as market:
        (reply,) = await market.subscribe("weather", BOTH)
    assert reply["error"] == "Channel not supported weather"


async def test_many_symbols_go_in_requests_that_a_server_takes(autojump_clock):
    """A server reads 16 KiB a message; a thousand symbols of 24 letters are more."""
    names = [f"{n:021d}/USD" for n in range(1000)]
    feed = ScriptedFeed(
        Instrument(symbol=name, base=name[:-4], quote="USD", price_precision=1, qty_precision=8) for name in names
    )
    async with open_house(feed, tcp=True) as house, open_connection(url_of(house)) as market:
        assert [pair["symbol"] for pair in await market.pairs()] == names
        replies = await market.subscribe("ticker", names)
        assert [reply["success"] for reply in replies] == [True] * 1000
        assert house.market.broadcaster.statistics().subscriptions <= 2  # the last request is a short one


async def test_a_request_resumes_its_own_symbols_and_no_others(opened, fake):
    names = [f"{n:060d}/USD" for n in range(500)]
    after = {name: 2**62 + n for n, name in enumerate(names)}
    replies = []

    async def subscribe():
        replies.extend(await opened.subscribe("book", names, resume={"epoch": "e", "after": after}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscribe)
        while len(replies) < len(names):
            await trio.testing.wait_all_tasks_blocked()
            request = fake.sent[-1]
            asked = request["params"]["symbol"]
            assert request["params"]["resume"] == {"epoch": "e", "after": {name: after[name] for name in asked}}
            assert len(msgspec.json.encode(request)) < 16 * 1024
            fake.say(*({"method": "subscribe", "success": True, "req_id": request["req_id"]} for _ in asked))
            await trio.testing.wait_all_tasks_blocked()
    assert [name for request in fake.sent for name in request["params"]["symbol"]] == names


async def test_a_request_without_a_reply_does_not_wait_for_ever(opened, autojump_clock):
    with pytest.raises(ConnectionLost, match="no reply to ping within 10 s"):
        await opened.request("ping")
    assert trio.current_time() == pytest.approx(10.0)


async def test_a_cancelled_send_ends_the_connection(opened, fake):
    """Half a frame may be on the wire; what is sent after it would land inside it."""
    fake.may_send = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opened.request, "ping")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    fake.may_send.set()
    with pytest.raises(ConnectionLost, match="cancelled while it was being sent"):
        await opened.request("ping")
    assert fake.sent == []


async def test_a_request_during_a_flood_that_nobody_reads_ends_the_connection(opened, fake, monkeypatch):
    monkeypatch.setattr(connection, "MAX_UNREAD", 3)
    fake.say(*({"channel": "x"} for _ in range(4)))
    with pytest.raises(ConnectionLost, match="3 messages came that nobody read"):
        await opened.request("ping")


# --- messages


async def test_numbers_keep_the_digits_that_the_server_printed(autojump_clock):
    async with open_house(tcp=True) as house, open_connection(url_of(house)) as market:
        await market.subscribe("trade", ["BTC/USD"])
        await house.trade()
        while (message := await market.receive())["channel"] != "trade":
            pass
    (row,) = message["data"]
    assert (row["price"], row["qty"]) == (Decimal("60000.1"), Decimal("0.12345678"))
    assert str(row["price"]) == "60000.1"


async def test_nothing_is_lost_by_a_cancelled_receive(autojump_clock):
    async with open_house(tcp=True) as house, open_connection(url_of(house)) as market:
        await market.subscribe("trade", ["BTC/USD"])
        ids = []
        while len(ids) < 20:
            if len(ids) % 2 == 0:
                await house.trade()
            with trio.move_on_after(0.001):
                message = await market.receive()
                ids += [row["trade_id"] for row in message["data"]] if message["channel"] == "trade" else []
            if len(ids) % 2:
                await house.trade()
    assert ids == list(range(1, len(ids) + 1))


async def test_messages_before_the_end_are_still_returned(opened, fake):
    fake.say({"channel": "x", "n": 1})
    fake.close()
    assert (await opened.receive())["n"] == 1
    for _ in range(2):
        with pytest.raises(ConnectionLost, match=r"4008 \(too slow\)") as caught:
            await opened.receive()
        assert caught.value.code == 4008


@pytest.mark.parametrize("text", ["", "hello", "[1, 2]", "12", '{"a":', "null", '"method"', "[" * 10_000])
async def test_a_server_that_does_not_speak_json_objects(opened, fake, text):
    fake.say_text(text)
    with pytest.raises(ConnectionLost, match="is this a ticker server"):
        await opened.receive()


@pytest.mark.parametrize(
    "message",
    [
        {"channel": "instrument", "type": "update"},
        {"channel": "instrument", "data": {"pairs": [{"symbol": "BTC/USD"}]}},
        {"channel": "replay", "data": []},
        {"channel": "replay", "data": [5]},
        {"channel": "status", "data": [{"reconnect_after_ms": None}]},
        {"channel": "status", "data": {}},
        {"method": "x", "req_id": [1]},
        {"method": "x", "ext": 5},
        {"method": "x", "ext": {"dtype": [["a", "?"]]}},
        {"method": "x", "ext": {"dtype": 5, "listing": 1}, "result": {"channel": "trade", "symbol": "A"}},
        {"method": "x", "ext": {"dtype": [[1]], "listing": {}}, "result": {"channel": "trade", "symbol": "A"}},
    ],
)
async def test_a_message_that_lacks_something_ends_the_connection(opened, fake, message):
    fake.say(message)
    for waiting in (opened.receive, opened.pairs):
        with pytest.raises(ConnectionLost, match=r"not of this protocol .* is this a ticker server"):
            await waiting()


async def test_records_without_an_acknowledgement_that_describes_them_end_the_connection(opened, fake):
    fake.say_text(b"\x02" + bytes(80))
    with pytest.raises(ConnectionLost, match="is this a ticker server"):
        await opened.receive()


@pytest.mark.parametrize("bad", [b"", b"\x02", b"\x01\x07\0\0\0", b"\x02\x07\0\0\0\x02"])
async def test_records_that_are_not_whole_or_not_expected_end_the_connection(opened, fake, bad):
    ext = {"listing": 7, "dtype": [["channel", "|u1"], ["listing", "<u4"]]}
    fake.say({"method": "subscribe", "result": {"channel": "trade", "symbol": "BTC/USD"}, "success": True, "ext": ext})
    fake.say_text(b"\x02\x07\0\0\0")
    message = await opened.receive()
    assert (message["data"]["listing"].tolist(), opened.listings) == ([7], {7: "BTC/USD"})
    fake.say_text(bad)
    with pytest.raises(ConnectionLost, match="is this a ticker server"):
        await opened.receive()


async def test_the_close_of_the_server_has_its_code_and_reason(autojump_clock):
    async with open_house(tcp=True) as house, open_connection(url_of(house)) as market:
        await market.request("ping")
        (session,) = house.server.sessions.values()
        session.end(4501, "go away")
        with pytest.raises(ConnectionLost, match=r"4501 \(go away\)"):
            async for _ in market:
                pass


async def test_leaving_the_context_leaves_nothing_in_the_server(autojump_clock):
    async with open_house(tcp=True) as house:
        async with open_connection(url_of(house)) as market:
            await market.subscribe("ticker", BOTH)
        await house.wait_empty()
        assert house.server.statistics().ended == {"peer left": 1}


async def leave_with_an_error(url):
    async with open_connection(url) as market:
        await market._send("")
        raise LookupError


async def test_what_the_body_raises_comes_out_as_it_is(autojump_clock):
    async with open_house(tcp=True) as house:
        with pytest.raises(LookupError):
            await leave_with_an_error(url_of(house))


async def test_a_server_that_never_answers_our_close_does_not_hold_us(autojump_clock):
    """And the body's own error is not lost over it."""

    async def never_answer(socket):
        # Stops reading in the middle of the connection, below the library.
        socket._reader_running = False
        await trio.sleep_forever()

    async with odd_server(never_answer) as url:
        with pytest.raises(LookupError):
            await leave_with_an_error(url)
        assert trio.current_time() <= connection.DISCONNECT_TIMEOUT_S + 0.001


# --- no connection


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("ws://127.0.0.1:{free}/v2", r"no server at .* \(Connection refused\); start one with `ticker serve`"),
        ("ws://127.0.0.1:{port}/v9", "answered HTTP 404: WebSockets are at"),
        ("http://127.0.0.1:{port}/v2", "is not a WebSocket URL"),
        ("ws://127.0.0.1:99999/v2", "is not a WebSocket URL"),
        ("ws:///v2", "is not a WebSocket URL"),
    ],
)
async def test_no_connection_says_why_and_what_to_do(url, text):
    with trio.socket.socket() as reserved:
        await reserved.bind(("127.0.0.1", 0))
        async with open_house(tcp=True) as house:
            with pytest.raises(ConnectionRefused, match=text):
                async with open_connection(url.format(port=house.port, free=reserved.getsockname()[1])):
                    pass


async def say_nothing(stream):
    await trio.sleep_forever()


async def say_hello(stream):
    await stream.send_all(b"220 hello\r\n")
    await stream.receive_some()


@pytest.mark.parametrize(
    ("scheme", "handler", "text"),
    [
        ("ws", say_nothing, "did not answer as a WebSocket within 5 s"),
        ("wss", say_nothing, "no answer from .* within 5 s"),
        ("wss", say_hello, r"no server at wss://.*\[SSL"),
    ],
)
async def test_a_port_that_speaks_something_else(scheme, handler, text, autojump_clock):
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(partial(trio.serve_listeners, handler, [listener]))
        with pytest.raises(ConnectionRefused, match=text):
            async with open_connection(f"{scheme}://127.0.0.1:{listener.socket.getsockname()[1]}/v2"):
                pass
        nursery.cancel_scope.cancel()


# --- pairs


def pair(symbol, base, quote):
    return {"symbol": symbol, "base": base, "quote": quote}


def test_a_second_name_of_a_pair_is_left_out():
    own, dashed, other = pair("BTCUSDT", "BTC", "USDT"), pair("ETH-USD", "ETH", "USD"), pair("ETH/EUR", "ETH", "EUR")
    future = pair("ESH4", "ESH4", "")
    aliases = [pair("BTC/USDT", "BTC", "USDT"), pair("ETH/USD", "ETH", "USD")]
    assert distinct([own, dashed, other, future, *aliases]) == [own, dashed, other, future]


# --- backoff


@pytest.mark.parametrize("seed", range(20))
def test_delays_grow_within_their_bounds(seed):
    backoff = Backoff(random.Random(seed))
    delays = [backoff.next() for _ in range(50)]
    assert min(delays) >= 0.5
    assert delays[0] <= 1.5
    assert 5.0 < max(delays) <= 10.0
    assert len(set(delays[:3])) == 3
    backoff.reset()
    assert backoff.next() <= 1.5


# --- streams


async def next_state(stream, state):
    """Return the next state change of this name; messages before it are passed over."""
    with trio.fail_after(120):
        async for item in stream:
            if isinstance(item, StateChange) and item.state == state:
                return item
    raise AssertionError(f"the stream ended before {state}")


async def next_message(stream, channel):
    async for item in stream:
        if isinstance(item, dict) and item["channel"] == channel:
            return item
    raise AssertionError(f"the stream ended before a message of {channel}")


async def test_a_stream_subscribes_to_every_pair_if_none_is_named(autojump_clock):
    async with (
        open_house(ScriptedFeed([BTC, ETH]), tcp=True) as house,
        open_stream(url_of(house), [Subscription("ticker", params={"event_trigger": "bbo"})]) as stream,
    ):
        assert (await next_state(stream, "connected")).refused == ()
        await house.feed.tell(quotes_batch(1, 1, instrument=0))
        await house.feed.tell(quotes_batch(2, 1, instrument=1))
        rows = [(await next_message(stream, "ticker"))["data"][0] for _ in range(2)]
        assert [row["symbol"] for row in rows] == list(BOTH)


async def test_a_stream_subscribes_again_after_a_loss(autojump_clock):
    wishes = [Subscription("trade", BOTH), Subscription("ticker", ("BTC/USD", "FOO/USD"))]
    async with open_house(tcp=True) as house, open_stream(url_of(house), wishes) as stream:
        for number in range(1, 4):
            state = await next_state(stream, "connected")
            assert state.refused == ("Currency pair not supported FOO/USD",)
            await house.feed.tell(trades_batch(number, 1))
            assert (await next_message(stream, "trade"))["data"][0]["trade_id"] == number
            (session,) = house.server.sessions.values()
            session.end(1001, "the server stops")
            waiting = await next_state(stream, "waiting")
            assert "1001 (the server stops)" in waiting.text
            assert 0.5 <= waiting.retry_in_s <= 10.0
            lost_at = trio.current_time()
            await next_state(stream, "connecting")
            assert trio.current_time() - lost_at == pytest.approx(waiting.retry_in_s)


async def test_a_stream_ends_when_the_server_says_that_coming_back_is_of_no_use(autojump_clock):
    async with open_house(tcp=True) as house, open_stream(url_of(house), [Subscription("ticker", BOTH)]) as stream:
        await next_state(stream, "connected")
        (session,) = house.server.sessions.values()
        session.end(4503, "replaced")
        assert "4503 (replaced)" in (await next_state(stream, "ended")).text
        with pytest.raises(trio.EndOfChannel):
            await stream.receive()


async def test_a_planned_stop_is_waited_for_as_long_as_it_was_announced(autojump_clock):
    async with open_house(tcp=True) as house, open_stream(url_of(house), [Subscription("ticker", BOTH)]) as stream:
        await next_state(stream, "connected")
        house.server.drain(25_000)
        assert (await next_state(stream, "waiting")).retry_in_s == 25.0


async def test_a_stream_keeps_trying_where_there_is_no_server(autojump_clock):
    with trio.socket.socket() as reserved:
        await reserved.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{reserved.getsockname()[1]}/v2"
        async with open_stream(url, [Subscription("ticker", BOTH)]) as stream:
            for _ in range(10):
                assert "Connection refused" in (await next_state(stream, "waiting")).text


async def test_a_silent_server_counts_as_lost(autojump_clock):
    """A half-open connection looks the same: only the missing heartbeats tell."""

    async def answer_once(socket):
        request = msgspec.json.decode(await socket.get_message())
        reply = {"method": "subscribe", "success": True, "req_id": request["req_id"]}
        await socket.send_message(msgspec.json.encode(reply).decode())
        await trio.sleep_forever()

    async with odd_server(answer_once) as url, open_stream(url, [Subscription("ticker", ("BTC/USD",))]) as stream:
        await next_state(stream, "connected")
        connected_at = trio.current_time()
        assert "nothing came for 10 s" in (await next_state(stream, "waiting")).text
        # What is left of it: our Close is answered by the library of the other side at once.
        assert trio.current_time() - connected_at == pytest.approx(10.0, abs=0.01)


async def test_a_quiet_market_is_not_a_lost_one(autojump_clock):
    async with open_house(tcp=True) as house, open_stream(url_of(house), [Subscription("ticker", BOTH)]) as stream:
        await next_state(stream, "connected")
        with trio.move_on_after(60):
            await next_state(stream, "waiting")
            pytest.fail("heartbeats were not taken for signs of life")


async def fail_inside_a_stream(house):
    async with open_stream(url_of(house), [Subscription("ticker", BOTH)]) as stream:
        await next_state(stream, "connected")
        await house.feed.tell(quotes_batch(1, 1))
        raise LookupError


async def test_leaving_a_stream_leaves_nothing(autojump_clock):
    async with open_house(tcp=True) as house:
        with pytest.raises(ExceptionGroup) as caught:
            await fail_inside_a_stream(house)
        assert [type(error) for error in caught.value.exceptions] == [LookupError]
        await house.wait_empty()


async def test_a_reader_that_stops_costs_a_bounded_number_of_messages(autojump_clock):
    async with open_house(tcp=True) as house, open_stream(url_of(house), [Subscription("trade", BOTH)]) as stream:
        await next_state(stream, "connected")
        for _ in range(STREAM_BUFFER + 50):
            await house.trade()
            await trio.testing.wait_all_tasks_blocked()
        assert stream.statistics().current_buffer_used == STREAM_BUFFER


# --- layers


def test_the_client_brings_nothing_of_the_server_along():
    code = "import sys, ticker.client; print(*sorted(m for m in sys.modules if m.startswith(('ticker', 'feeds'))))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    modules = ("backoff", "connection", "remote", "replay", "stream")
    assert loaded == ["ticker", "ticker.client", *(f"ticker.client.{module}" for module in modules)]
