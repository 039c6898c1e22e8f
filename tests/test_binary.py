"""Packed records say what JSON messages say: two clients of one market, one of each kind, are told the same."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from feeds.instruments import Instrument
from feeds.records import BUY, SELL, Batch
from tests.scripted import BTC, ETH, FakeWire, Tape, frames, open_market, open_outbox
from ticker.binary import BODIES, CHANNELS, DTYPES, RecordCodec
from ticker.codec import rfc3339
from ticker.market import Market
from ticker.session import Session, SessionOptions
from ticker.topics.wording import MESSAGE_BYTES

#: What is compared; a vwap lies between two ticks, and JSON rounds it.
FIELDS = {
    "ticker": ("bid", "bid_qty", "ask", "ask_qty", "price", "volume", "low", "high", "change", "change_pct"),
    "trade": ("price", "qty", "trade_id"),
    "ohlc": ("open", "high", "low", "close", "volume", "trades", "interval"),
}
#: Where JSON has another name: in a head ``last`` is a position.
PRINTED = {("ticker", "price"): "last"}


class Client:
    """A native client that subscribes to everything in one encoding."""

    def __init__(self, market: Market, channel: str, **params: Any) -> None:
        self.channel = channel
        self.wire: FakeWire
        self.wire, self.outbox = open_outbox()
        session = Session(1, self.outbox, market, SessionOptions(), native=True)
        request = {"method": "subscribe", "params": {"channel": channel, "symbol": ["*"], "snapshot": True, **params}}
        session.receive(json.dumps(request))
        replies = [json.loads(data) for opcode, data in frames(bytes(self.wire.taken)) if opcode == 1]
        ext = next(reply["ext"] for reply in replies if "ext" in reply)
        self.dtype = np.dtype([tuple(field) for field in ext.get("dtype", [])])

    def messages(self) -> list[Any]:
        """Market data told so far, decoded; binary messages as arrays of records."""
        told = frames(bytes(self.wire.taken))
        messages = [np.frombuffer(data, self.dtype) if op == 2 else json.loads(data) for op, data in told]
        return [m for m in messages if isinstance(m, np.ndarray) or m.get("channel") == self.channel]


def happenings(tape: Tape) -> list[Batch]:
    return [
        tape.levels(BTC, (BUY, 100, 5), (BUY, 99, 2), (SELL, 110, 6), snapshot=True),
        tape.quotes((BTC, 100, 5, 110, 6), (ETH, 500, 1, 600, 1)),
        tape.trades((BTC, BUY, 110, 3), (ETH, SELL, 500, 7), (BTC, SELL, 100, 1)),
        tape.levels(BTC, (BUY, 100, 0), (BUY, 98, 7), (SELL, 111, 1)),
        tape.levels(ETH, (SELL, 600, 9), snapshot=True),
        tape.quotes((BTC, 99, 2, 110, 6), (BTC, 99, 3, 110, 6)),
        tape.trades((ETH, BUY, 600, 1), (BTC, BUY, 111, 4), (BTC, BUY, 112, 5)),
        tape.levels(BTC, (BUY, 99, 0), (BUY, 98, 0), (SELL, 110, 0), (SELL, 111, 0)),
    ]


def number(value: float | None) -> float:
    return math.nan if value is None else value


def spoken(message: Any) -> list[tuple[Any, ...]]:
    """Symbol and values of every row of a JSON message, in the order of :data:`FIELDS`."""
    channel = message["channel"]
    names = [PRINTED.get((channel, name), name) for name in FIELDS[channel]]
    return [(row["symbol"], row["timestamp"], *[number(row[name]) for name in names]) for row in message["data"]]


def packed(market: Market, channel: str, records: Any) -> list[tuple[Any, ...]]:
    names = market.listings.names
    return [
        (names[record["listing"]], rfc3339(int(record["ts"])), *[record[name].item() for name in FIELDS[channel]])
        for record in records
    ]


@pytest.fixture
async def market(nursery, autojump_clock):
    market = open_market()
    nursery.start_soon(market.broadcaster.run)
    return market


async def told(market: Market, channel: str, mode: str) -> tuple[list[Any], list[Any]]:
    """Have everything happen before and after two clients subscribe; return the messages of each."""
    params = {"mode": mode, **({"event_trigger": "bbo"} if channel == "ticker" else {})}
    tape = Tape()
    for batch in happenings(tape):
        market.broadcaster.publish(batch)
    clients = [Client(market, channel, encoding=encoding, **params) for encoding in ("json", "struct")]
    for batch in happenings(tape):
        market.broadcaster.publish(batch)
        await trio.sleep(0.05)
    await trio.sleep(1)
    printed, records = [client.messages() for client in clients]
    assert {records.dtype for records in records} == {DTYPES[channel]}
    return printed, records


@pytest.mark.parametrize("mode", ["merge", "batch", "raw"])
@pytest.mark.parametrize("channel", ["ticker", "trade", "ohlc"])
async def test_records_hold_what_json_rows_print_and_account_for_the_same(autojump_clock, market, channel, mode):
    printed, records = await told(market, channel, mode)
    flat = np.concatenate(records)
    np.testing.assert_equal(packed(market, channel, flat), [row for message in printed for row in spoken(message)])
    assert set(flat["channel"]) == {CHANNELS[channel]}
    assert {f"{epoch:08x}" for epoch in flat["epoch"].tolist()} == {market.history.epoch}
    assert sum(flat["n"]) == sum(message["pos"]["n"] for message in printed)
    assert sum(flat["conflated"]) == sum(message["pos"]["conflated"] for message in printed)
    updates = flat[flat["type"] == 1]
    assert (updates["last"] - updates["prev"] == updates["n"] + updates["conflated"] + updates["dropped"]).all()
    assert set(flat["prev"][flat["type"] == 0]) == {-1}


@pytest.mark.parametrize("mode", ["merge", "batch", "raw"])
async def test_a_book_of_records_has_the_levels_and_checksums_of_the_json_one(autojump_clock, market, mode):
    printed, records = await told(market, "book", mode)
    flat = np.concatenate(records)
    events = np.split(flat, np.flatnonzero(flat["end"])[:-1] + 1)
    said = [(message["pos"], row) for message in printed for row in message["data"]]
    for event, (_, row) in zip(events, said, strict=True):
        for side, name in ((BUY, "bids"), (SELL, "asks")):
            levels = event[event["side"] == side]
            assert levels[["price", "qty"]].tolist() == [(level["price"], level["qty"]) for level in row[name]]
        assert set(event["checksum"].tolist()) == {row["checksum"]}
        assert market.listings.names[event["listing"][0]] == row["symbol"]
        assert event["end"].tolist() == [0] * (len(event) - 1) + [1]
    assert sum(flat["n"]) == sum(message["pos"]["n"] for message in printed)
    others = flat[(flat["type"] == 1) & (flat["end"] == 0)]
    assert len(others) > 0
    assert (others["prev"] == others["last"]).all()
    assert not others[["n", "conflated", "dropped"]].astype([("", "u4")] * 3).view("u4").any()


async def test_a_flush_of_many_records_goes_out_in_messages_that_clients_take(autojump_clock, market):
    client = Client(market, "trade", encoding="struct", symbol=["BTC/USD"])
    count = MESSAGE_BYTES // DTYPES["trade"].itemsize + 1000
    market.broadcaster.publish(Tape().trades(*[(BTC, BUY, 100, 1)] * count))
    await trio.sleep(1)
    first, second = client.messages()
    assert first.nbytes <= MESSAGE_BYTES
    assert np.concatenate((first, second))["trade_id"].tolist() == list(range(1, count + 1))


async def test_who_could_not_read_gets_the_trades_it_missed_as_records(autojump_clock, market, nursery):
    client, tape = Client(market, "trade", encoding="struct"), Tape()
    nursery.start_soon(client.outbox.run)
    client.wire.set_room(0)
    for _ in range(20):
        market.broadcaster.publish(tape.trades((BTC, BUY, 100, 1), (ETH, SELL, 5, 1)))
        await trio.sleep(0.01)
    client.wire.set_room(None)
    await trio.sleep(1)
    records = np.concatenate(client.messages())
    for listing in (0, 1):
        mine = records[records["listing"] == listing]
        assert mine["prev"].tolist() == list(range(20))
        assert mine["last"].tolist() == list(range(1, 21))
    assert sorted(records["trade_id"].tolist()) == list(range(1, 41))


def test_an_empty_book_is_one_record_without_a_level():
    codec = RecordCodec(Instrument(symbol="A/B", base="A", quote="B", price_precision=2, qty_precision=2))
    (record,) = np.frombuffer(codec.book([], [], 0, 5), BODIES["book"])
    assert (record["side"], record["end"], record["ts"]) == (0, 1, 5)
    assert np.isnan(record["price"])
