"""Decides what becomes of orders: what is accepted, what trades, what ends, and what is refused.

Every decision is an event that the ledger takes in at once; events and the reports of them are handed out by
:meth:`Exchange.drain`, for the journal first and only then for anybody else. Everything is sync and has one caller.
What orders meet is a :class:`feeds.venue.Venue`'s business. It must not know sessions, requests, disks or the clock on
the wall: its time is the market's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from feeds.instruments import Instrument, Instruments
from feeds.records import BUY, MISSING, SELL, Batch
from feeds.venue import Entry, Match, Outcome, SelfTrade, Venue
from ticker.errors import Code, ConfigError, RequestError
from ticker.history import History
from ticker.orders.accounts import Accounts, quote_of
from ticker.orders.events import (
    Amended,
    Canceled,
    Event,
    Expired,
    Filled,
    Halted,
    Listed,
    Opened,
    Placed,
    Triggered,
)
from ticker.orders.ledger import Ledger
from ticker.orders.models import FeeModel, MakerTaker
from ticker.orders.order import Order, Report, Terms
from ticker.orders.risk import Reserved, Risk, Walk
from ticker.orders.stops import Stops, Waiting

_NOTHING: Final = Batch(ts=0)


class Wanted(NamedTuple):
    """An order as it is to be placed.

    Attributes:
        terms: What it asks for.
        body: Digest of the request; empty where it has no ``cl_ord_id`` to be known by.
    """

    terms: Terms
    body: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What an amendment changes; None stays as it is.

    Attributes:
        qty: Lots of the whole order, filled ones among them.
        limit: Ticks.
        trigger: Ticks.
        display: Lots.
        post_only: Whether it must not take at its new price.
    """

    qty: int | None = None
    limit: int | None = None
    trigger: int | None = None
    display: int | None = None
    post_only: bool = False


