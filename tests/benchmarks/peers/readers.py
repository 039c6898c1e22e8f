"""``readers PORT NEVER TRICKLING FAST SECONDS LIFETIME MESSAGE``: native subscribers of the ticker that check accounts.

NEVER read nothing. TRICKLING read until their first row and then 1 KiB a second for SECONDS; after that a sample of
them reads all that is there. FAST read always. Prints a line once all trickle, and at the end a JSON object with an
:class:`Account` of each kind that reads.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator

import msgspec
import trio

from tests.benchmarks.peers.stalled import subscribe
from tests.benchmarks.peers.tick import end_after

TRICKLE_BYTES = 1024
#: Of those that trickle; with the usual 128 KiB the kernel would tell the server of room once in a minute.
TRICKLE_BUFFER_BYTES = 4096
#: Those that trickle owe more than one Python process reads at once.
SAMPLE = 10
BEGIN_S = 10.0
DRAIN_S = 3.0
READ_BYTES = 65536


class Pos(msgspec.Struct):
    """Where a message stands in its stream."""

    prev: int | None
    last: int
    n: int
    conflated: int
    dropped: int


class Row(msgspec.Struct):
    """A row of a ticker; rows of heartbeats have no symbol."""

    symbol: str = ""


class Message(msgspec.Struct):
    """What matters of a message of the server."""

    channel: str = ""
    pos: Pos | None = None
    data: list[Row] = []


class Account(msgspec.Struct):
    """What became of the events of some subscribers.

    Attributes:
        subscribers: How many were looked at.
        messages: Data messages that they got.
        conflated: Events that a newer state stood for.
        dropped: Events lost.
        wrong: Messages that do not begin where the one before ended, or whose counts do not add up.
        closed: Subscribers whose connection had ended when all of it was to be read.
    """

    subscribers: int = 0
    messages: int = 0
    conflated: int = 0
    dropped: int = 0
    wrong: int = 0
    closed: int = 0

    def take(self, known: dict[str, int], message: Message) -> None:
        """Check a message against what its subscriber knows, by symbol."""
        pos = message.pos
        if message.channel != "ticker" or pos is None:
            return
        self.messages += 1
        self.conflated += pos.conflated
        self.dropped += pos.dropped
        symbol = message.data[0].symbol
        if pos.prev is not None:
            adds_up = pos.last - pos.prev == pos.n + pos.conflated + pos.dropped and pos.n == len(message.data)
            self.wrong += not (adds_up and known.get(symbol) == pos.prev)
        known[symbol] = pos.last


def take_frames(buffer: bytearray) -> Iterator[bytes]:
    """Yield the payloads of the whole frames at the beginning of a buffer, and remove them from it."""
    at = 0
    while len(buffer) - at >= 4:
        size, head = buffer[at + 1], 2
        if size == 126:
            size, head = struct.unpack_from(">H", buffer, at + 2)[0], 4
        elif size == 127:
            raise ValueError("a message of more than 64 KiB is no row of a ticker")
        if len(buffer) - at < head + size:
            break
        yield bytes(buffer[at + head : at + head + size])
        at += head + size
    del buffer[:at]


class Reader:
    """A subscriber that reads."""

    def __init__(self, sock: trio.socket.SocketType, account: Account) -> None:
        self._sock = sock
        self._account = account
        self._decoder = msgspec.json.Decoder(Message)
        self._buffer = bytearray()
        self._known: dict[str, int] = {}
        account.subscribers += 1

    async def begin(self) -> None:
        """Read until the first row."""
        while not self._known and await self._read(READ_BYTES):
            pass

    async def trickle(self) -> None:
        """Read a little every second, until the connection ends."""
        reading = True
        while reading:
            reading = await self._read(TRICKLE_BYTES)
            await trio.sleep(1.0)

    async def drain(self) -> None:
        """Read all that comes, until the connection ends."""
        while await self._read(READ_BYTES):
            pass
        self._account.closed += 1

    async def _read(self, most: int) -> bool:
        data = await self._receive(most)
        self._buffer += data
        for payload in take_frames(self._buffer):
            self._account.take(self._known, self._decoder.decode(payload))
        return bool(data)

    async def _receive(self, most: int) -> bytes:
        try:
            return await self._sock.recv(most)
        except ConnectionError:
            return b""


def connected(port: int, number: int, message: bytes, receive_bytes: int = 0) -> list[trio.socket.SocketType]:
    """Return that many subscribers."""
    plain = [subscribe(port, message, native=True, receive_bytes=receive_bytes) for _ in range(number)]
    for sock in plain:
        sock.setblocking(False)
    return [trio.socket.from_stdlib_socket(sock) for sock in plain]


async def all_of(tasks: Iterable[Callable[[], Awaitable[None]]], seconds: float) -> None:
    """Run all of these, for a while at most."""
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)


async def main(port: int, never: int, trickling: int, fast: int, seconds: float, message: bytes) -> None:
    """Run all of them."""
    silent = connected(port, never, message, TRICKLE_BUFFER_BYTES)
    slow_account, fast_account = Account(), Account()
    slow = [Reader(sock, slow_account) for sock in connected(port, trickling, message, TRICKLE_BUFFER_BYTES)]
    quick = [Reader(sock, fast_account) for sock in connected(port, fast, message)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(all_of, [reader.drain for reader in quick], math.inf)
        await all_of([reader.begin for reader in slow], BEGIN_S)
        print(len(silent) + len(slow) + len(quick), flush=True)
        await all_of([reader.trickle for reader in slow], seconds)
        await all_of([reader.drain for reader in slow[:SAMPLE]], DRAIN_S)
        nursery.cancel_scope.cancel()
    print(msgspec.json.encode({"trickling": slow_account, "fast": fast_account}).decode(), flush=True)


if __name__ == "__main__":
    end_after(int(sys.argv[6]))
    to, silent, trickling, fast = (int(argument) for argument in sys.argv[1:5])
    trio.run(main, to, silent, trickling, fast, float(sys.argv[5]), sys.argv[7].encode())
