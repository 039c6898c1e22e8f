"""A real foreign client: python-kraken-sdk, unmodified, against `ticker serve`: market data, and orders."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kraken.exceptions import KrakenInvalidAPIKeyError, KrakenUnknownMethodError
from kraken.spot import SpotOrderBookClient, SpotWSClient

from feeds.book import Books
from feeds.models import instruments_of
from feeds.records import BUY, SELL
from feeds.store import open_recording
from ticker.orders.accounts import new_token

RECORDING = Path(__file__).parents[2] / "shared" / "data" / "recordings" / "binance_spot_20240808"
recorded = pytest.mark.skipif(
    not RECORDING.with_name(RECORDING.name + ".trades.parquet").exists(), reason="the real recordings are not here"
)
SYMBOLS = ["BTC/USDT", "ETHUSDT"]  # an alias and a recorded name
#: Tape seconds per second: 345 s of tape in about 7 s.
SPEED = "50"


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[str]:
    """Run `ticker serve` on a free port and yield its address, as ws://host:port."""
    command = [sys.executable, "-m", "ticker", "serve", "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            found = re.fullmatch(r"ticker listening on (ws://127\.0\.0\.1:\d+)/v2 \(http://127\.0\.0\.1:\d+/\)\n", line)
            assert found, (line, server.stderr and server.stderr.read())
            yield found[1]
        finally:
            server.send_signal(signal.SIGTERM)
            _, errors = server.communicate(timeout=10)
            assert server.returncode == 0, errors
            assert "Traceback" not in errors


class Client(SpotWSClient):
    """Keeps every message by channel."""

    def __init__(self, url: str, **options: str) -> None:
        super().__init__(ws_url=url, **options)
        self.got: dict[str, list[Any]] = defaultdict(list)

    async def on_message(self, message: Any) -> None:
        self.got[message.get("channel") or message.get("method")].append(message)


async def until(condition: Any, seconds: float = 30.0) -> None:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not happen in time")


async def play(url: str) -> Client:
    client = Client(url)
    await client.start()
    for params in (
        {"channel": "trade"},
        {"channel": "ticker"},
        {"channel": "book", "depth": 10},
        {"channel": "ohlc", "interval": 1},
    ):
        await client.subscribe(params={**params, "symbol": SYMBOLS})
    recording = open_recording(RECORDING)
    expected = sum(len(table) for table in recording.trades())
    await until(lambda: sum(len(m["data"]) for m in client.got["trade"]) >= expected)
    await asyncio.sleep(0.5)
    await client.close()
    return client


@recorded
def test_every_trade_of_the_file_arrives_in_order_and_the_book_is_the_recordings_at_every_event():
    with serving("--replay", str(RECORDING), "--speed", SPEED) as url:
        client = asyncio.run(play(url))
    recording = open_recording(RECORDING)
    names = {recording.instruments.id_of(name): name for name in SYMBOLS}
    scales = {
        names[i]: (10**inst.price_precision, 10**inst.qty_precision) for i, inst in enumerate(recording.instruments)
    }
    expected: dict[str, list[Any]] = defaultdict(list)
    for table in recording.trades():
        columns = (table.instrument, table.trade_id, table.price, table.qty, table.side)
        for i, trade_id, price, qty, side in zip(*[c.tolist() for c in columns], strict=True):
            expected[names[i]].append((trade_id, price, qty, "buy" if side == BUY else "sell"))
    delivered: dict[str, list[Any]] = defaultdict(list)
    for message in client.got["trade"]:
        for row in message["data"]:
            price_scale, qty_scale = scales[row["symbol"]]
            delivered[row["symbol"]].append(
                (row["trade_id"], round(row["price"] * price_scale), round(row["qty"] * qty_scale), row["side"])
            )
    assert sum(map(len, delivered.values())) == 15_863
    assert delivered == expected
    check_books(client.got["book"], recording, names, scales)
    check_candles(client.got["ohlc"], expected)
    assert client.got["ticker"]
    assert client.got["status"][0]["data"][0]["mode"] == "replay"


def check_books(messages: list[Any], recording: Any, names: dict[int, str], scales: dict[str, tuple[int, int]]) -> None:
    """Rebuild the top of each book from the messages and compare it after every message with the recording's."""
    truth: dict[str, list[Any]] = defaultdict(list)
    books = Books()
    for table in recording.levels():
        for event in books.apply(table):
            state = (books[event.instrument].top(BUY, 10), books[event.instrument].top(SELL, 10))
            of_name = truth[names[event.instrument]]
            if not of_name or of_name[-1] != state:
                of_name.append(state)
    mine: dict[str, tuple[dict[int, int], dict[int, int]]] = {}
    at: dict[str, int] = defaultdict(int)
    compared = 0
    for message in messages:
        (row,) = message["data"]
        name = row["symbol"]
        price_scale, qty_scale = scales[name]
        if message["type"] == "snapshot":
            mine[name] = ({}, {})
        for side, levels in zip(mine[name], (row["bids"], row["asks"]), strict=True):
            for level in levels:
                side[round(level["price"] * price_scale)] = round(level["qty"] * qty_scale)
                if not level["qty"]:
                    del side[round(level["price"] * price_scale)]
        bids, asks = sorted(mine[name][0].items(), reverse=True), sorted(mine[name][1].items())
        # A client that cannot keep up is sent several events in one; it never sees a state that never was.
        at[name] = truth[name].index((bids, asks), at[name])
        compared += 1
    assert at == {name: len(states) - 1 for name, states in truth.items()}
    assert compared > 1_000


def check_candles(messages: list[Any], trades: dict[str, list[Any]]) -> None:
    """The last word on each candle adds up to all trades of the file."""
    final: dict[tuple[str, str], Any] = {}
    for message in messages:
        for row in message["data"]:
            final[row["symbol"], row["interval_begin"]] = row
    for name, rows in trades.items():
        assert sum(row["trades"] for (symbol, _), row in final.items() if symbol == name) == len(rows)


class BookClient(SpotOrderBookClient):
    """The SDK's own book, with its own checksum verification; only where it looks up decimals is ours."""

    def __init__(self, url: str, decimals: dict[str, tuple[int, int]]) -> None:
        self.WS_URL = url
        super().__init__(depth=10)
        self._SpotOrderBookClient__market = Decimals(decimals)
        self.verified = 0
        self.errors: list[Any] = []

    async def on_book_update(self, pair: str, message: Any) -> None:
        if "error" in message:
            self.errors.append(message)
        elif message["type"] == "update":
            self.verified += bool(self.get(pair)["valid"])


class Decimals:
    """Stands in for the REST look-up of decimals."""

    def __init__(self, decimals: dict[str, tuple[int, int]]) -> None:
        self._decimals = decimals

    def get_asset_pairs(self, pair: str) -> Any:
        price, qty = self._decimals[pair]
        return {pair: {"pair_decimals": price, "lot_decimals": qty}}


@recorded
def test_the_sdks_order_book_verifies_every_checksum_through_a_cut_connection():
    """The SDK gets cut off, reconnects, re-subscribes by itself and goes on verifying."""
    recording = open_recording(RECORDING)
    decimals = {
        name: (inst.price_precision, inst.qty_precision)
        for inst in recording.instruments
        for name in (inst.symbol, *inst.aliases)
    }

    async def run(url: str) -> BookClient:
        client = BookClient(url, decimals)
        await client.start()
        await client.add_book(pairs=SYMBOLS)
        await until(lambda: client.verified > 200)
        await client._pub_conn.socket.close()
        before = client.verified
        await until(lambda: client.verified > before + 200)
        await client.close()
        return client

    with serving("--replay", str(RECORDING), "--speed", "20", "--loop") as url:
        client = asyncio.run(run(url))
    assert client.errors == []


@pytest.mark.parametrize("channel", ["ticker", "trade"])
def test_a_simulated_market_streams_to_the_sdk(channel):
    async def run(url: str) -> Client:
        client = Client(url)
        await client.start()
        await client.subscribe(params={"channel": channel, "symbol": ["BTC/USD", "ETH/USD"]})
        await until(lambda: len(client.got[channel]) > 20)
        await client.close()
        return client

    with serving("--rate", "2000", "--seed", "7") as url:
        client = asyncio.run(run(url))
    assert {row["symbol"] for message in client.got[channel] for row in message["data"]} == {"BTC/USD", "ETH/USD"}


def test_the_sdks_order_book_verifies_every_checksum_of_a_market_of_agents():
    symbols = ["BTC/USD", "ETH/USD"]
    decimals = {i.symbol: (i.price_precision, i.qty_precision) for i in instruments_of(symbols)}

    async def run(url: str) -> BookClient:
        client = BookClient(url, decimals)
        await client.start()
        await client.add_book(pairs=symbols)
        await until(lambda: client.verified > 1_000)
        await client.close()
        return client

    with serving("--market", "--symbols", ",".join(symbols), "--rate", "2000") as url:
        client = asyncio.run(run(url))
    assert client.errors == []


# --- orders


class Trader(Client):
    """Trades with a key, and waits for the reply to each request."""

    def __init__(self, url: str, key: str = "any key") -> None:
        super().__init__(url, key=key, secret="c2VjcmV0", rest_url=url.replace("ws", "http"), auth_ws_url=url)
        self._numbers = itertools.count(1)

    async def ask(self, method: str, **params: Any) -> Any:
        """Return the reply to a request."""
        number = next(self._numbers)
        await self.send_message({"method": method, "params": params, "req_id": number})
        replies = self.got[method]
        await until(lambda: any(reply.get("req_id") == number for reply in replies))
        return next(reply for reply in replies if reply.get("req_id") == number)

    async def done(self, method: str, **params: Any) -> Any:
        """Return the result of a request that is done."""
        reply = await self.ask(method, **params)
        assert reply["success"] is True, reply
        return reply["result"]

    def history(self, order_id: str) -> list[tuple[str, str]]:
        """Return what happened to an order, as pairs of exec_type and order_status."""
        rows = [row for message in self.got["executions"] if message["type"] == "update" for row in message["data"]]
        return [(row["exec_type"], row["order_status"]) for row in rows if row["order_id"] == order_id]

    def owned(self) -> dict[str, float]:
        """Return the balances as they were told last."""
        return {row["asset"]: row["balance"] for message in self.got["balances"] for row in message["data"]}

    async def watch(self) -> None:
        """Begin, and subscribe to both private channels and, on the public connection, to prices."""
        await self.start()
        await self.subscribe(params={"channel": "ticker", "symbol": ["BTC/USD"]})
        await self.subscribe(params={"channel": "executions", "snap_orders": True})
        await self.subscribe(params={"channel": "balances"})
        await until(lambda: self.got["executions"] and self.got["balances"] and self.got["ticker"])


BUY_LOW = {"order_type": "limit", "side": "buy", "order_qty": 1.0, "limit_price": 1000.5}
SELL_HIGH = {"order_type": "limit", "side": "sell", "order_qty": 2.12345, "limit_price": 500_000.2}
BUY_NOW = {"order_type": "market", "side": "buy", "order_qty": 0.01, "symbol": "BTC/USD"}
CANCELED = ("canceled", "canceled")


async def trade(url: str) -> None:
    trader = Trader(url)
    await trader.watch()
    await place_amend_cancel(trader)
    await fill(trader)
    await end_several(trader)
    await come_back(trader)
    with pytest.raises(KrakenUnknownMethodError):
        await trader.request("POST", "/0/private/Balance")
    await trader.close()


async def place_amend_cancel(trader: Trader) -> None:
    result = await trader.done("add_order", symbol="BTC/USD", order_userref=7, cl_ord_id="mine-1", **BUY_LOW)
    assert (result["cl_ord_id"], result["order_userref"]) == ("mine-1", 7)
    order = result["order_id"]
    amended = await trader.done("amend_order", order_id=order, order_qty=2.5, limit_price=1001.0)
    assert amended["order_id"] == order
    assert (await trader.done("cancel_order", order_id=[order]))["order_id"] == order
    await until(lambda: CANCELED in trader.history(order))
    assert trader.history(order) == [("new", "new"), ("amended", "new"), CANCELED]
    again = await trader.ask("cancel_order", order_id=[order])
    assert (again["success"], again["error"]) == (False, "EOrder:Unknown order")


async def fill(trader: Trader) -> None:
    before = trader.owned()
    order = (await trader.done("add_order", **BUY_NOW))["order_id"]
    await until(lambda: ("filled", "filled") in trader.history(order) and trader.owned() != before)
    rows = [row for message in trader.got["executions"] for row in message["data"] if row["exec_type"] == "trade"]
    fee = sum(paid["qty"] for row in rows for paid in row["fees"])
    cost = sum(row["cost"] for row in rows)
    assert sum(row["last_qty"] for row in rows) == pytest.approx(0.01)
    assert {row["order_id"] for row in rows} == {order}
    assert fee == pytest.approx(0.004 * cost)
    assert trader.owned()["BTC"] == pytest.approx(before["BTC"] + 0.01, abs=1e-9)
    assert trader.owned()["USD"] == pytest.approx(before["USD"] - cost - fee, abs=1e-6)


async def end_several(trader: Trader) -> None:
    low, high = {**BUY_LOW, "order_userref": 123}, {**SELL_HIGH, "cl_ord_id": "mine-2", "stp_type": "cancel_both"}
    batch = await trader.done("batch_add", symbol="BTC/USD", orders=[low, high])
    assert [sorted(row) for row in batch] == [["order_id", "order_userref"], ["cl_ord_id", "order_id"]]
    assert await trader.done("batch_cancel", orders=["123", batch[1]["order_id"]]) == {"count": 2}
    batch = await trader.done("batch_add", symbol="BTC/USD", orders=[low, high])
    assert await trader.done("cancel_all") == {"count": 2}
    last = (await trader.done("add_order", symbol="BTC/USD", **BUY_LOW))["order_id"]
    assert (await trader.done("cancel_all_orders_after", timeout=1)).keys() == {"currentTime", "triggerTime"}
    await until(lambda: CANCELED in trader.history(last))
    assert all(trader.history(row["order_id"]) == [("new", "new"), CANCELED] for row in batch)


async def come_back(trader: Trader) -> None:
    """The SDK is cut off, fetches another token and subscribes again by itself; its order is still there."""
    order = (await trader.done("add_order", symbol="BTC/USD", **BUY_LOW))["order_id"]
    token = trader._priv_conn.ws_conn_details["token"]
    await until(lambda: trader.history(order))
    trader.got["executions"].clear()
    await trader._priv_conn.socket.close()
    await until(lambda: trader.got["executions"])
    (snapshot,) = trader.got["executions"]
    assert [row["order_id"] for row in snapshot["data"]] == [order]
    assert trader._priv_conn.ws_conn_details["token"] != token
    assert await trader.done("cancel_all") == {"count": 1}


def test_any_key_trades_on_the_demo_account(tmp_path):
    with serving("--rate", "500", "--seed", "7", "--journal", str(tmp_path / "orders")) as url:
        asyncio.run(trade(url))


def test_with_a_file_of_accounts_the_key_is_a_token(tmp_path):
    token, digest = new_token()
    accounts = tmp_path / "accounts.toml"
    accounts.write_text(f'[accounts.alice]\ntokens = [{{ sha256 = "{digest}" }}]\nbalances = {{ USD = "5000" }}\n')

    async def run(url: str) -> None:
        stranger, alice = Trader(url), Trader(url, key=token)
        with pytest.raises(KrakenInvalidAPIKeyError):
            await stranger.get_ws_token()
        await stranger.close()
        await alice.watch()
        assert alice.owned() == {"USD": 5000}
        await alice.done("add_order", **BUY_NOW)
        await until(lambda: "BTC" in alice.owned())
        await alice.close()

    with serving("--accounts", str(accounts), "--seed", "7", "--journal", str(tmp_path / "orders")) as url:
        asyncio.run(run(url))
