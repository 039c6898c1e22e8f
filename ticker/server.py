"""One port: accepts connections, reads each one's head, and runs a WebSocket session or answers a page request.

A connection can only ever end itself. Whatever goes wrong in one, in the library or in our own code, stops at
:meth:`Server.serve_connection`, is counted, and costs that connection a Close frame.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from typing import Annotated, Any, Final

import msgspec
import trio
import trio_websocket

from ticker.codec import PING, close_frame, frame
from ticker.deflate import Inflater, negotiate
from ticker.errors import ProtocolViolation, RequestError
from ticker.guard import FrameGuard, GuardOptions, whole_text
from ticker.head import BadHead, Head, TrustOptions, check_trust, check_upgrade, read_head
from ticker.market import Market
from ticker.orders.accounts import Grant
from ticker.outbox import Outbox
from ticker.replays import Replays
from ticker.session import Session, SessionOptions
from ticker.transport import Transport
from ticker.web import Web
from ticker.wire import NATIVE

logger = logging.getLogger(__name__)

PATHS: Final = ("/v2", "/", "/ws")
GOING_AWAY: Final = 1001
INTERNAL_ERROR: Final = 1011
NO_PONG: Final = 4009
#: What trio-websocket finds in frames and does not tell the peer: protocol error, invalid data, too big.
BROKEN_CODES: Final = (1002, 1007, 1009)
#: What a peer says that leaves on purpose: done, going away, or nothing, as a browser's ``close()`` without a code.
GOODBYES: Final = (1000, 1001, 1005)
#: How long an ending connection may take: to accept our Close frame and to answer it.
CLOSE_TIMEOUT_S: Final = 2.0
#: trio-websocket answers a valid head at once; this only bounds a defect.
HANDSHAKE_TIMEOUT_S: Final = 5.0
HEARTBEAT_S: Final = 1.0


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server listens, and how many it serves.

    Attributes:
        host: Address to bind; anything but loopback needs ``insecure``.
        port: 0 picks a free one.
        insecure: Whether it may be reached from other machines although nothing is encrypted.
        max_connections: Over all addresses; one more is answered 503.
        max_connections_per_address: From one address; behind a proxy that is all of them.
        max_unauthenticated: WebSockets that came without a valid token in ``Authorization``, where accounts have
            tokens: who trades still finds a place when the public has taken these.
        ping_interval_s: A peer that has been silent for so long is pinged.
        ping_timeout_s: How long it may stay silent after a ping.
        deflate: Whether messages are compressed for clients that offer it (RFC 7692).
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8765
    insecure: bool = False
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 20_000
    max_connections_per_address: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    max_unauthenticated: Annotated[int, msgspec.Meta(ge=0)] = 18_000
    ping_interval_s: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    ping_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    deflate: bool = False


class ServerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the server has done so far.

    Attributes:
        connections: Open now, of any kind.
        sessions: Open WebSocket sessions.
        accepted: Connections so far.
        ended: Why connections ended, by reason.
        backlog_bytes: Bytes waiting in the outboxes of the sessions that are open.
    """

    connections: int
    sessions: int
    accepted: int
    ended: dict[str, int]
    backlog_bytes: int


