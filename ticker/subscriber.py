"""Subscribers, their subscriptions, and the groups in which those in step are sent the same bytes.

State and counts only: who is told what, and when, is :mod:`ticker.broadcast`'s business.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import msgspec
import trio

from ticker.outbox import Outbox
from ticker.topics.topic import EMPTY, Flush, Marks, OnSlow, Piece, Topic, TopicKey, joined


class Totals(msgspec.Struct):
    """What became of the events of a subscription: ``published = delivered + conflated + dropped``.

    Attributes:
        published: Source events that the subscriber has been taken past.
        delivered: Those that it was sent as rows.
        dropped: Those that are lost for it.
    """

    published: int = 0
    delivered: int = 0
    dropped: int = 0

    @property
    def conflated(self) -> int:
        """Those that a later state stood for."""
        return self.published - self.delivered - self.dropped

    def add(self, piece: Piece) -> None:
        """Count what a piece said."""
        self.published += piece.events
        self.delivered += piece.rows
        self.dropped += piece.dropped


class Subscriber:
    """One connection as the broadcaster sees it.

    Attributes:
        outbox: Where its frames go.
        cut_off: Called with a reason when it must lose events and may not.
        caught_up: Called with a subscription that had fallen behind and is in step again.
        subscriptions: By their id.
    """

    __slots__ = ("caught_up", "cut_off", "numbers", "outbox", "subscriptions")

    def __init__(
        self, outbox: Outbox, cut_off: Callable[[str], None], caught_up: Callable[[Subscription, Lag], None]
    ) -> None:
        self.outbox = outbox
        self.cut_off = cut_off
        self.caught_up = caught_up
        self.numbers = itertools.count(1)
        self.subscriptions: dict[int, Subscription] = {}


class Lag(msgspec.Struct, frozen=True):
    """How far a subscription had fallen behind.

    Attributes:
        since: Monotonic time (s) at which its socket took nothing.
        conflated: Events that a later state stood for when it caught up.
        dropped: Events that were lost for it.
    """

    since: float
    conflated: int
    dropped: int


class Subscription:
    """What one subscriber wants of one topic.

    Attributes:
        id: Unique within its subscriber.
        key: The topic.
        on_slow: What becomes of events that it does not take in time.
        listings: All of them.
        group: In step: the group that it is sent with. None out of step.
        marks: Out of step: where it stands, by listing.
        swept: Number of the last sweep that it needs nothing of any more.
        behind_since: Monotonic time (s) at which its socket took nothing; NaN while it keeps up.
    """

    __slots__ = (
        "_joined", "_told_at", "_totals", "behind_since", "group", "id", "key", "listings", "marks", "offer", "on_slow",
        "subscriber", "swept",
    )  # fmt: skip

    def __init__(self, subscriber: Subscriber, number: int, key: TopicKey, on_slow: OnSlow) -> None:
        self.subscriber = subscriber
        self.id = number
        self.key = key
        self.on_slow: OnSlow = on_slow
        self.offer = subscriber.outbox.offer
        self.listings: frozenset[int] = frozenset()
        self.group: Group | None = None
        self.marks: Marks = {}
        self.swept = 0
        self.behind_since = math.nan
        self._told_at = trio.current_time()
        self._totals = Totals()
        self._joined = Totals()  # its group's totals when it joined

    def totals(self) -> Totals:
        """Return what became of its events so far."""
        own = self._totals
        if self.group is None:
            return Totals(own.published, own.delivered, own.dropped)
        group, joined = self.group.totals, self._joined
        return Totals(
            own.published + group.published - joined.published,
            own.delivered + group.delivered - joined.delivered,
            own.dropped + group.dropped - joined.dropped,
        )

    @property
    def told_at(self) -> float:
        """Monotonic time (s) at which it was told something last."""
        return self._told_at if self.group is None else max(self._told_at, self.group.told_at)

    def count(self, piece: Piece) -> None:
        """Count what it was told apart from its group."""
        self._totals.add(piece)
        if piece.data:
            self._told_at = trio.current_time()

    def enter(self, group: Group) -> None:
        """Join a group: from now on what the group is told counts."""
        self.group = group
        self._joined = msgspec.structs.replace(group.totals)
        group.members[self] = None

    def leave(self, untold: Piece | None) -> None:
        """Leave the group; ``untold`` is what the group was counted as told and this one was not."""
        self._told_at = self.told_at
        self._totals = self.totals()
        if untold is not None:
            self._totals.add(Piece(b"", -untold.events, -untold.rows, -untold.dropped))
        assert self.group is not None
        del self.group.members[self]
        self.group = None


class Group:
    """Subscriptions of one topic with the same listings, all in step.

    Attributes:
        listings: What they want.
        members: They, in the order in which they joined.
        totals: What became of the events of these listings since the group exists.
        flushed: What the last sweep told it.
        told_at: Monotonic time (s) at which it was told something last.
    """

    __slots__ = ("flushed", "listings", "members", "told_at", "totals")

    def __init__(self, listings: frozenset[int]) -> None:
        self.listings = listings
        self.members: dict[Subscription, None] = {}
        self.totals = Totals()
        self.flushed = EMPTY
        self.told_at = -math.inf

    def join(self, pieces: dict[int, Piece]) -> Piece:
        """Return what concerns this group, as one piece."""
        if len(self.listings) < len(pieces):
            return joined([pieces[listing] for listing in sorted(self.listings & pieces.keys())])
        return joined([piece for listing, piece in pieces.items() if listing in self.listings])


class Channel:
    """A topic with its groups and its timing.

    Attributes:
        groups: Subscriptions in step, by their listings.
        waiting: Subscriptions that the next flush must not reach, and that are brought in step after it: they know
            already what it tells, or part of it.
        subscriptions: How many there are, in step or not.
        sweep: Number of the last sweep.
        flush: What is being sent by a sweep at the moment.
        due: Monotonic time (s) from which it may be flushed.
        dirty_since: Monotonic time (s) of the first event that waits to be flushed.
    """

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.groups: dict[frozenset[int], Group] = {}
        self.waiting: dict[Subscription, None] = {}
        self.subscriptions = 0
        self.sweep = 0
        self.flush: Flush | None = None
        self.interval = topic.key.interval_ms / 1000
        self.due = -math.inf
        self.dirty_since = math.inf

    def flushed(self, now: float) -> None:
        """Reckon the next flush from when this one was due, so that lateness does not add up."""
        started = self.due if now - self.due < self.interval else now
        self.due = started + self.interval
