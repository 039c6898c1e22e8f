"""What happens in order books: taken down in flat lists of integers, and handed on as columns.

A list that grows by whole tuples of integers costs a fifth of a list of objects, and becomes columns in one call. What
is one event is known only by its end: :attr:`Transcript.events` says up to where the other lists belong to it.

It must not know how orders are matched or who enters them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from feeds.records import (
    BUY,
    CLEAR,
    I64,
    LAST,
    MISSING,
    NO_SIDE,
    SELL,
    SET,
    SNAPSHOT,
    U8,
    Batch,
    Levels,
    Quotes,
    Trades,
    sums_before,
)
from feeds.venue import Match

#: The best rank of an empty side: worse than every price.
NOTHING: Final = -(2**62)

#: Integers of one entry of each list.
_EVENT: Final = 8
_LEVEL: Final = 2
_PRINT: Final = 4


class Transcript:
    """Everything since the last batch.

    A *rank* is a bid's price, or an offer's price with a minus.

    Attributes:
        events: ``ts, instrument, len(levels), len(prints), bid rank, bid lots, ask rank, ask lots`` at the end of each.
        levels: ``rank, lots`` of each level after a change.
        prints: ``price, lots, side of the aggressor, trade id`` of each trade.
        withdrawn: Keys of orders that were cancelled because they met their owner.
    """

    def __init__(self, instruments: int) -> None:
        self.events: list[int] = []
        self.levels: list[int] = []
        self.prints: list[int] = []
        self.withdrawn: list[int] = []
        self._fills: list[tuple[int, Match]] = []  # with the place that its event will have in ``events``
        self._touch = np.zeros((instruments, 4), np.int64)
        self._seq = 1

    def fill(self, match: Match) -> None:
        """Take down the fill of somebody's order."""
        self._fills.append((len(self.events), match))

    def take_fills(self) -> list[Match]:
        """Return the fills since the last call, in the order of their events' times, and forget them."""
        fills = sorted(self._fills, key=lambda fill: self.events[fill[0]])
        self._fills.clear()
        return [match for _, match in fills]

    def take_withdrawn(self) -> list[int]:
        """Return the keys of the orders that met their owner since the last call, and forget them."""
        withdrawn, self.withdrawn = self.withdrawn, []
        return withdrawn

    def opening(self, ts: int, books: Sequence[tuple[list[tuple[int, int]], list[tuple[int, int]]]]) -> Batch:
        """Return a snapshot of every book with its best bid and offer, and forget what led to it.

        Args:
            ts: ns UTC.
            books: Bids and offers of each instrument, best first: (rank, lots).
        """
        self._forget()
        rows, touches = [], []
        for instrument, (bids, asks) in enumerate(books):
            rows.append((instrument, CLEAR, NO_SIDE, MISSING, 0))
            for side, levels in ((BUY, bids), (SELL, asks)):
                rows += [(instrument, SET, side, abs(rank), lots) for rank, lots in levels]
            bid, ask = (levels[0] if levels else (NOTHING, 0) for levels in (bids, asks))
            touches.append((*bid, *ask))
        ids = np.arange(len(books))
        self._touch[:] = touches
        quotes = _quotes(np.full(len(books), ts), self._numbers(len(books)), ids, self._touch)
        return Batch(ts=ts, quotes=quotes, levels=_snapshots(ts, self._numbers(len(rows)), np.array(rows, np.int64)))

    def batch(self, ts: int) -> Batch:
        """Return what happened, in the order of time, as everything up to ``ts``; and forget it.

        At one instant instruments come in the order of their events; of one event the trades come first, then the
        quote if it changed, then the levels, so that book and quote agree after each row that is the last of its event.
        """
        events = np.array(self.events, np.int64).reshape(-1, _EVENT)
        levels = np.array(self.levels, np.int64).reshape(-1, _LEVEL)
        prints = np.array(self.prints, np.int64).reshape(-1, _PRINT)
        self._forget()
        ends = events[:, 2:4] // (_LEVEL, _PRINT)
        counts = np.diff(ends, axis=0, prepend=0)
        order = np.argsort(events[:, 0], kind="stable")
        events, counts, starts = events[order], counts[order], (ends - counts)[order]
        quoted = self._changed(events[:, 1], events[:, 4:])
        seq = self._seq + sums_before(counts.sum(axis=1) + quoted)
        self._seq = int(seq[-1])
        level_rows = _Rows.of(counts[:, 0], seq[:-1] + counts[:, 1] + quoted)
        print_rows = _Rows.of(counts[:, 1], seq[:-1])
        return Batch(
            ts=ts,
            trades=_trades(events, print_rows, prints[print_rows.of_event(starts[:, 1])]),
            quotes=_quotes(events[quoted, 0], (seq[:-1] + counts[:, 1])[quoted], events[quoted, 1], events[quoted, 4:]),
            levels=_levels(events, level_rows, levels[level_rows.of_event(starts[:, 0])]),
        )

    def _forget(self) -> None:
        for entries in (self.events, self.levels, self.prints):
            entries.clear()

    def _numbers(self, count: int) -> I64:
        """Return the next numbers of rows."""
        self._seq += count
        return np.arange(self._seq - count, self._seq)

    def _changed(self, instrument: I64, touch: I64) -> npt.NDArray[np.bool_]:
        """Return which events changed the best bid or offer of their instrument, and keep the last of each."""
        grouped = np.argsort(instrument, kind="stable")
        ids, touches = instrument[grouped], touch[grouped]
        before = np.empty_like(touches)
        before[1:] = touches[:-1]
        first = np.diff(ids, prepend=-1) != 0
        before[first] = self._touch[ids[first]]
        last = np.diff(ids, append=-1) != 0
        self._touch[ids[last]] = touches[last]
        changed = np.empty(len(ids), np.bool_)
        changed[grouped] = (touches != before).any(axis=1)
        return changed


