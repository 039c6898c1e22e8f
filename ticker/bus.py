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
        first: Sees every event before anybody else does.
    """

    def __init__(
        self,
        on_batch: Callable[[Batch], None],
        on_marker: Callable[[Marker], Awaitable[None]],
        ready: Callable[[], Awaitable[None]] | None = None,
        first: Callable[[Event], None] | None = None,
    ) -> None:
        self._ready = ready
        self._on_batch = on_batch
        self._on_marker = on_marker
        self._first = first

    async def send(self, value: Event) -> None:
        """Take in an event; a cancel comes before it or after it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._ready is not None:
            await self._ready()
        if self._first is not None:
            self._first(value)
        if isinstance(value, Batch):
            self._on_batch(value)
        else:
            await self._on_marker(value)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        """End; there is nothing to give back."""
        await trio.lowlevel.checkpoint()


class PatientBus(Bus):
    """A bus whose feed waits for those who must not lose anything.

    Args:
        on_batch: As of :class:`Bus`.
        on_marker: As of :class:`Bus`.
        patient: After every event: whether it is to be waited for.
        wait_told: Waits until those who must not lose anything have taken what there was.
    """

    def __init__(
        self,
        on_batch: Callable[[Batch], None],
        on_marker: Callable[[Marker], Awaitable[None]],
        patient: Callable[[], bool],
        wait_told: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(on_batch, on_marker)
        self._patient = patient
        self._wait_told = wait_told

    async def send(self, value: Event) -> None:
        """Take in an event, and wait until it has been told; a cancel of the wait undoes nothing."""
        await super().send(value)
        if self._patient():
            await self._wait_told()
