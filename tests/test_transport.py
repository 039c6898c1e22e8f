from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from ticker.errors import ConfigError
from ticker.transport import (
    KEEPALIVE,
    MAX_SEND_BUFFER_BYTES,
    SEND_BUFFER_BYTES,
    USER_TIMEOUT_MS,
    Listener,
    Transport,
    open_listener,
)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Transport, socket.socket]]:
    theirs, ours = socket.socketpair()
    transport = Transport(theirs)
    with ours:
        yield transport, ours
        transport.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    sock.close()


def fill(transport: Transport) -> None:
    """Write until the kernel takes no more."""
    with contextlib.suppress(BlockingIOError):
        while True:
            transport.sink.send(bytes(1 << 20))


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return listener.accept()[0], ours


async def test_bytes_go_both_ways(pair: tuple[Transport, socket.socket]) -> None:
    transport, ours = pair
    await transport.send_all(b"out")
    ours.sendall(b"back")
    assert ours.recv(10) == b"out"
    assert await transport.receive_some() == b"back"
    ours.sendall(b"xy")
    assert await transport.receive_some(1) == b"x"
    ours.shutdown(socket.SHUT_WR)
    assert await transport.receive_some() == b"y"
    assert await transport.receive_some() == b""


async def test_the_sink_takes_what_fits_and_then_nothing(pair: tuple[Transport, socket.socket]) -> None:
    transport, _ = pair
    assert 0 < transport.sink.send(bytes(1 << 24)) < 1 << 24
    fill(transport)
    with pytest.raises(BlockingIOError):
        transport.sink.send(b"x")


async def test_a_closed_sink_raises_although_its_file_number_is_another_connections_by_now() -> None:
    theirs, ours = socket.socketpair()
    transport, number = Transport(theirs), theirs.fileno()
    sink = transport.sink
    transport.close()
    others, reader = socket.socketpair()
    if reader.fileno() == number:
        others, reader = reader, others
    elif others.fileno() != number:
        with others:
            others = socket.socket(fileno=os.dup2(others.fileno(), number))
    with others, reader, ours:
        reader.setblocking(False)
        with pytest.raises(OSError, match="Bad file descriptor"):
            sink.send(b"not for you")
        with pytest.raises(BlockingIOError):
            reader.recv(10)


async def test_send_all_waits_until_everything_is_out(
    pair: tuple[Transport, socket.socket], autojump_clock: trio.abc.Clock
) -> None:
    transport, ours = pair
    data = bytes(range(256)) * 20_000
    ours.setblocking(False)
    received = bytearray()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send_all, data)
            while len(received) < len(data):
                await trio.lowlevel.wait_readable(ours)
                received += ours.recv(1 << 20)
    assert received == data


async def test_closing_wakes_who_reads_and_who_writes(pair: tuple[Transport, socket.socket]) -> None:
    transport, _ = pair
    fill(transport)

    async def expect_closed(wait: str) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await getattr(transport, wait)()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, "receive_some")
            nursery.start_soon(expect_closed, "wait_writable")
            await trio.testing.wait_all_tasks_blocked()
            transport.close()
    for wait in ("receive_some", "wait_writable"):
        await expect_closed(wait)
    with pytest.raises(trio.ClosedResourceError):
        await transport.send_all(b"x")
    transport.close()  # twice is no error
    await transport.aclose()
    await transport.finish()


async def test_a_reset_is_a_broken_resource() -> None:
    theirs, ours = tcp_pair()
    transport = Transport(theirs)
    reset(ours)
    with pytest.raises(trio.BrokenResourceError):
        await transport.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await transport.send_all(b"x")
    await transport.finish()
    transport.close()


async def test_the_peer_is_named_once_and_need_not_be_there_any_more() -> None:
    theirs, ours = tcp_pair()
    assert Transport(theirs).peer == "127.0.0.1"
    reset(ours)
    gone = Transport(theirs)
    assert gone.peer in ("", "127.0.0.1")
    gone.close()
    with socket.socket() as unconnected:
        assert Transport(unconnected).peer == ""


async def test_finish_waits_until_the_peer_has_left_too(pair: tuple[Transport, socket.socket]) -> None:
    transport, ours = pair
    await transport.send_all(b"last words")
    ours.sendall(b"unread input, which would make the kernel send a reset")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.finish)
        await trio.testing.wait_all_tasks_blocked()
        assert (ours.recv(100), ours.recv(100)) == (b"last words", b"")
        assert len(nursery.child_tasks) == 1
        ours.close()


