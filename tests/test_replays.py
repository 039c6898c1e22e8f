"""Replays on request: joined, controlled and left by clients of the native profile, over sockets inside the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import trio
import trio.testing

from feeds import layout
from feeds.records import BUY, SELL, Marker
from feeds.store import write_recording
from tests.scripted import BTC, ETH, INSTRUMENTS, START_NS, Tape
from tests.serving import BINARY, House, Peer, open_house
from ticker.replays import ReplaysOptions

TRADES = 40
#: The tape's rows are a millisecond apart.
NS = 1_000_000


@pytest.fixture(autouse=True)
def no_defects(caplog: pytest.LogCaptureFixture):
    """Nothing that a client does may be logged as a defect of ours."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.fixture
def folder(tmp_path):
    """Two recordings: day1 has a book and trades of both instruments, day2 nothing but trades."""
    tape = Tape()
    book = [tape.levels(BTC, (BUY, 1000, 5), (SELL, 1002, 7), snapshot=True)]
    trades = [tape.trades((who, BUY, 1000 + k, 1)) for k in range(TRADES // 2) for who in (BTC, ETH)]
    write_recording(tmp_path / "day1", INSTRUMENTS, [*book, *trades])
    write_recording(tmp_path / "day2", INSTRUMENTS, [tape.trades((BTC, BUY, k, 1)) for k in range(1, 4)])
    return tmp_path


@asynccontextmanager
async def opened(folder: Any, **options: Any) -> AsyncIterator[House]:
    async with open_house(replays=ReplaysOptions(directory=str(folder), **options)) as house:
        with trio.fail_after(20):
            yield house


async def ask(peer: Peer, method: str, **params: Any) -> dict[str, Any]:
    """Return the reply to a request; what comes before it is passed over."""
    return await peer.ask({"method": method, "params": params, "req_id": 1})


async def start(peer: Peer, **params: Any) -> dict[str, Any]:
    """Join a session; it begins paused and as fast as possible unless said otherwise."""
    wish = {"source": "day1", "session": "desk1", "speed": 0, "start_paused": True, **params}
    reply = await ask(peer, "replay_start", **wish)
    assert reply["success"], reply
    return reply


async def row(peer: Peer, state: str) -> dict[str, Any]:
    """Return the next row of the replay channel in a state."""
    while (row := (await peer.message_of("replay"))["data"][0])["state"] != state:
        pass
    return row


def code(reply: dict[str, Any]) -> str:
    assert reply["success"] is False, reply
    return reply["ext"]["name"]


# Beginning, and what comes


async def test_the_sources_are_listed_by_name(folder) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        assert (await ask(peer, "replay_sources"))["result"] == {"sources": ["day1", "day2"]}


async def test_a_recording_is_played_to_who_asked_for_it(folder) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        reply = await start(peer)
        assert reply["result"] == {
            "source": "day1", "session": "desk1", "symbol": ["BTC/USD", "ETHUSDT"],
            "from": "2026-01-02T09:04:31.001000000Z", "to": "2026-01-02T09:04:31.041000001Z", "speed": 0,
            "start_paused": True, "loop": False, "gap": "keep",
        }  # fmt: skip
        assert reply["ext"]["model"] == "recording"
        reply = await ask(peer, "subscribe", channel="trade", symbol=["BTC/USD"], session="desk1")
        assert reply["result"]["session"] == "desk1"
        await ask(peer, "replay_control", session="desk1", action="resume")
        messages = []
        while not messages or messages[-1]["channel"] != "replay" or messages[-1]["data"][0]["state"] != "ended":
            messages.append(await peer.message())
        trades = [message for message in messages if message["channel"] == "trade"]
        assert {message["session"] for message in trades} == {"desk1"}
        assert [row["price"] for message in trades for row in message["data"]] == [
            100 + k / 10 for k in range(TRADES // 2)
        ]
        last = messages[-1]["data"][0]
        assert (last["session"], last["speed"], last["progress"]) == ("desk1", 0, 1)
        assert last["ts"] == "2026-01-02T09:04:31.041000000Z"
        assert last["digest"]["events"] == TRADES + 3


async def test_the_result_of_a_start_is_what_starts_it_again(folder) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        result = (await start(peer, symbol="ETH/USDT", **{"from": "+2ms"}))["result"]
        again = await ask(peer, "replay_start", **{**result, "session": "desk2"})
        assert again["result"] == {**result, "session": "desk2"}
        assert result["symbol"] == ["ETHUSDT"]
        assert result["from"] == "2026-01-02T09:04:31.003000000Z"


async def test_the_servers_own_market_goes_on_beside_it(folder) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        await start(peer)
        await peer.subscribe("trade", session="desk1")
        await peer.subscribe("trade")
        listed = (await ask(peer, "list_subscriptions"))["result"]["subscriptions"]
        assert [(row["sub_id"], row.get("session")) for row in listed] == [(2, None), (1, "desk1")]
        await house.trade(1)
        own = await peer.message_of("trade")
        assert "session" not in own
        await ask(peer, "replay_control", session="desk1", action="step", events=3)
        replayed = await peer.message_of("trade")
        assert replayed["session"] == "desk1"
        assert replayed["pos"]["epoch"] != own["pos"]["epoch"]


async def test_only_the_symbols_asked_for_are_there(folder) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        await start(peer, symbol=["ETHUSDT"])
        reply = await ask(peer, "subscribe", channel="trade", symbol=["BTC/USD"], session="desk1")
        assert code(reply) == "UNKNOWN_SYMBOL"
        await peer.subscribe("trade", "ETH/USDT", session="desk1")
        await ask(peer, "replay_control", session="desk1", action="resume")
        assert (await row(peer, "ended"))["digest"]["events"] == TRADES // 2
        assert code(await ask(peer, "replay_start", source="day1", symbol=["NO/PE"])) == "UNKNOWN_SYMBOL"


async def test_a_tape_that_does_not_begin_paused_waits_for_the_first_subscription(folder, autojump_clock) -> None:
    autojump_clock.autojump_threshold = 0.05  # the recording is read in a thread
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        await start(peer, start_paused=False)
        assert (await peer.message_of("replay"))["data"][0]["state"] == "waiting"
        await peer.subscribe("trade", session="desk1")
        assert len(await peer.trade_ids(TRADES // 2)) == TRADES // 2


async def test_the_instruments_of_a_session_are_its_own(folder) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        await start(peer, symbol="ETHUSDT")
        for params, symbols in (({"session": "desk1"}, ["ETHUSDT", "ETH/USDT"]), ({}, ["BTC/USD", "ETH/USD"])):
            reply = await ask(peer, "subscribe", channel="instrument", **params)
            assert reply["result"] == {"channel": "instrument", "snapshot": True, **params}
            message = await peer.message_of("instrument")
            assert [pair["symbol"] for pair in message["data"]["pairs"]] == symbols
            assert message.get("session") == params.get("session")


async def test_packed_records_of_two_sessions_and_of_the_servers_market_are_told_apart_by_their_listings(
    folder,
) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        listings = {}
        for session in ("desk1", "desk2", ""):
            if session:
                await start(peer, session=session)
            params = {"session": session} if session else {}
            reply = await ask(peer, "subscribe", channel="trade", symbol=["BTC/USD"], encoding="struct", **params)
            listings[session] = reply["ext"]["listing"]
            dtype = np.dtype([tuple(field) for field in reply["ext"]["dtype"]])
        assert len(set(listings.values())) == 3
        await ask(peer, "replay_control", session="desk2", action="resume")
        told = 0
        while told < TRADES // 2:
            frame = await peer.frame()
            if frame.opcode == BINARY:
                records = np.frombuffer(frame.payload, dtype)
                assert set(records["listing"].tolist()) == {listings["desk2"]}
                told += len(records)


# Control


async def test_steps_are_events_and_until(folder) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        await start(peer)
        await peer.subscribe("trade", "BTC/USD", "ETHUSDT", session="desk1")
        await ask(peer, "replay_control", session="desk1", action="step", events=5)
        assert len(await peer.trade_ids(4)) == 4  # the first event is the book's
        await ask(peer, "replay_control", session="desk1", action="step", to=START_NS + 11 * NS)
        assert len(await peer.trade_ids(5)) == 5  # all before that instant
        await ask(peer, "replay_control", session="desk1", action="step")
        assert len(await peer.trade_ids(1)) == 1


async def test_a_seek_begins_an_epoch(folder) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        await start(peer)
        await peer.subscribe("trade", session="desk1")
        await ask(peer, "replay_control", session="desk1", action="step", events=10)
        before = await peer.message_of("trade")
        reply = await ask(peer, "replay_control", session="desk1", action="seek", to="2026-01-02T09:04:31.030Z")
        assert reply["result"] == {"session": "desk1", "action": "seek", "to": "2026-01-02T09:04:31.030Z"}
        await ask(peer, "replay_control", session="desk1", action="resume")
        after = await peer.message_of("trade")
        assert after["pos"]["epoch"] != before["pos"]["epoch"]
        assert after["pos"]["prev"] == 0
        assert after["data"][0]["timestamp"] == "2026-01-02T09:04:31.030000Z"
        assert (await row(peer, "ended"))["epoch"] == after["pos"]["epoch"]


async def test_a_change_of_speed_is_told(folder) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        await start(peer, speed=10)
        assert (await row(peer, "paused"))["speed"] == 10
        await ask(peer, "replay_control", session="desk1", action="speed", speed=0.5)
        assert (await row(peer, "paused"))["speed"] == 0.5


async def test_a_stopped_session_is_over_and_its_name_is_free(folder) -> None:
    async with opened(folder) as house:
        peer, other = await house.visit(native=True), await house.visit(native=True)
        for one in (peer, other):
            await start(one)
            await one.subscribe("trade", session="desk1")
        await ask(peer, "replay_control", session="desk1", action="stop")
        for one in (peer, other):
            await row(one, "stopped")
            assert (await ask(one, "list_subscriptions"))["result"] == {"subscriptions": []}
            assert code(await ask(one, "replay_control", session="desk1", action="resume")) == "UNKNOWN_SESSION"
        await start(peer, source="day2")


async def test_a_tape_that_still_waits_can_be_stopped(folder, autojump_clock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        await start(peer, start_paused=False)
        await ask(peer, "replay_control", session="desk1", action="stop")
        await row(peer, "stopped")


@pytest.mark.parametrize(
    ("params", "name", "field"),
    [
        ({"source": "../day1"}, "UNKNOWN_SOURCE", "source"),
        ({"source": "day3"}, "UNKNOWN_SOURCE", "source"),
        ({"source": 1}, "INVALID_FIELD", "source"),
        ({}, "INVALID_FIELD", "source"),
        ({"source": "day1", "session": ""}, "INVALID_FIELD", "session"),
        ({"source": "day1", "session": 'a"b'}, "INVALID_FIELD", "session"),
        ({"source": "day1", "session": "x" * 65}, "INVALID_FIELD", "session"),
        ({"source": "day1", "from": "yesterday"}, "BAD_TIME", "from"),
        ({"source": "day1", "to": "2026-01-32"}, "BAD_TIME", "to"),
        ({"source": "day1", "from": START_NS + 9, "to": START_NS + 9}, "BAD_TIME", "from"),
        ({"source": "day1", "from": "2027-01-01T00:00:00Z"}, "BAD_TIME", "from"),
        ({"source": "day1", "speed": 0.001}, "INVALID_FIELD", "speed"),
        ({"source": "day1", "speed": -1}, "INVALID_FIELD", "speed"),
        ({"source": "day1", "speed": "10"}, "INVALID_FIELD", "speed"),
        ({"source": "day1", "gap": "never"}, "INVALID_FIELD", "gap"),
    ],
)
async def test_a_start_that_cannot_be_says_why(folder, params, name, field) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        reply = await ask(peer, "replay_start", **params)
        assert (code(reply), reply["ext"]["field"]) == (name, field)
        assert (await ask(peer, "ping"))["method"] == "pong"


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"action": "seek"}, "INVALID_FIELD"),
        ({"action": "seek", "to": "noon"}, "BAD_TIME"),
        ({"action": "seek", "to": 1.5}, "INVALID_FIELD"),
        ({"action": "speed"}, "INVALID_FIELD"),
        ({"action": "speed", "speed": 10_001}, "INVALID_FIELD"),
        ({"action": "step", "events": 0}, "INVALID_FIELD"),
        ({"action": "step", "events": 1, "to": START_NS}, "INVALID_FIELD"),
        ({"action": "rewind"}, "INVALID_FIELD"),
        ({"action": "pause", "session": "other"}, "UNKNOWN_SESSION"),
    ],
)
async def test_an_action_that_cannot_be_says_why_and_changes_nothing(folder, params, name) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        await start(peer)
        first = await row(peer, "paused")
        assert code(await ask(peer, "replay_control", **{"session": "desk1", **params})) == name
        await ask(peer, "replay_control", session="desk1", action="pause")
        assert await row(peer, "paused") == first


@asynccontextmanager
async def held(folder) -> AsyncIterator[tuple[House, Peer]]:
    """Have a tape wait for a member who reads nothing, and give another member."""
    pen = Tape()
    book = pen.levels(BTC, (BUY, 999, 1), snapshot=True)
    trades = [pen.trades(*[(BTC, BUY, 1000 + k, 1) for k in range(1000)]) for _ in range(40)]
    write_recording(folder / "long", INSTRUMENTS, [book, *trades])
    async with opened(folder) as house:
        stalled, other = await house.visit(native=True), await house.visit(native=True)
        for peer in (stalled, other):
            await start(peer, source="long")
        await stalled.subscribe("trade", session="desk1")
        await ask(other, "replay_control", session="desk1", action="resume")
        (session,) = [s for s in house.server.sessions.values() if s.statistics().subscriptions]
        while not session._outbox.behind:
            await trio.testing.wait_all_tasks_blocked()
        yield house, other


async def test_a_stop_does_not_wait_for_who_reads_nothing(folder) -> None:
    async with held(folder) as (_, other):
        await ask(other, "replay_control", session="desk1", action="stop")
        assert (await row(other, "stopped"))["progress"] < 1


async def test_a_seek_does_not_wait_for_who_reads_nothing(folder, monkeypatch) -> None:
    monkeypatch.setattr("ticker.replays.PATIENCE_S", 0.05)
    async with held(folder) as (house, other):
        await other.subscribe("book", session="desk1")
        before = house.replays.statistics().running[0]["epoch"]
        await ask(other, "replay_control", session="desk1", action="seek", to="+20ms")
        while (moved := await row(other, "playing"))["epoch"] == before:
            pass
        assert moved["ts"].startswith("2026-01-02T09:04:31.021")
        while (book := await other.message_of("book"))["pos"]["epoch"] == before:
            pass
        assert book["data"][0]["bids"] == [{"price": 99.9, "qty": 1e-8}]


async def test_a_change_of_speed_does_not_wait_for_who_reads_nothing(folder) -> None:
    async with held(folder) as (_, other):
        await ask(other, "replay_control", session="desk1", action="speed", speed=10)
        assert (await row(other, "ended"))["progress"] == 1


async def test_who_reads_nothing_is_waited_for_again_after_a_pause(folder) -> None:
    async with held(folder) as (house, other):
        (before,) = house.replays.statistics().running
        for action in ("pause", "resume"):
            await ask(other, "replay_control", session="desk1", action=action)
            await trio.sleep(0.05)
        assert house.replays.statistics().running == [before]


# Together and apart


async def test_whoever_says_the_same_name_and_source_joins(folder) -> None:
    async with opened(folder) as house:
        first, second = await house.visit(native=True), await house.visit(native=True)
        begun = await start(first)
        assert (await start(second, speed=7))["result"] == begun["result"]
        for peer in (first, second):
            await peer.subscribe("trade", session="desk1")
        await ask(second, "replay_control", session="desk1", action="step", events=2)
        assert await first.trade_ids(1) == await second.trade_ids(1)
        assert code(await ask(second, "replay_start", source="day2", session="desk1")) == "OTHER_SOURCE"


async def test_nobody_touches_a_session_that_they_have_not_joined(folder) -> None:
    async with opened(folder) as house:
        owner, other = await house.visit(native=True), await house.visit(native=True)
        await start(owner)
        for action in ("pause", "resume", "stop", "leave"):
            assert code(await ask(other, "replay_control", session="desk1", action=action)) == "UNKNOWN_SESSION"
        for method in ("subscribe", "unsubscribe", "resync"):
            reply = await ask(other, method, channel="trade", symbol=["BTC/USD"], session="desk1")
            assert code(reply) == "UNKNOWN_SESSION"
        await ask(owner, "replay_control", session="desk1", action="pause")
        assert (await row(owner, "paused"))["progress"] == 0


async def test_without_a_name_a_session_is_nobody_elses(folder) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        replies = [await ask(peer, "replay_start", source="day1", start_paused=True) for _ in range(2)]
        names = {reply["result"]["session"] for reply in replies}
        assert len(names) == 2
        assert all(len(name) == 16 for name in names)


async def test_who_leaves_is_told_no_more_and_the_others_go_on(folder) -> None:
    async with opened(folder) as house:
        leaver, stayer = await house.visit(native=True), await house.visit(native=True)
        for peer in (leaver, stayer):
            await start(peer)
            await peer.subscribe("trade", session="desk1")
        await ask(leaver, "replay_control", session="desk1", action="leave")
        assert code(await ask(leaver, "replay_control", session="desk1", action="pause")) == "UNKNOWN_SESSION"
        await ask(stayer, "replay_control", session="desk1", action="resume")
        await row(stayer, "ended")
        await leaver.send_request({"method": "ping"})
        assert (await leaver.message())["method"] == "pong"


async def test_a_session_ends_a_while_after_its_last_client_has_left(folder, autojump_clock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with opened(folder, linger_s=5, max_sessions=1) as house:
        first = await house.visit(native=True)
        await start(first)
        first.leave()
        await trio.sleep(4)
        second = await house.visit(native=True)
        await start(second)  # it is still there
        second.leave()
        await trio.sleep(6)
        third = await house.visit(native=True)
        assert (await start(third, source="day2"))["result"]["source"] == "day2"


async def test_sessions_are_limited_for_a_connection_and_in_all(folder) -> None:
    async with opened(folder, max_sessions=3, max_sessions_per_connection=2) as house:
        first, second = await house.visit(native=True), await house.visit(native=True)
        for _ in range(4):
            await first.send_request({"method": "replay_start", "params": {"source": "day1", "start_paused": True}})
        replies = [await first.reply() for _ in range(4)]
        assert sorted(reply["success"] for reply in replies) == [False, False, True, True]
        assert {code(reply) for reply in replies if not reply["success"]} == {"TOO_MANY_SESSIONS"}
        await start(second)
        assert code(await ask(second, "replay_start", source="day1", session="desk2")) == "TOO_MANY_SESSIONS"


async def test_a_client_that_left_while_its_recording_was_opened_holds_nothing(folder, autojump_clock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with opened(folder, linger_s=5, max_sessions=1) as house:
        peer = await house.visit(native=True)
        await peer.send_request({"method": "replay_start", "params": {"source": "day1", "session": "desk1"}})
        peer.leave()
        await trio.sleep(6)
        other = await house.visit(native=True)
        await start(other, source="day2", session="desk2")


# What breaks


def damage(path, column: str) -> None:
    """Make a column of a Parquet file unreadable; its footer and its other columns are as before."""
    offset = pq.ParquetFile(path).metadata.row_group(0).column(layout.needed("trades").index(column)).data_page_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    path.write_bytes(data)


async def test_a_recording_that_breaks_off_ends_the_replay_and_says_why(folder, caplog) -> None:
    async with opened(folder) as house:
        peer = await house.visit(native=True)
        path = folder / "day1.trades.parquet"
        damage(path, "price")
        await start(peer)
        await peer.subscribe("trade", session="desk1")
        await ask(peer, "replay_control", session="desk1", action="resume")
        assert (await row(peer, "stopped"))["error"].startswith("day1.trades.parquet: ")
        assert code(await ask(peer, "replay_control", session="desk1", action="resume")) == "UNKNOWN_SESSION"
        await start(peer, source="day2")


async def test_a_defect_in_a_replay_costs_nobody_else_anything(folder, caplog, monkeypatch) -> None:
    joined = trio.Event()

    async def defect(self, out):
        await out.send(Marker(kind="epoch", ts=START_NS, reason="start"))
        await joined.wait()
        raise ZeroDivisionError

    async with opened(folder) as house:
        peer = await house.visit(native=True)
        with monkeypatch.context() as patch:
            patch.setattr("feeds.replay.ReplayFeed.run", defect)
            await start(peer)
            joined.set()
            assert (await row(peer, "stopped"))["error"] == "internal error"
        with monkeypatch.context() as patch:
            patch.setattr("ticker.library.Library.open", lambda *_: 1 / 0)
            patch.setattr("ticker.library.Library.names", lambda *_: 1 / 0)
            assert code(await ask(peer, "replay_start", source="day1", session="desk2")) == "UNAVAILABLE"
            assert code(await ask(peer, "replay_sources")) == "UNAVAILABLE"
        await start(peer)
        assert len(caplog.records) == 3
        caplog.clear()


# Plain clients


async def test_a_plain_client_sees_nothing_of_replays(folder) -> None:
    async with opened(folder) as house:
        peer, native = await house.visit(), await house.visit(native=True)
        await start(native)
        for method in ("replay_sources", "replay_start", "replay_control"):
            assert (await ask(peer, method, source="day1", session="desk1"))["error"] == f"Unknown method {method}"
        reply = await ask(peer, "subscribe", channel="trade", symbol=["BTC/USD"], session="desk1")
        assert reply["result"] == {"channel": "trade", "symbol": "BTC/USD", "snapshot": False}
        await native.subscribe("trade", session="desk1")
        await ask(native, "replay_control", session="desk1", action="resume")
        await row(native, "ended")
        await house.trade(1)
        assert (await peer.message_of("trade"))["data"][0]["trade_id"] == 1


async def test_a_server_without_a_folder_has_no_sources(folder) -> None:
    async with open_house() as house:
        peer = await house.visit(native=True)
        assert (await ask(peer, "replay_sources"))["result"] == {"sources": []}
        assert code(await ask(peer, "replay_start", source="day1")) == "UNKNOWN_SOURCE"
