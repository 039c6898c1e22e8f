"""What happens on the exchange between two writes to the journal, and whom it concerns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from ticker.errors import RequestError
from ticker.orders.client import Client
from ticker.orders.exchange import Exchange
from ticker.orders.methods import Answer
from ticker.orders.readers import Letter
from ticker.wire import Request

#: What time or the market wants of the exchange, whether anybody is there to be told or not.
Demand = Callable[[Exchange], object]

#: Methods that set switches, which are not in the journal: what they did holds although their group is not on disk.
SWITCHES: Final = frozenset({"cancel_all_orders_after", "cancel_on_disconnect"})

_NOBODY: Final = Request("")


class Done(NamedTuple):
    """What is told once a group is on disk: replies to a client, then letters to readers.

    Attributes:
        client: Who has asked; None: the market, or time.
        request: What it has asked.
        time_in: When that came, RFC 3339.
        answers: The replies.
        letters: What readers are told.
        undo: Takes back what was done, if that is refused after all.
    """

    client: Client | None
    request: Request
    time_in: str
    answers: list[Answer]
    letters: list[Letter]
    undo: Callable[[], None] | None = None

    def reply(self) -> None:
        """Send the replies."""
        if self.client is not None:
            for answer in self.answers:
                if answer.error is None:
                    self.client.accept(self.request, self.time_in, answer.result, answer.ext)
                else:
                    self.client.refuse(self.request, self.time_in, answer.error)

    def refuse(self, error: RequestError) -> None:
        """Send an error in place of the replies."""
        if self.undo is not None:
            self.undo()
        if self.client is not None and self.answers:
            self.client.refuse(self.request, self.time_in, error)


class Group:
    """What has happened and is not on disk yet. It is told once how that went; after that nothing is left to tell.

    Attributes:
        events: For the journal, encoded.
        ended: Keys of orders that have ended.
        done: What is told then, in order.
        demands: What was done without a request, in order; if it does not get to the disk, it has to be done again.
        snapshot: What all events up to its last come to, if that is to be written after it.
    """

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.ended: list[int] = []
        self.done: list[Done] = []
        self.demands: list[Demand] = []
        self.snapshot: bytes | None = None

    def tell(self, letters: list[Letter]) -> None:
        """Have readers told of what nobody has asked for."""
        self.done.append(Done(None, _NOBODY, "", [], letters))

    def deliver(self, send: Callable[[Letter], None]) -> None:
        """Tell what was done, letters by ``send``: it is on disk."""
        for done in self._told():
            done.reply()
            for letter in done.letters:
                send(letter)

    def refuse(self, error: RequestError) -> None:
        """Tell those who have asked that it is not on disk, or may not be."""
        for done in self._told():
            if done.request.method in SWITCHES:
                done.reply()
            else:
                done.refuse(error)

    def _told(self) -> list[Done]:
        told, self.done = self.done, []
        return told
