"""``send_message FRAME_BYTES RATE SECONDS``: fan-out with trio-websocket, one ``send_message`` per client."""

from __future__ import annotations

import itertools
import sys
from functools import partial

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from tests.benchmarks.peers.tick import end_after, payload


async def tell(connection: WebSocketConnection, text: str) -> None:
    """Send to one; whoever has left hears nothing more."""
    try:
        await connection.send_message(text)
    except ConnectionClosed:
        return


async def main(frame_bytes: int, rate: float) -> None:
    """Serve for ever."""
    connections: set[WebSocketConnection] = set()

    async def handler(request: WebSocketRequest) -> None:
        connection = await request.accept()
        connections.add(connection)
        try:
            while True:
                await connection.get_message()
        except ConnectionClosed:
            connections.discard(connection)

    async with trio.open_nursery() as nursery:
        serve = partial(serve_websocket, handler, "127.0.0.1", 0, None)
        server = await nursery.start(serve)
        print(server.port, flush=True)
        began = trio.current_time()
        for seq in itertools.count(1):
            await trio.sleep_until(began + seq / rate)
            text = payload(seq, frame_bytes).decode()
            for connection in list(connections):
                await tell(connection, text)


if __name__ == "__main__":
    end_after(int(sys.argv[3]))
    trio.run(main, int(sys.argv[1]), float(sys.argv[2]))
