"""Replay sessions through the client: begun, shared, controlled, iterated over and left, against the real server."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from feeds.records import BUY
from feeds.store import write_recording
from tests.scripted import BTC, INSTRUMENTS, Tape
from tests.serving import House, open_house
from tests.test_client import FakeSocket
from ticker import info
from ticker.client import ActionRefused, Connection, ConnectionLost, Replay, open_connection, open_replay
from ticker.replays import ReplaysOptions
from ticker.wire import NATIVE

README = Path(__file__).parents[1] / "README.md"
TRADES = 20
PAUSED = {"speed": 0, "start_paused": True}


@pytest.fixture
def folder(tmp_path):
    """A recording of trades, a millisecond apart."""
    pen = Tape()
    write_recording(tmp_path / "day1", INSTRUMENTS, [pen.trades((BTC, BUY, 1000 + k, 1)) for k in range(TRADES)])
    return tmp_path


@asynccontextmanager
async def served(folder: Any) -> AsyncIterator[House]:
    async with open_house(tcp=True, replays=ReplaysOptions(directory=str(folder), linger_s=0)) as house:
        with trio.fail_after(20):
            yield house


def connected(house: House) -> Any:
    return open_connection(f"ws://127.0.0.1:{house.port}/v2", subprotocols=[NATIVE])


async def prices(replay: Replay, count: int) -> list[Any]:
    """Return the prices of the next trades of a session."""
    found: list[Any] = []
    while len(found) < count:
        message = await anext(replay)
        found += [row["price"] for row in message["data"] if message["channel"] == "trade"]
    return found


async def test_a_session_is_played_to_its_end_and_left(folder) -> None:
    async with served(folder) as house, connected(house) as market:
        async with open_replay(market, "day1", **PAUSED) as replay:
            assert (replay.params["source"], replay.params["speed"], len(replay.session)) == ("day1", 0, 16)
            assert (await replay.subscribe("trade", replay.params["symbol"]))[0]["success"]
            await replay.control("resume")
            messages = []
            while replay.state.get("state") != "ended":
                messages.append(await anext(replay))
        rows = [row for message in messages if message["channel"] == "trade" for row in message["data"]]
        assert len(rows) == TRADES
        assert replay.state["digest"] == {"events": TRADES, "sha256": info.digest(str(folder / "day1"))}
        assert (market.apart, [m["channel"] for m in market.unread]) == ({}, ["status"])
        while house.replays.statistics().running:  # nobody has stayed
            await trio.testing.wait_all_tasks_blocked()


async def test_every_action_does_what_it_says(folder) -> None:
    async with served(folder) as house, connected(house) as market, open_replay(market, "day1", **PAUSED) as replay:
        await replay.subscribe("trade", ["BTC/USD"])
        await replay.control("step", events=3)
        assert [float(price) for price in await prices(replay, 3)] == [100.0, 100.1, 100.2]
        await replay.control("seek", to="+0s")
        await replay.control("step")
        assert [float(price) for price in await prices(replay, 1)] == [100.0]
        await replay.control("speed", speed=2.5)
        while replay.state["speed"] != 2.5:
            await anext(replay)
        await replay.control("pause")
        with pytest.raises(ActionRefused, match="seek needs to"):
            await replay.control("seek")
        await replay.control("stop")
        assert [m["channel"] async for m in replay if m["channel"] != "replay"] == []
        assert replay.state["state"] == "stopped"


async def test_who_says_the_same_name_joins(folder) -> None:
    async with (
        served(folder) as house,
        connected(house) as one,
        connected(house) as two,
        open_replay(one, "day1", session="desk1", **PAUSED) as first,
    ):
        async with open_replay(two, "day1", session="desk1") as second:
            assert first.params == second.params
            for replay in (first, second):
                await replay.subscribe("trade", ["BTC/USD"])
            await second.control("step", events=2)
            assert await prices(first, 2) == await prices(second, 2)
        await first.control("step")  # who has left is not missed
        assert len(await prices(first, 1)) == 1
        with pytest.raises(ActionRefused, match="joined session desk1 already"):
            await open_replay(one, "day1", session="desk1").__aenter__()


async def test_sessions_and_the_servers_own_market_are_iterated_over_apart(folder) -> None:
    async with served(folder) as house, connected(house) as market:
        await market.subscribe("trade", ["BTC/USD"])
        async with open_replay(market, "day1", **PAUSED) as one, open_replay(market, "day1", **PAUSED) as two:
            for replay in (one, two):
                await replay.subscribe("trade", ["BTC/USD"])
            await house.trade(1)
            await one.control("step", events=2)
            await two.control("step", events=5)
            assert (len(await prices(two, 5)), len(await prices(one, 2))) == (5, 2)
            while (message := await market.receive())["channel"] in ("status", "heartbeat"):
                pass
            assert (message["channel"], message.get("session")) == ("trade", None)


async def test_records_find_their_session_and_their_symbol(folder) -> None:
    async with served(folder) as house, connected(house) as market:
        await market.subscribe("trade", ["BTC/USD"], encoding="struct")
        async with open_replay(market, "day1", **PAUSED) as one, open_replay(market, "day1", **PAUSED) as two:
            for replay in (one, two):
                await replay.subscribe("trade", ["BTC/USD"], encoding="struct")
            await house.trade(1)
            await one.control("step", events=2)
            await two.control("step", events=5)
            for source, count in ((two, 5), (one, 2), (market, 1)):
                found: list[Any] = []
                while len(found) < count:
                    message = await anext(source)
                    if message["channel"] == "trade":
                        assert message.get("session") == getattr(source, "session", None)
                        assert {market.listings[number] for number in message["data"]["listing"]} == {"BTC/USD"}
                        found += message["data"][["price", "qty"]].tolist()
                assert (
                    found == [(60000.1, 0.12345678)]
                    if source is market
                    else [(100 + k / 10, 0.1) for k in range(count)]
                )


async def test_what_cannot_be_replayed_is_refused_and_leaves_nothing(folder) -> None:
    async with served(folder) as house, connected(house) as market:
        with pytest.raises(ActionRefused, match="Unknown source day2"):
            async with open_replay(market, "day2"):
                pass
        assert market.apart == {}
        assert (await market.request("ping"))["method"] == "pong"


async def test_a_lost_connection_is_told_to_who_iterates(folder) -> None:
    async with served(folder) as house, connected(house) as market, open_replay(market, "day1", **PAUSED) as replay:
        house.server.drain(1000)
        with pytest.raises(ConnectionLost, match="1001"):
            await prices(replay, 1)


async def test_a_grant_that_says_nothing_ends_the_connection(autojump_clock) -> None:
    socket = FakeSocket()
    socket.say({"method": "replay_start", "success": True, "req_id": 1})
    with pytest.raises(ConnectionLost, match="not of this protocol"):
        async with open_replay(Connection("ws://test/v2", socket), "day1"):
            pass


async def test_the_example_of_the_readme_runs(folder, capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "open_replay" in block]
    async with served(folder) as house:
        names: dict[str, Any] = {}
        exec(example.replace(":8765/", f":{house.port}/").replace("trio.run(main)", ""), names)
        await names["main"]()
    printed = capsys.readouterr().out
    assert "'channel': 'trade'" in printed
    assert info.digest(str(folder / "day1")) in printed
