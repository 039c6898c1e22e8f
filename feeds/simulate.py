"""A simulated market: trades, quotes and books of many pairs, the same for the same seed and options.

Market time advances in windows. One window is computed for all symbols at once: how many events each has, when,
what each one is, and at which price. Symbols are independent of each other, and each reads its own stream of
random numbers, so BTC/USD moves the same whichever other symbols are simulated beside it, as long as its share of the
rate, which they divide among themselves, is the same.

:class:`Ticks` makes trades and quotes, :class:`~feeds.depth.Books` the books under them, :class:`_Market` joins the
two and numbers their rows; none of these knows what time it is. Only :class:`SimulatedFeed` has a clock, to pace
what it sends.

What is simplified: prices follow a model and do not react to trades; every symbol is equally busy; a book shows a
grid of levels below the touch rather than the queue of real orders; no message is late, so both times of a row are
equal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np
import trio

from feeds import clock, models
from feeds.depth import Books
from feeds.errors import OptionError, check_options
from feeds.models import Pair, RandomStreams
from feeds.records import I64, Batch, Event, Levels, Marker, Quotes, Trades
from feeds.ticks import Events, Ticks, tables

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
    check_options(
        options,
        ("rate", 0 < options.rate <= 5_000_000, "above 0 and at most 5000000 ticks per second"),
        ("seed", options.seed >= 0, "0 or more"),
        ("model", options.model in models.MODELS, "one of " + ", ".join(sorted(models.MODELS))),
        ("start_ns", 0 <= (options.start_ns or 0) <= 2**62, "None, or 0 to 2**62 ns"),
        ("trade_share", 0 <= options.trade_share <= 1, "0 to 1"),
        ("book_levels", 1 <= options.book_levels <= 1_000, "1 to 1000"),
        ("window_ms", 1 <= options.window_ms <= 100, "1 to 100"),
        ("book_interval_ms", 0 <= options.book_interval_ms <= 60_000, "0, or at most 60000"),
    )


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
        self.instruments = models.instruments_of(options.symbols)
        _check(options)
        clock.check_speed(speed)
        self._start_ns = clock.wall_ns() if options.start_ns is None else options.start_ns
        self._follows_wall = options.start_ns is None
        self.options = _completed(options, self._start_ns)
        self.speed = speed
        self._pairs = [models.pair(symbol) for symbol in options.symbols]
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
        again, start_ns = self._clock is not None, self._reached_ns()
        at_wall = self._follows_wall and not again
        self._clock = clock.ReplayClock.begun(start_ns, trio.current_time(), self.speed, at_wall=at_wall)
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
        self._ticks = Ticks(
            pairs,
            start_ns,
            model=options.model,
            trade_share=options.trade_share,
            window_ns=self._window_ns,
            book_levels=options.book_levels,
        )
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
        """Return a quote and the book of each symbol, so that every one has a market from the start."""
        for stream in self._streams:
            stream.refill()
        _, uniforms, normals, of_books = self._streams
        events = self._ticks.opening(uniforms, normals)
        ids = self._ticks.all_ids
        seq = np.arange(self._seq, self._seq + len(ids))
        trades, quotes = tables(events, self._now_ns, seq)
        touch, now = self._ticks.touch, np.full(len(ids), self._now_ns)
        levels = self._books.publish(ids, touch, of_books.take(ids), now, np.full(len(ids), self._seq + len(ids)))
        self._seq += len(ids) + len(levels)
        return Batch(ts=self._now_ns, trades=trades, quotes=quotes, levels=levels)

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
        trades, quotes = tables(events, self._now_ns, seq)
        self._seq += len(seq) + len(levels)
        self._now_ns = int(ends[-1])
        return Batch(ts=self._now_ns, trades=trades, quotes=quotes, levels=levels)

    def _publish(self, place: int, events: Events, counts: I64, ends: I64, seq: I64) -> Levels:
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
