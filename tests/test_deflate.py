from __future__ import annotations

import itertools
import json
import random
import tracemalloc
import zlib
from typing import Any

import pytest
import trio
import websockets.sync.client
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol, ParseFailed

from tests.serving import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    Frame,
    FrameParser,
    House,
    Peer,
    client_frame,
    open_house,
    request_head,
)
from ticker.codec import frame
from ticker.deflate import WINDOW_BITS, Inflater, deflated_frame, negotiate
from ticker.errors import ProtocolViolation
from ticker.guard import FrameGuard, GuardOptions
from ticker.head import parse_head
from ticker.server import ServerOptions

reproducible = settings(deadline=None, derandomize=True, database=None)

RSV1 = 0b100
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
OFFER = "Sec-WebSocket-Extensions: permessage-deflate"
DEFLATING = ServerOptions(deflate=True)
LIMIT = GuardOptions().max_message_bytes
TICKER = (
    b'{"channel":"ticker","type":"update","pos":{"epoch":"c0ffee00","prev":118977,"last":118992,"n":1,"conflated":14,'
    b'"dropped":0,"window_ms":250},"data":[{"symbol":"BTC/USD","bid":60012.3,"bid_qty":1.53320000,"ask":60012.4,'
    b'"ask_qty":0.43104000,"last":60012.3,"volume":2131.90571232,"vwap":60031.2,"low":59103.0,"high":61240.9,'
    b'"change":-102.7,"change_pct":-0.17,"timestamp":"2026-01-02T09:04:31.742599Z"}]}'
)


def squeezed(data: bytes, mode: int = zlib.Z_SYNC_FLUSH) -> bytes:
    """Return data compressed as a sender does it (RFC 7692 section 7.2.1)."""
    compressor = zlib.compressobj(wbits=-15)
    compressed = compressor.compress(data) + compressor.flush(mode)
    return compressed[:-4] if mode == zlib.Z_SYNC_FLUSH else compressed + b"\0"


def squeezed_frame(data: bytes) -> bytes:
    return client_frame(TEXT, squeezed(data), rsv=RSV1)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    return [data[a:b] for a, b in itertools.pairwise([0, *sorted(min(c, len(data)) for c in cuts), len(data)])]


def understood(chunks: list[bytes], limit: int = LIMIT) -> list[tuple[int, bytes]]:
    """Return the messages and control frames that wsproto, without extensions, finds behind an inflater.

    Raises:
        ParseFailed: wsproto refuses it.
        ProtocolViolation: The inflater does.
    """
    inflater, protocol = Inflater(limit), FrameProtocol(client=False, extensions=[])
    found, parts = [], []
    for chunk in chunks:
        protocol.receive_bytes(inflater.feed(chunk))
        for part in protocol.received_frames():
            payload = part.payload.encode() if isinstance(part.payload, str) else bytes(part.payload)
            if part.opcode >= CLOSE:
                found.append((int(part.opcode), payload))
                continue
            parts.append(payload)
            if part.message_finished:
                found.append((int(part.opcode), b"".join(parts)))
                parts = []
    return found


def verdict(data: bytes, limit: int = LIMIT) -> int | None:
    """Return the code with which the inflater refuses, or None."""
    try:
        Inflater(limit).feed(data)
    except ProtocolViolation as violation:
        return violation.close_code
    return None


# Offers


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=9",
        'permessage-deflate;client_max_window_bits="15"',
        "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        " permessage-deflate ; client_no_context_takeover",
        "x-webkit-deflate-frame, permessage-deflate",
        "permessage-deflate; unknown, permessage-deflate",
        "permessage-deflate; server_max_window_bits=8, permessage-deflate",
        'permessage-bzip2; level="9", permessage-deflate',
    ],
)
def test_an_acceptable_offer_is_answered_without_context(offer: str) -> None:
    assert negotiate(offer) == ANSWER


