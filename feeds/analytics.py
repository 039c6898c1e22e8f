"""Statistics of trades that a market publishes: rolling 24 hours and candles, for all instruments at once.

State is kept in arrays over instruments. A batch of trades is first reduced to :mod:`runs <feeds.runs>`, the trades of
one instrument in one period, and only runs are merged into the state.

Both classes leave out prints of size 0 (real tapes have them): they traded nothing, so they are neither a price nor
a count. Sums of price times quantity are float64, because int64 overflows after some 15,000 trades of one bitcoin
in lots of 1e-8; their last digits may depend on how a stream was cut into batches. So are sums of quantities, because
a day of a coin that trades by the billion overflows too; up to 2**53 lots they are exact, and beyond that rounded.
Everything else depends on nothing but the trades.

This module must not know of channels or of printing. It reads no clock: time is what trades and callers say it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.records import I32, I64, MISSING, Trades, event_times
from feeds.runs import KEY, Runs, bounds_of, lined_up, passes, runs_of, traded
from feeds.sums import HIGHEST, Sums, accumulated

F64 = npt.NDArray[np.float64]

MINUTE_NS: Final = 60_000_000_000

#: Before any period, and far enough inside int64 that 48 periods fit below it.
_NEVER: Final = -(2**31)


class DayRows(msgspec.Struct, frozen=True):
    """Rolling 24-hour statistics of some instruments: new arrays, one row per id asked for.

    An instrument that did not trade in the window shows its last price as open, low, high and vwap, and a volume of
    0. One that never traded shows :data:`~feeds.records.MISSING` as every price, and a vwap of 0.

    Attributes:
        last_px: int64 ticks.
        open: int64 ticks: the first price in the window, which is the price 24 hours ago.
        low: int64 ticks.
        high: int64 ticks.
        volume: float64 lots, whole ones.
        vwap: float64 ticks.
        count: int64 trades.
    """

    last_px: I64
    open: I64
    low: I64
    high: I64
    volume: F64
    vwap: F64
    count: I64


class DayStatistics:
    """The last 24 hours of trading of ``n`` instruments, in 48 buckets of half an hour.

    The window is the running bucket and the 47 before it, so it is between 23.5 and 24 hours long: an approximation
    that needs neither a queue of trades nor a timer. A trade's time is its ``ts_recv``, the clock that never runs
    backwards and that ``now_ns`` is on.
    """

    BUCKETS: Final = 48
    BUCKET_NS: Final = 30 * MINUTE_NS

    def __init__(self, n: int) -> None:
        self._n = n
        self.reset()

    def reset(self) -> None:
        """Forget every trade, as at a new epoch."""
        slots = self._n * self.BUCKETS
        self.last_px = np.full(self._n, MISSING, dtype=np.int64)
        self._newest = np.full(self._n, _NEVER, dtype=np.int64)
        # One slot per instrument and period modulo 48, see _slots; 1-D because numpy picks from one dimension in a
        # fifth of the time that two take. What a slot holds counts only while its period is in the window.
        self._period = np.full(slots, _NEVER, dtype=np.int64)
        self._open = np.zeros(slots, dtype=np.int64)
        self._low = np.zeros(slots, dtype=np.int64)
        self._high = np.zeros(slots, dtype=np.int64)
        self._volume = np.zeros(slots, dtype=np.float64)
        self._notional = np.zeros(slots, dtype=np.float64)
        self._count = np.zeros(slots, dtype=np.int64)
        # Asked for often, changed every half hour. At 1,000 instruments adding up 48 columns takes 5 ms.
        self._past: Sums
        self._past_of = _NEVER

    def apply(self, trades: Trades) -> None:
        """Take in the trades of one batch."""
        trades = traded(trades)
        if not len(trades):
            return
        runs = runs_of(trades, trades.ts_recv // self.BUCKET_NS, self._newest)
        if runs.period.min() < self._past_of:
            self._past_of = _NEVER
        last = bounds_of(runs.instrument)[1:] - 1
        ids = runs.instrument[last]
        self._newest[ids] = runs.period[last]
        self.last_px[ids] = runs.close[last]
        if len(last) < len(runs.period):
            # After a silence of a day inside a batch two runs share a slot; the older one is out of the window.
            runs = runs.pick(runs.period > self._newest[runs.instrument] - self.BUCKETS)
        self._merge(runs)

    def _merge(self, runs: Runs) -> None:
        """Merge runs that each have their own slot."""
        slot = self._slots(runs.instrument, runs.period)
        fresh = self._period[slot] != runs.period
        if np.count_nonzero(fresh):
            self._begin(slot[fresh], runs.pick(fresh))
        self._low[slot] = np.minimum(self._low[slot], runs.low)
        self._high[slot] = np.maximum(self._high[slot], runs.high)
        self._volume[slot] += runs.volume
        self._notional[slot] += runs.notional
        self._count[slot] += runs.trades

    def _slots(self, ids: I64 | I32, period: I64 | int) -> I64:
        return ids.astype(np.int64) * self.BUCKETS + period % self.BUCKETS

    def _begin(self, slot: I64, runs: Runs) -> None:
        """Give the slots of these runs to their periods."""
        self._period[slot] = runs.period
        self._open[slot] = runs.open
        self._low[slot] = runs.low
        self._high[slot] = runs.high
        self._volume[slot] = 0
        self._notional[slot] = 0.0
        self._count[slot] = 0

    def rows(self, ids: I32, now_ns: int) -> DayRows:
        """Return the statistics of the 24 hours before ``now_ns``.

        Args:
            ids: int32 dense ids, any order, repeats allowed.
            now_ns: int ns UTC on the clock of ``ts_recv``, not before the last trade.
        """
        period = now_ns // self.BUCKET_NS
        return self._window(ids, period, self._running(ids, period), self.last_px[ids])

    def all_running(self, trades: Trades, now_ns: int) -> bool:
        """Whether all trades go into the bucket that is the running one at ``now_ns``."""
        trades = traded(trades)
        period = np.maximum(trades.ts_recv // self.BUCKET_NS, self._newest[trades.instrument])
        return bool((period == now_ns // self.BUCKET_NS).all())

    def apply_each(self, trades: Trades, now_ns: int) -> DayRows:
        """Take in at least one trade, and return the statistics of its instrument after each.

        The rows are those that :meth:`apply` and :meth:`rows` would give trade by trade, to the last digit.

        Args:
            trades: Of one batch, ordered by instrument, for which :meth:`all_running` holds.
            now_ns: int ns UTC: as of when.
        """
        bounds, period = bounds_of(trades.instrument), now_ns // self.BUCKET_NS
        ids, sized = trades.instrument[bounds[:-1]], trades.qty > 0
        each = self._running(ids, period).after_each(trades.price, trades.qty, bounds)
        # The price of the last one of any size; before the first such, what it was.
        latest = accumulated(np.maximum, np.where(sized, np.arange(len(sized)), -1), bounds, np.full(len(ids), -1))
        last = np.where(latest < 0, self.last_px[trades.instrument], trades.price[latest])
        self.apply(trades)
        slot = self._slots(ids, period)
        running = self._period[slot] == period
        ends = bounds[1:][running] - 1
        # Added up in the same order.
        self._volume[slot[running]], self._notional[slot[running]] = each.volume[ends], each.notional[ends]
        return self._window(trades.instrument, period, each, last)

    def _running(self, ids: I32, period: int) -> Sums:
        """Return the bucket of a period alone."""
        slot = self._slots(ids, period)
        running = self._period[slot] == period
        found = Sums(
            self._open[slot], self._low[slot], self._high[slot], self._volume[slot], self._notional[slot],
            self._count[slot],
        )  # fmt: skip
        return found.begun(running)

    def _window(self, ids: I32, period: int, running: Sums, last: I64) -> DayRows:
        """Return the statistics of a period's window, given its running bucket and the last prices."""
        if period != self._past_of:
            self._look_back(period)
        past = self._past.pick(ids)
        volume, notional = past.volume + running.volume, past.notional + running.notional
        quiet = volume == 0
        return DayRows(
            last_px=last,
            open=np.where(quiet, last, np.where(past.count > 0, past.open, running.open)),
            low=np.where(quiet, last, np.minimum(past.low, running.low)),
            high=np.where(quiet, last, np.maximum(past.high, running.high)),
            volume=volume,
            vwap=np.where(quiet, np.where(last == MISSING, 0.0, last), notional / np.maximum(volume, 1)),
            count=past.count + running.count,
        )

    def _look_back(self, period: int) -> None:
        """Sum up the buckets before a period for all instruments; trades add to the running one only."""
        begun = self._period.reshape(self._n, self.BUCKETS)
        inside = (begun > period - self.BUCKETS) & (begun < period)
        oldest = np.where(inside, begun, HIGHEST).argmin(axis=1)
        volume, notional, low, high, count, opened = (
            column.reshape(self._n, self.BUCKETS)
            for column in (self._volume, self._notional, self._low, self._high, self._count, self._open)
        )
        self._past_of = period
        self._past = Sums(
            open=opened[np.arange(self._n), oldest],
            low=np.where(inside, low, HIGHEST).min(axis=1),
            high=np.where(inside, high, MISSING).max(axis=1),
            volume=np.where(inside, volume, 0).sum(axis=1),
            notional=np.where(inside, notional, 0.0).sum(axis=1),
            count=np.where(inside, count, 0).sum(axis=1),
        )


