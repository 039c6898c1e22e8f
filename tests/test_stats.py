"""What the service says about itself: totals that agree with what clients were sent, and durations."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from feeds.feed import Supervisor
from feeds.records import BUY
from feeds.store import write_recording
from tests.scripted import INSTRUMENTS, Tape
from tests.serving import House, Peer, open_house, quotes_batch, request_head
from ticker.metrics import Metrics
from ticker.replays import ReplaysOptions
from ticker.stats import Stats
from ticker.timing import Timing


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """Every sample of a Prometheus page by its name and the values of its labels in the order of their names."""
    families = text_string_to_metric_families(text.decode())
    return {(s.name, *[s.labels[k] for k in sorted(s.labels)]): s.value for family in families for s in family.samples}


class Desk:
    """A house and the pages that tell about it."""

    def __init__(self, house: House) -> None:
        self.house = house
        supervisor = Supervisor(house.feed)
        self.metrics = Metrics(house.market, house.server, supervisor, house.replays)
        self._stats = Stats(house.market, house.server, supervisor, house.replays, self.metrics.loop_lag)

    def stats(self, after: int = 0) -> Any:
        status, kind, body = self._stats.stats({"after": str(after)})
        assert (status, kind) == (200, "application/json")
        return json.loads(body)

    def served(self) -> dict[tuple[str, ...], float]:
        return samples(self.metrics.page({})[2])

    def subscribers(self) -> dict[tuple[str, ...], float]:
        return samples(b"".join(self.metrics.subscribers_page({})[2]))


@asynccontextmanager
async def desk(**options: Any):
    async with open_house(**options) as house:
        yield Desk(house)


async def subscribed(house: House) -> Peer:
    peer = house.dial()
    await peer.shake_hands(request_head(extra=["Sec-WebSocket-Protocol: ticker.v1"]))
    await peer.subscribe("ticker", event_trigger="bbo", interval_ms=0)
    return peer


async def told(peer: Peer, last: int) -> dict[str, int]:
    """The sums of what a client is told up to a position, as it counts them itself."""
    sums = {"published": 0, "delivered": 0, "conflated": 0, "dropped": 0}
    while sums["published"] < last:
        pos = (await peer.message_of("ticker"))["pos"]
        sums["published"] += pos["last"] - (pos["prev"] or 0)
        sums["delivered"] += pos["n"]
        sums["conflated"] += pos["conflated"]
        sums["dropped"] += pos["dropped"]
    return sums


async def test_the_totals_on_every_page_are_what_the_clients_counted():
    async with desk() as office:
        house = office.house
        peers = [await subscribed(house) for _ in range(3)]
        for first in (100, 110, 120):
            await house.feed.tell(quotes_batch(first, 10))
        counted = [await told(peer, 30) for peer in peers]
        assert all(sums["conflated"] > 0 for sums in counted)
        for sums in counted:  # the first message of an epoch is a snapshot: the events before it were not published
            sums["published"] = sums["delivered"] + sums["conflated"]
        expected = {name: sum(sums[name] for sums in counted) for name in counted[0]}

        channel = office.stats()["channels"]["ticker"]
        assert {name: channel[name] for name in expected} == expected
        assert (channel["subscriptions"], channel["groups"], channel["behind"], channel["lag_s"]) == (3, 1, 0, 0.0)
        page = office.served()
        assert {name: page[f"ticker_{name}_total", "ticker"] for name in expected} == expected
        assert page["ticker_published_total", "trade"] == 0

        each = office.subscribers()
        for connection, sums in zip(office.stats()["connections"], counted, strict=True):
            (row,) = connection["subscriptions"]
            assert {name: row[name] for name in sums} == sums
            labels = ("ticker", str(connection["connection_id"]), str(row["sub_id"]))
            assert {name: each[f"ticker_subscriber_{name}_total", *labels] for name in sums} == sums

        peers[0].leave()  # what it was told still counts
        while house.server.statistics().sessions == 3:
            await trio.lowlevel.checkpoint()
        left = office.stats()
        assert left["channels"]["ticker"]["subscriptions"] == len(left["connections"]) == 2
        assert {name: left["channels"]["ticker"][name] for name in expected} == expected


async def test_who_reads_nothing_shows_as_behind_with_its_lag():
    async with desk() as office:
        await subscribed(office.house)
        events = 0
        while not (channel := office.stats()["channels"]["ticker"])["behind"]:
            await office.house.feed.tell(quotes_batch(100 + events, 1))
            events += 1
            assert events < 20_000, "the kernel took it all"
        await trio.sleep(0.01)
        assert 0.01 < office.stats()["channels"]["ticker"]["lag_s"] < 60
        ((subscription,),) = [row["subscriptions"] for row in office.stats()["connections"]]
        assert 10 <= subscription["lag_ms"] < 60_000
        assert channel["behind"] == 1
        page = office.served()
        assert page["ticker_behind", "ticker"] == 1
        assert page["ticker_lag_seconds", "ticker"] > 0.01


async def test_connections_come_in_pages(monkeypatch):
    monkeypatch.setattr("ticker.stats.CONNECTIONS_PER_PAGE", 2)
    async with desk() as office:
        for _ in range(5):
            await subscribed(office.house)
        pages, after = [], 0
        while True:
            page = office.stats(after)
            pages.append([connection["connection_id"] for connection in page["connections"]])
            if page["next"] is None:
                break
            after = int(page["next"].partition("after=")[2])
        assert pages == [[1, 2], [3, 4], [5]]


async def test_series_of_every_subscription_come_in_small_parts(monkeypatch):
    monkeypatch.setattr("ticker.metrics.ROWS_PER_PART", 2)
    async with desk() as office:
        peers = [await subscribed(office.house) for _ in range(5)]
        parts = iter(office.metrics.subscribers_page({})[2])
        read = [next(parts) for _ in range(3)]
        peers[0].leave()  # it was asked already
        while office.house.server.statistics().sessions == 5:
            await trio.lowlevel.checkpoint()
        read += parts
        assert max(part.count(b"{") for part in read) == 2
        names = [f"ticker_subscriber_{name}_total" for name in ("published", "delivered", "conflated", "dropped")]
        expected = {
            (name, "ticker", str(n), "1") for name in [*names, "ticker_subscriber_lag_seconds"] for n in range(1, 6)
        }
        assert samples(b"".join(read)).keys() == expected


async def test_replays_are_counted_and_each_is_told_without_its_name(tmp_path):
    pen = Tape()
    write_recording(tmp_path / "day1", INSTRUMENTS, [pen.trades((0, BUY, 1000 + k, 1)) for k in range(10)])
    async with desk(replays=ReplaysOptions(directory=str(tmp_path))) as office:
        peer = await office.house.visit(native=True)
        for session in ("desk1", "desk2"):
            wish = {"source": "day1", "session": session, "speed": 0, "start_paused": True}
            assert (await peer.ask({"method": "replay_start", "params": wish}))["success"]
        for action in ({"action": "step", "events": 3}, {"action": "resume"}):
            await peer.ask({"method": "replay_control", "params": {"session": "desk1", **action}})
        while (told := office.stats()["replays"])["rows"] < 10:
            await trio.testing.wait_all_tasks_blocked()
        assert (told["begun"], [row["rows"] for row in told["running"]]) == (2, [10, 0])
        first = told["running"][1]
        assert {name: first[name] for name in ("source", "members", "state", "digest")} == {
            "source": "day1", "members": 1, "state": "paused", "digest": None,
        }  # fmt: skip
        assert "desk1" not in json.dumps(told)

        await peer.ask({"method": "replay_control", "params": {"session": "desk1", "action": "stop"}})
        while (page := office.served())["ticker_replays",] == 2:
            await trio.testing.wait_all_tasks_blocked()
        assert page["ticker_replays",] == 1
        assert (page["ticker_replays_begun_total",], page["ticker_replayed_rows_total",]) == (2, 10)


async def test_the_loop_is_asked_how_late_it_is(nursery, autojump_clock):
    async with desk() as office:
        nursery.start_soon(office.metrics.run)
        await trio.sleep(0.95)
        assert office.served()["ticker_loop_lag_seconds_bucket", "+Inf"] == 9


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.003), (0.99, 0.2), (0.0, 0.0001)])
def test_recent_quantiles(share, expected):
    timing = Timing()
    for seconds in (0.0001, 0.002, 0.003, 0.2):
        timing.observe(seconds)
    assert timing.recent(share) == expected


def test_buckets_are_cumulative_and_forget_nothing():
    timing = Timing()
    assert timing.recent(0.99) == 0.0
    for _ in range(Timing.RECENT):
        timing.observe(0.0005)
    for _ in range(Timing.RECENT):
        timing.observe(7.0)
    counts = dict(timing.buckets())
    assert (counts["0.0005"], counts["2.5"], counts["+Inf"]) == (256, 256, 512)
    assert timing.recent(0.0) == 7.0
    assert timing.total_s == pytest.approx(256 * 7.0005)
