"""The one ordered place through which every byte of a connection leaves.

Replies, control frames and the broadcaster's prebuilt frames all come here, each a whole frame, so no frame ever
lands inside another. There are two ways in:

* :meth:`Outbox.offer`: take it now or not at all. For data that will be newer later: the caller that is refused keeps
  nothing and asks again when the socket is writable ("choose the data at the last moment").
* :meth:`Outbox.push`: it must arrive, behind what is already there. For replies and control frames. Bounded.

A broadcast to many goes past both and writes to :attr:`Outbox.sink`, or to the file of that number; it is the socket
while nothing waits.
All are sync: the producer never waits for a consumer. :meth:`Outbox.run` is the task that waits for the socket.
Because a frame once begun belongs to the outbox, cancelling a caller never leaves half a frame on the wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import trio


class Sink(Protocol):
    """Takes bytes as a non-blocking socket does."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Write what fits now and return how much; :exc:`BlockingIOError` if nothing does."""

    def fileno(self) -> int:
        """Return the number of its file; -1 if it has none."""


class Writable(Protocol):
    """What an outbox writes to: :class:`ticker.transport.Transport`, or a fake with the same manners."""

    @property
    def sink(self) -> Sink:
        """Where bytes go, always the same one."""

    def reserve(self, size: int) -> None:
        """Make room for buffers of this size, where that is possible."""

    async def wait_writable(self) -> None:
        """Wait until the sink would take something."""


class _Refusing:
    """Stands in for a socket where writing to it would break the order of what is waiting."""

    def send(self, data: bytes | memoryview, /) -> int:
        raise BlockingIOError

    def fileno(self) -> int:
        return -1


REFUSING: Final[Sink] = _Refusing()


class Outbox:
    """Ordered output of one connection.

    Attributes:
        sink: Takes a buffer of whole frames at once. While nothing waits it is the socket itself, so that a broadcast
            costs no more than its ``send``; else one that takes nothing. Whoever writes to it reports anything but a
            whole write to :meth:`keep` or :meth:`refused`.
        on_turn: Called, each, whenever ``sink`` has been replaced.
        on_writable: Called, each, by :meth:`run` when the socket has caught up; those before may have filled it again.
        failed: Whether the connection can take nothing more: the peer is gone or overflowed its bound.
        on_failure: Called when that has happened; for whoever owns the connection.
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
        self.sink = wire.sink
        self.on_turn: list[Callable[[], None]] = []
        self.on_writable: list[Callable[[], None]] = []
        self.on_failure: Callable[[], None] = _nothing
        self.failed = False
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
            sent = self.sink.send(buffer)
        except OSError as error:
            self.refused(error)
            return False
        self.frames += 1
        if sent != len(buffer):
            self.keep(buffer, sent)
        return True

    def keep(self, buffer: bytes, sent: int) -> None:
        """Take over the rest of a buffer of which ``sink`` took the first ``sent`` bytes."""
        self._wire.reserve(len(buffer))
        self._kept_bytes = len(buffer) - sent
        self._queue(memoryview(buffer)[sent:])

    def refused(self, error: OSError) -> None:
        """Take note of what writing to ``sink`` raised."""
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
        self._turn(REFUSING)

    async def wait_flushed(self) -> None:
        """Wait until everything taken so far is with the kernel, or the connection has ended."""
        while self._backlog and not self.failed:
            await self._flushed.wait()

    async def run(self) -> None:
        """Write what the kernel refused, whenever it takes bytes again. Returns when the connection has ended."""
        while not self.failed:
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
                sent = self._wire.sink.send(view)
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
            self._turn(self._wire.sink)
            for tell in tuple(self.on_writable):
                tell()

    def _queue(self, rest: memoryview) -> None:
        self._backlog.append(rest)
        self.backlog_bytes += len(rest)
        self._fall_behind()

    def _fall_behind(self) -> None:
        if not self._behind:
            self._behind = True
            self._turn(REFUSING)
            self._wake.set()
            self._wake = trio.Event()

    def _turn(self, sink: Sink) -> None:
        if sink is not self.sink:
            self.sink = sink
            for tell in self.on_turn:
                tell()

    def _end(self) -> None:
        self._backlog.clear()
        self.backlog_bytes = 0
        self.seal()
        self.failed = True
        self.on_failure()
        self._wake.set()
        self._flushed.set()


def _nothing() -> None:
    """What happens before anybody cares."""
