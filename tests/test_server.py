from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket

import pytest
import trio
import trio.testing

from tests.serving import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    House,
    Peer,
    client_frame,
    dial_tcp,
    open_house,
    quotes_batch,
    request_head,
)
from ticker.codec import frame
from ticker.guard import FrameGuard, GuardOptions
from ticker.head import parse_head
from ticker.orders.accounts import AccountOptions, Accounts, Limits, Token, new_token
from ticker.outbox import Outbox
from ticker.server import GuardedStream, ServerOptions
from ticker.session import SessionOptions
from ticker.transport import Transport
from ticker.wire import NATIVE

PAGE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(autouse=True)
def no_defects(caplog: pytest.LogCaptureFixture):
    """Nothing that a client does may be logged as a defect of ours."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def frame_of(text: str) -> bytes:
    return client_frame(TEXT, text.encode())


async def fill(house: House, peer: Peer) -> None:
    """Send trades to a peer that does not read until the kernel takes no more."""
    (session,) = house.server.sessions.values()
    while not session._outbox.behind:
        await house.trade(100)
        await trio.testing.wait_all_tasks_blocked()


# Coming


@pytest.mark.parametrize("path", ["/v2", "/", "/ws", "/v2?x=1"])
async def test_a_websocket_is_greeted_with_the_status(path: str, autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = house.dial()
        await peer.shake_hands(request_head(path))
        status = await peer.message()
        assert (status["channel"], status["type"]) == ("status", "update")
        (row,) = status["data"]
        assert (row["system"], row["api_version"], row["mode"]) == ("online", "v2", "sim")
        assert list(house.server.sessions) == [row["connection_id"]]
        peer.leave()


async def test_the_same_port_serves_pages(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = house.dial()
        await peer.send(PAGE)
        assert (await peer.answer()).startswith(b"HTTP/1.1 200 OK\r\n")
        peer.leave()
        await house.wait_empty()
        assert house.server.statistics().ended == {"http": 1}


async def test_what_is_sent_behind_the_head_is_the_first_message(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = house.dial()
        early = frame_of('{"method":"ping","req_id":1}') + frame_of('{"method":"ping","req_id":2}')
        await peer.shake_hands(request_head() + early)
        assert [(await peer.reply())["req_id"] for _ in range(2)] == [1, 2]
        peer.leave()


async def test_the_bytes_behind_the_head_are_guarded_too(autojump_clock: trio.abc.Clock) -> None:
    async with open_house(guard=GuardOptions(max_message_bytes=200)) as house:
        peer = house.dial()
        await peer.shake_hands(request_head() + frame_of("x" * 201))
        assert await peer.farewell() == 1009
        peer.leave()


async def test_nothing_is_read_between_the_head_and_our_101() -> None:
    """trio-websocket buffers without bound what comes before ``accept``."""
    reads = 0

    class CountingTransport(Transport):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            nonlocal reads
            reads += 1
            return await super().receive_some(max_bytes)

    theirs, ours = socket.socketpair()
    with ours:
        transport = CountingTransport(theirs)
        outbox = Outbox(transport)
        async with trio.open_nursery() as nursery:
            stream = stream_over(transport, outbox)
            ours.sendall(bytes(10_000))
            assert (await stream.receive_some()).startswith(b"GET /v2")
            with trio.move_on_after(0.01) as waited:
                await stream.receive_some()
            assert waited.cancelled_caught
            assert reads == 0
            nursery.cancel_scope.cancel()
        transport.close()


def stream_over(transport: Transport, outbox: Outbox) -> GuardedStream:
    return GuardedStream(transport, outbox, FrameGuard(GuardOptions(), trio.current_time()), parse_head(request_head()))


async def test_a_message_waits_for_the_one_that_trio_websocket_still_has() -> None:
    heard: list[str] = []

    class Listener:
        ending = False
        receive = staticmethod(heard.append)

    near, far = socket.socketpair()
    with near, far:
        transport = Transport(near)
        stream = stream_over(transport, Outbox(transport))
        stream.opened.set()
        stream.session = Listener()  # type: ignore[assignment]
        await stream.receive_some()  # the head
        parts = client_frame(TEXT, b"a", fin=False), client_frame(CONTINUATION, b"b"), client_frame(TEXT, b"c")
        for part in parts:
            far.sendall(part)
            assert await stream.receive_some() == part
        stream.delivered += 2
        far.sendall(client_frame(TEXT, b"d"))
        far.shutdown(socket.SHUT_WR)
        assert await stream.receive_some() == b""
        assert heard == ["d"]


async def test_a_cancelled_send_leaves_whole_frames_on_the_wire() -> None:
    """A cancelled ``send_message`` of trio-websocket leaves half a frame, and the next one lands inside it."""
    chance = random.Random(1)
    theirs, ours = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours.setblocking(False)
    transport = Transport(theirs)
    outbox = Outbox(transport, max_backlog_bytes=1 << 30)
    peer, cancelled = Peer(Transport(ours)), 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        stream = stream_over(transport, outbox)

        async def send(number: int, scope: trio.CancelScope) -> None:
            nonlocal cancelled
            with scope:
                await stream.send_all(frame(b"%d" % number + b"." * chance.randrange(9000)))
            cancelled += scope.cancelled_caught

        async def receive() -> None:
            while await peer.frame():
                pass

        nursery.start_soon(receive)
        for number in range(10_000):
            scope = trio.CancelScope()
            if number % 3:
                scope.cancel()
            await send(number, scope)
        stream.opened.set()
        await stream.send_all(b"\x88\x02\x03\xe8")
        await outbox.wait_flushed()
        transport.close()
        while not peer.parser.closed:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert peer.parser.closed
    assert not peer.parser.incomplete
    assert cancelled > 5000
    peer.leave()


# Leaving


@pytest.mark.parametrize(
    "payload", [b"", b"\x03\xe8", b"\x03\xe8bye", b"\x03\xe9", b"\x0b\xb8", b"\x13\x87caf\xc3\xa9"]
)
async def test_a_close_frame_is_answered_with_the_same(payload: bytes, autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
        await peer.send_frame(CLOSE, payload)
        assert await peer.rest() == [Frame(CLOSE, payload)]
        peer.leave()
        await house.wait_empty()
        assert house.empty
        assert house.server.statistics().ended == {"peer left": 1}


async def test_requests_before_the_close_frame_are_answered(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
        await peer.send(frame_of('{"method":"ping"}') + bytes.fromhex("888237fa213d3412"))
        assert [f.opcode for f in await peer.rest()] == [TEXT, CLOSE]
        peer.leave()


async def test_messages_are_answered_in_order_however_their_bytes_come(autojump_clock: trio.abc.Clock) -> None:
    def ping(number: int) -> bytes:
        return b'{"method":"ping","req_id":%d}' % number

    numbers = itertools.count(1)
    async with open_house() as house:
        peer = await house.visit()
        for _ in range(50):
            split = ping(next(numbers))
            await peer.send(client_frame(TEXT, split[:9], fin=False) + client_frame(PING))
            await peer.send(client_frame(CONTINUATION, split[9:]))
            await peer.send(client_frame(TEXT, ping(next(numbers))))
            pair = client_frame(TEXT, ping(next(numbers))) + client_frame(TEXT, ping(next(numbers)))
            await peer.send(pair[:-5])
            await peer.send(pair[-5:])
            await peer.send(client_frame(TEXT, ping(next(numbers))))
        for number in range(1, next(numbers)):
            assert (await peer.reply())["req_id"] == number


async def test_a_peer_that_just_goes_frees_everything_at_once(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        started = trio.current_time()
        for stage in ("nothing", "half a head", "handshake", "subscription"):
            peer = house.dial()
            if stage == "half a head":
                await peer.send(request_head()[:-1])
            elif stage != "nothing":
                await peer.shake_hands()
            if stage == "subscription":
                await peer.subscribe("trade")
            peer.leave()
            await house.wait_empty()
            assert house.empty, stage
        assert trio.current_time() == started


async def test_2_000_connects_and_closes_leave_nothing() -> None:
    """At every stage, over TCP, with and without a reset."""
    chance = random.Random(2000)
    half = request_head()[:20]
    heads = [half, request_head(), request_head() + frame_of('{"method":"ping"}'), PAGE, b"\xff\0\r\n\r\n"]

    async def come_and_go(port: int, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            peer = dial_tcp(port)
            head = chance.choice(heads)
            await peer.send(head)
            if chance.random() < 0.3 and head != half:
                await peer.stream.receive_some()
            if chance.random() < 0.5:
                peer.stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            peer.leave()

    async with open_house(tcp=True) as house:
        assert house.port is not None
        witness = house.dial_tcp()
        await witness.shake_hands()
        await witness.ask({"method": "ping"})
        before = len(os.listdir("/proc/self/fd"))
        limiter = trio.CapacityLimiter(50)
        async with trio.open_nursery() as nursery:
            for _ in range(1900):
                nursery.start_soon(come_and_go, house.port, limiter)
        for _ in range(100):
            house.dial_tcp().leave()
        await witness.ask({"method": "ping"})
        while house.server.statistics().connections > 1 or house.server.statistics().accepted < 2001:
            await trio.lowlevel.checkpoint()
        assert len(os.listdir("/proc/self/fd")) == before
        assert len(house.server.sessions) == len(house.server._outboxes) == 1
        assert house.server._per_address == {"127.0.0.1": 1}
        assert (await witness.ask({"method": "ping", "req_id": 3}))["req_id"] == 3
        witness.leave()
        await house.wait_empty()


# Limits


async def test_one_too_many_is_told_to_come_back(autojump_clock: trio.abc.Clock) -> None:
    async with open_house(server=ServerOptions(max_connections=2)) as house:
        first, second = await house.visit(), await house.visit()
        third = house.dial()
        answer = await third.answer()
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nretry-after: 5\r\n" in answer.lower()
        third.leave()
        first.leave()
        await trio.testing.wait_all_tasks_blocked()
        again = await house.visit()
        assert house.server.statistics().sessions == 2
        for peer in (second, again):
            peer.leave()


async def test_of_those_that_are_too_many_none_is_held() -> None:
    """Each had a task and five seconds to leave in: a cap of 5 held 300."""
    async with open_house(tcp=True, server=ServerOptions(max_connections=5)) as house:
        peers = [house.dial_tcp() for _ in range(100)]
        while house.server.statistics().accepted < 100:
            await trio.lowlevel.checkpoint()
        for peer in peers[5:]:
            assert (await peer.answer()).startswith(b"HTTP/1.1 503 ")
        assert house.server.statistics().connections == 5
        late = house.dial_tcp()
        await late.send(request_head())  # a reset comes, but behind the answer
        with contextlib.suppress(trio.BrokenResourceError):
            assert (await late.stream.receive_some()).startswith(b"HTTP/1.1 503 ")


async def test_one_address_cannot_take_every_place() -> None:
    async with open_house(tcp=True, server=ServerOptions(max_connections_per_address=1)) as house:
        first = house.dial_tcp()
        await first.shake_hands()
        second = house.dial_tcp()
        assert (await second.answer()).startswith(b"HTTP/1.1 503 ")
        other = await house.visit()  # a socket pair has another address
        for peer in (first, second, other):
            peer.leave()


TOKEN, DIGEST = new_token()
ALICE = AccountOptions(balances={}, tokens=(Token(sha256=DIGEST),), limits=Limits(open_orders=7))


def head_with(token: str) -> bytes:
    return request_head(extra=[f"Sec-WebSocket-Protocol: {NATIVE}", f"Authorization: Bearer {token}"])


async def test_the_public_cannot_take_the_places_of_those_with_a_token(autojump_clock: trio.abc.Clock) -> None:
    async with open_house(server=ServerOptions(max_unauthenticated=1)) as house:
        await (await house.visit()).ask({"method": "ping"})
        await (await house.visit()).ask({"method": "ping"})  # where everybody may trade there is no public
        house.market.gateway.accounts = Accounts({"alice": ALICE})
        first = await house.visit()
        for token in ("", "nothing", DIGEST):
            second = house.dial()
            await second.send(head_with(token))
            assert b"\r\n\r\ntoo many connections without a token" in await second.answer()
        for _ in range(3):
            await house.dial().shake_hands(head_with(TOKEN))
        first.leave()
        await trio.testing.wait_all_tasks_blocked()
        await house.visit()


async def test_the_limits_are_in_the_status_of_a_native_client(autojump_clock: trio.abc.Clock) -> None:
    options = ServerOptions(max_connections_per_address=9)
    session, guard = SessionOptions(max_subscriptions=5, requests_per_s=3.0), GuardOptions(max_message_bytes=1000)
    limits = {"connections_per_address": 9, "message_bytes": 1000, "subscriptions": 5}
    limits |= {"requests_per_s": 3.0, "requests_burst": 3.0}
    async with open_house(server=options, session=session, guard=guard) as house:
        house.market.gateway.accounts = Accounts({"alice": ALICE})
        for token, known in ((TOKEN, {"open_orders": 7}), ("", {})):
            peer = house.dial()
            await peer.shake_hands(head_with(token))
            assert (await peer.message())["data"][0]["limits"] == limits | known


async def test_a_client_that_asks_and_does_not_read_is_cut_off_at_a_bound(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
        (session,) = house.server.sessions.values()
        asked = 0
        with trio.fail_after(60):
            while house.server.sessions:
                await peer.send(frame_of('{"method":"ping"}') * 100)
                asked += 100
                await trio.testing.wait_all_tasks_blocked()
                assert session._outbox.backlog_bytes <= (1 << 20) + 200
                assert asked < 50_000
        peer.leave()
        await house.wait_empty()
        assert house.server.statistics().ended == {"output failed": 1}


async def test_requests_beyond_the_rate_are_refused_and_the_session_lives(autojump_clock: trio.abc.Clock) -> None:
    async with open_house(session=SessionOptions(requests_per_s=1.0, requests_burst=2.0)) as house:
        peer = await house.visit()
        replies = [await peer.ask({"method": "ping"}) for _ in range(4)]
        assert [reply.get("method") for reply in replies] == ["pong", "pong", "ping", "ping"]
        assert replies[-1]["error"] == "EGeneral:Too many requests"
        await trio.sleep(1)
        assert (await peer.ask({"method": "ping"}))["method"] == "pong"
        peer.leave()


# Keeping alive


async def test_a_silent_peer_is_pinged_once_and_closed_20_s_later(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
        started = trio.current_time()
        seen = []
        while (received := await peer.frame()) is not None:
            seen.append((trio.current_time() - started, received.opcode, received.close_code))
        assert seen == [(20.0, PING, None), (40.0, CLOSE, 4009)]
        peer.leave()


async def test_a_peer_that_answers_pings_stays(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
        for _ in range(20):
            ping = await peer.frame()
            assert ping is not None
            assert ping.opcode == PING
            await peer.send_frame(PONG, ping.payload)
        assert trio.current_time() >= 400
        assert (await peer.ask({"method": "ping"}))["method"] == "pong"
        peer.leave()


async def test_a_peer_that_talks_is_not_pinged(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
        for number in range(10):
            await trio.sleep(19)
            assert (await peer.ask({"method": "ping", "req_id": number}))["req_id"] == number
        peer.leave()


async def test_a_half_open_peer_that_takes_nothing_is_gone_within_a_ping(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
        await peer.subscribe("trade")
        await fill(house, peer)
        started = trio.current_time()
        await house.wait_empty()
        assert trio.current_time() - started <= 20 + 20 + 4
        assert house.server.statistics().ended == {"closed 4009": 1}
        peer.leave()


async def test_subscribers_get_a_heartbeat_each_second_of_silence(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        idle, subscribed = await house.visit(), await house.visit()
        await subscribed.subscribe("trade")
        times = []
        for _ in range(4):
            assert await subscribed.message() == {"channel": "heartbeat"}
            times.append(trio.current_time())
        assert [b - a for a, b in itertools.pairwise(times)] == [1.0, 1.0, 1.0]
        await idle.send_request({"method": "ping"})
        assert (await idle.message())["method"] == "pong"  # and no heartbeat before it
        for peer in (idle, subscribed):
            peer.leave()


# Ends that are ours


@pytest.mark.parametrize("afterwards", [b"", frame_of("x"), b"\x89\x80\0\0\0\0", b"\x81\xff" + b"\xff" * 12])
async def test_after_our_close_frame_nothing_more_is_said(afterwards: bytes, autojump_clock: trio.abc.Clock) -> None:
    """A ping after a server-initiated close ended trio-websocket's whole server."""
    async with open_house() as house:
        peer = await house.visit()
        await peer.subscribe("trade")
        (session,) = house.server.sessions.values()
        session.end(4503, "replaced")
        received = await peer.frame()
        assert received == Frame(CLOSE, (4503).to_bytes(2) + b"replaced")
        await peer.send(afterwards)
        await house.trade()
        await peer.send_frame(CLOSE, received.payload[:2])
        assert await peer.rest() == []
        peer.leave()
        await house.wait_empty()
        assert house.empty
        assert house.server.statistics().ended == {"closed 4503": 1}


