"""A market served inside the test, and a raw WebSocket peer that can misbehave.

:func:`open_house` runs the real server, sessions and broadcaster over a scripted feed. Peers reach it over a socket
pair (:meth:`House.dial`: the kernel hands bytes over at once, so virtual time works) or over loopback TCP
(:meth:`House.dial_tcp`). :class:`Peer` writes whatever bytes a test wants and reads through :class:`FrameParser`,
which accepts only what RFC 6455 lets a server send.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

import numpy as np
import trio

from feeds.feed import Supervisor
from feeds.instruments import Instrument, Instruments
from feeds.records import BUY, MISSING, Batch, Event, Marker, Quotes, Trades
from tests.scripted import market_of
from ticker.bus import Bus
from ticker.fanout import FanOut
from ticker.guard import GuardOptions
from ticker.head import TrustOptions
from ticker.history import HistoryOptions
from ticker.library import Library
from ticker.market import Market
from ticker.remote import PATH, Remote
from ticker.replays import Replays, ReplaysOptions
from ticker.rest import PRIVATE, Rest
from ticker.server import Server, ServerOptions
from ticker.session import SessionOptions
from ticker.transport import Transport, open_listener
from ticker.uring import open_ring
from ticker.web import Web
from ticker.wire import NATIVE

# RFC 6455: the opcodes, and its own examples of a key with its answer and of a mask.
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
MASK = b"\x37\xfa\x21\x3d"
#: Market time of the first event: 2026-01-02T09:04:31Z.
START_NS = 1_767_344_671_000_000_000
NS_PER_MS = 1_000_000
#: What the ``ticker`` command does, without the script having to be installed.
COMMAND = "import sys; from ticker.cli import main; sys.exit(main(sys.argv[1:]))"

BTC = Instrument(symbol="BTC/USD", base="BTC", quote="USD", price_precision=1, qty_precision=8)
ETH = Instrument(symbol="ETH/USD", base="ETH", quote="USD", price_precision=2, qty_precision=8)


class MalformedError(AssertionError):
    """The server sent something that RFC 6455 does not allow."""


class Frame(NamedTuple):
    """A frame as received."""

    opcode: int
    payload: bytes
    fin: bool = True

    @property
    def close_code(self) -> int | None:
        """The code of a Close frame; None where it is not one, or has none."""
        return int.from_bytes(self.payload[:2]) if self.opcode == CLOSE and self.payload else None


class FrameParser:
    """Reads frames of a server, strictly. Sans-IO.

    Attributes:
        closed: Whether a Close frame has come; nothing may follow it.
        incomplete: Bytes of a frame that has only begun.
    """

    def __init__(self) -> None:
        self.incomplete = b""
        self.closed = False
        self._message: tuple[int, bytes] | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are complete now.

        Raises:
            MalformedError: A server must not send this.
        """
        self.incomplete += data
        frames = []
        while (frame := self._next()) is not None:
            self._check(frame)
            frames.append(frame)
        if self.closed and self.incomplete:
            raise MalformedError(f"{len(self.incomplete)} bytes after the Close frame")
        return frames

    def _next(self) -> Frame | None:
        data = self.incomplete
        if len(data) < 2:
            return None
        if data[0] & 0x70:
            raise MalformedError(f"reserved bits in {data[:2].hex()}")
        if data[1] & 0x80:
            raise MalformedError("a server does not mask")
        start = 2 + {126: 2, 127: 8}.get(data[1], 0)
        if len(data) < start:
            return None
        size = data[1] if start == 2 else int.from_bytes(data[2:start])
        if size < {2: 0, 4: 126, 10: 65536}[start]:
            raise MalformedError(f"length {size} in {start} bytes of header")
        if len(data) < start + size:
            return None
        self.incomplete = data[start + size :]
        return Frame(data[0] & 0x0F, data[start : start + size], bool(data[0] & 0x80))

    def _check(self, frame: Frame) -> None:
        if self.closed:
            raise MalformedError("a frame after the Close frame")
        if frame.opcode in (CLOSE, PING, PONG):
            self._check_control(frame)
        elif frame.opcode in (TEXT, BINARY, CONTINUATION):
            self._check_data(frame)
        else:
            raise MalformedError(f"reserved opcode {frame.opcode}")

    def _check_control(self, frame: Frame) -> None:
        if not frame.fin or len(frame.payload) > 125:
            raise MalformedError("a control frame is one frame of at most 125 bytes")
        if frame.opcode == CLOSE:
            self.closed = True
            if len(frame.payload) == 1:
                raise MalformedError("a Close code has two bytes")
            _utf8(frame.payload[2:])

    def _check_data(self, frame: Frame) -> None:
        if (frame.opcode == CONTINUATION) != (self._message is not None):
            raise MalformedError("a message begins inside another, or goes on without having begun")
        opcode, before = self._message or (frame.opcode, b"")
        self._message = None if frame.fin else (opcode, before + frame.payload)
        if frame.fin and opcode == TEXT:
            _utf8(before + frame.payload)


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(f"text that is not UTF-8: {error}") from None


