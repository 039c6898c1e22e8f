"""What travels on the bus: columns of trades, quotes and book rows, and the batch that carries them.

A table is one 1-D numpy array per field, all of one length; row *i* is the *i*-th event in the order of the tape.
A batch is everything that happened up to an instant. Its tables are each in tape order; ``seq`` orders rows across
tables. Whoever puts a batch on the bus gives it away: the arrays are never written again, so every reader may keep
views of them.

Times are int64 nanoseconds UTC, prices int64 ticks, quantities int64 lots (:mod:`feeds.instruments`). A missing
price or time is :data:`MISSING`; NaN and floats do not exist on the bus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Final, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

#: An absent price or time: the bid of an empty side, an event time that the venue did not give (numpy's NaT).
MISSING: Final = int(np.iinfo(np.int64).min)

# Bits of ``flags``, the values of Databento's DBN where it has them.
LAST: Final = 0x80  #: the last row of one venue event; a book is consistent only after it
SNAPSHOT: Final = 0x20  #: part of a snapshot, not of an update
BAD_TS_RECV: Final = 0x08  #: the receive time is not to be trusted
GAP: Final = 0x04  #: something before this row was lost

# Values of ``action`` in a book row.
SET: Final = 0  #: the level's quantity is now ``qty`` (0 removes it)
ADD: Final = 1  #: a new order
CANCEL: Final = 2  #: an order is reduced by ``qty``, and gone when nothing is left
MODIFY: Final = 3  #: an order now has this price and quantity
CLEAR: Final = 4  #: the whole book is emptied
TRADE: Final = 5  #: an aggressor traded; informative, the book does not change
FILL: Final = 6  #: a resting order was filled; informative, a CANCEL or MODIFY follows

# Values of ``side``: of a book row its side, of a trade its aggressor.
BUY: Final = 1
SELL: Final = -1
NO_SIDE: Final = 0


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """The columns that every table has; all arrays are 1-D and of one length.

    Attributes:
        ts_recv: int64 ns UTC, never decreasing: the replay clock.
        ts_event: int64 ns UTC of the venue, or :data:`MISSING`; may run backwards.
        seq: int64, strictly increasing over all tables of a source: the total order.
        instrument: int32 dense id.
        flags: uint8 bits, see :data:`LAST` and its neighbours.
    """

    DTYPES: ClassVar[dict[str, type[np.generic]]] = {
        "ts_recv": np.int64,
        "ts_event": np.int64,
        "seq": np.int64,
        "instrument": np.int32,
        "flags": np.uint8,
    }

    ts_recv: I64
    ts_event: I64
    seq: I64
    instrument: I32
    flags: U8

    def __len__(self) -> int:
        return len(self.ts_recv)

    @classmethod
    @cache
    def empty(cls) -> Self:
        """Return a table without rows, always the same one."""
        return cls(**{name: np.empty(0, dtype) for name, dtype in cls.DTYPES.items()})

    @classmethod
    def concatenate(cls, tables: list[Self]) -> Self:
        """Return the rows of all tables, in the order given."""
        if len(tables) == 1:
            return tables[0]
        if not tables:
            return cls.empty()
        return cls(**{n: np.concatenate([getattr(t, n) for t in tables]) for n in cls.DTYPES})

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays by field name, in the order of :attr:`DTYPES`."""
        return {name: getattr(self, name) for name in self.DTYPES}

    def slice(self, start: int, stop: int) -> Self:
        """Return rows ``start`` to ``stop`` as views; no copy."""
        return type(self)(**{n: c[start:stop] for n, c in self.columns().items()})

    def take(self, rows: npt.NDArray[Any]) -> Self:
        """Return the rows picked by an index or boolean array, as copies."""
        return type(self)(**{n: c[rows] for n, c in self.columns().items()})


class Trades(Table, frozen=True, kw_only=True):
    """Prints on the tape.

    Attributes:
        price: int64 ticks.
        qty: int64 lots; zero-size prints exist in real data.
        side: int8 aggressor: :data:`BUY`, :data:`SELL`, or :data:`NO_SIDE` where the venue did not say.
        trade_id: int64, the venue's where it is a number, else its row in the recording, from 1.
    """

    DTYPES: ClassVar[dict[str, type[np.generic]]] = {
        **Table.DTYPES,
        "price": np.int64,
        "qty": np.int64,
        "side": np.int8,
        "trade_id": np.int64,
    }

    price: I64
    qty: I64
    side: I8
    trade_id: I64


class Quotes(Table, frozen=True, kw_only=True):
    """Best bid and offer after each change.

    Attributes:
        bid_px: int64 ticks, :data:`MISSING` where there is no bid.
        bid_qty: int64 lots, 0 where there is no bid.
        ask_px: int64 ticks, :data:`MISSING` where there is no offer.
        ask_qty: int64 lots, 0 where there is no offer.
    """

    DTYPES: ClassVar[dict[str, type[np.generic]]] = {
        **Table.DTYPES,
        "bid_px": np.int64,
        "bid_qty": np.int64,
        "ask_px": np.int64,
        "ask_qty": np.int64,
    }

    bid_px: I64
    bid_qty: I64
    ask_px: I64
    ask_qty: I64


