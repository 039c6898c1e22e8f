"""Orders against a tape: what a batch costs beside entries that rest, and what an entry costs.

Run from the project: ``PYTHONPATH=. python FILE``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count, islice

from feeds.records import BUY, SELL, Batch
from feeds.simulate import SimulatedFeed, SimulationOptions
from feeds.tape import Tape
from feeds.venue import Entry
from tests.benchmarks.report import Row, print_table
from ticker.history import History, HistoryOptions

SYMBOLS = tuple(f"S{i}/USD" for i in range(100))
WARM_UP = 100
BATCHES = 500
ENTRIES = 100_000


class Market:
    """A simulated market of 100 pairs, one batch every 10 ms of its time, and a tape beside it."""

    def __init__(self, rate: float) -> None:
        feed = SimulatedFeed(SimulationOptions(symbols=SYMBOLS, rate=rate, start_ns=0))
        self.history = History(feed.instruments, HistoryOptions())
        self.tape = Tape(self.history)
        self.batches = feed.windows()
        self.keys = count(1)
        self.play(WARM_UP)

    def play(self, batches: int) -> tuple[float, float]:
        """Return the seconds of CPU time that the tape and the history take for a batch, on average."""
        taken = [
            (self._seconds(self._apply, batch), self._seconds(self.tape.moved, batch))
            for batch in islice(self.batches, batches)
        ]
        history, tape = zip(*taken, strict=True)
        return sum(tape) / batches, sum(history) / batches

    def _apply(self, batch: Batch) -> None:
        self.history.apply(batch, lambda event: None)

    @staticmethod
    def _seconds(work: Callable[[Batch], object], batch: Batch) -> float:
        began = time.process_time()
        work(batch)
        return time.process_time() - began

    def enter(self, distance: float) -> None:
        """Enter one entry, so far from the touch (a share of the price), on either side of every instrument in turn."""
        key = next(self.keys)
        instrument, side = key % len(SYMBOLS), BUY if key % 2 else SELL
        touch = int((self.history.bid_px if side == BUY else self.history.ask_px)[instrument])
        price = round(touch * (1 - side * distance)) - side * (key // 200 % 500)
        self.tape.enter(Entry(key=key, owner=1, instrument=instrument, side=side, price=price, qty=1000))


def rows() -> Iterator[Row]:
    """Measure: 100,000 entries far away, then a thousand near the touch, then entering and cancelling."""
    for rate in (500.0, 100_000.0):
        market = Market(rate)
        bare, _ = market.play(BATCHES)
        began = time.process_time()
        for _ in range(ENTRIES):
            market.enter(0.3)
        each = (time.process_time() - began) / ENTRIES
        ours, history = market.play(BATCHES)
        yield Row(
            what=f"a batch of {rate / 100:g} ticks, {ENTRIES:,} entries resting far from the market",
            figure=f"{ours * 1e6:.1f} µs; 500 batches/s take {ours * 500:.2%} of a core",
            compared_with=f"no entries: {bare * 1e6:.1f} µs; the history takes the batch in: {history * 1e6:.0f} µs",
            target="at most a third of that",
            reached=ours < history / 3,
        )
    yield Row(what="enter, when it rests", figure=f"{each * 1e6:.1f} µs")
    began = time.process_time()
    for key in range(1, ENTRIES + 1):
        market.tape.cancel(key)
    yield Row(what="cancel", figure=f"{(time.process_time() - began) / ENTRIES * 1e6:.1f} µs")
    for _ in range(10_000):
        market.enter(0.0)
    ours, history = market.play(BATCHES)
    yield Row(
        what="a batch of 1000 ticks, 10,000 entries at the touches and up to 500 ticks behind",
        figure=f"{ours * 1e6:.0f} µs",
        compared_with=f"the history takes the batch in: {history * 1e6:.0f} µs",
    )


if __name__ == "__main__":
    print_table("feeds.tape", rows())
