"""Reads an order out of a request: decimals become ticks and lots, and what makes no sense is refused.

Everything that an instrument alone can decide is decided here; what depends on the market or the account is
:mod:`ticker.orders.risk`'s business.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from feeds.instruments import MAX_UNITS, Instrument
from feeds.records import BUY, SELL
from ticker.codec import fixed
from ticker.errors import Code, RequestError
from ticker.orders.exchange import Change, Wanted
from ticker.orders.order import STOPS, Terms
from ticker.orders.params import AmendParams, OrderParams

#: Numbers longer than this are refused before anything is computed with them.
MAX_DIGITS: Final = len(str(MAX_UNITS))
CL_ORD_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,36}")
#: Kraken's bounds of a deadline, and the one that holds where none is given.
MIN_DEADLINE_NS: Final = 500_000_000
MAX_DEADLINE_NS: Final = 60_000_000_000
DEADLINE_NS: Final = 5_000_000_000

#: Order types with a limit of their own.
_LIMITED: Final = frozenset({"limit", "iceberg", "stop-loss-limit", "take-profit-limit"})
_TERMS: Final = msgspec.msgpack.Encoder()
_MICROSECOND: Final = datetime.resolution
#: Rounds nothing; the one that holds without it keeps 28 digits.
_EXACT: Final = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def wanted_of(params: OrderParams, symbol: str, instrument: Instrument, now_ns: int) -> Wanted:
    """Return the order that a request asks for.

    Args:
        params: The request's.
        symbol: The name that it is for.
        instrument: What has that name.
        now_ns: Market time, int ns UTC, for an expiry that is relative.

    Raises:
        RequestError: It asks for something that there is not; the field is named.
    """
    _refuse_unsupported(params)
    limit = _limit(params, instrument)
    qty = lots(params.order_qty, instrument, "order_qty")
    terms = Terms(
        symbol=instrument.symbol,
        name=symbol,
        side=BUY if params.side == "buy" else SELL,
        order_type=params.order_type,
        qty=qty,
        limit=limit,
        trigger=_trigger(params, instrument),
        display=_display(params, instrument, qty),
        time_in_force=params.time_in_force,
        expire_ns=_expiry(params, now_ns),
        post_only=_post_only(params, limit),
        reduce_only=params.reduce_only,
        self_trade=params.stp_type,
        cl_ord_id=_cl_ord_id(params.cl_ord_id),
        userref=None if params.order_userref is UNSET else params.order_userref,
    )
    body = hashlib.sha256(_TERMS.encode(terms)).hexdigest()[:16] if terms.cl_ord_id else ""
    return Wanted(terms, body)


def change_of(params: AmendParams, instrument: Instrument) -> Change:
    """Return what an ``amend_order`` changes.

    Raises:
        RequestError: It changes nothing, or to something that there is not.
    """
    change = Change(
        qty=None if params.order_qty is UNSET else lots(params.order_qty, instrument, "order_qty"),
        limit=None if params.limit_price is UNSET else ticks(params.limit_price, instrument, "limit_price"),
        trigger=None if params.trigger_price is UNSET else ticks(params.trigger_price, instrument, "trigger_price"),
        display=None if params.display_qty is UNSET else lots(params.display_qty, instrument, "display_qty"),
        post_only=params.post_only,
    )
    if change == Change(post_only=params.post_only):
        raise RequestError("EGeneral:Invalid arguments:nothing to amend", Code.INVALID_ORDER)
    return change


def ticks(value: Decimal, instrument: Instrument, field: str) -> int:
    """Return a price in ticks.

    Raises:
        RequestError: It is not above zero, too large, or not a multiple of the increment.
    """
    return _units(value, instrument.price_precision, instrument.price_increment, ("price", field))


def lots(value: Decimal, instrument: Instrument, field: str) -> int:
    """Return a quantity in lots.

    Raises:
        RequestError: It is too small, too large, or not a multiple of the increment.
    """
    qty = _units(value, instrument.qty_precision, instrument.qty_increment, ("volume", field))
    if qty < instrument.qty_min:
        smallest = fixed(instrument.qty_min, instrument.qty_precision)
        raise RequestError(f"EOrder:Order minimum not met: {smallest}", Code.INVALID_ORDER, field=field)
    return qty


def _units(value: Decimal, precision: int, increment: int, names: tuple[str, str]) -> int:
    what, field = names
    why = ""
    if not value.is_finite() or value <= 0 or value.adjusted() + precision > MAX_DIGITS:
        why = "must be above 0 and below the largest value"
    else:
        exact = value.scaleb(precision, _EXACT)
        units = int(exact)
        if exact > MAX_UNITS:
            why = "must be above 0 and below the largest value"
        elif units != exact or units % increment:
            why = f"must be a multiple of {fixed(increment, precision)}"
    if why:
        raise RequestError(f"EOrder:Invalid {what}: {why}", Code.INVALID_ORDER, field=field)
    return units


def _refuse_unsupported(params: OrderParams) -> None:
    for field, given in (
        ("margin", params.margin),
        ("cash_order_qty", params.cash_order_qty is not UNSET),
        ("conditional", params.conditional is not UNSET),
    ):
        if given:
            text = f"EGeneral:Invalid arguments:{field} is not supported"
            raise RequestError(text, Code.INVALID_ORDER, field=field)


def _limit(params: OrderParams, instrument: Instrument) -> int | None:
    if params.order_type in _LIMITED:
        if params.limit_price is UNSET:
            text = f"EOrder:Invalid price: {params.order_type} needs limit_price"
            raise RequestError(text, Code.INVALID_ORDER, field="limit_price")
        return ticks(params.limit_price, instrument, "limit_price")
    if params.limit_price is not UNSET:
        text = f"EOrder:Invalid price: {params.order_type} has no limit_price"
        raise RequestError(text, Code.INVALID_ORDER, field="limit_price")
    return None


def _trigger(params: OrderParams, instrument: Instrument) -> int | None:
    if params.order_type in STOPS:
        if params.triggers is UNSET:
            text = f"EOrder:Invalid price: {params.order_type} needs triggers"
            raise RequestError(text, Code.INVALID_ORDER, field="triggers")
        return ticks(params.triggers.price, instrument, "triggers")
    if params.triggers is not UNSET:
        text = f"EOrder:Invalid price: {params.order_type} has no triggers"
        raise RequestError(text, Code.INVALID_ORDER, field="triggers")
    return None


def _display(params: OrderParams, instrument: Instrument, qty: int) -> int:
    if params.order_type != "iceberg":
        if params.display_qty is not UNSET:
            text = "EOrder:Invalid display_qty: only an iceberg has one"
            raise RequestError(text, Code.INVALID_ORDER, field="display_qty")
        return 0
    if params.display_qty is UNSET:
        raise RequestError("EOrder:Invalid display_qty: an iceberg needs one", Code.INVALID_ORDER, field="display_qty")
    display = lots(params.display_qty, instrument, "display_qty")
    if display > qty:
        raise RequestError("EOrder:Invalid display_qty: at most order_qty", Code.INVALID_ORDER, field="display_qty")
    return display


def _expiry(params: OrderParams, now_ns: int) -> int:
    if params.time_in_force != "gtd":
        if params.expire_time is not UNSET:
            text = "EGeneral:Invalid arguments:expire_time is for gtd"
            raise RequestError(text, Code.INVALID_ORDER, field="expire_time")
        return 0
    if params.expire_time is UNSET:
        text = "EGeneral:Invalid arguments:gtd needs expire_time"
        raise RequestError(text, Code.INVALID_ORDER, field="expire_time")
    expiry = instant_ns(params.expire_time, "expire_time")
    if expiry <= now_ns:
        text = "EGeneral:Invalid arguments:expire_time is over in the time of this market"
        raise RequestError(text, Code.INVALID_ORDER, field="expire_time")
    return expiry


def _post_only(params: OrderParams, limit: int | None) -> bool:
    if params.post_only and (limit is None or params.time_in_force in ("ioc", "fok")):
        text = "EGeneral:Invalid arguments:post_only is for orders that may rest"
        raise RequestError(text, Code.INVALID_ORDER, field="post_only")
    return params.post_only


def _cl_ord_id(name: str | UnsetType) -> str:
    if name is UNSET:
        return ""
    if not CL_ORD_ID.fullmatch(name):
        text = "EGeneral:Invalid arguments:cl_ord_id is 1 to 36 of A-Z a-z 0-9 _ -"
        raise RequestError(text, Code.INVALID_ORDER, field="cl_ord_id")
    return name


def deadline_of(deadline: str | UnsetType, ttl_ms: int | UnsetType, wall_ns: int) -> int:
    """Return by when (wall time, int ns UTC) a request must have been done.

    Raises:
        RequestError: That is too soon or too late.
    """
    if ttl_ms is not UNSET:
        return wall_ns + min(ttl_ms * 1_000_000, MAX_DEADLINE_NS)
    if deadline is UNSET:
        return wall_ns + DEADLINE_NS
    until = instant_ns(deadline, "deadline")
    if not MIN_DEADLINE_NS <= until - wall_ns <= MAX_DEADLINE_NS:
        text = "EGeneral:Invalid arguments:deadline is 0.5 to 60 s from now"
        raise RequestError(text, Code.INVALID_ORDER, field="deadline")
    return until


def instant_ns(text: str, field: str) -> int:
    """Return an RFC 3339 instant as int ns UTC, to the microsecond.

    Raises:
        RequestError: It is none, or has no offset from UTC.
    """
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is None:
            raise ValueError("it has no offset from UTC")
        ns = (instant - _EPOCH) // _MICROSECOND * 1000
        if not 0 <= ns < 2**63:
            raise ValueError("it does not fit 64 bits")
    except (ValueError, OverflowError):
        why = f"EGeneral:Invalid arguments:{field} is no RFC 3339 instant such as 2026-01-02T09:04:31.5Z"
        raise RequestError(why, Code.INVALID_ORDER, field=field) from None
    return ns
