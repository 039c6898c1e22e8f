"""An order: what was asked for, how far it has come, and which steps there are from one status to the next.

Quantities are integer lots, prices integer ticks of the order's instrument. It must not know accounts' money, markets
or messages.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal

import msgspec

from feeds.records import BUY
from feeds.venue import SelfTrade

OrderType = Literal[
    "limit", "market", "iceberg", "stop-loss", "stop-loss-limit", "take-profit", "take-profit-limit"
]  # fmt: skip
TimeInForce = Literal["gtc", "gtd", "ioc", "fok"]
#: FIX OrdStatus in Kraken's words.
Status = Literal["new", "triggered", "partially_filled", "filled", "canceled", "expired"]
#: FIX ExecType in Kraken's words.
ExecType = Literal["new", "trade", "filled", "amended", "status", "canceled", "expired"]
#: What can happen to an order; ``complete`` is the fill that leaves nothing open.
Step = Literal["fill", "complete", "amend", "trigger", "cancel", "expire"]

#: Order types that wait for a price to be reached; their limit is that of the order they become.
STOPS: Final = frozenset({"stop-loss", "stop-loss-limit", "take-profit", "take-profit-limit"})
#: Those of them that wait for the market to turn against the position.
LOSS_STOPS: Final = frozenset({"stop-loss", "stop-loss-limit"})
OPEN: Final[frozenset[Status]] = frozenset({"new", "triggered", "partially_filled"})

#: Every step that there is: status before it, step, status after it. Terminal statuses lead nowhere.
TRANSITIONS: Final = MappingProxyType[tuple[Status, Step], Status](
    {
        ("new", "trigger"): "triggered",
        **{(status, "amend"): status for status in OPEN},
        **{(status, "fill"): "partially_filled" for status in OPEN},
        **{(status, "complete"): "filled" for status in OPEN},
        **{(status, "cancel"): "canceled" for status in OPEN},
        **{(status, "expire"): "expired" for status in OPEN},
    }
)


# gc=False, here and below: they cannot be part of a cycle, and the collector would go through each that is kept.
class Terms(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """What an order asks for, checked against its instrument.

    Attributes:
        symbol: The instrument's own symbol.
        name: The name under which it was ordered, which may be an alias.
        side: :data:`feeds.records.BUY` or :data:`feeds.records.SELL`.
        order_type: One of Kraken's words.
        qty: Lots, 1 or above.
        limit: Ticks; None at any price.
        trigger: Ticks of the last trade at which a stop becomes active; None where it is not a stop.
        display: Lots that an iceberg shows; 0 shows all.
        time_in_force: How long it may rest.
        expire_ns: Of gtd: market time, int ns UTC; else 0.
        post_only: Whether it must not take.
        reduce_only: Whether it may only make a position smaller.
        self_trade: What becomes of it where it would meet an order of its own account.
        cl_ord_id: The client's own id, or empty.
        userref: A number that the client gave, or None.
    """

    symbol: str
    name: str
    side: int
    order_type: OrderType
    qty: int
    limit: int | None = None
    trigger: int | None = None
    display: int = 0
    time_in_force: TimeInForce = "gtc"
    expire_ns: int = 0
    post_only: bool = False
    reduce_only: bool = False
    self_trade: SelfTrade = "cancel_newest"
    cl_ord_id: str = ""
    userref: int | None = None

    @property
    def rests(self) -> bool:
        """Whether what cannot trade at once stays in the book."""
        return self.limit is not None and self.time_in_force in ("gtc", "gtd")

    @property
    def price(self) -> int | None:
        """The price that its cost is reckoned with before it trades: its limit, else its trigger."""
        return self.trigger if self.limit is None else self.limit

    @property
    def triggers_upwards(self) -> bool:
        """Whether a stop waits for a rise: a loss of a short position, or the profit of a long one."""
        return (self.side == BUY) == (self.order_type in LOSS_STOPS)


class Order(msgspec.Struct, kw_only=True, array_like=True, gc=False):
    """An order and how far it has come. Open means ``leaves_qty = qty - cum_qty``; terminal means it is 0.

    Attributes:
        key: Its number; also that of its entry in a venue.
        account: Whose it is.
        terms: As entered, and as amended since.
        body: Digest of the request, by which a repeated one is known.
        fee_ppm: The highest fee that its fills may cost, in millionths of what they cost.
        status: Where it stands.
        cum_qty: Lots filled; never decreases.
        leaves_qty: Lots that can still be filled.
        cost: Sum of ticks times lots of its fills.
        fees: In the same unit as ``cost``.
        reports: How many reports there have been of it.
        held: What is held for it of the asset that it spends, see :class:`ticker.orders.ledger.Ledger`.
    """

    key: int
    account: str
    terms: Terms
    body: str = ""
    fee_ppm: int = 0
    status: Status = "new"
    cum_qty: int = 0
    leaves_qty: int = 0
    cost: int = 0
    fees: int = 0
    reports: int = 0
    held: int = 0

    @property
    def order_id(self) -> str:
        """The exchange's id, as clients see it."""
        return f"O{self.key:012d}"

    @property
    def open(self) -> bool:
        """Whether it can still be filled."""
        return self.status in OPEN

    @property
    def waits(self) -> bool:
        """Whether it is a stop whose price has not been reached."""
        return self.status == "new" and self.terms.trigger is not None

    def advance(self, step: Step) -> None:
        """Take a step of :data:`TRANSITIONS`; any other is a defect, and a :exc:`KeyError`."""
        self.status = TRANSITIONS[self.status, step]
        if not self.open:
            self.leaves_qty = 0


def key_of(order_id: str) -> int:
    """Return the key that an order id names; 0, which no order has, where it names none."""
    digits = order_id[1:]
    return int(digits) if order_id[:1] == "O" and digits.isascii() and digits.isdigit() and len(digits) == 12 else 0


class Report(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One thing that happened to an order, with the order's state after it.

    Attributes:
        key: The order's.
        account: Whose it is.
        terms: The order's terms now.
        exec_type: What happened.
        status: Where the order stands now.
        cum_qty: Lots filled so far.
        leaves_qty: Lots open.
        cost: Sum of ticks times lots of the fills so far.
        fees: Of the order so far, in the unit of ``cost``.
        ts: int ns UTC, market time.
        exec_seq: Number of this report of this order, from 1.
        sequence: Number of this report of this account, from 1.
        exec_id: Of a fill: its number on this exchange; else 0.
        trade_id: Of a fill: its number on the tape, 0 if the tape does not show it.
        last_qty: Of a fill: lots.
        last_price: Of a fill: ticks.
        last_fee: Of a fill: its fee.
        maker: Of a fill: whether the order rested before.
        reason: Of a cancel: why.
    """

    key: int
    account: str
    terms: Terms
    exec_type: ExecType
    status: Status
    cum_qty: int
    leaves_qty: int
    cost: int
    fees: int
    ts: int
    exec_seq: int
    sequence: int
    exec_id: int = 0
    trade_id: int = 0
    last_qty: int = 0
    last_price: int = 0
    last_fee: int = 0
    maker: bool = False
    reason: str = ""
