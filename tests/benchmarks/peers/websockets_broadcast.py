"""``websockets_broadcast FRAME_BYTES RATE SECONDS``: fan-out with ``websockets.broadcast`` on asyncio."""

from __future__ import annotations

import asyncio
import itertools
import sys

from websockets.asyncio.server import ServerConnection, broadcast, serve

from tests.benchmarks.peers.tick import end_after, payload


async def main(frame_bytes: int, rate: float) -> None:
    """Serve for ever."""
    connections: set[ServerConnection] = set()

    async def handler(connection: ServerConnection) -> None:
        connections.add(connection)
        try:
            await connection.wait_closed()
        finally:
            connections.discard(connection)

    loop = asyncio.get_running_loop()
    async with serve(handler, "127.0.0.1", 0, compression=None, backlog=1024) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        began = loop.time()
        for seq in itertools.count(1):
            await asyncio.sleep(began + seq / rate - loop.time())
            broadcast(connections, payload(seq, frame_bytes).decode())


if __name__ == "__main__":
    end_after(int(sys.argv[3]))
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