class Exchange:
    """Accepts, fills and ends orders.

    Args:
        history: The market's last state; read only.
        venue: What orders meet.
        accounts: Who may trade, at what fee, and how much.
        ledger: Empty, or what the journal holds.

    Attributes:
        ledger: Accounts and orders.
    """

    def __init__(self, history: History, venue: Venue, accounts: Accounts, ledger: Ledger) -> None:
        self.ledger = ledger
        self._history = history
        self._venue = venue
        self._owners = {name: number for number, name in enumerate(accounts.options, 1)}
        self._fees: dict[str, FeeModel] = {
            name: MakerTaker(round(options.maker_bps * 100), round(options.taker_bps * 100))
            for name, options in accounts.options.items()
        }
        self._risk = Risk(ledger, history, accounts, self._fees)
        self._stops = Stops()
        self._expiries = Waiting()
        self._returning: dict[int, list[int]] = {}
        self._outside: set[int] = set()  # open orders that have not come to the market yet
        self._events: list[Event] = []
        self._reports: list[Report] = []
        self._began = False
        self._begin(accounts)

    def _begin(self, accounts: Accounts) -> None:
        for instrument in self._history.instruments:
            listed = listed_of(instrument)
            if self.ledger.listed.get(listed.symbol) != listed:
                self._happen(listed)
        for name, options in accounts.options.items():
            if name not in self.ledger.accounts:
                self._happen(Opened(name, options.balances))

    def drain(self) -> tuple[list[Event], list[Report]]:
        """Return what has happened since the last call."""
        drained = self._events, self._reports
        self._events, self._reports = [], []
        return drained

    def _happen(self, event: Event) -> None:
        reports = self.ledger.apply(event)  # first: what cannot happen raises, and must not come into the journal
        self._events.append(event)
        self._reports += reports

    @property
    def now(self) -> int:
        """Market time, int ns UTC; 0 before the first event."""
        return self._history.ts

    # Commands

    def place(self, account: str, wanted: Wanted, *, idempotent: bool) -> tuple[Order, bool]:
        """Enter an order and fill what can be filled at once.

        Args:
            account: Whose it is.
            wanted: The order.
            idempotent: Whether a ``cl_ord_id`` stands for one order for ever, and the same request for the same order;
                else it only has to be unique among the open ones.

        Returns:
            The order, and whether it was there before and nothing was entered.

        Raises:
            RequestError: It cannot be entered; nothing has changed.
        """
        self._catch_up()
        known = self._known(account, wanted, idempotent=idempotent)
        if known is not None:
            return known, True
        walk = self._walk(account, wanted.terms)
        self._risk.admit(account, wanted.terms, walk, Reserved())
        return self._enter(account, wanted, walk), False

    def place_all(self, account: str, batch: Sequence[Wanted], *, idempotent: bool) -> list[tuple[Order, bool]]:
        """Enter several orders, in order, or none of them; otherwise as :meth:`place`.

        What one of them does to the market or the position may cost a later one its fill: that one is then cancelled,
        not refused.
        """
        self._catch_up()
        known = self._admit(account, batch, idempotent=idempotent)
        return [
            (self._enter(account, wanted), False) if there is None else (there, True)
            for wanted, there in zip(batch, known, strict=True)
        ]

    def check(self, account: str, batch: Sequence[Wanted], *, idempotent: bool) -> None:
        """Pass if :meth:`place_all`, or of one order :meth:`place`, would enter what is new of it now.

        Raises:
            RequestError: It would not.
        """
        self._admit(account, batch, idempotent=idempotent)

    def _admit(self, account: str, batch: Sequence[Wanted], *, idempotent: bool) -> list[Order | None]:
        """Return for each order the one that the same request has entered before; the others may be entered."""
        names = Counter(wanted.terms.cl_ord_id for wanted in batch if wanted.terms.cl_ord_id)
        if any(count > 1 for count in names.values()):
            raise RequestError("EOrder:Duplicate cl_ord_id", Code.DUPLICATE_CL_ORD_ID, field="cl_ord_id")
        known = [self._known(account, wanted, idempotent=idempotent) for wanted in batch]
        reserved = Reserved()
        for wanted, there in zip(batch, known, strict=True):
            if there is None:
                self._risk.admit(account, wanted.terms, self._walk(account, wanted.terms), reserved)
        return known

    def amend(self, account: str, order: Order, change: Change) -> None:
        """Change an open order, as :meth:`open_order` has just returned it, in place.

        Raises:
            RequestError: It cannot be changed so; nothing has changed.
        """
        terms = self._amended(order, change)
        walk = [] if order.waits else self._walk(account, terms, qty=terms.qty - order.cum_qty)
        self._risk.admit_amended(account, order, terms, walk)
        waited, before = order.waits, order.terms
        self._happen(Amended(self.now, order.key, terms))
        if order.key in self._outside:
            return  # it will come to the market as it is then
        if waited:
            self._await(order)
        elif terms.display != before.display:
            self._venue.cancel(order.key)
            self._work(order)
        else:
            assert terms.limit is not None  # what rests has one
            self._settle(order, self._venue.amend(order.key, terms.limit, order.leaves_qty))

    def _amended(self, order: Order, change: Change) -> Terms:
        terms = order.terms
        if change.limit is not None and terms.limit is None:
            raise RequestError("EOrder:Invalid price: the order has no limit", Code.INVALID_ORDER, field="limit_price")
        if change.trigger is not None and not order.waits:
            raise RequestError("EOrder:Invalid price: it waits for none", Code.INVALID_ORDER, field="trigger_price")
        if change.display is not None and terms.order_type != "iceberg":
            raise RequestError("EOrder:Invalid display_qty: not an iceberg", Code.INVALID_ORDER, field="display_qty")
        qty = terms.qty if change.qty is None else change.qty
        if qty <= order.cum_qty:
            text = "EOrder:Invalid volume: not more than has been filled; cancel it instead"
            raise RequestError(text, Code.INVALID_ORDER, field="order_qty")
        return msgspec.structs.replace(
            terms,
            qty=qty,
            limit=terms.limit if change.limit is None else change.limit,
            trigger=terms.trigger if change.trigger is None else change.trigger,
            display=terms.display if change.display is None else change.display,
            post_only=terms.post_only or change.post_only,
        )

    def cancel(self, account: str, key: int, cl_ord_id: str) -> Order:
        """Cancel an open order by either of its ids.

        Raises:
            RequestError: The account has no such open order; an order of somebody else answers the same.
        """
        order = self.open_order(account, key, cl_ord_id)
        self._end(order, "user")
        return order

    def open_order(self, account: str, key: int, cl_ord_id: str) -> Order:
        """Return an open order of an account by either of its ids.

        Raises:
            RequestError: There is none.
        """
        self._catch_up()
        order = self.ledger.find(account, key, cl_ord_id)
        if order is None or not order.open:
            raise RequestError("EOrder:Unknown order", Code.UNKNOWN_ORDER)
        return order

    def cancel_all(self, account: str, reason: str, keys: Iterable[int] | None = None) -> int:
        """Cancel the open orders of an account, or those of them that have one of some keys; return how many."""
        self._catch_up()
        wanted = None if keys is None else set(keys)
        orders = [order for order in self.ledger.open_orders(account) if wanted is None or order.key in wanted]
        for order in orders:
            self._end(order, reason)
        return len(orders)

    def halt(self, account: str, *, halted: bool) -> int:
        """Pull or release an account's kill switch; return how many orders that cancelled."""
        if self.ledger.accounts[account].halted != halted:
            self._happen(Halted(self.now, account, halted))
        return self.cancel_all(account, "kill_switch") if halted else 0

    # The market

    def moved(self, batch: Batch) -> None:
        """Let a batch, already in the history, do to open orders what it does."""
        if self._returning:
            self._return()
        self._fill(self._venue.moved(batch))
        if self._stops and len(batch.trades):
            self._trigger(batch)
        for key in self._expiries.reached(batch.ts):
            self._leave(self.ledger.orders[key])
            self._happen(Expired(self.now, key))

    def new_epoch(self) -> None:
        """The market begins anew. The first time, orders of the journal return to it; after that, they end."""
        self._venue.clear()
        self._stops.clear()
        if self._began:
            for account in self.ledger.accounts:
                self.cancel_all(account, "seek")
        self._began = True
        self.reenter()

    def reenter(self) -> None:
        """Have every open order enter the market again, each once something is known of its instrument."""
        self._returning.clear()
        for key in sorted(key for account in self.ledger.accounts.values() for key in account.open_orders):
            order = self.ledger.orders[key]
            self._note(order)
            self._returning.setdefault(self._instrument(order), []).append(key)

    def ended(self) -> None:
        """The market has ended: nothing will ever fill again."""
        for account in self.ledger.accounts:
            self.cancel_all(account, "feed_ended")

    def _catch_up(self) -> None:
        """Take in what the venue has matched already, while the batch that shows it may still be on its way here."""
        self._fill(self._venue.moved(_NOTHING))

    def _return(self) -> None:
        self._catch_up()
        for instrument in [i for i in self._returning if self._history.known(i) or self._history.book_position[i]]:
            for key in self._returning.pop(instrument):
                if order := self._open(key):
                    self._start(order)

    def _trigger(self, batch: Batch) -> None:
        trades = batch.trades
        for instrument in set(trades.instrument.tolist()):
            prices = trades.price[trades.instrument == instrument]
            for key in self._stops.reached(instrument, int(prices.min()), int(prices.max())):
                if order := self._open(key):  # one before it may have ended it
                    self._happen(Triggered(self.now, key))
                    self._work(order)

    # How an order goes

    def _known(self, account: str, wanted: Wanted, *, idempotent: bool) -> Order | None:
        """Return the order that a request has entered before, if it has."""
        name = wanted.terms.cl_ord_id
        order = self.ledger.find(account, cl_ord_id=name) if name else None
        if order is None or not (idempotent or order.open):
            return None
        if idempotent and order.body == wanted.body:
            return order
        raise RequestError("EOrder:Duplicate cl_ord_id", Code.DUPLICATE_CL_ORD_ID, field="cl_ord_id")

    def _walk(self, account: str, terms: Terms, qty: int | None = None) -> Walk:
        if terms.trigger is not None:
            return []
        instrument, owner = self._history.instruments.id_of(terms.symbol), self._owners[account]
        return self._venue.walk(instrument, terms.side, terms.limit, terms.qty if qty is None else qty, owner)

    def _enter(self, account: str, wanted: Wanted, walk: Walk | None = None) -> Order:
        """Accept an order; ``walk`` is what it would trade now, if that is known."""
        key = self.ledger.last_key + 1
        self._happen(Placed(self.now, key, account, wanted.terms, wanted.body, self._fees[account].worst_ppm))
        order = self.ledger.orders[key]
        self._note(order)
        self._start(order, walk)
        return order

    def _note(self, order: Order) -> None:
        """Remember that an order is still to come to the market, and when its time is over."""
        self._outside.add(order.key)
        if order.terms.expire_ns:
            self._expiries.add(order.key, order.terms.expire_ns)

    def _open(self, key: int) -> Order | None:
        """Return the order of a key while it is open."""
        order = self.ledger.orders.get(key)
        return order if order is not None and order.open else None

    def _start(self, order: Order, walk: Walk | None = None) -> None:
        """Have an order that is new to the market wait for its price, or trade."""
        if order.terms.reduce_only:  # those before it in its batch may have left less of the position
            self._resize(self._cut(order.account, order.terms.symbol))
        self._outside.discard(order.key)
        if order.waits:
            self._await(order)
        elif order.open:
            self._work(order, walk)

    def _await(self, order: Order) -> None:
        terms, instrument = order.terms, self._instrument(order)
        assert terms.trigger is not None
        last = int(self._history.day.last_px[instrument])
        upwards = terms.triggers_upwards
        if last != MISSING and (last >= terms.trigger if upwards else last <= terms.trigger):
            self._stops.discard(order.key)
            self._happen(Triggered(self.now, order.key))
            self._work(order)
        else:
            self._stops.add(order.key, instrument, terms.trigger, upwards=upwards)

    def _work(self, order: Order, walk: Walk | None = None) -> None:
        """Have an order trade what it can, and rest if it may."""
        terms = order.terms
        if walk is None:
            walk = self._walk_of(order)
        if terms.time_in_force == "fok" and self._traded_at_once(order) < order.leaves_qty:
            self._end(order, "fok")
        elif terms.post_only and walk:  # a batch before it, or a trigger, has brought the market to it
            self._end(order, "post_only")
        elif not self._risk.covers(order, walk):
            self._end(order, "insufficient_funds")
        else:
            entry = Entry(
                key=order.key, owner=self._owners[order.account], instrument=self._instrument(order), side=terms.side,
                price=terms.limit, qty=order.leaves_qty, display=terms.display, rests=terms.rests,
                self_trade=terms.self_trade,
            )  # fmt: skip
            self._settle(order, self._venue.enter(entry))

    def _walk_of(self, order: Order, self_trade: SelfTrade = "cancel_oldest") -> Walk:
        terms, owner = order.terms, self._owners[order.account]
        instrument = self._instrument(order)
        return self._venue.walk(instrument, terms.side, terms.limit, order.leaves_qty, owner, self_trade=self_trade)

    def _traded_at_once(self, order: Order) -> int:
        """Return the lots that an order would trade before it meets one of its account that stops it."""
        return sum(qty for _, qty in self._walk_of(order, order.terms.self_trade))

    def _settle(self, order: Order, outcome: Outcome) -> None:
        for key in outcome.withdrawn:
            self._end(self.ledger.orders[key], "stp")
        self._fill(outcome.matches)
        if order.open and not outcome.rests:
            self._end(order, "stp" if outcome.self_trade else "ioc_remainder")

    def _fill(self, matches: Sequence[Match]) -> None:
        """Take in what was matched, one after the other, each with what it leaves to orders that may but reduce.

        A venue does not know of positions, so it may have matched more of such an order than there was left of its
        position by then. That much does not fill: it is as if somebody else had stood there.
        """
        cut: dict[int, None] = {}
        for match in matches:
            if not (order := self._open(match.key)):
                continue
            qty = min(match.qty, order.leaves_qty)
            fee = self._fees[order.account].fee(match.price * qty, maker=match.maker)
            self._happen(Filled(self.now, match.key, match.price, qty, fee, match.maker, match.trade_id))
            if not order.open:
                self._leave(order)
            cut |= dict.fromkeys(self._cut(order.account, order.terms.symbol))
        self._resize(cut)  # only now: the venue has all of it behind it already

    def _cut(self, account: str, symbol: str) -> list[int]:
        """Cut the orders that may only reduce a position to what is left of it, newest first.

        Returns:
            Keys of those that are smaller now; the others have ended.
        """
        state, smaller = self.ledger.accounts[account], []
        for side in (BUY, SELL):
            while (excess := state.open_lots[symbol, side, True] - state.reducible(symbol, side)) > 0:
                order = self.ledger.orders[next(reversed(state.reducing[symbol, side]))]
                if order.leaves_qty > excess:
                    terms = msgspec.structs.replace(order.terms, qty=order.terms.qty - excess)
                    self._happen(Amended(self.now, order.key, terms))
                    smaller.append(order.key)
                else:
                    self._end(order, "reduce_only")
        return smaller

    def _resize(self, keys: Iterable[int]) -> None:
        """Have the venue follow orders that are smaller than it knows them, if it does."""
        for order in filter(None, map(self._open, keys)):
            if order.terms.limit is not None and not order.waits and order.key not in self._outside:
                self._venue.amend(order.key, order.terms.limit, order.leaves_qty)

    def _end(self, order: Order, reason: str) -> None:
        self._leave(order)
        self._happen(Canceled(self.now, order.key, reason))

    def _leave(self, order: Order) -> None:
        self._outside.discard(order.key)
        self._expiries.discard(order.key)
        self._stops.discard(order.key)
        self._venue.cancel(order.key)

    def _instrument(self, order: Order) -> int:
        return self._history.instruments.id_of(order.terms.symbol)


def listed_of(instrument: Instrument) -> Listed:
    """Return what the journal says of an instrument."""
    precisions = instrument.price_precision, instrument.qty_precision
    return Listed(instrument.symbol, instrument.base, quote_of(instrument.quote), *precisions)


def check_fits(ledger: Ledger, instruments: Instruments, accounts: Accounts) -> None:
    """Pass if what a journal holds is of this market and these accounts, as far as that matters.

    Raises:
        ConfigError: It is not; the text says why.
    """
    served = {instrument.symbol: listed_of(instrument) for instrument in instruments}
    for symbol, listed in ledger.listed.items():
        if symbol in served and served[symbol] != listed:
            raise ConfigError(f"in the journal {symbol} has other precisions than here: give another --journal")
    for account in ledger.accounts.values():
        for order in ledger.open_orders(account.name):
            if order.terms.symbol not in served:
                what = f"open orders in {order.terms.symbol}, which this market does not have"
            elif account.name not in accounts.options:
                what = f"open orders of account {account.name}, which there is not"
            else:
                continue
            raise ConfigError(f"the journal has {what}: give another --journal, or serve what it was made with")
