"""``/api/replay``: the server's own replay over HTTP, through our client and through whatever else somebody sends."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from feeds.records import BUY
from feeds.replay import ReplayFeed
from feeds.store import open_recording, write_recording
from tests.scripted import BTC, INSTRUMENTS, START_NS, Tape
from tests.serving import House, open_house, request_head
from ticker.client.connection import ConnectionLost, ConnectionRefused
from ticker.client.remote import ActionRefused, Remote
from ticker.head import BODY_DEADLINE_S, MAX_BODY_BYTES

NS = 1_000_000


@pytest.fixture
def feed(tmp_path):
    """Ten trades, a millisecond apart; the tape begins paused."""
    pen = Tape()
    write_recording(tmp_path / "day1", INSTRUMENTS, [pen.trades((BTC, BUY, 1000 + k, 1)) for k in range(10)])
    return ReplayFeed(open_recording(tmp_path / "day1"), start_paused=True, hold_end=True, speed=10)


def remote_of(house: House) -> Remote:
    return Remote(f"ws://127.0.0.1:{house.port}/v2")


async def post(house: House, body: bytes, **lines: str | None) -> tuple[int, bytes]:
    return await house.post("/api/replay", body, **lines)


async def test_a_replay_is_looked_at_and_controlled(feed) -> None:
    async with open_house(feed, tcp=True) as house:
        remote = remote_of(house)
        peer = await house.visit(native=True)
        await peer.subscribe("trade")
        first = await remote.state()
        assert (first["source"], first["speed"], first["progress"], first["rows"]) == ("day1", 10, 0, 0)
        assert (first["from"], first["to"]) == ("2026-01-02T09:04:31.001000000Z", "2026-01-02T09:04:31.010000001Z")
        await remote.control("step", events=3)
        assert len(await peer.trade_ids(3)) == 3
        assert (await remote.state())["rows"] == 3
        await remote.control("step", to=START_NS + 6 * NS)
        assert len(await peer.trade_ids(2)) == 2
        assert (await remote.control("speed", speed=0))["speed"] == 0
        assert (await remote.control("resume"))["state"] in ("playing", "ended")
        assert len(await peer.trade_ids(5)) == 5
        assert (await remote.control("stop"))["state"] == "stopped"
        with pytest.raises(ActionRefused, match="has been stopped"):
            await remote.control("resume")


async def test_the_heartbeat_says_that_a_tape_stands_still(feed, autojump_clock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with open_house(feed) as house:
        peer = await house.visit(native=True)
        await peer.subscribe("trade")
        house.market.playback.step()
        await peer.trade_ids(1)
        assert [row["state"] for row in (await peer.message_of("heartbeat"))["data"]] == ["paused"]


async def test_status_says_what_is_replayed_and_how_fast(feed) -> None:
    async with open_house(feed) as house:
        plain = house.dial()
        await plain.shake_hands()
        (row,) = (await plain.message())["data"]
        assert (row["mode"], "speed" in row, "source" in row) == ("replay", False, False)
        peer = house.dial()
        await peer.shake_hands(request_head(extra=["Sec-WebSocket-Protocol: ticker.v1"]))
        (row,) = (await peer.message())["data"]
        assert (row["mode"], row["speed"]) == ("replay", 10)


async def test_what_is_no_replay_says_so() -> None:
    async with open_house(tcp=True) as house:
        assert await remote_of(house).state() == {"source": None}
        with pytest.raises(ActionRefused, match="this market is no replay"):
            await remote_of(house).control("pause")
        assert (await post(house, b'{"action":"pause"}'))[0] == 409


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"", "INVALID_JSON"),
        (b"pause", "INVALID_JSON"),
        (b"\xff\xfe", "INVALID_JSON"),
        (b'{"action":"pause","action":"stop"}', "INVALID_JSON"),
        (b'{"action":"speed","speed":NaN}', "INVALID_JSON"),
        (b'{"action":"speed","speed":1e999}', "INVALID_JSON"),
        (b"[" * 2000, "INVALID_JSON"),
        (b'["pause"]', "INVALID_REQUEST"),
        (b"{}", "INVALID_FIELD"),
        (b'{"action":"rewind"}', "INVALID_FIELD"),
        (b'{"action":"leave"}', "INVALID_FIELD"),
        (b'{"action":"speed","speed":"10"}', "INVALID_FIELD"),
        (b'{"action":"seek","to":"2026-01-02T25:00:00Z"}', "BAD_TIME"),
        (b'{"action":"seek","to":"9999-01-02T00:00:00Z"}', "BAD_TIME"),
    ],
)
async def test_a_body_that_cannot_be_obeyed_is_refused_with_its_code(feed, body, name) -> None:
    async with open_house(feed) as house:
        status, said = await post(house, body)
        assert (status, json.loads(said)["name"]) == (400, name)
        assert house.market.playback.state in ("waiting", "paused")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ({"content-type": "text/plain"}, 415),  # what a form of another site could send
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": None}, 415),
        ({"content-length": None}, 411),
        ({"content-length": None, "transfer-encoding": "chunked"}, 411),
        ({"content-length": str(MAX_BODY_BYTES + 1)}, 413),
        ({"content-length": "9" * 30}, 400),
        ({"content-length": "-1"}, 400),
        ({"origin": "http://evil.example"}, 403),
        ({"host": "evil.example"}, 403),
    ],
)
async def test_who_may_not_or_says_it_wrongly_changes_nothing(feed, lines, status) -> None:
    async with open_house(feed) as house:
        assert (await post(house, b'{"action":"stop"}', **lines))[0] == status
        assert house.market.playback.state != "stopped"


async def test_the_servers_own_page_may(feed) -> None:
    async with open_house(feed) as house:
        kind = "application/json; charset=utf-8"
        status, _ = await post(house, b'{"action":"stop"}', **{"origin": "http://localhost", "content-type": kind})
        assert status == 200
        assert house.market.playback.state == "stopped"


async def test_a_body_that_does_not_come_is_not_waited_for(feed, autojump_clock) -> None:
    async with open_house(feed) as house:
        began = trio.current_time()
        assert (await post(house, b'{"act', **{"content-length": "18"}))[0] == 408
        assert trio.current_time() - began == pytest.approx(BODY_DEADLINE_S)


@pytest.mark.parametrize(("method", "path"), [("PUT", "/api/replay"), ("DELETE", "/api/replay"), ("POST", "/healthz")])
async def test_other_methods_are_told_which_there_are(feed, method, path) -> None:
    async with open_house(feed) as house:
        peer = house.dial()
        await peer.send(f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        answer = await peer.answer()
        allowed = b"GET, HEAD, POST" if path == "/api/replay" else b"GET, HEAD"
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nallow: " + allowed + b"\r\n" in answer


# The client


async def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(ConnectionRefused):
        await Remote("ws://127.0.0.1:1/v2").state()
    with pytest.raises(ConnectionRefused, match="not a WebSocket URL"):
        Remote("localhost")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "was not answered"),
        (b"nonsense\r\n\r\n", "was not answered"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{}", "was not answered"),
        (b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"source":"x"}', "not of this protocol"),
    ],
)
async def test_an_answer_that_is_none_is_told(answer, text) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners: Any = await nursery.start(trio.serve_tcp, serve, 0)
        with pytest.raises(ConnectionLost, match=text):
            await Remote(f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v2").state()
        nursery.cancel_scope.cancel()


async def test_a_server_without_that_page_is_told() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 8\r\n\r\nno page\n")

    async with trio.open_nursery() as nursery:
        listeners: Any = await nursery.start(trio.serve_tcp, serve, 0)
        with pytest.raises(ActionRefused, match="no page"):
            await Remote(f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v2").state()
        nursery.cancel_scope.cancel()
