"""The pages of the one port: status, health, figures. Each connection gets one answer and is closed.

It knows HTTP responses and where the figures come from; it must not know sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from importlib.resources import files
from typing import Final
from urllib.parse import parse_qsl

import h11
import trio

from ticker.head import BadHead, Head, read_body
from ticker.transport import Transport

#: How long a client may take to read a page.
RESPONSE_TIMEOUT_S: Final = 5.0
_SECURITY: Final = [
    ("content-security-policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
     "img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
]  # fmt: skip
_TYPES: Final = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_STATIC: Final = {"/": "index.html", "/static/status.js": "status.js", "/static/status.css": "status.css"}

#: Status, content type and body, the body perhaps in parts: others run between them.
Page = tuple[int, str, bytes | Iterable[bytes]]
#: Makes a page of the query's parameters.
PageMaker = Callable[[dict[str, str]], Page]
#: Does what a POST asks for, given its head and body, and makes a page of it.
Action = Callable[[Head, bytes], Page]


class Web:
    """Answers requests that are not for a WebSocket.

    Args:
        pages: What makes the page of a path; the status page is there anyway.
        actions: What answers to a POST, by path; a path that ends in ``/`` stands for all directly below it.
    """

    def __init__(self, pages: Mapping[str, PageMaker], actions: Mapping[str, Action] | None = None) -> None:
        self._pages = pages
        self._actions = actions or {}

    async def respond(self, transport: Transport, head: Head) -> None:
        """Answer a request."""
        action = self._action(head.path)
        readable = action is None or head.path in self._pages
        if action is not None and head.method == "POST":
            status, kind, body = action(head, await read_body(transport, head))
        elif readable and head.method in ("GET", "HEAD"):
            status, kind, body = self._page(head)
        else:
            allowed = ", ".join((["GET", "HEAD"] if readable else []) + (["POST"] if action else []))
            raise BadHead(405, f"only {allowed}", (("allow", allowed),))
        await _send(transport, status, kind, await _whole(body), body_wanted=head.method != "HEAD")

    async def refuse(self, transport: Transport, error: BadHead) -> None:
        """Answer a request that cannot be served."""
        await _send(transport, error.status, "text/plain", f"{error}\n".encode(), body_wanted=True, extra=error.headers)

    def _action(self, path: str) -> Action | None:
        return self._actions.get(path) or self._actions.get(path[: path.rfind("/") + 1])

    def _page(self, head: Head) -> Page:
        if head.path in _STATIC:
            name = _STATIC[head.path]
            return 200, _TYPES[name.rsplit(".", 1)[1]], (files("ticker") / "static" / name).read_bytes()
        if head.path in self._pages:
            return self._pages[head.path](dict(parse_qsl(head.target.partition("?")[2])))
        raise BadHead(404, f"no page {head.path}; there are / {' '.join(self._pages)}, and the WebSocket at /v2")


async def _whole(body: bytes | Iterable[bytes]) -> bytes:
    if isinstance(body, bytes):
        return body
    parts = []
    for part in body:
        parts.append(part)
        await trio.lowlevel.checkpoint()
    return b"".join(parts)


async def _send(
    transport: Transport,
    status: int,
    kind: str,
    body: bytes,
    *,
    body_wanted: bool,
    extra: tuple[tuple[str, str], ...] = (),
) -> None:
    content_type = kind if "charset" in kind or kind == "application/json" else f"{kind}; charset=utf-8"
    headers = [
        ("content-type", content_type),
        ("content-length", str(len(body))),
        ("connection", "close"),
        *_SECURITY,
        *extra,
    ]
    if status == 503:
        headers.append(("retry-after", "5"))
    writer = h11.Connection(h11.SERVER)
    response = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())
    data = writer.send(response) or b""
    with trio.move_on_after(RESPONSE_TIMEOUT_S):
        await transport.send_all(data + (body if body_wanted else b""))
        if status != 503:  # where there are too many, none is held, though a reset may overtake the answer
            await transport.finish()
