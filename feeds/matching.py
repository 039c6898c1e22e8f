"""The order book of one instrument: price-time priority over integer ticks and lots.

It knows orders, their owners and their queues, and notes what happens in a :class:`~feeds.transcript.Transcript`. It
must not know who trades, what time it is, or how a book is published. Fill-or-kill and post-only are decided by whoever
looks at :meth:`OrderBook.walk` before entering.

Both sides are kept by *rank*: a bid's price, or an offer's price with a minus. The larger rank is then the better one
on either side, and two orders meet where their ranks add up to zero or more, so there is one piece of code and not two.
A level is a doubly linked list of orders: the front, the back and any order in between are taken out at the same cost.
An empty side has one level at :data:`NOTHING`, without lots, so that nobody has to ask whether there is a best one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Final

from feeds.records import BUY
from feeds.transcript import NOTHING, Transcript
from feeds.venue import Match, SelfTrade

#: The rank of an order without a limit: better than every price, but not met by NOTHING.
ANY_PRICE: Final = 2**61


class Order:
    """An order; it rests while ``qty`` is above 0.

    Attributes:
        side: :data:`feeds.records.BUY` or :data:`feeds.records.SELL`.
        qty: Lots to trade; while it rests those that it shows.
        hidden: Lots behind those, of an iceberg.
        display: Lots that it shows at a time; 0 shows all.
        key: Whatever its owner calls it.
        owner: Whose it is; orders of one owner do not trade with each other, those of 0 do.
        level: Where it rests.
        before: The order ahead of it there.
        after: The order behind it there.
    """

    __slots__ = ("after", "before", "display", "hidden", "key", "level", "owner", "qty", "side")

    level: Level
    before: Order | None
    after: Order | None

    def __init__(self, side: int, qty: int, key: int = 0, owner: int = 0, display: int = 0) -> None:
        self.side = side
        self.qty = qty
        self.hidden = 0
        self.key = key
        self.owner = owner
        self.display = display


class Level:
    """The orders at one price, the oldest first.

    Attributes:
        rank: The price in ticks, with a minus on the offer side.
        lots: What its orders show together; 0 only at :data:`NOTHING`.
        head: The oldest order.
        tail: The newest order.
    """

    __slots__ = ("head", "lots", "rank", "tail")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.lots = 0
        self.head: Order | None = None
        self.tail: Order | None = None

    def __iter__(self) -> Iterator[Order]:
        order = self.head
        while order is not None:
            yield order
            order = order.after

    def append(self, order: Order) -> None:
        """Put an order at the back, showing as much of it as it displays at a time."""
        tail = self.tail
        if tail is None:
            self.head = order
        else:
            tail.after = order
        order.before = tail
        order.after = None
        order.level = self
        self.tail = order
        if order.display and order.qty > order.display:
            order.hidden = order.qty - order.display
            order.qty = order.display
        self.lots += order.qty

    def remove(self, order: Order) -> None:
        """Take an order out, with the lots that it shows."""
        before, after = order.before, order.after
        if before is None:
            self.head = after
        else:
            before.after = after
        if after is None:
            self.tail = before
        else:
            after.before = before
        self.lots -= order.qty

    def within_reach(self, qty: int, owner: int, stops: bool) -> tuple[int, bool]:
        """Return how many of ``qty`` lots a taker could have here, and whether an order of its own then stops it.

        What an iceberg hides comes to the back, hence behind an order that stops the taker.
        """
        shown = hidden = 0
        for order in self:
            if shown >= qty:
                break
            if order.owner != owner or not owner:
                shown += order.qty
                hidden += order.hidden
            elif stops:
                return shown, True
        return min(shown + hidden, qty), False


class Side:
    """The bids or the offers.

    Attributes:
        levels: By rank.
        ranks: Those of all levels, ascending: the best is the last, where most changes are, and the first is NOTHING.
    """

    __slots__ = ("levels", "ranks")

    def __init__(self) -> None:
        self.ranks = [NOTHING]
        self.levels = {NOTHING: Level(NOTHING)}

    def __iter__(self) -> Iterator[Level]:
        """Return the levels, the best first."""
        return (self.levels[rank] for rank in self.ranks[:0:-1])

    @property
    def best(self) -> Level:
        """The best level, or the one at NOTHING."""
        return self.levels[self.ranks[-1]]

    def at(self, rank: int) -> Level:
        """Return the level of a rank; a new one must get an order."""
        level = self.levels.get(rank)
        if level is None:
            level = self.levels[rank] = Level(rank)
            insort(self.ranks, rank)
        return level

    def drop(self, rank: int) -> None:
        """Remove a level that has no order left."""
        del self.levels[rank]
        if self.ranks[-1] == rank:
            self.ranks.pop()
        else:
            del self.ranks[bisect_left(self.ranks, rank)]


class OrderBook:
    """Matches the orders of one instrument.

    An iceberg that shows one lot of a million is a million trades; whoever lets clients enter icebergs says how small
    a part they may show.

    Args:
        instrument: Its dense id.
        price: Ticks; stands for the price of the last trade until there is one.
        transcript: Takes down what happens.

    Attributes:
        bids: Who wants to buy.
        asks: Who wants to sell.
        last: Price of the last trade, ticks.
        trades: How many there were; the number of the last.
    """

    __slots__ = ("_levels", "_prints", "_transcript", "asks", "bids", "instrument", "last", "trades")

    def __init__(self, instrument: int, price: int, transcript: Transcript) -> None:
        self.instrument = instrument
        self.bids, self.asks = Side(), Side()
        self.last = price
        self.trades = 0
        self._transcript = transcript
        self._levels, self._prints = transcript.levels, transcript.prints

    def enter(
        self, order: Order, price: int | None, rests: bool = True, self_trade: SelfTrade = "cancel_newest"
    ) -> bool:
        """Trade what can be traded at once; the remainder rests, or is gone.

        Args:
            order: A new one.
            price: Its limit in ticks, 1 or above, or None: at any price, and it never rests.
            rests: Whether what cannot trade at once stays.
            self_trade: What becomes of two orders of one owner that meet.

        Returns:
            Whether the remainder was cancelled because it met its owner.
        """
        rank = ANY_PRICE if price is None else price * order.side
        met = False
        if (self.asks if order.side == BUY else self.bids).ranks[-1] + rank >= 0:
            met = self._take(order, rank, self_trade)
        if met or price is None or not rests:
            order.qty = 0
        elif order.qty:
            level = (self.bids if order.side == BUY else self.asks).at(rank)
            level.append(order)
            self._levels += rank, level.lots
        return met

    def cancel(self, order: Order) -> None:
        """Take a resting order out."""
        level = order.level
        level.remove(order)
        order.qty = order.hidden = 0
        self._levels += level.rank, level.lots
        if not level.lots:
            (self.bids if order.side == BUY else self.asks).drop(level.rank)

    def reduce(self, order: Order, qty: int) -> None:
        """Leave a resting order ``qty`` lots, at most those it has; it keeps its place, and hidden lots go first."""
        shown = min(order.qty, qty)
        order.hidden = qty - shown
        if shown < order.qty:
            level = order.level
            level.lots -= order.qty - shown
            order.qty = shown
            self._levels += level.rank, level.lots

    def walk(
        self, side: int, price: int | None, qty: int, owner: int, *, self_trade: SelfTrade = "cancel_oldest"
    ) -> list[tuple[int, int]]:
        """Return what :meth:`enter` would trade now: (ticks, lots) of each level, best price first.

        Args:
            side: Of the order.
            price: Its limit in ticks, or None.
            qty: Its lots.
            owner: Whose it is.
            self_trade: Whether its owner's orders would be passed over (``cancel_oldest``) or stop it.
        """
        rank = ANY_PRICE if price is None else price * side
        found: list[tuple[int, int]] = []
        for level in self.asks if side == BUY else self.bids:
            if not qty or level.rank + rank < 0:
                break
            lots, stopped = level.within_reach(qty, owner, self_trade != "cancel_oldest")
            if lots:
                found.append((abs(level.rank), lots))
                qty -= lots
            if stopped:
                break
        return found

    def close_event(self, ts: int) -> None:
        """Say that everything since the last call was one event, at ``ts`` (ns UTC)."""
        transcript = self._transcript
        bids, asks = self.bids, self.asks
        bid, ask = bids.ranks[-1], asks.ranks[-1]
        transcript.events += (
            ts, self.instrument, len(self._levels), len(self._prints),
            bid, bids.levels[bid].lots, ask, asks.levels[ask].lots,
        )  # fmt: skip

    def _take(self, order: Order, rank: int, self_trade: SelfTrade) -> bool:
        """Trade with the other side, level by level; return whether the order met one of its owner and has to go."""
        against = self.asks if order.side == BUY else self.bids
        met = False
        while order.qty and not met and against.ranks[-1] + rank >= 0:
            level = against.best
            before = level.lots
            met = self._take_level(order, level, self_trade)
            if level.lots != before:
                self._levels += level.rank, level.lots
            if not level.lots:
                against.drop(level.rank)
        return met

    def _take_level(self, order: Order, level: Level, self_trade: SelfTrade) -> bool:
        owner = order.owner
        while order.qty and (maker := level.head) is not None:
            if not owner or maker.owner != owner:
                self._trade(order, maker, level)
                continue
            if self_trade != "cancel_newest":
                level.remove(maker)
                maker.qty = maker.hidden = 0
                self._transcript.withdrawn.append(maker.key)
            if self_trade != "cancel_oldest":
                return True
        return False

    def _trade(self, order: Order, maker: Order, level: Level) -> None:
        """Trade with the order at the front of a level."""
        qty = min(order.qty, maker.qty)
        price = self.last = abs(level.rank)
        self.trades = number = self.trades + 1
        self._prints += price, qty, order.side, number
        if maker.owner:
            self._transcript.fill(Match(maker.key, price, qty, True, number))
        if order.owner:
            self._transcript.fill(Match(order.key, price, qty, False, number))
        order.qty -= qty
        maker.qty -= qty
        level.lots -= qty
        if not maker.qty:
            level.remove(maker)
            if maker.hidden:
                maker.qty, maker.hidden = maker.hidden, 0
                level.append(maker)
