"""Takes order requests from sessions, has the exchange do them one after the other, and tells the account.

The reply to a request precedes every ``executions`` row that it causes. The queue in front of the exchange is bounded;
when it is full a request is refused, so that a session always reads on. Everybody trades on one demo account until
accounts are told apart; a ``token`` is accepted and not looked at.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
import trio

from feeds.instruments import Instrument
from feeds.records import BUY, SELL, Batch
from ticker.codec import fixed, rfc3339
from ticker.errors import Code, RequestError
from ticker.listings import Listings
from ticker.orders.exchange import Exchange, NewOrder, Report, cost_precision, currency, units_of
from ticker.wire import AddOrderParams, CancelOrderParams, Message, Request, SubscribeParams, params_of

PRIVATE_CHANNELS: Final = ("executions", "balances")
DEMO: Final = "demo"
DEMO_QUOTE: Final = 10_000_000  #: of every quote currency
DEMO_BASE: Final = 10_000  #: of every base asset
QUEUE_DEPTH: Final = 10_000
SNAPSHOT_TRADES: Final = 50
CL_ORD_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,36}")


class Client(Protocol):
    """What the gateway needs of a session."""

    def accept(self, request: Request, time_in: str, result: dict[str, Any]) -> None:
        """Reply to a request that was done."""

    def refuse(self, request: Request, time_in: str, error: RequestError) -> None:
        """Reply to a request that was not done."""

    def send(self, message: msgspec.Struct) -> None:
        """Send a message that must arrive."""


class PrivateMessage(Message, frozen=True, kw_only=True):
    """A message of a private channel.

    Attributes:
        sequence: Contiguous from 1 per connection and channel.
    """

    sequence: int


class Gateway:
    """The way from sessions to the exchange and back."""

    def __init__(self, exchange: Exchange, listings: Listings) -> None:
        self._exchange = exchange
        self._listings = listings
        self._send, self._receive = trio.open_memory_channel[Callable[[], None]](QUEUE_DEPTH)
        self._readers: dict[str, dict[Client, int]] = {channel: {} for channel in PRIVATE_CHANNELS}
        self._trades: deque[Report] = deque(maxlen=SNAPSHOT_TRADES)
        exchange.open_account(DEMO, demo_balances(listings))

    async def run(self) -> None:
        """Do requests one after the other, for ever."""
        async for command in self._receive:
            command()
            await trio.lowlevel.checkpoint()

    def submit(self, client: Client, request: Request, time_in: str) -> None:
        """Queue an order request.

        Raises:
            RequestError: It is malformed, or the queue is full; nothing was entered.
        """
        work = self._placing(request) if request.method == "add_order" else self._cancelling(request)

        def command() -> None:
            try:
                result, reports = work()
            except RequestError as error:
                client.refuse(request, time_in, error)
            else:
                client.accept(request, time_in, result)
                self._tell(reports)

        try:
            self._send.send_nowait(command)
        except trio.WouldBlock:
            raise RequestError("EService:Busy", Code.BUSY) from None

    def market_moved(self, batch: Batch) -> None:
        """Let a batch fill resting orders."""
        self._tell(self._exchange.market_moved(batch))

    def _placing(self, request: Request) -> Callable[[], tuple[dict[str, Any], list[Report]]]:
        params = params_of(request, AddOrderParams)
        terms = self._terms(params)

        def work() -> tuple[dict[str, Any], list[Report]]:
            reports = self._exchange.place(terms)
            result = {"order_id": reports[0].order_id}
            return (result | {"cl_ord_id": terms.cl_ord_id} if terms.cl_ord_id else result), reports

        return work

    def _terms(self, params: AddOrderParams) -> NewOrder:
        listing = self._listings.id_of(params.symbol)
        instrument_id = self._listings.instrument_of[listing]
        instrument = self._listings.instruments[instrument_id]
        cl_ord_id = "" if params.cl_ord_id is msgspec.UNSET else params.cl_ord_id
        if params.cl_ord_id is not msgspec.UNSET and not CL_ORD_ID.fullmatch(cl_ord_id):
            raise RequestError("EOrder:Invalid cl_ord_id: 1 to 36 of A-Z a-z 0-9 _ -", Code.INVALID_ORDER)
        limit = None
        if params.order_type == "limit":
            if params.limit_price is msgspec.UNSET:
                raise RequestError("EOrder:Invalid price: a limit order needs limit_price", Code.INVALID_ORDER)
            limit = units_of(params.limit_price, instrument.price_precision, instrument.price_increment, "price")
        qty = units_of(params.order_qty, instrument.qty_precision, instrument.qty_increment, "volume")
        if qty < instrument.qty_min:
            raise RequestError("EOrder:Invalid volume: below qty_min", Code.INVALID_ORDER)
        return NewOrder(
            account=DEMO, symbol=params.symbol, instrument=instrument_id, side=BUY if params.side == "buy" else SELL,
            qty=qty, limit=limit, immediate=params.time_in_force == "ioc", cl_ord_id=cl_ord_id,
        )  # fmt: skip

    def _cancelling(self, request: Request) -> Callable[[], tuple[dict[str, Any], list[Report]]]:
        params = params_of(request, CancelOrderParams)
        wanted = [(order_id, "") for order_id in params.order_id] + [("", name) for name in params.cl_ord_id]
        if len(wanted) != 1:
            raise RequestError("EGeneral:cancel_order takes one order_id or one cl_ord_id", Code.INVALID_FIELD)
        order_id, name = wanted[0]

        def work() -> tuple[dict[str, Any], list[Report]]:
            cancelled, reports = self._exchange.cancel(DEMO, order_id, name)
            result = {"order_id": cancelled}
            return (result | {"cl_ord_id": name} if name else result), reports

        return work

    # Private channels

    def subscribe(self, client: Client, request: Request, time_in: str, params: SubscribeParams) -> None:
        """Begin to tell a client about its account.

        Raises:
            RequestError: It is subscribed already.
        """
        readers = self._readers[params.channel]
        if client in readers:
            raise RequestError("Already subscribed", Code.ALREADY_SUBSCRIBED)
        readers[client] = 0
        client.accept(request, time_in, {"channel": params.channel, "snapshot": True})
        rows = self._balance_rows() if params.channel == "balances" else self._execution_snapshot()
        self._publish(params.channel, client, "snapshot", rows)

    def unsubscribe(self, client: Client, request: Request, time_in: str, params: SubscribeParams) -> None:
        """Stop telling a client about its account.

        Raises:
            RequestError: It is not subscribed.
        """
        if self._readers[params.channel].pop(client, None) is None:
            raise RequestError("Subscription Not Found", Code.NOT_SUBSCRIBED)
        client.accept(request, time_in, {"channel": params.channel})

    def reads(self, client: Client) -> bool:
        """Whether a client has a private subscription."""
        return any(client in readers for readers in self._readers.values())

    def remove(self, client: Client) -> None:
        """Forget a client whose connection has ended."""
        for readers in self._readers.values():
            readers.pop(client, None)

    def _tell(self, reports: list[Report]) -> None:
        if not reports:
            return
        fills = [report for report in reports if report.exec_type == "trade"]
        self._trades.extend(fills)
        rows = [self._row(report) for report in reports]
        for client in list(self._readers["executions"]):
            self._publish("executions", client, "update", rows)
        if fills:
            touched = {asset for report in fills for asset in self._assets(report)}
            balances = [row for row in self._balance_rows() if row["asset"] in touched]
            for client in list(self._readers["balances"]):
                self._publish("balances", client, "update", balances)

    def _publish(self, channel: str, client: Client, kind: Any, rows: list[dict[str, Any]]) -> None:  # noqa: ANN401
        readers = self._readers[channel]
        readers[client] += 1
        client.send(PrivateMessage(channel=channel, type=kind, data=rows, sequence=readers[client]))

    def _execution_snapshot(self) -> list[dict[str, Any]]:
        return [self._row(report) for report in (*self._trades, *self._exchange.open_orders(DEMO))]

    def _assets(self, report: Report) -> tuple[str, str]:
        instrument = self._listings.instruments[report.order.instrument]
        return instrument.base, currency(instrument)

    def _balance_rows(self) -> list[dict[str, Any]]:
        return [
            {"asset": asset, "asset_class": "currency", "balance": _raw(amount, self._exchange.scale[asset])}
            for asset, amount in self._exchange.balances(DEMO).items()
        ]

    def _row(self, report: Report) -> dict[str, Any]:
        terms = report.order
        instrument = self._listings.instruments[terms.instrument]
        row: dict[str, Any] = {
            "order_id": report.order_id,
            "symbol": terms.symbol,
            "side": "buy" if terms.side == BUY else "sell",
            "order_type": "market" if terms.limit is None else "limit",
            "order_qty": _qty(instrument, terms.qty),
            "exec_type": report.exec_type,
            "order_status": report.status,
            "cum_qty": _qty(instrument, report.cum_qty),
            "cum_cost": _money(instrument, report.cost),
            "time_in_force": "ioc" if terms.immediate else "gtc",
            "timestamp": rfc3339(report.ts),
        }
        if terms.cl_ord_id:
            row["cl_ord_id"] = terms.cl_ord_id
        if terms.limit is not None:
            row["limit_price"] = _price(instrument, terms.limit)
        if report.cum_qty:
            row["avg_price"] = _price(instrument, round(report.cost / report.cum_qty))
        if report.exec_type == "trade":
            row |= {
                "exec_id": report.exec_id,
                "last_qty": _qty(instrument, report.last_qty),
                "last_price": _price(instrument, report.last_price),
                "cost": _money(instrument, report.last_price * report.last_qty),
                "liquidity_ind": "m" if report.maker else "t",
            }
        if report.reason:
            row["reason"] = report.reason
        return row


def demo_balances(listings: Listings) -> dict[str, int]:
    """Return what the demo account starts with, in whole units: plenty of everything that can be traded."""
    balances = {instrument.base: DEMO_BASE for instrument in listings.instruments}
    return balances | {currency(instrument): DEMO_QUOTE for instrument in listings.instruments}


def _price(instrument: Instrument, ticks: int) -> msgspec.Raw:
    return _raw(ticks, instrument.price_precision)


def _qty(instrument: Instrument, lots: int) -> msgspec.Raw:
    return _raw(lots, instrument.qty_precision)


def _money(instrument: Instrument, cost: int) -> msgspec.Raw:
    return _raw(cost, cost_precision(instrument))


def _raw(units: int, precision: int) -> msgspec.Raw:
    return msgspec.Raw(fixed(units, precision).encode())