async def test_finish_does_not_read_a_flood_for_ever(
    pair: tuple[Transport, socket.socket], autojump_clock: trio.abc.Clock
) -> None:
    transport, ours = pair
    ours.setblocking(False)

    async def flood() -> None:
        while True:
            await trio.lowlevel.wait_writable(ours)
            ours.send(bytes(1 << 16))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        with trio.fail_after(5):
            await transport.finish()
        nursery.cancel_scope.cancel()


async def test_reserve_makes_room_for_two_frames_within_bounds(pair: tuple[Transport, socket.socket]) -> None:
    class Recorded(socket.socket):
        sizes: list[int] = []  # noqa: RUF012

        def setsockopt(self, *args: int) -> None:  # type: ignore[override]
            self.sizes.append(args[2])

    with Recorded() as sock:
        transport = Transport(sock)
        for size in (100, SEND_BUFFER_BYTES // 2, 100_000, 100_000, 50_000, 1 << 30):
            transport.reserve(size)
        assert Recorded.sizes == [200_000, MAX_SEND_BUFFER_BYTES]


# Listening


@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux")
async def test_accepted_sockets_are_tuned() -> None:
    listener = open_listener("127.0.0.1", 0)
    with socket.create_connection(listener.address):
        transport = await listener.accept()
        sock = transport._socket

        def option(name: str, level: int = socket.IPPROTO_TCP) -> int:
            return sock.getsockopt(level, getattr(socket, name))

        assert option("TCP_NODELAY")
        assert option("SO_KEEPALIVE", socket.SOL_SOCKET)
        assert option("TCP_USER_TIMEOUT") == USER_TIMEOUT_MS <= 10_000
        assert {name: option(name) for name in KEEPALIVE} == KEEPALIVE
        idle, interval, count = KEEPALIVE.values()
        assert idle + interval * count <= 15  # a half-open peer is gone by then
        assert option("SO_SNDBUF", socket.SOL_SOCKET) == 2 * SEND_BUFFER_BYTES  # the kernel doubles it
        transport.close()
    await listener.aclose()


async def test_a_closed_listener_accepts_nothing_more() -> None:
    listener = open_listener("127.0.0.1", 0)

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed)
            await trio.testing.wait_all_tasks_blocked()
            await listener.aclose()
        await expect_closed()
    await listener.aclose()


class FailingSocket:
    """A listening socket whose ``accept`` fails in a given way before it works."""

    def __init__(self, sock: socket.socket, *errors: int) -> None:
        self._sock = sock
        self._errors = list(errors)

    def accept(self) -> tuple[socket.socket, object]:
        if self._errors:
            number = self._errors.pop(0)
            raise OSError(number, errno.errorcode[number])
        return self._sock.accept()

    def getsockname(self) -> object:
        return self._sock.getsockname()

    def fileno(self) -> int:
        return self._sock.fileno()


def test_failing_socket_fails_as_told_and_then_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.create_connection(sock.getsockname()):
        failing = FailingSocket(sock, errno.EPERM)
        with pytest.raises(PermissionError):
            failing.accept()
        failing.accept()[0].close()
        assert (failing.fileno(), failing.getsockname()) == (sock.fileno(), sock.getsockname())


#: accept(2), "Error handling": treat these like EAGAIN. Trio's own listener does. EPERM: a firewall rule says no.
OF_ONE_CONNECTION = [
    "ECONNABORTED", "EPROTO", "ENETDOWN", "EHOSTDOWN", "EHOSTUNREACH", "EPERM", "ENETUNREACH", "ENOPROTOOPT", "ENONET",
    "EOPNOTSUPP",
]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in OF_ONE_CONNECTION if hasattr(errno, name)])
async def test_an_error_of_one_connection_does_not_end_the_listener(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = Listener(FailingSocket(sock, getattr(errno, name)))  # type: ignore[arg-type]
        with socket.create_connection(sock.getsockname()):
            (await listener.accept()).close()


async def test_running_out_of_files_is_for_trio_to_handle() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = Listener(FailingSocket(sock, errno.EMFILE))  # type: ignore[arg-type]
        with pytest.raises(OSError, match="EMFILE"):
            await listener.accept()


async def test_an_address_that_cannot_be_had_says_what_to_do() -> None:
    listener = open_listener("127.0.0.1", 0)
    port = listener.address[1]
    with pytest.raises(ConfigError, match=rf"port {port} on 127\.0\.0\.1 is in use.*--port"):
        open_listener("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:"):
        open_listener("192.0.2.1", 0)
    await listener.aclose()
