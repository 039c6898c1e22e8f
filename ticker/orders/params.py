"""Parameters of the order methods, as clients send them.

Keys and words are Kraken's; ``ttl_ms`` and whole methods are the native profile's. What cannot be done here but would
change the meaning of an order (margin, an amount of money instead of a quantity, a second order attached) has a field
too, so that it is refused and not passed over.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

from feeds.venue import SelfTrade
from ticker.orders.order import OrderType, TimeInForce
from ticker.wire import Resume

Positive = Annotated[int, msgspec.Meta(ge=1)]
PriceType = Literal["static"]


class Authorized(msgspec.Struct, frozen=True, kw_only=True):
    """What every private request has.

    Attributes:
        token: Says which account; where it is left out, the last one that the session has shown counts.
    """

    token: str | UnsetType = UNSET


class Triggers(msgspec.Struct, frozen=True):
    """At which price a stop becomes active."""

    price: Decimal
    reference: Literal["last"] = "last"
    price_type: PriceType = "static"


class OrderParams(msgspec.Struct, frozen=True, kw_only=True):
    """One order, without its symbol."""

    NUMBERS: ClassVar[tuple[str, ...]] = ("order_qty", "limit_price", "display_qty", "triggers.price")

    order_type: OrderType
    side: Literal["buy", "sell"]
    order_qty: Decimal
    limit_price: Decimal | UnsetType = UNSET
    limit_price_type: PriceType = "static"
    triggers: Triggers | UnsetType = UNSET
    display_qty: Decimal | UnsetType = UNSET
    time_in_force: TimeInForce = "gtc"
    expire_time: str | UnsetType = UNSET
    post_only: bool = False
    reduce_only: bool = False
    stp_type: SelfTrade = "cancel_newest"
    cl_ord_id: str | UnsetType = UNSET
    order_userref: int | UnsetType = UNSET
    margin: bool = False
    cash_order_qty: Any = UNSET
    conditional: Any = UNSET


class AddOrderParams(OrderParams, frozen=True, kw_only=True):
    """Parameters of ``add_order``."""

    token: str | UnsetType = UNSET
    symbol: str
    deadline: str | UnsetType = UNSET
    ttl_ms: Positive | UnsetType = UNSET
    #: Named so because a struct has a method of that name.
    validate_only: bool = msgspec.field(default=False, name="validate")


class BatchAddParams(Authorized, frozen=True, kw_only=True):
    """Parameters of ``batch_add``."""

    NUMBERS: ClassVar[tuple[str, ...]] = tuple(f"orders[].{number}" for number in OrderParams.NUMBERS)

    symbol: str
    orders: Annotated[list[OrderParams], msgspec.Meta(min_length=2, max_length=15)]
    deadline: str | UnsetType = UNSET
    ttl_ms: Positive | UnsetType = UNSET
    validate_only: bool = msgspec.field(default=False, name="validate")


class AmendParams(Authorized, frozen=True, kw_only=True):
    """Parameters of ``amend_order``."""

    NUMBERS: ClassVar[tuple[str, ...]] = ("order_qty", "limit_price", "display_qty", "trigger_price")

    order_id: str | UnsetType = UNSET
    cl_ord_id: str | UnsetType = UNSET
    order_qty: Decimal | UnsetType = UNSET
    limit_price: Decimal | UnsetType = UNSET
    limit_price_type: PriceType = "static"
    trigger_price: Decimal | UnsetType = UNSET
    trigger_price_type: PriceType = "static"
    display_qty: Decimal | UnsetType = UNSET
    post_only: bool = False
    deadline: str | UnsetType = UNSET
    ttl_ms: Positive | UnsetType = UNSET


class CancelParams(Authorized, frozen=True, kw_only=True):
    """Parameters of ``cancel_order``: orders by any kind of id, each answered by itself."""

    order_id: list[str] = []
    cl_ord_id: list[str] = []
    order_userref: list[int] = []


class BatchCancelParams(Authorized, frozen=True, kw_only=True):
    """Parameters of ``batch_cancel``; an order may be named by a number that the client gave it."""

    orders: Annotated[list[str | int], msgspec.Meta(max_length=50)] = []
    cl_ord_id: Annotated[list[str], msgspec.Meta(max_length=50)] = []


class CancelAfterParams(Authorized, frozen=True, kw_only=True):
    """Parameters of ``cancel_all_orders_after``.

    Attributes:
        timeout: Seconds from now; 0 calls it off.
    """

    timeout: Annotated[int, msgspec.Meta(ge=0, le=86_400)]


class OrderStatusParams(Authorized, frozen=True, kw_only=True):
    """Parameters of ``order_status``: one order by either of its ids."""

    order_id: str | UnsetType = UNSET
    cl_ord_id: str | UnsetType = UNSET


class DisconnectParams(Authorized, frozen=True, kw_only=True):
    """Parameters of ``cancel_on_disconnect``.

    Attributes:
        enable: Whether the orders of this connection end with it.
        grace_ms: How long the account has to come back first.
    """

    enable: bool
    grace_ms: Annotated[int, msgspec.Meta(ge=0, le=3_600_000)] = 10_000


class KillSwitchParams(Authorized, frozen=True, kw_only=True):
    """Parameters of ``kill_switch``: cancel everything and enter nothing until it is released."""

    enable: bool


class PrivateParams(Authorized, frozen=True, kw_only=True):
    """Parameters of ``subscribe`` and ``unsubscribe`` for a private channel."""

    channel: str
    snapshot: bool = True
    snap_trades: bool = False
    snap_orders: bool = True
    order_status: bool = True
    resume: Resume | UnsetType = UNSET

    @property
    def accepted(self) -> dict[str, Any]:
        """The parameters that a client may send back to subscribe again; a token is not repeated."""
        result: dict[str, Any] = {"channel": self.channel}
        if self.channel == "executions":
            return result | {
                "snap_trades": self.snap_trades,
                "snap_orders": self.snap_orders,
                "order_status": self.order_status,
            }
        return result | {"snapshot": self.snapshot}
