"""The server's own replay over HTTP: where it is, and what it is to do.

Each request is a connection of its own, beside the WebSocket and on the same port. It must not know terminals.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import h11
import msgspec
import trio

from ticker.client.connection import Address, ConnectionLost, Message, dial, picking_apart

PATH: Final = "/api/replay"
TIMEOUT_S: Final = 5.0


class _State(msgspec.Struct):
    """What every answer about a replay has, whatever else it has."""

    state: str
    speed: float
    ts: datetime
    progress: float


class ActionRefused(Exception):
    """The server did not do what it was asked for; the text says why, in its words."""


class Remote:
    """The remote control of a server's replay.

    Args:
        url: ``ws://HOST:PORT/v2``, or wss.

    Raises:
        ConnectionRefused: It is no such URL.
    """

    def __init__(self, url: str) -> None:
        self._address = Address.of(url)

    async def state(self) -> Message:
        """Return where the replay is: source, state, speed, ts, progress, …; source is None where there is none.

        Raises:
            ConnectionRefused: The server is not there.
            ConnectionLost: It did not answer.
            ActionRefused: It has no such page.
        """
        return await self._exchange("GET", b"")

    async def control(self, action: str, **params: Any) -> Message:  # noqa: ANN401
        """Have the replay do something and return where it is then.

        Args:
            action: pause, resume, seek, speed, step or stop.
            params: ``to`` (RFC 3339 or ns), ``speed``, ``events``.

        Raises:
            ConnectionRefused: The server is not there.
            ConnectionLost: It did not answer.
            ActionRefused: It refused.
        """
        return await self._exchange("POST", msgspec.json.encode({"action": action, **params}))

    async def _exchange(self, method: str, body: bytes) -> Message:
        headers = [("host", self._address.host_header), ("connection", "close")]
        if body:
            headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
        connection = h11.Connection(h11.CLIENT)
        request = connection.send(h11.Request(method=method, target=PATH, headers=headers)) or b""
        with trio.move_on_after(TIMEOUT_S) as deadline:
            async with await dial(self._address) as stream:
                try:
                    await stream.send_all(request + body)
                    connection.send(h11.Data(data=body))
                    connection.send(h11.EndOfMessage())
                    return _read(self._address.url, *await _response(connection, stream))
                except (trio.BrokenResourceError, h11.ProtocolError) as error:
                    raise ConnectionLost(f"{self._address.url}: {PATH} was not answered ({error})") from None
        assert deadline.cancelled_caught
        raise ConnectionLost(f"{self._address.url}: {PATH} was not answered within {TIMEOUT_S:.0f} s")


async def _response(connection: h11.Connection, stream: trio.abc.ReceiveStream) -> tuple[int, bytes]:
    """Return the status and the body of the response."""
    status, body = 0, b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
    return status, body


def _read(url: str, status: int, body: bytes) -> Message:
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:
        answer = {"error": body.decode(errors="replace").strip()}
    if status != 200 or not isinstance(answer, dict):
        raise ActionRefused(f"{url}: {answer.get('error') if isinstance(answer, dict) else status}")
    if answer.get("source") is not None:
        with picking_apart(url):
            msgspec.convert(answer, _State)
    return answer
