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

_NOBODY: Final = Request("")


class Done(NamedTuple):
    """What is told once a group is on disk: replies to a client, then letters to readers.

    Attributes:
        client: Who has asked; None: the market, or time.
        request: What it has asked.
        time_in: When that came, RFC 3339.
        answers: The replies.
        letters: What readers are told.
    """

    client: Client | None
    request: Request
    time_in: str
    answers: list[Answer]
    letters: list[Letter]


class Group:
    """What has happened and is not on disk yet. It is told once how that went; after that nothing is left to tell.

    Attributes:
        events: For the journal, encoded.
        done: What is told then, in order.
        demands: What was done without a request, in order; if it does not get to the disk, it has to be done again.
        snapshot: What all events up to its last come to, if that is to be written after it.
    """

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.done: list[Done] = []
        self.demands: list[Demand] = []
        self.snapshot: bytes | None = None

    def tell(self, letters: list[Letter]) -> None:
        """Have readers told of what nobody has asked for."""
        self.done.append(Done(None, _NOBODY, "", [], letters))

    def deliver(self) -> None:
        """Tell what was done: it is on disk."""
        for done in self._told():
            if done.client is not None:
                _reply(done.client, done)
            for reader, message in done.letters:
                reader.send(message)

    def refuse(self, error: RequestError) -> None:
        """Tell those who have asked that it is not on disk, or may not be."""
        for done in self._told():
            if done.client is not None and done.answers:
                done.client.refuse(done.request, done.time_in, error)

    def _told(self) -> list[Done]:
        told, self.done = self.done, []
        return told


def _reply(client: Client, done: Done) -> None:
    for answer in done.answers:
        if answer.error is None:
            client.accept(done.request, done.time_in, answer.result, answer.ext)
        else:
            client.refuse(done.request, done.time_in, answer.error)
