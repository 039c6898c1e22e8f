"""One client: its requests, in order, and what it is answered.

A session reads every message, answers every request, and leaves market data to the broadcaster. It must not know
sockets or HTTP: messages come in as text, frames go out through an outbox.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec
import trio

from feeds import clock
from ticker import __version__, wire
from ticker.bulletin import shown_speed
from ticker.codec import fixed, frame, rfc3339
from ticker.desk import Desk
from ticker.errors import Code, RequestError
from ticker.guard import TokenBucket
from ticker.market import Market, Publication
from ticker.marketdata import SubscriptionStatistics, Terms
from ticker.orders.readers import PRIVATE_CHANNELS
from ticker.outbox import Outbox
from ticker.replays import Replays
from ticker.wire import Reply, Request, SubscribeParams

logger = logging.getLogger(__name__)

HEARTBEAT_FRAME: Final = frame(wire.HEARTBEAT)
SLOW_CONSUMER: Final = 4008


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one session.

    Attributes:
        ticker_interval_ms: Throttle of the ticker channel; 0 sends every event.
        max_subscriptions: (channel, symbol) pairs.
        requests_per_s: Sustained requests per second; more are refused, the session lives.
        requests_burst: How many may come at once; unless it is given, as many as a second allows.
    """

    ticker_interval_ms: Annotated[int, msgspec.Meta(ge=0, le=60_000)] = 100
    max_subscriptions: Annotated[int, msgspec.Meta(ge=1)] = 20_000
    requests_per_s: Annotated[float, msgspec.Meta(gt=0)] = 20_000.0
    requests_burst: Annotated[float, msgspec.Meta(ge=1)] | None = None

    @property
    def burst(self) -> float:
        """How many requests may come at once."""
        return max(1.0, self.requests_per_s) if self.requests_burst is None else self.requests_burst


class SessionStatistics(msgspec.Struct, frozen=True):
    """What a session has done so far.

    Attributes:
        connection_id: Its number.
        native: Whether it speaks the native profile.
        backlog_bytes: Bytes waiting in its outbox.
        subscriptions: To market data.
    """

    connection_id: int
    native: bool
    backlog_bytes: int
    subscriptions: list[SubscriptionStatistics]


