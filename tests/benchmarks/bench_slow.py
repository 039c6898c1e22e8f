"""Slow consumers: what fifty subscribers that read notice of one that never does, and of one that is killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from statistics import median
from threading import Event
from typing import Final

import msgspec

from tests.benchmarks import bench_crowd
from tests.benchmarks.audience import Audience, Load
from tests.benchmarks.contenders import SUBSCRIBE
from tests.benchmarks.processes import LIFETIME_S, LOAD_CORE, Bench, Process, peer, result_of, running, serving
from tests.benchmarks.report import Row

FAST: Final = 50
#: Ten times the rate of the fan-out: one who does not read then owes more than the kernel hides within seconds.
RATE: Final = 1_000
MOST_GROWTH: Final = 16 << 20
#: The bound of an outbox (ticker.outbox).
MOST_BACKLOG: Final = 1 << 20
MESSAGE: Final = SUBSCRIBE["ticker"]
FAST_ONES: Final = Audience(FAST, (MESSAGE,))


class Observation(msgspec.Struct, frozen=True):
    """Fifty fast subscribers beside something.

    Attributes:
        load: What the fast ones got.
        growth: Resident memory of the server, last less first, bytes.
        backlog: The most bytes that were seen waiting in outboxes.
        fallen_behind: How often a subscriber's socket took nothing meanwhile.
    """

    load: Load
    growth: int
    backlog: int
    fallen_behind: int


#: What happens beside the fast subscribers while they count.
Disturbance = Callable[[Process], AbstractContextManager[None]]


@contextmanager
def nothing(server: Process) -> Iterator[None]:
    """Disturb nobody."""
    yield


def never_reading(server: Process) -> AbstractContextManager[None]:
    """Keep a subscriber that reads nothing after its subscribe."""
    return _stalled(server)


@contextmanager
def _stalled(server: Process) -> Iterator[None]:
    with running(peer("stalled", server.port, LIFETIME_S, MESSAGE.replace(" ", "")), LOAD_CORE) as process:
        process.read_line(LIFETIME_S)
        yield


def killed(bench: Bench) -> Disturbance:
    """Return a disturbance: a subscriber in mid-stream that is killed with SIGKILL."""

    @contextmanager
    def disturb(server: Process) -> Iterator[None]:
        with bench.loading(
            server, Audience(1, (MESSAGE,)), LIFETIME_S
        ) as victim:  # it has been reading for a second by now
            victim.popen.kill()
            yield

    return disturb


def observe(bench: Bench, disturb: Disturbance, seconds: float) -> Observation:
    """Run the fast subscribers beside a disturbance, looking at the server four times a second."""
    with serving(peer("ours", "ticker", RATE, LIFETIME_S)) as server:
        bench.load(server, FAST_ONES, 1.0)  # warms up: what the first connections allocate is not the slow one's
        before = server.rss_bytes()
        fallen_before = server.metrics()["ticker_fallen_behind_total"]
        with bench.loading(server, FAST_ONES, seconds) as load, disturb(server):
            seen = list(_watch(server, load))
            if not seen:
                raise RuntimeError("the load ended before its disturbance began")
            backlog = max(metrics["ticker_backlog_bytes"] for metrics in seen)
            fallen = int(seen[-1]["ticker_fallen_behind_total"] - fallen_before)
            return Observation(result_of(load), server.rss_bytes() - before, int(backlog), fallen)


def _watch(server: Process, load: Process) -> Iterator[dict[str, float]]:
    """Yield the server's metrics four times a second while the load runs; its end counts as falling behind."""
    while True:
        metrics = server.metrics()
        if load.popen.poll() is not None:
            return
        yield metrics
        Event().wait(0.25)


def rows(bench: Bench) -> Iterator[Row]:
    """Measure the fast subscribers alone, beside one that never reads, one that is killed, and a slow crowd."""
    seconds = bench.seconds(5.0, 3.0)
    alone, beside, gone = [], [], []
    for _ in range(bench.rounds):  # in turns: a baseline from other minutes would be that of another machine
        alone.append(observe(bench, nothing, seconds))
        beside.append(observe(bench, never_reading, bench.seconds(15.0, 5.0)))
        gone.append(observe(bench, killed(bench), seconds))
    baseline = median(seen.load.p99_ms for seen in alone)
    what = f"{FAST} fast subscribers, {RATE:,} events/s"
    yield Row(what=f"{what}, alone", figure=f"p99 {baseline:.2f} ms ({spread_of(alone)}), RSS {growth_of(alone)}")
    yield latency(f"{what}, beside one that never reads", beside, baseline)
    yield latency(f"{what}, beside one killed with SIGKILL", gone, baseline)
    most = max(seen.growth for seen in beside)
    yield Row(
        what="growth of the server's memory beside one that never reads",
        figure=growth_of(beside),
        compared_with=f"alone: {growth_of(alone)}",
        target=f"< {MOST_GROWTH >> 20} MiB",
        reached=most < MOST_GROWTH,
    )
    backlog, fell = max(seen.backlog for seen in beside), min(seen.fallen_behind for seen in beside)
    yield Row(
        what="most bytes waiting in the outbox of the one that never reads",
        figure=f"{backlog / 1024:.1f} KiB; {fell} times behind",
        target=f"<= {MOST_BACKLOG >> 20} MiB, and it did fall behind",
        reached=backlog <= MOST_BACKLOG and fell > 0,
    )
    yield from bench_crowd.rows(bench)


def latency(what: str, seen: list[Observation], baseline: float) -> Row:
    """Return the row of a latency beside a disturbance."""
    p99 = median(of.load.p99_ms for of in seen)
    lost = sum(of.load.closed for of in seen)
    return Row(
        what=what,
        figure=f"p99 {p99:.2f} ms ({spread_of(seen)}); {lost} of the fast ones lost",
        compared_with=f"alone: median p99 {baseline:.2f} ms ({p99 / baseline:.2f} x)",
        target="<= 1.25 x alone or + 2 ms, none lost",
        reached=p99 <= max(1.25 * baseline, baseline + 2.0) and not lost,
    )


def growth_of(seen: list[Observation]) -> str:
    """Return the greatest growth of memory in words."""
    return f"{max(of.growth for of in seen) / 2**20:+.1f} MiB"


def spread_of(seen: list[Observation]) -> str:
    """Return the least and the greatest p99 of the rounds in words."""
    p99 = [of.load.p99_ms for of in seen]
    return f"rounds {min(p99):.2f} to {max(p99):.2f}"
