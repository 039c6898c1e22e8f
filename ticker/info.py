"""``ticker info``: what a recording holds, as tables for people; of a log that is no recording yet, in a few words.

It knows how to print :class:`feeds.store.RecordingInfo`; what is counted, and how, is :func:`feeds.store.describe`'s
business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from feeds.clock import NS
from feeds.instruments import Instrument, Instruments
from feeds.records import StreamDigest
from feeds.replay import ReplayFeed
from feeds.store import RecordingInfo, Silences, TableInfo, describe, open_recording
from feeds.tapelog import LogInfo, segments, survey
from ticker.codec import fixed

#: Symbols that have their own line in a table; the rest is summed up.
SHOWN_SYMBOLS = 50
#: Gaps of a log that are told one by one.
SHOWN_GAPS = 20


def print_info(path: str, console: Console | None = None) -> None:
    """Print what a recording holds.

    Args:
        path: A folder with one recording, its prefix, or one of its files.
        console: Where; standard output by default.

    Raises:
        RecordingError: It is missing, unreadable or holds rows that cannot be replayed.
    """
    console = console or Console()
    if segments(Path(path)):
        console.print(log_report(path, survey(Path(path))))
        return
    recording = open_recording(path)
    for part in report(describe(recording), recording.instruments):
        console.print(part)


def digest(path: str) -> str:
    """Return the SHA-256 of everything that a replay of a recording emits from start to end, at whatever speed.

    Raises:
        RecordingError: It is missing, unreadable or holds rows that cannot be replayed.
    """
    stream = StreamDigest()
    for batch in ReplayFeed(open_recording(path)).slices():
        stream.update(batch)
    return stream.hexdigest()


def log_report(path: str, info: LogInfo) -> Text:
    """Return what is to be said of a log that is no recording yet."""
    lines = [f"{path}  {info.segments} segments of a log, {info.size / 1e6:,.1f} MB, not compacted yet"]
    lines[0] += ", being recorded now" if info.in_use else f": ticker compact {path}"
    if info.start_ns is not None and info.end_ns is not None:
        lines.append(f"{utc(info.start_ns)} to {utc(info.end_ns)} UTC, {duration(info.end_ns - info.start_ns)}")
    lines.append(", ".join(f"{count:,} rows of {table}" for table, count in info.rows.items()))
    lines.append(f"{info.epochs} epochs, {len(info.gaps)} gaps")
    lines += [f"gap: {reason}" for reason in info.gaps[:SHOWN_GAPS]]
    lines += [f"{'unfinished' if info.in_use else 'damaged'}: {damage}" for damage in info.damage]
    return Text("\n".join(lines))


def report(info: RecordingInfo, instruments: Instruments) -> Iterator[RenderableType]:
    """Yield the parts of the report, top to bottom."""
    yield Text.assemble((info.name, "bold"), f"  {info.rows:,} rows, {duration(info.end_ns - info.start_ns)}")
    yield Text(f"{utc(info.start_ns)} to {utc(info.end_ns)} UTC\n")
    yield _tables(info)
    yield _symbols(info)
    yield _columns(info)
    yield _instruments(instruments)


def empty_grid(title: str, left: Iterable[str], right: Iterable[str] = (), min_width: int = 0) -> Table:
    """Return an empty table with headings over words and then over figures."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in left:
        grid.add_column(heading, overflow="fold", no_wrap=not heading)
    for heading in right:
        grid.add_column(heading, justify="right", overflow="fold", min_width=min_width)
    return grid


def _add(grid: Table, *cells: str, style: str | None = None) -> None:
    """Add a row of plain text: a name may hold what Rich would take for markup."""
    grid.add_row(*map(Text, cells), style=style)


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


def _longest(silences: Silences) -> str:
    return "-" if silences.longest_at_ns is None else duration(silences.longest_ns)


def _began(silences: Silences) -> str:
    return "-" if silences.longest_at_ns is None else utc(silences.longest_at_ns)


def _tables(info: RecordingInfo) -> Table:
    """One column per table of the recording and one for all: there are at most three, and many figures."""
    tables = info.tables
    grid = empty_grid("Tables", [""], [*(table.table for table in tables), "all"], min_width=len("23:59:59.999"))
    _add(grid, "rows", *(f"{t.rows:,}" for t in tables), f"{info.rows:,}")
    _add(grid, "first row, UTC", *(_instant(t, t.start_ns) for t in tables), utc(info.start_ns))
    _add(grid, "last row, UTC", *(_instant(t, t.end_ns) for t in tables), utc(info.end_ns))
    _add(grid, "silences > 1 s", *(f"{t.silences.count:,}" for t in tables), f"{info.silences.count:,}")
    _add(grid, "longest silence", *(_longest(t.silences) for t in tables), _longest(info.silences))
    _add(grid, "that began at", *(_began(t.silences) for t in tables), _began(info.silences))
    for label, counts in _counts(tables).items():
        _add(grid, label, *(f"{count:,}" for count in counts), f"{sum(counts):,}")
    return grid


def _columns(info: RecordingInfo) -> Table:
    grid = empty_grid("Columns with values", ["table", "columns"])
    for table in info.tables:
        _add(grid, table.table, ", ".join(table.columns) or "-")
    return grid


def _instant(table: TableInfo, ns: int) -> str:
    return utc(ns) if table.rows else "-"


def _counts(tables: tuple[TableInfo, ...]) -> dict[str, list[int]]:
    """Return figures that add up over the tables, by what they count."""
    return {
        "ts_event inversions": [t.inversions for t in tables],
        "without ts_event": [t.without_ts_event for t in tables],
        "rows after a gap": [t.gap_rows for t in tables],
        "snapshots": [t.snapshots for t in tables],
        "snapshot rows": [t.snapshot_rows for t in tables],
    }


def _symbols(info: RecordingInfo) -> Table:
    """Rows per symbol and table, the busiest first."""
    totals: dict[str, int] = {}
    for table in info.tables:
        for symbol, rows in table.rows_by_symbol.items():
            totals[symbol] = totals.get(symbol, 0) + rows
    busiest = sorted(totals, key=lambda symbol: (-totals[symbol], symbol))
    grid = empty_grid("Rows per symbol", ["symbol"], [*(table.table for table in info.tables), "all"])
    for symbol in busiest[:SHOWN_SYMBOLS]:
        counts = [table.rows_by_symbol.get(symbol, 0) for table in info.tables]
        _add(grid, symbol, *(f"{count:,}" for count in counts), f"{totals[symbol]:,}")
    if rest := busiest[SHOWN_SYMBOLS:]:
        counts = [sum(table.rows_by_symbol.get(symbol, 0) for symbol in rest) for table in info.tables]
        _add(grid, f"{len(rest)} more", *(f"{count:,}" for count in counts), f"{sum(counts):,}", style="dim")
    return grid


def _instruments(instruments: Instruments) -> Table:
    words, figures = ("symbol", "also as", "base", "quote"), ("price step", "decimals", "quantity step", "decimals")
    grid = empty_grid("Instruments", words, figures)
    for instrument in instruments[:SHOWN_SYMBOLS]:
        _add(grid, *_instrument(instrument))
    if len(instruments) > SHOWN_SYMBOLS:
        _add(grid, f"{len(instruments) - SHOWN_SYMBOLS} more", style="dim")
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
