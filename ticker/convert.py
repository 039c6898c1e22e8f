"""``ticker convert``: files in vendors' formats made into a recording, or only checked, as people see it.

It knows how to show progress and a :class:`feeds.convert.Summary`; how anything is read or counted is
:mod:`feeds.convert`'s business.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from feeds.convert import Conversion, ConvertOptions, Summary
from feeds.convert import Progress as Told
from ticker.info import duration, empty_grid, utc

#: Sources that have their own line; the rest is summed up.
SHOWN_SOURCES = 20


def convert(
    sources: Sequence[str], output: str | None, options: ConvertOptions, console: Console | None = None
) -> None:
    """Write a recording and print what it holds.

    Args:
        sources: Files, archives, or prefixes of recordings.
        output: The recording's folder and name; None to read, report and write nothing.
        options: How to read them.
        console: Where; standard output by default.

    Raises:
        RecordingError: A source cannot be read, or the recording cannot be written.
    """
    console = console or Console()
    conversion = Conversion([Path(source) for source in sources], options)
    with _progress(console) as told:
        summary = conversion.check(told) if output is None else conversion.write(Path(output), told)
    for part in report(summary):
        console.print(part)
    if output is not None:
        console.print(Text(f"Written to {output}; play it with: ticker serve --replay {output}"))


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Told | None]:
    """Show a bar while in the block, if anyone is looking."""
    if not console.is_terminal:
        yield None
        return
    columns = TextColumn("{task.percentage:3.0f} %"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")
        yield lambda done, total: progress.update(task, completed=done, total=total)


def report(summary: Summary) -> Iterator[RenderableType]:
    """Yield the parts of the report, top to bottom."""
    yield Text(f"{summary.rows:,} rows, {duration(summary.end_ns - summary.start_ns)}", style="bold")
    yield Text(f"{utc(summary.start_ns)} to {utc(summary.end_ns)} UTC\n")
    yield _sources(summary)
    yield _tables(summary)
    yield from _silences(summary)
    yield from _passed_over(summary)
    yield from _complaints(summary)


def _sources(summary: Summary) -> Table:
    grid = empty_grid("Sources", ["source", "format"], ["bad rows left out"])
    for source in summary.sources[:SHOWN_SOURCES]:
        grid.add_row(Text(source.name), source.format, f"{source.refused:,}")
    if rest := summary.sources[SHOWN_SOURCES:]:
        grid.add_row(f"{len(rest)} more", "", f"{sum(source.refused for source in rest):,}", style="dim")
    return grid


def _tables(summary: Summary) -> Table:
    tables = summary.tables
    grid = empty_grid("Tables", [""], [table.table for table in tables])
    grid.add_row("rows", *(f"{t.rows:,}" for t in tables))
    grid.add_row("event times that run backwards", *(f"{t.inversions:,}" for t in tables))
    grid.add_row("receive times not to be trusted", *(f"{t.held:,}" for t in tables))
    grid.add_row("rows after a gap", *(f"{t.gaps:,}" for t in tables))
    grid.add_row("duplicates", *(f"{t.duplicates:,}" for t in tables))
    grid.add_row("crossed", *(_crossed(t.table, t.crossed) for t in tables))
    return grid


def _crossed(table: str, count: int | None) -> str:
    if count is not None:
        return f"{count:,}"
    return "see --check" if table == "book" else "-"


def _silences(summary: Summary) -> Iterator[RenderableType]:
    silences = summary.silences
    if silences.longest_at_ns is None:
        yield Text("No silence over 1 s")
    else:
        longest = f"the longest {duration(silences.longest_ns)} from {utc(silences.longest_at_ns)} UTC"
        yield Text(f"{silences.count:,} silences over 1 s, {longest}")


def _complaints(summary: Summary) -> Iterator[RenderableType]:
    for source in summary.sources:
        for complaint in source.complaints:
            yield Text(f"left out: {complaint}", style="yellow")
        if source.refused > len(source.complaints) > 0:
            yield Text(f"and {source.refused - len(source.complaints):,} more", style="yellow")


def _passed_over(summary: Summary) -> Iterator[RenderableType]:
    """Say what was in the sources that a recording has no place for, over all of them."""
    total: Counter[str] = Counter()
    for source in summary.sources:
        total.update(source.passed_over)
    if total:
        yield Text("Passed over: " + ", ".join(f"{count:,} {what}" for what, count in total.most_common()))