async def test_our_close_is_done_within_5_s_even_if_the_peer_neither_reads_nor_answers(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_house() as house:
        peer = await house.visit()
        await peer.subscribe("trade")
        await fill(house, peer)
        started = trio.current_time()
        (session,) = house.server.sessions.values()
        session.end(4008, "slow")
        await house.wait_empty()
        assert trio.current_time() - started <= 5.0
        assert house.empty
        peer.leave()


async def test_our_close_waits_for_the_answer_of_the_peer_but_not_long(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
        started = trio.current_time()
        (session,) = house.server.sessions.values()
        session.end(4008, "slow")
        assert await peer.farewell() == 4008
        assert trio.current_time() - started <= 2.0
        peer.leave()
        await house.wait_empty()


async def test_unread_input_does_not_reset_our_close_frame_away() -> None:
    """Closing a TCP socket with unread input makes the kernel send a reset, which throws away what was sent."""
    async with open_house(tcp=True) as house:
        peer = house.dial_tcp()
        await peer.shake_hands()
        await peer.send(frame_of("x" * 100_000))
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        codes = []
        while (received := await peer.frame()) is not None:  # a reset would raise
            codes.append(received.close_code)
        assert codes == [None, 1009]


async def test_a_client_that_falls_behind_for_good_is_told_4008(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
        (session,) = house.server.sessions.values()
        session._data._own._subscriber.cut_off("more than a ring behind")
        assert (await peer.rest())[-1] == Frame(CLOSE, (4008).to_bytes(2) + b"more than a ring behind")
        peer.leave()


async def test_stopping_tells_every_client_and_takes_no_new_ones(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peers = [await house.visit() for _ in range(20)]
        house.server.drain(1500)
        new = house.dial()
        assert (await new.answer()).startswith(b"HTTP/1.1 503 ")
        for peer in peers:
            (row,) = (await peer.message_of("status"))["data"]
            assert (row["system"], row["reconnect_after_ms"]) == ("maintenance", 1500)
            received = await peer.frame()
            assert received is not None
            assert received.close_code == 1001
            await peer.send_frame(CLOSE, received.payload)
        started = trio.current_time()
        for peer in (*peers, new):
            peer.leave()
        with trio.fail_after(1):
            await house.wait_empty()
        assert trio.current_time() == started
        assert house.server.statistics().ended == {"closed 1001": 20, "http 503": 1}


async def test_who_was_accepted_before_the_stop_and_asks_after_it_is_turned_away(
    autojump_clock: trio.abc.Clock,
) -> None:
    """It became a session that nobody told of the stop, and was cut off without a Close frame."""
    async with open_house() as house:
        peer = house.dial()
        await peer.send(request_head()[:20])
        await trio.testing.wait_all_tasks_blocked()
        house.server.drain(1000)
        await peer.send(request_head()[20:])
        with trio.move_on_after(5):
            assert (await peer.answer()).startswith(b"HTTP/1.1 503 ")
            peer.leave()
            await house.wait_empty()
        assert not house.server.sessions
        peer.leave()


async def test_who_shakes_hands_while_the_server_stops_is_told_so_too(autojump_clock: trio.abc.Clock) -> None:
    """It became a session that nobody told of the stop, and was cut off without a Close frame."""
    ends = set()
    for turns in range(40):
        async with open_house() as house:
            peer = house.dial()
            await peer.send(request_head())
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            greeted = bool(house.server.sessions)
            house.server.drain(1500)
            try:
                await peer.shake_hands(b"")
            except AssertionError:
                assert not greeted
            else:
                *told, last = await peer.rest()
                systems = [json.loads(message.payload)["data"][0]["system"] for message in told]
                assert systems == ["online"] * greeted + ["maintenance"]
                assert last.close_code == 1001
            peer.leave()
            with trio.fail_after(1):
                await house.wait_empty()
            ends |= {(reason, greeted) for reason in house.server.statistics().ended}
    assert ends == {("http 503", False), ("closed 1001", False), ("closed 1001", True)}


@pytest.mark.parametrize(("payload", "left"), [(b"", 1), (b"\x03\xe8", 1), (b"\x0b\xb8", 0)])
async def test_a_close_frame_without_a_code_is_a_goodbye_too(
    payload: bytes, left: int, autojump_clock: trio.abc.Clock
) -> None:
    """A browser's ``close()`` sends none, and its orders were canceled as if the connection had been lost."""
    async with open_house() as house:
        await house.feed.tell(quotes_batch(600_000, 3))
        peer = await house.visit(native=True)
        await peer.ask({"method": "cancel_on_disconnect", "params": {"enable": True, "grace_ms": 0}})
        order = {"order_type": "limit", "side": "buy", "symbol": "BTC/USD", "order_qty": 1, "limit_price": 10}
        assert (await peer.ask({"method": "add_order", "params": order}))["success"]
        await peer.send_frame(CLOSE, payload)
        await peer.farewell()
        peer.leave()
        await trio.sleep(1)
        assert house.market.gateway.statistics().open_orders == left


async def test_statistics_count_what_happened(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peers = [await house.visit() for _ in range(3)]
        peers[0].leave()
        await trio.testing.wait_all_tasks_blocked()
        statistics = house.server.statistics()
        assert (statistics.connections, statistics.sessions, statistics.accepted) == (2, 2, 3)
        assert statistics.ended == {"peer left": 1}
        assert statistics.backlog_bytes == 0
        await peers[1].send_frame(BINARY, b"{}")
        assert (await peers[1].reply())["success"] is False
        for peer in peers[1:]:
            peer.leave()
