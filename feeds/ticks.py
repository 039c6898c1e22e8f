"""The ticks of a simulated market: when they happen, how quotes walk and what trades at them, a span at a time.

It knows models, random numbers and columns. It must not know of windows being sent, books, or any clock.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from feeds import depth, models, records
from feeds.instruments import MAX_UNITS
from feeds.models import F64, Pair, RandomStreams
from feeds.records import I64, Quotes, Trades, sums_before

Mask = npt.NDArray[np.bool_]


class Order(NamedTuple):
    """When things happen in a span, grouped by symbol and in the order of time within each.

    Attributes:
        ids: int64, shape ``(events,)``: dense ids, ascending.
        times: int64, shape ``(events,)``: ns UTC.
        is_quote: bool, shape ``(events,)``: a quote or else a trade.
        starts: int64, shape ``(symbols,)``: where each symbol's events begin.
        ends: int64, shape ``(symbols,)``: where they end.
        quotes_before: int64, shape ``(events + 1,)``: quotes before each event, and in all.
    """

    ids: I64
    times: I64
    is_quote: Mask
    starts: I64
    ends: I64
    quotes_before: I64

    def trades_before(self, position: I64) -> I64:
        """Return the trades of all symbols before events ``position``."""
        return position - self.quotes_before[position]

    def standing(self, ids: I64, position: I64) -> I64:
        """Return the column of ``Events.touches`` with the last quote of symbols ``ids`` before ``position``."""
        quote = self.quotes_before[position] - 1
        in_span = quote >= self.quotes_before[self.starts[ids]]
        return np.where(in_span, quote, self.quotes_before[-1] + ids)


class Events(NamedTuple):
    """Trades and quotes of one span.

    Attributes:
        order: Which symbols they are of, and when.
        touches: int64, shape ``(4, quotes + symbols)``: the rows of :attr:`Ticks.touch` as each quote leaves them,
            then as each symbol had them before the span.
        trades: int64, shape ``(4, trades)``: price, quantity, side, trade id.
    """

    order: Order
    touches: I64
    trades: I64


class Ticks:
    """Trades and quotes of all symbols.

    Attributes:
        uniforms: Uniform numbers that one event takes.
        normals: Normal numbers that one event takes: two for its sizes, then those of the model.
        all_ids: int64, shape ``(symbols,)``: 0, 1, 2 and so on.
        touch: int64, shape ``(4, symbols)``: bid and ask (ticks), bid and ask quantity (lots).
    """

    #: Of a size's logarithm: one in six is more than e times the median.
    SIZE_DEVIATION = 1.0
    #: A trade's median size, in that of the touch.
    TRADE_SIZE = 0.4

    #: A log price is an integer of this many parts of one. Integers, because a cumulative sum over several symbols
    #: then leaves nothing of one symbol in another, not even a rounding; 2**-50 is far below a tick and leaves
    #: room for logarithms up to 8,192.
    LOG_SCALE = 2.0**50

    #: Uniforms of an event before those of the model: its time, its kind, and its side (trade) or spread (quote).
    _OWN = 3

    def __init__(
        self, pairs: list[Pair], start_ns: int, *, model: str, trade_share: float, window_ns: int, book_levels: int
    ) -> None:
        self._model = models.MODELS[model](np.array([pair.volatility for pair in pairs]))
        self._window_ns = window_ns
        self._trade_share = trade_share
        self.uniforms = self._OWN + self._model.uniforms
        self.normals = 2 + self._model.normals
        # A log price is folded back at a floor, where the deepest book still fits above zero, and at a ceiling far
        # from MAX_UNITS: a reflected walk. It is stored from the floor, and unfolded.
        prices = np.array([pair.price_ticks for pair in pairs])
        self._floor = 2.0 * (book_levels + 1) * depth.level_steps(pairs) + 64
        self._log = np.rint(np.log(prices / self._floor) * self.LOG_SCALE).astype(np.int64)
        self._log_span = np.rint(np.log(MAX_UNITS / 4 / self._floor) * self.LOG_SCALE).astype(np.int64)
        self._log_qty = np.log([pair.qty_lots for pair in pairs])
        self._last_ns = np.full(len(pairs), start_ns, np.int64)
        self._trade_ids = np.zeros(len(pairs), np.int64)
        self.all_ids = np.arange(len(pairs))
        self.touch = np.zeros((4, len(pairs)), np.int64)

    def opening(self, uniforms: RandomStreams, normals: RandomStreams) -> Events:
        """Return one quote of each symbol, at the start."""
        draws = uniforms.take(self.all_ids).T.copy(), normals.take(self.all_ids).T.copy()
        order = in_order(np.ones_like(self.all_ids), self.all_ids, self._last_ns.copy(), self.all_ids >= 0)
        return self._advance(order, *draws)

    def events(self, uniforms: RandomStreams, normals: RandomStreams, counts: I64, begin_ns: int) -> Events:
        """Return the events of the span that begins after ``begin_ns``.

        Args:
            uniforms: Each symbol's uniform numbers, in runs of ``self.uniforms``.
            normals: Each symbol's normal numbers, in runs of ``self.normals``.
            counts: Shape ``(symbols, windows)``: events of each symbol in each window.
            begin_ns: ns UTC.
        """
        windows = np.repeat(np.arange(counts.size), counts.reshape(-1))
        ids = windows // counts.shape[1]
        of_symbol = counts.sum(axis=1)
        draws = uniforms.take_runs(ids, of_symbol).T.copy()
        # Only the times of a window need sorting, the other numbers are alike; the kind goes with its time so that
        # at one instant a symbol's trades come before its quotes. Sorting numbers is three times as fast as argsort.
        keys = (windows * self._window_ns + (draws[0] * self._window_ns).astype(np.int64)) * 2
        keys += draws[1] >= self._trade_share
        keys.sort()
        times = (keys >> 1) - ids * (counts.shape[1] * self._window_ns) + (begin_ns + 1)
        order = in_order(of_symbol, ids, times, (keys & 1).astype(np.bool_))
        return self._advance(order, draws, normals.take_runs(ids, of_symbol).T.copy())

    def _advance(self, order: Order, uniforms: F64, normals: F64) -> Events:
        """Move every symbol through its events."""
        ids, is_quote = order.ids, order.is_quote
        returns = self._model.log_returns(ids, self._years(order), normals[2:], uniforms[self._OWN :])
        logs = self._walk(order, returns)
        at = is_quote.nonzero()[0]
        quotes = self._quotes(ids[at], logs[at], uniforms[2, at], normals[:2, at])
        touches = np.concatenate((quotes, self.touch), axis=1)
        at = (~is_quote).nonzero()[0]
        trades = self._trades(order, at, touches, uniforms[2, at], normals[0, at])
        self.touch = touches[:, order.standing(self.all_ids, order.ends)]
        self._trade_ids += order.trades_before(order.ends) - order.trades_before(order.starts)
        return Events(order, touches, trades)

    def _years(self, order: Order) -> F64:
        """Return the time since the event before of the same symbol, shape ``(events,)``, in years."""
        times = order.times
        active = (order.ends > order.starts).nonzero()[0]
        first = order.starts[active]
        gaps = np.empty_like(times)
        np.subtract(times[1:], times[:-1], out=gaps[1:])
        gaps[first] = times[first] - self._last_ns[active]
        self._last_ns[active] = times[order.ends[active] - 1]
        return gaps / models.NS_PER_YEAR

    def _walk(self, order: Order, returns: F64) -> F64:
        """Return the log price in ticks after each event, from the floor, and keep the last of each symbol."""
        sums = sums_before(np.rint(returns * self.LOG_SCALE).astype(np.int64))
        base = self._log - sums[order.starts]
        self._log = base + sums[order.ends]
        logs = sums[1:] + base[order.ids]
        span = self._log_span[order.ids]
        if ((logs < 0) | (logs > span)).any():
            logs = np.abs((logs + span) % (2 * span) - span)
        scaled: F64 = logs / self.LOG_SCALE
        return scaled

    def _quotes(self, ids: I64, logs: F64, uniforms: F64, normals: F64) -> I64:
        """Return bid and ask around the mid and their sizes, shape ``(4, quotes)``."""
        mid = np.exp(logs) * self._floor[ids]
        # 1 + geometric(1/2): one tick in half of the cases, two in a quarter, and so on.
        spread = np.floor(1.0 - np.log2(1.0 - uniforms))
        quotes = np.empty((4, len(ids)), np.int64)
        quotes[0] = (mid - 0.5 * (spread - 1.0)).astype(np.int64)
        quotes[1] = quotes[0] + spread.astype(np.int64)
        quotes[2:] = self._sizes(ids, normals)
        return quotes

    def _trades(self, order: Order, at: I64, touches: I64, uniforms: F64, normals: F64) -> I64:
        """Return price, quantity, side and trade id of the trades at ``at``, shape ``(4, trades)``."""
        ids = order.ids[at]
        buys = uniforms < 0.5
        first_id = self._trade_ids - order.trades_before(order.starts) + 1
        trades = np.empty((4, len(ids)), np.int64)
        trades[0] = touches[buys.astype(np.int64), order.standing(ids, at)]
        trades[1] = self._sizes(ids, normals + math.log(self.TRADE_SIZE) / self.SIZE_DEVIATION)
        trades[2] = np.where(buys, records.BUY, records.SELL)
        trades[3] = first_id[ids] + order.trades_before(at)
        return trades

    def _sizes(self, ids: I64, normals: F64) -> I64:
        """Return lognormal sizes in lots, at least 1 and at most :data:`MAX_UNITS`."""
        lots = np.exp(self._log_qty[ids] + self.SIZE_DEVIATION * normals)
        sizes: I64 = lots.clip(1.0, MAX_UNITS).astype(np.int64)
        return sizes


def in_order(counts: I64, ids: I64, times: I64, is_quote: Mask) -> Order:
    """Return the order of events of which symbol *s* has ``counts[s]``."""
    ends = counts.cumsum()
    return Order(ids, times, is_quote, ends - counts, ends, sums_before(is_quote))


def tables(events: Events, begin_ns: int, seq: I64) -> tuple[Trades, Quotes]:
    """Return events as tables in the order of time, numbered by ``seq``; the caller owns them.

    At one instant trades come before quotes, then symbols in the order of their ids.
    """
    order = events.order
    bits = len(seq).bit_length()
    keys = (((order.times - begin_ns) * 2 + order.is_quote) << bits) + np.arange(len(seq))
    keys.sort()
    source = keys & ((1 << bits) - 1)
    is_quote = order.is_quote[source]
    rows = is_quote.nonzero()[0]
    times, ids, flags, place = _common(order, source[rows])
    bid, ask, bid_qty, ask_qty = events.touches[:, place]
    quotes = Quotes(
        ts_recv=times, ts_event=times, seq=seq[rows], instrument=ids, flags=flags,
        bid_px=bid, bid_qty=bid_qty, ask_px=ask, ask_qty=ask_qty,
    )  # fmt: skip
    rows = (~is_quote).nonzero()[0]
    times, ids, flags, place = _common(order, source[rows])
    price, qty, side, trade_id = events.trades[:, source[rows] - place]
    trades = Trades(
        ts_recv=times, ts_event=times, seq=seq[rows], instrument=ids, flags=flags,
        price=price, qty=qty, side=side.astype(np.int8), trade_id=trade_id,
    )  # fmt: skip
    return trades, quotes


def _common(order: Order, source: I64) -> tuple[I64, records.I32, records.U8, I64]:
    """Return time, instrument and flags of the events ``source``, and the quotes before each."""
    flags = np.full(len(source), records.LAST, np.uint8)
    return order.times[source], order.ids[source].astype(np.int32), flags, order.quotes_before[source]
