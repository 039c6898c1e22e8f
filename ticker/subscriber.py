"""Subscribers, their subscriptions, and the groups in which those in step are sent the same bytes.

State and counts only: who is told what, and when, is :mod:`ticker.broadcast`'s business.
"""

from __future__ import annotations

import array
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
import trio

from ticker.outbox import Outbox, Sink
from ticker.topics.topic import Counts, Flush, Marks, OnSlow, Piece, Topic, TopicKey


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
    def counts(self) -> Counts:
        """Published, delivered and dropped."""
        return self.published, self.delivered, self.dropped

    @property
    def conflated(self) -> int:
        """Those that a later state stood for."""
        return self.published - self.delivered - self.dropped

    def add(self, counts: Counts, sign: int = 1) -> None:
        """Count events, rows and dropped ones; with ``sign`` -1 they were not told after all."""
        events, rows, dropped = counts
        self.published += sign * events
        self.delivered += sign * rows
        self.dropped += sign * dropped


class Subscriber:
    """One connection as the broadcaster sees it.

    Attributes:
        outbox: Where its frames go.
        cut_off: Called with a reason when it must lose events and may not.
        caught_up: Called with a subscription that had fallen behind and is in step again.
        numbers: Gives ids; shared by the subscribers of a connection to several markets.
        subscriptions: By their id.
    """

    __slots__ = ("caught_up", "cut_off", "numbers", "outbox", "subscriptions")

    def __init__(
        self,
        outbox: Outbox,
        cut_off: Callable[[str], None],
        caught_up: Callable[[Subscription, Lag], None],
        numbers: Iterator[int] | None = None,
    ) -> None:
        self.outbox = outbox
        self.cut_off = cut_off
        self.caught_up = caught_up
        self.numbers = numbers or itertools.count(1)
        self.subscriptions: dict[int, Subscription] = {}
        outbox.on_turn.append(self._turn)

    def detach(self) -> None:
        """Leave the outbox to others."""
        self.outbox.on_turn.remove(self._turn)

    def _turn(self) -> None:
        for subscription in self.subscriptions.values():
            if subscription.group is not None:
                subscription.group.redirect(subscription)


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
        behind_since: Monotonic time (s) at which its socket took nothing; NaN while it keeps up.
    """

    __slots__ = (
        "_before", "_channel_totals", "_joined", "_told_at", "_totals", "behind_since", "group", "id", "key",
        "listings", "marks", "on_slow", "subscriber",
    )  # fmt: skip

    def __init__(
        self, subscriber: Subscriber, number: int, key: TopicKey, on_slow: OnSlow, channel_totals: Totals
    ) -> None:
        self.subscriber = subscriber
        self.id = number
        self.key = key
        self.on_slow: OnSlow = on_slow
        self.listings: frozenset[int] = frozenset()
        self.group: Group | None = None
        self.marks: Marks = {}
        self.behind_since = math.nan
        self._told_at = trio.current_time()
        self._totals = Totals()  # of what it was told outside its present group
        self._channel_totals = channel_totals  # the same of all subscriptions of the channel, ended ones included
        self._joined: Counts = (0, 0, 0)  # its group's counts when it joined
        self._before = Totals()  # all of it when its socket took nothing

    def totals(self) -> Totals:
        """Return what became of its events so far."""
        totals = msgspec.structs.replace(self._totals)
        if self.group is not None:
            totals.add(self.group.counts())
            totals.add(self._joined, -1)
        return totals

    @property
    def lossless(self) -> bool:
        """Whether it is owed every event."""
        return self.key.mode != "merge" and self.on_slow == "disconnect"

    @property
    def told_at(self) -> float:
        """Monotonic time (s) at which it was told something last."""
        return self._told_at if self.group is None else max(self._told_at, self.group.told_at)

    def count(self, piece: Piece) -> None:
        """Count what it was told apart from its group."""
        self._add(piece.counts)
        if piece.data:
            self._told_at = trio.current_time()

    def falls_behind(self) -> None:
        """Note that its socket takes nothing."""
        self.behind_since = trio.current_time()
        self._before = self.totals()

    def keeps_up(self) -> Lag:
        """Note that it has caught up, and return what its slowness cost."""
        since, self.behind_since = self.behind_since, math.nan
        before, now = self._before, self.totals()
        return Lag(since, now.conflated - before.conflated, now.dropped - before.dropped)

    def enter(self, group: Group) -> None:
        """Join a group: from now on what the group is told counts."""
        self.group, self.marks = group, {}
        self.listings = group.listings  # the same object for all: a set of 1,000 takes 32 KB
        self._joined = group.counts()
        group.add(self)
        group.joined.add(self._joined)

    def leave(self, untold: Flush | None) -> None:
        """Leave the group; ``untold`` is what the group was counted as told and this one was not."""
        group, self._told_at = self.group, self.told_at
        assert group is not None
        self._add(group.counts())
        self._add(self._joined, -1)
        if untold is not None:
            self._add(untold.counts_of(self.listings), -1)
        group.joined.add(self._joined, -1)
        group.remove(self)
        self.group = None

    def _add(self, counts: Counts, sign: int = 1) -> None:
        self._totals.add(counts, sign)
        self._channel_totals.add(counts, sign)


class Group:
    """Subscriptions of one topic with the same listings, all in step.

    Attributes:
        listings: What they want.
        members: They, in the order in which they joined.
        joined: Sum of the counts with which they joined.
        lineup: Those that the present sweep, or the last one, is for, less those that left before it reached them.
        sinks: Where the bytes for each of them go.
        files: The file numbers of these. A closed file's number may become another connection's: so an outbox is
            sealed, which turns its number here into -1, before its file is closed.
        reached: How many of them the sweep has reached.
        told_at: Monotonic time (s) at which it was told something last.
    """

    __slots__ = (
        "_changed", "_instruments", "_order", "_topic", "files", "joined", "lineup", "listings", "members", "reached",
        "sinks", "told_at",
    )  # fmt: skip

    def __init__(self, topic: Topic, listings: frozenset[int]) -> None:
        self._topic = topic
        self._order = sorted(listings)
        #: Looked up once: heartbeats ask for the position of every member every second.
        self._instruments = topic.instruments(self._order)
        self.listings = listings
        self.members: dict[Subscription, None] = {}
        self.joined = Totals()
        self.lineup: list[Subscription] = []
        self.sinks: list[Sink] = []
        self.files = array.array("i")
        self.reached = 0
        self._changed = False
        self.told_at = -math.inf

    @property
    def position(self) -> int:
        """Sum of the positions up to which its members know their listings."""
        return self._topic.told(self._instruments)

    @property
    def pending(self) -> bool:
        """Whether something has happened that they were not told yet."""
        return self._topic.happened(self._instruments) > self.position

    def add(self, member: Subscription) -> None:
        """Take in a member; a sweep under way is not for it."""
        self.members[member] = None
        self._changed = True

    def remove(self, member: Subscription) -> None:
        """Let a member go."""
        del self.members[member]
        self._changed = True

    def line_up(self) -> None:
        """Begin a sweep: all members are still to be reached."""
        if self._changed:
            self._changed = False
            self.lineup = list(self.members)
            self.sinks = [member.subscriber.outbox.sink for member in self.members]
            self.files = array.array("i", [sink.fileno() for sink in self.sinks])
        self.reached = 0

    def withdraw(self, member: Subscription) -> bool:
        """Have the sweep under way pass over a member; False if it has reached it already, or is not for it."""
        try:
            place = self.lineup.index(member, self.reached)
        except ValueError:
            return False
        del self.lineup[place], self.sinks[place], self.files[place]
        return True

    def redirect(self, member: Subscription) -> None:
        """Write to a member in the way that its outbox now says."""
        with suppress(ValueError):  # one that came during the sweep is not in it
            place, sink = self.lineup.index(member), member.subscriber.outbox.sink
            self.sinks[place], self.files[place] = sink, sink.fileno()

    def counts(self) -> Counts:
        """Return what became of the events of these listings since the topic exists."""
        return self._topic.counts_of(self._order)

    def totals(self) -> Totals:
        """Return what became of the events of all members since each has joined."""
        n, joined = len(self.members), self.joined
        events, rows, dropped = self.counts()
        return Totals(n * events - joined.published, n * rows - joined.delivered, n * dropped - joined.dropped)

    def join(self, pieces: dict[int, bytes]) -> bytes:
        """Return what concerns this group, as one buffer."""
        if len(pieces) < len(self._order):
            return b"".join([data for listing, data in pieces.items() if listing in self.listings])
        return b"".join([pieces.get(listing, b"") for listing in self._order])


class Channel:
    """A topic with its groups and its timing.

    Attributes:
        groups: Subscriptions in step, by their listings.
        waiting: Subscriptions that the next flush must not reach, and that are brought in step after it: they know
            already what it tells, or part of it.
        subscriptions: How many there are, in step or not.
        flush: What is being sent by a sweep at the moment.
        due: Monotonic time (s) from which it may be flushed.
        dirty_since: Monotonic time (s) of the first event that waits to be flushed.
    """

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.groups: dict[frozenset[int], Group] = {}
        self.waiting: dict[Subscription, None] = {}
        self.subscriptions = 0
        self.flush: Flush | None = None
        self.interval = topic.key.interval_ms / 1000
        self.due = -math.inf
        self.dirty_since = math.inf

    def flushed(self, now: float) -> None:
        """Reckon the next flush from when this one was due, so that lateness does not add up."""
        started = self.due if now - self.due < self.interval else now
        self.due = started + self.interval


class ChannelStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the events of a channel, over all its subscribers so far.

    Attributes:
        subscriptions: Subscriptions now.
        groups: Groups of subscriptions that are sent the same bytes now.
        behind: Subscriptions whose socket takes nothing now.
        lag_s: How long the longest of them has been so, in seconds.
        published: Source events that subscribers were taken past; delivered + conflated + dropped.
        delivered: Those sent as rows.
        conflated: Those that a later state stood for.
        dropped: Those that were lost.
    """

    subscriptions: int
    groups: int
    behind: int
    lag_s: float
    published: int
    delivered: int
    conflated: int
    dropped: int


class BroadcastStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the broadcaster has done so far.

    Attributes:
        batches: Batches taken in.
        events: Rows in them.
        sweeps: Flushes of a topic to its subscribers.
        buffers: Buffers offered to subscribers in sweeps.
        fallen_behind: How often the socket of a subscriber took nothing.
        cut_off: Subscribers that fell further behind than a lossless channel can hold.
        fan_out: How frames are sent to many: ``io_uring`` or ``send``.
        channels: By name.
    """

    batches: int
    events: int
    sweeps: int
    buffers: int
    fallen_behind: int
    cut_off: int
    fan_out: str
    channels: dict[str, ChannelStatistics]

    @property
    def subscriptions(self) -> int:
        """Subscriptions now."""
        return sum(channel.subscriptions for channel in self.channels.values())
