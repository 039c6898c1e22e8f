"""The one ordered place through which every byte of a connection leaves.

Replies, control frames and the broadcaster's prebuilt frames all come here, each a whole frame, so no frame ever
lands inside another. There are two ways in:

* :meth:`Outbox.offer`: take it now or not at all. For data that will be newer later: the caller that is refused keeps
  nothing and asks again when the socket is writable ("choose the data at the last moment").
* :meth:`Outbox.push`: it must arrive, behind what is already there. For replies and control frames. Bounded.

Both are sync: the producer never waits for a consumer. :meth:`Outbox.run` is the task that waits for the socket.
Because a frame once begun belongs to the outbox, cancelling a caller never leaves half a frame on the wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec
import trio


class Writable(Protocol):
    """What an outbox writes to: :class:`ticker.transport.Transport`, or a fake with the same manners."""

    @property
    def send_nowait(self) -> Callable[[bytes | memoryview], int]:
        """Write what fits now and return how much; :exc:`BlockingIOError` if nothing does."""

    def reserve(self, size: int) -> None:
        """Make room for buffers of this size, where that is possible."""

    async def wait_writable(self) -> None:
        """Wait until ``send_nowait`` would take something."""


class OutboxStatistics(msgspec.Struct, frozen=True):
    """What an outbox has done so far.

    Attributes:
        frames: Buffers sent whole; an offered buffer may hold several WebSocket frames.
        bytes: Bytes handed to the kernel.
        refused: Offers refused because the socket was behind.
        backlog_bytes: Bytes waiting now.
    """

    frames: int
    bytes: int
    refused: int
    backlog_bytes: int


class Outbox:
    """Ordered output of one connection.

    Attributes:
        failed: Set when the connection can take nothing more: the peer is gone or overflowed its bound. Whoever
            owns the connection waits for it.
        on_writable: Called by :meth:`run` whenever the socket has caught up after a refusal.
        frames: Buffers sent so far; a change tells that the connection is not silent.
    """

    def __init__(self, wire: Writable, *, max_backlog_bytes: int = 1 << 20) -> None:
        self._wire = wire
        self._send = wire.send_nowait
        self._max_backlog = max_backlog_bytes
        self._backlog: deque[memoryview] = deque()
        self._backlog_bytes = 0
        self._behind = False  # the kernel refused bytes and run() has not seen it writable since
        self._wake = trio.Event()
        self._flushed = trio.Event()
        self._sealed = False
        self.failed = trio.Event()
        self.on_writable: Callable[[], None] = _nothing
        self.frames = 0
        self._bytes = 0
        self._refused = 0

    def offer(self, buffer: bytes) -> bool:
        """Send a buffer of whole frames now, or refuse it.

        Returns:
            True: it is sent, or its rest will be before anything else. False: nothing of it was taken, and
            ``on_writable`` will be called when there is room, unless the connection has ended.
        """
        if self._behind or self._sealed:
            self._refused += 1
            return False
        try:
            sent = self._send(buffer)
        except BlockingIOError:
            self._fall_behind()
            self._refused += 1
            return False
        except OSError:
            self._end()
            return False
        self.frames += 1
        self._bytes += sent
        if sent != len(buffer):
            self._wire.reserve(len(buffer))
            self._keep(memoryview(buffer)[sent:])
        return True

    def push(self, frame: bytes) -> None:
        """Send a frame, or queue it behind what is waiting. Dropped if the connection has ended.

        A backlog beyond ``max_backlog_bytes`` ends the connection: the peer asks but does not read.
        """
        if self._sealed:
            return
        if not self._behind:
            if self.offer(frame) or self._sealed:
                return
            self._refused -= 1
        self.frames += 1
        self._keep(memoryview(frame))
        if self._backlog_bytes > self._max_backlog:
            self._end()

    def seal(self) -> None:
        """Take nothing more; what is queued still goes out. For after a Close frame."""
        self._sealed = True

    async def wait_flushed(self) -> None:
        """Wait until everything taken so far is with the kernel, or the connection has ended."""
        while self._backlog and not self.failed.is_set():
            await self._flushed.wait()

    async def run(self) -> None:
        """Write what the kernel refused, whenever it takes bytes again. Returns when the connection has ended."""
        while not self.failed.is_set():
            if self._behind:
                try:
                    await self._wire.wait_writable()
                except trio.ClosedResourceError:
                    self._end()
                    return
                self._write_backlog()
            else:
                await self._wake.wait()

    def statistics(self) -> OutboxStatistics:
        """Return the counts so far."""
        return OutboxStatistics(self.frames, self._bytes, self._refused, self._backlog_bytes)

    @property
    def sealed(self) -> bool:
        """Whether nothing more is taken."""
        return self._sealed

    @property
    def behind(self) -> bool:
        """Whether the socket takes nothing at the moment."""
        return self._behind

    def _write_backlog(self) -> None:
        try:
            while self._backlog:
                view = self._backlog[0]
                sent = self._send(view)
                self._bytes += sent
                self._backlog_bytes -= sent
                if sent != len(view):
                    self._backlog[0] = view[sent:]
                    return
                self._backlog.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        self._behind = False
        self._flushed.set()
        self._flushed = trio.Event()
        if not self._sealed:
            self.on_writable()

    def _keep(self, rest: memoryview) -> None:
        self._backlog.append(rest)
        self._backlog_bytes += len(rest)
        self._fall_behind()

    def _fall_behind(self) -> None:
        self._behind = True
        self._wake.set()
        self._wake = trio.Event()

    def _end(self) -> None:
        self._sealed = True
        self._backlog.clear()
        self._backlog_bytes = 0
        self.failed.set()
        self._wake.set()
        self._flushed.set()


def _nothing() -> None:
    """What happens on writability before anybody cares."""
