from __future__ import annotations

import itertools

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.records import Batch, Marker
from tests.serving import (
    BINARY,
    CLOSE,
    CONTINUATION,
    MASK,
    PING,
    TEXT,
    Frame,
    FrameParser,
    MalformedError,
    ScriptedFeed,
    client_frame,
    open_house,
    quotes_batch,
    request_head,
    trades_batch,
)
from ticker.codec import close_frame, frame

reproducible = settings(deadline=None, derandomize=True, database=None)

FIN = 0x80
STREAM = b"".join(
    (frame(b"{}"), frame(b"", FIN | PING), frame(b"x" * 126), frame(b"y" * 70_000), close_frame(1000, "that was it"))
)


def test_parser_reads_every_length_form() -> None:
    frames = FrameParser().feed(STREAM)
    assert [(f.opcode, len(f.payload)) for f in frames] == [(1, 2), (9, 0), (1, 126), (1, 70_000), (8, 13)]
    assert frames[-1].close_code == 1000


@reproducible
@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_parser_does_not_care_how_the_stream_is_cut(cuts: list[int]) -> None:
    parser, bounds = FrameParser(), [0, *sorted(cuts), len(STREAM)]
    frames = [f for a, b in itertools.pairwise(bounds) for f in parser.feed(STREAM[a:b])]
    assert frames == FrameParser().feed(STREAM)
    assert parser.closed
    assert not parser.incomplete


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xc1\x00", id="reserved bit"),
        pytest.param(b"\x83\x00", id="reserved data opcode"),
        pytest.param(b"\x8b\x00", id="reserved control opcode"),
        pytest.param(b"\x81\x80\0\0\0\0", id="masked"),
        pytest.param(b"\x81\x7e\x00\x05hello", id="long form of a short length"),
        pytest.param(b"\x81\x7f" + (65535).to_bytes(8) + b"x" * 65535, id="longest form of a middling length"),
        pytest.param(b"\x09\x00", id="fragmented ping"),
        pytest.param(frame(b"x" * 126, FIN | PING), id="ping of 126 bytes"),
        pytest.param(b"\x80\x00", id="continuation of nothing"),
        pytest.param(b"\x01\x00\x81\x00", id="text inside a message"),
        pytest.param(frame(b"\xff"), id="text that is not UTF-8"),
        pytest.param(b"\x01\x01\xe2\x80\x02\x28\xa1", id="not UTF-8 over two fragments"),
        pytest.param(frame(b"\x03", FIN | CLOSE), id="half a close code"),
        pytest.param(close_frame(1000) + frame(b"late"), id="frame after Close"),
        pytest.param(close_frame(1000) + b"\x81", id="one byte after Close"),
    ],
)
def test_parser_refuses_what_a_server_must_not_send(data: bytes) -> None:
    with pytest.raises(MalformedError):
        FrameParser().feed(data)


def test_parser_joins_fragments_before_it_looks_at_the_text() -> None:
    cut = "€".encode()
    frames = FrameParser().feed(bytes((0x01, 1)) + cut[:1] + frame(b"", FIN | PING) + bytes((0x80, 2)) + cut[1:])
    assert [f.opcode for f in frames] == [TEXT, PING, CONTINUATION]


def test_client_frames_are_as_in_rfc_6455() -> None:
    assert client_frame(TEXT, b"Hello") == bytes.fromhex("818537fa213d7f9f4d5158")  # section 5.7
    assert client_frame(TEXT, b"Hel", fin=False, masked=False) == bytes.fromhex("010348656c")
    assert client_frame(BINARY, bytes(256))[:4] == bytes.fromhex("82fe0100")
    assert client_frame(BINARY, bytes(65536))[:10] == bytes.fromhex("82ff0000000000010000")
    assert client_frame(BINARY, b"\0\0\0\0\0")[2:] == MASK + MASK + MASK[:1]
    assert client_frame(TEXT, rsv=5)[0] == 0xD1


def test_request_head_leaves_out_what_it_is_told_to() -> None:
    head = request_head("/ws", host="[::1]:8", extra=("Origin: null",), without=("connection",))
    assert head.startswith(b"GET /ws HTTP/1.1\r\nHost: [::1]:8\r\nUpgrade: websocket\r\nSec-")
    assert head.endswith(b"\r\nOrigin: null\r\n\r\n")
    assert b"Connection" not in head


def test_batches_are_in_order_and_numbered() -> None:
    trades, quotes = trades_batch(1, 3), quotes_batch(100, 2, instrument=1)
    assert trades.trades.trade_id.tolist() == [1, 2, 3]
    assert (trades.ts, len(trades)) == (trades.trades.ts_recv[-1], 3)
    assert quotes.quotes.bid_px.tolist() == [100, 101]
    assert quotes.quotes.instrument.tolist() == [1, 1]


async def test_feed_says_its_script_and_then_what_it_is_told(autojump_clock: trio.abc.Clock) -> None:
    feed = ScriptedFeed(script=[trades_batch(1, 1)])
    send, receive = trio.open_memory_channel[Batch | Marker](10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        await feed.tell(trades_batch(2, 1))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    events = [receive.receive_nowait() for _ in range(3)]
    assert isinstance(events[0], Marker)
    assert [e.trades.trade_id.tolist() for e in events[1:] if isinstance(e, Batch)] == [[1], [2]]


async def test_house_serves_over_a_socket_pair(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
        await peer.subscribe("trade", snapshot=False)
        await house.trade(3)
        assert await peer.trade_ids(3) == [1, 2, 3]
        assert not house.empty
        peer.leave()
        await house.wait_empty()
        assert house.empty


async def test_house_serves_over_tcp() -> None:
    async with open_house(tcp=True) as house:
        peer = house.dial_tcp()
        await peer.shake_hands()
        assert (await peer.ask({"method": "ping", "req_id": 7}))["req_id"] == 7
        await peer.send_frame(CLOSE, (1000).to_bytes(2))
        assert await peer.rest() == [Frame(CLOSE, b"\x03\xe8")]


async def test_peer_says_what_the_server_answered_instead_of_a_handshake(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = house.dial()
        with pytest.raises(AssertionError, match="404"):
            await peer.shake_hands(request_head("/nowhere"))


async def test_peer_says_why_no_message_came(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
        (session,) = house.server.sessions.values()
        session.end(4008, "slow")
        with pytest.raises(AssertionError, match="closed with 4008 b'slow'"):
            await peer.message()


async def test_peers_left_at_the_end_are_closed(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
    with pytest.raises(trio.ClosedResourceError):
        await peer.send(b"x")
    assert house.server.statistics().connections == 0
