"""The Feed protocol, and the supervisor that keeps one running.

A feed is anything with instruments and a ``run`` that writes batches to a channel: a simulator, a replayed
recording, another server. The channel is bounded, so a feed that runs ahead waits; that is the only backpressure
it knows.
"""

from __future__ import annotations

import logging
import random
from typing import Protocol

import trio

from feeds import clock
from feeds.errors import FeedError
from feeds.instruments import Instruments
from feeds.records import Event, Marker

logger = logging.getLogger(__name__)


class Feed(Protocol):
    """A source of market events.

    Attributes:
        name: What ``status`` and the logs call it.
        mode: ``sim``, ``replay`` or ``relay``: nothing simulated or replayed is ever labelled live.
        instruments: Fixed before the feed runs.
    """

    name: str
    mode: str
    instruments: Instruments

    async def run(self, out: trio.abc.SendChannel[Event]) -> None:
        """Write events until the source ends.

        The first event is ``Marker(kind="epoch")``. Every book begins with a snapshot. ``ts_recv`` never decreases
        inside an epoch. Called again after a failure, it begins again with a new epoch.

        Raises:
            FeedError: The user must act; running again would not help.
        """
        ...


class Supervisor:
    """Runs a feed and runs it again when it breaks, with a gap marker where events were lost.

    Attributes:
        restarts: How often the feed has been started again.
    """

    #: Seconds before the first restart; doubled after each failure up to the limit, with jitter so that several
    #: feeds that broke together do not come back together.
    FIRST_DELAY = 0.5
    MAX_DELAY = 30.0
    #: A run longer than this counts as healthy: the next failure starts from FIRST_DELAY again.
    HEALTHY_AFTER = 60.0

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.restarts = 0

    async def run(self, out: trio.abc.SendChannel[Event]) -> None:
        """Run the feed until it ends by itself; ``out`` stays open.

        Raises:
            FeedError: From the feed, as it came.
        """
        delay = self.FIRST_DELAY
        while True:
            started = trio.current_time()
            try:
                await self.feed.run(out)
                return
            except FeedError:
                raise
            except Exception:
                self.restarts += 1
                logger.exception("feed %s broke; restart %d", self.feed.name, self.restarts)
            await out.send(Marker(kind="gap", ts=clock.wall_ns(), reason="the feed broke"))
            if trio.current_time() - started > self.HEALTHY_AFTER:
                delay = self.FIRST_DELAY
            await trio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, self.MAX_DELAY)
