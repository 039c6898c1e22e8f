"""From requests to replies and rows: in order, durable before they are told, and each account for itself."""

from __future__ import annotations

import hashlib
import random
import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from feeds import clock
from feeds.instruments import Instruments
from feeds.records import BUY, SELL, Marker
from feeds.tape import Tape as TapeVenue
from tests.scripted import BTC, ETH, INSTRUMENTS, Disk, Tape
from ticker.codec import rfc3339
from ticker.errors import Code, JournalError, RequestError
from ticker.history import History, HistoryOptions
from ticker.listings import Listings
from ticker.orders import gateway
from ticker.orders.accounts import AccountOptions, Accounts, Limits, Token, demo_accounts
from ticker.orders.gateway import QUEUE_DEPTH, Gateway
from ticker.orders.journal import MEMORY, Journal
from ticker.orders.models import LatencyOptions, UniformLatency
from ticker.wire import Request, encode

ONE = 10**8


class Client:
    """Keeps what it is told, in order: replies as (method, result or error code), messages as (channel, type, rows)."""

    def __init__(self, *, native: bool = True, bearer: str = "") -> None:
        self.native, self.bearer = native, bearer
        self.heard: list[Any] = []
        self.exts: list[Any] = []

    def accept(self, request: Request, time_in: str, result: Any, ext: Any = None) -> None:
        self.heard.append((request.method, msgspec.json.decode(encode(result))))
        self.exts.append(ext)

    def refuse(self, request: Request, time_in: str, error: RequestError) -> None:
        self.heard.append((request.method, error.code))

    def send(self, message: Any) -> None:
        rows = msgspec.json.decode(encode(message.data))
        self.heard.append((message.channel, message.type, rows))
        self.exts.append(message.sequence)

    def take(self) -> list[Any]:
        heard, self.heard, self.exts = self.heard, [], []
        return heard

    def replies(self) -> list[Any]:
        return [heard for heard in self.take() if len(heard) == 2]


class FragileDisk(Disk):
    """A journal that fails when it is told to.

    Attributes:
        fails: The next appends raise; those with ``True`` have written first.
        full: How many of the next snapshots raise.
        down: Whether it cannot even be opened again, or snapshots written.
        open: While not set, appends wait.
    """

    def __init__(self, path: Any = MEMORY) -> None:
        super().__init__(path)
        self.fails: list[bool] = []
        self.full = 0
        self.down = False
        self.open = trio.Event()
        self.open.set()

    async def append(self, payloads: Any) -> None:
        await self.open.wait()
        if self.fails:
            if self.fails.pop(0):
                await super().append(payloads)
            raise JournalError("the disk is full", retryable=True)
        await super().append(payloads)

    async def snapshot(self, payload: bytes) -> None:
        if self.full:
            self.full -= 1
            raise JournalError("the disk is full", retryable=True)
        await super().snapshot(payload)

    async def reopen(self) -> None:
        if self.down:
            raise JournalError("no disk", retryable=True)
        await super().reopen()


class Shop:
    """A gateway over a scripted market with offers at 101.0 and bids at 99.0, 5 BTC each."""

    def __init__(
        self,
        accounts: Accounts | None = None,
        journal: Journal | None = None,
        instruments: Instruments = INSTRUMENTS,
        **options: Any,
    ) -> None:
        self.history, self.tape = History(instruments, HistoryOptions()), Tape()
        self.journal = journal or Disk(MEMORY)
        self.gateway = Gateway(
            self.history, Listings(instruments), TapeVenue(self.history), accounts or demo_accounts(instruments),
            self.journal, **options,
        )  # fmt: skip

    def happen(self, batch: Any) -> None:
        self.history.apply(batch, lambda event: None)
        self.gateway.market_moved(batch)

    def ask(self, client: Client, method: str, **params: Any) -> None:
        request = Request(method, params=msgspec.json.decode(encode(params)))
        try:
            self.gateway.submit(client, request, "")
        except RequestError as error:
            client.refuse(request, "", error)

    def buy(self, client: Client, price: float = 90, qty: float = 1, **more: Any) -> None:
        order = {"order_type": "limit", "side": "buy", "symbol": "BTC/USD", "order_qty": qty, "limit_price": price}
        self.ask(client, "add_order", **{**order, **more})

    def subscribe(self, client: Client, channel: str, **params: Any) -> None:
        self.gateway.subscribe(client, Request("subscribe", {"channel": channel, **params}), "")


async def settled() -> None:
    """Let the gateway do what it has to do."""
    await trio.testing.wait_all_tasks_blocked(0.001)


def crash(folder: Path) -> None:
    """Leave a copy of the journal ``j`` as a crash would leave it now."""
    for file in folder.glob("j*"):
        shutil.copy(file, folder / file.name.replace("j", "copy", 1))


async def status(shop: Shop, name: str) -> str | Code:
    """Return where the order with a cl_ord_id stands, or why that is not told."""
    client = Client()
    shop.ask(client, "order_status", cl_ord_id=name)
    await settled()
    ((_, found),) = client.take()
    return found if isinstance(found, Code) else found["order_status"]


