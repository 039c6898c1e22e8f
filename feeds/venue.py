"""The seam between orders and a market: what a place to trade does with an order.

Two implement it. :mod:`feeds.tape` fills orders against a tape that they do not move; :mod:`feeds.pit` is an order
book in which clients and simulated agents trade with each other. Everything is sync and has one caller. A venue knows
prices, quantities and whose an entry is; it must not know accounts, money, requests or why an order was cancelled.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import msgspec

from feeds.records import Batch

#: What becomes of an entry that would trade with another of the same owner.
SelfTrade = Literal["cancel_newest", "cancel_oldest", "cancel_both"]


# gc=False: it cannot be part of a cycle, and the collector would go through each that rests.
class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An order as a venue sees it.

    Attributes:
        key: Names it; every entry has a larger one than those before.
        owner: Whose it is, 1 or above; entries of one owner never trade with each other.
        instrument: Dense id.
        side: :data:`feeds.records.BUY` or :data:`feeds.records.SELL`.
        price: Its limit in ticks, or None: at any price.
        qty: Lots to trade, 1 or above.
        display: Lots that it shows at a time (iceberg); 0 shows all.
        rests: Whether what cannot trade at once stays in the book. An entry without a price never rests.
        self_trade: What becomes of it, or of the other one, where both have the same owner.
    """

    key: int
    owner: int
    instrument: int
    side: int
    price: int | None
    qty: int
    display: int = 0
    rests: bool = True
    self_trade: SelfTrade = "cancel_newest"


class Match(NamedTuple):
    """A fill of one entry.

    Attributes:
        key: Which entry.
        price: Ticks.
        qty: Lots, 1 or above.
        maker: Whether it rested before.
        trade_id: Number of the trade on the tape, which both sides of it share; 0 if the tape does not show it.
    """

    key: int
    price: int
    qty: int
    maker: bool
    trade_id: int = 0


class Outcome(NamedTuple):
    """What became of an entry at once.

    Attributes:
        matches: Its fills and, in an order book, those of the other clients' entries that it met, as they happened.
        withdrawn: Keys of resting entries of the same owner that were cancelled instead of traded with.
        rests: Lots that rest now, those an iceberg hides among them.
        self_trade: Whether what is neither filled nor resting was cancelled because it would have met its owner.
    """

    matches: list[Match]
    withdrawn: list[int]
    rests: int
    self_trade: bool


class Venue(Protocol):
    """A place to trade."""

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
        """Return what :meth:`enter` would trade now with others than ``owner``: (ticks, lots), best price first.

        With another ``self_trade`` than ``cancel_oldest`` that ends where it would meet an entry of its owner.
        """
        ...

    def enter(self, entry: Entry) -> Outcome:
        """Trade what can be traded at once, and let the remainder rest if it may."""
        ...

    def amend(self, key: int, price: int, qty: int) -> Outcome:
        """Give a resting entry another limit and other open lots.

        It keeps its place where the price stays and the quantity does not grow; else it is entered anew, and may trade.

        Args:
            key: The entry.
            price: Ticks.
            qty: Lots open from now on, 1 or above.
        """
        ...

    def cancel(self, key: int) -> None:
        """Take a resting entry out; one that does not rest is passed over."""
        ...

    def moved(self, batch: Batch) -> list[Match]:
        """Return the fills of resting entries since the last call, oldest first.

        Args:
            batch: What has just happened; the last state of the market already shows it.
        """
        ...

    def clear(self) -> None:
        """A new epoch begins: forget every resting entry."""
        ...
