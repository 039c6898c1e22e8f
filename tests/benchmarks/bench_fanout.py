"""Fan-out: what one delivered frame costs the server, beside bare loops over ``send`` and other libraries.

One frame per tick goes to every subscriber. All contenders send frames of one size, built at each tick; they take
turns, each figure is the median of its runs, and both sides of a ratio come from the same minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from statistics import median
from typing import Final

import msgspec

from tests.benchmarks.processes import LIFETIME_S, PEERS, Bench, Load, NotAvailableError, Process, peer, serving
from tests.benchmarks.report import Row

SUBSCRIBERS: Final = 500
RATE: Final = 100
SMALL: Final = 150
#: Subscribers and ticks per second of the other sizes, which a quick run leaves out. 2,000 at 100/s would be more than
#: any contender's core.
OTHER_SIZES: Final = ((100, 100), (2_000, 25))
#: Against each of the two bare loops.
MOST: Final = 1.35
SUBSCRIBE: Final = {
    "ticker": '{"method":"subscribe","params":{"channel":"ticker","symbol":["BTC/USD"],"event_trigger":"bbo"}}',
    "prebuilt": '{"method":"subscribe","params":{"channel":"trade","symbol":["BTC/USD"]}}',
}
LIMITS: Final = ("C send() loop", "Python socket.send loop")
PEER_LIBRARIES: Final = ("websockets.broadcast", "node ws")

#: Starts a contender for frames of that many bytes at that many ticks per second.
Contender = Callable[[int, int], AbstractContextManager[Process]]


class Figure(msgspec.Struct, frozen=True):
    """A contender's medians.

    Attributes:
        cpu_us: CPU time of the server per delivered frame, µs.
        ratio: Ours by theirs: the median over the rounds, because both sides of a round saw the same machine.
        p50_ms: Median age of a frame on arrival.
        p99_ms: The 99th percentile.
        frame_bytes: Mean size of a frame.
        delivered: Frames delivered of those that should have been.
    """

    cpu_us: float
    ratio: float
    p50_ms: float
    p99_ms: float
    frame_bytes: int
    delivered: float

    def __str__(self) -> str:
        text = f"{self.cpu_us:.2f} µs/frame, p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms"
        return text if self.delivered > 0.98 else f"{text}, only {self.delivered:.0%} delivered"


def figure(loads: list[Load], ours: list[Load], expected_per_s: float) -> Figure:
    """Return the medians of a contender's runs; ``ours`` are those of the same rounds."""
    return Figure(
        median(load.cpu_us for load in loads),
        median(mine.cpu_us / theirs.cpu_us for mine, theirs in zip(ours, loads, strict=True)),
        median(load.p50_ms for load in loads),
        median(load.p99_ms for load in loads),
        round(median(load.bytes / load.frames for load in loads)) + 4,
        median(load.frames / load.secs for load in loads) / expected_per_s,
    )


def contenders(bench: Bench) -> dict[str, Contender | str]:
    """Return the peers by name: how each is started, or what is missing for it."""
    found: dict[str, Contender | str] = {
        LIMITS[0]: lambda size, rate: serving([bench.program("sendlimit"), str(size), str(rate), str(LIFETIME_S)]),
        LIMITS[1]: lambda size, rate: serving(peer("send_loop", size, rate, LIFETIME_S)),
        PEER_LIBRARIES[0]: "websockets (pip install .[bench])",
    }
    if find_spec("websockets") is not None:
        found[PEER_LIBRARIES[0]] = lambda size, rate: serving(peer("websockets_broadcast", size, rate, LIFETIME_S))
    try:
        modules = bench.node_modules()
    except NotAvailableError as error:
        found[PEER_LIBRARIES[1]] = str(error)
    else:
        found[PEER_LIBRARIES[1]] = lambda size, rate: serving(
            ["node", PEERS / "node_ws.js", str(size), str(rate), str(LIFETIME_S)], NODE_PATH=str(modules)
        )
    return found


def ours(what: str) -> Contender:
    """Return this project's server, for the real channel or for prebuilt frames."""
    return lambda size, rate: serving(peer("ours", "ticker" if what == "ticker" else size, rate, LIFETIME_S))


def measure(bench: Bench, what: str, subscribers: int, rate: int, peers: dict[str, Contender]) -> dict[str, Figure]:
    """Let us ("ours") and the peers take turns; the peers send frames of the size of ours."""
    seconds = bench.seconds(6.0, 2.0) if subscribers == SUBSCRIBERS else bench.seconds(4.0, 1.0)
    loads: dict[str, list[Load]] = {}
    size = SMALL
    for _ in range(bench.rounds):
        for name, contender in ({"ours": ours(what)} | peers).items():
            with contender(size, rate) as server:
                load = bench.load(server, subscribers, seconds, SUBSCRIBE[what])
            loads.setdefault(name, []).append(load)
            if name == "ours":
                size = round(load.bytes / load.frames) + 4
    return {name: figure(of_name, loads["ours"], subscribers * rate) for name, of_name in loads.items()}


def compare(title: str, figures: dict[str, Figure], most: float | None) -> Iterator[Row]:
    """Yield a row for each peer; ``most`` is the goal against the bare loops, None where there is none."""
    mine = figures.pop("ours")
    for name, theirs in figures.items():
        bound = most if name in LIMITS else 1.0
        yield Row(
            what=f"{title}, {mine.frame_bytes}-byte frames",
            figure=str(mine),
            compared_with=f"{name}: {theirs} (ours is {theirs.ratio:.2f} x)",
            target="" if bound is None else f"at most {bound} x that",
            reached=None if bound is None else theirs.ratio <= bound,
        )


def rows(bench: Bench) -> Iterator[Row]:
    """Measure 500 subscribers with prebuilt frames and with the ticker channel, then other numbers of them."""
    found = contenders(bench)
    peers = {name: start for name, start in found.items() if not isinstance(start, str)}
    limits = {name: start for name, start in peers.items() if name in LIMITS}
    title = f"{SUBSCRIBERS} subscribers, {RATE}/s"
    alone = "broadcaster and outboxes alone"
    yield from compare(f"{title}, {alone}", measure(bench, "prebuilt", SUBSCRIBERS, RATE, peers), MOST)
    figures = measure(bench, "ticker", SUBSCRIBERS, RATE, {LIMITS[0]: limits[LIMITS[0]]} if bench.quick else peers)
    yield from compare(f"{title}, ticker channel, every event", figures, None)
    for subscribers, rate in () if bench.quick else OTHER_SIZES:
        figures = measure(bench, "prebuilt", subscribers, rate, limits)
        yield from compare(f"{subscribers:,} subscribers, {rate}/s, {alone}", figures, None)
    for name, missing in found.items():
        if isinstance(missing, str):
            yield Row(
                what=f"{SUBSCRIBERS} subscribers, {name}", figure="not available", compared_with=f"needs {missing}"
            )
