"""Orders and balances of accounts, and how orders are filled against a market that does not see them.

Everything here is sync and has one writer. Quantities are integer lots, prices integer ticks; a balance is an integer
too, in the smallest unit that any instrument of the asset can move (:attr:`Exchange.scale`). It must not know
sessions, requests or time: the caller says when.

The fill model of this first form, and what it leaves out: an order that can trade walks the displayed book at once; a
resting limit order is filled whole, at its price, when the tape trades through it or the opposite touch reaches it.
Its place in the queue, the liquidity that others would have taken, fees and latency are not modelled. Nothing is on
disk: orders and balances end with the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Final, Literal

import msgspec
import numpy as np

from feeds.instruments import MAX_UNITS, Instrument
from feeds.records import BUY, MISSING, SELL, Batch
from ticker.codec import fixed
from ticker.errors import Code, RequestError
from ticker.history import History

#: Orders beyond this are refused before anything is computed with them.
MAX_DIGITS: Final = len(str(MAX_UNITS))

Status = Literal["new", "partially_filled", "filled", "canceled"]
ExecType = Literal["new", "trade", "filled", "canceled"]


class NewOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order to be entered, already checked against its instrument.

    Attributes:
        account: Whose it is.
        symbol: The name it was ordered under.
        instrument: Dense id.
        side: :data:`feeds.records.BUY` or :data:`feeds.records.SELL`.
        qty: Lots, above 0.
        limit: Ticks, or None for a market order.
        immediate: Whether what cannot trade at once is cancelled.
        cl_ord_id: The client's own id, or empty.
    """

    account: str
    symbol: str
    instrument: int
    side: int
    qty: int
    limit: int | None
    immediate: bool
    cl_ord_id: str


