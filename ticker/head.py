"""The HTTP request of a new connection: its head read, bounded and judged before anything else looks at it.

One unexpected byte in a header ends trio-websocket's server task, so it is shown only heads that passed here. This
module knows HTTP/1.1 and addresses; it must not know what is served.
"""

from __future__ import annotations

import base64
import re

import h11
import msgspec
import trio

from ticker.transport import Transport

#: As nginx and most servers have it; a Kraken client's head has about 300 bytes.
MAX_HEAD_BYTES = 8 * 1024
HEAD_DEADLINE_S = 5.0
#: No request with a body needs more than a few hundred bytes.
MAX_BODY_BYTES = 4 * 1024
BODY_DEADLINE_S = 5.0
_ALLOWED = frozenset(range(0x20, 0x7F)) | {0x09, 0x0D, 0x0A}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


class BadHead(Exception):
    """A head that is answered with an HTTP error.

    Attributes:
        status: The HTTP status of the answer.
        headers: What the answer carries besides the usual.
    """

    def __init__(self, status: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


class Head(msgspec.Struct, frozen=True):
    """A request head that passed.

    Attributes:
        method: "GET".
        target: Path and query.
        headers: Names in lower case; several of a name are one list.
        version: "1.1" or "1.0".
        rest: What the peer sent behind it already.
    """

    method: str
    target: str
    headers: dict[str, str]
    version: str
    rest: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def bearer(self) -> str:
        """The token in ``Authorization``, or empty."""
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def canonical(self) -> bytes:
        """The same head with one line for each name: wsproto looks at the last line of a name only."""
        lines = [f"{self.method} {self.target} HTTP/{self.version}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()

    @property
    def upgrades(self) -> bool:
        """Whether it asks for a WebSocket, rightly or not; an offer of HTTP/2 is passed over."""
        return "websocket" in self.headers.get("upgrade", "").lower()


class TrustOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may connect.

    Attributes:
        hosts: Further values allowed in ``Host``, without port; loopback names and the bound host always are.
        origins: Values allowed in ``Origin``, exact; the server's own pages always are. Programs send none.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


async def read_head(transport: Transport) -> Head | None:
    """Read a request head.

    Returns:
        The head, or None if the peer left without a request.

    Raises:
        BadHead: 400 malformed, 408 too slow, 431 too large.
        trio.BrokenResourceError: The peer reset the connection.
    """
    data = b""
    with trio.move_on_after(HEAD_DEADLINE_S) as deadline:
        while b"\r\n\r\n" not in data:
            if len(data) > MAX_HEAD_BYTES:
                raise BadHead(431, f"a request head may have {MAX_HEAD_BYTES} bytes")
            received = await transport.receive_some()
            if not received:
                return None
            data += received
    if deadline.cancelled_caught:
        raise BadHead(408, f"no complete request head within {HEAD_DEADLINE_S:.0f} s")
    end = data.index(b"\r\n\r\n") + 4
    return parse_head(data[:end], data[end:])


async def read_body(transport: Transport, head: Head) -> bytes:
    """Read the body of a request: JSON, or anything with an ``API-Key``.

    A page of another site cannot send this content type, or this header, without asking first, and is not allowed to.

    Raises:
        BadHead: 415 neither, 411 without a length, 413 too large, 408 too slow, 400 cut short.
        trio.BrokenResourceError: The peer reset the connection.
    """
    kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and "api-key" not in head.headers:
        raise BadHead(415, "the body must be sent as content-type: application/json, or with an API-Key")
    length = head.headers.get("content-length", "")
    if not length.isdecimal() or "transfer-encoding" in head.headers:
        raise BadHead(411, "a content-length is required")
    if int(length) > MAX_BODY_BYTES:
        raise BadHead(413, f"a body may have {MAX_BODY_BYTES} bytes")
    data = head.rest
    with trio.move_on_after(BODY_DEADLINE_S) as deadline:
        while len(data) < int(length):
            received = await transport.receive_some()
            if not received:
                raise BadHead(400, "the body is shorter than its content-length")
            data += received
    if deadline.cancelled_caught:
        raise BadHead(408, f"no complete body within {BODY_DEADLINE_S:.0f} s")
    return data[: int(length)]


def parse_head(raw: bytes, rest: bytes = b"") -> Head:
    """Parse a complete head.

    Raises:
        BadHead: It is not printable ASCII, too large, or not HTTP/1.1.
    """
    if len(raw) > MAX_HEAD_BYTES:
        raise BadHead(431, f"a request head may have {MAX_HEAD_BYTES} bytes")
    if not _ALLOWED.issuperset(raw):
        raise BadHead(400, "a request head must be printable ASCII")
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    parser.receive_data(raw)
    try:
        event = parser.next_event()
    except h11.RemoteProtocolError as error:
        raise BadHead(400, f"malformed request: {error}") from None
    if not isinstance(event, h11.Request):
        raise BadHead(400, "malformed request")
    headers: dict[str, str] = {}
    for name, value in event.headers:
        key, text = name.decode(), value.decode()
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    method, target, version = event.method.decode(), event.target.decode(), event.http_version.decode()
    if version not in ("1.0", "1.1"):
        raise BadHead(400, f"HTTP/{version} is not spoken here")
    return Head(method, target, headers, version, rest)


def check_upgrade(head: Head) -> None:
    """Refuse what is not a WebSocket handshake (RFC 6455 section 4.2.1); trio-websocket would say nothing.

    Raises:
        BadHead: 400, or 426 for another version of the protocol.
    """
    if head.version != "1.1":
        raise BadHead(400, "a WebSocket handshake is in HTTP/1.1")
    if _tokens(head, "upgrade") != ["websocket"] or "upgrade" not in _tokens(head, "connection"):
        raise BadHead(400, "a WebSocket handshake has Upgrade: websocket and Connection: Upgrade")
    version = head.headers.get("sec-websocket-version")
    if version is None:
        raise BadHead(400, "Sec-WebSocket-Version is required")
    if version != "13":
        raise BadHead(426, "Sec-WebSocket-Version must be 13", (("sec-websocket-version", "13"),))
    try:
        key = base64.b64decode(head.headers.get("sec-websocket-key", ""), validate=True)
    except ValueError:
        key = b""
    if len(key) != 16:
        raise BadHead(400, "Sec-WebSocket-Key must be 16 bytes in base64")


def _tokens(head: Head, name: str) -> list[str]:
    return [token.strip().lower() for token in head.headers.get(name, "").split(",")]


def check_trust(head: Head, options: TrustOptions, bound_host: str) -> None:
    """Refuse foreign hosts (DNS rebinding) and foreign origins (cross-site WebSocket hijacking).

    Raises:
        BadHead: 403, or 400 without a Host.
    """
    host = head.headers.get("host")
    if host is None:
        raise BadHead(400, "a Host header is required")
    found = _HOST.fullmatch(host)
    if found is None or int(found[2] or 0) > 65535:
        raise BadHead(400, "malformed Host")
    name = found[1].strip("[]").lower()
    allowed = {"localhost", "127.0.0.1", "::1", bound_host, *options.hosts}
    if name not in {known.lower() for known in allowed}:
        raise BadHead(403, f"host {name!r} is not allowed here; add it to [trust] hosts in the configuration")
    origin = head.headers.get("origin")
    if origin is None or origin in options.origins:
        return
    if origin.split("://", 1)[-1] != host or not origin.startswith(("http://", "https://")):
        raise BadHead(403, f"origin {origin!r} is not allowed here; add it to [trust] origins in the configuration")
