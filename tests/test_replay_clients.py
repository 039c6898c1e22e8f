"""Foreign clients of a server that replays on request: `websockets` natively, the Kraken SDK beside it."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets

from feeds.book import Books
from feeds.records import BUY, SELL
from feeds.store import open_recording
from tests.serving import service
from tests.test_kraken_sdk import Client, until
from ticker import info

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"
SOURCE = "binance_spot_20240808"
pytestmark = pytest.mark.skipif(
    not (RECORDINGS / f"{SOURCE}.trades.parquet").exists(), reason="the real recordings are not here"
)


class Desk:
    """A native client: replies by request, messages by channel."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.got: dict[str, list[Any]] = {"trade": [], "book": [], "replay": []}

    async def ask(self, method: str, **params: Any) -> Any:
        await self._socket.send(json.dumps({"method": method, "params": params, "req_id": 1}))
        while "method" not in (message := await self.receive()):
            pass
        assert message["success"], message
        return message

    async def receive(self) -> Any:
        message = json.loads(await self._socket.recv())
        self.got.setdefault(message.get("channel", ""), []).append(message)
        return message

    async def play(self, speed: float) -> None:
        """Replay the recording to its end."""
        await self.ask("replay_start", source=SOURCE, session="desk1", speed=speed, start_paused=True)
        for channel in ("trade", "book"):
            params = {"channel": channel, "symbol": "BTC/USDT", "mode": "batch", "on_slow": "disconnect"}
            await self.ask("subscribe", session="desk1", **params)
        await self.ask("replay_control", session="desk1", action="resume")
        while not self.got["replay"] or self.got["replay"][-1]["data"][0]["state"] != "ended":
            await self.receive()


def rows(messages: list[Any]) -> list[Any]:
    return [row for message in messages for row in message["data"]]


async def replayed(url: str) -> tuple[Desk, Client]:
    """Replay at speed 0 while a Kraken client looks at the server's own market."""
    kraken = Client(url)
    await kraken.start()
    await kraken.subscribe(params={"channel": "trade", "symbol": ["BTC/USD"]})
    native = websockets.Subprotocol("ticker.v1")
    async with websockets.connect(f"{url}/v2", subprotocols=[native], max_size=None) as socket:
        desk = Desk(socket)
        await desk.play(0)
    await until(lambda: kraken.got["trade"])
    await kraken.close()
    return desk, kraken


def test_a_lossless_replay_has_every_row_and_a_kraken_client_sees_none_of_it():
    recording = open_recording(RECORDINGS / SOURCE)
    btc = recording.instruments.id_of("BTCUSDT")
    instrument = recording.instruments[btc]
    with service("--replays", str(RECORDINGS), "--rate", "50") as server:
        desk, kraken = asyncio.run(replayed(f"ws://127.0.0.1:{server.port}"))
    trades = np.concatenate([table.price[table.instrument == btc] for table in recording.trades()])
    told = [round(row["price"] * instrument.price_scale) for row in rows(desk.got["trade"])]
    assert told == trades.tolist()
    for channel in ("trade", "book"):
        positions = [message["pos"] for message in desk.got[channel]]
        assert all(p["dropped"] == 0 for p in positions)
        assert all(p["prev"] in (None, before["last"]) for before, p in pairwise(positions))
    books = Books()
    for levels in recording.levels():
        for _ in books.apply(levels):
            pass
    view = {side: {} for side in ("bids", "asks")}
    for row in rows(desk.got["book"]):
        for side, levels in view.items():
            for level in row[side]:
                levels[round(level["price"] * instrument.price_scale)] = level["qty"]
    best = {max(p for p, q in view["bids"].items() if q), min(p for p, q in view["asks"].items() if q)}
    assert best == {books[btc].top(BUY, 1)[0][0], books[btc].top(SELL, 1)[0][0]}
    last = desk.got["replay"][-1]["data"][0]["digest"]
    assert last["sha256"] == info.digest(str(RECORDINGS / SOURCE))
    seen = [message for messages in kraken.got.values() for message in messages]
    assert kraken.got["trade"]
    assert not any("session" in message or message.get("channel") == "replay" for message in seen)
    assert {row["symbol"] for row in rows(kraken.got["trade"])} == {"BTC/USD"}
