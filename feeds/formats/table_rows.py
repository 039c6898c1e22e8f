"""Rows of one table as columns, and which event each row is of.

This module must not know any vendor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feeds.formats.format import Part
from feeds.records import I64, MISSING, U8


def with_nulls(numbers: I64) -> pa.Array:
    """Return int64 numbers with null for :data:`~feeds.records.MISSING`."""
    return pa.array(numbers, mask=numbers == MISSING)


class TableRows(NamedTuple):
    """The rows of one table; every column is as long as the first.

    Attributes:
        table: "trades", "quotes" or "book".
        columns: The table's own, by name; a word is the same in all rows.
        flags: uint8.
        some: int64, never decreasing: which event each row is of. None where each event is a row.
    """

    table: str
    columns: Mapping[str, npt.NDArray[Any] | str]
    flags: U8
    some: I64 | None = None

    @property
    def event(self) -> I64:
        """int64: which event each row is of."""
        return np.arange(len(self.flags)) if self.some is None else self.some

    def picked(self, rows: I64) -> TableRows:
        """Return some of the rows, by index."""
        columns = {name: c if isinstance(c, str) else c[rows] for name, c in self.columns.items()}
        return TableRows(self.table, columns, self.flags[rows], rows if self.some is None else self.some[rows])

    def part(self) -> Part:
        """Return the same rows as what a chunk is made of."""
        return Part(self.table, self.columns, self.flags, self.some)
