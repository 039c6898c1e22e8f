"""A market of order books: simulated agents and clients trade with each other, the same for the same seed.

Market time advances in windows, like that of :mod:`feeds.simulate`. A window is computed when its end is due, and sent
at once, so what a client does between two windows meets the books that have just been published. Instruments are
independent of each other, and each reads its own random numbers; besides them only what clients do counts.

What is simplified: see :mod:`feeds.agents` for how agents behave; nothing takes time between a client and the book, and
all instruments are equally busy.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import trio

from feeds import clock, depth, models
from feeds.agents import Agents, Terrain
from feeds.errors import check_options
from feeds.pit import Pit
from feeds.records import Batch, Event, Marker


class MarketOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What kind of market it is; together with the seed and what clients do it fixes every row.

    Attributes:
        symbols: ``BASE/QUOTE`` each; the position is the dense id.
        rate: Order events (an order entered, cancelled, or traded against the book) of agents per second of market
            time, over all symbols.
        seed: Of all random numbers, >= 0.
        start_ns: Market time of the opening, ns UTC; None for the wall time at which the feed is created.
        window_ms: Market time that is computed and sent at once.
    """

    symbols: tuple[str, ...] = ("BTC/USD", "ETH/USD", "SOL/USD", "XRP/USD", "ADA/USD", "DOGE/USD")
    rate: float = 1_200.0
    seed: int = 1
    start_ns: int | None = None
    window_ms: int = 10


def _check(options: MarketOptions) -> None:
    """Raise OptionError at the first option that is not allowed."""
    check_options(
        options,
        ("rate", 0 < options.rate <= 1_000_000, "above 0 and at most 1000000 order events per second"),
        ("seed", options.seed >= 0, "0 or more"),
        ("start_ns", 0 <= (options.start_ns or 0) <= 2**62, "None, or 0 to 2**62 ns"),
        ("window_ms", 1 <= options.window_ms <= 100, "1 to 100"),
    )


class MarketFeed:
    """A feed of order books in which clients can trade.

    Attributes:
        name: ``market``.
        mode: ``sim``.
        instruments: One for each symbol of the options, in their order.
        options: As given, with ``start_ns`` filled in.
        speed: Market seconds per second; ``math.inf`` is as fast as the reader takes it.
        venue: Where clients trade; always the same object.

    Raises:
        OptionError: An option, or the speed, has a value that is not allowed.
    """

    name = "market"
    mode = "sim"

    def __init__(self, options: MarketOptions, *, speed: float = 1.0) -> None:
        self.instruments = models.instruments_of(options.symbols)
        _check(options)
        clock.check_speed(speed)
        start_ns = clock.wall_ns() if options.start_ns is None else options.start_ns
        self._follows_wall = options.start_ns is None
        self.options = msgspec.structs.replace(options, start_ns=start_ns)
        self.speed = speed
        self._terrains = _terrains(options.symbols)
        self._prices = [terrain.price for terrain in self._terrains]
        self.venue = Pit(self._prices, start_ns)
        self._agents = self._settle()
        self._window_ns = options.window_ms * clock.NS // 1_000
        self._clock: clock.ReplayClock | None = None

    def windows(self) -> Iterator[Batch]:
        """Go on from where the market is: return its books as they are, and then one window after the other, endless.

        There is one market to a feed, and :attr:`venue` is a part of it, so only one caller may do this.
        """
        yield self.venue.opening()
        while True:
            yield self._next(self.venue.now_ns + self._window_ns)

    async def run(self, out: trio.abc.SendChannel[Event]) -> None:
        """Write an epoch marker and the books, then the windows, each when its end is due; endless.

        Called again, it begins again with new books, at the market time that has been reached. A cancel loses the
        window that was being sent.
        """
        start_ns, now, again = self.venue.now_ns, trio.current_time(), self._clock is not None
        if self._clock is not None:
            start_ns = max(start_ns, self._clock.tape_at(now))
        at_wall = self._follows_wall and not again
        self._clock = clock.ReplayClock.begun(start_ns, now, self.speed, at_wall=at_wall)
        reason = "the market opens again" if again else "the market opens"
        await out.send(Marker(kind="epoch", ts=start_ns, reason=reason))
        if again:  # only now does every client know that its orders have ended
            self.venue.reset(self._prices, start_ns)
            self._agents = self._settle()
        await out.send(self.venue.opening())
        while True:
            end_ns = self.venue.now_ns + self._window_ns
            due = self._clock.due(end_ns)
            if due > trio.current_time():
                await trio.sleep_until(due)
            await out.send(self._next(end_ns))  # a checkpoint in itself, also when everything is late

    def _next(self, end_ns: int) -> Batch:
        """Let the agents trade up to ``end_ns`` and return what has happened."""
        for agents in self._agents:
            agents.act(end_ns)
        return self.venue.publish(end_ns)

    def _settle(self) -> list[Agents]:
        """Put agents into the empty books."""
        options, venue = self.options, self.venue
        return [
            Agents(
                book,
                terrain,
                np.random.SeedSequence(options.seed, spawn_key=models.stable_hash(symbol)),
                start_ns=venue.now_ns,
                events_per_s=options.rate / len(options.symbols),
            )
            for symbol, book, terrain in zip(options.symbols, venue.books, self._terrains, strict=True)
        ]


def _terrains(symbols: tuple[str, ...]) -> list[Terrain]:
    """Return where each pair begins: at its price, on the grid of the levels of a simulated book."""
    pairs = [models.pair(symbol) for symbol in symbols]
    return [
        Terrain(round(pair.price_ticks), step, pair.qty_lots)
        for pair, step in zip(pairs, depth.level_steps(pairs).tolist(), strict=True)
    ]
