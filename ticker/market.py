"""What a session needs of the market that it serves, in one place.

A market is built once by the composition root and shared by every session.
"""

from __future__ import annotations

import msgspec

from feeds.records import Batch, Marker
from ticker.broadcast import Broadcaster
from ticker.history import History
from ticker.listings import Listings
from ticker.orders.gateway import Gateway


class Market(msgspec.Struct, frozen=True):
    """A market that is being served.

    Attributes:
        name: Of the feed, for people.
        mode: ``sim``, ``replay`` or ``relay``.
        history: Its last state.
        listings: The names in it.
        broadcaster: Tells subscribers what happens.
        gateway: Takes orders.
    """

    name: str
    mode: str
    history: History
    listings: Listings
    broadcaster: Broadcaster
    gateway: Gateway

    def happened(self, batch: Batch) -> None:
        """Take in what has happened; at one instant the tape comes first, then resting orders, then new requests."""
        self.broadcaster.publish(batch)
        self.gateway.market_moved(batch)

    async def marked(self, marker: Marker) -> None:
        """Take in a marker of the feed, once what came before it has been told."""
        await self.broadcaster.mark(marker)
        self.gateway.mark(marker)
