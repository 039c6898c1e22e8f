"""A session, as far as orders need to know it."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from ticker.errors import RequestError
from ticker.wire import Request


class Client(Protocol):
    """Somebody who sends requests and reads private channels."""

    @property
    def native(self) -> bool:
        """Whether it speaks the native profile."""

    @property
    def bearer(self) -> str:
        """The token of its ``Authorization`` header; empty if there was none."""

    def accept(self, request: Request, time_in: str, result: Any, ext: dict[str, Any] | None = None) -> None:  # noqa: ANN401
        """Reply to a request that was done."""

    def refuse(self, request: Request, time_in: str, error: RequestError) -> None:
        """Reply to a request that was not done."""

    def send(self, message: msgspec.Struct) -> None:
        """Send a message that must arrive."""
