"""The books of all instruments of a market, and what clients have in them.

It implements :class:`feeds.venue.Venue`: a client's entry meets the orders of agents and of other clients, shows in the
book, and prints. It must not know what agents do or when a batch is due; whoever runs the market moves its time.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from feeds.matching import Order, OrderBook, Side
from feeds.records import Batch
from feeds.transcript import Transcript
from feeds.venue import Entry, Match, Outcome, SelfTrade


class Pit:
    """Where agents and clients meet; a new one is empty.

    What a client does is an event at :attr:`now_ns`, published with the next batch.

    Args:
        prices: Of each instrument, ticks: what stands for its last trade.
        now_ns: Market time, ns UTC.

    Attributes:
        books: By dense id.
        now_ns: Market time that has been published.
    """

    def __init__(self, prices: Sequence[int], now_ns: int) -> None:
        self.reset(prices, now_ns)

    def reset(self, prices: Sequence[int], now_ns: int) -> None:
        """Begin anew, with empty books and no entries."""
        self.now_ns = now_ns
        self._transcript = Transcript(len(prices))
        self.books = [OrderBook(instrument, price, self._transcript) for instrument, price in enumerate(prices)]
        self._resting: dict[int, tuple[Entry, Order]] = {}
        self._moved: list[Match] = []

    def opening(self) -> Batch:
        """Return all books as they are; what led to them is not published."""
        return self._transcript.opening(self.now_ns, [(_ranked(book.bids), _ranked(book.asks)) for book in self.books])

    def publish(self, now_ns: int) -> Batch:
        """Move time and return what has happened up to then."""
        self.now_ns = now_ns
        self._moved += self._take_matches()
        return self._transcript.batch(now_ns)

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
        """See :meth:`feeds.venue.Venue.walk`; what icebergs hide is in it."""
        return self.books[instrument].walk(side, price, qty, owner, self_trade=self_trade)

    def enter(self, entry: Entry) -> Outcome:
        """See :meth:`feeds.venue.Venue.enter`."""
        book = self.books[entry.instrument]
        order = Order(entry.side, entry.qty, entry.key, entry.owner, entry.display)
        met = book.enter(order, entry.price, entry.rests, entry.self_trade)
        book.close_event(self.now_ns)
        if order.qty:
            self._resting[entry.key] = entry, order
        withdrawn = self._transcript.take_withdrawn()
        for key in withdrawn:
            del self._resting[key]
        return Outcome(self._take_matches(), withdrawn, order.qty + order.hidden, met)

    def amend(self, key: int, price: int, qty: int) -> Outcome:
        """See :meth:`feeds.venue.Venue.amend`.

        Raises:
            KeyError: No entry of that key rests.
        """
        entry, order = self._resting[key]
        book = self.books[entry.instrument]
        if price != entry.price or qty > order.qty + order.hidden:
            del self._resting[key]
            book.cancel(order)
            return self.enter(msgspec.structs.replace(entry, price=price, qty=qty))
        book.reduce(order, qty)
        book.close_event(self.now_ns)
        return Outcome([], [], qty, False)

    def cancel(self, key: int) -> None:
        """See :meth:`feeds.venue.Venue.cancel`."""
        if key in self._resting:
            entry, order = self._resting.pop(key)
            book = self.books[entry.instrument]
            book.cancel(order)
            book.close_event(self.now_ns)

    def moved(self, batch: Batch) -> list[Match]:
        """See :meth:`feeds.venue.Venue.moved`; the batch says nothing that is not known here."""
        moved, self._moved = self._moved, []
        return moved

    def clear(self) -> None:
        """See :meth:`feeds.venue.Venue.clear`."""
        for key in list(self._resting):
            self.cancel(key)
        self._moved.clear()

    def _take_matches(self) -> list[Match]:
        """Return the fills that have just happened; entries that they have used up are forgotten."""
        matches = self._transcript.take_fills()
        for match in matches:
            if match.key in self._resting and not self._resting[match.key][1].qty:
                del self._resting[match.key]
        return matches


def _ranked(side: Side) -> list[tuple[int, int]]:
    """Return the levels of a side, best first: (rank, lots)."""
    return [(level.rank, level.lots) for level in side]
