"""The bus: where the feeds end and everything that lives on their events begins.

A feed sees a Trio channel. Behind it there is no queue and no task: an event is taken in completely, by everybody,
before ``send`` returns, and everything past it is sync, so that a feed never waits for a subscriber. What it waits
for is the processor: a sweep under way is finished first, and after each event all other tasks have their turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from feeds.records import Batch, Event, Marker


class Bus(trio.abc.SendChannel[Event]):
    """Hands every event on, in order.

    Args:
        on_batch: Takes in what happened.
        on_marker: Takes in a marker; may wait until what was before it has been told.
        ready: Waited for before each event: lets work that is under way end first.
    """

    def __init__(
        self,
        on_batch: Callable[[Batch], None],
        on_marker: Callable[[Marker], Awaitable[None]],
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._ready = ready
        self._on_batch = on_batch
        self._on_marker = on_marker

    async def send(self, value: Event) -> None:
        """Take in an event; a cancel comes before it or after it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._ready is not None:
            await self._ready()
        if isinstance(value, Batch):
            self._on_batch(value)
        else:
            await self._on_marker(value)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        """End; there is nothing to give back."""
        await trio.lowlevel.checkpoint()
