"""What a client may do with a replay; the same over the socket and over HTTP.

It turns the words of a request into calls of a :class:`~feeds.playback.Playback`. It must not know sessions,
connections or pages.
"""

from __future__ import annotations

import math
from decimal import Decimal

from msgspec import UNSET

from feeds.errors import OptionError
from feeds.playback import MAX_SPEED, MIN_SPEED, Playback, checked_speed
from ticker.codec import rfc3339_exact
from ticker.errors import Code, RequestError
from ticker.market import Publication
from ticker.wire import ReplayAction, instant_ns


def speed_of(number: Decimal) -> float:
    """Return the speed that a client means; its 0 is as fast as possible, here infinity.

    Raises:
        RequestError: It is out of range.
    """
    try:
        return math.inf if number == 0 else checked_speed(float(number))
    except OptionError:
        text = f"speed must be from {MIN_SPEED:g} to {MAX_SPEED:,.0f}, or 0 for as fast as possible"
        raise RequestError(text, Code.INVALID_FIELD, field="speed") from None


def perform(market: Publication, wish: ReplayAction) -> None:
    """Do with a tape what a client asks for; it takes effect before the next batch.

    A tape that waits for its first subscriber begins when it is resumed or stepped, and ends when it is stopped.

    Raises:
        RequestError: There is no tape that could be controlled, or what the action needs is missing or out of range.
    """
    playback = market.playback
    if playback is None or playback.stopped:
        text = "this market is no replay" if playback is None else "the replay has been stopped"
        raise RequestError(text, Code.NOT_A_REPLAY)
    if wish.action == "pause":
        playback.pause()
    elif wish.action == "resume":
        playback.resume()
        market.heard.set()
    elif wish.action == "stop":
        playback.stop()
        market.heard.set()
    elif wish.action == "seek":
        if wish.to is UNSET:
            raise RequestError("seek needs to", Code.INVALID_FIELD, field="to")
        playback.seek(instant_ns(wish.to, "to", playback.start_ns))
    elif wish.action == "speed":
        if wish.speed is UNSET:
            raise RequestError("speed needs speed", Code.INVALID_FIELD, field="speed")
        playback.set_speed(speed_of(wish.speed))
    else:
        _step(playback, wish)
        market.heard.set()


def _step(playback: Playback, wish: ReplayAction) -> None:
    if wish.to is UNSET:
        playback.step(1 if wish.events is UNSET else wish.events)
    elif wish.events is UNSET:
        playback.step_until(instant_ns(wish.to, "to", playback.start_ns))
    else:
        raise RequestError("step takes events or to", Code.INVALID_FIELD, field="events")


def span(playback: Playback) -> dict[str, str]:
    """Return the part of the tape that is played, as JSON; "to" is the first instant after it."""
    return {"from": rfc3339_exact(playback.start_ns), "to": rfc3339_exact(playback.end_ns + 1)}