@pytest.mark.parametrize("bits", ["12", '"12"', "13", "14", "15"])
def test_a_window_that_is_asked_of_us_is_promised(bits: str) -> None:
    """The response must have the parameter, with the same or a smaller value (section 7.1.2.1)."""
    assert negotiate(f"permessage-deflate; server_max_window_bits={bits}") == f"{ANSWER}; server_max_window_bits=12"


def test_the_first_acceptable_offer_is_taken() -> None:
    offers = "permessage-deflate; server_max_window_bits=10, permessage-deflate; server_max_window_bits=15"
    assert negotiate(f"{offers}, permessage-deflate") == f"{ANSWER}; server_max_window_bits=12"


def test_offers_in_several_lines_are_one_list() -> None:
    head = parse_head(request_head(extra=("Sec-WebSocket-Extensions: foo", OFFER)))
    assert negotiate(head.headers["sec-websocket-extensions"]) == ANSWER


@pytest.mark.parametrize(
    "offer",
    [
        "",
        ",",
        ";",
        "foo",
        "permessage-deflate-x",
        "permessage-deflate=1",
        "permessage-deflate; unknown",
        "permessage-deflate; unknown=1",
        "permessage-deflate;",
        "permessage-deflate; ; client_no_context_takeover",
        "permessage-deflate; =",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover=",
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
        "permessage-deflate; client_max_window_bits=",
        'permessage-deflate; client_max_window_bits=""',
        'permessage-deflate; client_max_window_bits="',
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=010",
        "permessage-deflate; client_max_window_bits=+9",
        "permessage-deflate; client_max_window_bits=9.0",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=11",
        "permessage-deflate; server_max_window_bits=16",
    ],
)
def test_what_cannot_be_honoured_is_declined(offer: str) -> None:
    assert negotiate(offer) is None


@reproducible
@given(st.text(st.sampled_from('permessage-deflate;,= "client_max_window_bits=109'), max_size=60) | st.text())
def test_any_header_is_answered_or_passed_over(noise: str) -> None:
    assert negotiate(f"{noise}, {noise}; permessage-deflate") in (None, ANSWER, f"{ANSWER}; server_max_window_bits=12")


# Outbound


def client_of(answer: str) -> FrameProtocol:
    """Return a foreign client that was given this answer."""
    extension = PerMessageDeflate()
    extension.finalize(answer)
    return FrameProtocol(client=True, extensions=[extension])


@reproducible
@given(st.lists(st.text(max_size=300).map(lambda text: text * 5), max_size=6))
def test_a_foreign_client_reads_frames_in_any_order_and_more_than_once(texts: list[str]) -> None:
    client = client_of(f"{ANSWER}; server_max_window_bits={WINDOW_BITS}")
    frames = {text: deflated_frame(text.encode()) for text in texts}
    for text in [*texts, *texts]:
        client.receive_bytes(frames[text])
        (received,) = client.received_frames()
        assert received.payload == text


def test_a_ticker_message_loses_a_quarter() -> None:
    sent = deflated_frame(TICKER)
    assert sent[0] == 0xC1
    assert len(sent) < 0.75 * len(frame(TICKER))


def test_a_message_is_compressed_within_the_promised_window() -> None:
    block = random.Random(1).randbytes(3000)
    payload = (block + bytes(2000)) * 4  # its repetitions are 5,000 bytes apart
    sent = deflated_frame(payload)
    size = int.from_bytes(sent[2:4])
    inflater = zlib.decompressobj(-WINDOW_BITS)
    assert inflater.decompress(sent[4 : 4 + size] + b"\0\0\xff\xff") == payload
    assert size > 4 * 3000


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"channel":"heartbeat"}'[:12], random.Random(2).randbytes(500)])
def test_what_does_not_shrink_goes_out_as_it_is(payload: bytes) -> None:
    assert deflated_frame(payload) == frame(payload)


# Inbound: what is understood


