from __future__ import annotations

import socket

import outcome
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving import client_frame, open_house, request_head
from ticker.head import HEAD_DEADLINE_S, MAX_HEAD_BYTES, BadHead, Head, TrustOptions, check_trust, parse_head, read_head
from ticker.transport import Transport

reproducible = settings(deadline=None, derandomize=True, database=None)


def refusal(raw: bytes) -> int | None:
    """Return the HTTP status that a head is refused with, or None."""
    try:
        parse_head(raw)
    except BadHead as error:
        return error.status
    return None


def trust(*lines: str, options: TrustOptions | None = None, bound: str = "127.0.0.1", version: str = "1.1") -> int:
    """Return the status that a head of these lines is refused with; 0: it passed."""
    try:
        head = parse_head("\r\n".join((f"GET /v2 HTTP/{version}", *lines, "", "")).encode())
        check_trust(head, options or TrustOptions(), bound)
    except BadHead as error:
        return error.status
    return 0


# Parsing


def test_a_head_is_read_as_it_was_sent() -> None:
    raw = request_head("/v2?x=1", host="localhost:8765", extra=("X-A: 1", "x-a: 2"))
    head = parse_head(raw, b"rest")
    assert (head.method, head.path, head.rest) == ("GET", "/v2", b"rest")
    assert parse_head(head.canonical).headers == head.headers
    assert head.headers["host"] == "localhost:8765"
    assert head.headers["x-a"] == "1, 2"
    assert head.upgrades


@pytest.mark.parametrize("value", ["websocket", "WebSocket", "WEBSOCKET"])
def test_the_upgrade_token_has_no_case(value: str) -> None:
    assert parse_head(f"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: {value}\r\n\r\n".encode()).upgrades


def test_a_page_request_does_not_upgrade() -> None:
    assert not parse_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").upgrades


async def test_an_offer_of_http_2_is_passed_over(autojump_clock: trio.abc.Clock) -> None:
    """RFC 9110 section 7.8. ``curl --http2`` sends it with every request."""
    async with open_house() as house:
        peer = house.dial()
        extra = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        await peer.send("\r\n".join(("GET /healthz HTTP/1.1", "Host: localhost", *extra, "", "")).encode())
        assert (await peer.answer()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("name", ["Host", "Connection", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "X-Any"])
@pytest.mark.parametrize("byte", [b"\x00", b"\x07", b"\x1b", b"\x7f", b"\x80", b"\xe9", b"\xff"])
def test_only_printable_ascii_passes(name: str, byte: bytes) -> None:
    line = name.encode() + b": a" + byte + b"b\r\n"
    assert refusal(b"GET /v2 HTTP/1.1\r\n" + line + b"\r\n") == 400
    assert refusal(b"GET /v2" + byte + b" HTTP/1.1\r\nHost: a\r\n\r\n") == 400


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\r\n\r\n", id="nothing"),
        pytest.param(b"\r\n\r\n\r\n", id="only blank lines"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\n", id="HTTP/2 preface"),
        pytest.param(b"GET /v2\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"GET /v2 HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", id="two Hosts"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost: a\r\nHOST: b\r\n\r\n", id="two Hosts in two cases"),
        pytest.param(b"GET /v2 HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", id="two Hosts in HTTP/1.0"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost : a\r\n\r\n", id="blank before the colon"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost\r\n\r\n", id="no colon"),
        pytest.param(b"GET /v2 HTTP/1.1\r\n: a\r\n\r\n", id="no name"),
        pytest.param(b"GET /v2 HTTP/1.1\r\n Host: a\r\n\r\n", id="folded first line"),
        pytest.param(b"GET  /v2 HTTP/1.1\r\nHost: a\r\n\r\n", id="two blanks"),
        pytest.param(b"GET /v2 HTTP/1.1 \r\nHost: a\r\n\r\n", id="blank at the end"),
        pytest.param(b"GET /v2 HTTP/9.9\r\nHost: a\r\n\r\n", id="HTTP/9.9"),
        pytest.param(b"GET /v2 HTTX/1.1\r\nHost: a\r\n\r\n", id="not HTTP"),
        pytest.param(b"G=T /v2 HTTP/1.1\r\nHost: a\r\n\r\n", id="no method"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", id="Content-Length"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n", id="two Content-Lengths"),
        pytest.param(b"GET /v2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: cow\r\n\r\n", id="Transfer-Encoding"),
        pytest.param(b"HTTP/1.1 200 OK\r\nHost: a\r\n\r\n", id="a response"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", id="TLS"),
        pytest.param(b'{"method":"ping"}\r\n\r\n', id="JSON"),
    ],
)
def test_what_is_not_http_is_refused(raw: bytes) -> None:
    assert refusal(raw) in (400, 505)


def test_a_head_has_8_kib_and_not_a_byte_more() -> None:
    empty = len(request_head(extra=("X: ",)))
    fitting = request_head(extra=("X: " + "a" * (MAX_HEAD_BYTES - empty),))
    assert len(fitting) == MAX_HEAD_BYTES
    assert refusal(fitting) is None
    assert refusal(fitting.replace(b"X: ", b"X: a")) == 431


@reproducible
@given(st.binary(max_size=300))
def test_noise_is_refused_and_never_breaks_the_parser(noise: bytes) -> None:
    assert refusal(noise + b"\r\n\r\n") in (400, None)


@reproducible
@given(st.data())
def test_a_head_with_one_byte_changed_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(request_head(extra=("Origin: http://localhost",)))
    raw[data.draw(st.integers(0, len(raw) - 5))] = data.draw(st.integers(0, 255))
    assert refusal(bytes(raw)) in (400, None)


# Trust


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost", "localhost:8765", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8765", "localhost:65535"],
)
def test_loopback_names_are_trusted(host: str) -> None:
    assert trust(f"Host: {host}") == 0


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8765", "localhost.evil.example", "127.0.0.1.evil.example", "localhost.", "127.1",
        "0.0.0.0", "[::]", "[::2]:8765", "2130706433", "localhost, evil.example", "evil.example, localhost",
    ],
)  # fmt: skip
def test_other_hosts_are_refused(host: str) -> None:
    assert trust(f"Host: {host}") in (400, 403)