class _Rows(NamedTuple):
    """The rows that some events have in one table.

    Attributes:
        event: int64: the event of each row.
        within: int64: how many rows of its event are before it.
        seq: int64: its number.
        flags: uint8: LAST at the last row of each event.
    """

    event: I64
    within: I64
    seq: I64
    flags: U8

    @classmethod
    def of(cls, counts: I64, first: I64) -> Self:
        """Return ``counts`` rows for each event, numbered from ``first`` on."""
        event = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(event)) - sums_before(counts)[event]
        last = within + 1 == counts[event]
        return cls(event, within, first[event] + within, np.where(last, LAST, 0).astype(np.uint8))

    def of_event(self, starts: I64) -> I64:
        """Return the place of each row in a list where the rows of each event begin at ``starts``."""
        places: I64 = starts[self.event] + self.within
        return places


def _trades(events: I64, rows: _Rows, prints: I64) -> Trades:
    ts, instrument = events[rows.event, 0], events[rows.event, 1].astype(np.int32)
    price, qty, side, trade_id = prints.T.copy()
    return Trades(
        ts_recv=ts, ts_event=ts, seq=rows.seq, instrument=instrument, flags=rows.flags,
        price=price, qty=qty, side=side.astype(np.int8), trade_id=trade_id,
    )  # fmt: skip


def _quotes(ts: I64, seq: I64, instrument: I64, touch: I64) -> Quotes:
    bid, bid_qty, ask, ask_qty = touch.T.copy()
    return Quotes(
        ts_recv=ts, ts_event=ts, seq=seq, instrument=instrument.astype(np.int32),
        flags=np.full(len(ts), LAST, np.uint8),
        bid_px=np.where(bid_qty, bid, MISSING), bid_qty=bid_qty,
        ask_px=np.where(ask_qty, -ask, MISSING), ask_qty=ask_qty,
    )  # fmt: skip


def _levels(events: I64, rows: _Rows, levels: I64) -> Levels:
    ts, instrument = events[rows.event, 0], events[rows.event, 1].astype(np.int32)
    rank, qty = levels.T.copy()
    count = len(rank)
    return Levels(
        ts_recv=ts, ts_event=ts, seq=rows.seq, instrument=instrument, flags=rows.flags,
        action=np.full(count, SET, np.int8), side=np.sign(rank).astype(np.int8), price=np.abs(rank), qty=qty,
        order_id=np.zeros(count, np.uint64),
    )  # fmt: skip


def _snapshots(ts: int, seq: I64, rows: I64) -> Levels:
    """Return whole books; the columns of ``rows`` are instrument, action, side, price, quantity."""
    instrument, action, side, price, qty = rows.T.copy()
    times = np.full(len(seq), ts)
    last = np.diff(instrument, append=-1) != 0
    return Levels(
        ts_recv=times, ts_event=times, seq=seq, instrument=instrument.astype(np.int32),
        flags=np.where(last, SNAPSHOT | LAST, SNAPSHOT).astype(np.uint8),
        action=action.astype(np.int8), side=side.astype(np.int8), price=price, qty=qty,
        order_id=np.zeros(len(seq), np.uint64),
    )  # fmt: skip
