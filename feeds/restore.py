"""The market as it was at an instant of a recording: every book and the last quote of each instrument.

A book is made from its last snapshot before the instant by applying what lies between. Row groups are looked through
backwards, by the few columns that tell where snapshots are, until there is one of every instrument; what was seen of
a row group is remembered. In a recording with keyframes that ends after one or two row groups. In one without, all of
them are looked through once, and the books are made from the beginning of the tape: memory stays bounded by one row
group and the books themselves, but the time grows with the distance. Quotes are found likewise, back to the last one
of each instrument.

That may take many seconds, so in a worker thread of Trio it ends within a row group when the task that waits for it is
cancelled. This module must not know of sources other than one recording, or of pacing.
"""

from __future__ import annotations

import contextlib
from typing import Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import trio

from feeds import layout
from feeds.book import Books
from feeds.instruments import Instruments
from feeds.records import BUY, CLEAR, GAP, I32, I64, LAST, MISSING, SET, SNAPSHOT, Batch, Levels, Quotes, Table
from feeds.tablereader import TableReader, times_of

TableT = TypeVar("TableT", bound=Table)

#: A row that changes no book: it removes a level that is not there.
_NOTHING: Final = (SET, BUY, 0, 0, 0)


class Restorer:
    """Restores the market of one recording.

    Args:
        book: The file of its book rows, if it has one.
        quotes: The file of its quotes, if it has one.
        instruments: Where symbols have their ids from.
    """

    def __init__(self, book: TableReader | None, quotes: TableReader | None, instruments: Instruments) -> None:
        self._book = book
        self._quotes = quotes
        self._instruments = instruments
        self._ids = {name: instruments.id_of(name) for name in instruments.names}
        # What whole row groups hold, as bits by dense id: instruments with rows, and of these those with a snapshot.
        self._book_marks: dict[int, tuple[int, int]] = {}
        self._quote_marks: dict[int, int] = {}

    def state_before(self, ts_ns: int) -> Batch:
        """Return the market as all rows received before an instant left it, as rows received at that instant.

        Books come first, each a CLEAR and then its orders or levels, flagged SNAPSHOT, the last one LAST too, and GAP
        if something was lost since the book's last snapshot. A row that changes nothing and is no part of the
        snapshot follows, so that a snapshot of the tape that comes next is not taken for the rest of it. Then the
        last quote of each instrument, with its own ``ts_event``. ``seq`` counts up to -1.

        Args:
            ts_ns: ns UTC.

        Raises:
            RecordingError: A row on which it rests is not fit for the bus.
            trio.Cancelled: This is a worker thread, and the task that waits for it was cancelled.
        """
        levels, quotes = self._levels_before(ts_ns), self._quotes_before(ts_ns)
        seq = np.arange(-len(levels) - len(quotes), 0)
        return Batch(
            ts=ts_ns,
            levels=_stamped(levels, ts_ns, seq[: len(levels)]),
            quotes=_stamped(quotes, ts_ns, seq[len(levels) :]),
        )

    # Books

    def _levels_before(self, ts_ns: int) -> Levels:
        books = Books()
        if self._book is not None and self._book.rows:
            group, row = self._start_before(self._book, ts_ns)
            with contextlib.closing(self._book.tables(self._instruments, group=group, row=row)) as tables:
                for table in tables:
                    _heed_cancel()
                    count = int(table.ts_recv.searchsorted(ts_ns))
                    for _ in books.apply(without_superseded(table.slice(0, count))):
                        pass
                    if count < len(table):
                        break
        return restated(books)

    def _start_before(self, book: TableReader, ts_ns: int) -> tuple[int, int]:
        """Return the row group, and the row in it, from which on every book follows up to an instant."""
        last = min(book.group_at(ts_ns), book.groups - 1)
        missing = (1 << len(self._instruments)) - 1
        lowest, lacking = last, 0  # the earliest row group wanted, and of whom
        for group in range(last, -1, -1):
            present, begun = self._marks(book, group, ts_ns if group == last else None)
            if present & missing:
                lowest, lacking = group, present & missing
            missing &= ~begun
            if not missing:
                break
        begins = self._begins(book, lowest, ts_ns)
        rows = begins[_positions(lacking)]
        return lowest, int(rows.min()) if len(rows) and rows.min() >= 0 else 0

    def _marks(self, book: TableReader, group: int, before_ns: int | None) -> tuple[int, int]:
        """Return which instruments a row group has, and of which of them a snapshot, as bits."""
        marks = self._book_marks.get(group)
        if marks is None or before_ns is not None:
            table = self._scanned(book, group, ["ts_recv", "symbol", "evt_flags", "action"], before_ns)
            ids = self._ids_of(table)
            marks = _bits(np.bincount(ids) > 0), _bits(self._begins_of(table, group) >= 0)
            if before_ns is None:
                self._book_marks[group] = marks
        return marks

    def _begins(self, book: TableReader, group: int, ts_ns: int) -> I64:
        table = self._scanned(book, group, ["ts_recv", "symbol", "evt_flags", "action"], ts_ns)
        return self._begins_of(table, group)

    def _begins_of(self, table: pa.Table, group: int) -> I64:
        """Return by instrument the row with which its last snapshot in a row group begins; -1 without one.

        A book begins anew with a CLEAR, and with a row flagged SNAPSHOT that continues none. A row group does not tell
        what came before its first row of an instrument; unless nothing did, that row is passed over.
        """
        ids = self._ids_of(table)
        flags, action = table.column("evt_flags").to_numpy(), table.column("action").to_numpy()
        begins = np.full(len(self._instruments), -1, dtype=np.int64)
        found = [np.flatnonzero(action == CLEAR)]
        if (in_snapshot := flags & SNAPSHOT != 0).any():
            order = np.argsort(ids, kind="stable")
            same = np.diff(ids[order], prepend=-2) == 0
            anew = np.where(same, ~np.roll(in_snapshot[order], 1), group == 0)
            found.append(order[in_snapshot[order] & anew])
        np.maximum.at(begins, ids[rows := np.concatenate(found)], rows)
        return begins

    # Quotes

    def _quotes_before(self, ts_ns: int) -> Quotes:
        if self._quotes is None:
            return Quotes.empty()
        quotes = self._quotes
        last = min(quotes.group_at(ts_ns), quotes.groups - 1)
        missing, found = (1 << len(self._instruments)) - 1, []
        for group in range(last, -1, -1):
            present = self._present(quotes, group, ts_ns if group == last else None)
            if wanted := present & missing:
                found.append(self._last_quotes(quotes, group, _positions(wanted), ts_ns))
                missing &= ~wanted
            if not missing:
                break
        return Quotes.concatenate(found)

    def _present(self, quotes: TableReader, group: int, before_ns: int | None) -> int:
        present = self._quote_marks.get(group)
        if present is None or before_ns is not None:
            ids = self._ids_of(self._scanned(quotes, group, ["ts_recv", "symbol"], before_ns))
            present = _bits(np.bincount(ids) > 0)
            if before_ns is None:
                self._quote_marks[group] = present
        return present

    def _last_quotes(self, quotes: TableReader, group: int, wanted: I64, ts_ns: int) -> Quotes:
        """Return the last quote of each instrument that is wanted, in a row group that has one, before an instant."""
        table = self._scanned(quotes, group, layout.needed("quotes"), ts_ns)
        ids = self._ids_of(table)
        last = np.full(len(self._instruments), -1, dtype=np.int64)
        np.maximum.at(last, ids, np.arange(len(ids)))
        (rows,) = table.take(np.sort(last[wanted])).combine_chunks().to_batches()
        decoded = layout.Decoder("quotes", quotes.path, self._instruments, first_row=quotes.first_row(group)).decode(
            rows
        )
        assert isinstance(decoded, Quotes)
        return decoded

    # Both

    def _scanned(self, file: TableReader, group: int, columns: list[str], before_ns: int | None) -> pa.Table:
        _heed_cancel()
        table = file.read(group, columns)
        if before_ns is None:
            return table
        return table.slice(0, int(times_of(table).searchsorted(before_ns)))

    def _ids_of(self, table: pa.Table) -> I32:
        """Return dense ids; rows without a known symbol, which are refused when they are read, count as the first."""
        parts = []
        for chunk in table.column("symbol").chunks:
            codes, symbols = layout.symbol_codes(chunk)
            known = [0 if symbol is None else self._ids.get(symbol, 0) for symbol in symbols]
            parts.append(np.array([*known, 0], dtype=np.int32)[codes])
        return np.concatenate([np.empty(0, dtype=np.int32), *parts])


