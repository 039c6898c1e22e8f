"""Who is told what, and when: groups of subscribers, sweeps over them, and those who cannot keep up.

Subscribers of one topic with the same listings form a *group* and are sent the same bytes: encoded once, joined once,
one ``send`` each. A subscriber whose socket takes nothing leaves its group with its marks; when the socket is
writable it is told everything new in one go and comes back. Nobody else notices. Newcomers are the same thing with
empty marks: a snapshot is what brings them in step.

:meth:`Broadcaster.publish` is sync and called for every batch; :meth:`Broadcaster.run` is the one task that sweeps,
so no subscriber ever sees two flushes of a topic out of order. It must not know sockets or requests.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec
import trio

from feeds.book import BookEvent
from feeds.records import Batch, Marker
from ticker.errors import Code, RequestError
from ticker.history import History
from ticker.listings import Listings
from ticker.outbox import Outbox
from ticker.topics import NOTHING, TOPICS, Flush, LostError, Mark, Topic, TopicKey

#: A sweep lets other tasks run when it has worked for this long: orders do not wait behind it.
SLICE_S = 0.001
#: Subscribers served between two looks at the clock.
CHUNK = 32


class Subscriber:
    """One connection as the broadcaster sees it.

    Attributes:
        outbox: Where its frames go.
        subscriptions: By topic key.
    """

    __slots__ = ("cut_off", "outbox", "subscriptions")

    def __init__(self, outbox: Outbox, cut_off: Callable[[str], None]) -> None:
        self.outbox = outbox
        self.cut_off = cut_off
        self.subscriptions: dict[TopicKey, Subscription] = {}


class Subscription:
    """What one subscriber wants of one topic.

    Attributes:
        listings: All of them.
        group: In step: the group that it is sent with. None out of step.
        marks: Out of step: where it stopped, by listing.
        swept: Number of the last sweep that it needs nothing of any more.
    """

    __slots__ = ("group", "listings", "marks", "offer", "subscriber", "swept")

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.offer = subscriber.outbox.offer
        self.listings: frozenset[int] = frozenset()
        self.group: Group | None = None
        self.marks: dict[int, Mark] = {}
        self.swept = 0


class Group:
    """Subscriptions of one topic with the same listings, all in step."""

    __slots__ = ("listings", "members")

    def __init__(self, listings: frozenset[int]) -> None:
        self.listings = listings
        self.members: dict[Subscription, None] = {}

    def join(self, frames: dict[int, bytes]) -> bytes:
        """Return the frames that concern this group, as one buffer."""
        if len(self.listings) < len(frames):
            return b"".join([frames[listing] for listing in sorted(self.listings & frames.keys())])
        return b"".join([frame for listing, frame in frames.items() if listing in self.listings])


class Channel:
    """A topic with its groups and its timing.

    Attributes:
        groups: Subscriptions in step, by their listings.
        waiting: Newcomers that the next flush must not reach: it tells what their snapshot already says.
        subscriptions: How many there are, in step or not.
        sweep: Number of the last sweep.
        flush: What is being sent by a sweep at the moment.
        due: Monotonic time (s) from which it may be flushed.
        dirty_since: Monotonic time (s) of the first event that waits to be flushed.
    """

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.groups: dict[frozenset[int], Group] = {}
        self.waiting: list[Subscription] = []
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


class BroadcastStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the broadcaster has done so far.

    Attributes:
        batches: Batches taken in.
        events: Rows in them.
        sweeps: Flushes of a topic to its subscribers.
        buffers: Buffers accepted by subscribers in sweeps.
        fallen_behind: How often a subscriber fell out of step.
        cut_off: Subscribers that fell further behind than a lossless channel can hold.
        late_p50_ms: Median lateness of recent flushes: from when it was due to when its last subscriber was served.
        late_p99_ms: The 99th percentile of the same.
        subscriptions: Subscriptions now.
    """

    batches: int
    events: int
    sweeps: int
    buffers: int
    fallen_behind: int
    cut_off: int
    late_p50_ms: float
    late_p99_ms: float
    subscriptions: int


