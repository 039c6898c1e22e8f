"""What one client looks at: the server's own market, and the replays that it has joined.

Without ``session`` a request is about the server's own market; with it, about the replay of that name. The client
controls the replays that it has joined and no others: a name that it has not joined answers as unknown. Who joins a
replay reads its bulletin; the bulletin of the server's own tape is the channel ``replay``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from msgspec import UNSET

from feeds import clock
from feeds.clock import parse_gap
from feeds.errors import OptionError
from ticker import __version__, wire
from ticker.bulletin import Bulletin, shown_speed
from ticker.codec import rfc3339
from ticker.control import span, speed_of
from ticker.errors import Code, RequestError
from ticker.market import Publication
from ticker.marketdata import Client, MarketData, SubscriptionStatistics, Terms
from ticker.outbox import Outbox
from ticker.replays import Replay, Replays, Wish
from ticker.wire import ReplayControlParams, ReplayStartParams, Request, SubscribeParams, UpdateParams

#: It stands unescaped in every message of the session.
SESSION_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Desk:
    """The markets of one client.

    Args:
        client: The session.
        outbox: Where its frames go.
        market: The server's own.
        terms: What holds for the session.
        replays: What else it may look at; None: nothing.
    """

    def __init__(
        self, client: Client, outbox: Outbox, market: Publication, terms: Terms, replays: Replays | None
    ) -> None:
        self._client = client
        self._outbox = outbox
        self._terms = terms
        self._replays = replays
        self._own = MarketData(client, outbox, market, terms, self._subscribed)
        self._joined: dict[str, tuple[Replay, MarketData]] = {}
        self._asked = 0  # replays that it waits for
        self._gone = False

    def methods(self) -> dict[str, Callable[[Request, str], None]]:
        """Return what a client of the native profile can ask for here, by method."""
        return {
            "update_subscription": self._update,
            "list_subscriptions": self._list,
            "replay_sources": self._sources,
            "replay_start": self._start,
            "replay_control": self._control,
        }

    def _everywhere(self) -> Iterable[MarketData]:
        return (self._own, *(data for _, data in self._joined.values()))

    def _subscribed(self) -> int:
        return sum(data.subscribed for data in self._everywhere())

    @property
    def active(self) -> bool:
        """Whether there is a subscription."""
        return self._watches(self._own) or any(data.active for data in self._everywhere())

    @property
    def told_at(self) -> float:
        """Monotonic time (s) at which it was sent data last."""
        if not self._joined:  # nearly always, and asked twice a second for every connection
            return self._own.told_at
        return max(data.told_at for data in self._everywhere())

    def forget(self) -> None:
        """End every subscription and leave every replay, for good."""
        self._gone = True
        self._own.forget()
        if (bulletin := self._own.market.bulletin) is not None:
            bulletin.readers.pop(self, None)
        for name in list(self._joined):
            self._leave(name)

    def statistics(self) -> list[SubscriptionStatistics]:
        """Return the counts of every subscription so far."""
        return [row for data in self._everywhere() for row in data.statistics()]

    def heartbeat(self) -> wire.NativeHeartbeat:
        """Return where every subscription stands."""
        rows = [row for data in self._everywhere() for row in data.standings()]
        return wire.NativeHeartbeat(ts=rfc3339(clock.wall_ns()), data=rows)

    # Subscriptions

    def at(self, params: SubscribeParams) -> MarketData:
        """Return the side of the market that a request is about.

        Raises:
            RequestError: It names a session that the client has not joined.
        """
        if params.session is UNSET or not self._terms.native:
            return self._own
        return self._seat(params.session)[1]

    def _seat(self, session: str) -> tuple[Replay, MarketData]:
        seat = self._joined.get(session)
        if seat is None:
            text = f"Unknown session {session[: wire.MAX_ECHO]}; replay_start joins one"
            raise RequestError(text, Code.UNKNOWN_SESSION, field="session")
        return seat

    def _update(self, request: Request, time_in: str) -> None:
        params = wire.params_of(request, UpdateParams)
        for data in self._everywhere():
            if data.has(params.sub_id):
                data.update(request, time_in, params.sub_id, params.interval_ms)
                return
        raise RequestError("Subscription Not Found", Code.NOT_SUBSCRIBED, field="sub_id")

    def _list(self, request: Request, time_in: str) -> None:
        rows = [row for data in self._everywhere() for row in data.described()]
        self._client.accept(request, time_in, {"subscriptions": rows})

    # Bulletins

    def _watches(self, data: MarketData) -> bool:
        bulletin = data.market.bulletin
        return bulletin is not None and self in bulletin.readers

    def watch(self, request: Request, time_in: str, params: SubscribeParams) -> None:
        """Subscribe to where a tape is, beginning with where it is now; one that waits goes on waiting."""
        data = self.at(params)
        bulletin = _bulletin_of(data)
        if self._watches(data):
            raise RequestError("Already subscribed", Code.ALREADY_SUBSCRIBED)
        bulletin.readers[self] = None
        self._client.accept(request, time_in, {"channel": "replay", **data.market.listings.label})
        self.told(bulletin.row())

    def unwatch(self, request: Request, time_in: str, params: SubscribeParams) -> None:
        """Unsubscribe from where a tape is; of a replay it stays a member."""
        data = self.at(params)
        bulletin = _bulletin_of(data)
        if not self._watches(data):
            raise RequestError("Subscription Not Found", Code.NOT_SUBSCRIBED)
        del bulletin.readers[self]
        self._client.accept(request, time_in, {"channel": "replay", **data.market.listings.label})

    # Replays

    def _sources(self, request: Request, time_in: str) -> None:
        def answer(names: list[str]) -> None:
            if not self._gone:
                self._client.accept(request, time_in, {"sources": names})

        self._offered().ask_sources(answer, partial(self._refuse, request, time_in))

    def _refuse(self, request: Request, time_in: str, error: RequestError) -> None:
        if not self._gone:
            self._client.refuse(request, time_in, error)

    def _offered(self) -> Replays:
        if self._replays is None:
            raise RequestError("this server replays nothing on request", Code.NOT_A_REPLAY)
        return self._replays

    def _start(self, request: Request, time_in: str) -> None:
        """Begin or join a replay; the reply comes once the recording is open."""
        replays = self._offered()
        wish = understand(wire.params_of(request, ReplayStartParams))
        limit = replays.options.max_sessions_per_connection
        if len(self._joined) + self._asked >= limit and wish.session not in self._joined:
            raise RequestError(f"a connection may have {limit} replays", Code.TOO_MANY_SESSIONS)

        def welcome(replay: Replay) -> None:
            self._asked -= 1
            if not self._gone:
                self._join(replay)
                self._client.accept(request, time_in, *acknowledged(replay))
                self.told(replay.bulletin.row())

        def refuse(error: RequestError) -> None:
            self._asked -= 1
            self._refuse(request, time_in, error)

        replays.ask(wish, welcome, refuse)
        self._asked += 1

    def _join(self, replay: Replay) -> None:
        if replay.wish.session not in self._joined:
            data = MarketData(self._client, self._outbox, replay.market, self._terms, self._subscribed)
            self._joined[replay.wish.session] = replay, data
            replay.join(self)

    def _control(self, request: Request, time_in: str) -> None:
        params = wire.params_of(request, ReplayControlParams)
        replay, _ = self._seat(params.session)
        if params.action == "leave":
            self._leave(params.session)
        else:
            replay.perform(params)
        given = {name: getattr(params, name) for name in ("to", "speed", "events")}
        done = {"session": params.session, "action": params.action}
        self._client.accept(request, time_in, done | {k: v for k, v in given.items() if v is not UNSET})
        self._client.flush()
        replay.bulletin.report()

    def _leave(self, session: str) -> None:
        replay, data = self._joined.pop(session)
        data.forget()
        replay.leave(self)

    # What a replay tells

    def told(self, row: dict[str, Any]) -> None:
        """See :class:`ticker.bulletin.Reader`."""
        self._client.send(wire.Message(channel="replay", type="update", data=[row]))

    def dismissed(self, replay: Replay) -> None:
        """See :class:`ticker.replays.Member`."""
        self._leave(replay.wish.session)


def _bulletin_of(data: MarketData) -> Bulletin:
    bulletin = data.market.bulletin
    if bulletin is None:
        raise RequestError("this market is no replay", Code.NOT_A_REPLAY)
    return bulletin


def understand(params: ReplayStartParams) -> Wish:
    """Return what ``replay_start`` parameters ask for.

    Raises:
        RequestError: One of them is out of range.
    """
    session = "" if params.session is UNSET else params.session
    if params.session is not UNSET and not SESSION_NAME.fullmatch(session):
        raise RequestError("session is 1 to 64 of A-Z a-z 0-9 . _ -", Code.INVALID_FIELD, field="session")
    try:
        parse_gap(params.gap)
    except OptionError as error:
        raise RequestError(str(error)[: wire.MAX_ECHO], Code.INVALID_FIELD, field="gap") from None
    return Wish(
        session=session,
        source=params.source,
        symbols=tuple(params.symbols),
        start=None if params.start is UNSET else params.start,
        end=None if params.end is UNSET else params.end,
        speed=speed_of(params.speed),
        start_paused=params.start_paused,
        loop=params.loop,
        gap=params.gap,
    )


def acknowledged(replay: Replay) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the result and the ``ext`` of the reply to who joins a replay; the result joins it again."""
    wish, playback = replay.wish, replay.playback
    symbols = [instrument.symbol for instrument in replay.market.listings.instruments]
    result = {
        "source": wish.source,
        "session": wish.session,
        "symbol": symbols,
        **span(playback),
        "speed": shown_speed(playback.speed),
        "start_paused": wish.start_paused,
        "loop": wish.loop,
        "gap": wish.gap,
    }
    return result, {"model": "recording", "version": __version__}
