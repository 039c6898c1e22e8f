"""The market-data side of a session: its subscriptions, and what it is told about them.

It reads requests and writes replies through the session and leaves the data itself to the broadcaster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import msgspec
import trio

from ticker import binary, wire
from ticker.broadcast import Standing
from ticker.errors import Code, RequestError
from ticker.market import Publication
from ticker.outbox import Outbox
from ticker.subscriber import Lag, Subscriber, Subscription
from ticker.subscriptions import Wish, checked_interval, understand
from ticker.topics.topic import Marks, TopicKey
from ticker.wire import Request, Resume, SubscribeParams

#: A plain client that asks for few symbols at a time has several subscriptions, each with so many or with eight times
#: what it asks for: all symbols of the one that is added to are looked at again.
ROOMY: Final = 64
#: Different wishes (channel, depth, mode, interval, encoding, …) that one connection may have: each is a topic that
#: every event passes.
MAX_TOPICS: Final = 100
#: A slow consumer is told so this often at most.
NOTICE_INTERVAL_S: Final = 1.0
#: A stream without events for this long is idle; a market without events for as long is stale.
IDLE_S: Final = 5.0


class Client(Protocol):
    """What this needs of a session."""

    def accept(self, request: Request, time_in: str, result: dict[str, Any], ext: dict[str, Any] | None = None) -> None:
        """Reply to a request that was done."""

    def refuse(self, request: Request, time_in: str, error: RequestError) -> None:
        """Reply to a request that was not done."""

    def send(self, message: msgspec.Struct) -> None:
        """Send a message that must arrive."""

    def flush(self) -> None:
        """Send the replies so far."""


class SubscriptionStatistics(msgspec.Struct, frozen=True):
    """What became of a subscription so far.

    Attributes:
        sub_id: Its number within the connection.
        channel: Of market data.
        symbols: How many.
        interval_ms: Its throttle.
        mode: merge, batch or raw.
        published: Source events that the subscriber was taken past; delivered + conflated + dropped.
        delivered: Those sent as rows.
        conflated: Those that a later state stood for.
        dropped: Those that were lost.
        lag_ms: For how long its socket has taken nothing; 0 while it keeps up.
    """

    sub_id: int
    channel: str
    symbols: int
    interval_ms: int
    mode: str
    published: int
    delivered: int
    conflated: int
    dropped: int
    lag_ms: int


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a client has agreed with the server, in all markets that it looks at.

    Attributes:
        native: Whether it speaks the native profile.
        deflated: Whether its messages may be compressed.
        ticker_interval_ms: The server's throttle of the ticker channel.
        limit: (channel, symbol) pairs that it may have.
        numbers: Gives its subscriptions their numbers.
        cut_off: Called with a reason when a lossless channel cannot wait for it.
    """

    native: bool
    deflated: bool
    ticker_interval_ms: int
    limit: int
    numbers: Iterator[int]
    cut_off: Callable[[str], None]


