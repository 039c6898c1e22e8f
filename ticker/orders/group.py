"""What happens on the exchange between two writes to the journal, and whom it concerns."""

from __future__ import annotations

from typing import Final, NamedTuple

from ticker.orders.client import Client
from ticker.orders.methods import Answer
from ticker.orders.readers import Letter
from ticker.wire import Request

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
    """What has happened and is not on disk yet.

    Attributes:
        events: For the journal, encoded.
        done: What is told then, in order.
    """

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.done: list[Done] = []

    def tell(self, letters: list[Letter]) -> None:
        """Have readers told of what nobody has asked for."""
        self.done.append(Done(None, _NOBODY, "", [], letters))