def _heed_cancel() -> None:
    """Raise :exc:`trio.Cancelled` in a worker thread whose task was cancelled."""
    with contextlib.suppress(RuntimeError):  # no worker thread: whoever calls waits for the end
        trio.from_thread.check_cancelled()


def without_superseded(levels: Levels) -> Levels:
    """Return fewer rows that leave every book as all of them do: a level that is set again need not be set before.

    Looked at are the rows behind the last one that is more than a level set; applying is ten times the work.
    """
    other = np.flatnonzero((levels.action != SET) | (levels.flags & (SNAPSHOT | GAP) != 0))
    head = int(other[-1]) + 1 if len(other) else 0
    rows = levels.slice(head, len(levels))
    order = np.lexsort((rows.price, rows.instrument * 3 + rows.side))
    price, place = rows.price[order], (rows.instrument * 3 + rows.side)[order]
    last = np.append((np.diff(price) != 0) | (np.diff(place) != 0), True)[: len(order)]
    return levels.take(np.concatenate((np.arange(head), head + np.sort(order[last]))))


def restated(books: Books) -> Levels:
    """Return the rows that make books out of nothing, see :meth:`Restorer.state_before`; of times and numbers all 0."""
    ids, flags, rows = [], [], []
    for instrument in books:
        book, stale = books.rows(instrument), books[instrument].stale
        if stale and len(book) == 1:
            book.append(_NOTHING)  # a loss is told after the row that empties the book
        marks = [SNAPSHOT] * (len(book) - 1) + [SNAPSHOT | LAST | (GAP if stale else 0)]
        if not books.in_snapshot(instrument):
            book.append(_NOTHING)
            marks.append(LAST)
        rows += book
        flags += marks
        ids += [instrument] * len(book)
    if not rows:
        return Levels.empty()
    columns = zip(("action", "side", "price", "qty", "order_id"), zip(*rows, strict=True), strict=True)
    nothing = np.zeros(len(rows), dtype=np.int64)
    return Levels(
        ts_recv=nothing,
        ts_event=np.full(len(rows), MISSING),
        seq=nothing,
        instrument=np.array(ids, dtype=np.int32),
        flags=np.array(flags, dtype=np.uint8),
        **{name: np.array(column, Levels.DTYPES[name]) for name, column in columns},
    )


def _stamped(table: TableT, ts_ns: int, seq: I64) -> TableT:
    return msgspec.structs.replace(table, ts_recv=np.full(len(table), ts_ns), seq=seq)


def _bits(mask: npt.NDArray[np.bool_]) -> int:
    """Return the positions that are true as the bits of an integer."""
    return int.from_bytes(np.packbits(mask, bitorder="little").tobytes(), "little")


def _positions(bits: int) -> I64:
    return np.array([i for i in range(bits.bit_length()) if bits >> i & 1], dtype=np.int64)
