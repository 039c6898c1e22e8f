"""One row of a benchmark table, and how the table is printed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from rich.console import Console
from rich.table import Table


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement.

    Attributes:
        what: What was measured, with its load.
        figure: The number, with its unit.
        compared_with: The peer or limit measured in the same run, with its number; empty if there is none.
        target: What it must reach, in words.
        reached: Whether it did; None where there is no target.
    """

    what: str
    figure: str
    compared_with: str = ""
    target: str = ""
    reached: bool | None = None


def print_table(title: str, rows: Iterable[Row]) -> None:
    """Print rows as a table; ``reached`` becomes yes, no or nothing."""
    table = Table(title=title)
    for heading in ("what", "figure", "compared with (same run)", "target", "reached"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        reached = {True: "yes", False: "NO", None: ""}[row.reached]
        table.add_row(row.what, row.figure, row.compared_with, row.target, reached)
    Console(width=160).print(table)
