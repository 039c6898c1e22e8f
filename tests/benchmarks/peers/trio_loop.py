"""``trio_loop FRAME_BYTES RATE SECONDS``: the limit of a fan-out on Trio, a bare loop that sleeps between ticks."""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Callable

import trio

from tests.benchmarks.peers.send_loop import send_all
from tests.benchmarks.peers.tick import accept, end_after, tick_frame


async def welcome(listener: socket.socket, sockets: list[socket.socket], sends: list[Callable[[bytes], int]]) -> None:
    """Accept subscribers for ever."""
    while True:
        await trio.lowlevel.wait_readable(listener)
        if (sock := accept(listener)) is not None:
            sockets.append(sock)
            sends.append(sock.send)


async def serve(frame_bytes: int, rate: float) -> None:
    """Send each subscriber a frame ``rate`` times a second, until the first of them leaves."""
    sockets: list[socket.socket] = []
    sends: list[Callable[[bytes], int]] = []
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(welcome, listener, sockets, sends)
            began = trio.current_time()
            for seq in itertools.count(1):
                await trio.sleep_until(began + seq / rate)
                try:
                    send_all(sends, tick_frame(seq, frame_bytes))
                except (BrokenPipeError, ConnectionResetError):  # the subscribers have what they came for
                    nursery.cancel_scope.cancel()
                    return


if __name__ == "__main__":
    end_after(int(sys.argv[3]))
    trio.run(serve, int(sys.argv[1]), float(sys.argv[2]))
