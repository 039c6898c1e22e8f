"""The books of the exchange: every account, order and position, and how an event changes them.

:meth:`Ledger.apply` is the one place where any of that changes, for what happens now as for what is read back from
the journal; it decides nothing and refuses nothing. Money is an integer in units of ``10**-DIGITS`` of an asset, finer
than any price times any quantity, so nothing is ever rounded but a fee, once, by who charges it. It must not know
markets, requests or disks.
"""

from __future__ import annotations

from collections import Counter, deque
from fractions import Fraction
from typing import Final

import msgspec

from feeds.records import BUY
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
from ticker.orders.order import ExecType, Order, Report

#: Decimals of every amount of money.
DIGITS: Final = 30
#: How many reports of an account are kept for a client that returns, and how many fills for a snapshot.
KEPT_REPORTS: Final = 10_000
KEPT_FILLS: Final = 50


class Position(msgspec.Struct):
    """What an account has bought net of what it has sold of one instrument, what it began with not counted.

    Attributes:
        qty: Lots; below 0 where more was sold.
        cost: Ticks times lots that they were opened for, of the sign of ``qty``: average cost.
        realized: Profit of what was closed, in ticks times lots, before fees.
        fees: All fees so far, in the same unit.
    """

    qty: int = 0
    cost: int = 0
    realized: int = 0
    fees: int = 0

    def trade(self, qty: int, price: int) -> None:
        """Buy ``qty`` lots at ``price`` ticks, or sell them where it is negative."""
        closing = min(abs(qty), abs(self.qty)) if qty * self.qty < 0 else 0
        if closing:
            sign = 1 if self.qty > 0 else -1
            part = self.cost * closing // abs(self.qty)  # all of it where all is closed: nothing is lost by rounding
            self.realized += sign * closing * price - part
            self.cost -= part
            self.qty -= sign * closing
            qty += sign * closing
        self.qty += qty
        self.cost += qty * price


class Account(msgspec.Struct):
    """What an account owns.

    Attributes:
        name: Its name.
        balances: By asset, in units of ``10**-DIGITS``.
        held: By asset: what its open orders would spend.
        positions: By symbol.
        reports: Reports so far: the number of the last one.
        halted: Whether its kill switch is pulled.
        open_orders: Open lots of its open orders by key, oldest first.
        open_lots: Sums of them by symbol, side and whether they may but reduce a position.
        reducing: Keys of the open orders that may but reduce a position, by symbol and side, oldest first.
    """

    name: str
    balances: dict[str, int]
    held: dict[str, int]
    positions: dict[str, Position]
    reports: int = 0
    halted: bool = False
    open_orders: dict[int, int] = msgspec.field(default_factory=dict)
    open_lots: Counter[tuple[str, int, bool]] = msgspec.field(default_factory=Counter)
    reducing: dict[tuple[str, int], dict[int, None]] = msgspec.field(default_factory=dict)

    def free(self, asset: str) -> int:
        """Return what it can still spend of an asset."""
        return self.balances.get(asset, 0) - self.held.get(asset, 0)

    def hold(self, asset: str, more: int) -> None:
        """Hold more of an asset, or less where it is negative."""
        self.held[asset] = self.held.get(asset, 0) + more
        if not self.held[asset]:
            del self.held[asset]

    def count(self, order: Order) -> None:
        """Bring what is known of open orders up to the state of one of them."""
        key, terms, is_open = order.key, order.terms, order.open
        before = self.open_orders.get(key, 0)
        self.open_lots[terms.symbol, terms.side, terms.reduce_only] += order.leaves_qty - before
        if is_open:
            self.open_orders[key] = order.leaves_qty
        elif before:
            del self.open_orders[key]
        if terms.reduce_only:
            keys = self.reducing.setdefault((terms.symbol, terms.side), {})
            if is_open:
                keys[key] = None
            elif before:
                del keys[key]

    def position(self, symbol: str) -> Position:
        """Return its position, which may be nothing."""
        return self.positions.get(symbol) or Position()

    def reducible(self, symbol: str, side: int) -> int:
        """Return the lots that orders of a side can trade until its position is closed."""
        return max(0, -side * self.position(symbol).qty)


#: A sum in a snapshot: text, for sums outgrow 64 bits. Earlier versions wrote those below as integers.
_Sum = str | int
_AccountState = tuple[str, dict[str, str], dict[str, tuple[_Sum, _Sum, _Sum, _Sum]], int, bool]


class _State(msgspec.Struct, array_like=True):
    """A ledger as a snapshot has it.

    Attributes:
        accounts: Name, balances, positions with their attributes in order, reports, halted.
        orders: Without what is in ``sums``.
        sums: Of each order: held, cost, fees. Earlier versions wrote what is held alone.
    """

    listed: list[Listed]
    accounts: list[_AccountState]
    orders: list[Order]
    sums: list[str | tuple[str, str, str]]
    last_key: int
    fills: int


