"""The pages of the one port: status, health, metrics. Each connection gets one answer and is closed.

It knows HTTP responses and where the figures come from; it must not know sessions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from importlib.resources import files
from typing import Final

import h11
import trio

from ticker.head import BadHead, Head
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

Page = tuple[str, bytes]


class Web:
    """Answers requests that are not for a WebSocket.

    Args:
        healthy: Whether the market runs, with details for ``/healthz``.
        metrics: The Prometheus text of ``/metrics``.
    """

    def __init__(self, healthy: Callable[[], tuple[bool, dict[str, object]]], metrics: Callable[[], Page]) -> None:
        self._healthy = healthy
        self._metrics = metrics

    async def respond(self, transport: Transport, head: Head) -> None:
        """Answer a request."""
        if head.method not in ("GET", "HEAD"):
            raise BadHead(405, "only GET and HEAD")
        status, (kind, body) = self._page(head.path)
        await _send(transport, status, kind, body, body_wanted=head.method == "GET")

    async def refuse(self, transport: Transport, error: BadHead) -> None:
        """Answer a request that cannot be served."""
        await _send(transport, error.status, "text/plain", f"{error}\n".encode(), body_wanted=True, extra=error.headers)

    def _page(self, path: str) -> tuple[int, Page]:
        if path in _STATIC:
            name = _STATIC[path]
            return 200, (_TYPES[name.rsplit(".", 1)[1]], (files("ticker") / "static" / name).read_bytes())
        if path == "/healthz":
            healthy, details = self._healthy()
            return (200 if healthy else 503), ("application/json", json.dumps(details).encode() + b"\n")
        if path == "/metrics":
            return 200, self._metrics()
        raise BadHead(404, f"no page {path}; there are / /healthz /metrics, and the WebSocket at /v2")


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
    if status == 405:
        headers.append(("allow", "GET, HEAD"))
    if status == 503:
        headers.append(("retry-after", "5"))
    writer = h11.Connection(h11.SERVER)
    response = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())
    data = writer.send(response) or b""
    with trio.move_on_after(RESPONSE_TIMEOUT_S):
        await transport.send_all(data + (body if body_wanted else b""))
        await transport.finish()