@pytest.mark.parametrize(
    "fragments",
    [
        pytest.param(["f248cdc9c90700"], id="7.2.3.1 one block"),
        pytest.param(["f248cd", "c9c90700"], id="7.2.3.1 in two fragments"),
        pytest.param(["000500faff48656c6c6f00"], id="7.2.3.3 without compression"),
        pytest.param(["f348cdc9c9070000"], id="7.2.3.4 last block"),
        pytest.param(["f24805000000ffffcac9c90700"], id="7.2.3.5 two blocks"),
        pytest.param(["", "f248cd", "", "c9c90700", ""], id="empty fragments"),
        pytest.param(["f348cdc9c907", "0000"], id="a last block at the end of a fragment"),
        pytest.param(["f348cd", "c9c9070000"], id="a last block in two fragments"),
    ],
)
def test_the_examples_of_the_rfc(fragments: list[str]) -> None:
    frames = [
        client_frame(
            CONTINUATION if number else TEXT, bytes.fromhex(fragment), fin=number == len(fragments) - 1,
            rsv=0 if number else RSV1,
        )
        for number, fragment in enumerate(fragments)
    ]  # fmt: skip
    data = b"".join(frames) * 2
    assert understood([data]) == understood([data[i : i + 1] for i in range(len(data))]) == [(TEXT, b"Hello")] * 2


def test_an_empty_message_is_one_octet() -> None:
    assert understood([client_frame(TEXT, b"\0", rsv=RSV1)]) == [(TEXT, b"")]


def test_another_stream_may_follow_the_last_block_of_one() -> None:
    """RFC 7692 section 7.2.1; most receivers drop it without a word."""
    payload = squeezed(b"Hello ", zlib.Z_FINISH)[:-1] + squeezed(b"World")
    assert understood([client_frame(TEXT, payload, rsv=RSV1)]) == [(TEXT, b"Hello World")]


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Draw frames of a message, pings between them, and what is to be understood."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    payload = draw(st.text(max_size=40)).encode() * draw(st.integers(1, 10))
    compressed = draw(st.booleans())
    wire = squeezed(payload, draw(st.sampled_from([zlib.Z_SYNC_FLUSH, zlib.Z_FINISH]))) if compressed else payload
    fragments = cut(wire, draw(st.lists(st.integers(0, 60), max_size=3)))
    frames, found = [], []
    for number, fragment in enumerate(fragments):
        if number and draw(st.booleans()):
            frames.append(client_frame(PING, b"!"))
            found.append((PING, b"!"))
        how = {"fin": number == len(fragments) - 1, "rsv": RSV1 if compressed and not number else 0}
        frames.append(client_frame(CONTINUATION if number else opcode, fragment, **how))
    return b"".join(frames), [*found, (opcode, payload)]


