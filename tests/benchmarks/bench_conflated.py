"""Conflation: a busy market told to many subscribers ten times a second, and what of that the market itself costs."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from threading import Event
from typing import Final

import msgspec

from tests.benchmarks.processes import LIFETIME_S, SERVER_CORE, Bench, Load, Process, peer, running, serving
from tests.benchmarks.report import Row

TICKS_PER_S: Final = 100_000
SYMBOLS: Final = tuple(f"S{i:03d}/USD" for i in range(1_000))
SUBSCRIBERS: Final = 100
INTERVAL_MS: Final = 100
#: Every symbol changes in nearly every interval, so this is nearly what can be delivered.
POSSIBLE_PER_S: Final = SUBSCRIBERS * len(SYMBOLS) * 1_000 // INTERVAL_MS
MOST_CORE: Final = 0.40
MOST_LATE_MS: Final = 30.0


def subscribe() -> str:
    """Return one message for all symbols: 12 KB, below the 16 KiB that a client may send."""
    params = {"channel": "ticker", "event_trigger": "bbo", "symbol": SYMBOLS}
    return msgspec.json.encode({"method": "subscribe", "params": params}).decode()


def served() -> list[str]:
    """Return the command of the service as users start it; it ends with the measurement."""
    options = {"port": 0, "symbols": ",".join(SYMBOLS), "rate": TICKS_PER_S, "interval-ms": INTERVAL_MS}
    return peer("limited", LIFETIME_S, "serve", *(part for k, v in options.items() for part in (f"--{k}", v)))


def core_share(process: Process, warmup: float, seconds: float) -> float:
    """Return the share of a core that a process takes without our doing anything."""
    never = Event()
    never.wait(warmup)
    before = process.cpu_s()
    never.wait(seconds)
    return (process.cpu_s() - before) / seconds


def rows(bench: Bench) -> Iterator[Row]:
    """Measure the feed alone, the server with nobody listening, and with everybody."""
    seconds = bench.seconds(6.0, 2.0)
    alone: list[float] = []
    unheard: list[float] = []
    heard: list[Load] = []
    late: list[float] = []
    for _ in range(bench.rounds):
        with running(peer("feed_alone", ",".join(SYMBOLS), TICKS_PER_S, LIFETIME_S), SERVER_CORE) as feed:
            feed.read_line(LIFETIME_S)
            alone.append(core_share(feed, 1.0, seconds / 2))
        with serving(served()) as server:
            unheard.append(core_share(server, 1.0, seconds / 2))
            heard.append(bench.load(server, SUBSCRIBERS, seconds, subscribe(), ages=False))
            late.append(server.metrics()['ticker_flush_lateness_ms{quantile="0.99"}'])
    yield from report(median(alone), median(unheard), heard, median(late))


def report(alone: float, unheard: float, heard: list[Load], late_ms: float) -> Iterator[Row]:
    """Yield the rows of the table."""
    what = f"{TICKS_PER_S:,} ticks/s, {len(SYMBOLS):,} symbols"
    per_s = median(load.rows / load.secs for load in heard)
    share = median(load.server_cpu_s / load.secs for load in heard)
    yield Row(what=f"{what}: the simulated feed alone", figure=f"{alone:.1%} of a core")
    yield Row(
        what=f"{what}: the server, no subscribers",
        figure=f"{unheard:.1%} of a core",
        compared_with=f"feed alone {alone:.1%}: history, books and candles take {unheard - alone:.1%}",
    )
    yield Row(
        what=f"{what}, {SUBSCRIBERS} subscribers of ticker, {INTERVAL_MS} ms: updates delivered",
        figure=f"{per_s:,.0f} row updates/s",
        compared_with=f"possible: {POSSIBLE_PER_S:,}/s, less the symbols that did not move in an interval",
        target=f">= 99.5% of {POSSIBLE_PER_S:,}",
        reached=per_s >= 0.995 * POSSIBLE_PER_S,
    )
    yield Row(
        what="the same: CPU",
        figure=f"{share:.1%} of a core",
        compared_with=f"no subscribers {unheard:.1%}: telling them takes {share - unheard:.1%}",
        target=f"< {MOST_CORE:.0%}",
        reached=share < MOST_CORE,
    )
    yield Row(
        what="the same: lateness of flushes since the start, connecting included (/metrics)",
        figure=f"p99 {late_ms:.1f} ms",
        target=f"< {MOST_LATE_MS:.0f} ms",
        reached=late_ms < MOST_LATE_MS,
    )
