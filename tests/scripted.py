"""Test support: a small market whose events a test writes down, and what its subscribers were sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import trio

from feeds.feed import Feed
from feeds.instruments import Instrument, Instruments
from feeds.records import BUY, CLEAR, LAST, MISSING, NO_SIDE, SELL, SET, SNAPSHOT, Batch, Levels, Marker, Quotes, Trades
from ticker.app import build_market
from ticker.config import Options
from ticker.fanout import FanOut
from ticker.history import HistoryOptions
from ticker.market import Market
from ticker.orders.journal import MEMORY, Journal
from ticker.orders.options import OrdersOptions
from ticker.outbox import Outbox
from ticker.replays import ReplaysOptions

#: 2026-01-02T09:04:31Z
START_NS = 1_767_344_671_000_000_000

BTC, ETH = 0, 1
INSTRUMENTS = Instruments(
    [
        Instrument(symbol="BTC/USD", base="BTC", quote="USD", price_precision=1, qty_precision=8),
        Instrument(
            symbol="ETHUSDT", base="ETH", quote="USDT", price_precision=2, qty_precision=4, aliases=("ETH/USDT",)
        ),
    ]
)


class ScriptedFeed:
    """A feed that does what a test puts into its channel; satisfies :class:`feeds.feed.Feed`."""

    name = "scripted"
    mode = "sim"

    def __init__(self, instruments: Instruments = INSTRUMENTS) -> None:
        self.instruments = instruments
        self.script, self._events = trio.open_memory_channel[Any](10_000)

    async def run(self, out: trio.abc.SendChannel[Any]) -> None:
        await out.send(Marker(kind="epoch", ts=START_NS, reason="the script begins"))
        async for event in self._events:
            await out.send(event)


class Tape:
    """Writes batches: keeps time and sequence so that a test says only what matters."""

    def __init__(self, start_ns: int = START_NS) -> None:
        self.ns = start_ns
        self.seq = 0

    def _rows(self, instrument: list[int], flags: list[int]) -> dict[str, Any]:
        n = len(instrument)
        self.ns += 1_000_000
        seq = np.arange(self.seq + 1, self.seq + n + 1)
        self.seq += n
        return {
            "ts_recv": np.full(n, self.ns),
            "ts_event": np.full(n, MISSING),
            "seq": seq,
            "instrument": np.array(instrument, np.int32),
            "flags": np.array(flags, np.uint8),
        }

    def trades(self, *rows: tuple[int, int, int, int]) -> Batch:
        """Rows are (instrument, side, price ticks, qty lots)."""
        instrument, side, price, qty = (list(column) for column in zip(*rows, strict=True))
        common = self._rows(instrument, [LAST] * len(rows))
        trades = Trades(
            **common, price=np.array(price), qty=np.array(qty), side=np.array(side, np.int8), trade_id=common["seq"]
        )
        return Batch(ts=self.ns, trades=trades)

    def quotes(self, *rows: tuple[int, int, int, int, int]) -> Batch:
        """Rows are (instrument, bid, bid_qty, ask, ask_qty)."""
        instrument, *columns = (list(column) for column in zip(*rows, strict=True))
        common = self._rows(instrument, [LAST] * len(rows))
        bid_px, bid_qty, ask_px, ask_qty = (np.array(column) for column in columns)
        quotes = Quotes(**common, bid_px=bid_px, bid_qty=bid_qty, ask_px=ask_px, ask_qty=ask_qty)
        return Batch(ts=self.ns, quotes=quotes)

    def levels(self, instrument: int, *rows: tuple[int, int, int], snapshot: bool = False) -> Batch:
        """One book event; rows are (side, price, qty)."""
        actions = [SET] * len(rows)
        if snapshot:
            rows, actions = ((NO_SIDE, MISSING, 0), *rows), [CLEAR, *actions]
        kind = SNAPSHOT if snapshot else 0
        common = self._rows([instrument] * len(rows), [kind] * (len(rows) - 1) + [kind | LAST])
        side, price, qty = (list(column) for column in zip(*rows, strict=True))
        levels = Levels(
            **common,
            action=np.array(actions, np.int8),
            side=np.array(side, np.int8),
            price=np.array(price),
            qty=np.array(qty),
            order_id=np.zeros(len(rows), np.uint64),
        )
        return Batch(ts=self.ns, levels=levels)


#: What random tests have happen in a market, by name: batches made of an instrument and a small number.
HAPPENINGS: dict[str, Callable[[Tape, int, int], Batch]] = {
    "quote": lambda tape, who, value: tape.quotes((who, value, 1, value + 1, 2)),
    "trade": lambda tape, who, value: tape.trades(*[(who, BUY, 100 + k, 1 + k) for k in range(value)]),
    "book": lambda tape, who, value: tape.levels(who, (BUY, 80 + value, value % 3), (SELL, 170 + value, value % 4)),
}


@contextmanager
def sweeps(*, interrupted: bool) -> Iterator[None]:
    """Have sweeps let other tasks run after every single subscriber, or as they are."""
    with pytest.MonkeyPatch.context() as patch:
        if interrupted:
            patch.setattr("ticker.broadcast.SLICE_S", -1.0)
            patch.setattr("ticker.broadcast.CHUNK_BYTES", 1)
        yield


class FakeWire:
    """Takes bytes until told not to; what :class:`ticker.outbox.Outbox` writes to."""

    def __init__(self) -> None:
        self.taken = bytearray()
        self.room: int | None = None
        self.sink = self
        self._writable = trio.Event()

    def send(self, data: bytes | memoryview, /) -> int:
        if self.room == 0:
            raise BlockingIOError
        size = len(data) if self.room is None else min(self.room, len(data))
        self.taken += data[:size]
        if self.room is not None:
            self.room -= size
        return size

    def fileno(self) -> int:
        return -1

    def reserve(self, size: int) -> None:
        pass

    async def wait_writable(self) -> None:
        while self.room == 0:
            await self._writable.wait()
        await trio.lowlevel.checkpoint()

    def set_room(self, room: int | None) -> None:
        """Take this many bytes more; None: any number."""
        self.room = room
        self._writable.set()
        self._writable = trio.Event()

    def messages(self) -> list[Any]:
        """Return the messages taken since the last call, decoded."""
        return [json.loads(payload) for payload in self.payloads()]

    def payloads(self) -> list[str]:
        """Return the text messages taken since the last call, as they were sent."""
        taken, self.taken = bytes(self.taken), bytearray()
        return [payload.decode() for opcode, payload in frames(taken) if opcode == 1]


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (opcode, payload) of unmasked server frames; nothing may be left over."""
    position = 0
    while position < len(data):
        first, size = data[position], data[position + 1]
        assert first & 0xF0 == 0x80, f"not a whole unfragmented frame at {position}"
        assert not size & 0x80, "a server must not mask"
        position += 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(data[position : position + width])
            position += width
        payload = data[position : position + size]
        assert len(payload) == size, "an unfinished frame"
        yield first & 0x0F, payload
        position += size


def open_market(instruments: Instruments = INSTRUMENTS, options: HistoryOptions | None = None) -> Market:
    """A market with nothing in it yet."""
    return market_of(ScriptedFeed(instruments), options or HistoryOptions())


def market_of(
    feed: Feed, history: HistoryOptions, replays: ReplaysOptions | None = None, fan_out: FanOut | None = None
) -> Market:
    """The market of a feed, whose orders end with the test."""
    options = Options(history=history, replays=replays or ReplaysOptions(), orders=OrdersOptions(journal=MEMORY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ticker.app.Journal", Disk)
        return build_market(feed, trio.Event(), options, fan_out)


class Disk(Journal):
    """A journal without a thread: virtual time would not wait for one."""

    async def _in_thread(self, work: Any, *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*args)


def open_outbox() -> tuple[FakeWire, Outbox]:
    """An outbox and the wire behind it; its ``run`` is the test's to start."""
    wire = FakeWire()
    return wire, Outbox(wire)