class Ledger:
    """Accounts, orders and positions.

    Args:
        remembered: How many orders that have ended are kept, so that their ``cl_ord_id`` is known when it comes again.

    Attributes:
        accounts: By name.
        orders: By key: all that are open, and the last ones that have ended.
        last_key: Of the newest order.
        fills: How many there have been.
    """

    def __init__(self, remembered: int = 100_000) -> None:
        self._remembered = remembered
        self._ended: deque[int] = deque()
        self._by_client_id: dict[tuple[str, str], int] = {}
        self._recent: dict[str, deque[Report]] = {}
        self._last_fills: dict[str, deque[Report]] = {}
        self._scales: dict[str, tuple[int, int]] = {}  # by symbol: units of base in a lot, of quote in a tick times lot
        self.listed: dict[str, Listed] = {}
        self.accounts: dict[str, Account] = {}
        self.orders: dict[int, Order] = {}
        self.last_key = 0
        self.fills = 0

    # What is known

    def find(self, account: str, key: int = 0, cl_ord_id: str = "") -> Order | None:
        """Return an account's order by either of its ids; that of another account is none."""
        order = self.orders.get(key or self._by_client_id.get((account, cl_ord_id), 0))
        return order if order is not None and order.account == account else None

    def recent(self, account: str, after: int) -> list[Report] | None:
        """Return the reports of an account that follow number ``after``; None where they are not all kept."""
        missing = self.accounts[account].reports - after
        kept = self._recent[account]
        if not 0 <= missing <= len(kept):
            return None
        return [kept[i] for i in range(len(kept) - missing, len(kept))]

    def last_fills(self, account: str) -> list[Report]:
        """Return the last fills of an account, oldest first."""
        return list(self._last_fills[account])

    def open_orders(self, account: str) -> list[Order]:
        """Return the open orders of an account, oldest first."""
        return [self.orders[key] for key in self.accounts[account].open_orders]

    def base_units(self, symbol: str, lots: int) -> int:
        """Return a quantity as an amount of the base asset."""
        return lots * self._scales[symbol][0]

    def quote_units(self, symbol: str, cost: int) -> int:
        """Return ticks times lots as an amount of the quote asset."""
        return cost * self._scales[symbol][1]

    def spends(self, symbol: str, side: int) -> str:
        """Return the asset that an order of a side spends."""
        return self.listed[symbol].quote if side == BUY else self.listed[symbol].base

    def holding(self, order: Order) -> int:
        """Return what is to be held for an order: what it spends, fee included, if it trades at its own price."""
        terms = order.terms
        if not order.open:
            return 0
        if terms.side != BUY:
            return self.base_units(terms.symbol, order.leaves_qty)
        cost = self.quote_units(terms.symbol, (terms.price or 0) * order.leaves_qty)
        return cost + cost * order.fee_ppm // 1_000_000

    # What happens

    def apply(self, event: Event) -> list[Report]:
        """Take in an event, and return what is to be told about it.

        Raises:
            KeyError: It cannot happen, to what does not exist or has ended; nothing has changed.
        """
        match event:
            case Filled():
                return self._filled(event)
            case Placed():
                return self._placed(event)
            case Canceled():
                order = self.orders[event.key]
                order.advance("cancel")
                return self._report(order, "canceled", event.ts, reason=event.reason)
            case Expired():
                order = self.orders[event.key]
                order.advance("expire")
                return self._report(order, "expired", event.ts)
            case Amended():
                order = self.orders[event.key]
                order.advance("amend")
                order.terms = event.terms
                order.leaves_qty = event.terms.qty - order.cum_qty
                return self._report(order, "amended", event.ts)
            case Triggered():
                order = self.orders[event.key]
                order.advance("trigger")
                return self._report(order, "status", event.ts)
            case Listed():
                self._list(event)
            case Opened():
                balances = {asset: units_of(amount) for asset, amount in event.balances.items()}
                self._open(Account(event.account, balances, {}, {}))
            case Halted():
                self.accounts[event.account].halted = event.halted
        return []

    def _list(self, listed: Listed) -> None:
        self.listed[listed.symbol] = listed
        base = 10 ** (DIGITS - listed.qty_precision)
        self._scales[listed.symbol] = base, 10 ** (DIGITS - listed.price_precision - listed.qty_precision)

    def _open(self, account: Account) -> None:
        self.accounts[account.name] = account
        self._recent[account.name] = deque(maxlen=KEPT_REPORTS)
        self._last_fills[account.name] = deque(maxlen=KEPT_FILLS)

    def _placed(self, event: Placed) -> list[Report]:
        terms = event.terms
        order = Order(
            key=event.key, account=event.account, terms=terms, body=event.body, leaves_qty=terms.qty,
            fee_ppm=event.fee_ppm,
        )  # fmt: skip
        self.last_key = event.key
        self._enter(order)
        return self._report(order, "new", event.ts)

    def _enter(self, order: Order) -> None:
        self.orders[order.key] = order
        if order.terms.cl_ord_id:
            self._by_client_id[order.account, order.terms.cl_ord_id] = order.key
        if not order.open:
            self._ended.append(order.key)

    def _filled(self, event: Filled) -> list[Report]:
        order, account = self.orders[event.key], self.accounts[self.orders[event.key].account]
        terms, listed = order.terms, self.listed[order.terms.symbol]
        leaves = order.leaves_qty - event.qty
        order.advance("fill" if leaves else "complete")  # first: it raises where there is no such step
        order.leaves_qty = leaves
        order.cum_qty += event.qty
        order.cost += event.price * event.qty
        order.fees += event.fee
        money = self.quote_units(terms.symbol, terms.side * event.price * event.qty + event.fee)
        account.balances[listed.quote] = account.balances.get(listed.quote, 0) - money
        goods = self.base_units(terms.symbol, terms.side * event.qty)
        account.balances[listed.base] = account.balances.get(listed.base, 0) + goods
        position = account.positions.setdefault(terms.symbol, Position())
        position.trade(terms.side * event.qty, event.price)
        position.fees += event.fee
        self.fills += 1
        reports = self._report(
            order, "trade", event.ts, exec_id=self.fills, trade_id=event.trade_id, last_qty=event.qty,
            last_price=event.price, last_fee=event.fee, maker=event.maker,
        )  # fmt: skip
        self._last_fills[account.name].append(reports[0])
        return reports if order.open else reports + self._report(order, "filled", event.ts)

    def _report(self, order: Order, exec_type: ExecType, ts: int, **more: object) -> list[Report]:
        """Bring what is held for an order up to its state, and return the report of it."""
        account = self.accounts[order.account]
        self._hold(account, order)
        was_open = order.key in account.open_orders
        account.count(order)
        if was_open and not order.open:
            self._ended.append(order.key)
            self._forget()
        order.reports += 1
        account.reports += 1
        report = Report(
            key=order.key, account=order.account, terms=order.terms, exec_type=exec_type, status=order.status,
            cum_qty=order.cum_qty, leaves_qty=order.leaves_qty, cost=order.cost, fees=order.fees, ts=ts,
            exec_seq=order.reports, sequence=account.reports, **more,  # type: ignore[arg-type]
        )  # fmt: skip
        self._recent[order.account].append(report)
        return [report]

    def _hold(self, account: Account, order: Order) -> None:
        holding = self.holding(order)
        if holding != order.held:
            asset = self.spends(order.terms.symbol, order.terms.side)
            account.hold(asset, holding - order.held)
            order.held = holding

    def _forget(self) -> None:
        """Give up the orders that ended longest ago, and with them their ``cl_ord_id``."""
        while len(self._ended) > self._remembered:
            order = self.orders.pop(self._ended.popleft())
            name = (order.account, order.terms.cl_ord_id)
            if self._by_client_id.get(name) == order.key:
                del self._by_client_id[name]

    # As a whole

    def snapshot(self) -> bytes:
        """Return everything that :meth:`restore` needs; reports that were kept for returning clients are not in it."""
        accounts: list[_AccountState] = [
            (
                account.name,
                {asset: text_of(units) for asset, units in account.balances.items()},
                {
                    symbol: (str(p.qty), str(p.cost), str(p.realized), str(p.fees))
                    for symbol, p in account.positions.items()
                },
                account.reports,
                account.halted,
            )
            for account in self.accounts.values()
        ]
        sums = [(str(order.held), str(order.cost), str(order.fees)) for order in self.orders.values()]
        plain = [msgspec.structs.replace(order, held=0, cost=0, fees=0) for order in self.orders.values()]
        state = _State(list(self.listed.values()), accounts, plain, [*sums], self.last_key, self.fills)
        return msgspec.msgpack.encode(state)

    def restore(self, snapshot: bytes) -> None:
        """Fill a new ledger with a snapshot.

        Raises:
            msgspec.MsgspecError: It is not one.
        """
        state = msgspec.msgpack.decode(snapshot, type=_State)
        for listed in state.listed:
            self._list(listed)
        for name, balances, sums, reports, halted in state.accounts:
            units = {asset: units_of(amount) for asset, amount in balances.items()}
            positions = {symbol: Position(*map(int, numbers)) for symbol, numbers in sums.items()}
            self._open(Account(name, units, {}, positions, reports, halted))
        for order, amounts in zip(state.orders, state.sums, strict=True):
            if isinstance(amounts, str):
                order.held = int(amounts)
            else:
                order.held, order.cost, order.fees = map(int, amounts)
            self._enter(order)
            account = self.accounts[order.account]
            account.count(order)
            if order.held:
                account.hold(self.spends(order.terms.symbol, order.terms.side), order.held)
        self.last_key, self.fills = state.last_key, state.fills


def units_of(amount: str) -> int:
    """Return a decimal amount of an asset in units of ``10**-DIGITS``; what is finer is cut off."""
    return int(Fraction(amount) * 10**DIGITS)


def text_of(units: int) -> str:
    """Return an amount of an asset as decimal text, without zeros that say nothing."""
    digits = f"{abs(units):0{DIGITS + 1}d}"
    text = f"{digits[:-DIGITS]}.{digits[-DIGITS:]}".rstrip("0").rstrip(".")
    return f"-{text}" if units < 0 else text
