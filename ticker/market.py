"""What a session needs of the market that it serves, in one place.

A market is built once by the composition root and shared by every session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import trio

from feeds.playback import Playback
from feeds.records import Batch, Marker
from ticker.broadcast import Broadcaster
from ticker.bulletin import Bulletin
from ticker.history import History
from ticker.listings import Listings
from ticker.orders.gateway import Gateway


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """A market as far as it is published: what one can subscribe to.

    Attributes:
        name: Of the feed, for people.
        mode: ``sim``, ``replay`` or ``relay``.
        history: Its last state.
        listings: The names in it.
        broadcaster: Tells subscribers what happens.
        heard: Set once somebody has subscribed; a tape that waits begins then.
        playback: Controls it, if it is a tape.
        bulletin: Tells where it is, if it is a tape.
        away: Whether its source is not connected at present, so that what is served may be old.
    """

    name: str
    mode: str
    history: History
    listings: Listings
    broadcaster: Broadcaster
    heard: trio.Event
    playback: Playback | None = None
    bulletin: Bulletin | None = None
    away: Callable[[], bool] = lambda: False


class Market(Publication, frozen=True, kw_only=True):
    """A market that is being served and takes orders.

    Attributes:
        gateway: Takes orders.
        origin: What it takes to have the same market again: a source, or a model and its seed.
    """

    gateway: Gateway
    origin: dict[str, Any] = {}

    def happened(self, batch: Batch) -> None:
        """Take in what has happened; at one instant the tape comes first, then resting orders, then new requests."""
        self.broadcaster.publish(batch)
        self.gateway.market_moved(batch)
        if self.bulletin is not None:
            self.bulletin.pass_over(batch)

    async def marked(self, marker: Marker) -> None:
        """Take in a marker of the feed, once what came before it has been told."""
        await self.broadcaster.mark(marker)
        self.gateway.mark(marker)
        if self.bulletin is not None:
            self.bulletin.mark(marker)