@asynccontextmanager
async def open_shop(*args: Any, **options: Any):
    shop = Shop(*args, **options)
    await shop.gateway.recover()
    shop.gateway.mark(Marker(kind="epoch", ts=0, reason="it begins"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop.gateway.run)
        shop.happen(shop.tape.levels(BTC, (BUY, 990, 5 * ONE), (SELL, 1010, 5 * ONE), snapshot=True))
        yield shop
        nursery.cancel_scope.cancel()


def named_accounts(**limits: Any) -> Accounts:
    """Accounts alice, bob and carol, whose tokens are their names, and alice's that only reads."""

    def token(text: str, *scopes: Any) -> Token:
        return Token(sha256=hashlib.sha256(text.encode()).hexdigest(), scopes=scopes or ("read", "trade"))

    balances = {"BTC": "100", "USD": "100000"}
    return Accounts(
        {
            "alice": AccountOptions(
                balances=balances, tokens=(token("alice"), token("look", "read")), limits=Limits(**limits)
            ),
            "bob": AccountOptions(balances=balances, tokens=(token("bob"),)),
            "carol": AccountOptions(balances=balances, tokens=(token("carol"),)),
        }
    )


# Order and durability


async def test_the_reply_comes_before_every_row_that_it_causes():
    async with open_shop() as shop:
        client = Client()
        for channel in ("executions", "balances", "positions"):
            shop.subscribe(client, channel)
        await settled()
        client.take()
        shop.buy(client, 101, 6, cl_ord_id="x")
        await settled()
        reply, *rows = client.take()
        assert reply == ("add_order", {"order_id": "O000000000001", "cl_ord_id": "x"})
        assert [(channel, [row.get("exec_type") for row in data]) for channel, _, data in rows] == [
            ("executions", ["new"]), ("executions", ["trade"]), ("balances", [None, None]), ("positions", [None]),
        ]  # fmt: skip


async def test_nobody_is_told_anything_before_it_is_on_disk():
    disk = FragileDisk()
    async with open_shop(journal=disk) as shop:
        client, other = Client(), Client()
        shop.subscribe(other, "executions")
        await settled()
        other.take()
        disk.open = trio.Event()
        shop.buy(client, 95)
        shop.happen(shop.tape.trades((BTC, SELL, 940, ONE)))  # fills it, if it has been entered
        await settled()
        assert (client.take(), other.take()) == ([], [])
        disk.open.set()
        await settled()
        assert len(client.take()) == 1
        assert other.take()


async def test_a_group_that_could_not_be_written_has_not_happened():
    disk = FragileDisk()
    async with open_shop(journal=disk) as shop:
        client = Client()
        shop.subscribe(client, "executions")
        shop.buy(client, 90, cl_ord_id="kept")
        await settled()
        head = disk.head
        snapshot = shop.gateway._exchange.ledger.snapshot()
        disk.recovered = disk.recovered._replace(snapshot=snapshot)
        disk.reopen = trio.lowlevel.checkpoint  # memory would be empty
        client.take()
        disk.fails = [False]
        shop.buy(client, 91, cl_ord_id="lost")
        await settled()
        refused, refreshed = client.take()
        assert refused == ("add_order", Code.UNAVAILABLE)
        assert refreshed[:2] == ("executions", "snapshot")
        assert [row["cl_ord_id"] for row in refreshed[2]] == ["kept"]
        assert disk.head == head
        shop.buy(client, 91, cl_ord_id="lost")
        shop.buy(client, 90, cl_ord_id="kept")
        await settled()
        replies = client.take()
        assert [heard[1]["cl_ord_id"] for heard in replies if len(heard) == 2] == ["lost", "kept"]
        assert sum(heard[0] == "executions" for heard in replies) == 1  # only one of them is new


async def test_a_group_that_is_on_disk_after_all_has_happened(tmp_path):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client = Client()
        disk.fails = [True]
        shop.buy(client, cl_ord_id="x")
        await settled()
        assert client.replies() == [("add_order", {"order_id": "O000000000001", "cl_ord_id": "x"})]
        shop.ask(client, "cancel_all")
        await settled()
        assert client.replies() == [("cancel_all", {"count": 1})]


async def test_while_the_disk_is_away_requests_are_refused_and_orders_rest(tmp_path, autojump_clock):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client = Client()
        shop.buy(client, 95, cl_ord_id="rests")
        await settled()
        disk.fails, disk.down = [False], True
        shop.buy(client, cl_ord_id="x")
        await settled()
        assert client.replies()[-1] == ("add_order", Code.STATUS_UNKNOWN)
        shop.buy(client, cl_ord_id="y")
        assert client.replies() == [("add_order", Code.UNAVAILABLE)]
        assert shop.gateway.durability == "unavailable"
        shop.happen(shop.tape.trades((BTC, SELL, 940, ONE)))  # nothing of it can be written
        disk.down = False
        await trio.sleep(1.5)
        await settled()
        assert shop.gateway.durability == "durable"
        shop.ask(client, "order_status", cl_ord_id="rests")
        shop.ask(client, "order_status", cl_ord_id="x")
        await settled()
        (_, rests), x = client.replies()
        assert (rests["order_status"], x) == ("new", ("order_status", Code.UNKNOWN_ORDER))


@pytest.mark.parametrize("latency", [None, UniformLatency(LatencyOptions(fixed_ms=50))], ids=["queued", "underway"])
async def test_requests_that_wait_when_the_disk_fails_are_refused_at_once(tmp_path, autojump_clock, latency):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk, latency=latency) as shop:
        first, second = Client(), Client()
        disk.fails, disk.down, disk.open = [False], True, trio.Event()
        shop.buy(first)
        await trio.sleep(0.06)
        shop.buy(second, cl_ord_id="x")
        shop.ask(second, "cancel_all")
        disk.open.set()
        failed = trio.current_time()
        await settled()
        assert second.take() == [("add_order", Code.UNAVAILABLE), ("cancel_all", Code.UNAVAILABLE)]
        assert trio.current_time() == failed
        disk.down = False
        await trio.sleep(2)
        assert second.take() == []  # once is enough
        assert (shop.gateway.statistics().queued, shop.gateway.statistics().open_orders) == (0, 0)


