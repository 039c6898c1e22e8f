"""What is to be said about rows on their way into a recording: how many, how far, and what is odd about them.

Nothing that it counts is an error: books are crossed before an opening auction, and one trade may be reported twice.
This module must not know where the rows come from, and sees each of them once, in their order.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feeds.book import Books
from feeds.formats.format import Chunk
from feeds.formats.merge import times
from feeds.layout import MAX_DECIMALS, TABLES
from feeds.records import BAD_TS_RECV, GAP, I64, MISSING, Levels
from feeds.store import SILENCE_NS, Silences

U64 = npt.NDArray[np.uint64]

#: The columns in which two rows must agree, besides receive time and symbol, for one to repeat the other.
_IDENTITY: Final = {
    "trades": ("ts_event", "price", "qty", "side", "venue_seq"),
    "quotes": ("ts_event", "bid_px", "bid_qty", "ask_px", "ask_qty", "venue_seq"),
    "book": ("ts_event", "action", "side", "price", "qty", "order_id", "venue_seq"),
}


class TableSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of one table.

    Attributes:
        table: "trades", "quotes" or "book".
        rows: All rows.
        inversions: How often ``ts_event`` is earlier than in the last row before it that has one.
        held: Rows whose receive time ran backwards and was held, or was given as not to be trusted.
        gaps: Rows that say that something before them was lost.
        crossed: Quotes, or events after which a book is, with a bid at or above the offer. None if not looked for.
        duplicates: Rows that repeat another one received at the same instant in everything but their number.
    """

    table: str
    rows: int
    inversions: int
    held: int
    gaps: int
    crossed: int | None
    duplicates: int


class Survey:
    """Counts over a whole tape, taken chunk by chunk.

    Args:
        books: Keep every book to see whether it is crossed; that takes several times as long as all the rest.
    """

    def __init__(self, *, books: bool = False) -> None:
        self.start_ns = self.end_ns = MISSING
        self._tables = {table: _Table(table, books=books) for table in TABLES}
        self._silences = self._longest = 0
        self._longest_at: int | None = None

    def add(self, chunk: Chunk) -> None:
        """Take in the next rows."""
        received = [times(rows) for rows in chunk.values()]  # each in order
        self._add_times(received[0] if len(received) == 1 else np.sort(np.concatenate(received), kind="stable"))
        for table, rows in chunk.items():
            self._tables[table].add(rows)

    def _add_times(self, received: I64) -> None:
        if self.end_ns == MISSING:
            self.start_ns = self.end_ns = int(received[0])
        apart = np.diff(received, prepend=self.end_ns)
        self._silences += int(np.count_nonzero(apart > SILENCE_NS))
        if (longest := int(apart.max())) > max(self._longest, SILENCE_NS):
            at = int(np.argmax(apart))
            self._longest, self._longest_at = longest, int(received[at]) - longest
        self.end_ns = int(received[-1])

    @property
    def silences(self) -> Silences:
        """Stretches of more than a second in which nothing was received."""
        return Silences(count=self._silences, longest_ns=self._longest, longest_at_ns=self._longest_at)

    def tables(self) -> tuple[TableSummary, ...]:
        """Return what was seen of each table that has rows."""
        return tuple(table.summary() for table in self._tables.values() if table.rows)


class _Table:
    def __init__(self, table: str, *, books: bool) -> None:
        self.rows = 0
        self._table = table
        self._inversions = self._held = self._gaps = self._crossed = 0
        self._last_event = MISSING
        self._repeats = _Repeats(_IDENTITY[table])
        self._books = _Crossings() if books and table == "book" else None

    def add(self, rows: pa.RecordBatch) -> None:
        self.rows += rows.num_rows
        flags = rows.column("evt_flags").to_numpy()
        self._held += int(np.count_nonzero(flags & BAD_TS_RECV))
        self._gaps += int(np.count_nonzero(flags & GAP))
        event = rows.column("ts_event").drop_null().view(pa.int64()).to_numpy()
        if len(event):
            self._inversions += int(np.count_nonzero(event[1:] < event[:-1])) + (int(event[0]) < self._last_event)
            self._last_event = int(event[-1])
        self._repeats.add(rows)
        if self._table == "quotes":
            self._crossed += int(pc.sum(pc.greater_equal(rows.column("bid_px"), rows.column("ask_px"))).as_py() or 0)
        elif self._books is not None:
            self._crossed += self._books.count(rows)

    def summary(self) -> TableSummary:
        looked = self._table == "quotes" or self._books is not None
        return TableSummary(
            table=self._table,
            rows=self.rows,
            inversions=self._inversions,
            held=self._held,
            gaps=self._gaps,
            crossed=self._crossed if looked else None,
            duplicates=self._repeats.count,
        )