class Session:
    """One connected client.

    Attributes:
        id: Number of the connection.
        native: Whether it speaks the native profile.
        bearer: The token of its ``Authorization`` header, or empty.
        ending: Whether the server wants the session to end.
        close: The Close code and reason that go with it.
        on_end: Called when it begins to want that; for whoever reads for the session.

    Args:
        session_id: Number of the connection.
        outbox: Where its frames go.
        market: The server's own.
        options: What it may do.
        native: Whether it speaks the native profile.
        deflated: Whether its messages may be compressed.
        bearer: The token of its ``Authorization`` header, or empty.
        replays: What else it may look at; None: nothing.
        limits: What it is told of the limits of others: of the server, of its account.
    """

    def __init__(
        self,
        session_id: int,
        outbox: Outbox,
        market: Market,
        options: SessionOptions,
        *,
        native: bool = False,
        deflated: bool = False,
        bearer: str = "",
        replays: Replays | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        self.id = session_id
        self.native = native
        self.bearer = bearer
        self.ending = False
        self.close: tuple[int, str] = (1000, "")
        self.on_end: Callable[[], None] = lambda: None
        self._outbox = outbox
        self._market = market
        self._limits = {
            **(limits or {}),
            "subscriptions": options.max_subscriptions,
            "requests_per_s": options.requests_per_s,
            "requests_burst": options.burst,
        }
        self._bucket = TokenBucket(options.requests_per_s, options.burst, trio.current_time())
        terms = Terms(
            native=native,
            deflated=deflated,
            ticker_interval_ms=options.ticker_interval_ms,
            limit=options.max_subscriptions,
            numbers=itertools.count(1),
            cut_off=self._cut_off,
        )
        self._data = Desk(self, outbox, market, terms, replays)
        self._replies: list[bytes] | None = None  # while a message is answered: its replies so far
        self._reads_instruments = False
        self._beaten_at = self._sent_so_far()
        self._methods: dict[str, Callable[[Request, str], None]] = {
            "ping": self._ping,
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            **dict.fromkeys(market.gateway.methods(native=native), self._order),
        }
        if native:
            self._methods |= {"resync": self._resync, **self._data.methods()}

    # Life

    def begin(self) -> None:
        """Greet the client."""
        self.tell_status("online")

    def end(self, code: int, reason: str) -> None:
        """Ask for the end of the session, with a Close code; the first to ask decides."""
        if not self.ending:
            self.ending, self.close = True, (code, reason)
            self.on_end()

    def forget(self, *, clean: bool) -> None:
        """Give up everything that is held for this client; ``clean`` if it said goodbye."""
        self._data.forget()
        self._market.gateway.remove(self, clean=clean)

    def statistics(self) -> SessionStatistics:
        """Return the counts so far."""
        return SessionStatistics(self.id, self.native, self._outbox.backlog_bytes, self._data.statistics())

    def tell_status(self, system: Any, reconnect_after_ms: int | msgspec.UnsetType = msgspec.UNSET) -> None:  # noqa: ANN401
        """Send the status of the system: ``online`` or ``maintenance``."""
        row = wire.StatusRow(
            system=system,
            api_version=wire.API_VERSION,
            connection_id=self.id,
            version=__version__,
            mode=self._market.mode,
            reconnect_after_ms=reconnect_after_ms,
            epoch=self._market.history.epoch if self.native else msgspec.UNSET,
            limits=self._limits if self.native else msgspec.UNSET,
            orders=self._market.gateway.durability if self.native else msgspec.UNSET,
            **(origin(self._market) if self.native else {}),
        )
        self.send(wire.Message(channel="status", type="update", data=[row]))

    def beat(self) -> None:
        """Send a heartbeat: to plain subscribers into silence, to native ones always."""
        if self.native:
            if self._subscribed:
                self._outbox.offer(frame(wire.encode(self._data.heartbeat())))
            return
        sent = self._sent_so_far()
        if sent != self._beaten_at:
            self._beaten_at = sent
        elif self._subscribed:
            self._outbox.offer(HEARTBEAT_FRAME)
            self._beaten_at = self._sent_so_far()

    @property
    def _subscribed(self) -> bool:
        return self._data.active or self._reads_instruments or self._market.gateway.reads(self)

    def _cut_off(self, reason: str) -> None:
        """End the session because a lossless channel cannot wait for it; a native client hears first what is behind.

        Its socket has just taken something again, or this would not have come out. What it was not told while it took
        nothing is neither conflated nor dropped: it goes with the connection.
        """
        if self.native and not self.ending:
            behind = [told for told in self._data.statistics() if told.lag_ms]
            rows = [wire.slow_consumer(told.sub_id, told.lag_ms, 0, 0) for told in behind]
            self.send(wire.Message(channel="notice", type="update", data=rows))
        self.end(SLOW_CONSUMER, reason)

    def _sent_so_far(self) -> tuple[int, float]:
        """Return what is different after anything was sent."""
        return self._outbox.frames, self._data.told_at

    def send(self, message: msgspec.Struct) -> None:
        """Send a message that must arrive."""
        self.flush()
        self._outbox.push(frame(wire.encode(message)))

    def flush(self) -> None:
        """Send the replies so far: a thousand symbols are acknowledged in one go."""
        if self._replies:
            self._outbox.push(b"".join(self._replies))
            self._replies.clear()

    # Requests

    def receive(self, message: str | bytes) -> None:
        """Answer one message of the client; a request that is refused is answered too."""
        time_in = rfc3339(clock.wall_ns())
        request = Request("")
        self._replies = []
        try:
            wait = self._bucket.take(1, trio.current_time())
            if wait:
                request = wire.envelope_of(message) if isinstance(message, str) else request
                retry = math.ceil(1000 * wait)
                raise RequestError("EGeneral:Too many requests", Code.RATE_LIMITED, retry_after_ms=retry)
            if isinstance(message, bytes):
                raise RequestError("requests are text frames", Code.INVALID_REQUEST)
            request = wire.decode_request(message)
            method = self._methods.get(request.method)
            if method is None:
                raise RequestError(f"Unknown method {request.method[: wire.MAX_ECHO]}", Code.UNKNOWN_METHOD)
            method(request, time_in)
        except wire.MalformedRequestError as error:
            self.refuse(error.request, time_in, error)
        except RequestError as error:
            self.refuse(request, time_in, error)
        finally:
            self.flush()
            self._replies = None

    def accept(self, request: Request, time_in: str, result: Any, ext: dict[str, Any] | None = None) -> None:  # noqa: ANN401
        """Send the reply to a request that was done; ``ext`` is for native clients."""
        self._reply(request, time_in, success=True, result=result, ext=ext if ext and self.native else msgspec.UNSET)

    def refuse(self, request: Request, time_in: str, error: RequestError) -> None:
        """Send the reply to a request that was not done."""
        symbol = msgspec.UNSET if error.symbol is None else error.symbol
        ext: Any = msgspec.UNSET
        if self.native:
            ext = {"code": int(error.code), "name": error.code.name, "retryable": error.code.retryable}
            ext |= {"field": error.field, "retry_after_ms": error.retry_after_ms}
        self._reply(request, time_in, success=False, error=error.text, symbol=symbol, ext=ext)

    def _reply(self, request: Request, time_in: str, **fields: Any) -> None:  # noqa: ANN401
        time_out = rfc3339(clock.wall_ns())
        reply = Reply(
            method=request.method[: wire.MAX_ECHO] or msgspec.UNSET,
            time_in=time_in,
            time_out=time_out,
            req_id=request.req_id,
            **fields,
        )
        data = frame(wire.encode(reply))
        if self._replies is None:
            self._outbox.push(data)
        else:
            self._replies.append(data)

    def _ping(self, request: Request, time_in: str) -> None:
        time_out = rfc3339(clock.wall_ns())
        self.send(Reply(method="pong", time_in=time_in, time_out=time_out, req_id=request.req_id))

    def _subscribe(self, request: Request, time_in: str) -> None:
        params = wire.subscription_of(request, native=self.native)
        if params.channel == "instrument":
            self._subscribe_instruments(request, time_in, params)
        elif params.channel in PRIVATE_CHANNELS:
            self._market.gateway.subscribe(self, request, time_in)
        elif params.channel == "replay" and self.native:
            self._data.watch(request, time_in, params)
        else:
            self._data.at(params).subscribe(request, time_in, params)

    def _unsubscribe(self, request: Request, time_in: str) -> None:
        params = wire.subscription_of(request, native=self.native)
        if params.channel == "instrument":
            self._unsubscribe_instruments(request, time_in, params)
        elif params.channel in PRIVATE_CHANNELS:
            self._market.gateway.unsubscribe(self, request, time_in)
        elif params.channel == "replay" and self.native:
            self._data.unwatch(request, time_in, params)
        else:
            self._data.at(params).unsubscribe(request, time_in, params)

    def _resync(self, request: Request, time_in: str) -> None:
        params = wire.subscription_of(request, native=self.native)
        self._data.at(params).resync(request, time_in, params)

    def _subscribe_instruments(self, request: Request, time_in: str, params: SubscribeParams) -> None:
        market = self._data.at(params).market
        if market is self._market:  # a replay lists its instruments whenever it is asked; they never change
            if self._reads_instruments:
                raise RequestError("Already subscribed", Code.ALREADY_SUBSCRIBED)
            self._reads_instruments = True
        snapshot = params.snapshot is not False
        self.accept(request, time_in, {"channel": "instrument", "snapshot": snapshot, **market.listings.label})
        if snapshot:
            data = instrument_data(market)
            self.send(wire.Message(channel="instrument", type="snapshot", data=data, **market.listings.label))

    def _unsubscribe_instruments(self, request: Request, time_in: str, params: SubscribeParams) -> None:
        if not self._reads_instruments or self._data.at(params).market is not self._market:
            raise RequestError("Subscription Not Found", Code.NOT_SUBSCRIBED)
        self._reads_instruments = False
        self.accept(request, time_in, {"channel": "instrument"})

    def _order(self, request: Request, time_in: str) -> None:
        self._market.gateway.submit(self, request, time_in)


def origin(market: Market) -> dict[str, Any]:
    """Return what it takes to have the same market again, and the speed of a tape."""
    if market.playback is None:
        return market.origin
    return {**market.origin, "speed": shown_speed(market.playback.speed)}


def instrument_data(market: Publication) -> dict[str, Any]:
    """Return the assets and pairs of a market, as the ``instrument`` channel shows them."""
    pairs = []
    precisions: dict[str, int] = {}
    for name, instrument_id in zip(market.listings.names, market.listings.instrument_of, strict=True):
        instrument = market.listings.instruments[instrument_id]
        price, qty = instrument.price_precision, instrument.qty_precision
        for asset, precision in ((instrument.base, qty), (instrument.quote, price)):
            precisions[asset] = max(precision, precisions.get(asset, 0))
        increment = msgspec.Raw(fixed(instrument.price_increment, price).encode())
        pairs.append(
            {
                "symbol": name,
                "base": instrument.base,
                "quote": instrument.quote,
                "status": "online",
                "qty_precision": qty,
                "qty_increment": msgspec.Raw(fixed(instrument.qty_increment, qty).encode()),
                "price_precision": price,
                "cost_precision": price + qty,
                "marginable": False,
                "has_index": False,
                "cost_min": 0,
                "tick_size": increment,
                "price_increment": increment,
                "qty_min": msgspec.Raw(fixed(instrument.qty_min, qty).encode()),
            }
        )
    assets = [
        {"id": asset, "status": "enabled", "precision": precision, "precision_display": precision}
        for asset, precision in precisions.items()
        if asset
    ]
    return {"assets": assets, "pairs": pairs}