async def test_a_connection_that_is_lost_while_the_disk_is_away_has_its_time_from_then_on(tmp_path, autojump_clock):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client, other = Client(), Client()
        shop.ask(client, "cancel_on_disconnect", enable=True, grace_ms=5000)
        shop.buy(client)
        await settled()
        disk.fails, disk.down = [False], True
        shop.buy(other)
        await settled()
        shop.gateway.remove(client, clean=False)
        await trio.sleep(4.5)
        disk.down = False
        await trio.sleep(1)
        await settled()
        assert (shop.gateway.durability, shop.gateway.statistics().open_orders) == ("durable", 0)


@pytest.mark.parametrize("lost", ["while it is away", "afterwards"])
async def test_a_lost_connection_does_not_take_an_order_that_has_the_key_of_one_that_never_was(
    tmp_path, autojump_clock, lost
):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client, other = Client(), Client()
        shop.ask(client, "cancel_on_disconnect", enable=True, grace_ms=3000)
        shop.ask(other, "cancel_all")  # it is there all the time
        await settled()
        other.take()
        disk.fails, disk.down = [False], True
        shop.buy(client)
        await settled()
        if lost == "while it is away":
            shop.gateway.remove(client, clean=False)
        disk.down = False
        await trio.sleep(1.1)
        shop.buy(other)
        await settled()
        assert other.take() == [("add_order", {"order_id": "O000000000001"})]
        if lost == "afterwards":
            shop.gateway.remove(client, clean=False)
        await trio.sleep(4)
        await settled()
        assert shop.gateway.statistics().open_orders == 1


@pytest.mark.parametrize("written", [False, True])
async def test_an_order_whose_outcome_was_unknown_ends_with_its_connection_if_it_is_there(
    tmp_path, autojump_clock, written
):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client = Client()
        shop.ask(client, "cancel_on_disconnect", enable=True, grace_ms=3000)
        await settled()
        disk.fails, disk.down = [written], True
        shop.buy(client)
        await settled()
        assert client.take()[-1] == ("add_order", Code.STATUS_UNKNOWN)
        disk.down = False
        await trio.sleep(1.1)
        assert shop.gateway.statistics().open_orders == written
        shop.gateway.remove(client, clean=False)
        await trio.sleep(4)
        await settled()
        assert shop.gateway.statistics().open_orders == 0


async def test_an_order_whose_cancel_did_not_happen_still_ends_with_its_connection(tmp_path, autojump_clock):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client = Client()
        shop.ask(client, "cancel_on_disconnect", enable=True, grace_ms=0)
        shop.buy(client)
        await settled()
        disk.fails = [False]
        shop.ask(client, "cancel_all")
        await settled()
        assert client.take()[-1] == ("cancel_all", Code.UNAVAILABLE)
        assert shop.gateway.statistics().open_orders == 1
        shop.gateway.remove(client, clean=False)
        await trio.sleep(1)
        assert shop.gateway.statistics().open_orders == 0


@pytest.mark.parametrize("left", [False, True], ids=["stays", "unsubscribes"])
async def test_a_subscription_that_was_refused_can_be_asked_for_again(tmp_path, left):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client, trader = Client(), Client()
        disk.fails, disk.open = [False], trio.Event()
        shop.buy(trader, 91)
        shop.subscribe(client, "balances")
        await settled()
        if left:
            shop.gateway.unsubscribe(client, Request("unsubscribe", {"channel": "balances"}), "")
            client.take()
        disk.open.set()
        await settled()
        assert client.take() == [("subscribe", Code.UNAVAILABLE)]
        shop.buy(trader, 101)
        await settled()
        assert client.take() == []
        shop.subscribe(client, "balances")
        await settled()
        assert [heard[:2] for heard in client.take()[1:]] == [("balances", "snapshot")]


@pytest.mark.parametrize("channel", ["balances", "positions", "executions"])
async def test_messages_of_a_group_that_failed_have_taken_no_numbers(tmp_path, channel):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        reader, trader = Client(), Client()
        shop.subscribe(reader, channel)
        await settled()
        disk.fails = [False]
        for _ in range(2):
            shop.buy(trader, 101, 0.01)
            await settled()
        updates = {"executions": [1, 2, 3]}.get(channel, [3])
        assert reader.exts[1:] == [reader.exts[1], reader.exts[1] + (channel != "executions"), *updates]


async def test_who_unsubscribes_while_its_messages_are_written_gets_none_of_them(tmp_path):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        reader, trader = Client(), Client()
        shop.subscribe(reader, "balances")
        await settled()
        disk.open = trio.Event()
        shop.buy(trader, 101)
        await settled()
        shop.gateway.unsubscribe(reader, Request("unsubscribe", {"channel": "balances"}), "")
        reader.take()
        disk.open.set()
        await settled()
        assert reader.take() == []
        shop.subscribe(reader, "balances")
        await settled()
        assert reader.exts[1] == 1


async def test_a_switch_is_set_although_its_group_is_not_on_disk(tmp_path, autojump_clock):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client = Client()
        shop.buy(client)
        await settled()
        client.take()
        disk.fails = [False]
        shop.buy(client)
        shop.ask(client, "cancel_all_orders_after", timeout=3)
        await settled()
        (_, bought), (_, switch) = client.take()
        assert (bought, switch.keys()) == (Code.UNAVAILABLE, {"currentTime", "triggerTime"})
        await trio.sleep(4)
        assert shop.gateway.statistics().open_orders == 0


