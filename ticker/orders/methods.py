"""What each order method does: reads its parameters and returns the work that is done when its turn has come.

Reading happens at once, so that a malformed request is refused without waiting; what depends on the exchange happens
in the work, which one task does for everybody, one after the other. It must not know journals or who is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from feeds import clock
from ticker.codec import rfc3339
from ticker.errors import Code, RequestError
from ticker.listings import Listings
from ticker.orders.accounts import Scope
from ticker.orders.client import Client
from ticker.orders.exchange import Exchange, Wanted
from ticker.orders.order import Order, key_of
from ticker.orders.params import (
    AddOrderParams,
    AmendParams,
    Authorized,
    BatchAddParams,
    BatchCancelParams,
    CancelAfterParams,
    CancelParams,
    DisconnectParams,
    KillSwitchParams,
    OrderStatusParams,
)
from ticker.orders.reports import Printer, present
from ticker.orders.rules import change_of, deadline_of, wanted_of
from ticker.wire import Request, params_of

MAX_CANCELS: Final = 50
#: Replies to one ``cancel_order``, of which an order_userref may bring any number: about ten milliseconds of work.
MAX_ANSWERS: Final = 1_000


class Answer(msgspec.Struct, frozen=True):
    """One reply to a request.

    Attributes:
        result: Of what was done.
        error: Why it was not done.
        ext: For native clients.
    """

    result: Any = None
    error: RequestError | None = None
    ext: dict[str, Any] | None = None


#: Done when its turn has come; raises :exc:`RequestError` where nothing of it can be done.
Work = Callable[[Exchange], list[Answer]]


class Desk(Protocol):
    """What methods need beside the exchange."""

    def account(self, caller: Client, token: str | UnsetType, scope: Scope) -> str:
        """Return the caller's account; refuses with :exc:`RequestError`."""

    def placed(self, caller: Client, order: Order) -> None:
        """An order came from this connection."""

    def cancel_after(self, account: str, timeout_s: float) -> None:
        """Set the dead man's switch of an account."""

    def cancel_on_disconnect(self, caller: Client, account: str, grace_s: float | None) -> None:
        """Have the orders of a connection end with it, or not (None)."""