class MarketData:
    """The subscriptions of one session to the channels of one market.

    Args:
        client: The session.
        outbox: Where its frames go.
        market: What it subscribes to.
        terms: What holds for the session.
        taken: Returns how many (channel, symbol) pairs it has, in all markets.
    """

    def __init__(
        self,
        client: Client,
        outbox: Outbox,
        market: Publication,
        terms: Terms,
        taken: Callable[[], int],
    ) -> None:
        self._client = client
        self._market = market
        self._broadcaster = market.broadcaster
        self._native = terms.native
        self._terms = terms
        self._taken = taken
        self._noticed_at: dict[int, float] = {}
        self._subscriber = Subscriber(outbox, terms.cut_off, self._caught_up, terms.numbers)
        outbox.on_writable.append(self._writable)

    def _writable(self) -> None:
        self._broadcaster.writable(self._subscriber)

    @property
    def market(self) -> Publication:
        """What it subscribes to."""
        return self._market

    @property
    def active(self) -> bool:
        """Whether there is a subscription."""
        return bool(self._subscriber.subscriptions)

    @property
    def subscribed(self) -> int:
        """How many (channel, symbol) pairs there are."""
        return sum(len(subscription.listings) for subscription in self._subscriber.subscriptions.values())

    @property
    def told_at(self) -> float:
        """Monotonic time (s) at which it was sent data last."""
        return max((s.told_at for s in self._subscriber.subscriptions.values()), default=-math.inf)

    def forget(self) -> None:
        """End every subscription, for good."""
        self._broadcaster.remove(self._subscriber)
        self._subscriber.detach()
        self._subscriber.outbox.on_writable.remove(self._writable)

    # Requests

    def subscribe(self, request: Request, time_in: str, params: SubscribeParams) -> None:
        """Subscribe to the symbols of a request, each acknowledged by itself, and then begin to tell."""
        wish = self._understand(params)
        self._check_room(wish.key)
        outcomes = self._outcomes(wish)
        added = [listing for listing in outcomes.values() if isinstance(listing, int)]
        subscription = self._join(wish, added) if added else None
        resume = None if params.resume is msgspec.UNSET or not self._native else params.resume
        marks: Marks = {}
        for symbol, outcome in outcomes.items():
            if isinstance(outcome, RequestError):
                self._client.refuse(request, time_in, outcome)
                continue
            assert subscription is not None
            after = _resume_of(resume, symbol)
            standing = self._broadcaster.standing(wish.key, outcome, snapshot=wish.snapshot, resume=after)
            marks[outcome] = standing.mark
            result = {"channel": wish.key.channel, "symbol": symbol, **wish.parameters, **self._market.listings.label}
            ext = _ext(subscription, self._market.listings.first + outcome, standing) if self._native else None
            self._client.accept(request, time_in, result, ext)
        if subscription is not None:
            self._client.flush()
            self._broadcaster.begin(subscription, marks)

    def _check_room(self, key: TopicKey) -> None:
        """Raise RequestError if one more topic would be too many."""
        subscriptions = self._subscriber.subscriptions.values()
        if len(subscriptions) < MAX_TOPICS or any(subscription.key == key for subscription in subscriptions):
            return
        if len({subscription.key for subscription in subscriptions}) >= MAX_TOPICS:
            text = f"a connection may have {MAX_TOPICS} different kinds of subscriptions (interval, mode, depth, …)"
            raise RequestError(text, Code.TOO_MANY_SUBSCRIPTIONS)

    def _understand(self, params: SubscribeParams) -> Wish:
        terms = self._terms
        return understand(params, terms.ticker_interval_ms, native=terms.native, deflated=terms.deflated)

    def _join(self, wish: Wish, added: list[int]) -> Subscription:
        most = max(ROOMY, 8 * len(added))
        roomy = (s.id for s in self._having(wish.key) if len(s.listings) < most)
        into = None if self._native else next(roomy, None)
        return self._broadcaster.join(self._subscriber, wish.key, added, on_slow=wish.on_slow, into=into)

    def _outcomes(self, wish: Wish) -> dict[str, int | RequestError]:
        """Return by symbol the listing that is to be subscribed to, or why it cannot be."""
        room = self._terms.limit - self._taken()
        taken = {listing for subscription in self._having(wish.key) for listing in subscription.listings}
        outcomes: dict[str, int | RequestError] = {}
        for symbol in self._symbols(wish.symbols):
            try:
                listing = self._market.listings.id_of(symbol)
                if listing in taken:
                    raise RequestError("Already subscribed", Code.ALREADY_SUBSCRIBED, symbol=symbol)
                if not room:
                    text = f"a connection may have {self._terms.limit} subscriptions"
                    raise RequestError(text, Code.TOO_MANY_SUBSCRIPTIONS, symbol=symbol)
            except RequestError as error:
                outcomes[symbol] = error
            else:
                outcomes[symbol] = listing
                room -= 1
        return outcomes

    def _symbols(self, symbols: list[str]) -> list[str]:
        """Return the symbols meant: ``*`` is every instrument under its own name."""
        if symbols == ["*"]:
            return [instrument.symbol for instrument in self._market.listings.instruments]
        return symbols

    def _having(self, key: TopicKey) -> Iterator[Subscription]:
        """Yield the subscriptions of a channel and variant, whatever their interval or mode."""
        for subscription in self._subscriber.subscriptions.values():
            if (subscription.key.channel, subscription.key.variant) == (key.channel, key.variant):
                yield subscription

    def unsubscribe(self, request: Request, time_in: str, params: SubscribeParams) -> None:
        """Unsubscribe from the symbols of a request, each acknowledged by itself."""
        wish = self._understand(params)
        parameters = {
            name: value for name, value in wish.parameters.items() if name in ("event_trigger", "depth", "interval")
        }
        removed: dict[Subscription, list[int]] = {}
        for symbol, subscription, listing in self._found(request, time_in, wish):
            removed.setdefault(subscription, []).append(listing)
            result = {"channel": wish.key.channel, "symbol": symbol, **parameters, **self._market.listings.label}
            self._client.accept(request, time_in, result)
        for subscription, listings in removed.items():
            self._broadcaster.unsubscribe(subscription, listings)

    def resync(self, request: Request, time_in: str, params: SubscribeParams) -> None:
        """Send a fresh snapshot of each symbol of a request."""
        wish = self._understand(params)
        meant: dict[Subscription, list[int]] = {}
        for symbol, subscription, listing in self._found(request, time_in, wish):
            meant.setdefault(subscription, []).append(listing)
            result = {"channel": wish.key.channel, "symbol": symbol, **self._market.listings.label}
            self._client.accept(request, time_in, result, {"sub_id": subscription.id})
        self._client.flush()
        for subscription, listings in meant.items():
            self._broadcaster.resync(subscription, listings)

    def _found(self, request: Request, time_in: str, wish: Wish) -> Iterator[tuple[str, Subscription, int]]:
        """Yield symbol, subscription and listing of what is subscribed to; refuse the other symbols."""
        having = {listing: subscription for subscription in self._having(wish.key) for listing in subscription.listings}
        for symbol in self._symbols(wish.symbols):
            try:
                listing = self._market.listings.id_of(symbol)
                if listing not in having:
                    raise RequestError("Subscription Not Found", Code.NOT_SUBSCRIBED, symbol=symbol)
            except RequestError as error:
                self._client.refuse(request, time_in, error)
            else:
                yield symbol, having[listing], listing

    def has(self, sub_id: int) -> bool:
        """Whether a subscription is one of these."""
        return sub_id in self._subscriber.subscriptions

    def update(self, request: Request, time_in: str, sub_id: int, interval_ms: int) -> None:
        """Change the interval of a subscription that it has, from the next flush on.

        Raises:
            RequestError: The interval is out of range, or the connection has too many different wishes.
        """
        subscription = self._subscriber.subscriptions[sub_id]
        wanted = checked_interval(interval_ms)
        granted = 0 if subscription.key.mode == "raw" else wanted
        key = msgspec.structs.replace(subscription.key, interval_ms=granted)
        self._check_room(key)
        self._client.accept(request, time_in, {"sub_id": subscription.id, "interval_ms": granted})
        self._client.flush()
        self._broadcaster.retune(subscription, key)

    def described(self) -> list[dict[str, Any]]:
        """Return what is subscribed to, and what became of its events."""
        return [self._described(subscription) for subscription in self._subscriber.subscriptions.values()]

    def statistics(self) -> list[SubscriptionStatistics]:
        """Return the counts of every subscription so far."""
        return [_statistics_of(subscription) for subscription in self._subscriber.subscriptions.values()]

    def _described(self, subscription: Subscription) -> dict[str, Any]:
        key, totals = subscription.key, subscription.totals()
        names = self._market.listings.names
        variant = {"ticker": "event_trigger", "book": "depth", "ohlc": "interval"}.get(key.channel)
        row: dict[str, Any] = {"sub_id": subscription.id, "channel": key.channel}
        if variant is not None:
            row[variant] = key.variant
        return row | {
            "symbol": [names[listing] for listing in sorted(subscription.listings)],
            "interval_ms": key.interval_ms,
            "mode": key.mode,
            "on_slow": subscription.on_slow,
            "numbers": "string" if key.quoted else "number",
            "encoding": "struct" if key.packed else "json",
            "published": totals.published,
            "delivered": totals.delivered,
            "conflated": totals.conflated,
            "dropped": totals.dropped,
            **self._market.listings.label,
        }

    # Unasked

    def standings(self) -> list[dict[str, Any]]:
        """Return where every subscription stands, for a heartbeat."""
        now = trio.current_time()
        return [
            {
                "sub_id": subscription.id,
                "last": self._broadcaster.position(subscription),
                "state": self._state(now, subscription),
                "age_ms": round(1000 * (now - subscription.told_at)),
            }
            for subscription in self._subscriber.subscriptions.values()
        ]

    def _state(self, now: float, subscription: Subscription) -> str:
        history, playback = self._market.history, self._market.playback
        if history.ended:
            return "ended"
        if history.gap:
            return "gap"
        if not history.ts or (playback is not None and playback.state == "paused"):
            return "paused"
        if self._market.away() or now - self._broadcaster.published_at > IDLE_S:
            return "stale"
        live = now - subscription.told_at < IDLE_S or self._broadcaster.pending(subscription)
        return "live" if live else "idle"

    def _caught_up(self, subscription: Subscription, lag: Lag) -> None:
        """Tell a native client that it was too slow, and what that cost it."""
        now = trio.current_time()
        if not self._native or now - self._noticed_at.get(subscription.id, -NOTICE_INTERVAL_S) < NOTICE_INTERVAL_S:
            return
        self._noticed_at[subscription.id] = now
        row = wire.slow_consumer(subscription.id, round(1000 * (now - lag.since)), lag.conflated, lag.dropped)
        self._client.send(wire.Message(channel="notice", type="update", data=[row]))


