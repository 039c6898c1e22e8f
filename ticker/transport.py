"""Sockets as this server needs them: accepted by Trio, written without waiting.

Trio's own ``SocketStream`` has no public way to send what fits and come back, and fan-out is nothing else. So the
listener here hands out :class:`Transport`, a :class:`trio.abc.Stream` over a standard non-blocking socket, whose
``send`` can be had as :attr:`Transport.sink`. It knows bytes; it must not know HTTP, WebSocket or the market.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys

import trio

from ticker.errors import ConfigError

#: A send is given up on when nothing was acknowledged for this long, so a half-open peer is noticed (RFC 5482).
USER_TIMEOUT_MS = 10_000
#: Idle peers are probed after 5 s, thrice, 3 s apart: a half-open one is gone within 14 s.
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3}
#: What a never-reading client can hide in the kernel. Without it Linux grows the buffer to 4 MiB of stale prices.
SEND_BUFFER_BYTES = 64 * 1024
MAX_SEND_BUFFER_BYTES = 4 * 1024 * 1024
#: Enough that a burst of thousands of connects is not answered with resets.
BACKLOG = 4096
RECEIVE_BYTES = 16 * 1024
LINGER_BYTES = 1024 * 1024


class Transport(trio.abc.Stream):
    """A connected byte stream that can also be written to without waiting.

    Attributes:
        sink: The socket, for its ``send``, the innermost call of the fan-out: the kernel takes what fits now. Once the
            transport is closed it raises; no other connection's file can be behind it. Of its file number that is not
            true: whoever keeps that forgets it before the transport is closed (:attr:`ticker.subscriber.Group.files`).
        peer: The address of the other end, read once ("127.0.0.1"); empty for an unnamed socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = self.sink = sock
        self.peer = _peer_host(sock)
        self._send_buffer = SEND_BUFFER_BYTES
        self._closed = False
        self._drained = False  # the last read took all there was: to try again before the next wait costs 5 µs

    def reserve(self, size: int) -> None:
        """Let the kernel hold about two buffers of ``size`` bytes, as far as the system allows.

        A large frame that does not fit costs a wake-up per part; one that fits costs a single call.
        """
        if 2 * size > self._send_buffer:
            self._send_buffer = 2 * size
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, min(self._send_buffer, MAX_SEND_BUFFER_BYTES))

    async def wait_writable(self) -> None:
        """Wait until the kernel takes bytes again, or the peer is gone.

        Raises:
            trio.ClosedResourceError: The transport was closed meanwhile.
        """
        if self._closed:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_writable(self._socket)

    async def wait_send_all_might_not_block(self) -> None:
        """See :meth:`trio.abc.SendStream.wait_send_all_might_not_block`."""
        await self.wait_writable()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything; a cancel leaves an unknown part of it sent.

        Raises:
            trio.BrokenResourceError: The peer is gone.
            trio.ClosedResourceError: The transport was closed.
        """
        view = memoryview(data)
        await trio.lowlevel.checkpoint()
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                await self.wait_writable()
            except OSError as error:
                raise self._translated(error) from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next bytes, ``b""`` at the end.

        Raises:
            trio.BrokenResourceError: The peer reset the connection.
            trio.ClosedResourceError: The transport was closed.
        """
        most = max_bytes or RECEIVE_BYTES
        if self._drained and not self._closed:
            await trio.lowlevel.wait_readable(self._socket)
        else:
            await trio.lowlevel.checkpoint()
        while not self._closed:
            try:
                data = self._socket.recv(most)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                raise self._translated(error) from error
            else:
                self._drained = len(data) < most
                return data
        raise trio.ClosedResourceError

    def _translated(self, error: OSError) -> Exception:
        return trio.ClosedResourceError() if self._closed else trio.BrokenResourceError(str(error))

    def close(self) -> None:
        """Close at once; tasks that wait on the socket get :exc:`trio.ClosedResourceError`."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def finish(self) -> None:
        """Tell the peer that nothing follows, and read until it leaves too.

        Closing with unread input makes the kernel send a reset, which can overtake our last frame. The caller sets
        the deadline; what a flooding peer sends beyond :data:`LINGER_BYTES` is not waited for.
        """
        if self._closed:
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
            for _ in range(LINGER_BYTES // RECEIVE_BYTES):
                if not await self.receive_some():
                    return
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it has left already

    async def aclose(self) -> None:
        """Close at once; checkpoints."""
        self.close()
        await trio.lowlevel.checkpoint()


class Listener(trio.abc.Listener[Transport]):
    """Accepts TCP connections as :class:`Transport`; give it to :func:`trio.serve_listeners`.

    Attributes:
        address: (host, port) really bound.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.address: tuple[str, int] = sock.getsockname()[:2]

    async def accept(self) -> Transport:
        """Wait for a connection and return it, tuned for streaming.

        Raises:
            OSError: Accepting failed; ``trio.serve_listeners`` sleeps and tries again where capacity ran out.
            trio.ClosedResourceError: The listener was closed.
        """
        await trio.lowlevel.checkpoint()
        while self._socket.fileno() != -1:
            try:
                sock, _ = self._socket.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError as error:
                if error.errno not in _OF_ONE_CONNECTION:
                    raise
            else:
                with contextlib.suppress(OSError):  # it may be gone already; the first read says so
                    _tune(sock)
                return Transport(sock)
        raise trio.ClosedResourceError

    async def aclose(self) -> None:
        """Stop listening."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.checkpoint()


#: Errors of ``accept`` that concern one connection, not the listener (accept(2), "Error handling"; EPERM: a firewall).
_OF_ONE_CONNECTION = {
    getattr(errno, name)
    for name in (
        "ECONNABORTED", "EPROTO", "ENETDOWN", "EHOSTDOWN", "EHOSTUNREACH", "EPERM", "ENETUNREACH", "ENOPROTOOPT",
        "ENONET", "EOPNOTSUPP",
    )
    if hasattr(errno, name)
}  # fmt: skip


def open_listener(host: str, port: int) -> Listener:
    """Bind and listen; port 0 picks a free one.

    Raises:
        ConfigError: The address cannot be had; the text says what to do.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(f"cannot resolve --host {host!r}: {error.strerror or error}") from None
    try:
        if sys.platform != "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            text = f"port {port} on {host} is in use: stop what runs there, or choose another with --port (0: any)"
        else:
            text = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise ConfigError(text) from None
    sock.setblocking(False)
    return Listener(sock)


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (*KEEPALIVE.items(), ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS)):
        if hasattr(socket, name):  # these are Linux's; other systems keep their defaults
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _peer_host(sock: socket.socket) -> str:
    try:
        name = sock.getpeername()
    except OSError:  # the peer has already gone; the first read says so
        return ""
    return str(name[0]) if isinstance(name, tuple) else ""
