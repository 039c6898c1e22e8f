"""What the service is doing, as JSON: ``/api/stats`` and ``/healthz``.

For people, scripts and the status page; the same figures for Prometheus are :mod:`ticker.metrics`.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

import msgspec

from feeds.feed import Supervisor
from ticker.head import BadHead
from ticker.market import Market
from ticker.replays import Replays
from ticker.server import Server
from ticker.timing import Timing
from ticker.web import Page

#: Connections on one page of ``/api/stats``; a page of all would stop the market for a moment.
CONNECTIONS_PER_PAGE: Final = 100
#: Of a connection_id; Python refuses to read a number of thousands.
MAX_DIGITS: Final = 20
#: Symbols that ``/healthz`` names.
MAX_SYMBOLS: Final = 1000


class Stats:
    """Answers for the service.

    Args:
        market: What is served.
        server: Who is served.
        supervisor: Of the feed.
        replays: What clients have had replayed.
        loop_lag: How late the event loop ran what was due.
    """

    def __init__(
        self, market: Market, server: Server, supervisor: Supervisor, replays: Replays, loop_lag: Timing
    ) -> None:
        self._market = market
        self._server = server
        self._supervisor = supervisor
        self._replays = replays
        self._loop_lag = loop_lag

    def health(self, query: dict[str, str]) -> Page:
        """Return ``/healthz``."""
        details = {"status": "ok", **self._summary(), "symbols": list(self._market.listings.names[:MAX_SYMBOLS])}
        details["subscriptions"] = self._market.broadcaster.statistics().subscriptions
        return _page(details)

    def stats(self, query: dict[str, str]) -> Page:
        """Return ``/api/stats``; ``?after=ID`` has the connections after that one.

        Raises:
            BadHead: ``after`` is no number.
        """
        broadcaster = self._market.broadcaster
        told, served = broadcaster.statistics(), self._server.statistics()
        sessions = self._after(query.get("after", "0"))
        page = [session.statistics() for session in islice(sessions, CONNECTIONS_PER_PAGE)]
        return _page(
            {
                **self._summary(),
                "epoch": self._market.history.epoch,
                "events": told.events,
                "sweeps": told.sweeps,
                "fan_out": told.fan_out,
                "sessions": served.sessions,
                "backlog_bytes": served.backlog_bytes,
                "flush_lateness_ms": _recent(broadcaster.lateness),
                "sweep_duration_ms": _recent(broadcaster.duration),
                "loop_lag_ms": _recent(self._loop_lag),
                "channels": told.channels,
                "orders": self._market.gateway.statistics(),
                "replays": self._replays.statistics(),
                "connections": page,
                "next": f"/api/stats?after={page[-1].connection_id}" if next(sessions, None) else None,
            }
        )

    def _summary(self) -> dict[str, Any]:
        history = self._market.history
        return {
            "market": self._market.name,
            "mode": self._market.mode,
            "feed": "ended" if history.ended else "running" if history.ts else "waiting",
            "feed_restarts": self._supervisor.restarts,
            "market_time_ns": history.ts,
        }

    def _after(self, text: str) -> Any:  # noqa: ANN401 - an iterator of sessions
        if not text.isdecimal() or len(text) > MAX_DIGITS:
            raise BadHead(400, "after is the connection_id of the last connection that was listed")
        first = int(text)
        return (session for session in self._server.sessions.values() if session.id > first)


def _recent(timing: Timing) -> dict[str, float]:
    """Return quantiles of the most recent durations, in ms."""
    return {f"p{percent}": round(1000 * timing.recent(percent / 100), 3) for percent in (50, 99)}


def _page(details: dict[str, Any]) -> Page:
    return 200, "application/json", msgspec.json.encode(details) + b"\n"
