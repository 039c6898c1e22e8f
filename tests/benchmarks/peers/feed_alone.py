"""``feed_alone SYMBOLS RATE SECONDS``: the simulated feed paced by the clock, read by nobody who does anything."""

from __future__ import annotations

import sys

import trio

from feeds.records import Marker
from feeds.simulate import SimulatedFeed, SimulationOptions
from tests.benchmarks.peers.tick import end_after
from ticker.bus import Bus


async def pass_over(marker: Marker) -> None:
    """Do nothing about a marker."""


async def main(symbols: str, rate: float) -> None:
    """Run the feed into the bus for ever; prints 0 where servers print their port."""
    feed = SimulatedFeed(SimulationOptions(symbols=tuple(symbols.split(",")), rate=rate))
    print(0, flush=True)
    await feed.run(Bus(lambda batch: None, pass_over))


if __name__ == "__main__":
    end_after(int(sys.argv[3]))
    trio.run(main, sys.argv[1], float(sys.argv[2]))
