"""A client that replays a recording at speed 0 and does nothing with what comes but count its bytes.

``python -m tests.benchmarks.peers.drain PORT SOURCE SUBSCRIPTION...``: subscriptions are JSON parameters. It prints
``ready``, gives others a moment to look at the server, and prints a line of JSON: seconds from resuming to the end of
the tape, bytes, and what the server says it delivered and dropped.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from threading import Event
from typing import Any

from tests.serving import TEXT, client_frame, request_head

SESSION = "drain"
CHUNK = 1 << 20


class Client:
    """A native client over a blocking socket that looks for marks in the bytes instead of reading messages."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.settimeout(120)
        self._buffer = bytearray(CHUNK)
        self._socket.sendall(request_head(host="localhost", extra=["Sec-WebSocket-Protocol: ticker.v1"]))
        self.until(b'"channel":"status"')

    def send(self, method: str, **params: Any) -> None:
        """Send a request."""
        request = {"method": method, "params": params, "req_id": 1}
        self._socket.sendall(client_frame(TEXT, json.dumps(request).encode()))

    def until(self, mark: bytes) -> tuple[int, bytes]:
        """Read until a mark has come; return how many bytes that were, and the last of them."""
        size, tail, view = 0, b"", memoryview(self._buffer)
        while mark not in tail:
            count = self._socket.recv_into(self._buffer)
            if not count:
                raise EOFError(f"the server left: {tail[-300:]!r}")
            size += count
            tail = tail[-4096:] + bytes(view[max(0, count - 8192) : count])
        return size, tail


def main() -> None:
    """Replay, and print what it took."""
    port, source, *wishes = sys.argv[1:]
    client = Client(int(port))
    client.send("replay_start", source=source, session=SESSION, speed=0, start_paused=True)
    client.until(b'"success":')
    for wish in wishes:
        client.send("subscribe", session=SESSION, **json.loads(wish))
        client.until(b'"success":')
    print("ready", flush=True)
    Event().wait(0.5)
    client.send("replay_control", session=SESSION, action="resume")
    began = time.perf_counter()
    size, _ = client.until(b'"state":"ended"')
    seconds = time.perf_counter() - began
    client.send("list_subscriptions")
    _, tail = client.until(b'"subscriptions":')
    reply = json.loads(tail[tail.index(b'{"method":"list_subscriptions"') :])
    rows = reply["result"]["subscriptions"]
    totals = {name: sum(row[name] for row in rows) for name in ("published", "delivered", "dropped")}
    print(json.dumps({"seconds": seconds, "bytes": size, **totals}), flush=True)


if __name__ == "__main__":
    main()
