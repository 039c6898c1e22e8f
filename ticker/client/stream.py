"""A stream of messages that outlives connections, and how one comes back after a loss.

:func:`open_stream` keeps a connection open and subscribes again after each loss. :func:`persist` is what it is made of:
whoever wants something else of each connection says so there. This module must not know of terminals.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final, Literal, NoReturn

import msgspec
import trio

from ticker.client.backoff import Backoff
from ticker.client.connection import (
    Connection,
    ConnectionLost,
    ConnectionRefused,
    Message,
    distinct,
    open_connection,
)

#: Items of a stream that may wait for their reader; beyond that the server is not read from and sends newer values.
STREAM_BUFFER: Final = 256
#: A server that announces a longer stop is tried after this long all the same.
LONGEST_ABSENCE_S: Final = 60.0
#: Close codes with which a server says that coming back is of no use.
FINAL_CLOSE_CODES: Final = range(4500, 5000)


class Subscription(msgspec.Struct, frozen=True):
    """What to subscribe to, again after every reconnect.

    Attributes:
        channel: "ticker", "trade", "book", ...
        symbols: Their names, or None for every pair that the server lists.
        params: Further parameters of the channel, such as ``{"depth": 10}``.
    """

    channel: str
    symbols: tuple[str, ...] | None = None
    params: dict[str, Any] = {}


class StateChange(msgspec.Struct, frozen=True, kw_only=True):
    """What an open stream reports between messages.

    Attributes:
        state: ``connecting``, ``connected`` (and subscribed), ``waiting`` (to try again), or ``ended`` (it will not).
        text: Why, in words; empty if there is nothing to say.
        retry_in_s: In state ``waiting``: seconds to the next attempt.
        refused: In state ``connected``: subscriptions that the server refused, in its words.
    """

    state: Literal["connecting", "connected", "waiting", "ended"]
    text: str = ""
    retry_in_s: float = 0.0
    refused: tuple[str, ...] = ()


async def persist(visit: Callable[[], Awaitable[None]], lost: Callable[[str, float], Awaitable[None]]) -> None:
    """Connect again and again, with growing delays, until nothing more is to be had.

    Args:
        visit: Connects, does what there is to do, and returns once that has ended.
        lost: Told why there is no connection any more, or none yet, and in how many seconds the next attempt follows.

    Raises:
        ConnectionLost: The server says that coming back is of no use.
    """
    backoff = Backoff(random.Random())
    while True:
        started, away_s = trio.current_time(), 0.0
        try:
            return await visit()
        except ConnectionRefused as error:
            why = str(error)
        except ConnectionLost as error:
            if error.code in FINAL_CLOSE_CODES:
                raise
            why, away_s = str(error), min(error.retry_after_s, LONGEST_ABSENCE_S)
        if trio.current_time() - started > Backoff.LIMIT_S:
            backoff.reset()
        delay = max(backoff.next(), away_s)
        await lost(why, delay)
        await trio.sleep(delay)


@contextlib.asynccontextmanager
async def open_stream(
    url: str, subscriptions: Iterable[Subscription]
) -> AsyncIterator[trio.MemoryReceiveChannel[Message | StateChange]]:
    """Give the messages of some subscriptions for as long as the context lasts, over any number of connections.

    The channel's items are messages in the order of the server, and a :class:`StateChange` wherever something
    happened to the connection. It ends only if the server says that coming back is of no use.
    What the body raises arrives in an ExceptionGroup, as from every nursery.
    """
    send, receive = trio.open_memory_channel[Message | StateChange](STREAM_BUFFER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_connected, url, tuple(subscriptions), send)
        try:
            yield receive
        finally:
            nursery.cancel_scope.cancel()  # before closing, which would wake the sender with an error
            receive.close()


async def _keep_connected(
    url: str, wishes: tuple[Subscription, ...], out: trio.MemorySendChannel[Message | StateChange]
) -> None:
    async def visit() -> None:
        await out.send(StateChange(state="connecting"))
        async with open_connection(url) as connection:
            await _pass_on(connection, wishes, out)

    async def lost(why: str, delay: float) -> None:
        await out.send(StateChange(state="waiting", text=why, retry_in_s=delay))

    async with out:
        try:
            await persist(visit, lost)
        except ConnectionLost as error:
            await out.send(StateChange(state="ended", text=str(error)))


async def _pass_on(
    connection: Connection, wishes: tuple[Subscription, ...], out: trio.MemorySendChannel[Message | StateChange]
) -> NoReturn:
    """Subscribe, and pass on what comes until the connection ends."""
    refused = [text for wish in wishes for text in await _subscribe(connection, wish)]
    await out.send(StateChange(state="connected", refused=tuple(refused)))
    while True:
        await out.send(await connection.receive_in_time())


async def _subscribe(connection: Connection, wish: Subscription) -> list[str]:
    """Subscribe and return what was refused, in the server's words."""
    symbols = wish.symbols
    if symbols is None:
        symbols = tuple(pair["symbol"] for pair in distinct(await connection.pairs()))
    replies = await connection.subscribe(wish.channel, symbols, **wish.params)
    return [str(reply.get("error")) for reply in replies if not reply.get("success")]