class Methods:
    """Reads requests.

    Args:
        listings: The market's names.
        desk: Who the caller is, and its switches.
    """

    def __init__(self, listings: Listings, desk: Desk) -> None:
        self._listings = listings
        self._desk = desk
        self._methods: dict[str, Callable[[Client, Request], Work]] = {
            "add_order": self._add_order,
            "batch_add": self._batch_add,
            "amend_order": self._amend_order,
            "cancel_order": self._cancel_order,
            "batch_cancel": self._batch_cancel,
            "cancel_all": self._cancel_all,
            "cancel_all_orders_after": self._cancel_after,
        }
        self._plain = list(self._methods)
        self._methods |= {
            "order_status": self._order_status,
            "cancel_on_disconnect": self._cancel_on_disconnect,
            "kill_switch": self._kill_switch,
        }

    def names(self, *, native: bool) -> list[str]:
        """Return the methods that there are for plain or native clients."""
        return list(self._methods) if native else self._plain

    def read(self, caller: Client, request: Request) -> Work:
        """Return the work that a request asks for.

        Raises:
            RequestError: It is malformed, or its token gives nothing.
        """
        return self._methods[request.method](caller, request)

    # Entering

    def _add_order(self, caller: Client, request: Request) -> Work:
        params = params_of(request, AddOrderParams)
        account = self._desk.account(caller, params.token, "trade")
        until = deadline_of(params.deadline, params.ttl_ms, clock.wall_ns())
        instrument = self._listings.instrument(params.symbol)

        def work(exchange: Exchange) -> list[Answer]:
            _check_deadline(until)
            wanted = wanted_of(params, params.symbol, instrument, exchange.now)
            if params.validate_only:
                exchange.check(account, [wanted], idempotent=caller.native)
                return [Answer(_named(wanted), ext={"validated": True})]
            order, duplicate = exchange.place(account, wanted, idempotent=caller.native)
            return [self._entered(caller, order, duplicate=duplicate)]

        return work

    def _batch_add(self, caller: Client, request: Request) -> Work:
        params = params_of(request, BatchAddParams)
        account = self._desk.account(caller, params.token, "trade")
        until = deadline_of(params.deadline, params.ttl_ms, clock.wall_ns())
        instrument = self._listings.instrument(params.symbol)

        def work(exchange: Exchange) -> list[Answer]:
            _check_deadline(until)
            batch = [wanted_of(order, params.symbol, instrument, exchange.now) for order in params.orders]
            if params.validate_only:
                exchange.check(account, batch, idempotent=caller.native)
                return [Answer([_named(wanted) for wanted in batch], ext={"validated": True})]
            placed = exchange.place_all(account, batch, idempotent=caller.native)
            answers = [self._entered(caller, order, duplicate=duplicate) for order, duplicate in placed]
            return [Answer([answer.result for answer in answers], ext={"duplicates": sum(d for _, d in placed)})]

        return work

    def _entered(self, caller: Client, order: Order, *, duplicate: bool) -> Answer:
        if not duplicate:
            self._desk.placed(caller, order)
        return Answer(_ids(order), ext={"duplicate": duplicate})

    # Changing

    def _amend_order(self, caller: Client, request: Request) -> Work:
        params = params_of(request, AmendParams)
        account = self._desk.account(caller, params.token, "trade")
        key, name = _one_id(params)
        until = deadline_of(params.deadline, params.ttl_ms, clock.wall_ns())

        def work(exchange: Exchange) -> list[Answer]:
            _check_deadline(until)
            order = exchange.open_order(account, key, name)
            change = change_of(params, self._listings.instrument(order.terms.symbol))
            exchange.amend(account, order, change)
            return [Answer({"amend_id": f"A{order.key:012d}-{order.reports}", **_ids(order)})]

        return work

    # Ending

    def _cancel_order(self, caller: Client, request: Request) -> Work:
        params = params_of(request, CancelParams)
        account = self._desk.account(caller, params.token, "trade")
        wanted = [(key_of(order_id), "") for order_id in params.order_id] + [(0, name) for name in params.cl_ord_id]
        if not 1 <= len(wanted) + len(params.order_userref) <= MAX_CANCELS:
            text = (
                f"EGeneral:Invalid arguments:cancel_order takes 1 to {MAX_CANCELS} order_id, cl_ord_id, order_userref"
            )
            raise RequestError(text, Code.INVALID_FIELD)

        def work(exchange: Exchange) -> list[Answer]:
            named = [*wanted, *_with_userrefs(exchange, account, params.order_userref)]
            if len(named) > MAX_ANSWERS:
                text = f"EGeneral:Invalid arguments:these are over {MAX_ANSWERS} orders: batch_cancel takes any number"
                raise RequestError(text, Code.INVALID_FIELD, field="order_userref")
            return [_cancelled(exchange, account, key, name) for key, name in named]

        return work

    def _batch_cancel(self, caller: Client, request: Request) -> Work:
        params = params_of(request, BatchCancelParams)
        account = self._desk.account(caller, params.token, "trade")
        if not 1 <= len(params.orders) + len(params.cl_ord_id) <= MAX_CANCELS:
            text = f"EGeneral:Invalid arguments:batch_cancel takes 1 to {MAX_CANCELS} orders"
            raise RequestError(text, Code.INVALID_FIELD)
        ids = [key_of(each) for each in params.orders if isinstance(each, str)]
        userrefs = [each if isinstance(each, int) else int(each) for each in params.orders if _is_number(each)]

        def work(exchange: Exchange) -> list[Answer]:
            ledger = exchange.ledger
            named = [ledger.find(account, key) for key in ids]
            named += [ledger.find(account, cl_ord_id=name) for name in params.cl_ord_id]
            keys = [order.key for order in named if order is not None]
            keys += [key for key, _ in _with_userrefs(exchange, account, userrefs)]
            return [Answer({"count": exchange.cancel_all(account, "user", keys)})]

        return work

    def _cancel_all(self, caller: Client, request: Request) -> Work:
        account = self._desk.account(caller, params_of(request, Authorized).token, "trade")
        return lambda exchange: [Answer({"count": exchange.cancel_all(account, "cancel_all")})]

    # Switches

    def _cancel_after(self, caller: Client, request: Request) -> Work:
        params = params_of(request, CancelAfterParams)
        account = self._desk.account(caller, params.token, "trade")

        def work(exchange: Exchange) -> list[Answer]:
            self._desk.cancel_after(account, params.timeout)
            now = clock.wall_ns()
            until = rfc3339(now + params.timeout * clock.NS) if params.timeout else "0"
            return [Answer({"currentTime": rfc3339(now), "triggerTime": until})]

        return work

    def _cancel_on_disconnect(self, caller: Client, request: Request) -> Work:
        params = params_of(request, DisconnectParams)
        account = self._desk.account(caller, params.token, "trade")

        def work(exchange: Exchange) -> list[Answer]:
            self._desk.cancel_on_disconnect(caller, account, params.grace_ms / 1000 if params.enable else None)
            return [Answer({"enable": params.enable, "grace_ms": params.grace_ms})]

        return work

    def _kill_switch(self, caller: Client, request: Request) -> Work:
        params = params_of(request, KillSwitchParams)
        account = self._desk.account(caller, params.token, "trade")

        def work(exchange: Exchange) -> list[Answer]:
            count = exchange.halt(account, halted=params.enable)
            return [Answer({"enable": params.enable, "count": count})]

        return work

    # Asking

    def _order_status(self, caller: Client, request: Request) -> Work:
        params = params_of(request, OrderStatusParams)
        account = self._desk.account(caller, params.token, "read")
        key, name = _one_id(params)

        def work(exchange: Exchange) -> list[Answer]:
            order = exchange.ledger.find(account, key, name)
            if order is None:
                raise RequestError("EOrder:Unknown order", Code.UNKNOWN_ORDER)
            (report,) = present([order], exchange.now)
            row = Printer(exchange.ledger).execution(report, native=True)
            del row["exec_type"]  # this is no event
            return [Answer(row)]

        return work


