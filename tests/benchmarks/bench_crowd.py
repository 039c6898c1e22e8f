"""A crowd of slow consumers: what fifty subscribers notice of eight hundred that hardly read or do not read at all.

A simulated market's time runs a constant behind the clock, another in every process: ages are taken above the least.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from statistics import median
from typing import Final

import msgspec

from tests.benchmarks.audience import Audience, Load
from tests.benchmarks.market import INTERVAL_MS, TICKS_PER_S, served, subscribe
from tests.benchmarks.peers.readers import Account
from tests.benchmarks.processes import LIFETIME_S, LOAD_CORE, Bench, Process, peer, result_of, running, serving
from tests.benchmarks.report import Row

SYMBOLS: Final = 100
NEVER: Final = 500
TRICKLING: Final = 300
FAST: Final = 50
#: Of the fast ones, by a client in Python that checks every message.
CHECKED: Final = 5
MESSAGE: Final = subscribe(interval_ms=INTERVAL_MS)
MOST_GROWTH: Final = 64 << 20
#: Counting ends before the kernel gives up those that do not read (TCP_USER_TIMEOUT, 10 s).
COUNT_S: Final = 3.0
TRICKLE_S: Final = 6.0


class Accounts(msgspec.Struct):
    """What the readers of every kind found."""

    trickling: Account
    fast: Account


class Observation(msgspec.Struct, frozen=True):
    """Fifty fast subscribers beside others.

    Attributes:
        load: What the fast ones got.
        growth: Resident memory of the server since before the others came, bytes.
        behind: How often a subscriber's socket took nothing.
        accounts: What those found that check every message.
    """

    load: Load
    growth: int
    behind: int
    accounts: Accounts

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the age of a row above the least age."""
        return self.load.p99_ms - self.load.min_ms


def observe(bench: Bench, never: int, trickling: int) -> Observation:
    """Run the fast subscribers beside so many of the others."""
    fast = Audience(FAST - CHECKED, (MESSAGE,), native=True)
    with serving(served(SYMBOLS)) as server:
        bench.load(server, fast, 1.0)  # warms up: what the first connections allocate is not the slow ones'
        before = server.rss_bytes()
        with _readers(server, never, trickling) as readers:
            readers.read_line(LIFETIME_S)
            with bench.loading(server, fast, COUNT_S) as counting:
                load = result_of(counting)
            growth = server.rss_bytes() - before
            behind = int(server.metrics()["ticker_fallen_behind_total"])
            accounts = msgspec.json.decode(readers.read_line(LIFETIME_S), type=Accounts)
            return Observation(load, growth, behind, accounts)


def _readers(server: Process, never: int, trickling: int) -> AbstractContextManager[Process]:
    return running(peer("readers", server.port, never, trickling, CHECKED, TRICKLE_S, LIFETIME_S, MESSAGE), LOAD_CORE)


def rows(bench: Bench) -> Iterator[Row]:
    """Measure the fast ones alone and beside the crowd, in turns."""
    alone, beside = [], []
    for _ in range(bench.rounds):
        alone.append(observe(bench, 0, 0))
        beside.append(observe(bench, NEVER, TRICKLING))
    crowd = f"{NEVER} that never read and {TRICKLING} that read 1 KiB/s"
    baseline, p99 = (median(seen.p99_ms for seen in of) for of in (alone, beside))
    lost = sum(seen.load.closed + seen.accounts.fast.closed for seen in beside)
    yield Row(
        what=f"{FAST} fast subscribers of {SYMBOLS} symbols, {TICKS_PER_S:,} ticks/s, {INTERVAL_MS} ms, beside {crowd}",
        figure=f"p99 {p99:.2f} ms above the least age; {lost} of the fast ones lost",
        compared_with=f"alone: median p99 {baseline:.2f} ms ({p99 / baseline:.2f} x)",
        target="<= 1.25 x alone or + 2 ms, none lost",
        reached=p99 <= max(1.25 * baseline, baseline + 2.0) and not lost,
    )
    growth, growth_alone = (median(seen.growth for seen in of) for of in (beside, alone))
    behind = min(seen.behind for seen in beside)
    yield Row(
        what="the same: growth of the server's memory, connections included",
        figure=f"{growth / 2**20:+.1f} MiB; subscribers fell behind {behind} times at least",
        compared_with=f"alone, which is history filling: {growth_alone / 2**20:+.1f} MiB",
        target=f"<= {MOST_GROWTH >> 20} MiB beyond alone, and they did fall behind",
        reached=growth - growth_alone <= MOST_GROWTH and behind > 0,
    )
    yield account("fast", [seen.accounts.fast for seen in beside])
    yield account("trickling, then reading", [seen.accounts.trickling for seen in beside])


def account(kind: str, seen: list[Account]) -> Row:
    """Return the row of the messages of one kind of subscribers."""
    messages, wrong = sum(of.messages for of in seen), sum(of.wrong for of in seen)
    conflated, dropped = sum(of.conflated for of in seen), sum(of.dropped for of in seen)
    return Row(
        what=f"the same: messages whose counts are wrong, of the {kind} ones that are checked",
        figure=f"{wrong} of {messages:,}; {conflated:,} events conflated, {dropped:,} dropped",
        compared_with=f"{sum(of.closed for of in seen)} connections had ended by then",
        target="0, and events were conflated",
        reached=not wrong and conflated > 0,
    )
