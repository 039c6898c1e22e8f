"""One connection to a server.

:func:`open_connection` gives a :class:`Connection`: requests with their replies, and iteration over what the channels
send. It starts no task: whichever task waits for something reads the socket, and sorts what arrives for the others.
So nothing is read while nobody waits, and the server notices that its client is slow and sends it newer values instead.

Messages are plain dicts. Numbers with decimals are :class:`~decimal.Decimal`, digit by digit as the server printed
them. With ``encoding="struct"`` a message's "data" is a numpy array of records; which symbol a record is of, says
:attr:`Connection.listings` of its field "listing".
This module must not know of terminals, nor import anything of the server side.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import numpy as np
import trio
import trio_websocket

Message = dict[str, Any]

CONNECT_TIMEOUT_S: Final = 5.0
DISCONNECT_TIMEOUT_S: Final = 2.0
REQUEST_TIMEOUT_S: Final = 10.0
#: With a subscription the server sends a heartbeat every second; after this long without a byte it is gone.
SILENCE_S: Final = 10.0
#: Messages that a connection keeps while a request waits for its reply and nobody iterates.
MAX_UNREAD: Final = 50_000
#: What symbols may take of one request: a server reads messages of at most 16 KiB.
SYMBOLS_BYTES: Final = 12 * 1024
#: The snapshot of the ``instrument`` channel has some 350 bytes per pair, so thousands of pairs pass the usual 1 MiB.
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
#: What the first byte of a binary message says.
PACKED_CHANNELS: Final = {1: "ticker", 2: "trade", 3: "book", 4: "ohlc"}

_decode: Final = msgspec.json.Decoder(float_hook=Decimal).decode


class ConnectionRefused(Exception):
    """There is no connection to be had at a URL; the text says why and what to do."""


class ConnectionLost(Exception):
    """A connection has ended; the text says why and what to do.

    Attributes:
        code: The Close code of the WebSocket, 1006 where there was none.
        retry_after_s: How long the server said that it would be away; 0 if it said nothing.
    """

    def __init__(self, text: str, code: int = 1006) -> None:
        super().__init__(text)
        self.code = code
        self.retry_after_s = 0.0


class Connection:
    """An open connection; made by :func:`open_connection`.

    It must be read from: a server gives up on a client that neither iterates nor waits for a reply for long.

    Attributes:
        url: Where it leads.
        subprotocol: Which of those offered the server speaks; None if none.
        unread: Messages that have arrived and were not iterated over.
        apart: The same of replay sessions that are iterated over by themselves, by session.
        listings: Of subscriptions with ``encoding="struct"``: the symbol by the number that records have for it.
    """

    def __init__(self, url: str, socket: trio_websocket.WebSocketConnection, subprotocol: str | None = None) -> None:
        self.url = url
        self.subprotocol = subprotocol
        self.unread: deque[Message] = deque()
        self.apart: dict[str, deque[Message]] = {}
        self.listings: dict[int, str] = {}
        self._sessions: dict[int, str] = {}  # of these listings, those that are of a replay session
        self._dtypes: dict[str, np.dtype[np.void]] = {}  # of records, by channel
        self._socket = socket
        self._req_ids = itertools.count(1)
        self._replies: dict[int, list[Message]] = {}
        self._pairs: list[Message] | None = None
        self._lost: ConnectionLost | None = None
        self._away_s = 0.0  # what the server announced
        self._reading = False
        self._arrived = trio.Event()  # replaced with every message

    # Requests

    async def request(self, method: str, params: Message | None = None) -> Message:
        """Send a request and return its reply, as a dict; a refusal has ``success`` False and an ``error``.

        Raises:
            ConnectionLost: The connection has ended, or there was no reply within 10 s.
        """
        return (await self._exchange(method, params, 1))[0]

    async def subscribe(self, channel: str, symbols: Sequence[str], **params: Any) -> list[Message]:  # noqa: ANN401
        """Subscribe to a channel for some symbols.

        Args:
            channel: "ticker", "trade", "book", ...
            symbols: At least one; they are sent in as many requests as it takes.
            params: Further parameters of the channel; of ``resume`` each request has what is of its own symbols.

        Returns:
            One reply per symbol; those that were refused have ``success`` False, an ``error`` and their ``symbol``.
            The messages themselves come by iteration.

        Raises:
            ConnectionLost: As :meth:`request`.
        """
        replies: list[Message] = []
        for part in portions(dict.fromkeys(symbols)):
            wish = {"channel": channel, "symbol": part, **params}
            if isinstance(after := params.get("resume", {}).get("after"), dict):
                wish["resume"] = {**params["resume"], "after": {name: after[name] for name in part if name in after}}
            replies += await self._exchange("subscribe", wish, len(part))
        return replies

    async def pairs(self) -> list[Message]:
        """Return what the server lists: the pairs of the ``instrument`` channel, in its order.

        Raises:
            ConnectionLost: As :meth:`request`, or it has no such channel.
        """
        if self._pairs is None:
            reply = await self.request("subscribe", {"channel": "instrument"})
            if not reply.get("success"):
                raise ConnectionLost(f"{self.url} does not list its pairs ({reply.get('error')}); name the symbols")
            await self._wait(lambda: self._pairs is not None, "list of instruments")
        return self._pairs or []

    async def _exchange(self, method: str, params: Message | None, count: int) -> list[Message]:
        """Send a request and return its replies: ``count`` of them, or the one that refuses it as a whole."""
        req_id = next(self._req_ids)
        replies = self._replies[req_id] = []
        message = {"method": method, "params": params or {}, "req_id": req_id}
        try:
            await self._send(msgspec.json.encode(message).decode())
            await self._wait(lambda: len(replies) >= count or _refuses_all(replies), f"reply to {method}")
        finally:
            del self._replies[req_id]
        return replies

    async def _send(self, text: str) -> None:
        if self._lost is not None:
            raise self._lost
        try:
            await self._socket.send_message(text)
        except trio_websocket.ConnectionClosed as error:
            raise self._end(_why(self.url, error.reason)) from None
        except trio.Cancelled:
            # Half of the frame may be on its way, and whatever followed would land inside it.
            self._end(ConnectionLost(f"{self.url}: a request was cancelled while it was being sent; connect again"))
            raise

    # Reading

    def __aiter__(self) -> Connection:
        return self

    async def __anext__(self) -> Message:
        return await self.receive()

    async def receive(self, session: str = "") -> Message:
        """Return the next message that is not a reply; a cancel loses nothing.

        Args:
            session: One of those that are kept apart; by default, the next message of all others.

        Raises:
            ConnectionLost: The connection has ended and everything that came before was returned.
        """
        unread = self.apart.get(session, self.unread)
        if unread:
            await trio.lowlevel.checkpoint()
        await self._pump(lambda: bool(unread))
        return unread.popleft()

    async def receive_in_time(self) -> Message:
        """Return the next message of a server with which there is a subscription; as :meth:`receive`.

        Raises:
            ConnectionLost: Also after 10 s in which nothing came.
        """
        with trio.move_on_after(SILENCE_S):
            return await self.receive()
        raise ConnectionLost(f"{self.url}: nothing came for {SILENCE_S:.0f} s, not even a heartbeat")

    async def _wait(self, done: Callable[[], bool], what: str) -> None:
        with trio.move_on_after(REQUEST_TIMEOUT_S) as deadline:
            await self._pump(done)
        if deadline.cancelled_caught:
            raise ConnectionLost(f"{self.url}: no {what} within {REQUEST_TIMEOUT_S:.0f} s; is this a ticker server?")

    async def _pump(self, done: Callable[[], bool]) -> None:
        """Read until something is done. One task reads at a time; the others look at what it brings."""
        while not done():
            if self._lost is not None:
                raise self._lost
            if self._reading:
                await self._arrived.wait()
                continue
            try:
                self._reading = True
                self._sort(await self._socket.get_message())
            except trio_websocket.ConnectionClosed as error:
                self._end(_why(self.url, error.reason))
            finally:
                self._reading = False
                self._arrived.set()  # one of the waiting tasks goes on reading
                self._arrived = trio.Event()

    def _sort(self, data: str | bytes) -> None:
        """Put a message where it is waited for."""
        try:
            with picking_apart(self.url):
                self._put(self._unpacked(data) if isinstance(data, bytes) else _decode(data))
        except ConnectionLost as error:
            self._end(error)

    def _put(self, message: Message) -> None:
        if "method" in message:
            self._note_records(message)
            self._replies.get(message.get("req_id", 0), []).append(message)
            return
        session, channel = _session_of(message), message.get("channel")
        if channel == "instrument" and not session:
            self._pairs = _pairs_of(message)
        elif channel == "status":
            self._away_s = float(message["data"][0].get("reconnect_after_ms", 0)) / 1000
        unread = self.apart.get(session, self.unread)
        if len(unread) >= MAX_UNREAD:
            raise ConnectionLost(f"{self.url}: {MAX_UNREAD} messages came that nobody read; iterate meanwhile")
        unread.append(message)

    def _note_records(self, reply: Message) -> None:
        """Note what an acknowledgement says of the records to come."""
        ext = reply.get("ext") or {}
        if "dtype" in ext:
            granted, listing = reply["result"], ext["listing"]
            self._dtypes[granted["channel"]] = np.dtype([(name, kind) for name, kind in ext["dtype"]])
            self.listings[listing] = granted["symbol"]
            if "session" in granted:
                self._sessions[listing] = granted["session"]

    def _unpacked(self, data: bytes) -> Message:
        """Return a message of records, which are all of one channel and one session.

        Raises:
            ValueError: It is none.
        """
        channel = PACKED_CHANNELS.get(data[0] if data else 0, "")
        if channel not in self._dtypes:
            raise ValueError("binary, and no acknowledgement has said what it looks like")
        records = np.frombuffer(data, self._dtypes[channel])
        session = self._sessions.get(int(records["listing"][0]), "")
        return {"channel": channel, "data": records} | ({"session": session} if session else {})

    def _end(self, error: ConnectionLost) -> ConnectionLost:
        """Note why the connection has ended; the first reason counts."""
        if self._lost is None:
            self._lost, error.retry_after_s = error, self._away_s
        return self._lost


@contextlib.contextmanager
def picking_apart(url: str) -> Iterator[None]:
    """Count a message of a server that is not as it should be as the end of the connection.

    Raises:
        ConnectionLost: Something was missing in it, or of another kind.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        text = f"{url} sent something that is not of this protocol ({error!r:.100}); is this a ticker server?"
        raise ConnectionLost(text) from error


