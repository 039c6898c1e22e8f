"""How orders, fills, balances and positions are said on the wire: rows of the private channels.

Keys and words are Kraken's; what goes beyond them is only in rows for native clients. Numbers are printed from
integers. It must not know who reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from feeds.records import BUY
from ticker.codec import fixed, rfc3339
from ticker.orders.events import Listed
from ticker.orders.ledger import Account, Ledger, Position, text_of
from ticker.orders.order import Order, Report

#: Decimals that an average price has beyond those of a price.
AVERAGE_DIGITS: Final = 4

Row = dict[str, Any]


class Printer:
    """Prints rows; what the integers mean is looked up in the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._listed = ledger.listed

    def execution(self, report: Report, *, native: bool) -> Row:
        """Return a row of ``executions``."""
        terms, listed = report.terms, self._listed[report.terms.symbol]
        row = _terms_row(report, listed)
        if report.exec_type == "trade":
            cost = report.last_price * report.last_qty
            row |= {
                "exec_id": f"E{report.exec_id:012d}",
                "trade_id": report.trade_id or report.exec_id,
                "last_qty": _qty(listed, report.last_qty),
                "last_price": _price(listed, report.last_price),
                "cost": _cost(listed, cost),
                "liquidity_ind": "m" if report.maker else "t",
                "fees": [{"asset": listed.quote, "qty": _cost(listed, report.last_fee)}],
            }
        if report.reason:
            row["reason"] = report.reason
        if native:
            row |= {"exec_seq": report.exec_seq, "leaves_qty": _qty(listed, report.leaves_qty)}
            row["fees_total"] = _cost(listed, report.fees)
            if terms.self_trade != "cancel_newest":
                row["stp_type"] = terms.self_trade
        return row

    def balance(self, asset: str, account: Account, *, native: bool) -> Row:
        """Return a row of ``balances``."""
        amount = msgspec.Raw(text_of(account.balances.get(asset, 0)).encode())
        wallet = {"type": "spot", "id": "main", "balance": amount}
        row: Row = {"asset": asset, "asset_class": "currency", "balance": amount, "wallets": [wallet]}
        if native:
            row["held"] = msgspec.Raw(text_of(account.held.get(asset, 0)).encode())
        return row

    def position(self, symbol: str, position: Position, mark: int | None, ts: int) -> Row:
        """Return a row of ``positions``.

        Args:
            symbol: The instrument's.
            position: Of an account.
            mark: Ticks at which it is valued; None where there is no price.
            ts: Market time, int ns UTC.
        """
        listed = self._listed[symbol]
        average = abs(position.cost) * 10**AVERAGE_DIGITS // abs(position.qty) if position.qty else 0
        row: Row = {
            "symbol": symbol,
            "qty": _qty(listed, position.qty),
            "avg_price": _raw(average, listed.price_precision + AVERAGE_DIGITS),
            "realized_pnl": _cost(listed, position.realized),
            "fees": _cost(listed, position.fees),
            "timestamp": rfc3339(ts),
        }
        if mark is not None:
            row["mark_price"] = _price(listed, mark)
            row["unrealized_pnl"] = _cost(listed, position.qty * mark - position.cost)
        return row


def present(orders: Iterable[Order], ts: int) -> list[Report]:
    """Return orders as reports of their present state, as a snapshot has them."""
    return [
        Report(
            key=order.key, account=order.account, terms=order.terms, exec_type="new", status=order.status,
            cum_qty=order.cum_qty, leaves_qty=order.leaves_qty, cost=order.cost, fees=order.fees, ts=ts,
            exec_seq=order.reports, sequence=0,
        )
        for order in orders
    ]  # fmt: skip


def _terms_row(report: Report, listed: Listed) -> Row:
    terms = report.terms
    row: Row = {
        "order_id": f"O{report.key:012d}",
        "symbol": terms.name,
        "side": "buy" if terms.side == BUY else "sell",
        "order_type": terms.order_type,
        "order_qty": _qty(listed, terms.qty),
        "exec_type": report.exec_type,
        "order_status": report.status,
        "cum_qty": _qty(listed, report.cum_qty),
        "cum_cost": _cost(listed, report.cost),
        "time_in_force": terms.time_in_force,
        "timestamp": rfc3339(report.ts),
    }
    if terms.cl_ord_id:
        row["cl_ord_id"] = terms.cl_ord_id
    if terms.userref is not None:
        row["order_userref"] = terms.userref
    if terms.limit is not None:
        row |= {"limit_price": _price(listed, terms.limit), "limit_price_type": "static"}
    if terms.trigger is not None:
        status = "untriggered" if report.status == "new" else "triggered"
        price = _price(listed, terms.trigger)
        row["triggers"] = {"reference": "last", "price": price, "price_type": "static", "status": status}
    if terms.display:
        row["display_qty"] = _qty(listed, terms.display)
    if terms.expire_ns:
        row["expire_time"] = rfc3339(terms.expire_ns)
    if terms.post_only:
        row["post_only"] = True
    if terms.reduce_only:
        row["reduce_only"] = True
    if report.cum_qty:
        row["avg_price"] = _price(listed, (report.cost + report.cum_qty // 2) // report.cum_qty)
    return row


def _price(listed: Listed, ticks: int) -> msgspec.Raw:
    return _raw(ticks, listed.price_precision)


def _qty(listed: Listed, lots: int) -> msgspec.Raw:
    return _raw(lots, listed.qty_precision)


def _cost(listed: Listed, cost: int) -> msgspec.Raw:
    return _raw(cost, listed.price_precision + listed.qty_precision)


def _raw(units: int, precision: int) -> msgspec.Raw:
    return msgspec.Raw(fixed(units, precision).encode())
