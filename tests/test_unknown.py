"""What another version says is passed over, both ways: unknown keys, channels, methods and values break nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serving import TEXT, open_house, quotes_batch, request_head
from tests.test_client import FakeSocket
from ticker.client import Connection
from ticker.watch import Board

NOVEL: dict[str, Any] = {"shade": "blue", "nested": {"list": [1, None, {"a": True}]}}
ROW = {
    "symbol": "BTC/USD", "bid": 1.5, "bid_qty": 1, "ask": 2.5, "ask_qty": 1, "last": 2.0, "volume": 1, "vwap": 2.0,
    "low": 1, "high": 2, "change": 0, "change_pct": 0, "timestamp": "2026-01-02T09:04:31.742599Z",
}  # fmt: skip
FROM_THE_FUTURE = [
    {"channel": "weather", "type": "forecast", "data": [{"symbol": "BTC/USD"}]},
    {"channel": "weather"},
    {"type": "update"},
    {},
    {"channel": "heartbeat", **NOVEL},
    {"channel": "heartbeat", "ts": "x", "data": [{"sub_id": 9, "state": "dreaming"}]},
    {"channel": "status", "type": "correction", "data": [{"system": "contemplating", **NOVEL}]},
    {"channel": "notice", "type": "update", "data": [{"code": 99999, "name": "NOVEL"}]},
    {"channel": "ticker", "type": "correction", "data": [{**ROW, **NOVEL}], "pos": {"epoch": "x", **NOVEL}},
    {"method": "novelty", "req_id": 77, "success": True, **NOVEL},
    {"method": "novelty", "warnings": ["beware"]},
]


async def test_the_client_passes_over_what_a_later_server_says(autojump_clock):
    fake = FakeSocket()
    opened = Connection("ws://test/v2", fake)
    board = Board("ws://test/v2", ["BTC/USD"])
    fake.say(*FROM_THE_FUTURE, {"channel": "ticker", "type": "update", "data": [{**ROW, "last": 7.0}]})
    row: dict[str, Any] = {}
    while row.get("last") != 7:
        message = await opened.receive()
        board.apply(message, 0.0)
        rows = message.get("data") if message.get("channel") == "ticker" else None
        row = rows[0] if rows else {}
    assert str(board.rows["BTC/USD"].values["last"]) == "7.0"


@pytest.mark.parametrize("native", [False, True], ids=["plain", "native"])
async def test_the_server_passes_over_what_a_later_client_says(native):
    async with open_house() as house:
        peer = house.dial()
        await peer.shake_hands(request_head(extra=["Sec-WebSocket-Protocol: ticker.v9, ticker.v1"] if native else []))
        for novelty in FROM_THE_FUTURE:
            if "method" in novelty:
                reply = await peer.ask(novelty)
                assert reply["success"] is False
        wish = {
            "channel": "ticker", "symbol": ["BTC/USD"], "event_trigger": "eclipse", "mode": "sideways",
            "on_slow": "sing", "numbers": "roman", "encoding": "smoke", **NOVEL,
        }  # fmt: skip
        reply = await peer.ask({"method": "subscribe", "params": wish, "req_id": 4, **NOVEL})
        assert (reply["success"], reply["req_id"]) == (True, 4)
        granted = reply["result"]
        assert granted["event_trigger"] == "trades"
        assert not NOVEL.keys() & granted.keys()
        if native:
            names = ("mode", "on_slow", "numbers", "encoding")
            assert [granted[name] for name in names] == ["merge", "conflate", "number", "json"]
        await peer.subscribe("ticker", "ETH/USD", event_trigger="bbo")
        await house.feed.tell(quotes_batch(100, 1, instrument=1))
        assert (await peer.message_of("ticker"))["data"][0]["symbol"] == "ETH/USD"


async def test_a_value_of_the_wrong_type_is_no_novelty():
    async with open_house() as house:
        peer = await house.visit(native=True)
        for field, value in (("mode", 5), ("symbol", 7), ("event_trigger", ["bbo"]), ("snapshot", "yes")):
            wish = {"channel": "ticker", "symbol": ["BTC/USD"], field: value}
            reply = await peer.ask({"method": "subscribe", "params": wish})
            assert reply["success"] is False
            assert field in reply["error"]
        await peer.send_frame(TEXT, json.dumps({"method": "ping"}).encode())
        assert (await peer.reply())["method"] == "pong"
