"""The channel ``replay``: where a tape is, and digests that prove two runs equal."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
import trio
import trio.testing

from feeds.playback import Playback
from feeds.records import BUY, Marker
from feeds.replay import ReplayFeed
from feeds.simulate import SimulatedFeed, SimulationOptions
from feeds.store import open_recording, write_recording
from tests.scripted import BTC, INSTRUMENTS, START_NS, Tape
from tests.serving import House, Peer, open_house
from tests.test_replays import ask, code, opened, row, start
from ticker import info
from ticker.bulletin import Bulletin
from ticker.codec import rfc3339_exact
from ticker.history import History, HistoryOptions
from ticker.replays import ReplaysOptions

SPEEDS = [1, 10_000, float("inf")]


@pytest.fixture
def folder(tmp_path):
    """A second of a simulated market: trades, quotes and books of two symbols at some fifty instants."""
    options = {"symbols": ("BTC/USD", "ETH/USD"), "rate": 30.0, "trade_share": 0.5, "book_levels": 5}
    feed = SimulatedFeed(SimulationOptions(start_ns=START_NS, seed=3, **options))
    write_recording(tmp_path / "day1", feed.instruments, list(islice(feed.windows(), 100)))
    return tmp_path


def tape(folder: Any, **how: Any) -> ReplayFeed:
    """Return a tape as the server plays its own: it holds at its end."""
    return ReplayFeed(open_recording(folder / "day1"), hold_end=True, **how)


async def look(house: House, **params: Any) -> Peer:
    """Return a native peer that has subscribed to the channel."""
    peer = await house.visit(native=True)
    reply = await ask(peer, "subscribe", channel="replay", **params)
    assert reply["result"] == {"channel": "replay", **params}
    return peer


async def rows_to(peer: Peer, state: str) -> list[dict[str, Any]]:
    """Return the rows of the channel up to the first of a state."""
    rows: list[dict[str, Any]] = []
    while not rows or rows[-1]["state"] != state:
        rows += (await peer.message_of("replay"))["data"]
    return rows


# The digest


async def listen(peer: Peer, **session: str) -> None:
    """Subscribe to everything, each channel at another rate."""
    rates = {"ticker": (250, "merge"), "trade": (0, "batch"), "book": (0, "raw"), "ohlc": (1000, "merge")}
    for channel, (interval_ms, mode) in rates.items():
        await peer.subscribe(channel, "BTC/USD", "ETH/USD", interval_ms=interval_ms, mode=mode, **session)


@pytest.mark.parametrize("speed", SPEEDS)
async def test_the_digest_at_the_end_is_that_of_the_recording_for_everybody(folder, autojump_clock, speed) -> None:
    autojump_clock.autojump_threshold = 0.02  # the recording is read in a thread
    feed = tape(folder, speed=speed, start_paused=True)
    async with open_house(feed, replays=ReplaysOptions(digest_events=20)) as house:
        peers = [await look(house) for _ in range(3)]
        await listen(peers[0])
        await peers[1].subscribe("trade", "BTC/USD", interval_ms=500)
        feed.playback.resume()
        seen = [await rows_to(peer, "ended") for peer in peers]
    total = info.describe(open_recording(folder / "day1")).rows
    for rows in seen:
        assert rows[-1]["digest"] == {"events": total, "sha256": info.digest(str(folder / "day1"))}
        assert rows[-1]["progress"] == 1


@pytest.mark.parametrize("speed", SPEEDS)
async def test_that_of_a_session_is_the_same(folder, autojump_clock, speed) -> None:
    autojump_clock.autojump_threshold = 0.02
    async with opened(folder, digest_events=20) as house:
        peers = [await house.visit(native=True) for _ in range(2)]
        for peer in peers:
            await start(peer, speed=0 if speed == SPEEDS[-1] else speed)
        await listen(peers[0], session="desk1")
        await peers[1].subscribe("trade", "BTC/USD", session="desk1", interval_ms=500)
        await ask(peers[0], "replay_control", session="desk1", action="resume")
        for peer in peers:
            assert (await row(peer, "ended"))["digest"]["sha256"] == info.digest(str(folder / "day1"))


async def test_digests_come_every_so_many_rows_and_after_a_seek_from_the_start_again(folder, autojump_clock) -> None:
    autojump_clock.autojump_threshold = 0.02
    feed = tape(folder, start_paused=True)
    async with open_house(feed, replays=ReplaysOptions(digest_events=20)) as house:
        peer = await look(house)
        runs = []
        for _ in range(2):
            feed.playback.resume()
            runs.append([row["digest"] for row in await rows_to(peer, "ended") if row["digest"] is not None])
            feed.playback.pause()
            feed.playback.seek(0)
    first, second = [{digest["events"]: digest["sha256"] for digest in run} for run in runs]
    assert list(first)[:-1] == list(range(20, list(first)[-1], 20))
    assert len(first) > 10
    assert first == {events: second[events] for events in first}


async def test_every_pass_of_a_loop_ends_with_the_digest_of_the_recording(folder, autojump_clock) -> None:
    autojump_clock.autojump_threshold = 0.02
    feed = tape(folder, start_paused=True, loop=True)
    recording = open_recording(folder / "day1")
    whole = {"events": info.describe(recording).rows, "sha256": info.digest(str(folder / "day1"))}
    async with open_house(feed, replays=ReplaysOptions(digest_events=20)) as house:
        peer = await look(house)
        feed.playback.resume()
        rows: list[dict[str, Any]] = []
        while len({told["epoch"] for told in rows}) < 4:
            rows += (await peer.message_of("replay"))["data"]
    for epoch in list(dict.fromkeys(told["epoch"] for told in rows))[:3]:
        last = [told for told in rows if told["epoch"] == epoch][-1]
        assert (last["digest"], last["progress"], last["state"]) == (whole, 1, "playing")
        assert last["ts"] == rfc3339_exact(recording.end_ns)


async def test_what_a_seek_breaks_off_has_a_digest(folder, autojump_clock) -> None:
    autojump_clock.autojump_threshold = 0.02
    feed = tape(folder, start_paused=True)
    async with open_house(feed) as house:
        peer = await look(house)
        (first,) = (await peer.message_of("replay"))["data"]
        feed.playback.step(7)
        while feed.playback.statistics().rows < 7:
            await trio.testing.wait_all_tasks_blocked()
        position, played = feed.playback.statistics().position_ns, feed.playback.statistics().rows
        feed.playback.seek(START_NS)
        rows = [first]
        while rows[-1]["epoch"] == first["epoch"]:
            rows += (await peer.message_of("replay"))["data"]
    assert (rows[-2]["digest"]["events"], rows[-2]["ts"]) == (played, rfc3339_exact(position))
    assert rows[-1]["digest"] is None


# What else is told


async def test_where_the_tape_is_comes_at_once_and_with_every_action(folder, autojump_clock) -> None:
    autojump_clock.autojump_threshold = 0.02
    feed = tape(folder, start_paused=True, speed=10)
    async with open_house(feed) as house:
        peer = await look(house)
        (first,) = (await peer.message_of("replay"))["data"]
        assert "session" not in first
        assert (first["state"], first["speed"], first["progress"], first["digest"]) == ("paused", 10, 0, None)
        for action, state, speed in (
            ({"action": "speed", "speed": 0.5}, "paused", 0.5),
            ({"action": "resume"}, "playing", 0.5),
            ({"action": "pause"}, "paused", 0.5),
        ):
            await post(house, action)
            (told,) = (await peer.message_of("replay"))["data"]
            assert (told["state"], told["speed"]) == (state, speed)
        await post(house, {"action": "seek", "to": START_NS + 10**9})
        assert [row["epoch"] for row in (await row_after_seek(peer, first["epoch"]))] != [first["epoch"]]


async def row_after_seek(peer: Peer, epoch: str) -> list[dict[str, Any]]:
    while (rows := (await peer.message_of("replay"))["data"])[0]["epoch"] == epoch:
        pass
    assert rows[0]["digest"] is None
    return list(rows)


async def post(house: House, action: dict[str, Any]) -> None:
    """Control the tape over HTTP."""
    peer, body = house.dial(), json.dumps(action).encode()
    lines = ("host: localhost", "content-type: application/json", f"content-length: {len(body)}")
    await peer.send("\r\n".join(["POST /api/replay HTTP/1.1", *lines, "", ""]).encode() + body)
    assert (await peer.answer()).startswith(b"HTTP/1.1 200")


async def test_that_it_was_stopped_is_told_once_with_the_digest_of_what_was_played(folder, autojump_clock) -> None:
    autojump_clock.autojump_threshold = 0.02
    feed = tape(folder, start_paused=True)
    async with open_house(feed) as house:
        peer = await look(house)
        await peer.subscribe("trade")
        feed.playback.step(20)
        await peer.message_of("trade")
        await post(house, {"action": "stop"})
        last = (await rows_to(peer, "stopped"))[-1]
        assert last["digest"]["events"] == feed.statistics().rows
        await trio.sleep(5)
        await peer.send_request({"method": "ping"})
        while (message := await peer.message()).get("method") != "pong":
            assert message.get("channel") != "replay"


async def test_a_look_at_a_tape_does_not_begin_it(folder, autojump_clock) -> None:
    autojump_clock.autojump_threshold = 0.02
    heard = trio.Event()
    async with open_house(tape(folder, wait_start=heard.wait)) as house:
        peer = await look(house)
        assert (await peer.message_of("replay"))["data"][0]["state"] == "waiting"
        assert not house.market.heard.is_set()
        assert (await peer.message_of("heartbeat"))["data"] == []
        heard.set()
        assert (await rows_to(peer, "ended"))[-1]["progress"] == 1


async def test_a_tape_has_not_ended_before_its_market_has() -> None:
    pen, history = Tape(), History(INSTRUMENTS, HistoryOptions())
    playback = Playback(START_NS, START_NS + 1)
    bulletin = Bulletin(playback, history, 100)
    history.mark(Marker(kind="epoch", ts=START_NS, reason="start"))
    playback.start()
    bulletin.pass_over(pen.trades((BTC, BUY, 1000, 1)))
    playback.finish()
    assert (bulletin.row()["state"], bulletin.row()["digest"]) == ("playing", None)
    end = Marker(kind="end", ts=START_NS, reason="end")
    history.mark(end)
    bulletin.mark(end)
    assert (bulletin.row()["state"], bulletin.row()["digest"].events) == ("ended", 1)


# Who is told


async def test_who_unsubscribes_or_leaves_is_told_no_more(folder) -> None:
    async with open_house(tape(folder, start_paused=True)) as house:
        peer, other = await look(house), await look(house)
        assert code(await ask(peer, "subscribe", channel="replay")) == "ALREADY_SUBSCRIBED"
        assert (await ask(peer, "unsubscribe", channel="replay"))["result"] == {"channel": "replay"}
        assert code(await ask(peer, "unsubscribe", channel="replay")) == "NOT_SUBSCRIBED"
        other.leave()
        while house.server.statistics().sessions > 1:
            await trio.testing.wait_all_tasks_blocked()
        assert house.market.bulletin.readers == {}


async def test_members_of_a_session_may_look_away_and_stay(folder) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        await start(peer)
        about = {"channel": "replay", "session": "desk1"}
        assert code(await ask(peer, "subscribe", **about)) == "ALREADY_SUBSCRIBED"
        assert (await ask(peer, "unsubscribe", **about))["result"] == about
        await ask(peer, "replay_control", session="desk1", action="step")
        assert code(await ask(peer, "unsubscribe", **about)) == "NOT_SUBSCRIBED"
        assert (await ask(peer, "subscribe", **about))["result"] == about
        assert (await peer.message_of("replay"))["data"][0]["session"] == "desk1"
        assert code(await ask(peer, "subscribe", channel="replay", session="desk2")) == "UNKNOWN_SESSION"


async def test_only_native_clients_of_a_replay_have_the_channel(folder) -> None:
    async with open_house() as house:
        peer = await house.visit(native=True)
        for method in ("subscribe", "unsubscribe"):
            assert code(await ask(peer, method, channel="replay")) == "NOT_A_REPLAY"
    async with open_house(tape(folder, start_paused=True)) as house:
        peer = await house.visit()
        refused = await ask(peer, "subscribe", channel="replay", symbol="BTC/USD")
        unheard_of = await ask(peer, "subscribe", channel="replai", symbol="BTC/USD")
        assert refused["error"] == unheard_of["error"].replace("replai", "replay")
        house.market.bulletin.report()
        await peer.send_request({"method": "ping"})
        assert (await peer.message())["method"] == "pong"