@pytest.mark.parametrize("seed", range(8))
async def test_however_the_disk_fails_all_are_answered_once_and_the_journal_is_what_was_told(
    tmp_path, autojump_clock, monkeypatch, seed
):
    """Orders, markers, lost connections and failures of all kinds at random; a snapshot every few groups."""
    monkeypatch.setattr(gateway, "SNAPSHOT_EVENTS", 20)
    chance, disk = random.Random(seed), FragileDisk(tmp_path / "j")
    latency = chance.choice([None, UniformLatency(LatencyOptions(fixed_ms=20, jitter_ms=50, seed=seed))])
    async with open_shop(journal=disk, latency=latency) as shop:
        readers = {channel: Client() for channel in ("executions", "balances", "positions")}
        for channel, reader in readers.items():
            shop.subscribe(reader, channel)
        clients, asked, answered, entered = [Client() for _ in range(3)], 0, 0, set()

        def hear() -> int:
            replies = [result for client in clients for _, result in client.take()]
            entered.update(r["order_id"] for r in replies if isinstance(r, dict) and "order_id" in r)
            return len(replies)

        async def fail() -> None:
            disk.fails = [chance.random() < 0.5 for _ in range(chance.randrange(3))]
            disk.full, disk.down = chance.randrange(2), chance.random() < 0.5
            await trio.sleep(chance.random() * 3)
            disk.down = False

        for step in range(400):
            client = chance.choice(clients)
            match chance.randrange(12):
                case 0:
                    await fail()
                case 1:
                    await trio.sleep(chance.random())
                case 2:
                    shop.ask(client, "cancel_on_disconnect", enable=chance.random() < 0.8, grace_ms=100)
                    asked += 1
                case 3:
                    answered += hear()
                    await trio.sleep(2)  # what is on its way arrives
                    answered += hear()
                    shop.gateway.remove(client, clean=False)
                    clients[clients.index(client)] = Client()
                case 4:
                    if chance.random() < 0.2:
                        marked(shop, "epoch")
                    shop.happen(shop.tape.levels(BTC, (BUY, 990, 5 * ONE), (SELL, 1010, 5 * ONE), snapshot=True))
                case 5:
                    shop.happen(shop.tape.trades((BTC, SELL, 900 + chance.randrange(100), ONE)))
                case 6:
                    shop.ask(client, "cancel_all")
                    asked += 1
                case _:
                    shop.buy(client, 90 + chance.randrange(12), 0.01 * chance.randrange(1, 50), cl_ord_id=f"n{step}")
                    asked += 1
            if chance.random() < 0.3:
                await settled()
        await trio.sleep(10)
        await settled()
        answered += hear()
        assert answered == asked
        ledger, switches = shop.gateway._exchange.ledger, shop.gateway._switches
        assert entered <= {order.order_id for order in ledger.orders.values()}
        assert switches._connections.keys() <= ledger.accounts["demo"].open_orders.keys()
        for channel in ("balances", "positions"):
            numbers = [extra for extra in readers[channel].exts if isinstance(extra, int)]
            assert numbers == list(range(1, len(numbers) + 1))
        assert shop.gateway.statistics().failures > 3
        expected = ledger.snapshot()
        crash(tmp_path)
    async with open_shop(journal=Disk(tmp_path / "copy")) as shop:
        assert shop.gateway._exchange.ledger.snapshot() == expected


def marked(shop: Shop, kind: str) -> None:
    marker = Marker(kind=kind, ts=0, reason="")
    shop.history.mark(marker)
    shop.gateway.mark(marker)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("when", ["before", "during", "after"])
@pytest.mark.parametrize(("kind", "reason"), [("end", "feed_ended"), ("epoch", "seek")])
async def test_a_marker_that_comes_while_the_disk_fails_ends_orders(
    tmp_path, autojump_clock, kind, reason, when, written
):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client = Client()
        shop.subscribe(client, "executions")
        shop.buy(client, 90, cl_ord_id="rests")
        await settled()
        disk.fails, disk.down, disk.open = [written], True, trio.Event()
        if when == "before":
            marked(shop, kind)
        shop.ask(client, "add_order", order_type="market", side="buy", symbol="BTC/USD", order_qty=1)
        await settled()
        if when == "during":
            marked(shop, kind)
        disk.open.set()
        await settled()
        if when == "after":
            marked(shop, kind)
        disk.down = False
        await trio.sleep(1.5)
        await settled()
        assert shop.gateway.statistics().open_orders == 0
        ends = [row for heard in client.take() if len(heard) == 3 for row in heard[2] if row["exec_type"] == "canceled"]
        assert {(row["cl_ord_id"], row["reason"]) for row in ends if "cl_ord_id" in row} <= {("rests", reason)}
        assert await status(shop, "rests") == "canceled"


async def test_an_order_that_came_after_an_epoch_outlives_a_failure_of_another_group(tmp_path):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client = Client()
        marked(shop, "epoch")
        shop.buy(client, 90, cl_ord_id="kept")
        await settled()
        disk.fails = [False]
        shop.buy(client, 91)
        await settled()
        assert await status(shop, "kept") == "new"