@reproducible
@given(st.lists(messages(), max_size=4), st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_messages_are_understood_however_they_are_cut(
    sent: list[tuple[bytes, list[tuple[int, bytes]]]], cuts: list[int], singly: bool
) -> None:
    data = b"".join(frames for frames, _ in sent)
    chunks = [data[i : i + 1] for i in range(len(data))] if singly else cut(data, cuts)
    assert understood(chunks) == [one for _, found in sent for one in found]


@reproducible
@given(st.lists(st.integers(0, 300), max_size=8))
def test_what_is_not_compressed_passes_byte_for_byte(cuts: list[int]) -> None:
    data = b"".join(
        (client_frame(TEXT, b"x" * 200), client_frame(TEXT, b"ab", fin=False), client_frame(PING, b"!"),
         client_frame(CONTINUATION, b"c"), client_frame(BINARY, masked=False))
    )  # fmt: skip
    inflater = Inflater(LIMIT)
    assert b"".join(inflater.feed(chunk) for chunk in cut(data, cuts)) == data


def test_the_payload_of_an_uncompressed_frame_is_not_held_back() -> None:
    """What no limit of ours bounds, such as a control frame's announced size, must not be kept."""
    inflater = Inflater(LIMIT)
    header = b"\x8b\xff" + (1 << 62).to_bytes(8) + bytes(4)
    assert inflater.feed(header) == header
    assert inflater.feed(b"\xc1\x85" * 1000) == b"\xc1\x85" * 1000


# Inbound: what is refused


def test_an_inflated_message_may_have_16_kib_and_not_a_byte_more() -> None:
    assert understood([squeezed_frame(b" " * LIMIT)]) == [(TEXT, b" " * LIMIT)]
    assert verdict(squeezed_frame(b" " * (LIMIT + 1))) == 1009


def test_the_size_is_that_of_all_fragments_and_of_each_message_anew() -> None:
    def message(size: int) -> bytes:
        wire = squeezed(bytes(size))
        head = client_frame(BINARY, wire[:-3], fin=False, rsv=RSV1)
        return head + client_frame(CONTINUATION, wire[-3:])

    assert verdict(message(LIMIT) * 3) is None
    assert verdict(message(LIMIT) + message(LIMIT + 1)) == 1009


def test_a_bomb_is_not_inflated_beyond_the_limit() -> None:
    bomb = squeezed_frame(bytes(15_000_000))
    assert len(bomb) < LIMIT  # small enough for the guard
    tracemalloc.start()
    try:
        assert verdict(bomb) == 1009
        assert tracemalloc.get_traced_memory()[1] < 10 * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing at all"),
        pytest.param(b"\x07", id="reserved block type"),
        pytest.param(b"\xff" * 40, id="noise"),
        pytest.param(squeezed(TICKER)[:-20], id="cut off"),
        pytest.param(squeezed(TICKER) + b"\0\0\xff\xff", id="the tail left on"),
        pytest.param(squeezed(TICKER, zlib.Z_FINISH)[:-1], id="last block without the octet behind it"),
        pytest.param(zlib.compress(TICKER) + b"\0", id="zlib header"),
        pytest.param(b"\x03\x00" * 8 + b"\0", id="too many streams"),
    ],
)
def test_broken_data_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        Inflater(LIMIT).feed(client_frame(TEXT, payload, rsv=RSV1))
    assert caught.value.close_code == 1007
    assert 0 < len(caught.value.reason.encode()) <= 123


def test_thousands_of_streams_cost_no_more_than_eight() -> None:
    with pytest.raises(ProtocolViolation, match="1007 more than 8 streams"):
        Inflater(LIMIT).feed(client_frame(TEXT, b"\x03\x00" * 8000, rsv=RSV1))


def test_a_client_that_keeps_its_context_is_refused() -> None:
    compressor = zlib.compressobj(wbits=-15)
    first, second = (compressor.compress(TICKER) + compressor.flush(zlib.Z_SYNC_FLUSH) for _ in range(2))
    frames = [client_frame(TEXT, data[:-4], rsv=RSV1) for data in (first, second)]
    assert verdict(frames[0]) is None
    assert verdict(b"".join(frames)) == 1007


BEGUN = client_frame(TEXT, squeezed(TICKER)[:50], fin=False, rsv=RSV1)
OUT_OF_ORDER = [
    pytest.param(client_frame(PING, b"!", rsv=RSV1), id="ping"),
    pytest.param(client_frame(CLOSE, rsv=RSV1), id="close"),
    pytest.param(client_frame(CONTINUATION, squeezed(b"x"), rsv=RSV1), id="continuation of nothing"),
    pytest.param(client_frame(TEXT, fin=False) + client_frame(CONTINUATION, rsv=RSV1), id="continuation"),
    pytest.param(BEGUN + client_frame(CONTINUATION, b"", rsv=RSV1), id="continuation of a compressed message"),
    pytest.param(BEGUN + squeezed_frame(b"x"), id="message inside a message"),
    pytest.param(BEGUN + client_frame(TEXT, b"x"), id="uncompressed message inside a message"),
    pytest.param(BEGUN + client_frame(PING, b"!", fin=False), id="fragment of a ping"),
    pytest.param(client_frame(TEXT, squeezed(b"x"), rsv=RSV1, masked=False), id="unmasked"),
    pytest.param(BEGUN + client_frame(CONTINUATION, b"", masked=False), id="unmasked continuation"),
    pytest.param(client_frame(TEXT, squeezed(b"x"), rsv=RSV1 | 0b010), id="RSV2"),
    pytest.param(client_frame(TEXT, squeezed(b"x"), rsv=RSV1 | 0b001), id="RSV3"),
    pytest.param(client_frame(3, squeezed(b"x"), rsv=RSV1), id="reserved opcode"),
    pytest.param(client_frame(TEXT, squeezed(b"x"), rsv=RSV1) + client_frame(CONTINUATION), id="one more fragment"),
]


