"""The rows of many sources in one order, chunk by chunk.

The order is (``ts_recv``, rank of the source, ``seq``), and rows are numbered anew in it. Only what the sources have
at hand is held: what comes before everything that any of them may still say goes out. This module must not know of
formats or files; for rows that are integers already there is a merge of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feeds.formats.format import Chunk, Numbering
from feeds.records import I64


class Tape(NamedTuple):
    """A source of chunks that is opened when its time has come.

    Attributes:
        rank: Of rows received at the same instant, those of the lower rank come first. Tapes of one rank are tables
            of one recording, whose ``seq`` goes through all of them.
        start_ns: Nothing in it is earlier. A tape that starts late is opened late, so that a year of daily files
            needs no more memory than two.
        read: Returns its chunks.
    """

    rank: int
    start_ns: int
    read: Callable[[], Iterator[Chunk]]


class _Key(NamedTuple):
    """A place in the order."""

    ts: int
    rank: int
    seq: int


class _Open:
    """A tape that is being read: the chunk at hand, and what of it is still to go out."""

    def __init__(self, tape: Tape) -> None:
        self.rank = tape.rank
        self._chunks = tape.read()
        self._rows: dict[str, pa.RecordBatch] = {}
        self._keys: dict[str, tuple[I64, I64]] = {}

    def fill(self) -> bool:
        """Have rows at hand; return whether there are any."""
        while not self._rows:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._rows = {table: rows for table, rows in chunk.items() if rows.num_rows}
            self._keys = {table: (times(rows), rows.column("seq").to_numpy()) for table, rows in self._rows.items()}
        return True

    @property
    def end(self) -> _Key:
        """The place of the last row at hand."""
        ts, seq = max((int(ts[-1]), int(seq[-1])) for ts, seq in self._keys.values())
        return _Key(ts, self.rank, seq)

    def take(self, upto: _Key) -> list[_Piece]:
        """Return the rows up to and with a place, and forget them."""
        pieces = []
        for table, (ts, seq) in list(self._keys.items()):
            cut = int(np.searchsorted(ts, upto.ts, "right" if self.rank < upto.rank else "left"))
            if self.rank == upto.rank:
                same = int(np.searchsorted(ts, upto.ts, "right"))
                cut += int(np.searchsorted(seq[cut:same], upto.seq, "right"))
            rows = self._rows[table]
            if cut:
                pieces.append(_Piece(table, self.rank, rows.slice(0, cut), ts[:cut], seq[:cut]))
            if cut == rows.num_rows:
                del self._rows[table], self._keys[table]
            else:
                self._rows[table], self._keys[table] = rows.slice(cut), (ts[cut:], seq[cut:])
        return pieces


class _Piece(NamedTuple):
    table: str
    rank: int
    rows: pa.RecordBatch
    ts: I64
    seq: I64


def times(rows: pa.RecordBatch) -> I64:
    """Return ``ts_recv`` as int64 ns, a view."""
    values: I64 = rows.column("ts_recv").view(pa.int64()).to_numpy()
    return values


def merged(tapes: Sequence[Tape]) -> Iterator[Chunk]:
    """Yield all rows of all tapes in one order, numbered from 0.

    Raises:
        RecordingError: A tape cannot be read.
    """
    waiting = sorted(tapes, key=lambda tape: tape.start_ns, reverse=True)
    tapes_open: list[_Open] = []
    numbering = Numbering()
    while waiting or tapes_open:
        tapes_open = [tape for tape in tapes_open if tape.fill()]
        upto = min((tape.end for tape in tapes_open), default=None)
        if waiting and (upto is None or waiting[-1].start_ns <= upto.ts):
            tapes_open.append(_Open(waiting.pop()))
        elif upto is not None:
            yield _in_order([piece for tape in tapes_open for piece in tape.take(upto)], numbering)


def _in_order(pieces: list[_Piece], numbering: Numbering) -> Chunk:
    parts: dict[str, list[tuple[pa.RecordBatch, I64]]] = {}
    for piece, numbers in zip(pieces, _numbers(pieces, numbering), strict=True):
        parts.setdefault(piece.table, []).append((piece.rows, numbers))
    return {table: _table(own) for table, own in parts.items()}


def _numbers(pieces: list[_Piece], numbering: Numbering) -> list[I64]:
    """Return which place in the whole order each row of each piece has."""
    lengths = [len(piece.ts) for piece in pieces]
    numbers = numbering.take(sum(lengths))
    if len(pieces) == 1:
        return [numbers]
    keys = [np.concatenate([piece.seq for piece in pieces]), np.repeat([piece.rank for piece in pieces], lengths)]
    order = np.lexsort((*keys, np.concatenate([piece.ts for piece in pieces])))
    numbers[order] = numbers.copy()
    return np.split(numbers, np.cumsum(lengths)[:-1])


def _table(parts: list[tuple[pa.RecordBatch, npt.NDArray[np.int64]]]) -> pa.RecordBatch:
    """Return the rows of one table by their new numbers."""
    rows, numbers = parts[0]
    at = rows.schema.get_field_index("seq")
    if len(parts) == 1:
        return rows.set_column(at, rows.schema.field(at), pa.array(numbers))
    table = pa.Table.from_batches([rows for rows, _ in parts]).unify_dictionaries()
    numbers = np.concatenate([numbers for _, numbers in parts])
    order = np.argsort(numbers)
    table = table.set_column(at, table.schema.field(at), pa.array(numbers)).take(pa.array(order)).combine_chunks()
    return table.to_batches()[0]