async def test_orders_of_the_journal_outlive_a_failure_before_the_market_begins(tmp_path):
    async with open_shop(journal=Disk(tmp_path / "j")) as shop:
        for name in ("kept", "other"):
            shop.buy(Client(), cl_ord_id=name)
        await settled()
    disk = FragileDisk(tmp_path / "j")
    shop = Shop(journal=disk)
    await shop.gateway.recover()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop.gateway.run)
        disk.fails = [False]
        shop.ask(Client(), "cancel_order", cl_ord_id=["other"])
        await settled()
        marked(shop, "epoch")
        await settled()
        assert [await status(shop, name) for name in ("kept", "other")] == ["new", "new"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("switch", ["dead_man", "disconnect"])
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
async def test_a_switch_that_falls_while_the_disk_is_away_cancels_once_it_is_back(
    tmp_path, autojump_clock, switch, again
):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client, reader = Client(), Client()
        shop.subscribe(reader, "executions")
        shop.ask(client, "cancel_on_disconnect", enable=True, grace_ms=5000)
        shop.buy(client, cl_ord_id="x")
        if switch == "dead_man":
            shop.ask(client, "cancel_all_orders_after", timeout=5)
        await settled()
        if switch == "disconnect":
            shop.gateway.remove(client, clean=False)
        await trio.sleep(3)
        disk.fails, disk.down = [False, False][: 1 + again], True  # the second is the write of what the switch has done
        shop.ask(reader, "cancel_all")
        await trio.sleep(3)
        assert shop.gateway.durability == "unavailable"
        reader.take()
        disk.down = False
        await trio.sleep(2)
        await settled()
        updates = [heard for heard in reader.take() if heard[:2] == ("executions", "update")]
        assert [(row["cl_ord_id"], row["reason"]) for *_, rows in updates for row in rows] == [("x", switch)]
        assert shop.gateway.statistics().open_orders == 0


async def test_the_same_commands_at_the_same_instants_make_the_same_journal():
    chains = []
    for _ in range(2):
        async with open_shop() as shop:
            client = Client()
            for number in range(40):
                shop.buy(client, 90 + number % 12, 0.7, cl_ord_id=f"c{number}", ttl_ms=1000 + number)
                if number % 7 == 0:
                    shop.ask(client, "cancel_all")
                await settled()  # at another time on the wall, and in other groups
                shop.happen(shop.tape.trades((BTC, SELL, 900 + number, ONE)))
            await settled()
            chains.append((shop.journal.head, shop.journal.chain))
    assert chains[0] == chains[1]


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("at", range(6))
async def test_a_failure_at_any_write_loses_nothing_acknowledged_and_keeps_nothing_refused(tmp_path, at, written):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client, script = Client(), ["a", "b", "c", "d", "e", "f"]
        for position, name in enumerate(script):
            if position == at:
                disk.fails = [written]
            shop.buy(client, 90 + position, cl_ord_id=name)
            await settled()
        replies = dict(zip(script, [reply for _, reply in client.replies()], strict=True))
        assert [name for name, reply in replies.items() if reply is Code.UNAVAILABLE] == [script[at]] * (not written)
        for name, reply in replies.items():
            shop.ask(client, "order_status", cl_ord_id=name)
            await settled()
            ((_, found),) = client.replies()
            known = Code.UNKNOWN_ORDER if reply is Code.UNAVAILABLE else reply["order_id"]
            assert (found if isinstance(found, Code) else found["order_id"]) == known


async def test_a_snapshot_that_fails_does_not_tell_its_group_twice(tmp_path, monkeypatch):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client = Client()
        shop.subscribe(client, "executions")
        await settled()
        client.take()
        monkeypatch.setattr(gateway, "SNAPSHOT_EVENTS", 0)
        disk.full = 2  # the second when it is known what is on disk
        shop.buy(client, cl_ord_id="x")
        await trio.sleep(1.1)
        await settled()
        assert (disk.full, shop.gateway.durability) == (0, "durable")
        assert [heard[:2] for heard in client.take()] == [
            ("add_order", {"order_id": "O000000000001", "cl_ord_id": "x"}),
            ("executions", "update"),
            ("executions", "snapshot"),  # of what is known after all
        ]


async def test_a_snapshot_holds_nothing_that_is_not_on_disk_before_it(tmp_path, monkeypatch):
    disk = FragileDisk(tmp_path / "j")
    async with open_shop(journal=disk) as shop:
        client = Client()
        shop.buy(client, 95, 2, cl_ord_id="rests")
        await settled()
        monkeypatch.setattr(gateway, "SNAPSHOT_EVENTS", 3)
        disk.open = trio.Event()
        shop.buy(client, 90)  # its group makes a snapshot due
        await settled()
        shop.happen(shop.tape.trades((BTC, SELL, 940, ONE)))  # while that is written
        disk.open.set()
        await settled()
        filled = shop.gateway._exchange.ledger
        crash(tmp_path)
    async with open_shop(journal=Disk(tmp_path / "copy")) as shop:
        recovered = shop.gateway._exchange.ledger
        assert recovered.snapshot() == filled.snapshot()
        assert recovered.fills == 1


async def test_a_clean_stop_leaves_a_snapshot_and_the_next_start_has_everything(tmp_path):
    async with open_shop(journal=Disk(tmp_path / "j")) as shop:
        client = Client()
        shop.buy(client, 101, 1, cl_ord_id="filled")
        shop.buy(client, 90, cl_ord_id="open")
        await settled()
    async with open_shop(journal=Disk(tmp_path / "j")) as shop:
        client = Client()
        shop.subscribe(client, "balances")
        for name in ("filled", "open"):
            shop.ask(client, "order_status", cl_ord_id=name)
        await settled()
        _, (_, _, balances), (_, filled), (_, still_open) = client.take()
        assert {row["asset"]: row["balance"] for row in balances}["BTC"] == 10_001
        assert (filled["order_status"], still_open["order_status"]) == ("filled", "new")
        shop.happen(shop.tape.trades((BTC, SELL, 890, ONE)))
        await settled()
        assert shop.gateway.statistics().open_orders == 0


async def test_the_queue_is_bounded():
    shop = Shop()
    await shop.gateway.recover()
    client = Client()
    for _ in range(QUEUE_DEPTH):
        shop.ask(client, "cancel_all")
    assert client.take() == []
    shop.ask(client, "cancel_all")
    assert client.take() == [("cancel_all", Code.BUSY)]


async def test_before_it_has_recovered_nothing_is_taken():
    shop, client = Shop(), Client()
    shop.buy(client)
    assert client.take() == [("add_order", Code.UNAVAILABLE)]


# Who


async def test_a_token_says_which_account_and_what_it_may_do():
    async with open_shop(named_accounts()) as shop:
        client = Client()
        shop.buy(client)
        shop.buy(client, token="nobody")
        shop.buy(client, token="look")
        shop.buy(client, token="alice")
        shop.buy(client)  # the connection is alice's now
        shop.buy(client, token="bob")
        bearer = Client(bearer="bob")
        shop.buy(bearer)
        await settled()
        assert [(m, r if isinstance(r, Code) else "ok") for m, r in client.replies()] == [
            ("add_order", Code.INVALID_TOKEN), ("add_order", Code.INVALID_TOKEN), ("add_order", Code.PERMISSION_DENIED),
            ("add_order", Code.INVALID_TOKEN), ("add_order", "ok"), ("add_order", "ok"),
        ]  # fmt: skip
        assert len(bearer.replies()) == 1
        accounts = shop.gateway._exchange.ledger.accounts
        assert [len(accounts[name].open_orders) for name in ("alice", "bob", "carol")] == [2, 1, 0]


async def test_an_account_has_a_rate_of_its_own():
    async with open_shop(named_accounts(orders_per_s=1)) as shop:
        alice, bob = Client(bearer="alice"), Client(bearer="bob")
        for _ in range(11):
            shop.buy(alice, qty=0.01)
            shop.buy(bob, qty=0.01)
        await settled()
        assert alice.replies()[0] == ("add_order", Code.RATE_LIMITED)
        assert all(reply != Code.RATE_LIMITED for _, reply in bob.replies())


async def test_three_accounts_see_and_touch_only_what_is_theirs():
    chance = random.Random(7)
    async with open_shop(named_accounts()) as shop:
        clients = {name: Client(bearer=name) for name in ("alice", "bob", "carol")}
        for name, client in clients.items():
            shop.subscribe(client, "executions")
            shop.subscribe(client, "balances")
            shop.buy(client, 50, 0.001, cl_ord_id=f"first-{name}")
        for step in range(5000):
            name = chance.choice(list(clients))
            other = chance.choice([each for each in clients if each != name])
            client, price = clients[name], chance.randrange(900, 1100) / 10
            match chance.randrange(6):
                case 0 | 1:
                    shop.buy(client, price, 0.001, cl_ord_id=f"{name}-{step}", side=chance.choice(["buy", "sell"]))
                case 2:
                    shop.ask(client, "cancel_order", order_id=[f"O{chance.randrange(1, step + 2):012d}"])
                case 3:
                    shop.ask(client, "amend_order", cl_ord_id=f"first-{other}", order_qty=0.002)
                case 4:
                    shop.ask(client, "cancel_order", cl_ord_id=[f"first-{other}"])
                case 5:
                    shop.ask(client, "order_status", cl_ord_id=f"first-{other}")
            if step % 100 == 0:
                shop.happen(shop.tape.trades((BTC, chance.choice([BUY, SELL]), round(price * 10), ONE)))
                await settled()
        await settled()
        ledger = shop.gateway._exchange.ledger
        for name, client in clients.items():
            assert ledger.find(name, cl_ord_id=f"first-{name}").status == "new"
            own = {order.order_id for order in ledger.orders.values() if order.account == name}
            sequences = []
            for heard, extra in zip(client.heard, client.exts, strict=False):
                if heard[0] == "executions":
                    assert {row["order_id"] for row in heard[2]} <= own
                if heard[0] == "order_status":
                    assert heard[1] is Code.UNKNOWN_ORDER
                del extra
            sequences = [row["order_id"] for heard in client.heard if heard[0] == "executions" for row in heard[2]]
            assert len(sequences) > 500


# Requests


async def test_the_same_request_twice_enters_one_order():
    async with open_shop() as shop:
        client = Client()
        for _ in range(2):
            shop.buy(client, cl_ord_id="x")
        shop.buy(client, 91, cl_ord_id="x")
        await settled()
        assert client.exts == [{"duplicate": False}, {"duplicate": True}]
        first, second, third = client.replies()
        assert (first, third) == (second, ("add_order", Code.DUPLICATE_CL_ORD_ID))


async def test_validate_enters_nothing():
    async with open_shop() as shop:
        client = Client()
        shop.buy(client, validate=True, cl_ord_id="x")
        shop.buy(client, qty=10**6, validate=True)
        await settled()
        assert client.replies() == [("add_order", {"cl_ord_id": "x"}), ("add_order", Code.INSUFFICIENT_FUNDS)]
        assert shop.gateway.statistics().open_orders == 0


async def test_a_request_whose_deadline_has_passed_is_not_done(monkeypatch):
    async with open_shop() as shop:
        client, now = Client(), clock.wall_ns()
        monkeypatch.setattr(clock, "wall_ns", lambda: now)
        shop.buy(client, ttl_ms=100)
        shop.buy(client, deadline=rfc3339(now + 10**9))
        shop.buy(client, deadline=rfc3339(now + 10**8))
        shop.buy(client, deadline="tomorrow")
        monkeypatch.setattr(clock, "wall_ns", lambda: now + 5 * 10**8)
        await settled()
        assert [r if isinstance(r, Code) else "ok" for _, r in client.replies()] == [
            Code.INVALID_ORDER, Code.INVALID_ORDER, Code.DEADLINE_ELAPSED, "ok",
        ]  # fmt: skip


async def test_cancelling_several_orders_answers_for_each():
    async with open_shop() as shop:
        client = Client(native=False)
        for name in "xyz":
            shop.buy(client, cl_ord_id=name, order_userref=7 if name == "z" else 1)
        shop.ask(client, "cancel_order", order_id=["O000000000001"], cl_ord_id=["nope"], order_userref=[7])
        shop.ask(client, "batch_cancel", orders=["O000000000002", "7", 1, "O000000000009"])
        shop.ask(client, "cancel_all")
        shop.ask(client, "cancel_order")
        await settled()
        malformed, *replies = client.replies()
        assert malformed == ("cancel_order", Code.INVALID_FIELD)
        assert replies[3:] == [
            ("cancel_order", {"order_id": "O000000000001", "cl_ord_id": "x", "order_userref": 1}),
            ("cancel_order", Code.UNKNOWN_ORDER),
            ("cancel_order", {"order_id": "O000000000003", "cl_ord_id": "z", "order_userref": 7}),
            ("batch_cancel", {"count": 1}),
            ("cancel_all", {"count": 0}),
        ]


async def test_a_batch_is_answered_as_one():
    async with open_shop() as shop:
        client = Client()
        order = {"order_type": "limit", "side": "buy", "order_qty": 1, "limit_price": 90}
        shop.ask(client, "batch_add", symbol="BTC/USD", orders=[order, {**order, "limit_price": 91}])
        shop.ask(client, "batch_add", symbol="BTC/USD", orders=[order, {**order, "order_qty": 10**7}])
        shop.ask(client, "batch_add", symbol="BTC/USD", orders=[order])
        await settled()
        malformed, entered, refused = client.replies()
        assert [row["order_id"] for row in entered[1]] == ["O000000000001", "O000000000002"]
        assert (malformed[1], refused[1]) == (Code.INVALID_FIELD, Code.INSUFFICIENT_FUNDS)


async def test_requests_are_on_their_way_for_a_while_and_do_not_overtake(autojump_clock):
    latency = UniformLatency(LatencyOptions(fixed_ms=50, jitter_ms=100))
    async with open_shop(latency=latency) as shop:
        client, began = Client(), trio.current_time()
        for number in range(20):
            shop.buy(client, qty=0.01, cl_ord_id=f"n{number}")
        await settled()
        assert client.take() == []
        await trio.sleep_until(began + 0.151)
        await settled()
        assert [reply["cl_ord_id"] for _, reply in client.replies()] == [f"n{number}" for number in range(20)]


# Reading


async def test_who_returns_gets_exactly_what_it_missed_or_a_snapshot():
    async with open_shop() as shop:
        client = Client()
        shop.subscribe(client, "executions")
        shop.buy(client, cl_ord_id="x")
        await settled()
        epoch = client.exts[0]["epoch"]
        shop.gateway.remove(client, clean=True)
        trader, returned, stranger = Client(), Client(), Client()
        shop.buy(trader, 101, 1)
        await settled()
        shop.subscribe(returned, "executions", resume={"epoch": epoch, "after": 1})
        shop.subscribe(stranger, "executions", resume={"epoch": "other", "after": 1})
        await settled()
        assert (returned.exts[0]["recovered"], returned.exts[1:]) == (True, [2, 3, 4])
        assert (stranger.exts[0]["recovered"], stranger.heard[1][:2]) == (False, ("executions", "snapshot"))


async def test_a_plain_client_sees_nothing_of_the_native_profile():
    async with open_shop() as shop:
        plain, native = Client(native=False), Client()
        with pytest.raises(RequestError):
            shop.subscribe(plain, "positions")
        for client in (plain, native):
            shop.subscribe(client, "executions", order_status=False)
            shop.subscribe(client, "balances")
        shop.buy(native, 90)
        shop.ask(native, "amend_order", order_id="O000000000001", limit_price=89)
        await settled()
        (new,) = [heard[2] for heard in plain.take() if heard[:2] == ("executions", "update")]
        assert not {"exec_seq", "leaves_qty", "fees_total"} & new[0].keys()
        heard = native.take()
        assert [h[2][0]["exec_type"] for h in heard if h[:2] == ("executions", "update")] == ["new"]
        assert [h[2][1]["held"] for h in heard if h[:2] == ("balances", "update")] == [90.36, 89.356]


async def test_positions_follow_the_price(autojump_clock):
    async with open_shop() as shop:
        client = Client()
        shop.subscribe(client, "positions")
        shop.buy(client, 101, 2)
        await settled()
        client.take()
        shop.happen(shop.tape.trades((BTC, BUY, 1030, 1)))
        await trio.sleep(1.1)
        await settled()
        ((_, _, (row,)),) = client.take()
        assert (row["qty"], row["avg_price"], row["mark_price"], row["unrealized_pnl"]) == (2, 101, 103, 4)


async def test_a_second_reader_of_positions_takes_no_price_away_from_the_first(autojump_clock):
    async with open_shop() as shop:
        first, second = Client(), Client()
        shop.subscribe(first, "positions")
        shop.buy(first, 101, 2)
        await settled()
        first.take()
        shop.happen(shop.tape.trades((BTC, BUY, 1030, 1)))
        shop.subscribe(second, "positions")
        await trio.sleep(1.1)
        await settled()
        ((*update, (row,)),) = first.take()
        (_, (*snapshot, (same,))) = second.take()
        assert (update, row["mark_price"]) == (["positions", "update"], 103)
        assert (snapshot, same) == (["positions", "snapshot"], row)
        shop.gateway.remove(second, clean=True)
        shop.happen(shop.tape.trades((BTC, BUY, 1040, 1)))
        await trio.sleep(1.1)
        await settled()
        assert [rows[0]["mark_price"] for *_, rows in first.take()] == [104]
        assert second.take() == []


async def test_a_position_in_what_the_market_does_not_have_any_more_has_no_price(tmp_path):
    async with open_shop(journal=Disk(tmp_path / "j")) as shop:
        shop.buy(Client(), 101, 2)
        await settled()
    shop = Shop(journal=Disk(tmp_path / "j"), instruments=Instruments([INSTRUMENTS[ETH]]))
    await shop.gateway.recover()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop.gateway.run)
        client = Client()
        shop.subscribe(client, "positions")
        await settled()
        (_, (_, _, (row,))) = client.take()
        assert (row["symbol"], row["qty"]) == ("BTC/USD", 2)
        assert "mark_price" not in row
        nursery.cancel_scope.cancel()


