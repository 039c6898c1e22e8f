"""Orders: durable acknowledgements per second from closed loops, beside a bare echo; and behind a broad broadcast."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from statistics import median
from typing import Final

import msgspec

from tests.benchmarks.audience import Audience
from tests.benchmarks.market import served, subscribe
from tests.benchmarks.processes import LIFETIME_S, LOAD_CORE, Bench, Process, peer, running, serving
from tests.benchmarks.report import Row

CONNECTIONS: Final = (1, 20, 100)
#: What is streamed to beside the orders: so many subscribers of every symbol, ten times a second.
STREAMED: Final = 100
CROWD: Final = 2_000
SYMBOLS: Final = 10
TICKS_PER_S: Final = 1_000
#: Far from the market: what is measured is entering, not filling.
ORDER: Final = (
    '{"method":"add_order","params":{"order_type":"limit","side":"buy","order_qty":0.01,"symbol":"S00000/USD",'
    '"limit_price":0.5,"cl_ord_id":"o%llu"},"req_id":1}'
)
LEAST_SHARE: Final = 0.6
MOST_P99: Final = 3.0
MOST_MORE_MS: Final = 3.0


class Loops(msgspec.Struct, frozen=True):
    """What closed loops measured.

    Attributes:
        per_s: Answers per second.
        ok: Of them, those that were acknowledged.
        refused: The others.
        p50_ms: Median round trip.
        p99_ms: The 99th percentile.
    """

    per_s: float
    ok: int
    refused: int
    p50_ms: float
    p99_ms: float


def loops(bench: Bench, server: Process, connections: int, seconds: float) -> Loops:
    """Run closed loops of orders against a server.

    Where that is allowed they do not wait for the readers of the broadcast, which are on the same core: that delay is
    not the server's.
    """
    first = ["chrt", "--fifo", "1"] if shutil.which("chrt") and not os.geteuid() else []
    command = [
        *first,
        bench.program("orderload"),
        "127.0.0.1",
        server.port,
        "/v2",
        connections,
        seconds,
        ORDER,
        '"add_order"',
    ]
    with running([str(part) for part in command], LOAD_CORE) as load:
        return msgspec.json.decode(load.read_line(LIFETIME_S), type=Loops)


def exchange(bench: Bench) -> list[str]:
    """Return the command of a market that keeps its orders on disk."""
    journal = bench.folder / f"{len(list(bench.folder.iterdir()))}.journal"
    return [*served(SYMBOLS, TICKS_PER_S), "--journal", str(journal)]


def rows(bench: Bench) -> Iterator[Row]:
    """Measure ours and the echo in turns, then ours beside a crowd of subscribers."""
    for connections in CONNECTIONS:
        ours, echo = [], []
        for _ in range(bench.rounds):
            ours.append(beside(bench, connections, STREAMED))
            with serving(peer("echo", LIFETIME_S)) as server:
                echo.append(loops(bench, server, connections, bench.seconds(5.0, 3.0)))
        yield compared(connections, ours, echo)
    quiet = [beside(bench, 1, 0) for _ in range(bench.rounds)]
    crowded = [beside(bench, 1, CROWD) for _ in range(bench.rounds)]
    yield behind_a_crowd(quiet, crowded)


def beside(bench: Bench, connections: int, subscribers: int) -> Loops:
    """Measure orders while subscribers are streamed to."""
    seconds = bench.seconds(5.0, 3.0)
    with serving(exchange(bench)) as server:
        if not subscribers:
            return loops(bench, server, connections, seconds)
        audience = Audience(subscribers, (subscribe(),), ages=False)
        with bench.loading(server, audience, seconds + 1.0):
            return loops(bench, server, connections, seconds)


def compared(connections: int, ours: list[Loops], echo: list[Loops]) -> Row:
    """Return the row of a number of connections."""
    rate, limit = median(run.per_s for run in ours), median(run.per_s for run in echo)
    p99, p99_echo = median(run.p99_ms for run in ours), median(run.p99_ms for run in echo)
    p50, refused = median(run.p50_ms for run in ours), sum(run.refused for run in ours)
    aimed = connections == max(CONNECTIONS)
    return Row(
        what=f"{connections} closed loops of add_order, on disk before acknowledged, {STREAMED} subscribers at 10 Hz",
        figure=f"{rate:,.0f} orders/s; p50 {p50:.2f}, p99 {p99:.2f} ms; {refused} refused",
        compared_with=f"echo {limit:,.0f}/s ({rate / limit:.2f} x), p99 {p99_echo:.2f} ms ({p99 / p99_echo:.2f} x)",
        target=f">= {LEAST_SHARE} x, p99 <= {MOST_P99:g} x" if aimed else "",
        reached=(rate >= LEAST_SHARE * limit and p99 <= MOST_P99 * p99_echo) if aimed else None,
    )


def behind_a_crowd(quiet: list[Loops], crowded: list[Loops]) -> Row:
    """Return the row of one loop beside many subscribers."""
    alone, p99 = median(run.p99_ms for run in quiet), median(run.p99_ms for run in crowded)
    return Row(
        what=f"one closed loop beside {CROWD:,} subscribers of {SYMBOLS} symbols at 10 Hz",
        figure=f"p99 {p99:.2f} ms",
        compared_with=f"nobody subscribed: p99 {alone:.2f} ms",
        target=f"<= + {MOST_MORE_MS:g} ms",
        reached=p99 <= alone + MOST_MORE_MS,
    )