def _session_of(message: Message) -> str:
    """Return the replay session that a message is of; empty if it is of none."""
    row = message
    if message.get("channel") == "replay":
        (row,) = message["data"]
    return str(row.get("session", ""))


class _Pair(msgspec.Struct):
    """What every pair has, whatever else it has."""

    symbol: str
    base: str
    quote: str


def _pairs_of(message: Message) -> list[Message]:
    pairs: list[Message] = message["data"]["pairs"]
    msgspec.convert(pairs, list[_Pair])
    return pairs


def _refuses_all(replies: list[Message]) -> bool:
    """Whether a request was refused as a whole: such a refusal names no symbol."""
    return any(not reply.get("success", True) and "symbol" not in reply for reply in replies)


def _why(url: str, reason: trio_websocket.CloseReason | None) -> ConnectionLost:
    if reason is None or reason.code == 1006:
        return ConnectionLost(f"{url} broke the connection off; connect again, or look at its log")
    return ConnectionLost(f"{url} closed the connection: {reason.code} ({reason.reason or reason.name})", reason.code)


@contextlib.asynccontextmanager
async def open_connection(url: str, *, subprotocols: Sequence[str] = ()) -> AsyncIterator[Connection]:
    """Connect to a server; leaving the context closes the connection.

    The stream below is ours: trio-websocket leaves its own to the garbage collector when the server refuses, is silent
    or closes first, and waits for a silent one for ever.

    Args:
        url: ``ws://HOST:PORT/v2``, or wss.
        subprotocols: Profiles to offer to the server, such as "ticker.v1".

    Raises:
        ConnectionRefused: There is no connection to be had.
    """
    address = Address.of(url)
    async with await dial(address) as stream:
        with _single_error(url):
            async with trio.open_nursery() as nursery:  # of trio-websocket's reader
                socket = await _shake_hands(nursery, stream, address, subprotocols)
                try:
                    yield Connection(url, socket, socket.subprotocol)
                finally:
                    with trio.move_on_after(DISCONNECT_TIMEOUT_S):
                        await socket.aclose()
                    nursery.cancel_scope.cancel()