class Broadcaster:
    """Tells subscribers what happens in a market.

    Args:
        history: The market's state; this is its only writer.
        listings: The market's names.
        heard: Set with the first subscription.
    """

    def __init__(self, history: History, listings: Listings, heard: trio.Event) -> None:
        self._history = history
        self._listings = listings
        self._channels: dict[TopicKey, Channel] = {}
        self._published = trio.Event()
        self._late: deque[float] = deque(maxlen=4096)
        self._counts = dict.fromkeys(("batches", "events", "sweeps", "buffers", "fallen_behind", "cut_off"), 0)
        self._heard = heard

    # What happens in the market

    def publish(self, batch: Batch) -> None:
        """Take in a batch: history first, then every topic marks what it has to tell."""
        self._counts["batches"] += 1
        self._counts["events"] += len(batch)
        pieces = batch.by_event() if self._every_ticker_event() else (batch,)
        for piece in pieces:
            self._history.apply(piece, self._book_changed)
            for channel in self._channels.values():
                channel.topic.applied(piece)
        now = trio.current_time()
        for channel in self._channels.values():
            if channel.topic.dirty:
                channel.dirty_since = min(channel.dirty_since, now)
        self._published.set()
        self._published = trio.Event()

    def mark(self, marker: Marker) -> None:
        """Take in a marker: a new epoch is told to everybody as a snapshot."""
        self._history.mark(marker)
        if marker.kind == "epoch":
            for channel in self._channels.values():
                channel.topic.reset()

    def _every_ticker_event(self) -> bool:
        return any(key.channel == "ticker" and not key.interval_ms for key in self._channels)

    def _book_changed(self, event: BookEvent) -> None:
        for channel in self._channels.values():
            channel.topic.book_changed(event)

    # Who is told

    def subscribe(self, subscriber: Subscriber, key: TopicKey, listings: Iterable[int], *, snapshot: bool) -> None:
        """Begin to tell a subscriber about listings.

        Args:
            subscriber: Who.
            key: Which topic.
            listings: Listings that it does not have under this key yet.
            snapshot: Whether the present state is told first; else only what changes from now on.
        """
        channel = self._channels.get(key)
        if channel is None:
            topic = TOPICS[key.channel](key, self._history, self._listings)
            channel = self._channels[key] = Channel(topic)
        subscription = subscriber.subscriptions.get(key)
        if subscription is None:
            channel.subscriptions += 1
            subscription = subscriber.subscriptions[key] = Subscription(subscriber)
        added = frozenset(listings)
        channel.topic.acquire(added)
        self._leave(channel, subscription)
        subscription.listings |= added
        for listing in sorted(added):
            subscription.marks[listing] = NOTHING if snapshot else channel.topic.mark(listing)
        if channel.topic.dirty and not channel.interval:
            channel.waiting.append(subscription)
        else:
            self._bring_in_step(channel, subscription)
        self._heard.set()

    def unsubscribe(self, subscriber: Subscriber, key: TopicKey, listings: Iterable[int]) -> None:
        """Stop telling a subscriber about listings that it has.

        Raises:
            RequestError: It does not have one of them.
        """
        subscription = subscriber.subscriptions.get(key)
        removed = frozenset(listings)
        if subscription is None or not removed <= subscription.listings:
            raise RequestError("Subscription Not Found", Code.NOT_SUBSCRIBED)
        channel = self._channels[key]
        self._leave(channel, subscription)
        subscription.listings -= removed
        for listing in removed:
            del subscription.marks[listing]
        channel.topic.release(removed)
        if subscription.listings:
            self._bring_in_step(channel, subscription)
            return
        del subscriber.subscriptions[key]
        channel.subscriptions -= 1
        if not channel.subscriptions:
            del self._channels[key]

    def remove(self, subscriber: Subscriber) -> None:
        """Forget a subscriber whose connection has ended."""
        for key, subscription in list(subscriber.subscriptions.items()):
            self.unsubscribe(subscriber, key, subscription.listings)

    def writable(self, subscriber: Subscriber) -> None:
        """A subscriber's socket takes bytes again: tell it what it missed."""
        for key, subscription in list(subscriber.subscriptions.items()):
            channel = self._channels[key]
            if subscription.group is None and subscription not in channel.waiting:
                self._bring_in_step(channel, subscription)

    def _leave(self, channel: Channel, subscription: Subscription) -> None:
        """Take a subscription out of its group and note where it stands.

        In the middle of a sweep that has not reached it, it stands before that flush.
        """
        group, subscription.group = subscription.group, None
        if group is None:
            return
        del group.members[subscription]
        if not group.members:
            del channel.groups[group.listings]
        marks = {listing: channel.topic.mark(listing) for listing in group.listings}
        if channel.flush is not None and subscription.swept != channel.sweep:
            before = channel.flush.before
            marks.update((listing, before[listing]) for listing in marks.keys() & before.keys())
        subscription.marks = marks

    def _bring_in_step(self, channel: Channel, subscription: Subscription) -> None:
        """Tell a subscription what it was not told; once that is everything, it joins its group."""
        while subscription.marks:
            try:
                buffer, rest = channel.topic.catch_up(subscription.marks)
            except LostError as error:
                self._counts["cut_off"] += 1
                subscription.subscriber.cut_off(str(error))
                return
            if buffer and not subscription.offer(buffer):
                return  # the outbox calls again when the socket is writable
            subscription.marks = rest
        group = channel.groups.get(subscription.listings)
        if group is None:
            group = channel.groups[subscription.listings] = Group(subscription.listings)
        group.members[subscription] = None
        subscription.group, subscription.swept = group, channel.sweep

    # When

    async def run(self) -> None:
        """Sweep whatever is due, for ever."""
        while True:
            published = self._published
            now = trio.current_time()
            dirty = [channel for channel in self._channels.values() if channel.topic.dirty]
            due = [channel for channel in dirty if channel.due <= now]
            for channel in due:
                await self._sweep(channel)
            if due:
                await trio.lowlevel.checkpoint()
            else:
                with trio.move_on_at(min((channel.due for channel in dirty), default=math.inf)):
                    await published.wait()

    async def _sweep(self, channel: Channel) -> None:
        """Flush a topic to every group. Newcomers during the sweep are not part of it: their snapshot is newer."""
        now = trio.current_time()
        was_due, channel.dirty_since = max(channel.due, channel.dirty_since), math.inf
        flush = channel.flush = channel.topic.collect()
        channel.sweep += 1
        channel.flushed(now)
        buffers = [(group, group.join(flush.frames), list(group.members)) for group in channel.groups.values()]
        slice_end = time.perf_counter() + SLICE_S
        for group, buffer, members in buffers:
            for start in range(0, len(members) if buffer else 0, CHUNK):
                self._send(channel, group, buffer, members[start : start + CHUNK])
                if time.perf_counter() > slice_end:
                    await trio.lowlevel.checkpoint()
                    slice_end = time.perf_counter() + SLICE_S
        channel.flush = None
        waiting, channel.waiting = channel.waiting, []
        for subscription in waiting:
            if subscription.listings:
                self._bring_in_step(channel, subscription)
        self._counts["sweeps"] += 1
        self._late.append(trio.current_time() - was_due)

    def _send(self, channel: Channel, group: Group, buffer: bytes, members: list[Subscription]) -> None:
        sweep = channel.sweep
        sent = 0
        for member in members:
            if member.swept == sweep or member.group is not group:
                continue  # it changed or ended its subscription while the sweep let others run
            if member.offer(buffer):
                sent += 1
            else:
                self._leave(channel, member)
                self._counts["fallen_behind"] += 1
            member.swept = sweep
        self._counts["buffers"] += sent

    def statistics(self) -> BroadcastStatistics:
        """Return the counts so far."""
        late = sorted(self._late) or [0.0]
        return BroadcastStatistics(
            **self._counts,
            late_p50_ms=1000 * late[len(late) // 2],
            late_p99_ms=1000 * late[len(late) * 99 // 100],
            subscriptions=sum(channel.subscriptions for channel in self._channels.values()),
        )
