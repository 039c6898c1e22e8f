"""Orders against a tape that they do not move: the recorded or modelled market happens whatever is entered.

This is a :class:`feeds.venue.Venue`. It knows the entries that rest, what they stand behind, and what entries have
taken of the displayed depth. It must not know accounts, requests, or where the tape comes from.

What is displayed is the touch (best bid and offer, the freshest that there is) and behind it the levels of the book.

* An entry that can trade walks the displayed depth, best price first. What it takes stays taken, for everybody, until
  the level is refreshed: by a book row for its price, by another quantity or by its disappearance from the touch.
* What rests notes the quantity displayed at its price, the *queue ahead*. A print at its price, with an aggressor of
  the other side or none named, first consumes the queue ahead; what is left of it fills. The queue ahead shrinks to
  the quantity displayed there whenever that is less. A cancel therefore counts as one behind us while it can: this is
  the queue model that hftbacktest calls risk-averse. Behind everything that is displayed nobody knows who waits; there
  what is displayed first is ahead.
* A print strictly through an entry's price fills all of it, whatever the size of the print.
* An opposite touch at its price or better fills it, at its limit, with what is displayed there and not taken.
* Entries of one price share a print in the order of time, and a print is used once. Each slice that an iceberg shows
  queues anew.
* An entry that would meet one of its own owner trades first with what the market displays at the other's price or
  better, then :attr:`feeds.venue.Entry.self_trade` decides. Entries of different owners never trade with each other.

Left out: what others would have done had they seen our orders; fees and latency; hidden orders of the recorded market.
Trades and quotes are looked at one by one in the order of the tape; the book rows of a batch after them, as one. A feed
that shows a trade in the quote before the print moves us ahead twice.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from operator import itemgetter
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.book import Books
from feeds.records import BUY, CLEAR, I64, MISSING, SELL, SNAPSHOT, Batch, Levels, Quotes, Trades
from feeds.resting import FAR, Queue, Resting, RestingSide, Taken, shrink
from feeds.venue import Entry, Match, Outcome, SelfTrade


class LastState(Protocol):
    """The market as it is now, kept up by somebody else; arrays are int64, one place per instrument.

    Attributes:
        books: Order books; an instrument may have none.
        bid_px, ask_px: Best bid and offer, ticks or :data:`feeds.records.MISSING`. Where there is a book but no quotes,
            the best of the book.
        bid_qty, ask_qty: Lots.
    """

    books: Books
    bid_px: I64
    bid_qty: I64
    ask_px: I64
    ask_qty: I64


#: A row of the tape: its number, what takes it in, and its values.
_Happening = tuple[int, Callable[..., None], tuple[Any, ...]]


class Tape:
    """A venue whose market does not see what is entered.

    Args:
        market: Its last state.
    """

    def __init__(self, market: LastState) -> None:
        self._market = market
        self._resting: dict[int, Resting] = {}
        self._sides: dict[tuple[int, int], RestingSide] = {}
        self._taken: dict[tuple[int, int], Taken] = {}
        # By side and instrument: rows of the tape matter whose price times side is not above this. That is the best
        # price of the entries that rest, or everything where something is taken. Row 0 is for rows without a side.
        self._bound = np.full((3, len(market.bid_px)), -FAR)
        self._owned: Counter[tuple[int, int, int]] = Counter()  # entries by instrument, side and owner

    def walk(
        self,
        instrument: int,
        side: int,
        price: int | None,
        qty: int,
        owner: int,
        *,
        self_trade: SelfTrade = "cancel_oldest",
    ) -> list[tuple[int, int]]:
        """See :meth:`feeds.venue.Venue.walk`."""
        if not self._meets(instrument, side, price):
            return []
        if self_trade != "cancel_oldest":
            price = next((other.price for other in self._own(instrument, side, price, owner)), price)
        steps: list[tuple[int, int]] = []
        for level, available, _ in self._offers(instrument, -side, price):
            if not qty:
                break
            lots = min(qty, available)
            steps.append((level, lots))
            qty -= lots
        return steps

    def enter(self, entry: Entry) -> Outcome:
        """Trade what can be traded at once, and let the remainder rest if it may."""
        matches: list[Match] = []
        withdrawn: list[Resting] = []
        left, met = entry.qty, False
        for other in self._own(entry.instrument, entry.side, entry.price, entry.owner):
            left = self._trade(entry, other.price, left, matches)
            if not left:
                break
            if entry.self_trade != "cancel_newest":
                withdrawn.append(other)
            if entry.self_trade != "cancel_oldest":
                met = True
                break
        if not met and self._meets(entry.instrument, entry.side, entry.price):
            left = self._trade(entry, entry.price, left, matches)
        for other in withdrawn:
            self._remove(other)
        rests = left if entry.rests and entry.price is not None and not met else 0
        if rests and entry.price is not None:
            ahead = self._displayed_at(entry.instrument, entry.side, entry.price)
            self._add(Resting(entry, entry.price, rests, ahead))
        return Outcome(matches, [other.entry.key for other in withdrawn], rests, met)

    def amend(self, key: int, price: int, qty: int) -> Outcome:
        """Give a resting entry another limit and other open lots.

        It keeps its place where the price stays and the quantity does not grow; else it is entered anew, and may trade.

        Args:
            key: The entry.
            price: Ticks.
            qty: Lots open from now on, 1 or above.
        """
        resting = self._resting[key]
        if price == resting.price and qty <= resting.open:
            resting.open = qty
            resting.shown = min(resting.shown, qty)
            return Outcome([], [], qty, False)
        self._remove(resting)
        return self.enter(msgspec.structs.replace(resting.entry, price=price, qty=qty))

    def cancel(self, key: int) -> None:
        """Take a resting entry out; one that does not rest is passed over."""
        resting = self._resting.get(key)
        if resting is not None:
            self._remove(resting)

    def moved(self, batch: Batch) -> list[Match]:
        """Return the fills of resting entries since the last call, oldest first.

        Args:
            batch: What has just happened; the last state of the market already shows it.
        """
        matches: list[Match] = []
        if not self._resting and not self._taken:
            return matches
        prints = self._prints(batch.trades) if len(batch.trades) else ()
        touches = self._touches(batch.quotes) if len(batch.quotes) else ()
        for _, happened, row in sorted((*prints, *touches), key=itemgetter(0)):
            happened(*row, matches)
        if len(batch.levels):
            self._booked(batch.levels)
        if len(batch.levels) or len(batch.quotes):
            self._meet(matches)
        self._forget()
        return matches

    def clear(self) -> None:
        """A new epoch begins: forget every resting entry."""
        for kept in (self._resting, self._sides, self._taken, self._owned):
            kept.clear()
        self._bound[:] = -FAR

    # The entries that rest

    def _add(self, resting: Resting) -> None:
        entry = resting.entry
        at = entry.instrument, entry.side
        side = self._sides.get(at)
        if side is None:
            side = self._sides[at] = RestingSide(entry.side)
        side.add(resting)
        self._resting[entry.key] = resting
        self._owned[*at, entry.owner] += 1
        self._note_bound(*at)

    def _remove(self, resting: Resting) -> None:
        entry = resting.entry
        at = entry.instrument, entry.side
        self._sides[at].remove(resting)
        del self._resting[entry.key]
        self._owned[*at, entry.owner] -= 1
        self._note_bound(*at)

    def _note_bound(self, instrument: int, side: int) -> None:
        own = self._sides.get((instrument, side))
        best = own.best if own else None
        bound = -FAR if best is None else best * side
        self._bound[side, instrument] = FAR if self._taken.get((instrument, side)) else bound

    def _own(self, instrument: int, side: int, price: int | None, owner: int) -> Iterator[Resting]:
        """Yield the entries of the same owner that an entry would meet, in the order in which it would."""
        if self._owned.get((instrument, -side, owner)):
            for other in self._sides[instrument, -side].reached(price):
                if other.entry.owner == owner:
                    yield other

    def _fill(self, resting: Resting, lots: int, matches: list[Match], trade_id: int = 0, passed: int = 0) -> bool:
        """Fill some of an entry, and return whether an iceberg shows a new slice, ``passed`` lots further behind."""
        entry = resting.entry
        matches.append(Match(entry.key, resting.price, lots, True, trade_id))
        resting.open -= lots
        resting.shown -= min(lots, resting.shown)
        if not resting.open:
            self._remove(resting)
        elif not resting.shown:
            ahead = passed + self._displayed_at(entry.instrument, entry.side, resting.price)
            self._sides[entry.instrument, entry.side].renew(resting, min(entry.display, resting.open), ahead)
            return True
        return False

    # The displayed depth

    def _displayed(self, instrument: int, side: int) -> Iterator[tuple[int, int]]:
        """Yield (ticks, lots), best price first."""
        touch, qty = self._touch(instrument, side)
        if touch == MISSING:
            return
        yield touch, qty
        book = self._market.books[instrument]
        if not book.stale:
            for price, lots in book.side(side):
                if (touch - price) * side > 0:  # a book may be older than the touch, and still show what is gone
                    yield price, lots

    def _displayed_at(self, instrument: int, side: int, price: int) -> int:
        """Return the lots at a price, :data:`FAR` if that is behind everything that is displayed."""
        touch, qty = self._touch(instrument, side)
        if touch == MISSING:
            return FAR if self._touch(instrument, -side)[0] == MISSING else 0
        distance = (touch - price) * side
        if distance <= 0:
            return 0 if distance else qty
        book = self._market.books[instrument]
        levels = book.side(side)
        if book.stale or levels.worst is None or (levels.worst - price) * side > 0:
            return FAR
        return levels.levels.get(price, 0)

    def _meets(self, instrument: int, side: int, price: int | None) -> bool:
        """Whether the best price of the other side is within a limit; it is not for most that are entered."""
        best, _ = self._touch(instrument, -side)
        return best != MISSING and (price is None or (price - best) * side >= 0)

    def _touch(self, instrument: int, side: int) -> tuple[int, int]:
        market = self._market
        px, qty = (market.bid_px, market.bid_qty) if side == BUY else (market.ask_px, market.ask_qty)
        return int(px[instrument]), int(qty[instrument])

    def _offers(self, instrument: int, side: int, limit: int | None) -> Iterator[tuple[int, int, int]]:
        """Yield (ticks, lots that are not taken, lots displayed) up to what the other side's limit allows."""
        for price, displayed in self._displayed(instrument, side):
            if limit is not None and (limit - price) * side > 0:
                return
            available = displayed - self._taken_at(instrument, side, price)
            if available > 0:
                yield price, available, displayed

    def _taken_at(self, instrument: int, side: int, price: int) -> int:
        taken = self._taken.get((instrument, side))
        return taken.at(price) if taken else 0

    def _take(self, instrument: int, side: int, price: int, lots: int, displayed: int) -> None:
        taken = self._taken.get((instrument, side))
        if taken is None:
            taken = self._taken[instrument, side] = Taken(side)
        taken.add(price, lots, displayed)
        self._note_bound(instrument, side)

    def _forget(self) -> None:
        """Stop watching sides of which nothing is taken any more."""
        for instrument, side in [at for at, taken in self._taken.items() if not taken]:
            del self._taken[instrument, side]
            self._note_bound(instrument, side)

    def _trade(self, entry: Entry, limit: int | None, left: int, matches: list[Match]) -> int:
        """Take what is displayed up to a limit, and return the lots that are left."""
        side = -entry.side
        for price, available, displayed in self._offers(entry.instrument, side, limit):
            if not left:
                break
            lots = min(left, available)
            self._take(entry.instrument, side, price, lots, displayed)
            matches.append(Match(entry.key, price, lots, False))
            left -= lots
        return left

    # What happens on the tape

    def _prints(self, trades: Trades) -> Iterable[_Happening]:
        """Return the prints that may fill something."""
        at = trades.instrument
        matters = (trades.price <= self._bound[BUY, at]) | (trades.price >= -self._bound[SELL, at])
        rows = np.flatnonzero(matters & (trades.qty > 0))
        columns = (at, trades.price, trades.qty, trades.side, trades.trade_id)
        return _happenings(self._printed, trades.seq, columns, rows)

    def _touches(self, quotes: Quotes) -> Iterable[_Happening]:
        """Return the quotes that may fill something, shorten a queue or refresh what is taken."""
        at, bid, ask = quotes.instrument, quotes.bid_px, quotes.ask_px
        low = np.minimum(bid, ask) <= self._bound[BUY, at]
        rows = np.flatnonzero(low | (np.maximum(bid, ask) >= -self._bound[SELL, at]))
        return _happenings(self._touched, quotes.seq, (at, bid, quotes.bid_qty, ask, quotes.ask_qty), rows)

    def _printed(
        self, instrument: int, price: int, qty: int, aggressor: int, trade_id: int, matches: list[Match]
    ) -> None:
        for side in (BUY, SELL):
            own = self._sides.get((instrument, side))
            if own is None:
                continue
            while resting := own.first(price, through=True):
                self._fill(resting, resting.open, matches, trade_id)
            if price in own.queues and aggressor != side:
                qty = self._share(own.queues[price], qty, trade_id, matches)

    def _share(self, queue: Queue, qty: int, trade_id: int, matches: list[Match]) -> int:
        """Let a print go through a queue, the market's lots ahead and the entry in turn, and return what is left."""
        left, passed = qty, 0
        waiting = deque(queue.values())
        while left and waiting:
            resting = waiting.popleft()
            ahead = min(left, max(resting.ahead - passed, 0))
            passed, left = passed + ahead, left - ahead
            if lots := min(left, resting.shown):
                left -= lots
                if self._fill(resting, lots, matches, trade_id, passed):
                    waiting.append(resting)
        for resting in queue.values():
            resting.ahead = max(resting.ahead - passed, 0)
        return left

    def _touched(self, instrument: int, bid: int, bid_qty: int, ask: int, ask_qty: int, matches: list[Match]) -> None:
        for side, price, qty in ((BUY, bid, bid_qty), (SELL, ask, ask_qty)):
            best = -side * FAR if price == MISSING else price
            if taken := self._taken.get((instrument, side)):
                taken.touch(best, qty)
            if own := self._sides.get((instrument, side)):
                own.touch(best, qty)
        for side, price, qty in ((BUY, ask, ask_qty), (SELL, bid, bid_qty)):
            if price != MISSING:
                self._reach(instrument, side, price, qty, matches)

    def _reach(self, instrument: int, side: int, price: int, displayed: int, matches: list[Match]) -> None:
        """Let what the other side displays at a price fill the entries that it reaches."""
        own = self._sides.get((instrument, side))
        available = displayed - self._taken_at(instrument, -side, price)
        while own and available > 0 and (resting := own.first(price)):
            lots = min(available, resting.open)
            available -= lots
            self._take(instrument, -side, price, lots, displayed)
            self._fill(resting, lots, matches)

    def _booked(self, levels: Levels) -> None:
        """Refresh the levels that rows are about, and shorten the queues there."""
        at, price, side = levels.instrument, levels.price, levels.side
        rows = np.flatnonzero(price * side <= self._bound[side, at])
        for instrument, one, level in set(
            zip(at[rows].tolist(), side[rows].tolist(), price[rows].tolist(), strict=True)
        ):
            if taken := self._taken.get((instrument, one)):
                taken.refresh(level)
            self._shrink(instrument, one, (level,))
        whole = (levels.action == CLEAR) | (levels.flags & SNAPSHOT).astype(np.bool_)
        for instrument in set(at[whole].tolist()):
            for one in (BUY, SELL):
                if taken := self._taken.get((instrument, one)):
                    taken.clear()
                own = self._sides.get((instrument, one))
                self._shrink(instrument, one, own.queues if own else ())

    def _shrink(self, instrument: int, side: int, prices: Iterable[int]) -> None:
        own = self._sides.get((instrument, side))
        for price in prices:
            if own and price in own.queues:
                shrink(own.queues[price], self._displayed_at(instrument, side, price))

    def _meet(self, matches: list[Match]) -> None:
        """Fill what the displayed depth reaches, where a quote has not told of it."""
        bid, ask = self._market.bid_px, self._market.ask_px
        reached = ((ask <= self._bound[BUY]) & (ask != MISSING)) | (bid >= -self._bound[SELL])
        for instrument in np.flatnonzero(reached).tolist():
            for side in (BUY, SELL):
                own = self._sides.get((instrument, side))
                for price, displayed in self._displayed(instrument, -side) if own else ():
                    if own is None or own.first(price) is None:
                        break
                    self._reach(instrument, side, price, displayed, matches)


def _happenings(
    happened: Callable[..., None], seq: I64, columns: tuple[npt.NDArray[Any], ...], rows: I64
) -> Iterable[_Happening]:
    if not len(rows):
        return ()
    values = zip(*(column[rows].tolist() for column in columns), strict=True)
    return zip(seq[rows].tolist(), repeat(happened), values)