def client_frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0) -> bytes:
    """Return a frame as a client sends it, or as none should."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    return bytes((first,)) + _length(len(payload), masked) + (_mask(payload) if masked else payload)


def _length(size: int, masked: bool) -> bytes:
    bit = 0x80 if masked else 0
    if size < 126:
        return bytes((bit | size,))
    return bytes((bit | 126,)) + size.to_bytes(2) if size < 65536 else bytes((bit | 127,)) + size.to_bytes(8)


def _mask(payload: bytes) -> bytes:
    key = np.resize(np.frombuffer(MASK, np.uint8), len(payload))
    return MASK + (np.frombuffer(payload, np.uint8) ^ key).tobytes()


def request_head(
    path: str = "/v2", *, host: str = "localhost", extra: Iterable[str] = (), without: Sequence[str] = ()
) -> bytes:
    """Return the head of a WebSocket request.

    Args:
        path: Request target.
        host: Value of ``Host``.
        extra: Further lines.
        without: Names, in lower case, of lines left out.
    """
    lines = [f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {KEY}",
             "Sec-WebSocket-Version: 13"]  # fmt: skip
    kept = [line for line in lines if line.partition(":")[0].lower() not in without]
    return "\r\n".join([f"GET {path} HTTP/1.1", *kept, *extra, "", ""]).encode("latin-1")


class Peer:
    """A client made of a byte stream.

    Attributes:
        stream: For whatever a test wants to do to it.
        parser: Of what the server sends.
    """

    def __init__(self, stream: Transport) -> None:
        self.stream = stream
        self.parser, self._frames = FrameParser(), list[Frame]()

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self.stream.send_all(data)

    async def send_frame(self, opcode: int, payload: bytes = b"", **how: Any) -> None:
        """Send one frame; see :func:`client_frame`."""
        await self.send(client_frame(opcode, payload, **how))

    async def send_request(self, request: Any) -> None:
        """Send a request as JSON."""
        await self.send_frame(TEXT, json.dumps(request).encode())

    async def shake_hands(self, head: bytes | None = None) -> None:
        """Open the WebSocket; an empty head: it has been sent already.

        Raises:
            AssertionError: The server did not agree.
        """
        await self.send(request_head() if head is None else head)
        answer = b""
        while b"\r\n\r\n" not in answer and (data := await self.stream.receive_some()):
            answer += data
        answer, _, rest = answer.partition(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        assert ACCEPT in answer + b"\r\n", answer
        self._frames += self.parser.feed(rest)

    async def frame(self) -> Frame | None:
        """Return the next frame, or None at the end of the stream."""
        while not self._frames:
            data = await self.stream.receive_some()
            if not data:
                return None
            self._frames += self.parser.feed(data)
        return self._frames.pop(0)

    async def message(self) -> dict[str, Any]:
        """Return the next text message, read as JSON; control frames are passed over.

        Raises:
            AssertionError: The server ended the connection instead.
        """
        while (frame := await self.frame()) is not None:
            assert frame.opcode != CLOSE, f"closed with {frame.close_code} {frame.payload[2:]!r}"
            if frame.opcode == TEXT:
                return dict(json.loads(frame.payload))
        raise AssertionError("the server left without a Close frame")

    async def message_of(self, channel: str) -> dict[str, Any]:
        """Return the next message of a channel; others are passed over."""
        while (message := await self.message()).get("channel") != channel:
            pass
        return message

    async def trade_ids(self, count: int) -> list[int]:
        """Return the ids of the next trades of the trade channel, ``count`` or more."""
        ids: list[int] = []
        while len(ids) < count:
            ids += [row["trade_id"] for row in (await self.message_of("trade"))["data"]]
        return ids

    async def reply(self) -> dict[str, Any]:
        """Return the next reply to a request."""
        while not {"method", "success"} & (message := await self.message()).keys():
            pass
        return message

    async def ask(self, request: Any) -> dict[str, Any]:
        """Send a request and return the next reply."""
        await self.send_request(request)
        return await self.reply()

    async def subscribe(self, channel: str, *symbols: str, **params: Any) -> None:
        """Subscribe, and read the replies."""
        wanted = list(symbols or ("BTC/USD",))
        await self.send_request({"method": "subscribe", "params": {"channel": channel, "symbol": wanted, **params}})
        for _ in wanted:
            assert (await self.reply())["success"] is True

    async def rest(self) -> list[Frame]:
        """Return the frames that still come, up to the end of the stream; a reset is an end too."""
        frames = []
        with suppress(trio.BrokenResourceError):
            while (frame := await self.frame()) is not None:
                frames.append(frame)
        return frames

    async def farewell(self) -> int | None:
        """Return the code of the Close frame with which the server ends the connection; None: there is none."""
        return frames[-1].close_code if (frames := await self.rest()) else None

    async def answer(self) -> bytes:
        """Return everything that comes until the end, as bytes: an HTTP response."""
        data = b""
        while received := await self.stream.receive_some():
            data += received
        return data

    def leave(self) -> None:
        """Close the socket without a word."""
        self.stream.close()


class ScriptedFeed:
    """A feed that says what it is told to say.

    Attributes:
        instruments: BTC/USD and ETH/USD unless others are given.
    """

    name = "scripted"
    mode = "sim"

    def __init__(self, instruments: Iterable[Instrument] = (BTC, ETH), script: Iterable[Event] = ()) -> None:
        self.instruments = Instruments(instruments)
        self._script = tuple(script)
        self._send, self._receive = trio.open_memory_channel[Event](0)

    async def run(self, out: trio.abc.SendChannel[Event]) -> None:
        """Write an epoch marker, the script, and then whatever is told; endless."""
        await out.send(Marker(kind="epoch", ts=START_NS, reason="start"))
        for event in self._script:
            await out.send(event)
        async for event in self._receive:
            await out.send(event)

    async def tell(self, event: Event) -> None:
        """Have the feed write an event."""
        await self._send.send(event)


def trades_batch(first: int, count: int, instrument: int = 0) -> Batch:
    """Return a batch of trades with the ids ``first``, ``first + 1``, …, a millisecond of market time apart."""
    ids = np.arange(first, first + count, dtype=np.int64)
    columns = {
        "ts_recv": START_NS + ids * NS_PER_MS, "ts_event": np.full(count, MISSING), "seq": 2 * ids,
        "instrument": np.full(count, instrument), "flags": np.zeros(count), "price": 600_000 + ids % 7,
        "qty": np.full(count, 12_345_678), "side": np.full(count, BUY), "trade_id": ids,
    }  # fmt: skip
    trades = Trades(**{name: columns[name].astype(dtype) for name, dtype in Trades.DTYPES.items()})
    return Batch(ts=int(trades.ts_recv[-1]), trades=trades)


def quotes_batch(first: int, count: int, instrument: int = 0) -> Batch:
    """Return a batch of quotes, a millisecond of market time apart; the bid counts up from ``first`` ticks."""
    ids = np.arange(first, first + count, dtype=np.int64)
    columns = {
        "ts_recv": START_NS + ids * NS_PER_MS, "ts_event": np.full(count, MISSING), "seq": 2 * ids + 1,
        "instrument": np.full(count, instrument), "flags": np.zeros(count), "bid_px": ids,
        "bid_qty": np.full(count, 1), "ask_px": ids + 2, "ask_qty": np.full(count, 1),
    }  # fmt: skip
    quotes = Quotes(**{name: columns[name].astype(dtype) for name, dtype in Quotes.DTYPES.items()})
    return Batch(ts=int(quotes.ts_recv[-1]), quotes=quotes)


class House:
    """A served market.

    Attributes:
        feed: What happens in it.
        market: The market.
        server: The server.
        replays: What its clients have had replayed.
        port: Of the loopback listener; None where there is none.
        peers: Everybody who was connected; closed at the end.
        traded: Id of the last trade.
    """

    def __init__(
        self,
        feed: ScriptedFeed,
        market: Market,
        server: Server,
        replays: Replays,
        connections: trio.Nursery,
        *,
        port: int | None,
    ) -> None:
        self.feed = feed
        self.market = market
        self.server = server
        self.replays = replays
        self.port = port
        self.peers: list[Peer] = []
        self._connections = connections
        self.traded = 0

    def dial(self) -> Peer:
        """Return a peer that is connected over a socket pair and has said nothing yet."""
        theirs, ours = socket.socketpair()
        self._connections.start_soon(self.server.serve_connection, Transport(theirs))
        return self._known(Peer(Transport(ours)))

    def dial_tcp(self) -> Peer:
        """Return a peer that is connected over loopback TCP and has said nothing yet."""
        assert self.port is not None, "open_house(tcp=True)"
        return self._known(dial_tcp(self.port))

    def _known(self, peer: Peer) -> Peer:
        self.peers.append(peer)
        return peer

    async def visit(self, *, native: bool = False) -> Peer:
        """Return a peer whose WebSocket is open and greeted."""
        peer = self.dial()
        await peer.shake_hands(request_head(extra=[f"Sec-WebSocket-Protocol: {NATIVE}"]) if native else None)
        assert (await peer.message())["channel"] == "status"
        return peer

    async def post(self, path: str, body: bytes, **lines: str | None) -> tuple[int, bytes]:
        """Send a POST as it is, JSON unless its lines say otherwise; return the status and the body of the answer."""
        head = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body)), **lines}
        text = "".join(f"{name}: {value}\r\n" for name, value in head.items() if value is not None)
        peer = self.dial()
        await peer.send(f"POST {path} HTTP/1.1\r\n{text}\r\n".encode() + body)
        answer, _, said = (await peer.answer()).partition(b"\r\n\r\n")
        return int(answer.split()[1]), said

    async def trade(self, count: int = 1) -> None:
        """Let trades of BTC/USD happen; their ids count up from 1."""
        await self.feed.tell(trades_batch(self.traded + 1, count))
        self.traded += count

    @property
    def empty(self) -> bool:
        """Whether the server holds nothing for anybody."""
        statistics = self.server.statistics()
        told = self.market.broadcaster.statistics()
        return not (statistics.connections or statistics.sessions or self.server.sessions or told.subscriptions)

    async def wait_empty(self) -> None:
        """Wait until no connection is left."""
        await self.server.wait_empty()


def dial_tcp(port: int) -> Peer:
    """Return a peer that is connected to a loopback port."""
    return Peer(Transport(socket.create_connection(("127.0.0.1", port))))


@asynccontextmanager
async def open_house(
    feed: ScriptedFeed | None = None,
    *,
    tcp: bool = False,
    server: ServerOptions | None = None,
    session: SessionOptions | None = None,
    guard: GuardOptions | None = None,
    trust: TrustOptions | None = None,
    replays: ReplaysOptions | None = None,
) -> AsyncIterator[House]:
    """Serve a market until the block ends; peers that are still connected then are closed.

    Frames go out through a ring, however few there are, if the system gives one.

    Args:
        feed: What happens in it.
        tcp: Whether it listens on a loopback port too.
        server, session, guard, trust, replays: Options; the default session sends every ticker event at once.
    """
    feed = feed or ScriptedFeed()
    chosen = replays or ReplaysOptions()
    fan_out = FanOut(open_ring(), many=1)
    market = market_of(feed, HistoryOptions(), chosen, fan_out)
    await market.gateway.recover()
    remote = Remote(market)
    desk = Replays(Library(chosen.directory), chosen, HistoryOptions(), fan_out)
    host = Server(
        market,
        Web(
            {"/healthz": lambda _: (200, "application/json", b'{"status": "ok"}\n'), PATH: remote.state},
            {PATH: remote.control, PRIVATE: Rest(market.gateway.accounts).private},
        ),
        server or ServerOptions(),
        session=session or SessionOptions(ticker_interval_ms=0), guard=guard or GuardOptions(),
        trust=trust or TrustOptions(), replays=desk,
    )  # fmt: skip

    async def play() -> None:
        await Supervisor(feed).run(Bus(market.happened, market.marked))
        if market.bulletin is not None:
            market.bulletin.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play)
        if market.bulletin is not None:
            nursery.start_soon(market.bulletin.run)
        for task in (market.broadcaster.run, market.gateway.run, desk.run, host.heartbeats):
            nursery.start_soon(task)
        port = None
        if tcp:
            listener = open_listener("127.0.0.1", 0)
            port = listener.address[1]
            nursery.start_soon(partial(trio.serve_listeners, host.serve_connection, [listener]))
        async with trio.open_nursery() as connections:
            house = House(feed, market, host, desk, connections, port=port)
            try:
                yield house
            finally:
                for peer in house.peers:
                    peer.leave()
                fan_out.close()
            connections.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


class Service(NamedTuple):
    """A ``ticker serve`` in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int
    log: IO[bytes]

    def finish(self, timeout_s: float = 10.0) -> tuple[int, str]:
        """Wait for the process and return its exit code and what it wrote to stderr."""
        code = self.process.wait(timeout_s)
        self.log.seek(0)
        return code, self.log.read().decode()


@contextmanager
def service(*arguments: str, limit_files: int | None = None) -> Iterator[Service]:
    """Run ``ticker serve`` on a free loopback port; it is killed at the end if it has not ended.

    What it logs goes to a file: a pipe that nobody reads would stop it after 64 KiB.

    Args:
        *arguments: Further arguments.
        limit_files: How many file descriptors the process may have.
    """
    code = COMMAND
    if limit_files is not None:
        code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit_files}, {limit_files})); {code}"
    command = [sys.executable, "-c", code, "serve", "--port", "0", *arguments]
    with TemporaryFile() as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
        try:
            assert process.stdout is not None
            announced = re.search(rb"ws://127\.0\.0\.1:(\d+)/", process.stdout.readline())
            assert announced, "ticker serve did not start"
            yield Service(process, int(announced[1]), log)
        finally:
            process.kill()
