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
from collections.abc import Callable, Iterable

import msgspec
import trio

from feeds.records import Batch, Marker
from ticker.fanout import FanOut
from ticker.history import History
from ticker.intake import take_in
from ticker.listings import Listings
from ticker.subscriber import (
    BroadcastStatistics,
    Channel,
    ChannelStatistics,
    Group,
    Subscriber,
    Subscription,
    Totals,
)
from ticker.timing import Timing
from ticker.topics import KINDS, open_topic
from ticker.topics.topic import NOTHING, Flush, LostError, Mark, Marks, OnSlow, TopicKey

#: A sweep lets other tasks run before it has worked for this long, the second where something is pressing.
SLICE_S, SHORT_SLICE_S = 0.003, 0.0005
#: It lets them run for so many turns of the event loop: after two it is known whether a request has come (of a client
#: that does not compress). If so, it has the turns that it takes to be handed to the disk and answered.
TURNS, PRESSING_TURNS = 2, 4
#: A feed waits this long at most for a sweep to end: its work would only make the last subscriber later.
HOLD_S = 0.02
#: Subscribers served between two looks at the clock where something is pressing, and bytes for all of them anywhere.
SHORT_CHUNK, CHUNK_BYTES = 32, 1 << 20
#: Listings of topics that are kept for subscribers who may come back.
MAX_LINGERING = 1000


class Standing(msgspec.Struct, frozen=True):
    """Where a new subscription to a listing begins.

    Attributes:
        mark: Its mark.
        epoch: The numbering.
        head: Position of the stream.
        oldest: From which position on every event could be told.
        recovered: Whether a resumed subscriber goes on without a hole; None if it did not ask.
        behind: How many events it has missed, if it goes on.
    """

    mark: Mark | None
    epoch: str
    head: int
    oldest: int
    recovered: bool | None
    behind: int