@pytest.mark.parametrize("data", OUT_OF_ORDER)
def test_frames_that_are_out_of_order_are_left_for_wsproto_to_refuse(data: bytes) -> None:
    with pytest.raises(ParseFailed) as caught:
        understood([data])
    assert caught.value.code == 1002


def test_text_that_is_not_utf_8_is_refused_as_ever() -> None:
    with pytest.raises(ParseFailed) as caught:
        understood([squeezed_frame(b"\xff\xfe")])
    assert caught.value.code == 1007


noise = st.binary(max_size=200)
frames_of_noise = st.builds(
    client_frame,
    st.sampled_from([CONTINUATION, TEXT, BINARY, PING, 3, 11]),
    noise | noise.map(squeezed) | noise.map(lambda data: squeezed(data, zlib.Z_FINISH)),
    fin=st.booleans(),
    masked=st.integers(0, 9).map(bool),
    rsv=st.sampled_from([0, RSV1, RSV1, 0b111]),
)


@reproducible
@given(st.lists(frames_of_noise | noise, max_size=6).map(b"".join), st.lists(st.integers(0, 900), max_size=6))
def test_noise_is_passed_on_or_refused_whatever_it_is(data: bytes, cuts: list[int]) -> None:
    options = GuardOptions(max_message_bytes=125)

    def judge(chunks: list[bytes]) -> int | bytes:
        guard, inflater, plain = FrameGuard(options, 0.0), Inflater(125), b""
        try:
            for chunk in chunks:
                guard.feed(chunk, 0.0)
                plain += inflater.feed(chunk)
                assert len(inflater._held) < 14 + 125
        except ProtocolViolation as violation:
            return violation.close_code
        return plain

    whole, parts = judge([data]), judge(cut(data, cuts))
    assert whole == parts or {whole, parts} == {1007, 1009}  # a guard that sees more may object before the inflater


# Served


class Inflating(FrameParser):
    """Reads frames of a server that may compress them, and counts those that it did."""

    _rsv1 = False
    compressed = 0

    def _next(self) -> Frame | None:
        if self.incomplete and self.incomplete[0] & 0x40:
            self._rsv1, self.compressed = True, self.compressed + 1
            self.incomplete = bytes((self.incomplete[0] & ~0x40,)) + self.incomplete[1:]
        received = super()._next()
        if received is None or not self._rsv1:
            return received
        self._rsv1 = False
        payload = zlib.decompressobj(-WINDOW_BITS).decompress(received.payload + b"\0\0\xff\xff")
        return received._replace(payload=payload)


async def visit(house: House, offer: str = OFFER) -> Peer:
    """Return a peer that offered compression."""
    peer = house.dial()
    peer.parser = Inflating()
    await peer.shake_hands(request_head(extra=(offer,)))
    return peer


async def handshake(options: ServerOptions, *lines: str) -> dict[str, str]:
    """Return the headers of the answer to a request with these lines."""
    async with open_house(server=options) as house:
        peer = house.dial()
        await peer.send(request_head(extra=lines))
        answer = await peer.stream.receive_some()
        status, *headers = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        assert status.startswith("HTTP/1.1 101 ")
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in headers)}