@pytest.mark.parametrize(
    "host",
    [
        "", ":8765", "evil@localhost", "evil:x@localhost", "a..b@localhost", "xn--999999b@localhost", "localhost/x",
        "localhost?x", "localhost#x", "local\thost", "localhost:x", "localhost:xn--zzz",
        "localhost:123456", "localhost:-1", "localhost:80:80", "[::1", "::1]", "[::1]x", "[localhost]", "http://localhost",
    ],
)  # fmt: skip
def test_a_malformed_host_is_refused_even_where_the_name_in_it_is_trusted(host: str) -> None:
    assert trust(f"Host: {host}") in (400, 403)


def test_a_host_is_required_even_in_http_1_0() -> None:
    assert trust("X: y", version="1.0") == 400


def test_the_bound_host_and_configured_hosts_are_trusted_in_any_case() -> None:
    assert trust("Host: 192.0.2.7:80", bound="192.0.2.7") == 0
    assert trust("Host: 192.0.2.8:80", bound="192.0.2.7") == 403
    assert trust("Host: market.EXAMPLE", options=TrustOptions(hosts=("market.example",))) == 0
    assert trust("Host: market.example:443", options=TrustOptions(hosts=("Market.Example",))) == 0
    assert trust("Host: [2001:DB8::1]", options=TrustOptions(hosts=("2001:db8::1",))) == 0


@pytest.mark.parametrize(
    ("host", "origin", "passes"),
    [
        ("localhost:8765", "http://localhost:8765", True),
        ("localhost:8765", "https://localhost:8765", True),
        ("[::1]:8765", "http://[::1]:8765", True),
        ("localhost", "http://localhost", True),
        ("localhost:8765", "http://localhost:8766", False),
        ("localhost:8765", "http://localhost", False),
        ("localhost:8765", "http://127.0.0.1:8765", False),
        ("localhost:8765", "http://evil.example", False),
        ("localhost:8765", "http://localhost:8765.evil.example", False),
        ("localhost:8765", "http://evil.example/localhost:8765", False),
        ("localhost:8765", "http://evil.example://localhost:8765", False),
        ("localhost:8765", "ftp://localhost:8765", False),
        ("localhost:8765", "file://localhost:8765", False),
        ("localhost:8765", "localhost:8765", False),
        ("localhost:8765", "null", False),
        ("localhost:8765", "", False),
    ],
)
def test_origins_are_exact(host: str, origin: str, passes: bool) -> None:
    assert trust(f"Host: {host}", f"Origin: {origin}") == (0 if passes else 403)


def test_configured_origins_are_trusted_exactly() -> None:
    options = TrustOptions(origins=("https://desk.example",))
    assert trust("Host: localhost", "Origin: https://desk.example", options=options) == 0
    assert trust("Host: localhost", "Origin: https://desk.example:8443", options=options) == 403
    assert trust("Host: localhost", "Origin: https://desk.example.evil", options=options) == 403


def test_two_origins_are_not_one_trusted_one() -> None:
    assert trust("Host: localhost", "Origin: http://localhost", "Origin: http://evil.example") == 403


# Reading


async def head_of(*chunks: bytes, pause_s: float = 0.0) -> Head | None:
    theirs, ours = socket.socketpair()
    with ours:
        transport = Transport(theirs)

        async def send() -> None:
            for chunk in chunks:
                await trio.sleep(pause_s)
                ours.sendall(chunk)
            ours.shutdown(socket.SHUT_WR)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            head = await outcome.acapture(read_head, transport)
            nursery.cancel_scope.cancel()
        transport.close()
        return head.unwrap()


async def test_a_head_may_come_byte_by_byte_with_bytes_behind_it(autojump_clock: trio.abc.Clock) -> None:
    raw, behind = request_head(), client_frame(1, b"early")
    head = await head_of(*[raw[i : i + 1] for i in range(len(raw) - 1)], raw[-1:] + behind)
    assert head is not None
    assert (head, head.rest) == (parse_head(raw, behind), behind)


