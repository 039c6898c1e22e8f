"""The bus: one bounded channel from the feeds to everything that lives on their events.

The channel is the only backpressure a feed knows. Past it everything is sync: a batch is taken in completely, by
everybody, before the next one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from feeds.records import Batch, Event, Marker

#: Batches, not ticks: a feed may be this far ahead before it waits.
DEPTH = 8


def open_bus() -> tuple[trio.MemorySendChannel[Event], trio.MemoryReceiveChannel[Event]]:
    """Return the two ends of a bus."""
    return trio.open_memory_channel[Event](DEPTH)


async def pump(
    bus: trio.MemoryReceiveChannel[Event],
    on_batch: Callable[[Batch], None],
    on_marker: Callable[[Marker], Awaitable[None]],
) -> None:
    """Hand every event on, in order, until all feeds have closed their end."""
    async with bus:
        async for event in bus:
            if isinstance(event, Batch):
                on_batch(event)
            else:
                await on_marker(event)