class Address(msgspec.Struct, frozen=True):
    """The parts of a URL."""

    url: str
    tls: bool
    host: str
    port: int
    resource: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Raise ConnectionRefused for a URL that is none."""
        try:
            parts = urlsplit(url)
            usual = {"ws": 80, "wss": 443}[parts.scheme]
            port = usual if parts.port is None else parts.port
        except (ValueError, KeyError):
            parts, port = urlsplit(""), 0
        if not parts.hostname:
            raise ConnectionRefused(f"{url} is not a WebSocket URL; it looks like ws://127.0.0.1:8765/v2")
        resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(url, parts.scheme == "wss", parts.hostname, port, resource)

    @property
    def host_header(self) -> str:
        """As RFC 9110 wants it, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_ClientStream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


async def dial(address: Address) -> _ClientStream:
    """Open the stream below a WebSocket."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            stream = await trio.open_tcp_stream(address.host, address.port)
            return await _encrypt(stream, address.host) if address.tls else stream
    except trio.TooSlowError:
        raise ConnectionRefused(f"no answer from {address.url} within {CONNECT_TIMEOUT_S:.0f} s") from None
    except (OSError, trio.BrokenResourceError) as error:
        text = f"no server at {address.url} ({_system_error(error)}); start one with `ticker serve`"
        raise ConnectionRefused(text) from error


async def _encrypt(stream: trio.SocketStream, host: str) -> _ClientStream:
    context = ssl.create_default_context()
    encrypted = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        await encrypted.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return encrypted


async def _shake_hands(
    nursery: trio.Nursery, stream: _ClientStream, address: Address, subprotocols: Sequence[str]
) -> trio_websocket.WebSocketConnection:
    """Open the WebSocket; a server that rejects it makes trio-websocket's reader raise in the nursery instead."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            return await trio_websocket.wrap_client_stream(
                nursery,
                stream,
                address.host_header,
                address.resource,
                subprotocols=subprotocols,
                max_message_size=MAX_MESSAGE_BYTES,
            )
    except trio.TooSlowError:
        nursery.cancel_scope.cancel()
        text = f"{address.url} did not answer as a WebSocket within {CONNECT_TIMEOUT_S:.0f} s; is this a ticker server?"
        raise ConnectionRefused(text) from None


