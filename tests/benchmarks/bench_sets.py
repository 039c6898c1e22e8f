"""Conflation where no two subscribers are alike: each has symbols of its own and one of four intervals."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

from tests.benchmarks.audience import Audience
from tests.benchmarks.market import TICKS_PER_S, core_share, flow, served, subscribe, symbols
from tests.benchmarks.processes import Bench, serving
from tests.benchmarks.report import Row

SUBSCRIBERS: Final = 1_000
SYMBOLS: Final = 1_000
OWN: Final = 50
INTERVALS_MS: Final = (100, 250, 500, 1_000)
#: An interval in turn for each subscriber, and every symbol changes in nearly every interval.
POSSIBLE_PER_S: Final = sum(OWN * 1_000 / interval for interval in INTERVALS_MS) * SUBSCRIBERS / len(INTERVALS_MS)
MOST_CORE: Final = 0.60
SEED: Final = 20_240_808


def write_subscriptions(path: Path) -> None:
    """Write what each subscriber asks for, a message per line; the same in every run."""
    market = symbols(SYMBOLS)
    lines = []
    for i in range(SUBSCRIBERS):
        own = random.Random(SEED + i).sample(market, OWN)
        lines.append(subscribe(own, interval_ms=INTERVALS_MS[i % len(INTERVALS_MS)]))
    path.write_text("\n".join(lines) + "\n")


def rows(bench: Bench) -> Iterator[Row]:
    """Measure the server with nobody listening and with everybody."""
    lines = bench.folder / "sets"
    write_subscriptions(lines)
    audience = Audience(SUBSCRIBERS, lines=lines, native=True, ages=False)
    seconds = bench.seconds(5.0, 3.0)
    unheard, heard = [], []
    for _ in range(bench.rounds):
        with serving(served(SYMBOLS)) as server:
            unheard.append(core_share(server, 1.0, seconds / 2))
            heard.append(flow(bench, server, audience, seconds))
    share = median(seen.load.core_share for seen in heard)
    intervals = "/".join(map(str, INTERVALS_MS))
    yield Row(
        what=f"{TICKS_PER_S:,} ticks/s; {SUBSCRIBERS:,} subscribers of {OWN} random symbols of {SYMBOLS:,} each, "
        f"{intervals} ms, native, JSON: updates delivered",
        figure=f"{median(seen.load.rows_per_s for seen in heard):,.0f} row updates/s",
        compared_with=f"possible: {POSSIBLE_PER_S:,.0f}/s, less the symbols that did not move in an interval",
    )
    yield Row(
        what="the same: CPU",
        figure=f"{share:.1%} of a core",
        compared_with=f"no subscribers {median(unheard):.1%}: telling them takes {share - median(unheard):.1%}",
        target=f"< {MOST_CORE:.0%}",
        reached=share < MOST_CORE,
    )
    yield Row(
        what="the same: lateness of flushes while counted (/metrics)",
        figure=f"p99 {median(seen.late_p99_ms for seen in heard):.1f} ms",
    )