class _Repeats:
    """Counts rows that repeat another one of the same instant, by a hash of 64 bits."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.count = 0
        self._columns = columns
        self._ts = MISSING
        self._open: U64 = np.zeros(0, np.uint64)  # hashes of the rows received at the last instant

    def add(self, rows: pa.RecordBatch) -> None:
        ts = times(rows)
        same = np.zeros(len(ts) + 1, np.bool_)
        same[1:-1] = ts[1:] == ts[:-1]
        same[0], same[-1] = ts[0] == self._ts, True
        # A row whose instant no other row has repeats nothing; the last one may yet have company.
        candidates = np.flatnonzero(same[1:] | same[:-1])
        ts = ts[candidates]
        hashes = self._hashes(rows.take(pa.array(candidates)), ts)
        first, last = hashes[: np.searchsorted(ts, ts[0], "right")], hashes[np.searchsorted(ts, ts[-1]) :]
        goes_on = ts[0] == self._ts
        if goes_on:
            self.count += len(np.intersect1d(first, self._open))
        self._open = np.union1d(self._open, last) if goes_on and len(last) == len(ts) else last
        self._ts = int(ts[-1])
        ordered = np.sort(hashes)
        self.count += int(np.count_nonzero(ordered[1:] == ordered[:-1]))

    def _hashes(self, rows: pa.RecordBatch, ts: I64) -> U64:
        found = _mixed(np.zeros(len(ts), np.uint64), ts)
        found = _mixed(found, _word_hashes(rows.column("symbol")))
        for name in self._columns:
            found = _mixed(found, _bits(rows.column(name)))
        # Where a venue numbers its trades by their ids, the numbers have been mixed in already.
        if "trade_id" in rows.schema.names and rows.column("venue_seq").null_count:
            found = _mixed(found, np.fromiter(map(hash, rows.column("trade_id").to_pylist()), np.int64, len(ts)))
        return found


def _word_hashes(column: pa.DictionaryArray) -> I64:
    words: I64 = np.array([hash(word) for word in column.dictionary.to_pylist()], np.int64)
    hashes: I64 = words[column.indices.to_numpy()]
    return hashes


def _bits(column: pa.Array) -> npt.NDArray[Any]:
    """Return 64 bits for each value, the same for the same value."""
    if pa.types.is_timestamp(column.type):
        column = column.view(pa.int64())
    values: npt.NDArray[Any] = (pc.fill_null(column, 0) if column.null_count else column).to_numpy()
    return values if values.dtype.itemsize == 8 else values.astype(np.int64)


def _mixed(hashes: U64, values: npt.NDArray[Any]) -> U64:
    # One round of splitmix64's finaliser: enough that neighbouring numbers do not collide.
    mixed = (hashes ^ values.view(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(31))


class _Crossings:
    """Keeps books to see which of their events leave them crossed.

    No instrument's precision is known while its rows come in for the first time, so all are taken to have as many
    decimals as there can be.
    """

    SCALE: Final = 10.0**MAX_DECIMALS

    def __init__(self) -> None:
        self._books = Books()
        self._ids: dict[str, int] = {}

    def count(self, rows: pa.RecordBatch) -> int:
        """Return how many events among the rows leave a book crossed."""
        return sum(self._books[event.instrument].crossed for event in self._books.apply(self._levels(rows)))

    def _levels(self, rows: pa.RecordBatch) -> Levels:
        symbol = rows.column("symbol")
        ids = [self._ids.setdefault(word, len(self._ids)) for word in symbol.dictionary.to_pylist()]
        ts = times(rows)
        return Levels(
            ts_recv=ts,
            ts_event=ts,
            seq=rows.column("seq").to_numpy(),
            instrument=np.array(ids, np.int32)[symbol.indices.to_numpy()],
            flags=rows.column("evt_flags").to_numpy(),
            action=rows.column("action").to_numpy(),
            side=rows.column("side").to_numpy(),
            price=self._units(rows.column("price"), MISSING),
            qty=self._units(rows.column("qty"), 0),
            order_id=pc.fill_null(rows.column("order_id"), 0).to_numpy(),
        )

    def _units(self, column: pa.Array, null: int) -> I64:
        values = pc.fill_null(column, np.nan).to_numpy()
        # Beyond what fits, which no real book reaches, only the order counts.
        units = np.rint(np.nan_to_num(values) * self.SCALE).clip(-(2.0**62), 2.0**62).astype(np.int64)
        return np.where(np.isnan(values), null, units)
