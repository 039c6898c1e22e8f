"""The bus: everything in order, whole, and a cancel never in the middle."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from feeds.records import Batch, Marker
from ticker.bus import Bus


class Taker:
    """Takes events down; markers as long as it is told to."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.free = trio.Event()

    def batch(self, batch: Batch) -> None:
        self.taken.append(batch.ts)

    async def marker(self, marker: Marker) -> None:
        await self.free.wait()
        self.taken.append(marker.ts)


async def test_events_are_taken_in_order_before_send_returns():
    taker = Taker()
    taker.free.set()
    async with Bus(taker.batch, taker.marker) as bus:
        for event in (Batch(ts=1), Marker(kind="epoch", ts=2, reason=""), Batch(ts=3)):
            await bus.send(event)
            assert taker.taken[-1] == event.ts
    assert taker.taken == [1, 2, 3]


async def test_who_is_first_sees_every_event_before_the_others():
    taker, first = Taker(), []
    taker.free.set()
    bus = Bus(taker.batch, taker.marker, first=lambda event: first.append((event.ts, len(taker.taken))))
    for event in (Batch(ts=1), Marker(kind="epoch", ts=2, reason=""), Batch(ts=3)):
        await bus.send(event)
    assert first == [(1, 0), (2, 1), (3, 2)]


async def test_a_marker_holds_up_what_follows_it(nursery):
    taker = Taker()
    bus = Bus(taker.batch, taker.marker)

    async def feed():
        await bus.send(Marker(kind="epoch", ts=1, reason=""))
        await bus.send(Batch(ts=2))

    nursery.start_soon(feed)
    await trio.testing.wait_all_tasks_blocked()
    assert taker.taken == []
    taker.free.set()
    await trio.testing.wait_all_tasks_blocked()
    assert taker.taken == [1, 2]


async def test_a_cancel_comes_before_an_event_or_after_it():
    taker = Taker()
    bus = Bus(taker.batch, taker.marker)
    with trio.CancelScope() as scope:
        scope.cancel()
        await bus.send(Batch(ts=1))
    assert taker.taken == []

    sent = []
    with trio.CancelScope() as scope:
        bus = Bus(lambda batch: (taker.batch(batch), scope.cancel()), taker.marker)
        await bus.send(Batch(ts=2))
        sent.append(2)
        await trio.lowlevel.checkpoint()
        pytest.fail("the cancel is delivered at the next checkpoint")
    assert (taker.taken, sent) == ([2], [2])


async def test_after_every_event_the_others_have_their_turn():
    taker, seen = Taker(), []
    bus = Bus(taker.batch, taker.marker)

    async def other():
        for _ in range(3):
            seen.append(len(taker.taken))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for ts in range(5):
            await bus.send(Batch(ts=ts))
    assert len(seen) == 3
    assert all(taken <= turn + 2 for turn, taken in enumerate(seen))  # who of two is first, Trio leaves to chance


async def test_an_event_waits_until_the_bus_is_ready_and_a_cancel_meanwhile_comes_before_it(nursery):
    taker, ready = Taker(), trio.Event()
    bus = Bus(taker.batch, taker.marker, ready=ready.wait)
    with trio.CancelScope() as scope:
        nursery.start_soon(bus.send, Batch(ts=1))
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await bus.send(Batch(ts=2))
    assert taker.taken == []
    ready.set()
    await trio.testing.wait_all_tasks_blocked()
    assert taker.taken == [1]
