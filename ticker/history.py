"""The market as it is now: the last state of every stream, and what a newcomer is shown.

One writer, :meth:`History.apply`, called for every batch; everybody else reads. Each stream numbers its events from 1
inside an *epoch*; a new epoch (start, loop, restart of the feed) begins with nothing. It must not know subscribers
or formats.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.analytics import CandleColumns, Candles, DayRows, DayStatistics
from feeds.book import BookEvent, Books
from feeds.instruments import MAX_UNITS, Instruments
from feeds.records import I32, I64, LAST, MISSING, Batch, Levels, Marker, Quotes, Trades, event_times
from feeds.sums import accumulated
from ticker.codec import rfc3339_column
from ticker.prints import ROW_BYTES, Print, Prints
from ticker.timeline import timeline

F64 = npt.NDArray[np.float64]

#: From here on it is worth sorting rows of books to leave out those that others follow at the same price.
MANY_ROWS: Final = 64

#: A ticker in units of price and quantity, as :meth:`ticker.codec.RowCodec.ticker` prints it; where a double cannot say
#: it all, the same in ticks and lots.
TickerRow = tuple[tuple[float | str, ...], tuple[float, ...] | None]


class HistoryOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of what has happened is kept for those who missed it.

    Attributes:
        trade_rows: Trades of all instruments together, shared out evenly; 50 of each are kept in any case.
        trade_bytes: The memory that they may take.
        event_rows: Events of one symbol that ``batch`` or ``raw`` of another channel than ``trade`` keeps.
        event_bytes: The text that they may have.
        linger_s: For how many seconds such events are kept after the last subscriber has left.
    """

    trade_rows: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000
    trade_bytes: Annotated[int, msgspec.Meta(ge=1)] = 64 << 20
    event_rows: Annotated[int, msgspec.Meta(ge=1)] = 4096
    event_bytes: Annotated[int, msgspec.Meta(ge=1)] = 4 << 20
    linger_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0


class TickerColumns(msgspec.Struct, frozen=True):
    """The ticker of several instruments.

    Columns of floats are divided by their scales all at once; rows are made of them only to be printed.

    Attributes:
        values: bid, bid_qty, ask, ask_qty, last, volume, vwap, low, high, change in ticks and lots, and change_pct in
            percent; int64 or float64, shape ``(m,)`` each. A price may be :data:`feeds.records.MISSING`.
        ts: int64 ns UTC, shape ``(m,)``.
    """

    values: tuple[npt.NDArray[Any], ...]
    ts: I64

    def pick(self, rows: npt.NDArray[Any]) -> TickerColumns:
        """Return the rows picked by an index array."""
        return TickerColumns(tuple(column[rows] for column in self.values), self.ts[rows])

    def rows(self, price_scale: F64, qty_scale: F64) -> list[TickerRow]:
        """Return a row for each instrument.

        Args:
            price_scale: Ticks per unit of price, shape ``(m,)``.
            qty_scale: Lots per unit of quantity, shape ``(m,)``.
        """
        bid, bid_qty, ask, ask_qty, last, volume, vwap, low, high, change, change_pct = self.values
        p, q = price_scale, qty_scale
        whole = (bid != MISSING) & (ask != MISSING) & (last != MISSING) & (volume <= MAX_UNITS)
        scaled = (
            bid / p, bid_qty / q, ask / p, ask_qty / q, last / p, volume / q, vwap / p, low / p, high / p, change / p,
            change_pct,
        )  # fmt: skip
        exact: list[tuple[float, ...] | None] = [None] * len(bid)
        for k in np.flatnonzero(~whole).tolist():
            exact[k] = tuple(column[k].item() for column in self.values)
        printable = zip(*[column.tolist() for column in scaled], rfc3339_column(self.ts), strict=True)
        return list(zip(printable, exact, strict=True))


class TickerEvents(msgspec.Struct, frozen=True):
    """The ticker after each trade and quote of a batch: ordered by instrument, of each in the tape's order.

    Attributes:
        instrument: int32 dense id, shape ``(m,)``.
        seq: int64 place on the tape, shape ``(m,)``.
        is_quote: bool, shape ``(m,)``; the others are trades.
        tickers: Shape ``(m,)`` each.
    """

    instrument: I32
    seq: I64
    is_quote: npt.NDArray[np.bool_]
    tickers: TickerColumns