def _statistics_of(subscription: Subscription) -> SubscriptionStatistics:
    key, totals, since = subscription.key, subscription.totals(), subscription.behind_since
    return SubscriptionStatistics(
        sub_id=subscription.id,
        channel=key.channel,
        symbols=len(subscription.listings),
        interval_ms=key.interval_ms,
        mode=key.mode,
        published=totals.published,
        delivered=totals.delivered,
        conflated=totals.conflated,
        dropped=totals.dropped,
        lag_ms=0 if math.isnan(since) else round(1000 * (trio.current_time() - since)),
    )


def _ext(subscription: Subscription, number: int, standing: Standing) -> dict[str, Any]:
    """Return what a native acknowledgement says beside the result."""
    ext: dict[str, Any] = {"sub_id": subscription.id, "epoch": standing.epoch}
    ext |= {"head": standing.head, "oldest": standing.oldest}
    if standing.recovered is not None:
        ext |= {"recovered": standing.recovered, "behind": standing.behind}
    if subscription.key.packed:
        ext |= {"listing": number, "dtype": binary.described(subscription.key.channel)}
    return ext


def _resume_of(resume: Resume | None, symbol: str) -> tuple[str, int] | None:
    if resume is None:
        return None
    after = resume.after.get(symbol) if isinstance(resume.after, dict) else resume.after
    return None if after is None else (resume.epoch, after)
