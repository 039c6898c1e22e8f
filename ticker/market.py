"""What a session needs of the market that it serves, in one place.

A market is built once by the composition root and shared by every session.
"""

from __future__ import annotations

import msgspec

from ticker.broadcast import Broadcaster
from ticker.history import History
from ticker.listings import Listings
from ticker.orders.gateway import Gateway


class Market(msgspec.Struct, frozen=True):
    """A market that is being served.

    Attributes:
        name: Of the feed, for people.
        mode: ``sim`` or ``replay``.
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
