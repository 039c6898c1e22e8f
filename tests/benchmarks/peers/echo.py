"""``echo SECONDS``: a bare trio-websocket server that sends back every message; the limit of a closed loop."""

from __future__ import annotations

import sys
from functools import partial

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from tests.benchmarks.peers.tick import end_after


async def echo(request: WebSocketRequest) -> None:
    """Send back what one client sends."""
    connection = await request.accept()
    try:
        while True:
            await connection.send_message(await connection.get_message())
    except ConnectionClosed:
        return


async def main() -> None:
    """Serve for ever."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_websocket, echo, "127.0.0.1", 0, None))
        print(server.port, flush=True)


if __name__ == "__main__":
    end_after(int(sys.argv[1]))
    trio.run(main)