# Switches


async def test_the_dead_mans_switch_cancels_unless_it_is_held(autojump_clock):
    async with open_shop() as shop:
        client = Client()
        shop.buy(client)
        for _ in range(3):
            shop.ask(client, "cancel_all_orders_after", timeout=60)
            await trio.sleep(50)
        assert shop.gateway.statistics().open_orders == 1
        await trio.sleep(11)
        await settled()
        assert shop.gateway.statistics().open_orders == 0
        shop.buy(client)
        shop.ask(client, "cancel_all_orders_after", timeout=60)
        shop.ask(client, "cancel_all_orders_after", timeout=0)
        await trio.sleep(100)
        assert client.replies()[-1][1]["triggerTime"] == "0"
        assert shop.gateway.statistics().open_orders == 1


@pytest.mark.parametrize(
    ("clean", "returns", "left"), [(False, False, 1), (True, False, 2), (False, True, 2)], ids=["lost", "left", "back"]
)
async def test_orders_of_a_lost_connection_end_with_it(autojump_clock, clean, returns, left):
    async with open_shop(named_accounts()) as shop:
        client, other = Client(bearer="alice"), Client(bearer="alice")
        shop.buy(other)
        shop.ask(client, "cancel_on_disconnect", enable=True, grace_ms=5000)
        shop.buy(client)
        shop.gateway.remove(client, clean=clean)  # its requests are still on their way
        await trio.sleep(3)
        if returns:
            shop.ask(Client(bearer="alice"), "cancel_order", cl_ord_id=["nope"])
        await trio.sleep(3)
        await settled()
        assert shop.gateway.statistics().open_orders == left


