"""``ticker info``: what a recording holds, as tables for people.

It knows how to print :class:`feeds.store.RecordingInfo`; what is counted, and how, is :func:`feeds.store.describe`'s
business.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table

from feeds.clock import NS
from feeds.instruments import Instrument, Instruments
from feeds.store import RecordingInfo, Silences, TableInfo, describe, open_recording
from ticker.codec import fixed

#: Symbols that have their own line in a table; the rest is summed up.
SHOWN_SYMBOLS = 50


def print_info(path: str, console: Console | None = None) -> None:
    """Print what a recording holds.

    Args:
        path: A folder with one recording, its prefix, or one of its files.
        console: Where; standard output by default.

    Raises:
        RecordingError: It is missing, unreadable or holds rows that cannot be replayed.
    """
    console = console or Console()
    recording = open_recording(path)
    for part in report(describe(recording), recording.instruments):
        console.print(part)


def report(info: RecordingInfo, instruments: Instruments) -> Iterator[RenderableType]:
    """Yield the parts of the report, top to bottom."""
    yield f"[bold]{info.name}[/bold]  {info.rows:,} rows, {duration(info.end_ns - info.start_ns)}"
    yield f"{utc(info.start_ns)} to {utc(info.end_ns)} UTC\n"
    yield _tables(info)
    yield _symbols(info)
    yield _instruments(instruments)


def utc(ns: int) -> str:
    """Return an instant (int ns UTC) to the millisecond: "2024-08-08 23:54:14.123"."""
    return str(np.datetime64(ns // 1_000_000, "ms")).replace("T", " ")


def duration(ns: int) -> str:
    """Return a length of time in its two or three largest units: "1.274 s", "5 m 45 s", "2 h 03 m 10 s", "3 d 4 h"."""
    if ns < 60 * NS:
        return f"{fixed(ns // 1_000_000, 3)} s"
    minutes, seconds = divmod(ns // NS, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} m {seconds:02d} s" if hours else f"{minutes} m {seconds:02d} s"


def silences(found: Silences) -> str:
    """Return silences in a phrase: how many, the longest, and when it began."""
    if found.longest_at_ns is None:
        return "none"
    return f"{found.count:,}; longest {duration(found.longest_ns)} from {utc(found.longest_at_ns)[11:]}"


def _tables(info: RecordingInfo) -> Table:
    """One column per table of the recording and one for all: there are at most three, and many figures."""
    grid = Table(title="Tables", title_justify="left", title_style="bold")
    grid.add_column("")
    for table in info.tables:
        grid.add_column(table.table, justify="right", overflow="fold")
    grid.add_column("all", justify="right", overflow="fold")
    grid.add_row("rows", *(f"{t.rows:,}" for t in info.tables), f"{info.rows:,}")
    grid.add_row("first row (UTC)", *(_instant(t, t.start_ns) for t in info.tables), utc(info.start_ns))
    grid.add_row("last row (UTC)", *(_instant(t, t.end_ns) for t in info.tables), utc(info.end_ns))
    grid.add_row("silences over 1 s", *(silences(t.silences) for t in info.tables), silences(info.silences))
    for label, counts in _counts(info.tables).items():
        grid.add_row(label, *(f"{count:,}" for count in counts), f"{sum(counts):,}")
    grid.add_row("columns with values", *(", ".join(t.columns) for t in info.tables), "")
    return grid


def _instant(table: TableInfo, ns: int) -> str:
    return utc(ns) if table.rows else "-"


def _counts(tables: tuple[TableInfo, ...]) -> dict[str, list[int]]:
    """Return figures that add up over the tables, by what they count."""
    return {
        "event time runs backwards": [t.inversions for t in tables],
        "rows without event time": [t.without_ts_event for t in tables],
        "rows after a gap": [t.gap_rows for t in tables],
        "snapshots": [t.snapshots for t in tables],
        "rows of snapshots": [t.snapshot_rows for t in tables],
    }


def _symbols(info: RecordingInfo) -> Table:
    """Rows per symbol and table, the busiest first."""
    totals: dict[str, int] = {}
    for table in info.tables:
        for symbol, rows in table.rows_by_symbol.items():
            totals[symbol] = totals.get(symbol, 0) + rows
    busiest = sorted(totals, key=lambda symbol: (-totals[symbol], symbol))
    grid = Table(title="Rows per symbol", title_justify="left", title_style="bold")
    grid.add_column("symbol")
    for heading in (*(table.table for table in info.tables), "all"):
        grid.add_column(heading, justify="right")
    for symbol in busiest[:SHOWN_SYMBOLS]:
        counts = [table.rows_by_symbol.get(symbol, 0) for table in info.tables]
        grid.add_row(symbol, *(f"{count:,}" for count in counts), f"{totals[symbol]:,}")
    if rest := busiest[SHOWN_SYMBOLS:]:
        counts = [sum(table.rows_by_symbol.get(symbol, 0) for symbol in rest) for table in info.tables]
        grid.add_row(f"{len(rest)} more", *(f"{count:,}" for count in counts), f"{sum(counts):,}", style="dim")
    return grid


def _instruments(instruments: Instruments) -> Table:
    grid = Table(title="Instruments", title_justify="left", title_style="bold")
    for heading in ("symbol", "also as", "base", "quote"):
        grid.add_column(heading)
    for heading in ("price step", "price decimals", "quantity step", "quantity decimals"):
        grid.add_column(heading, justify="right")
    for instrument in instruments[:SHOWN_SYMBOLS]:
        grid.add_row(*_instrument(instrument))
    if len(instruments) > SHOWN_SYMBOLS:
        grid.add_row(f"{len(instruments) - SHOWN_SYMBOLS} more", style="dim")
    return grid


def _instrument(instrument: Instrument) -> tuple[str, ...]:
    return (
        instrument.symbol,
        ", ".join(instrument.aliases) or "-",
        instrument.base,
        instrument.quote or "-",
        fixed(instrument.price_increment, instrument.price_precision),
        str(instrument.price_precision),
        fixed(instrument.qty_increment, instrument.qty_precision),
        str(instrument.qty_precision),
    )
