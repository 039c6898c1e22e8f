"""What conflation costs as the audience grows: CPU by subscribers, by symbols, and the most that one core holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Final

import msgspec

from tests.benchmarks.audience import Audience, Load
from tests.benchmarks.market import INTERVAL_MS, LATENESS, TICKS_PER_S, served, subscribe
from tests.benchmarks.processes import Bench, NotAvailableError, histogram_quantile, result_of, serving
from tests.benchmarks.report import Row

MESSAGES: Final = {"struct": subscribe(encoding="struct"), "JSON": subscribe()}
BY_SUBSCRIBERS: Final = ((10, 100), (100, 100), (500, 100), (1_000, 100), (2_000, 100))
BY_SYMBOLS: Final = ((100, 10), (100, 100), (100, 1_000), (100, 10_000))
QUICK: Final = ((100, 100), (500, 100))
#: Struct, 1,000 symbols: raised until a core does not hold it.
LOADS: Final = (500, 1_000, 1_250, 1_500)
AIM_PER_S: Final = 10_000_000
#: A load is held if this much arrives of what is possible.
LEAST: Final = 0.99
EXAMINED: Final = 10


class Point(msgspec.Struct, frozen=True):
    """A load and what it cost.

    Attributes:
        subscribers: How many.
        symbols: Of each.
        load: What they got.
        kernel: The kernel's part of the server's CPU time.
        client: Share of its core that the load took: near 1 it was the limit, not the server.
        late_p99_ms: Lateness of the flushes.
    """

    subscribers: int
    symbols: int
    load: Load
    kernel: float
    client: float
    late_p99_ms: float

    @property
    def possible_per_s(self) -> float:
        """Rows per second if every symbol changed in every interval."""
        return self.subscribers * self.symbols * 1_000 / INTERVAL_MS

    @property
    def held(self) -> bool:
        """Whether a core holds it."""
        return self.load.rows_per_s >= LEAST * self.possible_per_s

    def __str__(self) -> str:
        return (
            f"{self.load.rows_per_s:,.0f} row updates/s, {self.load.mb_per_s:,.0f} MB/s: "
            f"{self.load.core_share:.1%} of a core, {self.kernel:.0%} of it in the kernel"
        )

    @property
    def limit(self) -> str:
        """What keeps it from more, in words."""
        if self.client > 0.95:
            return "the load's core"
        if self.load.core_share < 0.9:
            return "nothing yet" if self.held else "stalls: flushes later than an interval"
        return "the kernel's copying in send()" if self.kernel > 0.5 else "the server's own work"


def measure(bench: Bench, encoding: str, subscribers: int, symbols: int) -> Point:
    """Measure one load."""
    seconds = bench.seconds(4.0, 2.0)
    examine = max(1, subscribers // EXAMINED)
    audience = Audience(subscribers, (MESSAGES[encoding],), native=True, examine=examine, ages=False)
    with serving(served(symbols)) as server, bench.loading(server, audience, seconds) as load:
        before, cpu, kernel, client = server.metrics(), server.cpu_s(), server.system_s(), load.cpu_s()
        never = Event()
        never.wait(span := seconds - 0.5)  # the load ends its connections with the counting: look before that
        kernel_part = (server.system_s() - kernel) / (server.cpu_s() - cpu)
        client_share = (load.cpu_s() - client) / span
        late = 1_000 * histogram_quantile(before, server.metrics(), LATENESS, 0.99)
        return Point(subscribers, symbols, result_of(load), kernel_part, client_share, late)


def rows(bench: Bench) -> Iterator[Row]:
    """Measure both axes, then raise the load; draw it if that was asked for."""
    curves: dict[str, list[Point]] = {}
    for encoding in MESSAGES:
        axes = {"subscribers": QUICK} if bench.quick else {"subscribers": BY_SUBSCRIBERS, "symbols": BY_SYMBOLS}
        for axis, sizes in axes.items():
            curve = [measure(bench, encoding, *size) for size in sizes]
            curves[f"{encoding}, by {axis}"] = curve
            yield from (point_row(encoding, point) for point in curve)
    curves["struct, 1,000 symbols"] = highest = list(raised(bench))
    yield highest_row(highest)
    if bench.plot:
        draw(bench.plot, curves)


def raised(bench: Bench) -> Iterator[Point]:
    """Yield points of ever more subscribers of 1,000 symbols, the last of which is not held, if any."""
    for subscribers in LOADS[: 1 if bench.quick else None]:
        point = measure(bench, "struct", subscribers, 1_000)
        yield point
        if not point.held:
            return


def point_row(encoding: str, point: Point) -> Row:
    """Return the row of a point of a curve."""
    return Row(
        what=f"{TICKS_PER_S:,} ticks/s, {point.subscribers:,} subscribers of {point.symbols:,} symbols, {encoding}",
        figure=str(point),
        compared_with=f"possible: {point.possible_per_s:,.0f}/s; lateness p99 {point.late_p99_ms:.1f} ms",
    )


def highest_row(points: list[Point]) -> Row:
    """Return the row of the highest load that was held, and of what limited the next."""
    held = [point for point in points if point.held]
    last = points[-1]
    tried = f"{last.subscribers:,} subscribers: {last}; lateness p99 {last.late_p99_ms:.1f} ms; limit: {last.limit}"
    most = max((point.load.rows_per_s for point in held), default=0.0)
    return Row(
        what="the most that one core holds: struct, 1,000 symbols, ever more subscribers",
        figure=f"{held[-1].subscribers:,} subscribers: {held[-1]}, lateness p99 {held[-1].late_p99_ms:.1f} ms"
        if held
        else "none of the loads",
        compared_with=f"the last one tried, {tried}",
        target=f">= {AIM_PER_S:,} row updates/s",
        reached=most >= LEAST * AIM_PER_S,
    )


def draw(path: Path, curves: dict[str, list[Point]]) -> None:
    """Draw CPU by row updates per second.

    Args:
        path: Its ending says the format.
        curves: Points by the name of their curve.

    Raises:
        NotAvailableError: There is no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotAvailableError("matplotlib (pip install .[bench])") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot([p.load.rows_per_s for p in curve], [100 * p.load.core_share for p in curve], "o-", label=name)
    axes.set(xscale="log", xlabel="row updates per second", ylabel="% of a core", ylim=(0, 105))
    axes.set_title(f"{TICKS_PER_S:,} ticks/s in, told every {INTERVAL_MS} ms")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)
