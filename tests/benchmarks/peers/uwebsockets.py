"""``uwebsockets FRAME_BYTES RATE SECONDS``: fan-out with uWebSockets through socketify, one publish to a topic.

It runs the loop of uWebSockets alone. ``App.run`` would poll it from asyncio without ever waiting, which takes a whole
core whatever there is to do.
"""

from __future__ import annotations

import itertools
import sys
import time

from socketify import App, AppListenOptions, OpCode, WebSocket

from tests.benchmarks.peers.tick import end_after, payload

TOPIC = "tick"


def serve(frame_bytes: int, rate: float) -> None:
    """Serve for ever; the timer's milliseconds follow the clock, so that no rate is rounded."""
    app = App()

    def subscribe(ws: WebSocket) -> None:
        ws.subscribe(TOPIC)

    app.ws("/*", {"compression": 0, "idle_timeout": 0, "open": subscribe})
    app.listen(AppListenOptions(port=0, host="127.0.0.1"), lambda config: print(config.port, flush=True))
    seqs, began = itertools.count(1), time.perf_counter()
    timers: list[object] = []  # keeps the running one alive

    def tick(_: object) -> None:
        seq = next(seqs)
        app.publish(TOPIC, payload(seq, frame_bytes), OpCode.TEXT)
        due_ms = 1000 * (began + (seq + 1) / rate - time.perf_counter())
        timers[:] = [app.loop.uv_loop.create_timer(max(0, round(due_ms)), 0, tick, None)]

    timers.append(app.loop.uv_loop.create_timer(1, 0, tick, None))
    app.loop.uv_loop.run()


if __name__ == "__main__":
    end_after(int(sys.argv[3]))
    serve(int(sys.argv[1]), float(sys.argv[2]))
