"""kill -9 under load: what was acknowledged is there afterwards, once; what was not is there once or not at all."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ticker.orders import events
from ticker.orders.journal import open_journal
from ticker.orders.ledger import Ledger

#: How often the server is killed; set TICKER_CRASHES to try it more often.
CRASHES = int(os.environ.get("TICKER_CRASHES", "5"))
#: Requests that are on their way at once.
PIPELINED = 20


@contextmanager
def serving(journal: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `ticker serve` on a free port; yield the process and its address. It is killed at the end."""
    command = [
        sys.executable,
        "-m",
        "ticker",
        "serve",
        "--port",
        "0",
        "--journal",
        str(journal),
        "--symbols",
        "BTC/USD",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"ws://127\.0\.0\.1:\d+/v2", process.stdout.readline())
            assert found, "ticker serve did not start"
            yield process, found[0]
        finally:
            process.send_signal(signal.SIGKILL)


class Trader:
    """Trades, and remembers everything that it was told.

    Attributes:
        acknowledged: Order id by cl_ord_id.
        underway: Requests without an answer, by cl_ord_id.
        reports: Every executions row, by sequence.
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._count = 0
        self.acknowledged: dict[str, str] = {}
        self.underway: dict[str, dict[str, Any]] = {}
        self.reports: dict[int, dict[str, Any]] = {}
        self._epoch = ""

    def return_to(self, socket: ClientConnection) -> None:
        """Resume, ask for every order that was acknowledged last, and repeat what had no answer."""
        last = max(self.reports, default=0)
        self._say(socket, "subscribe", channel="executions", resume={"epoch": self._epoch, "after": last})
        reply = self._hear_until(socket, lambda message: message.get("method") == "subscribe")
        assert reply["ext"]["recovered"] is bool(self._epoch)
        self._epoch = reply["ext"]["epoch"]
        for name in list(self.acknowledged)[-50:]:
            self._say(socket, "order_status", cl_ord_id=name)
            found = self._hear_until(socket, lambda message: message.get("method") == "order_status")
            assert found["success"], f"acknowledged order {name} is lost"
            assert found["result"]["order_id"] == self.acknowledged[name]
        for order in list(self.underway.values()):
            self._say(socket, "add_order", **order)
        while self.underway:
            self._hear(socket)

    def trade(self, socket: ClientConnection, until: float) -> None:
        """Keep requests on their way."""
        while time.monotonic() < until:
            while len(self.underway) < PIPELINED:
                self._say(socket, "add_order", **self._order())
            self._hear(socket)

    def _order(self) -> dict[str, Any]:
        self._count += 1
        order: dict[str, Any] = {"symbol": "BTC/USD", "side": self._chance.choice(["buy", "sell"])}
        order |= {"order_qty": 0.001, "cl_ord_id": f"c{self._count}"}
        if self._chance.random() < 0.5:
            order |= {"order_type": "market"}
        else:
            order |= {"order_type": "limit", "limit_price": 20_000.0 if order["side"] == "buy" else 500_000.0}
        self.underway[order["cl_ord_id"]] = order
        return order

    def _say(self, socket: ClientConnection, method: str, **params: Any) -> None:
        socket.send(json.dumps({"method": method, "params": params}))

    def _hear_until(self, socket: ClientConnection, wanted: Any) -> dict[str, Any]:
        while not wanted(message := self._hear(socket)):
            pass
        return message

    def _hear(self, socket: ClientConnection) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(socket.recv(timeout=10))
        if message.get("method") == "add_order":
            assert message["success"], message
            name, order_id = message["result"]["cl_ord_id"], message["result"]["order_id"]
            assert self.acknowledged.setdefault(name, order_id) == order_id
            self.underway.pop(name, None)
        elif message.get("channel") == "executions" and message["type"] == "update":
            (row,) = message["data"]
            assert message["sequence"] not in self.reports, "a report twice"
            self.reports[message["sequence"]] = row
        return message


def test_nothing_acknowledged_is_lost_and_nothing_is_there_twice(tmp_path):
    chance, trader, journal = random.Random(1), Trader(1), tmp_path / "orders.journal"
    for _ in range(CRASHES):
        with serving(journal) as (process, url), connect(url, subprotocols=["ticker.v1"]) as socket:
            trader.return_to(socket)
            trader.trade(socket, time.monotonic() + chance.uniform(0.01, 0.3))
            process.send_signal(signal.SIGKILL)
            try:  # what had left the server before it died counts
                while True:
                    trader._hear(socket)
            except (ConnectionClosed, TimeoutError):
                pass
    ledger, digest = trio.run(read, journal)
    assert list(trader.reports) == list(range(1, len(trader.reports) + 1))
    assert len(set(trader.acknowledged.values())) == len(trader.acknowledged)
    for name, order_id in trader.acknowledged.items():
        order = ledger.find("demo", cl_ord_id=name)
        assert order is not None
        assert order.order_id == order_id
    names = [order.terms.cl_ord_id for order in ledger.orders.values()]
    assert len(names) == len(set(names))
    fills = [row["exec_id"] for row in trader.reports.values() if row["exec_type"] == "trade"]
    assert len(fills) == len(set(fills)) <= ledger.fills
    assert trio.run(read, journal)[1] == digest


async def read(path: Path) -> tuple[Ledger, bytes]:
    """Return what a journal holds, and its state as bytes."""
    journal = await open_journal(path)
    ledger = Ledger()
    if journal.recovered.snapshot is not None:
        ledger.restore(journal.recovered.snapshot)
    for payload in journal.recovered.events:
        ledger.apply(events.decode(payload))
    await journal.aclose()
    return ledger, ledger.snapshot()
