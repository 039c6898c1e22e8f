"""A simulated market: trades, quotes and books of many pairs, the same for the same seed and options.

Market time advances in windows. One window is computed for all symbols at once: how many events each has, when,
what each one is, and at which price. Symbols are independent of each other, and each reads its own stream of
random numbers, so BTC/USD moves the same whichever other symbols are simulated beside it.

:class:`_Ticks` makes trades and quotes, :class:`~feeds.depth.Books` the books under them, :class:`_Market` joins the
two and numbers their rows; none of these knows what time it is. Only :class:`SimulatedFeed` has a clock, to pace
what it sends.

What is simplified: prices follow a model and do not react to trades; every symbol is equally busy; a book shows a
grid of levels below the touch rather than the queue of real orders; no message is late, so both times of a row are
equal.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import trio

from feeds import clock, depth, models, records
from feeds.depth import Books
from feeds.errors import OptionError
from feeds.instruments import MAX_UNITS, Instrument, Instruments
from feeds.models import F64, Pair, RandomStreams
from feeds.records import I64, Batch, Event, Levels, Marker, Quotes, Trades

Mask = npt.NDArray[np.bool_]

_SYMBOL: Final = re.compile(r"[A-Z0-9._-]{1,16}/[A-Z0-9]{2,8}")
NS_PER_MS: Final = 1_000_000


#: Beyond this the books of a market with many symbols would cost more than all its ticks.
BOOKS_PER_S: Final = 1_000


#: Ticks in a window from which on windows are sent several at once.
BUSY_WINDOW: Final = 200


class SimulationOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is simulated; together with the seed it fixes every row.

    Attributes:
        symbols: ``BASE/QUOTE`` each; the position is the dense id.
        rate: Trades and quotes per second of market time, over all symbols.
        seed: Of all random numbers, >= 0.
        model: A name in :data:`feeds.models.MODELS`.
        start_ns: Market time of the first event, ns UTC; None for the wall time at which the feed is created.
        trade_share: Trades among trades and quotes, 0 to 1.
        book_levels: Price levels on each side of a book.
        book_interval_ms: Market time between two publications of one symbol's book, a multiple of ``window_ms``;
            0: 100 ms, or longer where there are so many symbols that more than 1,000 books a second would come.
        window_ms: Market time that is computed and sent at once.
    """

    symbols: tuple[str, ...] = ("BTC/USD", "ETH/USD", "SOL/USD", "XRP/USD", "ADA/USD", "DOGE/USD")
    rate: float = 500.0
    seed: int = 1
    model: str = "gbm"
    start_ns: int | None = None
    trade_share: float = 0.2
    book_levels: int = 25
    book_interval_ms: int = 0
    window_ms: int = 10


def _check(options: SimulationOptions) -> None:
    """Raise OptionError at the first option that is not allowed."""
    for symbol in options.symbols:
        if not _SYMBOL.fullmatch(symbol):
            raise OptionError(f"symbols: {symbol!r} is not of the form BASE/QUOTE, as in BTC/USD: {_SYMBOL.pattern}")
    repeated = [symbol for symbol, times in Counter(options.symbols).items() if times > 1]
    allowed = (
        ("symbols", bool(options.symbols), "at least one symbol"),
        ("symbols", not repeated, f"each symbol once, and {repeated[:1]} is there more often"),
        ("rate", 0 < options.rate <= 5_000_000, "above 0 and at most 5000000 ticks per second"),
        ("seed", options.seed >= 0, "0 or more"),
        ("model", options.model in models.MODELS, "one of " + ", ".join(sorted(models.MODELS))),
        ("start_ns", 0 <= (options.start_ns or 0) <= 2**62, "None, or 0 to 2**62 ns"),
        ("trade_share", 0 <= options.trade_share <= 1, "0 to 1"),
        ("book_levels", 1 <= options.book_levels <= 1_000, "1 to 1000"),
        ("window_ms", 1 <= options.window_ms <= 100, "1 to 100"),
        ("book_interval_ms", 0 <= options.book_interval_ms <= 60_000, "0, or at most 60000"),
    )
    for name, fine, what in allowed:
        if not fine:
            raise OptionError(f"{name}: {_shortly(getattr(options, name))} is not allowed; allowed is {what}")