class Candle(msgspec.Struct, frozen=True):
    """Open, high, low, close of one instrument over one interval with at least one trade.

    Attributes:
        begin_ns: int ns UTC, a multiple of the interval since 1970.
        open: int ticks, the first price.
        high: int ticks.
        low: int ticks.
        close: int ticks, the last price so far.
        volume: int lots; what float64 sums have beyond 2**53 is rounded.
        vwap: float ticks.
        trades: How many, without those of size 0.
    """

    begin_ns: int
    open: int
    high: int
    low: int
    close: int
    volume: int
    vwap: float
    trades: int


class CandleColumns(msgspec.Struct, frozen=True):
    """The candle that each of some trades went into, as it was after it: ordered by instrument, then as on the tape.

    Trades of size 0 are left out.

    Attributes:
        instrument: int32 dense id, shape ``(m,)``.
        seq: int64 place of the trade on the tape, shape ``(m,)``.
        begin_ns: int64 ns UTC, shape ``(m,)``.
        close: int64 ticks: the trade's price, shape ``(m,)``.
        sums: Everything else.
    """

    instrument: I32
    seq: I64
    begin_ns: I64
    close: I64
    sums: Sums

    def candles(self, rows: npt.NDArray[np.intp]) -> list[Candle]:
        """Return the rows picked by an index array."""
        sums = self.sums.pick(rows)
        prices = (sums.open, sums.high, sums.low, self.close[rows])
        return _candles(self.begin_ns[rows], prices, sums.volume, sums.notional, sums.count)