@pytest.mark.parametrize("begun", [b"", b"GET /v2 HTTP/1.1\r\nHost: loc"])
async def test_leaving_before_the_request_is_complete_is_no_request(
    begun: bytes, autojump_clock: trio.abc.Clock
) -> None:
    assert await head_of(begun) is None
    assert trio.current_time() == 0.0


async def test_a_slow_loris_has_5_s(autojump_clock: trio.testing.MockClock) -> None:
    started = trio.current_time()
    with pytest.raises(BadHead) as caught:
        await head_of(*[b"G"] * 100, pause_s=0.5)
    assert caught.value.status == 408
    assert trio.current_time() - started == HEAD_DEADLINE_S == 5.0


async def test_a_head_without_end_is_refused_once_it_is_too_large(autojump_clock: trio.abc.Clock) -> None:
    with pytest.raises(BadHead) as caught:
        await head_of(*[b"GET /" + b"a" * 1000] * 100)
    assert caught.value.status == 431


async def test_a_reset_while_reading_is_told_apart_from_leaving() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.sendall(b"BAD\x00HTTP")
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    ours.close()
    transport = Transport(theirs)
    with pytest.raises(trio.BrokenResourceError):
        await read_head(transport)
    transport.close()


# What comes back over the wire


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        pytest.param(b"GET\r\n\r\n", 400, id="not HTTP"),
        pytest.param(request_head(host="evil.example"), 403, id="foreign host"),
        pytest.param(request_head(extra=("Origin: http://evil.example",)), 403, id="foreign origin"),
        pytest.param(request_head("/healthz"), 404, id="no WebSocket there"),
        pytest.param(request_head("//v2"), 404, id="two slashes"),
        pytest.param(request_head("/v2/"), 404, id="slash behind"),
        pytest.param(request_head("http://localhost/v3"), 404, id="absolute form"),
        pytest.param(b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc", 405, id="POST"),
        pytest.param(request_head("/" + "a" * 9000), 431, id="too large"),
        pytest.param(request_head(extra=("Sec-WebSocket-Protocol: caf\xe9",)), 400, id="not ASCII"),
    ],
)
async def test_refusals_reach_the_peer_as_http(raw: bytes, status: int, autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = house.dial()
        await peer.send(raw)
        answer = await peer.answer()
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"\r\nconnection: close\r\n" in answer.lower()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head.lower()
        peer.leave()
        await house.wait_empty()
        assert house.server.statistics().ended == {f"http {status}": 1}


async def test_a_post_opens_no_websocket(autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = house.dial()
        await peer.send(request_head().replace(b"GET", b"POST"))
        assert (await peer.answer()).startswith(b"HTTP/1.1 40")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(request_head(without=("connection",)), 400, id="no Connection"),
        pytest.param(request_head(without=("sec-websocket-key",)), 400, id="no key"),
        pytest.param(
            request_head(without=("sec-websocket-key",), extra=("Sec-WebSocket-Key: short",)), 400, id="short key"
        ),
        pytest.param(request_head(without=("sec-websocket-version",)), 400, id="no version"),
        pytest.param(
            request_head(without=("sec-websocket-version",), extra=("Sec-WebSocket-Version: 8",)), 426, id="version 8"
        ),
        pytest.param(request_head(without=("upgrade",), extra=("Upgrade: notwebsocket",)), 400, id="another upgrade"),
        pytest.param(request_head(extra=("Upgrade: h2c",)), 400, id="two upgrades"),
        pytest.param(request_head(extra=("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",)), 400, id="two keys"),
        pytest.param(request_head().replace(b"HTTP/1.1", b"HTTP/1.0"), 400, id="HTTP/1.0"),
    ],
)
async def test_a_bad_websocket_request_is_refused_at_once_and_is_no_defect_of_ours(
    head: bytes, status: int, autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """trio-websocket closes the stream on these and does not tell who waits for the request."""
    async with open_house() as house:
        started = trio.current_time()
        peer = house.dial()
        await peer.send(head)
        answer = await peer.answer()
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert status != 426 or b"sec-websocket-version: 13" in answer.lower()
        peer.leave()
        await house.wait_empty()
        assert trio.current_time() == started
        assert house.server.statistics().ended == {f"http {status}": 1}
    assert not caplog.records


async def test_two_connection_lines_are_one_list(autojump_clock: trio.abc.Clock) -> None:
    """RFC 9110 section 5.3. wsproto looks at the last line only."""
    async with open_house() as house:
        peer = house.dial()
        await peer.shake_hands(request_head(extra=("Connection: keep-alive",)))
        assert (await peer.ask({"method": "ping"}))["method"] == "pong"
        peer.leave()


@pytest.mark.parametrize("host", ["xn--999999b@localhost", "xn--999999b:x@127.0.0.1"])
async def test_a_host_that_does_not_decode_gets_an_http_answer(
    host: str, autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """wsproto decodes Host as IDNA; what it raised was answered with a Close frame in front of any 101."""
    async with open_house() as house:
        peer = house.dial()
        await peer.send(request_head(host=host))
        assert (await peer.answer()).startswith(b"HTTP/1.1 40")
        peer.leave()
    assert not caplog.records
