"""A foreign client of the native profile whose connection is cut after every message: no hole, no duplicate."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import websockets

from feeds.store import open_recording
from tests.test_kraken_sdk import RECORDING, serving

pytestmark = pytest.mark.skipif(
    not RECORDING.with_name(RECORDING.name + ".trades.parquet").exists(), reason="the real recordings are not here"
)


class Follower:
    """Follows one stream over as many connections as it takes, checking every message."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.epoch = ""
        self.last: int | None = None
        self.trades: list[int] = []
        self.resumes = 0

    async def visit(self, total: int) -> None:
        """Connect, take one message of data, and cut the connection."""
        async with websockets.connect(self.url, subprotocols=["ticker.v1"]) as socket:  # type: ignore[list-item]
            assert socket.subprotocol == "ticker.v1"
            params: dict[str, Any] = {"channel": "trade", "symbol": ["BTC/USDT"], "interval_ms": 50}
            if self.last is not None:
                params["resume"] = {"epoch": self.epoch, "after": self.last}
            await socket.send(json.dumps({"method": "subscribe", "params": params}))
            async for text in socket:
                message = json.loads(text)
                if message.get("method") == "subscribe":
                    self._acknowledged(message["ext"])
                elif message.get("channel") == "trade":
                    self._take(message)
                    if len(self.trades) < total:
                        socket.transport.abort()
                    return

    def _acknowledged(self, ext: Any) -> None:
        if self.last is None:
            self.epoch, self.last = ext["epoch"], ext["head"]
        else:
            assert ext["recovered"] is True
            self.resumes += 1

    def _take(self, message: Any) -> None:
        pos = message["pos"]
        assert (pos["epoch"], pos["prev"]) == (self.epoch, self.last)
        assert pos["last"] - pos["prev"] == pos["n"] == len(message["data"])
        assert pos["conflated"] == pos["dropped"] == 0
        self.last = pos["last"]
        self.trades += [row["trade_id"] for row in message["data"]]


def test_a_client_cut_off_after_every_message_resumes_to_exactly_the_trades_of_the_file():
    recording = open_recording(RECORDING)
    wanted = recording.instruments.id_of("BTC/USDT")
    expected = [i for t in recording.trades() for i in t.trade_id[t.instrument == wanted].tolist()]

    async def follow(follower: Follower) -> None:
        while len(follower.trades) < len(expected):
            await follower.visit(len(expected))

    with serving("--replay", str(RECORDING), "--speed", "100") as url:
        follower = Follower(f"{url}/v2")
        asyncio.run(asyncio.wait_for(follow(follower), 60))
    assert follower.trades == expected
    assert follower.resumes > 20