def _check_deadline(until_ns: int) -> None:
    if clock.wall_ns() > until_ns:
        raise RequestError("EOrder:Deadline elapsed", Code.DEADLINE_ELAPSED, field="deadline")


def _ids(order: Order) -> dict[str, Any]:
    ids: dict[str, Any] = {"order_id": order.order_id}
    if order.terms.cl_ord_id:
        ids["cl_ord_id"] = order.terms.cl_ord_id
    if order.terms.userref is not None:
        ids["order_userref"] = order.terms.userref
    return ids


def _named(wanted: Wanted) -> dict[str, Any]:
    return {"cl_ord_id": wanted.terms.cl_ord_id} if wanted.terms.cl_ord_id else {}


def _one_id(params: AmendParams | OrderStatusParams) -> tuple[int, str]:
    if (params.order_id is UNSET) == (params.cl_ord_id is UNSET):
        raise RequestError("EGeneral:Invalid arguments:one of order_id and cl_ord_id", Code.INVALID_FIELD)
    if params.order_id is not UNSET:
        return key_of(params.order_id), ""
    assert params.cl_ord_id is not UNSET
    return 0, params.cl_ord_id


def _cancelled(exchange: Exchange, account: str, key: int, name: str) -> Answer:
    try:
        return Answer(_ids(exchange.cancel(account, key, name)))
    except RequestError as error:
        return Answer(error=error)


def _is_number(given: str | int) -> bool:
    return isinstance(given, int) or (given.isascii() and given.isdigit() and len(given) < 19)


def _with_userrefs(exchange: Exchange, account: str, userrefs: list[int]) -> list[tuple[int, str]]:
    """Return the open orders that have one of some numbers, as ids; a number that none has is an unknown order."""
    keys: dict[int | None, list[int]] = {userref: [] for userref in userrefs}
    for order in exchange.ledger.open_orders(account) if keys else ():
        if order.terms.userref in keys:
            keys[order.terms.userref].append(order.key)
    return [(key, "") for found in keys.values() for key in found or [0]]