def _completed(options: SimulationOptions, start_ns: int) -> SimulationOptions:
    """Return the options with what they leave open filled in."""
    window = options.window_ms
    books = options.book_interval_ms
    if not books:
        shortest = max(100.0, 1_000 * len(options.symbols) / BOOKS_PER_S)
        books = min(math.ceil(shortest / window), 60_000 // window) * window
    options = msgspec.structs.replace(options, start_ns=start_ns, book_interval_ms=books)
    if books % window:
        raise OptionError(
            f"book_interval_ms: {books} is not allowed; allowed is a multiple of window_ms, which is {window}"
        )
    return options


def _shortly(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class SimulatedFeed:
    """A feed of simulated pairs.

    Attributes:
        name: ``simulated``.
        mode: ``sim``.
        instruments: One for each symbol of the options, in their order.
        options: As given, with ``start_ns`` filled in.
        speed: Market seconds per second; ``math.inf`` sends as fast as the reader takes it.

    Raises:
        OptionError: An option, or the speed, has a value that is not allowed.
    """

    name = "simulated"
    mode = "sim"

    def __init__(self, options: SimulationOptions, *, speed: float = 1.0) -> None:
        _check(options)
        if not speed > 0:
            raise OptionError(f"speed: {speed} is not allowed; allowed is any number above 0, and inf")
        self._start_ns = clock.wall_ns() if options.start_ns is None else options.start_ns
        self.options = _completed(options, self._start_ns)
        self.speed = speed
        self._pairs = [models.pair(symbol) for symbol in options.symbols]
        self.instruments = Instruments(map(_instrument, options.symbols, self._pairs))
        self._clock: clock.ReplayClock | None = None
        self._sent_ns = self._start_ns

    def windows(self) -> Iterator[Batch]:
        """Return the stream from its beginning, endless and without any clock.

        The first batch is the opening: at ``start_ns`` one quote of each symbol. Each one after it holds a window
        ``(ts - window, ts]``, whether or not anything happened in it.
        """
        return _Market(self.options, self._pairs, self._start_ns).batches()

    async def run(self, out: trio.abc.SendChannel[Event]) -> None:
        """Write an epoch marker, then the windows, each when its end is due; endless.

        A busy market sends several at once, as many as are computed at once: a batch of a hundred ticks costs its
        readers as much as one of a thousand.

        Called again, it begins again with the first window's random numbers, at the market time that has been
        reached. A cancel loses the window that was being sent; the next run does not depend on it.
        """
        again = self._clock is not None
        start_ns = self._reached_ns()
        self._clock = clock.ReplayClock(start_ns, trio.current_time(), self.speed)
        reason = "the simulation begins again" if again else "the simulation begins"
        await out.send(Marker(kind="epoch", ts=start_ns, reason=reason))
        market = _Market(self.options, self._pairs, start_ns)
        busy = self.options.rate * self.options.window_ms / 1_000 >= BUSY_WINDOW
        for batch in market.spans() if busy else market.batches():
            due = self._clock.due(batch.ts)
            if due > trio.current_time():
                await trio.sleep_until(due)
            await out.send(batch)  # a checkpoint in itself, also when everything is late
            self._sent_ns = batch.ts

    def _reached_ns(self) -> int:
        """Return the market time that has been reached, at least that of the last window sent (ns)."""
        if self._clock is None:
            return self._start_ns
        return max(self._sent_ns, self._clock.tape_at(trio.current_time()))


def _instrument(symbol: str, pair: Pair) -> Instrument:
    base, quote = symbol.split("/")
    return Instrument(
        symbol=symbol, base=base, quote=quote, price_precision=pair.price_precision, qty_precision=pair.qty_precision
    )


class _Market:
    """One run of the simulation: joins ticks and books, numbers their rows and cuts them into windows.

    Windows are half open on the left, ``(begin, end]``, and books are published at a window's end, like a venue
    that publishes depth on a timer; a book therefore comes after every tick of its instant.

    Where little happens, several windows are computed at once, a *span*, because a call of numpy costs the same for
    five events as for fifty. No row depends on it: counts, events and books have each their own random numbers.
    """

    #: Ticks, and symbols in windows, that a span may have; beyond it a span is a single window. A full span takes
    #: about 4 ms, as long as a single window of a million ticks a second; at 1,000 it would take 1.5 ms, but
    #: 100,000 ticks a second over 1,000 symbols would then cost 1.8 times as much.
    SPAN = 5_000

    def __init__(self, options: SimulationOptions, pairs: list[Pair], start_ns: int) -> None:
        self._now_ns, self._seq = start_ns, 1
        self._window_ns = options.window_ms * NS_PER_MS
        count = len(options.symbols)
        per_window = options.rate * options.window_ms / 1_000
        # A divisor of the book interval: a symbol then has its book at most once in a span.
        slots = options.book_interval_ms // options.window_ms
        most = self.SPAN / max(count, per_window)
        self._span = max(s for s in range(1, slots + 1) if slots % s == 0 and s <= max(1, most))
        self._table = models.poisson_table(per_window / count)
        self._ticks = _Ticks(options, pairs, start_ns)
        self._books = Books(pairs, options.book_levels)
        most_events = self._span * len(self._table)
        sizes = (
            (False, self._span, 1),
            (False, self._ticks.uniforms, most_events),
            (True, self._ticks.normals, most_events),
            (False, self._books.uniforms, 1),
        )
        self._streams = [
            RandomStreams(options.seed, options.symbols, purpose, normal=normal, size=size, reserve=reserve)
            for purpose, (normal, size, reserve) in enumerate(sizes)
        ]
        # Which window of the interval is a symbol's own follows from its name, so that it keeps it in any company.
        slot = np.array([models.stable_hash(symbol)[0] % slots for symbol in options.symbols])
        self._due = [np.flatnonzero(slot // self._span == s) for s in range(slots // self._span)]
        self._due = [ids[np.argsort(slot[ids], kind="stable")] for ids in self._due]
        self._due_window = [slot[ids] % self._span for ids in self._due]

    def batches(self) -> Iterator[Batch]:
        """Yield the opening and then the windows."""
        spans = self.spans()
        yield next(spans)
        for span in spans:
            ends = span.ts - self._window_ns * np.arange(self._span - 1, -1, -1)
            yield from _cut(ends, span.trades, span.quotes, span.levels)

    def spans(self) -> Iterator[Batch]:
        """Yield the same rows with a whole span in each batch."""
        yield self._opening()
        for span in itertools.count():
            yield self._next_span(span % len(self._due))

    def _opening(self) -> Batch:
        """Return one quote of each symbol, so that every one has a price from the start."""
        _, uniforms, normals, _ = self._streams
        uniforms.refill()
        normals.refill()
        events = self._ticks.opening(uniforms, normals)
        seq = np.arange(self._seq, self._seq + len(events.order.ids))
        self._seq += len(seq)
        trades, quotes = _tables(events, self._now_ns, seq)
        return Batch(ts=self._now_ns, trades=trades, quotes=quotes)

    def _next_span(self, place: int) -> Batch:
        """Return the next span, which is at ``place`` in its book interval."""
        for stream in self._streams:
            stream.refill()
        of_counts, uniforms, normals, _ = self._streams
        counts = np.searchsorted(self._table, of_counts.take(self._ticks.all_ids), side="right")
        events = self._ticks.events(uniforms, normals, counts, self._now_ns)
        ends = self._now_ns + self._window_ns * np.arange(1, self._span + 1)
        ticks = counts.sum(axis=0)
        levels = self._publish(place, events, counts, ends, self._seq + ticks.cumsum())
        # In a window, ticks come after the book rows of the windows before it, and books after its ticks.
        rows_before = np.searchsorted(levels.ts_recv, ends, side="left")
        seq = np.repeat(rows_before, ticks) + np.arange(self._seq, self._seq + len(events.order.ids))
        trades, quotes = _tables(events, self._now_ns, seq)
        self._seq += len(seq) + len(levels)
        self._now_ns = int(ends[-1])
        return Batch(ts=self._now_ns, trades=trades, quotes=quotes, levels=levels)

    def _publish(self, place: int, events: _Events, counts: I64, ends: I64, seq: I64) -> Levels:
        """Return the books that are due in a span; those of window *w* are numbered from ``seq[w]`` on."""
        ids, windows = self._due[place], self._due_window[place]
        if not len(ids):
            return Levels.empty()
        position = counts.reshape(-1).cumsum()[ids * self._span + windows]
        touch = events.touches[:, events.order.standing(ids, position)]
        return self._books.publish(ids, touch, self._streams[3].take(ids), ends[windows], seq[windows])


def _cut(ends: I64, trades: Trades, quotes: Quotes, levels: Levels) -> Iterator[Batch]:
    """Return a batch for each window, given the ends of all of them."""
    if len(ends) == 1:
        yield Batch(ts=int(ends[0]), trades=trades, quotes=quotes, levels=levels)
        return
    stops = [np.searchsorted(table.ts_recv, ends, side="right").tolist() for table in (trades, quotes, levels)]
    a = b = c = 0
    for end, i, j, k in zip(ends.tolist(), *stops, strict=True):
        yield Batch(ts=end, trades=trades.slice(a, i), quotes=quotes.slice(b, j), levels=levels.slice(c, k))
        a, b, c = i, j, k


class _Order(NamedTuple):
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
        """Return the column of ``_Events.touches`` with the last quote of symbols ``ids`` before ``position``."""
        quote = self.quotes_before[position] - 1
        in_span = quote >= self.quotes_before[self.starts[ids]]
        return np.where(in_span, quote, self.quotes_before[-1] + ids)


class _Events(NamedTuple):
    """Trades and quotes of one span.

    Attributes:
        order: Which symbols they are of, and when.
        touches: int64, shape ``(4, quotes + symbols)``: the rows of :attr:`_Ticks.touch` as each quote leaves them,
            then as each symbol had them before the span.
        trades: int64, shape ``(4, trades)``: price, quantity, side, trade id.
    """

    order: _Order
    touches: I64
    trades: I64


class _Ticks:
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

    def __init__(self, options: SimulationOptions, pairs: list[Pair], start_ns: int) -> None:
        self._model = models.MODELS[options.model](np.array([pair.volatility for pair in pairs]))
        self._window_ns = options.window_ms * NS_PER_MS
        self._trade_share = options.trade_share
        self.uniforms = self._OWN + self._model.uniforms
        self.normals = 2 + self._model.normals
        # A log price is folded back at a floor, where the deepest book still fits above zero, and at a ceiling far
        # from MAX_UNITS: a reflected walk. It is stored from the floor, and unfolded.
        prices = np.array([pair.price_ticks for pair in pairs])
        self._floor = 2.0 * (options.book_levels + 1) * depth.level_steps(pairs) + 64
        self._log = np.rint(np.log(prices / self._floor) * self.LOG_SCALE).astype(np.int64)
        self._log_span = np.rint(np.log(MAX_UNITS / 4 / self._floor) * self.LOG_SCALE).astype(np.int64)
        self._log_qty = np.log([pair.qty_lots for pair in pairs])
        self._last_ns = np.full(len(pairs), start_ns, np.int64)
        self._trade_ids = np.zeros(len(pairs), np.int64)
        self.all_ids = np.arange(len(pairs))
        self.touch = np.zeros((4, len(pairs)), np.int64)

    def opening(self, uniforms: RandomStreams, normals: RandomStreams) -> _Events:
        """Return one quote of each symbol, at the start."""
        draws = uniforms.take(self.all_ids).T.copy(), normals.take(self.all_ids).T.copy()
        order = _in_order(np.ones_like(self.all_ids), self.all_ids, self._last_ns.copy(), self.all_ids >= 0)
        return self._advance(order, *draws)

    def events(self, uniforms: RandomStreams, normals: RandomStreams, counts: I64, begin_ns: int) -> _Events:
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
        order = _in_order(of_symbol, ids, times, (keys & 1).astype(np.bool_))
        return self._advance(order, draws, normals.take_runs(ids, of_symbol).T.copy())

    def _advance(self, order: _Order, uniforms: F64, normals: F64) -> _Events:
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
        return _Events(order, touches, trades)

    def _years(self, order: _Order) -> F64:
        """Return the time since the event before of the same symbol, shape ``(events,)``, in years."""
        times = order.times
        active = (order.ends > order.starts).nonzero()[0]
        first = order.starts[active]
        gaps = np.empty_like(times)
        np.subtract(times[1:], times[:-1], out=gaps[1:])
        gaps[first] = times[first] - self._last_ns[active]
        self._last_ns[active] = times[order.ends[active] - 1]
        return gaps / models.NS_PER_YEAR

    def _walk(self, order: _Order, returns: F64) -> F64:
        """Return the log price in ticks after each event, from the floor, and keep the last of each symbol."""
        sums = _sums_before(np.rint(returns * self.LOG_SCALE).astype(np.int64))
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

    def _trades(self, order: _Order, at: I64, touches: I64, uniforms: F64, normals: F64) -> I64:
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


def _in_order(counts: I64, ids: I64, times: I64, is_quote: Mask) -> _Order:
    """Return the order of events of which symbol *s* has ``counts[s]``."""
    ends = counts.cumsum()
    return _Order(ids, times, is_quote, ends - counts, ends, _sums_before(is_quote))


def _tables(events: _Events, begin_ns: int, seq: I64) -> tuple[Trades, Quotes]:
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


def _common(order: _Order, source: I64) -> tuple[I64, records.I32, records.U8, I64]:
    """Return time, instrument and flags of the events ``source``, and the quotes before each."""
    flags = np.full(len(source), records.LAST, np.uint8)
    return order.times[source], order.ids[source].astype(np.int32), flags, order.quotes_before[source]


def _sums_before(values: I64 | Mask) -> I64:
    """Return the sum of the values before each, and of all: shape ``(values + 1,)``."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums
