"""Fan-out: what one delivered frame costs the server, beside bare loops over ``send`` and other libraries.

One frame per tick goes to every subscriber. All contenders send frames of one size, built at each tick; they take
turns in an order that is drawn anew each time. Each figure is the median of its runs, each ratio that of the rounds.
The subscribers never sleep while they count, so that no contender pays for waking them; what a core leaves to the
kernel's own thread is counted, too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from statistics import median
from typing import Final

import msgspec

from tests.benchmarks.audience import Audience, Load
from tests.benchmarks.contenders import (
    BROADCAST,
    C_LOOP,
    LIMITS,
    PICOWS,
    TRIO_LOOP,
    WITHOUT_RING,
    Contender,
    found,
    ours,
)
from tests.benchmarks.processes import Bench, result_of
from tests.benchmarks.report import Row

#: Subscribers and ticks per second; 2,000 at 100/s would be more than any contender's core. A quick run has the middle.
SIZES: Final = ((500, 100), (100, 100), (2_000, 25))
SMALL: Final = 150
#: More than elsewhere: what is asked for here is smaller than what one run differs from the next.
ROUNDS: Final = 7
#: Against the better of the two bare loops at 500 subscribers.
MOST_OF_BARE: Final = 1.35
#: Against the C loop. At 100 subscribers what an event costs before its first frame is most of what shows.
MOST_OF_C: Final = {500: 1.25, 2_000: 1.25}
MOST_OF_PICOWS: Final = 1.05
QUICK: Final = (*LIMITS, BROADCAST, PICOWS)


class Run(msgspec.Struct, frozen=True):
    """One contender's turn.

    Attributes:
        load: What its subscribers got.
        rate: Ticks per second that it was asked for.
        memory: Resident memory per subscriber, bytes.
    """

    load: Load
    rate: float
    memory: float


class Figure(msgspec.Struct, frozen=True):
    """A contender's medians.

    Attributes:
        cpu_us: CPU time of the server per delivered frame, µs.
        ratio: Ours by theirs: the median over the rounds, because both sides of a round saw the same machine.
        p50_ms: Median age of a frame on arrival.
        p99_ms: The 99th percentile.
        memory: Resident memory per subscriber, bytes.
        frame_bytes: Mean size of a frame.
        delivered: Frames delivered of those that should have been.
        rate: Ticks per second that it was asked for.
    """

    cpu_us: float
    ratio: float
    p50_ms: float
    p99_ms: float
    memory: float
    frame_bytes: int
    delivered: float
    rate: float

    def __str__(self) -> str:
        text = f"{self.cpu_us:.2f} µs/frame, p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms, "
        text += f"{self.memory / 1024:.1f} KiB/subscriber"
        return text if self.delivered > 0.98 else f"{text}, only {self.delivered:.0%} delivered"


def figure(runs: list[Run], mine: list[Run], subscribers: int) -> Figure:
    """Return the medians of a contender's runs; ``mine`` are ours of the same rounds."""
    loads = [run.load for run in runs]
    return Figure(
        median(load.cpu_us for load in loads),
        median(our.load.cpu_us / their.load.cpu_us for our, their in zip(mine, runs, strict=True)),
        median(load.p50_ms for load in loads),
        median(load.p99_ms for load in loads),
        median(run.memory for run in runs),
        frame_bytes(loads[0]),
        median(load.frames / load.secs for load in loads) / (subscribers * runs[0].rate),
        runs[0].rate,
    )


def frame_bytes(load: Load) -> int:
    """Return the mean size of a frame whose payload needs a header of four bytes."""
    return round(load.bytes / load.frames) + 4


def run(bench: Bench, contender: Contender, size: int, audience: Audience, rate: float) -> Run:
    """Give a contender its turn, at the rate that it holds."""
    held = contender.rate(audience.number, rate)
    with contender.start(size, held) as server:
        before = server.rss_bytes()
        with bench.loading(server, audience, 2.0) as load:
            memory = (server.rss_bytes() - before) / audience.number
            return Run(result_of(load), held, memory)


def measure(bench: Bench, what: str, subscribers: int, rate: int, peers: dict[str, Contender]) -> dict[str, Figure]:
    """Let us ("ours") and the peers take turns; the peers send frames of the size of ours, which go first once."""
    contenders = {"ours": ours(what)} | peers
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    size, order, chance = SMALL, list(contenders), random.Random(subscribers)
    for _ in range(1 if bench.quick else ROUNDS):
        for name in order:
            audience = Audience(subscribers, contenders[name].messages, wakeful=True)
            runs[name].append(run(bench, contenders[name], size, audience, rate))
            size = frame_bytes(runs["ours"][-1].load)
        chance.shuffle(order)
    return {name: figure(of_name, runs["ours"], subscribers) for name, of_name in runs.items()}


def most(name: str, subscribers: int) -> float | None:
    """Return what the ratio to a peer may be at most, None where there is no goal."""
    if name == C_LOOP:
        return MOST_OF_C.get(subscribers)
    if name in (*LIMITS, TRIO_LOOP, WITHOUT_RING):
        return None
    return MOST_OF_PICOWS if name == PICOWS else 1.0


def bare_loops(title: str, figures: dict[str, Figure]) -> Row:
    """Return the row of our ratios to both bare loops, of which the lower counts."""
    ratios = {name: figures[name].ratio for name in LIMITS}
    return Row(
        what=title,
        figure=" and ".join(f"{ratio:.2f} x the {name}" for name, ratio in ratios.items()),
        target=f"the lower at most {MOST_OF_BARE} x",
        reached=min(ratios.values()) <= MOST_OF_BARE,
    )


def compare(
    title: str, figures: dict[str, Figure], peers: dict[str, Contender], goals: dict[str, float | None]
) -> Iterator[Row]:
    """Yield a row for each peer, with the goal of the ratio to it."""
    mine = figures["ours"]
    for name, peer in peers.items():
        theirs, bound = figures[name], goals.get(name)
        asked = "" if theirs.rate == mine.rate else f" at {theirs.rate:g}/s, which its core holds"
        note = f" ({peer.note})" if peer.note else ""
        yield Row(
            what=f"{title}, {mine.frame_bytes}-byte frames",
            figure=str(mine),
            compared_with=f"{name}{asked}{note}: {theirs} (ours is {theirs.ratio:.2f} x)",
            target="" if bound is None else f"at most {bound} x that",
            reached=None if bound is None else theirs.ratio <= bound,
        )


def rows(bench: Bench) -> Iterator[Row]:
    """Measure prebuilt frames at every size, then the ticker channel beside the bare loops."""
    all_peers = found(bench)
    peers = {name: peer for name, peer in all_peers.items() if isinstance(peer, Contender)}
    if bench.quick:
        peers = {name: peer for name, peer in peers.items() if name in QUICK}
    for subscribers, rate in SIZES[: 1 if bench.quick else None]:
        title = f"{subscribers:,} subscribers, {rate}/s, broadcaster and outboxes alone"
        figures = measure(bench, "prebuilt", subscribers, rate, peers)
        yield from compare(title, figures, peers, {name: most(name, subscribers) for name in peers})
        if subscribers == SIZES[0][0]:
            yield bare_loops(title, figures)
    subscribers, rate = SIZES[0]
    limits = {name: peers[name] for name in LIMITS}
    figures = measure(bench, "ticker", subscribers, rate, limits)
    yield from compare(f"{subscribers} subscribers, {rate}/s, ticker channel, every event", figures, limits, {})
    for name, missing in all_peers.items():
        if isinstance(missing, str):
            yield Row(what=f"fan-out, {name}", figure="not available", compared_with=f"needs {missing}")