@pytest.mark.parametrize(("returns", "left"), [(True, 1), (False, 0)], ids=["back", "gone"])
async def test_an_account_that_is_back_before_its_loss_is_noticed_keeps_its_orders(autojump_clock, returns, left):
    async with open_shop(latency=UniformLatency(LatencyOptions(fixed_ms=200))) as shop:
        client, back = Client(), Client()
        shop.ask(client, "cancel_on_disconnect", enable=True, grace_ms=1000)
        shop.buy(client)  # both are still on their way
        shop.gateway.remove(client, clean=False)
        await trio.sleep(0.1)
        if returns:
            shop.ask(back, "order_status", order_id="O000000000001")
        await trio.sleep(5)
        await settled()
        assert shop.gateway.statistics().open_orders == left


async def test_of_a_connection_whose_orders_end_with_it_only_the_open_ones_are_remembered():
    async with open_shop() as shop:
        client = Client()
        shop.ask(client, "cancel_on_disconnect", enable=True, grace_ms=0)
        shop.buy(client, 80)
        for _ in range(100):
            shop.buy(client, time_in_force="ioc")  # it ends as it is entered
            shop.buy(client, 90, order_userref=7)
            shop.ask(client, "cancel_order", order_userref=[7])
            shop.buy(client, 101, 0.01)
            await settled()
        assert len(shop.gateway._switches._connections) == shop.gateway.statistics().open_orders == 1
        shop.gateway.remove(client, clean=False)
        await settled()
        assert len(shop.gateway._switches._connections) == shop.gateway.statistics().open_orders == 0


async def test_the_end_of_the_feed_ends_orders():
    async with open_shop() as shop:
        client = Client()
        shop.buy(client)
        shop.history.mark(Marker(kind="end", ts=0, reason=""))
        shop.gateway.mark(Marker(kind="end", ts=0, reason=""))
        shop.buy(client)
        await settled()
        assert client.replies()[-1] == ("add_order", Code.NO_MARKET)
        assert shop.gateway.statistics().open_orders == 0


async def test_it_is_busy_from_the_request_to_the_answer_and_not_while_nothing_can_be_done(autojump_clock):
    journal = FragileDisk()
    async with open_shop(journal=journal) as shop:
        client = Client()
        await settled()
        assert not shop.gateway.busy
        shop.buy(client)
        assert shop.gateway.busy  # before its task has run
        journal.open = trio.Event()
        await settled()
        assert shop.gateway.busy  # while it is written
        journal.open.set()
        await settled()
        assert not shop.gateway.busy
        journal.fails, journal.down = [False], True
        shop.buy(client)
        await settled()
        assert not shop.gateway.busy
