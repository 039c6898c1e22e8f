"""A replay session: a recording that the server plays to this connection, alone or together with others.

:func:`open_replay` begins or joins one and leaves it again; its messages come by iterating over it and no longer by
iterating over the connection. Like the connection, it starts no task. It must not know terminals.
"""

from __future__ import annotations

import contextlib
import secrets
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

import trio

from ticker.client.connection import DISCONNECT_TIMEOUT_S, Connection, ConnectionLost, Message, picking_apart
from ticker.client.remote import ActionRefused


class Replay:
    """A session that a connection has joined; made by :func:`open_replay`.

    Iterating over it gives its messages in the order of the server: those of the channels subscribed to, and between
    them the rows of the channel "replay". It ends after the row that says "stopped". At "ended" the tape waits for
    somebody to move it; at speed 0 everything was given before.

    Attributes:
        session: Its name; who says the same name and source joins it.
        params: What the server plays: source, symbol, from, to, speed, loop, …
        state: The row of the channel "replay" that was given last, with state, speed, ts, epoch, progress and digest;
            empty before the first.
    """

    def __init__(self, connection: Connection, session: str, params: Message) -> None:
        self.session = session
        self.params = params
        self.state: Message = {}
        self._connection = connection

    async def subscribe(self, channel: str, symbols: Sequence[str], **params: Any) -> list[Message]:  # noqa: ANN401
        """Subscribe to a channel of the replay; as :meth:`ticker.client.Connection.subscribe`."""
        return await self._connection.subscribe(channel, symbols, session=self.session, **params)

    async def control(self, action: str, **params: Any) -> None:  # noqa: ANN401
        """Have the tape do something, for all who have joined; where it is then comes by iteration.

        Args:
            action: pause, resume, seek, speed, step or stop.
            params: ``to`` (RFC 3339, "+90s" or ns), ``speed``, ``events``.

        Raises:
            ActionRefused: The server refused.
            ConnectionLost: The connection has ended.
        """
        wish = {"session": self.session, "action": action, **params}
        _granted(self._connection, await self._connection.request("replay_control", wish))

    def __aiter__(self) -> Replay:
        return self

    async def __anext__(self) -> Message:
        if self.state.get("state") == "stopped":
            raise StopAsyncIteration
        message = await self._connection.receive(self.session)
        if message.get("channel") == "replay":
            (self.state,) = message["data"]
        return message


@contextlib.asynccontextmanager
async def open_replay(
    connection: Connection,
    source: str,
    *,
    session: str = "",
    **params: Any,  # noqa: ANN401
) -> AsyncIterator[Replay]:
    """Begin or join a replay session; leaving the context leaves it, and others may go on.

    Args:
        connection: One that speaks "ticker.v1".
        source: One of the recordings that ``replay_sources`` lists.
        session: The name of a session to share; without one it is nobody else's.
        params: ``symbol``, ``from`` (as ``**{"from": "+90s"}``), ``to``, ``speed``, ``start_paused``, ``loop``,
            ``gap``; who joins a session finds them as they are.

    Raises:
        ActionRefused: The server refused, or the connection has joined the session already.
        ConnectionLost: The connection has ended.
    """
    name = session or secrets.token_hex(8)
    if name in connection.apart:
        raise ActionRefused(f"{connection.url}: this connection has joined session {name} already")
    connection.apart[name] = deque()
    try:
        wish = {"source": source, "session": name, **params}
        yield Replay(connection, name, _granted(connection, await connection.request("replay_start", wish)))
    finally:  # also after a cancelled request: the server may have taken it
        with trio.move_on_after(DISCONNECT_TIMEOUT_S, shield=True), contextlib.suppress(ConnectionLost):
            await connection.request("replay_control", {"session": name, "action": "leave"})
        del connection.apart[name]


def _granted(connection: Connection, reply: Message) -> Message:
    if not reply.get("success"):
        raise ActionRefused(f"{connection.url}: {reply.get('error')}")
    with picking_apart(connection.url):
        return dict(reply["result"])