async def test_the_answer_is_in_the_handshake(autojump_clock: trio.abc.Clock) -> None:
    assert (await handshake(DEFLATING, OFFER))["sec-websocket-extensions"] == ANSWER
    browser = f"{OFFER}; client_max_window_bits"
    assert (await handshake(DEFLATING, browser))["sec-websocket-extensions"] == ANSWER


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        pytest.param(ServerOptions(), (OFFER,), id="off"),
        pytest.param(DEFLATING, (), id="not offered"),
        pytest.param(DEFLATING, ("Sec-WebSocket-Extensions: x",), id="another extension"),
        pytest.param(DEFLATING, (f"{OFFER}; server_max_window_bits=9",), id="cannot be honoured"),
    ],
)
async def test_without_an_agreement_nothing_is_compressed(
    options: ServerOptions, lines: tuple[str, ...], autojump_clock: trio.abc.Clock
) -> None:
    assert "sec-websocket-extensions" not in await handshake(options, *lines)
    async with open_house(server=options) as house:
        peer = house.dial()
        await peer.shake_hands(request_head(extra=lines))
        await peer.send(squeezed_frame(b'{"method":"ping"}'))
        assert await peer.farewell() == 1002


async def test_compressed_and_plain_requests_are_answered(autojump_clock: trio.abc.Clock) -> None:
    async with open_house(server=DEFLATING) as house:
        peer = await visit(house)
        ping = b'{"method":"ping","req_id":%d}'
        wire = squeezed(ping % 3)
        await peer.send(squeezed_frame(ping % 1) + client_frame(TEXT, ping % 2))
        await peer.send(client_frame(TEXT, wire[:9], fin=False, rsv=RSV1) + client_frame(PING, b"!"))
        assert [(await peer.reply())["req_id"] for _ in range(2)] == [1, 2]
        pong = await peer.frame()
        assert pong is not None
        assert pong.payload == b"!"
        await peer.send(client_frame(CONTINUATION, wire[9:]))
        assert (await peer.reply())["req_id"] == 3


async def test_requests_are_answered_when_every_byte_comes_by_itself(autojump_clock: trio.abc.Clock) -> None:
    """A chunk of which nothing can be inflated yet is not the end of the stream."""
    async with open_house(server=DEFLATING) as house:
        peer = await visit(house)
        for byte in squeezed_frame(b'{"method":"ping","req_id":7}'):
            await peer.send(bytes((byte,)))
            await trio.testing.wait_all_tasks_blocked()
        assert (await peer.reply())["req_id"] == 7


async def test_a_request_in_the_packet_of_the_handshake_is_answered(autojump_clock: trio.abc.Clock) -> None:
    async with open_house(server=DEFLATING) as house:
        peer = house.dial()
        peer.parser = Inflating()
        await peer.shake_hands(request_head(extra=(OFFER,)) + squeezed_frame(b'{"method":"ping","req_id":8}'))
        assert (await peer.reply())["req_id"] == 8


async def test_a_peer_that_leaves_within_a_compressed_message_frees_everything(autojump_clock: trio.abc.Clock) -> None:
    async with open_house(server=DEFLATING) as house:
        for data in (b"", squeezed_frame(b"{}")[:-1], BEGUN):
            peer = await visit(house)
            await peer.send(data)
            peer.leave()
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert house.empty


@pytest.mark.parametrize(
    ("data", "code"),
    [
        *[pytest.param(*case.values, 1002, id=case.id) for case in OUT_OF_ORDER],
        pytest.param(squeezed_frame(bytes(LIMIT + 1)), 1009, id="bomb"),
        pytest.param(client_frame(TEXT, b"\xff" * 9, rsv=RSV1), 1007, id="garbage"),
        pytest.param(squeezed_frame(b"\xff"), 1007, id="not UTF-8"),
    ],
)
async def test_a_violation_is_answered_with_its_close_code(
    data: bytes, code: int, autojump_clock: trio.abc.Clock
) -> None:
    async with open_house(server=DEFLATING) as house:
        peer = await visit(house)
        await peer.send(data)
        assert await peer.farewell() == code
        peer.leave()
        await house.wait_empty()
        assert "defect" not in house.server.statistics().ended


