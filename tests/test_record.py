"""``ticker record``, ``compact`` and ``serve --record``, as they are used."""

from __future__ import annotations

import re
import signal

import numpy as np
import trio

from feeds.recorder import RecorderOptions
from feeds.records import StreamDigest, Trades
from feeds.simulate import SimulatedFeed, SimulationOptions
from feeds.store import describe, open_recording
from tests.serving import dial_tcp, open_house, service
from ticker.cli import main
from ticker.record import finish, record
from ticker.relay import RelayOptions, open_relay


async def watched(port):
    """See some hundred milliseconds of the market; return the ids of the trades."""
    peer = dial_tcp(port)
    await peer.shake_hands()
    await peer.subscribe("trade", snapshot=False)
    ids = await peer.trade_ids(80)
    peer.leave()
    return ids


def trades_of(path):
    return Trades.concatenate(list(open_recording(path).trades()))


async def test_what_is_served_is_recorded_whatever_becomes_of_the_process(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path = str(tmp_path / "day")
    with service("--record", path, "--rate", "5000") as market:
        ids = await watched(market.port)
        page = dial_tcp(market.port)
        await page.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        figures = dict(re.findall(r"^ticker_(record\w+) (\S+)\r?$", (await page.answer()).decode(), re.MULTILINE))
        page.leave()
        assert main(["info", path]) == 0
        assert "being recorded now" in capsys.readouterr().out
        assert main(["compact", path]) == 1
        assert "is being recorded by another process" in capsys.readouterr().err
        market.process.kill()
        market.process.wait()
    assert figures["recording"] == "1.0"
    assert float(figures["recorded_rows_total"]) > 100
    assert figures["recording_lost_rows_total"] == figures["recording_errors_total"] == "0.0"
    assert main(["info", path]) == 0
    assert f"not compacted yet: ticker compact {path}" in capsys.readouterr().out
    assert main(["compact", path]) == 0
    assert f"recorded {path}: " in capsys.readouterr().out
    trades = trades_of(path)
    recorded = trades.trade_id[trades.instrument == 0]
    assert np.isin(ids[: len(ids) // 4], recorded).all()  # the last of them may not have been written


async def test_a_planned_stop_leaves_a_recording(tmp_path):
    path = str(tmp_path / "day")
    with service("--record", path, "--rate", "5000") as market:
        ids = await watched(market.port)
        market.process.send_signal(signal.SIGTERM)
        said = await trio.to_thread.run_sync(market.process.stdout.read)
        code, _ = market.finish()
    assert code == 0
    assert said.decode().startswith(f"recorded {path}: ")
    trades = trades_of(path)
    assert np.isin(ids, trades.trade_id[trades.instrument == 0]).all()


async def test_a_simulated_run_that_was_recorded_replays_to_the_digest_of_the_simulation(tmp_path, capsys):
    path, config = str(tmp_path / "day"), tmp_path / "ticker.toml"
    config.write_text("[record]\nkeyframe_rows = 0\n")
    with service("--config", str(config), "--record", path, "--rate", "3000", "--seed", "7") as market:
        await watched(market.port)
        market.process.send_signal(signal.SIGTERM)
        await trio.to_thread.run_sync(market.process.stdout.read)
        assert market.finish()[0] == 0
    recorded = describe(open_recording(path))
    assert main(["info", "--digest", path]) == 0
    feed = SimulatedFeed(SimulationOptions(seed=7, rate=3000.0, start_ns=recorded.start_ns))
    simulation, rows = StreamDigest(), 0
    for window in feed.windows():
        simulation.update(window)
        rows += len(window)
        if rows >= recorded.rows:
            break
    assert rows == recorded.rows > 500
    assert capsys.readouterr().out == f"{simulation.hexdigest()}\n"


async def test_another_server_is_recorded(tmp_path, autojump_clock, capsys):
    path = str(tmp_path / "day")
    async with open_house(tcp=True) as house:
        feed = await open_relay(RelayOptions(url=f"ws://127.0.0.1:{house.port}/v2"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(record, feed, RecorderOptions(path=path), 30.0)
            while not feed.statistics().connections:  # noqa: ASYNC110 - there is nothing else to wait for
                await trio.sleep(0.1)
            for count in (1, 2, 3):
                await house.trade(count)
    finish(path, 0)
    assert capsys.readouterr().out.startswith(f"recorded {path}: 6 rows, ")
    assert trades_of(path).trade_id.tolist() == [1, 2, 3, 4, 5, 6]


async def test_recording_ends_with_the_feed(tmp_path, autojump_clock):
    class Over:
        name, mode, instruments = "over", "sim", ()

        async def run(self, out):
            await trio.lowlevel.checkpoint()

    await record(Over(), RecorderOptions(path=str(tmp_path / "day")))
    finish(str(tmp_path / "day"), 0)
    assert list(tmp_path.iterdir()) == []
