"""The one ordered place through which every byte of a connection leaves.

Replies, control frames and the broadcaster's prebuilt frames all come here, each a whole frame, so no frame ever
lands inside another. There are two ways in:

* :meth:`Outbox.offer`: take it now or not at all. For data that will be newer later: the caller that is refused keeps
  nothing and asks again when the socket is writable ("choose the data at the last moment").
* :meth:`Outbox.push`: it must arrive, behind what is already there. For replies and control frames. Bounded.

A broadcast to many goes past both and calls :attr:`Outbox.send`, which is the socket's own while nothing waits.
All are sync: the producer never waits for a consumer. :meth:`Outbox.run` is the task that waits for the socket.
Because a frame once begun belongs to the outbox, cancelling a caller never leaves half a frame on the wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

Send = Callable[[bytes | memoryview], int]


class Writable(Protocol):
    """What an outbox writes to: :class:`ticker.transport.Transport`, or a fake with the same manners."""

    @property
    def send_nowait(self) -> Send:
        """Write what fits now and return how much; :exc:`BlockingIOError` if nothing does."""

    def reserve(self, size: int) -> None:
        """Make room for buffers of this size, where that is possible."""

    async def wait_writable(self) -> None:
        """Wait until ``send_nowait`` would take something."""


class Outbox:
    """Ordered output of one connection.

    Attributes:
        send: Writes a buffer of whole frames at once and returns how much of it was taken, or raises
            :exc:`OSError`. While nothing waits it is the socket's own ``send``, so that a broadcast costs no more
            than that; else it raises :exc:`BlockingIOError`. Whoever calls it reports anything but a whole write to
            :meth:`keep` or :meth:`refused`.
        on_turn: Called, each, whenever ``send`` has been replaced.
        on_writable: Called, each, by :meth:`run` when the socket has caught up; those before may have filled it again.
        failed: Set when the connection can take nothing more: the peer is gone or overflowed its bound. Whoever
            owns the connection waits for it.
        frames: Buffers that came through :meth:`offer` and :meth:`push`; a change tells that the connection is not
            silent.
        backlog_bytes: Bytes waiting now.
    """

    def __init__(self, wire: Writable, *, max_backlog_bytes: int = 1 << 20) -> None:
        self._wire = wire
        self._max_backlog = max_backlog_bytes
        self._backlog: deque[memoryview] = deque()
        self._behind = False  # the kernel refused bytes and run() has not seen it writable since
        self._sealed = False
        self._wake = trio.Event()
        self._flushed = trio.Event()
        self.send: Send = wire.send_nowait
        self.on_turn: list[Callable[[], None]] = []
        self.on_writable: list[Callable[[], None]] = []
        self.failed = trio.Event()
        self.frames = 0
        self.backlog_bytes = 0
        self._kept_bytes = 0  # of the backlog, at most: rests of what was offered

    def offer(self, buffer: bytes) -> bool:
        """Send a buffer of whole frames now, or refuse it.

        Returns:
            True: it is sent, or its rest will be before anything else. False: nothing of it was taken, and
            ``on_writable`` will be called when there is room, unless the connection has ended.
        """
        try:
            sent = self.send(buffer)
        except OSError as error:
            self.refused(error)
            return False
        self.frames += 1
        if sent != len(buffer):
            self.keep(buffer, sent)
        return True

    def keep(self, buffer: bytes, sent: int) -> None:
        """Take over the rest of a buffer of which ``send`` took the first ``sent`` bytes."""
        self._wire.reserve(len(buffer))
        self._kept_bytes = len(buffer) - sent
        self._queue(memoryview(buffer)[sent:])

    def refused(self, error: OSError) -> None:
        """Take note of what ``send`` raised."""
        if not isinstance(error, BlockingIOError):
            self._end()
        elif not self._behind and not self._sealed:
            self._fall_behind()

    def push(self, frame: bytes) -> None:
        """Send a frame, or queue it behind what is waiting. Dropped if the connection has ended.

        A backlog of more than ``max_backlog_bytes`` beside the rest of what was offered ends the connection: the peer
        asks but does not read.
        """
        if self._sealed or (not self._behind and self.offer(frame)) or self._sealed:
            return
        self.frames += 1
        self._queue(memoryview(frame))
        if self.backlog_bytes > self._max_backlog + self._kept_bytes:
            self._end()

    def seal(self) -> None:
        """Take nothing more; what is queued still goes out. For after a Close frame."""
        self._sealed = True
        self._turn(_refuse)

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
                sent = self._wire.send_nowait(view)
                self.backlog_bytes -= sent
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
        self._kept_bytes = 0
        self._flushed.set()
        self._flushed = trio.Event()
        if not self._sealed:
            self._turn(self._wire.send_nowait)
            for tell in tuple(self.on_writable):
                tell()

    def _queue(self, rest: memoryview) -> None:
        self._backlog.append(rest)
        self.backlog_bytes += len(rest)
        self._fall_behind()

    def _fall_behind(self) -> None:
        if not self._behind:
            self._behind = True
            self._turn(_refuse)
            self._wake.set()
            self._wake = trio.Event()

    def _turn(self, send: Send) -> None:
        if send is not self.send:
            self.send = send
            for tell in self.on_turn:
                tell()

    def _end(self) -> None:
        self._backlog.clear()
        self.backlog_bytes = 0
        self.seal()
        self.failed.set()
        self._wake.set()
        self._flushed.set()


def _refuse(buffer: bytes | memoryview) -> int:
    """Stands in for a ``send`` that would break the order of what is waiting."""
    raise BlockingIOError
