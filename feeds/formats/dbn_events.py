"""Events that came in records of several kinds, put into the order of those records.

This module must not know what a record holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from feeds.formats.format import Part
from feeds.formats.source import Source
from feeds.records import I32, I64, U8


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


class Events(NamedTuple):
    """What the records of one kind in a block of a file say.

    Attributes:
        kind: The kind's number.
        record: int64, never decreasing: the record of each event, counted in the block.
        ts_recv: int64 ns UTC.
        ts_event: int64 ns UTC, or MISSING.
        sequence: int64, the venue's, or MISSING.
        code: int32, the code of its symbol.
        tables: The rows that they make, in the order in which those of one event follow each other.
    """

    kind: int
    record: I64
    ts_recv: I64
    ts_event: I64
    sequence: I64
    code: I32
    tables: list[TableRows]


#: The number of no kind.
_NOBODY: Final = -1
#: The order of tables in an event: a trade comes after the quote that it met and before what it did to the book.
_ORDER: Final = ("quotes", "trades", "book")


class Tellers:
    """Who tells each instrument's story in each table: the kind that has its first record, then and for ever."""

    def __init__(self) -> None:
        self._tellers: dict[str, npt.NDArray[np.int16]] = {}  # by table and code

    def own(self, said: list[Events], source: Source) -> list[Events]:
        """Return the events of a block without the rows whose story another kind tells; count those."""
        for table in {rows.table for events in said for rows in events.tables}:
            self._settle(table, [(events, rows) for events in said for rows in events.tables if rows.table == table])
        return [events._replace(tables=[self._own(events, rows, source) for rows in events.tables]) for events in said]

    def _settle(self, table: str, said: list[tuple[Events, TableRows]]) -> None:
        """Give the instruments that are new in a table to the kind that is the first to have a row of each."""
        codes = [_codes(events, rows) for events, rows in said]
        known = self._tellers.get(table, np.zeros(0, np.int16))
        more = max(int(code.max(initial=-1)) for code in codes) + 1 - len(known)
        tellers = self._tellers[table] = np.append(known, np.full(max(more, 0), _NOBODY, np.int16))
        if all((tellers[code] != _NOBODY).all() for code in codes):
            return
        first = np.where(tellers == _NOBODY, np.iinfo(np.int64).max, -1)
        for code, (events, rows) in zip(codes, said, strict=True):
            some, at = np.unique(code, return_index=True)
            record = events.record[rows.event[at]]
            earlier = record < first[some]
            first[some[earlier]], tellers[some[earlier]] = record[earlier], events.kind

    def _own(self, events: Events, rows: TableRows, source: Source) -> TableRows:
        own = self._tellers[rows.table][_codes(events, rows)] == events.kind
        if own.all():
            return rows
        source.pass_over(f"{rows.table} told twice", int(np.count_nonzero(~own)))
        return rows.picked(np.flatnonzero(own))


def _codes(events: Events, rows: TableRows) -> I32:
    return events.code if rows.some is None else events.code[rows.some]


def merged(said: list[Events]) -> Events | None:
    """Return the events of several kinds in the order of their records, each table once; None if there are none."""
    if len(said) < 2:
        return said[0] if said else None
    order = np.argsort(np.concatenate([events.record for events in said]), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    tables: dict[str, list[TableRows]] = {}
    start = 0
    for events in said:
        for rows in events.tables:
            tables.setdefault(rows.table, []).append(rows._replace(some=place[start + rows.event]))
        start += len(events.record)
    record, ts_recv, ts_event, sequence, code = (
        np.concatenate(column)[order] for column in list(zip(*said, strict=True))[1:6]
    )
    rows_of = [_joined(tables[table]) for table in _ORDER if table in tables]
    return Events(_NOBODY, record, ts_recv, ts_event, sequence, code, rows_of)


def _joined(kinds: list[TableRows]) -> TableRows:
    """Return the rows of several kinds in one table, in the order of their events."""
    event = np.concatenate([rows.event for rows in kinds])
    columns = {
        name: c if isinstance(c, str) else np.concatenate([rows.columns[name] for rows in kinds])
        for name, c in kinds[0].columns.items()
    }
    flags = np.concatenate([rows.flags for rows in kinds])
    return TableRows(kinds[0].table, columns, flags, event).picked(np.argsort(event, kind="stable"))