@contextlib.contextmanager
def _single_error(url: str) -> Iterator[None]:
    """Take a lone exception out of the group that a nursery puts around it; a rejection becomes a refusal."""
    error: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) != 1:
            raise
        error = group.exceptions[0]
    if isinstance(error, trio_websocket.ConnectionRejected):
        said = (error.body or b"").decode(errors="replace").strip()
        raise ConnectionRefused(f"{url} answered HTTP {error.status_code}: {said or 'no reason given'}")
    if error is not None:
        raise error  # outside of the except clause, so that it keeps its own cause and context


def _system_error(error: BaseException) -> str:
    """Return what the system said, from below what Trio puts around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, BaseExceptionGroup):  # one per address that was tried
        return _system_error(error.exceptions[0])
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)  # Trio's text repeats the address
    return str(error)


def portions(symbols: Iterable[str]) -> Iterator[list[str]]:
    """Yield symbols in as few lists as it takes for each to fit into a request, also with a position for each."""
    part: list[str] = []
    room = SYMBOLS_BYTES
    for name in symbols:
        size = 2 * len(msgspec.json.encode(name)) + len(f",,:{2**63}")
        if part and size > room:
            yield part
            part, room = [], SYMBOLS_BYTES
        part.append(name)
        room -= size
    if part:
        yield part


def distinct(pairs: Iterable[Message]) -> list[Message]:
    """Return pairs of the ``instrument`` channel without those that are a second name of another one.

    A recorded ``BTCUSDT`` is offered as ``BTC/USDT`` too; both have the same rows.
    """
    listed = list(pairs)
    second_names = set()
    for base, quote, symbol in [(pair["base"], pair["quote"], pair["symbol"]) for pair in listed]:
        if base and quote and symbol in (f"{base}{quote}", f"{base}-{quote}", f"{base}_{quote}"):
            second_names.add(f"{base}/{quote}")
    return [pair for pair in listed if pair["symbol"] not in second_names]