class Broadcaster:
    """Tells subscribers what happens in a market.

    Attributes:
        published_at: Monotonic time (s) of the last batch.
        lateness: Of each flush: from when it was due to when its last subscriber was served.
        duration: Of each sweep.

    Args:
        history: The market's state; this is its only writer.
        listings: The market's names.
        heard: Set with the first subscription.
        pressing: Tells whether there is work under way that a sweep must not delay for long: orders.
        fan_out: Sends to many.
    """

    def __init__(
        self,
        history: History,
        listings: Listings,
        heard: trio.Event,
        pressing: Callable[[], bool] = lambda: False,
        fan_out: FanOut | None = None,
    ) -> None:
        self._fan_out = fan_out or FanOut()
        self._pressing = pressing
        self._history = history
        self._listings = listings
        self._channels: dict[TopicKey, Channel] = {}
        self._published = trio.Event()
        self._idle = trio.Event()
        self._hurry = False
        self._sweeping = False
        self._held = trio.lowlevel.ParkingLot()  # who waits for the end of the sweep under way
        self.published_at = -math.inf
        self.lateness, self.duration = Timing(), Timing()
        self._totals = {name: Totals() for name in KINDS}  # of what was told outside the present groups
        self._behind: dict[Subscription, None] = {}  # the longest first
        self._counts = dict.fromkeys(("batches", "events", "sweeps", "buffers", "fallen_behind", "cut_off"), 0)
        self._heard = heard
        self._owed: dict[Subscription, None] = {}  # the lossless ones
        self._waiting = trio.lowlevel.ParkingLot()  # for these to have been told
        self._lingering: dict[tuple[Channel, int], float] = {}  # until when, the first to go first

    # What happens in the market

    def publish(self, batch: Batch) -> None:
        """Take in a batch: history first, then every topic marks what it has to tell."""
        self._counts["batches"] += 1
        self._counts["events"] += len(batch)
        take_in(batch, self._history, [channel.topic for channel in self._channels.values()])
        now = self.published_at = trio.current_time()
        for channel in self._channels.values():
            if channel.topic.dirty:
                channel.dirty_since = min(channel.dirty_since, now)
        self._end_lingering(now)
        self._published.set()
        self._published = trio.Event()

    async def wait_swept(self) -> None:
        """Wait for the end of a sweep under way, but not for long; no checkpoint if there is none."""
        if self._sweeping:
            with trio.move_on_after(HOLD_S):
                await self._held.park()

    async def mark(self, marker: Marker) -> None:
        """Take in a marker. Before an epoch begins or the stream ends, everybody is told what came before."""
        if marker.kind != "gap":
            await self.settle()
        self._history.mark(marker)
        if marker.kind == "epoch":
            for channel in self._channels.values():
                channel.topic.reset()

    async def settle(self) -> None:
        """Wait until everything that has happened was told to all who can be written to, whatever their intervals."""
        self._hurry = True
        while any(channel.topic.dirty or channel.flush is not None for channel in self._channels.values()):
            self._published.set()
            self._published = trio.Event()
            await self._idle.wait()
        self._hurry = False

    async def wait_told(self) -> None:
        """Wait until every lossless subscriber has been told everything, and its socket has taken it.

        Who reads slowly is waited for; who leaves is not.
        """
        while any(self._owes(subscription) for subscription in self._owed):
            await self._waiting.park()

    def _owes(self, subscription: Subscription) -> bool:
        channel, outbox = self._channels[subscription.key], subscription.subscriber.outbox
        if outbox.sealed:
            return False
        return channel.topic.dirty or channel.flush is not None or subscription.group is None or outbox.behind

    # Who is told

    def join(
        self,
        subscriber: Subscriber,
        key: TopicKey,
        listings: Iterable[int],
        *,
        on_slow: OnSlow,
        into: int | None = None,
    ) -> Subscription:
        """Add listings to a subscription; nothing is told before :meth:`begin`.

        Args:
            subscriber: Who.
            key: Which topic.
            listings: Listings that it does not have under this key yet.
            on_slow: What becomes of events that it does not take in time.
            into: Number of a subscription of this key that is to have them too; None makes a new one.
        """
        channel = self._channel(key)
        added = frozenset(listings)
        channel.topic.acquire(added)
        if into is None:
            number, totals = next(subscriber.numbers), self._totals[key.channel]
            subscription = Subscription(subscriber, number, key, on_slow, totals)
            subscriber.subscriptions[subscription.id] = subscription
            channel.subscriptions += 1
            if subscription.lossless:
                self._owed[subscription] = None
        else:
            subscription = subscriber.subscriptions[into]
            self._leave(channel, subscription)
        subscription.listings |= added
        return subscription

    def standing(
        self, key: TopicKey, listing: int, *, snapshot: bool, resume: tuple[str, int] | None = None
    ) -> Standing:
        """Return where a subscriber that has joined a listing begins.

        Args:
            key: The topic.
            listing: The listing.
            snapshot: Whether the present state is told first; else only what changes from now on.
            resume: Epoch and position up to which it says that it knows the stream.
        """
        topic, epoch = self._channels[key].topic, self._history.epoch
        now, oldest = topic.now(listing), topic.oldest(listing)
        if resume is None:
            return Standing(NOTHING if snapshot else now, epoch, now.position, oldest, None, 0)
        resumed = topic.resumed(listing, resume[1]) if resume[0] == epoch else None
        if resumed is None:
            return Standing(NOTHING, epoch, now.position, oldest, False, 0)
        return Standing(resumed, epoch, now.position, oldest, True, now.position - resumed.position)

    def begin(self, subscription: Subscription, marks: Marks) -> None:
        """Tell a subscription that has joined what its marks lack, and from then on what happens."""
        channel = self._channels[subscription.key]
        subscription.marks |= marks
        if channel.topic.dirty and not channel.interval:
            channel.waiting[subscription] = None
        else:
            self._bring_in_step(channel, subscription)
        self._heard.set()

    def retune(self, subscription: Subscription, key: TopicKey) -> None:
        """Move a subscription to the same topic with another interval; it loses nothing and is told nothing twice."""
        old, new = self._channels[subscription.key], self._channel(key)
        if old is new:
            return
        self._leave(old, subscription)
        new.topic.acquire(subscription.listings, donor=old.topic)
        self._drop(old, subscription, subscription.listings)
        new.subscriptions += 1
        subscription.key = key
        self.begin(subscription, {})

    def resync(self, subscription: Subscription, listings: Iterable[int]) -> None:
        """Tell a subscription the present state of some of its listings as snapshots."""
        self._leave(self._channels[subscription.key], subscription)
        self.begin(subscription, dict.fromkeys(listings, NOTHING))

    def unsubscribe(self, subscription: Subscription, listings: Iterable[int]) -> None:
        """Stop telling a subscription about listings that it has; without any left it ends."""
        channel, removed = self._channels[subscription.key], frozenset(listings)
        self._leave(channel, subscription)
        subscription.listings -= removed
        for listing in removed:
            del subscription.marks[listing]
        if subscription.listings:
            self._release(channel, removed)
            self.begin(subscription, {})
        else:
            del subscription.subscriber.subscriptions[subscription.id]
            self._behind.pop(subscription, None)
            self._owed.pop(subscription, None)
            self._waiting.unpark_all()
            self._drop(channel, subscription, removed)

    def _drop(self, channel: Channel, subscription: Subscription, listings: frozenset[int]) -> None:
        """Forget a subscription that has left a channel."""
        channel.subscriptions -= 1
        self._release(channel, listings)

    def _release(self, channel: Channel, listings: frozenset[int]) -> None:
        """Count a subscriber out. What it may come back for is kept for a while, as far as there is room."""
        if channel.topic.resumable and self._history.options.linger_s:
            until = trio.current_time() + self._history.options.linger_s
            for listing in listings:
                again = self._lingering.pop((channel, listing), None) is not None
                self._lingering[channel, listing] = until
                if again:
                    channel.topic.release([listing])
            self._end_lingering(-math.inf)
        else:
            channel.topic.release(listings)
            self._close(channel)

    def _end_lingering(self, now: float) -> None:
        """Let go what nobody came back for in time, or what is too much."""
        while self._lingering:
            (channel, listing), until = next(iter(self._lingering.items()))
            if until > now and len(self._lingering) <= MAX_LINGERING:
                return
            del self._lingering[channel, listing]
            channel.topic.release([listing])
            self._close(channel)

    def _close(self, channel: Channel) -> None:
        """Forget a channel of which nobody wants anything."""
        if not channel.subscriptions and not channel.topic.wanted:
            del self._channels[channel.topic.key]

    def remove(self, subscriber: Subscriber) -> None:
        """Forget a subscriber whose connection has ended."""
        for subscription in list(subscriber.subscriptions.values()):
            self.unsubscribe(subscription, subscription.listings)

    def writable(self, subscriber: Subscriber) -> None:
        """A subscriber's socket takes bytes again: tell it what it missed."""
        for subscription in list(subscriber.subscriptions.values()):
            channel = self._channels[subscription.key]
            if subscription.group is None and subscription not in channel.waiting:
                self._bring_in_step(channel, subscription)
        self._waiting.unpark_all()

    def pending(self, subscription: Subscription) -> bool:
        """Whether something has happened that a subscription was not told yet."""
        return subscription.group is None or subscription.group.pending

    def position(self, subscription: Subscription) -> int:
        """Return the sum of the positions up to which a subscription knows its listings."""
        if subscription.group is not None:
            return subscription.group.position
        return sum(mark.position for mark in subscription.marks.values() if mark is not None)

    def _channel(self, key: TopicKey) -> Channel:
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(open_topic(key, self._history, self._listings))
        return channel

    def _leave(self, channel: Channel, subscription: Subscription) -> None:
        """Take a subscription out of its group and note where it stands.

        In the middle of a sweep that has not reached it, it stands before that flush.
        """
        group = subscription.group
        channel.waiting.pop(subscription, None)
        if group is None:
            return
        untold = channel.flush if group.withdraw(subscription) else None
        self._set_apart(channel, group, subscription, untold)

    def _set_apart(self, channel: Channel, group: Group, subscription: Subscription, untold: Flush | None) -> None:
        """Take a subscription out of its group; it stands before a flush that it was not told."""
        marks: Marks = {listing: channel.topic.mark(listing) for listing in group.listings}
        if untold is not None:
            marks |= {listing: channel.topic.before(untold, listing) for listing in marks.keys() & untold.before.keys()}
        subscription.leave(untold)
        subscription.marks = marks
        if not group.members:
            del channel.groups[group.listings]

    def _bring_in_step(self, channel: Channel, subscription: Subscription) -> None:
        """Tell a subscription what it was not told; once that is everything, it joins its group."""
        kept_up = math.isnan(subscription.behind_since)
        on_slow = "drop_oldest" if kept_up and subscription.on_slow == "conflate" else subscription.on_slow
        complete = ahead = False
        while not complete:
            try:
                part = channel.topic.catch_up(subscription.marks, on_slow)
            except LostError as error:
                self._counts["cut_off"] += 1
                subscription.subscriber.cut_off(str(error))
                return
            if part.piece.data and not subscription.subscriber.outbox.offer(channel.topic.enclosed(part.piece.data)):
                self._fell_behind(subscription)
                return  # the outbox calls again when the socket is writable
            subscription.count(part.piece)
            subscription.marks, complete, ahead = part.marks, part.complete, part.ahead
        if not kept_up:
            self._behind.pop(subscription, None)
            subscription.subscriber.caught_up(subscription, subscription.keeps_up())
        if ahead:
            channel.waiting[subscription] = None
            return
        group = channel.groups.get(subscription.listings)
        if group is None:
            group = channel.groups[subscription.listings] = Group(channel.topic, subscription.listings)
        subscription.enter(group)

    # When

    async def run(self) -> None:
        """Sweep whatever is due, for ever."""
        while True:
            published = self._published
            now = trio.current_time()
            dirty = [channel for channel in self._channels.values() if channel.topic.dirty]
            due = [channel for channel in dirty if channel.due <= now or self._hurry]
            for channel in due:
                self._sweeping = True
                await self._sweep(channel)
                self._sweeping = False
                self._held.unpark_all()
            if not due:
                if self._hurry:
                    self._idle.set()
                    self._idle = trio.Event()
                await self._wait(published, min((channel.due for channel in dirty), default=math.inf))
            elif published.is_set():  # while it swept; else the wait lets the others run
                await trio.lowlevel.checkpoint()

    async def _wait(self, published: trio.Event, due: float) -> None:
        if due == math.inf:  # a cancel scope would cost as much as all the rest of an event
            await published.wait()
        else:
            with trio.move_on_at(due):
                await published.wait()

    async def _sweep(self, channel: Channel) -> None:
        """Flush a topic to every group. Newcomers during the sweep are not part of it: their snapshot is newer."""
        now = trio.current_time()
        was_due = min(max(channel.due, channel.dirty_since), now)  # in a hurry before it was due
        channel.dirty_since = math.inf
        flush = channel.flush = channel.topic.collect()
        channel.flushed(now)
        plan = list(channel.groups.values())
        for group in plan:
            group.line_up()
        slice_end, took = self._slice_end(), 0.0
        for group in plan:
            data = group.join(flush.pieces)
            if not data:
                group.reached = len(group.lineup)
                continue
            group.told_at = now
            data = channel.topic.enclosed(data)
            while group.reached < len(group.lineup):
                began = time.perf_counter()
                if began + took > slice_end:  # as much again as the last time would be too long
                    await self._give_way()
                    began, slice_end = time.perf_counter(), self._slice_end()
                self._send(channel, group, data)
                took = time.perf_counter() - began
        channel.flush = None
        waiting, channel.waiting = channel.waiting, {}
        for subscription in waiting:
            self._bring_in_step(channel, subscription)
        self._waiting.unpark_all()
        self._counts["sweeps"] += 1
        done = trio.current_time()
        self.lateness.observe(done - was_due)
        self.duration.observe(done - now)

    async def _give_way(self) -> None:
        for turn in range(PRESSING_TURNS):
            if turn < TURNS or self._pressing():
                await trio.lowlevel.checkpoint()

    def _slice_end(self) -> float:
        return time.perf_counter() + (SHORT_SLICE_S if self._pressing() else SLICE_S)

    def _send(self, channel: Channel, group: Group, data: bytes) -> None:
        """Send a buffer to the next members of a group that wait for it."""
        first = group.reached
        most = SHORT_CHUNK if self._pressing() else self._fan_out.at_once
        end = first + max(1, min(most, CHUNK_BYTES // len(data)))
        sinks, files = group.sinks[first:end], group.files[first:end]
        group.reached = first + len(sinks)
        self._counts["buffers"] += len(sinks)
        for place, outcome in self._fan_out.send(sinks, files, data):
            member = group.lineup[first + place]
            if isinstance(outcome, int):
                member.subscriber.outbox.keep(data, outcome)
            else:
                member.subscriber.outbox.refused(outcome)
                self._set_apart(channel, group, member, channel.flush)
                self._fell_behind(member)

    def _fell_behind(self, subscription: Subscription) -> None:
        """Note that the socket of a subscription takes nothing; that of one that ends does not count."""
        if math.isnan(subscription.behind_since) and not subscription.subscriber.outbox.sealed:
            subscription.falls_behind()
            self._behind[subscription] = None
            self._counts["fallen_behind"] += 1

    def statistics(self) -> BroadcastStatistics:
        """Return the counts so far."""
        channels = {name: self._channel_statistics(name) for name in KINDS}
        return BroadcastStatistics(**self._counts, fan_out=self._fan_out.way, channels=channels)

    def _channel_statistics(self, name: str) -> ChannelStatistics:
        channels = [channel for key, channel in self._channels.items() if key.channel == name]
        groups = [group for channel in channels for group in channel.groups.values()]
        behind = [subscription.behind_since for subscription in self._behind if subscription.key.channel == name]
        totals = Totals(*self._totals[name].counts)
        for group in groups:
            totals.add(group.totals().counts)
        return ChannelStatistics(
            subscriptions=sum(channel.subscriptions for channel in channels),
            groups=len(groups),
            behind=len(behind),
            lag_s=trio.current_time() - behind[0] if behind else 0.0,
            published=totals.published,
            delivered=totals.delivered,
            conflated=totals.conflated,
            dropped=totals.dropped,
        )
