"""The simulated market that the conflation benchmarks serve, and what its subscribers ask for."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event
from typing import Final

import msgspec

from tests.benchmarks.audience import Audience, Load
from tests.benchmarks.processes import LIFETIME_S, Bench, Process, histogram_quantile, peer, result_of

TICKS_PER_S: Final = 100_000
INTERVAL_MS: Final = 100
#: Every symbol of the market.
ALL: Final = ("*",)
LATENESS: Final = "ticker_flush_lateness_seconds"


def symbols(number: int) -> tuple[str, ...]:
    """Return the pairs of a market with that many."""
    return tuple(f"S{i:05d}/USD" for i in range(number))


def served(number: int, rate: float = TICKS_PER_S) -> list[str]:
    """Return the command of the service with that many pairs, as users start it; it ends with the measurement."""
    options = {"port": 0, "symbols": ",".join(symbols(number)), "rate": rate, "interval-ms": INTERVAL_MS}
    return peer("limited", LIFETIME_S, "serve", *(part for k, v in options.items() for part in (f"--{k}", v)))


def subscribe(chosen: Sequence[str] = ALL, **native: object) -> str:
    """Return the message that asks for the ticker, for every change; the rest is for the native profile."""
    params = {"channel": "ticker", "event_trigger": "bbo", "symbol": chosen, **native}
    return msgspec.json.encode({"method": "subscribe", "params": params}).decode()


class Flow(msgspec.Struct, frozen=True):
    """A conflated stream, measured.

    Attributes:
        load: What arrived.
        late_p99_ms: Lateness of the flushes while it was counted, 99th percentile.
    """

    load: Load
    late_p99_ms: float


def flow(bench: Bench, server: Process, audience: Audience, seconds: float) -> Flow:
    """Measure what an audience gets of a market."""
    with bench.loading(server, audience, seconds) as load:
        before = server.metrics()
        never = Event()
        never.wait(seconds - 0.5)  # the load ends its connections with the counting: look before that
        after = server.metrics()
        return Flow(result_of(load), 1_000 * histogram_quantile(before, after, LATENESS, 0.99))


def core_share(process: Process, warmup: float, seconds: float) -> float:
    """Return the share of a core that a process takes without our doing anything."""
    never = Event()
    never.wait(warmup)
    before = process.cpu_s()
    never.wait(seconds)
    return (process.cpu_s() - before) / seconds
