"""``picows_send FRAME_BYTES RATE SECONDS``: fan-out with picows on asyncio and its own transport.

A tick goes out by ``send_reuse_external_bytearray``, the form that its manual recommends against copying: the header
is written in front of the message, the same bytes for every client because a server's frames are not masked.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

from picows import WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from tests.benchmarks.peers.tick import end_after, payload

#: What picows wants to have free before the message.
ROOM = 14


class Subscriber(WSListener):
    """Keeps its transport among those that are told."""

    def __init__(self, transports: set[WSTransport]) -> None:
        self._transports = transports

    def on_ws_connected(self, transport: WSTransport) -> None:
        """See :class:`WSListener`."""
        self._transports.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """See :class:`WSListener`."""
        self._transports.discard(transport)


async def main(frame_bytes: int, rate: float) -> None:
    """Serve for ever."""
    transports: set[WSTransport] = set()

    def listen(request: WSUpgradeRequest) -> Subscriber:
        return Subscriber(transports)

    loop = asyncio.get_running_loop()
    server = await ws_create_server(listen, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    began = loop.time()
    for seq in itertools.count(1):
        await asyncio.sleep(began + seq / rate - loop.time())
        buffer = bytearray(ROOM) + payload(seq, frame_bytes)
        for transport in transports:
            transport.send_reuse_external_bytearray(WSMsgType.TEXT, buffer, ROOM)


if __name__ == "__main__":
    end_after(int(sys.argv[3]))
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
