"""Conflation: a busy market told to many subscribers ten times a second, and what of that the market itself costs."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Final

import msgspec

from tests.benchmarks.audience import Audience
from tests.benchmarks.market import INTERVAL_MS, TICKS_PER_S, Flow, core_share, flow, served, subscribe, symbols
from tests.benchmarks.processes import LIFETIME_S, SERVER_CORE, Bench, peer, running, serving
from tests.benchmarks.report import Row

SYMBOLS: Final = 1_000
#: What one core of load can look at; the rest of a larger audience is read and counted in bytes.
EXAMINED: Final = 100
EXAMINED_OF_MANY: Final = 10


class Case(msgspec.Struct, frozen=True):
    """An audience, and the goals of what it gets.

    Attributes:
        what: Its subscription in words.
        audience: Who.
        most_core: Goal for the CPU of the server, share of a core; the others hold with it. None for none.
        most_late_ms: Goal for the lateness.
        least: Goal for the rows that arrive of those that are possible.
    """

    what: str
    audience: Audience
    most_core: float | None = None
    most_late_ms: float = 50.0
    least: float = 0.99

    @property
    def possible_per_s(self) -> int:
        """Every symbol changes in nearly every interval, so this is nearly what can be delivered."""
        return self.audience.number * SYMBOLS * 1_000 // INTERVAL_MS


def many(what: str, message: str, *, native: bool, most_core: float | None = None) -> Case:
    """Return the case of 500 subscribers."""
    examine = 500 // EXAMINED_OF_MANY
    return Case(what, Audience(500, (message,), native=native, ages=False, examine=examine), most_core)


CASES: Final = (
    Case("JSON", Audience(EXAMINED, (subscribe(),), ages=False), most_core=0.40, most_late_ms=30.0, least=0.995),
    many("native, struct", subscribe(encoding="struct"), native=True, most_core=0.50),
    many("native, JSON", subscribe(), native=True),
    many("JSON", subscribe(), native=False),
)


def rows(bench: Bench) -> Iterator[Row]:
    """Measure the feed alone, the server with nobody listening, and with every audience, in turns."""
    seconds = bench.seconds(5.0, 2.0)
    alone: list[float] = []
    unheard: list[float] = []
    heard: list[list[Flow]] = [[] for _ in CASES]
    for _ in range(bench.rounds):
        with running(peer("feed_alone", ",".join(symbols(SYMBOLS)), TICKS_PER_S, LIFETIME_S), SERVER_CORE) as feed:
            feed.read_line(LIFETIME_S)
            alone.append(core_share(feed, 1.0, seconds / 2))
        with serving(served(SYMBOLS)) as server:
            unheard.append(core_share(server, 1.0, seconds / 2))
        for case, flows in zip(CASES, heard, strict=True):
            if case.most_core is None and flows:
                continue  # connecting them takes half a minute, and one look shows what JSON costs beside records
            with serving(served(SYMBOLS)) as server:
                flows.append(flow(bench, server, case.audience, seconds))
    yield from market_rows(median(alone), median(unheard))
    for case, flows in zip(CASES, heard, strict=True):
        yield from case_rows(case, flows, median(unheard))


def market_rows(alone: float, unheard: float) -> Iterator[Row]:
    """Yield what the market costs by itself."""
    what = f"{TICKS_PER_S:,} ticks/s, {SYMBOLS:,} symbols"
    yield Row(what=f"{what}: the simulated feed alone", figure=f"{alone:.1%} of a core")
    yield Row(
        what=f"{what}: the server, no subscribers",
        figure=f"{unheard:.1%} of a core",
        compared_with=f"feed alone {alone:.1%}: history, books and candles take {unheard - alone:.1%}",
    )


def case_rows(case: Case, flows: list[Flow], unheard: float) -> Iterator[Row]:
    """Yield what an audience got, what it cost and how late it was."""
    per_s = median(seen.load.rows_per_s for seen in flows)
    share = median(seen.load.core_share for seen in flows)
    late = median(seen.late_p99_ms for seen in flows)
    number, goal = case.audience.number, case.most_core
    examined = "" if case.audience.examine == 1 else f"; {EXAMINED_OF_MANY} examined, the others' bytes counted"
    what = f"{number} subscribers of {SYMBOLS:,} symbols, {INTERVAL_MS} ms, {case.what}"
    yield Row(
        what=f"{what}: updates delivered",
        figure=f"{per_s:,.0f} row updates/s, {median(seen.load.mb_per_s for seen in flows):,.0f} MB/s{examined}",
        compared_with=f"possible: {case.possible_per_s:,}/s, less the symbols that did not move in an interval",
        target="" if goal is None else f">= {case.least:.1%} of that",
        reached=None if goal is None else per_s >= case.least * case.possible_per_s,
    )
    yield Row(
        what="the same: CPU",
        figure=f"{share:.1%} of a core",
        compared_with=f"no subscribers {unheard:.1%}: telling them takes {share - unheard:.1%}",
        target="" if goal is None else f"< {goal:.0%}",
        reached=None if goal is None else share < goal,
    )
    yield Row(
        what="the same: lateness of flushes while counted (/metrics)",
        figure=f"p99 {late:.1f} ms",
        target="" if goal is None else f"< {case.most_late_ms:.0f} ms",
        reached=None if goal is None else late < case.most_late_ms,
    )