class Order(msgspec.Struct, kw_only=True):
    """An order and how far it has come. Open means ``leaves_qty = qty - cum_qty``; terminal means it is 0.

    Attributes:
        terms: As entered.
        order_id: The exchange's id.
        status: FIX OrdStatus in Kraken's words.
        cum_qty: Lots filled; never decreases.
        leaves_qty: Lots that can still be filled.
        cost: Sum of ticks times lots of its fills.
    """

    terms: NewOrder
    order_id: str
    status: Status = "new"
    cum_qty: int = 0
    leaves_qty: int = 0
    cost: int = 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to an order, with the order's state after it.

    Attributes:
        order: The order's terms.
        order_id: The exchange's id.
        exec_type: What happened.
        status: The order's status now.
        cum_qty: Lots filled so far.
        leaves_qty: Lots open.
        cost: Sum of ticks times lots of the fills so far.
        ts: int ns UTC, market time.
        exec_id: Of a fill: unique.
        last_qty: Of a fill: lots.
        last_price: Of a fill: ticks.
        maker: Of a fill: whether the order rested before.
        reason: Of a cancel: why.
    """

    order: NewOrder
    order_id: str
    exec_type: ExecType
    status: Status
    cum_qty: int
    leaves_qty: int
    cost: int
    ts: int
    exec_id: str = ""
    last_qty: int = 0
    last_price: int = 0
    maker: bool = False
    reason: str = ""


class Exchange:
    """Enters, fills and cancels orders.

    Args:
        history: The market's last state; read only.
        max_open_orders: Per account.

    Attributes:
        scale: Decimals of a balance, by asset: a balance of 1 is ``10**-scale``.
    """

    def __init__(self, history: History, *, max_open_orders: int = 100_000) -> None:
        self._history = history
        self._instruments = history.instruments
        self._max_open = max_open_orders
        self._orders: dict[str, Order] = {}  # open, by order id
        self._by_client_id: dict[tuple[str, str], str] = {}
        self._open: dict[str, int] = {}
        self._balances: dict[str, dict[str, int]] = {}
        self._held: dict[str, dict[str, int]] = {}
        self.scale: dict[str, int] = {}
        for instrument in self._instruments:
            for asset, digits in (
                (instrument.base, instrument.qty_precision),
                (currency(instrument), cost_precision(instrument)),
            ):
                self.scale[asset] = max(digits, self.scale.get(asset, 0))
        self._order_count = 0
        self._fill_count = 0

    def open_account(self, account: str, balances: dict[str, int]) -> None:
        """Add an account with its starting balances, in whole units of each asset."""
        self._balances[account] = {asset: whole * 10 ** self.scale[asset] for asset, whole in balances.items()}
        self._held[account] = {}
        self._open[account] = 0

    def balances(self, account: str) -> dict[str, int]:
        """Return what an account owns by asset, see :attr:`scale`; open orders have not been taken off."""
        return dict(self._balances[account])

    def open_orders(self, account: str) -> list[Report]:
        """Return the open orders of an account, oldest first, as reports of their present state."""
        ts = self._history.ts
        return [self._report(o, "new", ts) for o in self._orders.values() if o.terms.account == account]

    def place(self, terms: NewOrder) -> list[Report]:
        """Enter an order and fill what can be filled at once.

        Raises:
            RequestError: It cannot be entered; nothing has changed.
        """
        client_id = (terms.account, terms.cl_ord_id)
        if terms.cl_ord_id and client_id in self._by_client_id:
            raise RequestError("EOrder:Duplicate cl_ord_id", Code.DUPLICATE_CL_ORD_ID)
        if self._open[terms.account] >= self._max_open:
            raise RequestError("EOrder:Orders limit exceeded", Code.TOO_MANY_ORDERS)
        fills = list(self._walk(terms))
        if terms.limit is None and not fills:
            raise RequestError("EOrder:No market: the other side of the book is empty", Code.NO_MARKET)
        self._check_funds(terms, fills)
        self._order_count += 1
        order = Order(terms=terms, order_id=f"O{self._order_count:012d}", leaves_qty=terms.qty)
        reports = [self._report(order, "new", self._history.ts)]
        for price, qty in fills:
            reports += self._fill(order, price, qty, maker=False)
        if order.leaves_qty and (terms.immediate or terms.limit is None):
            reports.append(self._cancel(order, "ioc_remainder"))
        elif order.leaves_qty:
            self._rest(order)
        return reports

    def cancel(self, account: str, order_id: str = "", cl_ord_id: str = "") -> tuple[str, list[Report]]:
        """Cancel an open order by either of its ids.

        Returns:
            The order id, and the reports.

        Raises:
            RequestError: The account has no such open order; an order of somebody else answers the same.
        """
        order = self._orders.get(order_id or self._by_client_id.get((account, cl_ord_id), ""))
        if order is None or order.terms.account != account:
            raise RequestError("EOrder:Unknown order", Code.UNKNOWN_ORDER)
        self._remove(order)
        return order.order_id, [self._cancel(order, "user")]

    def market_moved(self, batch: Batch) -> list[Report]:
        """Fill the resting orders that a batch, already in the history, trades through or touches."""
        if not self._orders:
            return []
        lows, highs = self._extremes(batch)
        reports: list[Report] = []
        for order in list(self._orders.values()):
            if self._reached(order.terms, lows, highs):
                assert order.terms.limit is not None
                self._remove(order)
                reports += self._fill(order, order.terms.limit, order.leaves_qty, maker=True)
        return reports

    def _extremes(self, batch: Batch) -> tuple[dict[int, int], dict[int, int]]:
        """Return the lowest and highest traded price by instrument."""
        ids = np.unique(batch.trades.instrument).tolist()
        prices = [batch.trades.price[batch.trades.instrument == i] for i in ids]
        return (
            {i: int(p.min()) for i, p in zip(ids, prices, strict=True)},
            {i: int(p.max()) for i, p in zip(ids, prices, strict=True)},
        )

    def _reached(self, terms: NewOrder, lows: dict[int, int], highs: dict[int, int]) -> bool:
        limit, i = terms.limit, terms.instrument
        assert limit is not None
        if terms.side == BUY:
            ask = int(self._history.ask_px[i])
            return (ask != MISSING and ask <= limit) or lows.get(i, limit) < limit
        bid = int(self._history.bid_px[i])
        return (bid != MISSING and bid >= limit) or highs.get(i, limit) > limit

    def _walk(self, terms: NewOrder) -> Iterator[tuple[int, int]]:
        """Yield (price, qty) of what an order takes from the displayed book, best first."""
        left = terms.qty
        for price, displayed in self._opposite(terms):
            beyond = terms.limit is not None and (price - terms.limit) * terms.side > 0
            if beyond or not left:
                return
            taken = min(left, displayed)
            left -= taken
            yield price, taken

    def _opposite(self, terms: NewOrder) -> Iterable[tuple[int, int]]:
        history, i = self._history, terms.instrument
        levels = history.books[i].top(-terms.side, 1000)
        if levels:
            return levels
        px, qty = (history.ask_px, history.ask_qty) if terms.side == BUY else (history.bid_px, history.bid_qty)
        return [(int(px[i]), int(qty[i]))] if px[i] != MISSING else []

    def _fill(self, order: Order, price: int, qty: int, *, maker: bool) -> list[Report]:
        terms, instrument = order.terms, self._instruments[order.terms.instrument]
        order.cum_qty += qty
        order.leaves_qty -= qty
        order.cost += price * qty
        order.status = "partially_filled" if order.leaves_qty else "filled"
        balances = self._balances[terms.account]
        for asset, amount in (
            (instrument.base, terms.side * self._base_units(instrument, qty)),
            (currency(instrument), -terms.side * self._quote_units(instrument, price * qty)),
        ):
            balances[asset] = balances.get(asset, 0) + amount
        self._fill_count += 1
        report = self._report(
            order, "trade", self._history.ts, exec_id=f"E{self._fill_count:012d}", last_qty=qty, last_price=price,
            maker=maker,
        )  # fmt: skip
        return [report] if order.leaves_qty else [report, self._report(order, "filled", self._history.ts)]

    def _cancel(self, order: Order, reason: str) -> Report:
        order.leaves_qty = 0
        order.status = "canceled"
        return self._report(order, "canceled", self._history.ts, reason=reason)

    def _rest(self, order: Order) -> None:
        terms = order.terms
        self._orders[order.order_id] = order
        self._open[terms.account] += 1
        if terms.cl_ord_id:
            self._by_client_id[terms.account, terms.cl_ord_id] = order.order_id
        self._hold(order, +1)

    def _remove(self, order: Order) -> None:
        del self._orders[order.order_id]
        self._open[order.terms.account] -= 1
        self._by_client_id.pop((order.terms.account, order.terms.cl_ord_id), None)
        self._hold(order, -1)

    def _hold(self, order: Order, sign: int) -> None:
        asset, amount = self._needs(order.terms, order.leaves_qty * (order.terms.limit or 0), order.leaves_qty)
        held = self._held[order.terms.account]
        held[asset] = held.get(asset, 0) + sign * amount

    def _needs(self, terms: NewOrder, cost: int, qty: int) -> tuple[str, int]:
        """Return which asset an order takes and how much of it."""
        instrument = self._instruments[terms.instrument]
        if terms.side == SELL:
            return instrument.base, self._base_units(instrument, qty)
        return currency(instrument), self._quote_units(instrument, cost)

    def _base_units(self, instrument: Instrument, lots: int) -> int:
        return int(lots * 10 ** (self.scale[instrument.base] - instrument.qty_precision))

    def _quote_units(self, instrument: Instrument, cost: int) -> int:
        return int(cost * 10 ** (self.scale[currency(instrument)] - cost_precision(instrument)))

    def _check_funds(self, terms: NewOrder, fills: list[tuple[int, int]]) -> None:
        taken = sum(qty for _, qty in fills)
        cost = sum(price * qty for price, qty in fills)
        if terms.limit is not None and not terms.immediate:
            cost += terms.limit * (terms.qty - taken)
            taken = terms.qty
        asset, needed = self._needs(terms, cost, taken)
        held = self._held[terms.account].get(asset, 0)
        if self._balances[terms.account].get(asset, 0) - held < needed:
            raise RequestError("EOrder:Insufficient funds", Code.INSUFFICIENT_FUNDS)

    def _report(self, order: Order, exec_type: ExecType, ts: int, **fill: object) -> Report:
        return Report(
            order=order.terms, order_id=order.order_id, exec_type=exec_type, status=order.status,
            cum_qty=order.cum_qty, leaves_qty=order.leaves_qty, cost=order.cost, ts=ts, **fill,  # type: ignore[arg-type]
        )  # fmt: skip


def units_of(value: Decimal, precision: int, increment: int, what: str) -> int:
    """Return a price in ticks or a quantity in lots.

    Raises:
        RequestError: It is not above zero, too large, or not a multiple of the increment.
    """
    if not value.is_finite() or value <= 0 or value.adjusted() + precision > MAX_DIGITS:
        raise RequestError(f"EOrder:Invalid {what}: must be above 0 and below the largest value", Code.INVALID_ORDER)
    units = value.scaleb(precision)
    if units != units.to_integral_value() or int(units) % increment:
        step = fixed(increment, precision)
        raise RequestError(f"EOrder:Invalid {what}: must be a multiple of {step}", Code.INVALID_ORDER)
    if units > MAX_UNITS:
        raise RequestError(f"EOrder:Invalid {what}: must be below the largest value", Code.INVALID_ORDER)
    return int(units)


def currency(instrument: Instrument) -> str:
    """Return what an instrument is paid in; "USD" stands in where a recording does not say."""
    return instrument.quote or "USD"


def cost_precision(instrument: Instrument) -> int:
    """Return the decimals of ticks times lots."""
    return instrument.price_precision + instrument.qty_precision