class Levels(Table, frozen=True, kw_only=True):
    """Changes of order books, by level (:data:`SET`, :data:`CLEAR`) or by order (the other actions).

    Attributes:
        action: int8, see :data:`SET` and its neighbours.
        side: int8, :data:`BUY` for bids, :data:`SELL` for offers, :data:`NO_SIDE` for neither.
        price: int64 ticks, or :data:`MISSING`.
        qty: int64 lots.
        order_id: uint64, 0 in books by level.
    """

    DTYPES: ClassVar[dict[str, type[np.generic]]] = {
        **Table.DTYPES,
        "action": np.int8,
        "side": np.int8,
        "price": np.int64,
        "qty": np.int64,
        "order_id": np.uint64,
    }

    action: I8
    side: I8
    price: I64
    qty: I64
    order_id: U64


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that happened since the batch before it, up to ``ts``.

    Attributes:
        ts: int64 ns UTC, not before any ``ts_recv`` inside.
        trades: Prints, in tape order.
        quotes: Best bid and offer, in tape order.
        levels: Book rows, in tape order.
    """

    ts: int
    trades: Trades = msgspec.field(default_factory=Trades.empty)
    quotes: Quotes = msgspec.field(default_factory=Quotes.empty)
    levels: Levels = msgspec.field(default_factory=Levels.empty)

    def __len__(self) -> int:
        """Rows in all tables together."""
        return len(self.trades) + len(self.quotes) + len(self.levels)

    def by_event(self) -> Iterator[Batch]:
        """Return the same rows cut into batches with one trade or one quote each.

        Book rows stay with the event before them. For readers that want to see the state after every single event.
        """
        if len(self.trades) + len(self.quotes) <= 1:
            yield self
            return
        yield from self._cut(np.sort(np.concatenate((self.trades.seq, self.quotes.seq)))[1:])

    def split(self, seq: int) -> tuple[Batch, Batch]:
        """Return the rows before a place on the tape, and those from there on."""
        before, after = self._cut(np.array([seq]))
        return before, after

    def _cut(self, cuts: I64) -> Iterator[Batch]:
        tables = (self.trades, self.quotes, self.levels)
        bounds = [(0, *np.searchsorted(table.seq, cuts).tolist(), len(table)) for table in tables]
        for piece in zip(*[pairwise(bound) for bound in bounds], strict=True):
            trades, quotes, levels = [table.slice(*rows) for table, rows in zip(tables, piece, strict=True)]
            yield Batch(ts=self.ts, trades=trades, quotes=quotes, levels=levels)  # type: ignore[arg-type]


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """Something about the stream itself, in its place between the batches.

    Attributes:
        kind: ``epoch``: numbering and state begin anew (start, loop, restart). ``gap``: events were lost here, and
            books are not to be trusted before their next snapshot. ``end``: nothing follows.
        ts: int64 ns UTC of the stream.
        reason: Why, in words for a log or a client.
    """

    kind: Literal["epoch", "gap", "end"]
    ts: int
    reason: str


#: What a feed writes to its channel.
Event = Batch | Marker


def event_times(table: Table) -> I64:
    """Return when each row happened: the venue's time where it gave one, else the time of receipt; int64 ns."""
    return np.where(table.ts_event == MISSING, table.ts_recv, table.ts_event)


def sums_before(values: I64 | npt.NDArray[np.bool_]) -> I64:
    """Return the sum of the values before each, and of all: shape ``(values + 1,)``."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


class StreamDigest:
    """A SHA-256 of a stream's content that does not depend on how the stream was cut into batches.

    Each column of each table has its own running hash, so only the sequence of values counts. Times are taken
    relative to ``origin_ns``: a simulated market started today repeats the one started yesterday.
    """

    def __init__(self, origin_ns: int = 0) -> None:
        self._origin = np.int64(origin_ns)
        tables: tuple[type[Table], ...] = (Trades, Quotes, Levels)
        self._hashes = [{name: hashlib.sha256() for name in table.DTYPES} for table in tables]

    def update(self, batch: Batch) -> None:
        """Take in the rows of one batch."""
        for hashes, table in zip(self._hashes, (batch.trades, batch.quotes, batch.levels), strict=True):
            if not len(table):
                continue
            for name, column in table.columns().items():
                if self._origin and name.startswith("ts_"):
                    column = np.where(column == MISSING, column, column - self._origin)
                hashes[name].update(np.ascontiguousarray(column).data)

    def hexdigest(self) -> str:
        """Return the digest of everything seen so far, 64 hexadecimal digits."""
        whole = hashlib.sha256()
        for hashes in self._hashes:
            for name, column in hashes.items():
                whole.update(name.encode() + column.digest())
        return whole.hexdigest()
