"""``/api/replay``: the server's own replay, looked at and controlled over HTTP.

For scripts, ``ticker watch`` and the status page. Requests are read as strictly as those over the socket, and refused
with the same codes. It knows pages and the market; it must not know sessions.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ticker.control import perform, span
from ticker.errors import Code, RequestError
from ticker.head import Head
from ticker.market import Publication
from ticker.web import Page
from ticker.wire import ReplayAction, encode, params_in

PATH: Final = "/api/replay"


class Remote:
    """Answers for the replay.

    Args:
        market: What the server serves.
    """

    def __init__(self, market: Publication) -> None:
        self._market = market

    def state(self, query: dict[str, str]) -> Page:
        """Return where the replay is."""
        return 200, "application/json", encode(self._state()) + b"\n"

    def control(self, head: Head, body: bytes) -> Page:
        """Do what a body asks for and return where the replay is then."""
        try:
            perform(self._market, params_in(body.decode(), PATH, ReplayAction))
            if self._market.bulletin is not None:
                self._market.bulletin.report()
        except UnicodeDecodeError:
            return _refusal(RequestError("the body is not UTF-8", Code.INVALID_JSON))
        except RequestError as error:
            return _refusal(error)
        return self.state({})

    def _state(self) -> dict[str, Any]:
        playback, bulletin = self._market.playback, self._market.bulletin
        if playback is None or bulletin is None:
            return {"source": None}
        figures = playback.statistics()
        rows = {"rows": figures.rows, "passes": figures.passes, "lateness_p99_ms": round(figures.lateness_p99_ms, 3)}
        return {"source": self._market.name, **bulletin.standing(), **span(playback), **rows}


def _refusal(error: RequestError) -> Page:
    details = {"error": error.text, "code": int(error.code), "name": error.code.name, "field": error.field}
    status = 409 if error.code is Code.NOT_A_REPLAY else 400
    return status, "application/json", msgspec.json.encode(details) + b"\n"