class GuardedStream(trio.abc.Stream):
    """What trio-websocket reads and writes: the guarded peer on one side, the outbox on the other.

    It first gives back the head that was read already. Nothing more is read before our own 101 went out. A message
    that came as a whole goes straight to the session once there is one, unless an earlier one is still with
    trio-websocket, which reads everything else.

    Attributes:
        session: Who takes messages; None: nobody now.
        delivered: Messages that a session was given.
        defect: What a session has raised when it was given one.
    """

    def __init__(
        self, transport: Transport, outbox: Outbox, guard: FrameGuard, head: Head, *, inflater: Inflater | None = None
    ) -> None:
        self._transport = transport
        self._outbox = outbox
        self._guard = guard
        self._inflater = inflater
        self._head, self._rest = head.canonical, head.rest
        self.bearer = head.bearer
        self.opened = trio.Event()
        self.connection: trio_websocket.WebSocketConnection | None = None
        self.violation: ProtocolViolation | None = None
        self.received_at = trio.current_time()
        self.session: Session | None = None
        self.delivered = 0
        self.defect: Exception | None = None

    @property
    def broken(self) -> ProtocolViolation | None:
        """How the peer broke the protocol in the eyes of trio-websocket, if it did."""
        closed = None if self.connection is None else self.connection.closed
        if closed is None or self._outbox.sealed or closed.code not in BROKEN_CODES:
            return None
        return ProtocolViolation(closed.code, closed.reason or "")

    @property
    def said_goodbye(self) -> bool:
        """Whether the peer has closed in good order."""
        closed = None if self.connection is None else self.connection.closed
        return closed is not None and closed.code in GOODBYES

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next bytes; ``b""`` at the end or after a violation, which has been answered with a Close."""
        if self._head:
            head, self._head = self._head, b""
            return head
        if not self.opened.is_set():  # waiting for what has happened would cost every read a turn of all tasks
            await self.opened.wait()
        try:
            while True:
                data, self._rest = self._rest, b""
                if not data:
                    data = await self._transport.receive_some(max_bytes)
                in_order = self._guard.between and self._guard.messages == self.delivered
                plain = self._admitted(data)
                if in_order and self._took(data):
                    continue
                if plain or not data:  # else it is a part of a compressed frame, and nothing would mean the end
                    return plain
        except ProtocolViolation as violation:
            self.violation = violation
            self._outbox.push(close_frame(violation.close_code, violation.reason))
            self._outbox.seal()
            return b""

    def _took(self, data: bytes) -> bool:
        """Give the session a message that came as a whole, if that is what it is."""
        session = self.session
        if session is None or session.ending or self._outbox.sealed or self._inflater is not None:
            return False
        message = whole_text(data)
        if message is None:
            return False
        self.delivered += 1
        try:
            session.receive(message)
        except Exception as defect:  # trio-websocket, in whose task this is, would lose it: _converse raises it
            self.session, self.defect = None, defect
            session.on_end()
        return True

    def _admitted(self, data: bytes) -> bytes:
        """Return bytes from the peer as trio-websocket may see them."""
        self.received_at = trio.current_time()
        self._guard.feed(data, self.received_at)
        if self._inflater is None or not data:
            return data
        plain = self._inflater.feed(data)
        self._guard.charge(max(0, len(plain) - len(data)), self.received_at)
        return plain

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue a whole frame; after a Close frame nothing more goes out."""
        await trio.lowlevel.checkpoint()
        if self._outbox.failed:
            raise trio.BrokenResourceError
        self._outbox.push(bytes(data))
        if self.opened.is_set() and data[0] & 0x0F == 0x08:
            self._outbox.seal()

    async def wait_send_all_might_not_block(self) -> None:
        """It never blocks: the outbox is bounded and ends the connection instead."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Let what was queued go out, tell the peer that nothing follows, and close; 2 s at most.

        trio-websocket closes a stream on which the peer broke the protocol without saying so; the Close frame that
        RFC 6455 section 7.1.7 asks for is sent here.
        """
        broken = self.broken
        if broken is not None:
            self._outbox.push(close_frame(broken.close_code, broken.reason))
        self._outbox.seal()
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await self._outbox.wait_flushed()
            await self._transport.finish()
        await self._transport.aclose()


