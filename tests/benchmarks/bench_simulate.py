"""What a simulated market costs, in CPU time of its process. Run from the project: ``PYTHONPATH=. python FILE``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count, islice
from statistics import median

import numpy as np
import trio

from feeds.feed import Feed
from feeds.instruments import Instruments
from feeds.records import Batch, Event
from feeds.simulate import SimulatedFeed, SimulationOptions
from tests.benchmarks.report import Row, print_table

REPEATS = 3
WARM_UP = 31  # windows: the opening, first blocks of random numbers, and the snapshots of all books


def feed(symbols: int, rate: float, model: str = "gbm") -> SimulatedFeed:
    """Return a feed of that many invented pairs."""
    names = tuple(f"S{i}/USD" for i in range(symbols))
    return SimulatedFeed(SimulationOptions(symbols=names, rate=rate, model=model, start_ns=0))


def ticks_per_second(symbols: int, rate: float, model: str, windows: int) -> float:
    """Return trades and quotes per second of CPU time, books included, without pacing."""
    batches = feed(symbols, rate, model).windows()
    for _ in islice(batches, WARM_UP):
        pass
    began = time.process_time()
    ticks = sum(len(batch.trades) + len(batch.quotes) for batch in islice(batches, windows))
    return ticks / (time.process_time() - began)


def draws_per_second(ticks: int) -> float:
    """Return how many ticks' worth of random numbers numpy draws in a second: three uniforms, three normals."""
    generator = np.random.default_rng(1)
    began = time.process_time()
    for _ in range(ticks // 10_000):
        generator.random(30_000)
        generator.standard_normal(30_000)
    return ticks / (time.process_time() - began)


class Idle:
    """Sends an empty window when it is due, as often as the simulated feed: what trio takes by itself."""

    name = "idle"
    mode = "sim"
    instruments = Instruments(())

    async def run(self, out: trio.abc.SendChannel[Event]) -> None:
        """Send every 10 ms; endless."""
        began = trio.current_time()
        for k in count():
            await trio.sleep_until(began + k * 0.01)
            await out.send(Batch(ts=k))


def core_share(source: Feed, seconds: float = 3.0) -> float:
    """Return the share of a core that a feed takes which is paced by the clock and read at once."""
    used = 0.0

    async def read(events: trio.MemoryReceiveChannel[Event]) -> None:
        nonlocal used
        for _ in range(WARM_UP):
            await events.receive()
        began = time.process_time()
        with trio.move_on_after(seconds):
            while True:
                await events.receive()
        used = time.process_time() - began

    async def main() -> None:
        send, receive = trio.open_memory_channel[Event](1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, send)
            await read(receive)
            nursery.cancel_scope.cancel()

    trio.run(main)
    return used / seconds


def rows() -> Iterator[Row]:
    """Measure: throughput without pacing, then the load of a paced feed; each the median of three."""
    limit = median(draws_per_second(1_000_000) for _ in range(REPEATS))
    for symbols, rate, model, windows in (
        (1_000, 1_000_000.0, "gbm", 100),
        (1_000, 1_000_000.0, "jump", 100),
        (10_000, 1_000_000.0, "gbm", 50),
        (6, 1_000_000.0, "gbm", 100),
    ):
        reached = median(ticks_per_second(symbols, rate, model, windows) for _ in range(REPEATS))
        yield Row(
            what=f"simulated feed, {model}, {symbols:,} symbols at {rate:,.0f} ticks/s of market time, with books",
            figure=f"{reached:,.0f} ticks/s of one core",
            compared_with=f"numpy drawing three uniforms and three normals a tick: {limit:,.0f}/s",
            target="1,000,000" if symbols == 1_000 else "",
            reached=reached >= 1_000_000 if symbols == 1_000 else None,
        )
    bare = median(core_share(Idle()) for _ in range(REPEATS))
    for symbols, rate, most in ((1_000, 100_000.0, 0.15), (6, 500.0, 0.03)):
        share = median(core_share(feed(symbols, rate)) for _ in range(REPEATS))
        yield Row(
            what=f"simulated feed paced by the clock, {symbols:,} symbols, {rate:,.0f} ticks/s",
            figure=f"{share:.1%} of a core",
            compared_with=f"trio sending an empty window as often: {bare:.1%}",
            target=f"less than {most:.0%} beyond that",
            reached=share - bare < most,
        )


if __name__ == "__main__":
    print_table("feeds.simulate", rows())