def _candles(begin_ns: I64, prices: Sequence[I64], volume: F64, notional: F64, trades: I64) -> list[Candle]:
    """Return candles of columns; the prices are open, high, low and close."""
    columns = (begin_ns.tolist(), *[price.tolist() for price in prices], map(int, volume.tolist()))
    return [Candle(*row) for row in zip(*columns, (notional / volume).tolist(), trades.tolist(), strict=True)]


def _minutes_of(trades: Trades) -> I64:
    """Return when each trade happened, by the venue's clock where it gave a time; minutes since 1970."""
    return event_times(trades) // MINUTE_NS


class Candles:
    """Candles of ``n`` instruments in all of Kraken's intervals.

    A trade's time is its ``ts_event``, or ``ts_recv`` where the venue gave none. Event times may run backwards, but
    a candle once closed stays as it was sent: a late trade goes into the current candle of each interval. Candles
    begin at multiples of their interval since 1970, so a week begins on a Thursday. An interval
    without trades has no candle, and a candle is current until a trade of a later one comes.
    """

    #: Minutes; Kraken's ``ohlc`` channel, WebSocket v2. All are multiples of the first.
    INTERVALS: Final = (1, 5, 15, 30, 60, 240, 1440, 10080, 21600)
    #: Closed candles kept per interval and instrument; as many as Kraken's REST history gives.
    KEPT: Final = 720

    def __init__(self, n: int) -> None:
        self._n = n
        self._minutes = np.array(self.INTERVALS, dtype=np.int64)[:, np.newaxis]
        self._rows = np.arange(len(self.INTERVALS), dtype=np.int64)[:, np.newaxis] * n
        self.reset()

    def reset(self) -> None:
        """Forget every trade, as at a new epoch."""
        slots = len(self.INTERVALS) * self._n  # one slot is interval_index * n + instrument
        self._newest = np.full(self._n, _NEVER, dtype=np.int64)  # the minute of the latest trade
        self._begin = np.full(slots, _NEVER, dtype=np.int64)  # minutes since 1970
        self._open = np.zeros(slots, dtype=np.int64)
        self._high = np.zeros(slots, dtype=np.int64)
        self._low = np.zeros(slots, dtype=np.int64)
        self._close = np.zeros(slots, dtype=np.int64)
        self._volume = np.zeros(slots, dtype=np.float64)
        self._notional = np.zeros(slots, dtype=np.float64)
        self._trades = np.zeros(slots, dtype=np.int64)
        self._closed: dict[int, deque[Candle]] = {}

    def apply(self, trades: Trades) -> None:
        """Take in the trades of one batch.

        Each pass merges one minute of each instrument: one pass for a batch shorter than a minute, and the more the
        longer the time that it spans.
        """
        trades = traded(trades)
        if not len(trades):
            return
        runs = runs_of(trades, _minutes_of(trades), self._newest)
        bounds = bounds_of(runs.instrument)
        last = bounds[1:] - 1
        self._newest[runs.instrument[last]] = runs.period[last]
        if len(last) == len(runs.period):
            self._merge(runs)
        else:
            for rows in passes(bounds):
                self._merge(runs.pick(rows))

    def apply_each(self, trades: Trades, interval_indices: Iterable[int]) -> dict[int, CandleColumns]:
        """Take in the trades of one batch, and return the candles of some intervals after each of them.

        They are those that :meth:`apply` would give trade by trade, to the last digit.
        """
        trades = traded(trades)
        order, instrument, key = lined_up(trades, _minutes_of(trades), self._newest)
        minute = key - instrument * KEY
        trades = trades.take(order)
        each = {index: self._after_each(index, trades, instrument, minute) for index in interval_indices}
        self.apply(trades)
        last = bounds_of(instrument)[1:] - 1
        for index, columns in each.items():
            slot = index * self._n + instrument[last]
            # Added up in that order.
            self._volume[slot], self._notional[slot] = columns.sums.volume[last], columns.sums.notional[last]
        return each

    def _after_each(self, interval_index: int, trades: Trades, instrument: I64, minute: I64) -> CandleColumns:
        width = self.INTERVALS[interval_index]
        begin = minute // width * width
        bounds = bounds_of(instrument * KEY + begin)
        slot = interval_index * self._n + instrument[bounds[:-1]]
        begun = (self._begin[slot] == begin[bounds[:-1]]) & (self._trades[slot] > 0)
        found = Sums(
            self._open[slot], self._low[slot], self._high[slot], self._volume[slot], self._notional[slot],
            self._trades[slot],
        )  # fmt: skip
        sums = found.begun(begun).after_each(trades.price, trades.qty, bounds)
        return CandleColumns(trades.instrument, trades.seq, begin * MINUTE_NS, trades.price, sums)

    def _merge(self, runs: Runs) -> None:
        """Merge runs of different instruments into the current candles of all intervals."""
        slot = self._rows + runs.instrument
        begin = runs.period // self._minutes * self._minutes
        fresh = begin != self._begin[slot]
        if np.count_nonzero(fresh):
            self._follow(runs.pick(fresh.nonzero()[1]), slot[fresh], begin[fresh])
        self._high[slot] = np.maximum(self._high[slot], runs.high)
        self._low[slot] = np.minimum(self._low[slot], runs.low)
        self._close[slot] = runs.close
        self._volume[slot] += runs.volume
        self._notional[slot] += runs.notional
        self._trades[slot] += runs.trades

    def _follow(self, runs: Runs, slot: I64, begin: I64) -> None:
        """Close the candles in these slots, one per run, and begin those of the runs at ``begin`` (minutes)."""
        self._keep(slot[self._trades[slot] > 0])
        self._begin[slot] = begin
        self._open[slot] = runs.open
        self._high[slot] = runs.high
        self._low[slot] = runs.low
        self._volume[slot] = 0
        self._notional[slot] = 0.0
        self._trades[slot] = 0

    def _keep(self, slot: I64) -> None:
        """Put the candles in these slots, each with a trade, with the closed ones."""
        for index, candle in zip(slot.tolist(), self._read(slot), strict=True):
            ring = self._closed.get(index)
            if ring is None:
                ring = self._closed[index] = deque(maxlen=self.KEPT)
            ring.append(candle)

    def _read(self, slot: I64) -> list[Candle]:
        """Return the current candles in these slots, each of which has a trade."""
        prices = (self._open[slot], self._high[slot], self._low[slot], self._close[slot])
        begin_ns = self._begin[slot] * MINUTE_NS
        return _candles(begin_ns, prices, self._volume[slot], self._notional[slot], self._trades[slot])

    def _slot(self, interval_index: int, instrument: int) -> int:
        if not (0 <= interval_index < len(self.INTERVALS) and 0 <= instrument < self._n):
            raise IndexError(f"no candles for interval index {interval_index} and instrument {instrument}")
        return interval_index * self._n + instrument

    def current(self, interval_index: int, instrument: int) -> Candle | None:
        """Return the candle that trades go into now, or None before the first trade.

        Raises:
            IndexError: There is no such interval or instrument.
        """
        slot = self._slot(interval_index, instrument)
        return self._read(np.array([slot]))[0] if self._trades[slot] else None

    def closed(self, interval_index: int, instrument: int) -> list[Candle]:
        """Return the closed candles, oldest first, at most :attr:`KEPT`.

        Raises:
            IndexError: There is no such interval or instrument.
        """
        return list(self._closed.get(self._slot(interval_index, instrument), ()))