class Server:
    """Serves a market to whoever connects.

    Attributes:
        sessions: Open sessions by connection id.
    """

    def __init__(
        self,
        market: Market,
        web: Web,
        options: ServerOptions,
        *,
        session: SessionOptions,
        guard: GuardOptions,
        trust: TrustOptions,
        replays: Replays | None = None,
    ) -> None:
        self._market = market
        self._replays = replays
        self._web = web
        self._options = options
        self._session_options = session
        self._guard_options = guard
        self._trust = trust
        self._ids = itertools.count(1)
        self._per_address: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._accepted = 0
        self._unauthenticated = 0
        self._reconnect_after_ms: int | None = None  # once the server stops
        self._left = trio.Event()  # replaced whenever a connection has ended
        self.sessions: dict[int, Session] = {}
        self._outboxes: dict[int, Outbox] = {}

    # One connection

    async def serve_connection(self, transport: Transport) -> None:
        """Serve one connection from its first byte to its last; never raises."""
        peer = transport.peer
        self._accepted += 1
        self._per_address[peer] += 1
        try:
            await self._serve(transport)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            self._ended["reset"] += 1
        except* Exception:
            self._ended["defect"] += 1
            logger.exception("connection from %s ended by a defect", peer)
        finally:
            transport.close()
            self._left.set()
            self._left = trio.Event()
            self._per_address[peer] -= 1
            if not self._per_address[peer]:
                del self._per_address[peer]

    async def _serve(self, transport: Transport) -> None:
        try:
            self._check_open()
            if self._full(transport.peer):
                raise BadHead(503, "too many connections")
            head = await read_head(transport)
            if head is None:
                self._ended["no request"] += 1
                return
            check_trust(head, self._trust, self._options.host)
            if not head.upgrades:
                await self._web.respond(transport, head)
                self._ended["http"] += 1
                return
            if head.method != "GET" or head.path not in PATHS:
                raise BadHead(404, f"WebSockets are at {' '.join(PATHS)}")
            check_upgrade(head)
            self._check_open()
            unauthenticated = self._grant(head.bearer) is None
            if unauthenticated and self._unauthenticated >= self._options.max_unauthenticated:
                raise BadHead(503, "too many connections without a token")
        except BadHead as error:
            self._ended[f"http {error.status}"] += 1
            await self._web.refuse(transport, error)
            return
        self._unauthenticated += unauthenticated
        try:
            await self._websocket(transport, head)
        finally:
            self._unauthenticated -= unauthenticated

    def _check_open(self) -> None:
        if self._reconnect_after_ms is not None:
            raise BadHead(503, "the server is stopping")

    def _full(self, peer: str) -> bool:
        total = self._per_address.total()
        return (
            total > self._options.max_connections or self._per_address[peer] > self._options.max_connections_per_address
        )

    def _grant(self, token: str) -> Grant | None:
        """Return what a token gives; None: nothing."""
        try:
            return self._market.gateway.accounts.grant(token)
        except RequestError:
            return None

    def _limits(self, token: str) -> dict[str, int]:
        """Return what ``status`` says of limits that are not the session's; 0 ``open_orders``: as many as it wants."""
        options = self._options
        limits = {
            "connections_per_address": min(options.max_connections_per_address, options.max_connections),
            "message_bytes": self._guard_options.max_message_bytes,
        }
        grant = self._grant(token)
        if grant is not None:
            limits["open_orders"] = self._market.gateway.accounts.options[grant.account].limits.open_orders
        return limits

    async def _websocket(self, transport: Transport, head: Head) -> None:
        outbox = Outbox(transport)
        guard = FrameGuard(self._guard_options, trio.current_time())
        extension = negotiate(head.headers.get("sec-websocket-extensions", "")) if self._options.deflate else None
        inflater = Inflater(self._guard_options.max_message_bytes) if extension else None
        stream = GuardedStream(transport, outbox, guard, head, inflater=inflater)
        async with trio.open_nursery() as outer:
            outer.start_soon(outbox.run)
            try:
                await self._converse(stream, outbox, extension)
            except* Exception:
                self._ended["defect"] += 1
                logger.exception("session from %s ended by a defect", transport.peer)
                outbox.push(close_frame(INTERNAL_ERROR, "internal error"))
            finally:
                await stream.aclose()
            outer.cancel_scope.cancel()

    async def _converse(self, stream: GuardedStream, outbox: Outbox, extension: str | None) -> None:
        """Shake hands, run the session, and say goodbye if it was ours to say."""
        async with trio.open_nursery() as nursery:
            with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                request = await trio_websocket.wrap_server_stream(
                    nursery, stream, max_message_size=self._guard_options.max_message_bytes
                )
                native = NATIVE in request.proposed_subprotocols
                headers = [(b"Sec-WebSocket-Extensions", extension.encode())] if extension else None
                connection = await request.accept(subprotocol=NATIVE if native else None, extra_headers=headers)
            stream.connection = connection
            stream.opened.set()
            session = Session(
                next(self._ids), outbox, self._market, self._session_options, native=native, deflated=bool(extension),
                bearer=stream.bearer, replays=self._replays, limits=self._limits(stream.bearer),
            )  # fmt: skip
            self.sessions[session.id], self._outboxes[session.id] = session, outbox
            try:
                if self._reconnect_after_ms is not None:  # since it asked
                    self._dismiss(session, self._reconnect_after_ms)
                nursery.start_soon(self._keep_alive, stream, outbox, session)
                with trio.CancelScope() as reading:
                    session.on_end = outbox.on_failure = reading.cancel
                    if not (outbox.failed or session.ending):
                        await self._read(connection, stream, session)
                if stream.defect is not None:
                    raise stream.defect
            finally:
                stream.session = None
                del self.sessions[session.id], self._outboxes[session.id]
                stopping = self._reconnect_after_ms is not None
                session.forget(clean=stopping or (not session.ending and stream.said_goodbye))
            self._ended[self._reason(stream, outbox, session)] += 1
            if session.ending:
                outbox.push(close_frame(*session.close))
                outbox.seal()
                await self._drain(connection)
            nursery.cancel_scope.cancel()

    async def _read(self, connection: Any, stream: GuardedStream, session: Session) -> None:  # noqa: ANN401 - trio-websocket is untyped here
        session.begin()
        stream.session = session
        while True:
            try:
                message = await connection.get_message()
            except trio_websocket.ConnectionClosed:
                return
            stream.delivered += 1
            session.receive(message)

    async def _drain(self, connection: Any) -> None:  # noqa: ANN401
        """Read on until the peer has answered our Close; closing earlier could reset it away."""
        with trio.move_on_after(CLOSE_TIMEOUT_S):
            try:
                while True:
                    await connection.get_message()
            except trio_websocket.ConnectionClosed:
                pass

    async def _keep_alive(self, stream: GuardedStream, outbox: Outbox, session: Session) -> None:
        """Ping a peer that has been silent; whatever it sends afterwards is a sign of life."""
        while True:
            await trio.sleep_until(stream.received_at + self._options.ping_interval_s)
            if trio.current_time() < stream.received_at + self._options.ping_interval_s:
                continue
            pinged_at = trio.current_time()
            outbox.push(frame(b"", PING))
            await trio.sleep(self._options.ping_timeout_s)
            if stream.received_at < pinged_at:
                session.end(NO_PONG, "no answer to a ping")
                return

    def _reason(self, stream: GuardedStream, outbox: Outbox, session: Session) -> str:
        if session.ending:
            return f"closed {session.close[0]}"
        if stream.violation is not None:
            return f"violation {stream.violation.close_code}"
        return "output failed" if outbox.failed else "peer left"

    # All of them

    async def heartbeats(self) -> None:
        """Tell every subscriber to whom nothing was sent for a second that the connection lives."""
        while True:
            await trio.sleep(HEARTBEAT_S)
            for position, session in enumerate(list(self.sessions.values())):
                session.beat()
                if position % 64 == 63:
                    await trio.lowlevel.checkpoint()

    def drain(self, reconnect_after_ms: int) -> None:
        """Tell every client that the server stops, and end its session with Close 1001; take no new ones."""
        self._reconnect_after_ms = reconnect_after_ms
        for session in list(self.sessions.values()):
            self._dismiss(session, reconnect_after_ms)

    def _dismiss(self, session: Session, reconnect_after_ms: int) -> None:
        session.tell_status("maintenance", reconnect_after_ms)
        session.end(GOING_AWAY, "the server stops")

    async def wait_empty(self) -> None:
        """Wait until no connection is left."""
        while self._per_address:
            await self._left.wait()

    def statistics(self) -> ServerStatistics:
        """Return the counts so far."""
        return ServerStatistics(
            connections=self._per_address.total(),
            sessions=len(self.sessions),
            accepted=self._accepted,
            ended=dict(self._ended),
            backlog_bytes=sum(outbox.backlog_bytes for outbox in self._outboxes.values()),
        )
