"""What keeps an order out: the market, the account's limits, its funds. Reads everything, changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from feeds.instruments import Instrument
from feeds.records import BUY, MISSING
from ticker.errors import Code, RequestError
from ticker.history import History
from ticker.orders.accounts import Accounts, Limits
from ticker.orders.ledger import Ledger
from ticker.orders.models import FeeModel
from ticker.orders.order import Order, Terms

#: Price times quantity stays below this, so that it fits an int64 wherever it goes.
MAX_COST: Final = 2**63 - 1
#: An iceberg must not be more than this many times what it shows (Kraken's number): each slice is a trade of its own.
MOST_HIDDEN: Final = 15

#: What an order would trade at once: (ticks, lots), best price first.
Walk = list[tuple[int, int]]


class Reserved:
    """What the orders of one request that were admitted so far will take up once they are entered.

    Attributes:
        orders: How many there are.
        held: What they will hold, by asset.
        lots: What they may trade, by symbol, side and whether they may but reduce a position.
    """

    def __init__(self) -> None:
        self.orders = 0
        self.held: defaultdict[str, int] = defaultdict(int)
        self.lots: defaultdict[tuple[str, int, bool], int] = defaultdict(int)


class Risk:
    """Checks orders before they are entered.

    Args:
        ledger: What the accounts have.
        history: What the market is like.
        accounts: What each account may do.
        fees: What each account pays.
    """

    def __init__(self, ledger: Ledger, history: History, accounts: Accounts, fees: Mapping[str, FeeModel]) -> None:
        self._ledger = ledger
        self._history = history
        self._accounts = accounts
        self._fees = fees

    def admit(self, account: str, terms: Terms, walk: Walk, reserved: Reserved) -> None:
        """Pass if an order may be entered.

        Args:
            account: Whose.
            terms: The order.
            walk: What it would trade at once; empty for a stop.
            reserved: What those before it of the same request take up; this one is added.

        Raises:
            RequestError: It may not; the text says why, in Kraken's words where Kraken has any.
        """
        state, limits = self._ledger.accounts[account], self._accounts.options[account].limits
        if state.halted:
            raise RequestError("EOrder:Trading is halted: the kill switch is on", Code.HALTED)
        if self._history.ended:
            raise RequestError("EService:Market in cancel_only mode", Code.NO_MARKET)
        if limits.open_orders and len(state.open_orders) + reserved.orders >= limits.open_orders:
            raise RequestError("EOrder:Orders limit exceeded", Code.TOO_MANY_ORDERS)
        if terms.price is None and not walk:
            raise RequestError("EOrder:No market: the other side of the book is empty", Code.NO_MARKET)
        where = terms.symbol, terms.side
        reducing = state.open_lots[*where, True] + reserved.lots[*where, True]
        others = reducing + state.open_lots[*where, False] + reserved.lots[*where, False]
        self._check_terms(account, terms, terms.qty, walk, others)
        if terms.reduce_only and terms.qty + reducing > state.reducible(terms.symbol, terms.side):
            raise RequestError("EOrder:Reduce only: larger than the position", Code.REDUCE_ONLY, field="order_qty")
        asset, needed = self._needs(account, terms, terms.qty, walk)
        if state.free(asset) - reserved.held[asset] < needed:
            raise RequestError("EOrder:Insufficient funds", Code.INSUFFICIENT_FUNDS, field="order_qty")
        reserved.orders += 1
        reserved.held[asset] += needed
        reserved.lots[terms.symbol, terms.side, terms.reduce_only] += terms.qty

    def admit_amended(self, account: str, order: Order, terms: Terms, walk: Walk) -> None:
        """Pass if an open order may have other terms.

        Raises:
            RequestError: It may not.
        """
        state, leaves = self._ledger.accounts[account], terms.qty - order.cum_qty
        if state.halted:
            raise RequestError("EOrder:Trading is halted: the kill switch is on", Code.HALTED)
        where = terms.symbol, terms.side
        others = state.open_lots[*where, True] + state.open_lots[*where, False] - order.leaves_qty
        self._check_terms(account, terms, leaves, walk, others)
        if terms.reduce_only and terms.qty > order.terms.qty:
            raise RequestError("EOrder:Reduce only: it can't grow", Code.REDUCE_ONLY, field="order_qty")
        asset, needed = self._needs(account, terms, leaves, walk)
        if state.free(asset) + order.held < needed:
            raise RequestError("EOrder:Insufficient funds", Code.INSUFFICIENT_FUNDS, field="order_qty")

    def covers(self, order: Order, walk: Walk) -> bool:
        """Whether the account can pay for what an order that is active now would trade.

        A limit is covered by what is held; a market order that a trigger released may find prices beyond it.
        """
        if order.terms.limit is not None or order.terms.side != BUY:
            return True
        asset, needed = self._needs(order.account, order.terms, order.leaves_qty, walk)
        return self._ledger.accounts[order.account].free(asset) + order.held >= needed

    def _check_terms(self, account: str, terms: Terms, qty: int, walk: Walk, others: int) -> None:
        """Pass if ``qty`` lots may be traded on some terms, beside ``others`` of the same side that are open."""
        limits = self._accounts.options[account].limits
        if terms.display and terms.display * MOST_HIDDEN < terms.qty:
            text = f"EOrder:Invalid display_qty: at least 1/{MOST_HIDDEN} of order_qty"
            raise RequestError(text, Code.INVALID_ORDER, field="display_qty")
        if terms.post_only and walk:
            raise RequestError("EOrder:Post only order", Code.POST_ONLY, field="post_only")
        price = self._reference(terms) if terms.price is None else terms.price
        if max([price, *(level for level, _ in walk)]) * qty > MAX_COST:
            raise RequestError("EOrder:Invalid volume: price times quantity is too large", Code.INVALID_ORDER)
        if limits.notional:
            self._check_notional(terms, price * qty, limits)
        if limits.position:
            self._check_position(account, terms, qty + others, limits)
        if limits.collar_pct and terms.limit is not None:
            self._check_collar(terms, limits)

    def _check_notional(self, terms: Terms, cost: int, limits: Limits) -> None:
        instrument = self._instrument(terms)
        if cost / (instrument.price_scale * instrument.qty_scale) > limits.notional:
            raise RequestError("EOrder:Cost limit exceeded", Code.NOTIONAL_LIMIT, field="order_qty")

    def _check_position(self, account: str, terms: Terms, qty: int, limits: Limits) -> None:
        held = terms.side * self._ledger.accounts[account].position(terms.symbol).qty
        if held + qty > limits.position * self._instrument(terms).qty_scale:
            raise RequestError("EOrder:Positions limit exceeded", Code.POSITION_LIMIT, field="order_qty")

    def _check_collar(self, terms: Terms, limits: Limits) -> None:
        assert terms.limit is not None
        reference = self._reference(terms)
        if reference and terms.side * (terms.limit - reference) * 100 > limits.collar_pct * reference:
            text = f"EOrder:Invalid price: more than {limits.collar_pct:g} % beyond the last price"
            raise RequestError(text, Code.PRICE_COLLAR, field="limit_price")

    def _instrument(self, terms: Terms) -> Instrument:
        instruments = self._history.instruments
        return instruments[instruments.id_of(terms.symbol)]

    def _reference(self, terms: Terms) -> int:
        """Return the last price, the best opposite one before the first trade, or 0."""
        i = self._history.instruments.id_of(terms.symbol)
        touch = self._history.ask_px if terms.side == BUY else self._history.bid_px
        for price in (int(self._history.day.last_px[i]), int(touch[i])):
            if price != MISSING:
                return price
        return 0

    def _needs(self, account: str, terms: Terms, qty: int, walk: Walk) -> tuple[str, int]:
        """Return which asset an order spends, and how much of it, fee included, if it goes as it may."""
        ledger, asset = self._ledger, self._ledger.spends(terms.symbol, terms.side)
        taken = spent = 0
        for price, lots in walk:
            taken += lots
            spent += price * lots
        rest = qty - taken if terms.rests or terms.trigger is not None else 0
        if terms.side != BUY:
            return asset, ledger.base_units(terms.symbol, taken + rest)
        cost = ledger.quote_units(terms.symbol, spent + rest * (terms.price or 0))
        return asset, cost + cost * self._fees[account].worst_ppm // 1_000_000
