"""The HTTP request head of a new connection: read, bounded and judged before anything else looks at it.

One unexpected byte in a header ends trio-websocket's server task, so it is shown only heads that passed here. This
module knows HTTP/1.1 and addresses; it must not know what is served.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import h11
import msgspec
import trio

from ticker.transport import Transport

#: As nginx and most servers have it; a Kraken client's head has about 300 bytes.
MAX_HEAD_BYTES = 8 * 1024
HEAD_DEADLINE_S = 5.0
_ALLOWED = frozenset(range(0x20, 0x7F)) | {0x09, 0x0D, 0x0A}


class BadHead(Exception):
    """A head that is answered with an HTTP error.

    Attributes:
        status: The HTTP status of the answer.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Head(msgspec.Struct, frozen=True):
    """A request head that passed.

    Attributes:
        method: "GET".
        path: Target without the query.
        headers: Names in lower case.
        raw: The bytes up to and including the blank line.
        rest: What the peer sent behind it already.
    """

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    rest: bytes

    @property
    def upgrades(self) -> bool:
        """Whether it asks for a WebSocket."""
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
    target = event.target.decode()
    return Head(event.method.decode(), target.split("?", 1)[0], headers, raw, rest)


def check_trust(head: Head, options: TrustOptions, bound_host: str) -> None:
    """Refuse foreign hosts (DNS rebinding) and foreign origins (cross-site WebSocket hijacking).

    Raises:
        BadHead: 403, or 400 without a Host.
    """
    host = head.headers.get("host")
    if host is None:
        raise BadHead(400, "a Host header is required")
    name = _hostname(f"//{host}")
    allowed = {"localhost", "127.0.0.1", "::1", bound_host, *options.hosts}
    if name not in allowed:
        raise BadHead(403, f"host {name!r} is not allowed here; add it to [trust] hosts in the configuration")
    origin = head.headers.get("origin")
    if origin is None or origin in options.origins:
        return
    if origin.split("://", 1)[-1] != host or not origin.startswith(("http://", "https://")):
        raise BadHead(403, f"origin {origin!r} is not allowed here; add it to [trust] origins in the configuration")


def _hostname(netloc: str) -> str:
    try:
        return urlsplit(netloc).hostname or ""
    except ValueError:
        raise BadHead(400, "malformed Host") from None
