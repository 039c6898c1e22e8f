"""``stalled PORT SECONDS MESSAGE``: a subscriber that reads nothing after it has sent its subscribe."""

from __future__ import annotations

import signal
import socket
import sys

from tests.benchmarks.audience import NATIVE
from tests.benchmarks.peers.tick import end_after
from ticker.codec import TEXT


def subscribe(port: int, message: bytes, *, native: bool = False, receive_bytes: int = 0) -> socket.socket:
    """Return a connection that has shaken hands and subscribed; the mask of the frame is zero.

    Args:
        port: Of the server.
        message: At most 125 bytes.
        native: Whether to offer the native subprotocol.
        receive_bytes: Size of the kernel's receive buffer; 0 leaves it as it is.
    """
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.connect(("127.0.0.1", port))
    offer = f"Sec-WebSocket-Protocol: {NATIVE}\r\n" if native else ""
    request = (
        f"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"{offer}\r\n"
    )
    sock.sendall(request.encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(1)
    if not 0 < len(message) < 126:
        raise ValueError("a short message")
    sock.sendall(bytes((TEXT, 0x80 | len(message), 0, 0, 0, 0)) + message)
    return sock


if __name__ == "__main__":
    end_after(int(sys.argv[2]))
    with subscribe(int(sys.argv[1]), sys.argv[3].encode()):
        print(0, flush=True)
        signal.pause()