class Afterwards(msgspec.Struct, frozen=True):
    """What held after every single event of a batch, for those who are told every event.

    Attributes:
        tickers: After each trade and quote; None if nobody asked.
        candles: After each trade, by the minutes that were asked for.
    """

    tickers: TickerEvents | None
    candles: dict[int, CandleColumns]


class History:
    """Last state and positions of every stream of a market.

    Attributes:
        instruments: The market's.
        options: How much is kept.
        epoch: Names the current numbering; changes whenever numbering begins anew.
        ts: Market time of the last batch, int ns UTC; 0 before the first.
        trade_position: int64, shape ``(n,)``: trades so far in this epoch.
        candle_position: int64, shape ``(n,)``: those of them that count for candles, which zero-size prints do not.
        book_position: int64, shape ``(n,)``: changes of the book so far in this epoch.
        quote_position: int64, shape ``(n,)``: changes of the best bid or offer so far in this epoch.
        bid_px, bid_qty, ask_px, ask_qty: int64, shape ``(n,)``: best bid and offer, ticks and lots.
        day: 24-hour statistics.
        candles: Candles of all intervals.
        books: Order books.
        ended: Whether the feed has said that nothing follows.
        gap: Whether events were lost and nothing has come since.
    """

    #: How many trades a trade snapshot has (Kraken's number), and how many are kept of any instrument that has them.
    SNAPSHOT_TRADES = 50

    def __init__(self, instruments: Instruments, options: HistoryOptions) -> None:
        n = len(instruments)
        self.instruments = instruments
        self.options = options
        self.day = DayStatistics(n)
        self.candles = Candles(n)
        self.books = Books()
        self.trade_position = np.zeros(n, np.int64)
        self.candle_position = np.zeros(n, np.int64)
        self.quote_position = np.zeros(n, np.int64)
        self.book_position = np.zeros(n, np.int64)
        self.bid_px, self.ask_px = np.empty(n, np.int64), np.empty(n, np.int64)
        self.bid_qty, self.ask_qty = np.empty(n, np.int64), np.empty(n, np.int64)
        self._row_ts = np.zeros(n, np.int64)
        self._quoted = np.zeros(n, np.bool_)  # has quotes of its own: its book does not stand in for them
        rows = min(options.trade_rows, options.trade_bytes // ROW_BYTES) // max(n, 1)
        self._prints = Prints(n, max(rows, self.SNAPSHOT_TRADES))
        self.epoch = ""
        self.ts = 0
        self.ended = False
        self.gap = False
        self._begin()

    def _begin(self) -> None:
        self.epoch = secrets.token_hex(4)
        self.ended = self.gap = False
        self.day.reset()
        self.candles.reset()
        self.books.reset()
        for position in (self.trade_position, self.candle_position, self.quote_position, self.book_position):
            position[:] = 0
        for array in (self.bid_qty, self.ask_qty, self._row_ts):
            array[:] = 0
        self.bid_px[:] = MISSING
        self.ask_px[:] = MISSING

    def mark(self, marker: Marker) -> None:
        """Take in a marker of the feed."""
        if marker.kind == "epoch":
            self._begin()
        elif marker.kind == "gap":
            self.books.mark_stale()
            self.gap = True
        else:
            self.ended = True

    def apply(self, batch: Batch, on_book: Callable[[BookEvent], None] | None = None) -> None:
        """Take in a batch.

        Args:
            batch: What happened.
            on_book: Called after every book event, while the book shows exactly the state after it; without it the
                books may go to the end of the batch in one step.
        """
        if len(batch.trades):
            self.day.apply(batch.trades)
            self.candles.apply(batch.trades)
        self._take_in(batch, on_book)

    def parted(self, batch: Batch, *, tickers: bool) -> tuple[Batch, Batch]:
        """Return the part of a batch that :meth:`apply_each` does not take, and the rest, that it does.

        A single event is not worth it. With tickers it does not take books as long as their touch stands in for quotes,
        nor trades from before the last half hour began. Either part may be empty.
        """
        levels, quotes = batch.levels, batch.quotes
        if len(batch.trades) + len(quotes) <= 1:
            return batch, Batch(ts=batch.ts)
        if not tickers:
            return Batch(ts=batch.ts), batch
        if not self.day.all_running(batch.trades, batch.ts):
            return batch, Batch(ts=batch.ts)
        first_quote = np.full(len(self.instruments), np.iinfo(np.int64).max)
        np.minimum.at(first_quote, quotes.instrument, quotes.seq)
        standing = levels.seq[~self._quoted[levels.instrument] & (levels.seq < first_quote[levels.instrument])]
        if not len(standing):
            return Batch(ts=batch.ts), batch
        # Book rows belong to the event before them, those before any to the first.
        events = np.sort(np.concatenate((batch.trades.seq, quotes.seq)))
        after = events[np.searchsorted(events, max(standing[-1], events[0]), side="right") :]
        return batch.split(int(after[0])) if len(after) else (batch, Batch(ts=batch.ts))

    def apply_each(
        self,
        batch: Batch,
        on_book: Callable[[BookEvent], None] | None = None,
        *,
        tickers: bool,
        candles: Collection[int],
    ) -> Afterwards:
        """Take in a batch, and return what held after every single event of it.

        It is what :meth:`apply` would lead to event by event; of the batch only its time holds from the beginning.

        Args:
            batch: What happened: at least one trade or quote, and only what :meth:`parted` lets pass.
            on_book: As of :meth:`apply`.
            tickers: Whether tickers are asked for.
            candles: Minutes of the candles that are.
        """
        if not tickers:
            self.day.apply(batch.trades)
        each = self._tickers_after(batch) if tickers else None
        by_index = self.candles.apply_each(batch.trades, [Candles.INTERVALS.index(minutes) for minutes in candles])
        self._take_in(batch, on_book)
        return Afterwards(each, {Candles.INTERVALS[index]: columns for index, columns in by_index.items()})

    def _tickers_after(self, batch: Batch) -> TickerEvents:
        """Take in trades as far as the day's statistics go, and return the tickers after every single event."""
        line = timeline(batch.trades, batch.quotes)
        day = self.day.rows(line.instrument, batch.ts)
        if len(line.trades):
            after = self.day.apply_each(line.trades, batch.ts)
            columns = zip(msgspec.structs.astuple(after), msgspec.structs.astuple(day), strict=True)
            day = DayRows(*[line.since_trade(*column) for column in columns])
        quotes, state = line.quotes, (self.bid_px, self.bid_qty, self.ask_px, self.ask_qty)
        quoted = zip((quotes.bid_px, quotes.bid_qty, quotes.ask_px, quotes.ask_qty), state, strict=True)
        touch = [line.since_quote(column, before[line.instrument]) for column, before in quoted]
        ts = accumulated(np.maximum, line.times, line.bounds, self._row_ts[line.instrument[line.bounds[:-1]]])
        return TickerEvents(line.instrument, line.seq, line.is_quote, _ticker_columns(touch, day, ts))

    def _take_in(self, batch: Batch, on_book: Callable[[BookEvent], None] | None) -> None:
        """Take in a batch, but for the day's statistics and candles."""
        self.ts = batch.ts
        self.gap = False
        if len(batch.trades):
            self._apply_trades(batch.trades)
        if len(batch.quotes):
            self._apply_quotes(batch.quotes)
        if len(batch.levels):
            self._apply_levels(batch.levels, on_book)

    def _apply_trades(self, trades: Trades) -> None:
        times = event_times(trades)
        self._prints.add(trades, times, self.trade_position)
        self.trade_position += np.bincount(trades.instrument, minlength=len(self.instruments))
        # np.maximum.at, not assignment: event times may run backwards and ids repeat.
        np.maximum.at(self._row_ts, trades.instrument, times)
        traded = trades.instrument[trades.qty > 0]
        self.candle_position += np.bincount(traded, minlength=len(self.instruments))

    def _apply_quotes(self, quotes: Quotes) -> None:
        rows = _last_rows(quotes.instrument, 1)
        ids = quotes.instrument[rows]
        self.bid_px[ids], self.bid_qty[ids] = quotes.bid_px[rows], quotes.bid_qty[rows]
        self.ask_px[ids], self.ask_qty[ids] = quotes.ask_px[rows], quotes.ask_qty[rows]
        np.maximum.at(self._row_ts, quotes.instrument, event_times(quotes))
        self._quoted[ids] = True
        self.quote_position += np.bincount(quotes.instrument, minlength=len(self.instruments))

    def _apply_levels(self, levels: Levels, on_book: Callable[[BookEvent], None] | None) -> None:
        unseen = on_book is None and len(levels) >= MANY_ROWS and self._quoted[levels.instrument].all()
        if unseen and self.books.apply_outcome(levels):
            ended = levels.instrument[(levels.flags & LAST) != 0]
            self.book_position += np.bincount(ended, minlength=len(self.instruments))
            return
        for event in self.books.apply(levels):
            self.book_position[event.instrument] += 1
            if not self._quoted[event.instrument]:
                self._quote_from_book(event)
            if on_book is not None:
                on_book(event)
        for event in self.books.flush():  # an instant is never cut, so a snapshot that goes on has ended
            self.book_position[event.instrument] += 1
            if on_book is not None:
                on_book(event)

    def _quote_from_book(self, event: BookEvent) -> None:
        """Let the touch of the book stand in for the quotes that this source does not have."""
        i, book = event.instrument, self.books[event.instrument]
        bid, ask = book.best_bid or (MISSING, 0), book.best_ask or (MISSING, 0)
        if (self.bid_px[i], self.bid_qty[i], self.ask_px[i], self.ask_qty[i]) == (*bid, *ask):
            return
        (self.bid_px[i], self.bid_qty[i]), (self.ask_px[i], self.ask_qty[i]) = bid, ask
        self._row_ts[i] = max(int(self._row_ts[i]), event.ts_recv if event.ts_event == MISSING else event.ts_event)
        self.quote_position[i] += 1

    def ticker_columns(self, ids: I32) -> TickerColumns:
        """Return the ticker of each instrument of ``ids`` (int32), in their order."""
        touch = [column[ids] for column in (self.bid_px, self.bid_qty, self.ask_px, self.ask_qty)]
        return _ticker_columns(touch, self.day.rows(ids, self.ts), self._row_ts[ids])

    def ticker_rows(self, ids: I32) -> list[TickerRow]:
        """Return the same as rows to print."""
        scales = self.instruments.price_scale[ids], self.instruments.qty_scale[ids]
        return self.ticker_columns(ids).rows(*scales)

    def known(self, instrument: int) -> bool:
        """Whether anything was quoted or traded in this epoch."""
        return bool(self.quote_position[instrument] or self.trade_position[instrument])

    def prints(self, instrument: int, count: int) -> list[Print]:
        """Return the last ``count`` trades of an instrument, oldest first; fewer if fewer are kept."""
        position = int(self.trade_position[instrument])
        return self._prints.between(instrument, max(position - count, self.oldest_print(instrument)), position)

    def prints_at(self, instruments: I32, positions: I64) -> npt.NDArray[np.void]:
        """Return trades that are still kept; see :meth:`ticker.prints.Prints.at`."""
        return self._prints.at(instruments, positions)

    def oldest_prints(self, instruments: I32) -> I64:
        """Return the trade position before the oldest trade that is kept of each of some instruments."""
        return np.maximum(0, self.trade_position[instruments] - self._prints.rows)

    def oldest_print(self, instrument: int) -> int:
        """Return the trade position before the oldest trade that is kept."""
        return max(0, int(self.trade_position[instrument]) - self._prints.rows)


def _ticker_columns(touch: Sequence[I64], day: DayRows, ts: I64) -> TickerColumns:
    """Return tickers of bid_px, bid_qty, ask_px, ask_qty, the day's statistics and times; shape ``(m,)`` each."""
    change = np.where(day.last_px == MISSING, MISSING, day.last_px - day.open)
    # + 0.0: a fall too small to print is 0.00, not -0.00
    change_pct = np.round(100.0 * change / np.where(day.open == 0, 1, day.open), 2) + 0.0
    return TickerColumns((*touch, day.last_px, day.volume, day.vwap, day.low, day.high, change, change_pct), ts)


def _last_rows(ids: I32, count: int) -> I64:
    """Return the indices, ascending, of the last ``count`` rows of every id."""
    if len(ids) <= count:
        return np.arange(len(ids))
    order = np.argsort(ids, kind="stable")
    grouped = ids[order]
    position = np.arange(len(ids))
    ends = np.flatnonzero(np.append(grouped[1:] != grouped[:-1], True))
    end_of = np.repeat(ends, np.diff(ends, prepend=-1))
    return np.sort(order[position > end_of - count])