async def test_inflated_bytes_count_for_the_flood_limit(autojump_clock: trio.abc.Clock) -> None:
    """Else 26 bytes would have trio-websocket parse 16 KiB."""
    async with open_house(server=DEFLATING, guard=GuardOptions(bytes_per_s=50_000.0, burst_s=1.0)) as house:
        peer = await visit(house)
        request = squeezed_frame(b'{"method":"ping"}'.ljust(LIMIT))
        await peer.send(request * 3)
        assert [(await peer.reply())["method"] for _ in range(3)] == ["pong"] * 3
        await peer.send(request)
        assert await peer.farewell() == 1008


PROMISED = f"{ANSWER}; server_max_window_bits=12"


@pytest.mark.parametrize(
    ("options", "offers", "agreed"),
    [
        pytest.param(DEFLATING, [ClientPerMessageDeflateFactory()], [ANSWER], id="defaults"),
        pytest.param(DEFLATING, [ClientPerMessageDeflateFactory(server_max_window_bits=13)], [PROMISED], id="window"),
        pytest.param(DEFLATING, [ClientPerMessageDeflateFactory(True, True, None, 9)], [ANSWER], id="everything"),
        pytest.param(DEFLATING, [ClientPerMessageDeflateFactory(server_max_window_bits=9)], [], id="declined"),
        pytest.param(DEFLATING, [], [], id="not offered"),
        pytest.param(ServerOptions(), [ClientPerMessageDeflateFactory()], [], id="off"),
    ],
)
async def test_a_foreign_client_subscribes(
    options: ServerOptions, offers: list[ClientPerMessageDeflateFactory], agreed: list[str]
) -> None:
    async with open_house(server=options, tcp=True) as house:
        await house.trade(20)
        answers, received = await trio.to_thread.run_sync(converse, house.port, offers)
        assert answers == agreed
        assert received["type"] == "snapshot"
        assert [row["trade_id"] for row in received["data"]] == list(range(1, 21))


def converse(port: int, offers: list[ClientPerMessageDeflateFactory]) -> tuple[list[str], dict[str, Any]]:
    """Subscribe to trades with the ``websockets`` library; return the extensions agreed on and the snapshot."""
    url = f"ws://127.0.0.1:{port}/v2"
    with websockets.sync.client.connect(url, compression=None, extensions=offers) as client:
        assert client.response is not None
        params = {"channel": "trade", "symbol": ["BTC/USD"], "snapshot": True}
        client.send(json.dumps({"method": "subscribe", "params": params}))
        assert json.loads(client.recv())["channel"] == "status"
        assert json.loads(client.recv())["success"] is True
        return client.response.headers.get_all("Sec-WebSocket-Extensions"), json.loads(client.recv())


async def test_market_data_is_compressed_once_for_all_that_agreed_and_for_nobody_else(monkeypatch) -> None:
    squeezed = list[bytes]()

    def counting(payload: bytes) -> bytes:
        squeezed.append(payload)
        return deflated_frame(payload)

    monkeypatch.setattr("ticker.topics.wording.deflated_frame", counting)
    async with open_house(server=DEFLATING) as house:
        plain, *agreed = await house.visit(), await visit(house), await visit(house), await visit(house)
        for peer in (plain, *agreed):
            await peer.subscribe("trade", snapshot=False)
        await house.trade(20)
        told = [await peer.message_of("trade") for peer in (plain, *agreed)]
        assert told == [told[0]] * 4
        assert [row["trade_id"] for row in told[0]["data"]] == list(range(1, 21))
        assert [peer.parser.compressed for peer in agreed] == [1, 1, 1]  # the FrameParser of the other refuses RSV1
        assert len(squeezed) == 1
