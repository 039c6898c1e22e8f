"""The frame that every contender of the fan-out sends, and how its servers in Python accept a subscriber."""

from __future__ import annotations

import signal
import socket

from feeds import clock
from ticker.codec import frame

#: The answer to the fixed key of fanload.c.
HANDSHAKE = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def payload(seq: int, frame_bytes: int) -> bytes:
    """Return a message whose server frame has ``frame_bytes`` bytes, at least 150, made now."""
    head = (
        f'{{"channel":"ticker","type":"update","data":[{{"symbol":"BTC/USD","bid":67123.45,"seq":{seq},'
        f'"ts":{clock.wall_ns()},"pad":"'
    )
    return (head.ljust(frame_bytes - 8, ".") + '"}]}').encode()


def tick_frame(seq: int, frame_bytes: int) -> bytes:
    """Return the whole frame of :func:`payload`."""
    return frame(payload(seq, frame_bytes))


def end_after(seconds: int) -> None:
    """Let the kernel end this process, so that no server outlives its benchmark."""
    signal.alarm(seconds)


def accept(listener: socket.socket) -> socket.socket | None:
    """Return the next subscriber with its handshake done, or None if it has left again."""
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not sock.recv(4096):
        sock.close()
        return None
    sock.sendall(HANDSHAKE)
    sock.setblocking(False)
    return sock
