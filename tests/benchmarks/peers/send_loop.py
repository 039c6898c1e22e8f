"""``send_loop FRAME_BYTES RATE SECONDS``: the limit of a fan-out in Python, a bare loop over ``socket.send``."""

from __future__ import annotations

import itertools
import select
import socket
import sys
import time
from collections.abc import Callable

from tests.benchmarks.peers.tick import accept, end_after, tick_frame


def send_all(sends: list[Callable[[bytes], int]], buffer: bytes) -> None:
    """Send to everybody; who takes nothing at the moment misses this one."""
    for send in sends:
        try:
            send(buffer)
        except BlockingIOError:
            pass


def serve(frame_bytes: int, rate: float) -> None:
    """Accept subscribers and send each a frame ``rate`` times a second, until the first of them leaves."""
    sockets, sends = [], []
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        began = time.perf_counter()
        for seq in itertools.count(1):
            while (wait := began + seq / rate - time.perf_counter()) > 0:
                if select.select([listener], [], [], wait)[0] and (sock := accept(listener)) is not None:
                    sockets.append(sock)
                    sends.append(sock.send)
            send_all(sends, tick_frame(seq, frame_bytes))


if __name__ == "__main__":
    end_after(int(sys.argv[3]))
    try:
        serve(int(sys.argv[1]), float(sys.argv[2]))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the subscribers have what they came for
