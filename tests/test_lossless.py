"""Speed 0: as fast as the slowest lossless subscriber reads, and nobody is cut off; the same digests at any speed."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from feeds.records import BUY, SELL, Batch, Marker
from feeds.store import write_recording
from tests.scripted import BTC, ETH, INSTRUMENTS, START_NS, FakeWire, Tape, open_market, open_outbox
from tests.test_replays import ask, opened, row, start
from ticker import info
from ticker.bus import PatientBus
from ticker.history import HistoryOptions
from ticker.market import Market
from ticker.subscriber import Subscriber
from ticker.topics.topic import NOTHING, TopicKey

TRADES = TopicKey("trade", mode="batch", native=True)
BOOK = TopicKey("book", 10, mode="batch", native=True)
MERGED = TopicKey("ticker", "trades", native=True)


class Reader:
    """A subscriber whose socket takes what a test lets it take."""

    def __init__(self, market: Market, nursery: trio.Nursery, *keys: TopicKey) -> None:
        self.wire: FakeWire
        self.wire, self.outbox = open_outbox()
        self.cut_off: list[str] = []
        self.rows: list[Any] = []
        self._broadcaster = market.broadcaster
        self.subscriber = Subscriber(self.outbox, self.cut_off.append, lambda *_: None)
        self.outbox.on_writable.append(lambda: self._broadcaster.writable(self.subscriber))
        for key in keys:
            lossless = "disconnect" if key.mode == "batch" else "conflate"
            subscription = market.broadcaster.join(self.subscriber, key, [BTC], on_slow=lossless)
            market.broadcaster.begin(subscription, {BTC: NOTHING})
        nursery.start_soon(self.outbox.run)

    def trades(self) -> int:
        """Return how many trades have come so far."""
        self.rows += [row for m in self.wire.messages() if m["channel"] == "trade" for row in m["data"]]
        return len(self.rows)


class Player:
    """Sends batches as fast as the bus takes them."""

    def __init__(self, market: Market, nursery: trio.Nursery) -> None:
        self.sent = 0
        self.patient = True
        broadcaster = market.broadcaster
        self.bus = PatientBus(broadcaster.publish, broadcaster.mark, lambda: self.patient, broadcaster.wait_told)
        nursery.start_soon(broadcaster.run)

    async def play(self, batches: list[Batch]) -> None:
        for batch in batches:
            await self.bus.send(batch)
            self.sent += 1


@pytest.fixture
async def market():
    return open_market(options=HistoryOptions(trade_rows=1, event_rows=8))  # 50 trades are kept in any case


def tape(batches: int, rows: int = 20) -> list[Batch]:
    pen = Tape()
    return [pen.trades(*[(BTC, BUY, 1000 + k, 1) for k in range(rows)]) for _ in range(batches)]


async def test_a_lossless_subscriber_that_does_not_read_holds_the_tape(autojump_clock, market, nursery) -> None:
    player, reader = Player(market, nursery), Reader(market, nursery, TRADES)
    reader.wire.set_room(100)
    nursery.start_soon(player.play, tape(100))
    await trio.testing.wait_all_tasks_blocked()
    assert player.sent == 0  # the first has not been taken wholly
    await trio.sleep(1000)
    assert player.sent == 0
    reader.wire.set_room(None)
    await trio.testing.wait_all_tasks_blocked()
    assert player.sent == 100
    assert reader.trades() == 2000
    assert reader.cut_off == []


async def test_the_slowest_of_them_sets_the_pace(autojump_clock, market, nursery) -> None:
    player = Player(market, nursery)
    fast, slow = Reader(market, nursery, TRADES), Reader(market, nursery, TRADES, MERGED)
    slow.wire.set_room(0)
    nursery.start_soon(player.play, tape(50))
    for _ in range(3000):
        await trio.testing.wait_all_tasks_blocked()
        slow.wire.set_room(1000)
    await trio.testing.wait_all_tasks_blocked()
    assert (fast.trades(), slow.trades()) == (1000, 1000)
    assert (fast.cut_off, slow.cut_off) == ([], [])


async def test_who_may_lose_events_is_not_waited_for(autojump_clock, market, nursery) -> None:
    player, reader = Player(market, nursery), Reader(market, nursery, MERGED)
    reader.wire.set_room(0)
    await player.play(tape(100))
    assert player.sent == 100


async def test_who_leaves_is_not_waited_for_any_longer(autojump_clock, market, nursery) -> None:
    player, reader = Player(market, nursery), Reader(market, nursery, TRADES)
    reader.wire.set_room(0)
    nursery.start_soon(player.play, tape(10))
    await trio.testing.wait_all_tasks_blocked()
    market.broadcaster.remove(reader.subscriber)
    await trio.testing.wait_all_tasks_blocked()
    assert player.sent == 10


async def test_without_patience_the_tape_goes_on_and_the_slow_are_cut_off(autojump_clock, market, nursery) -> None:
    player, reader = Player(market, nursery), Reader(market, nursery, TRADES)
    player.patient = False
    reader.wire.set_room(0)
    await player.play(tape(100))
    reader.wire.set_room(None)
    await trio.testing.wait_all_tasks_blocked()
    assert reader.cut_off


async def test_a_throttled_lossless_subscriber_is_waited_for_too(autojump_clock, market, nursery) -> None:
    player, reader = Player(market, nursery), Reader(market, nursery, TopicKey("trade", "", 100, "batch", native=True))
    began = trio.current_time()
    await player.play(tape(10))
    assert trio.current_time() - began == pytest.approx(0.9)
    assert reader.trades() == 200


async def test_books_are_lossless_too(autojump_clock, market, nursery) -> None:
    player, reader = Player(market, nursery), Reader(market, nursery, BOOK)
    pen = Tape()
    reader.wire.set_room(0)
    nursery.start_soon(player.play, [pen.levels(BTC, (BUY, 80, k), (SELL, 90, k)) for k in range(1, 200)])
    for _ in range(500):
        await trio.testing.wait_all_tasks_blocked()
        reader.wire.set_room(500)
    reader.wire.set_room(None)
    await trio.testing.wait_all_tasks_blocked()
    rows = [row for message in reader.wire.messages() for row in message["data"]]
    assert [row["bids"][0]["qty"] for row in rows] == [k / 1e8 for k in range(1, 200)]
    assert reader.cut_off == []


async def test_an_end_of_an_epoch_is_told_before_the_next_begins(autojump_clock, market, nursery) -> None:
    player, reader = Player(market, nursery), Reader(market, nursery, TRADES)
    await player.bus.send(Marker(kind="epoch", ts=START_NS, reason="start"))
    reader.wire.set_room(0)
    nursery.start_soon(player.play, tape(2))
    await trio.testing.wait_all_tasks_blocked()
    reader.wire.set_room(None)
    await trio.testing.wait_all_tasks_blocked()
    await player.bus.send(Marker(kind="epoch", ts=START_NS, reason="seek"))
    await player.play(tape(1))
    assert reader.trades() == 60
    assert reader.cut_off == []


# Over a socket


@pytest.fixture
def folder(tmp_path):
    pen = Tape()
    batches = [pen.trades(*[(who, BUY, 1000 + k, 1) for who in (BTC, ETH) for _ in range(15)]) for k in range(40)]
    write_recording(tmp_path / "day1", INSTRUMENTS, batches)
    return tmp_path


async def test_the_digests_are_the_same_at_any_speed(folder, autojump_clock) -> None:
    autojump_clock.autojump_threshold = 0.02
    digests = {}
    async with opened(folder, digest_events=100) as house:
        for speed in (0, 1, 10_000):
            peer = await house.visit(native=True)
            await start(peer, session=f"at{speed}", speed=speed)
            await peer.subscribe("trade", session=f"at{speed}")
            await ask(peer, "replay_control", session=f"at{speed}", action="resume")
            seen: dict[int, str] = {}
            state = ""
            while state != "ended":
                (values,) = (await peer.message_of("replay"))["data"]
                state = values["state"]
                if values["digest"] is not None:
                    seen[values["digest"]["events"]] = values["digest"]["sha256"]
            digests[speed] = seen
            peer.leave()
    common = set.intersection(*[set(seen) for seen in digests.values()])
    assert 1200 in common
    for events in common:
        assert len({seen[events] for seen in digests.values()}) == 1
    assert set(digests[1]) == set(range(100, 1201, 100))


async def test_a_client_that_pauses_its_reading_loses_nothing(folder) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        await start(peer, speed=0)
        await peer.subscribe("trade", session="desk1")
        await ask(peer, "replay_control", session="desk1", action="resume")
        assert len(await peer.trade_ids(600)) == 600
        assert (await row(peer, "ended"))["digest"] == {"events": 1200, "sha256": info.digest(str(folder / "day1"))}
