"""Configuration and command line: what is set, and how a mistake is told."""

from __future__ import annotations

import pytest
import trio

from feeds.market import MarketFeed, MarketOptions
from ticker import config
from ticker.app import open_feed
from ticker.cli import _flags, build_parser, main
from ticker.errors import ConfigError


def written(tmp_path, text: str) -> str:
    path = tmp_path / "market.toml"
    path.write_text(text)
    return str(path)


def test_flags_go_before_the_file_and_the_file_before_the_defaults(tmp_path):
    path = written(tmp_path, "[server]\nport = 1\nmax_connections = 7\n[simulation]\nrate = 5.0\n")
    options = config.load(path, {"server": {"port": 2}})
    assert (options.server.port, options.server.max_connections, options.simulation.rate) == (2, 7, 5.0)
    assert (options.server.host, options.session.ticker_interval_ms, options.replay) == ("127.0.0.1", 100, None)


def test_flags_of_a_simulated_market_are_for_the_one_that_there_is(tmp_path):
    options = config.load(written(tmp_path, "[market]\nseed = 3\n"), {"simulation": {"rate": 7.0}})
    assert options.market == MarketOptions(seed=3, rate=7.0)
    assert config.load(None, {}).market is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[sever]\nport = 1", r"unknown table \[sever\]; there are server, session"),
        ("[server]\nprot = 1", r"\[server\] has no key 'prot'; it has host, port"),
        ("server = 1", r"\[server\] is a table with the keys host, port"),
        ('[server]\nport = "1"', r"\[server\] port: Expected `int`, got `str`"),
        ("[server]\nport = 70000", r"\[server\] port: Expected `int` <= 65535"),
        ("[session]\nticker_interval_ms = -1", r"\[session\] ticker_interval_ms: Expected `int` >= 0"),
        ('[replay]\npath = "x"\nspeed = 50000.0', r"\[replay\].*speed"),
        ('[replay]\npath = "x"\ngap = "never"', r"\[replay\].*'keep', 'skip' or 'cap:SECONDS'"),
        ("[replay]\nspeed = 2.0", r"\[replay\].*path"),
        ('[replay]\npath = "x"\nform = "noon"', r"\[replay\] has no key 'form'; it has path, .*, from, to"),
        ('[replay]\npath = "x"\n[relay]\nurl = "y"', r"a replay and a relay are two markets"),
        ('[record]\npath = "x"\nflush_s = 0.0', r"\[record\] flush_s: Expected `float` >= 0.01"),
        ('[market]\nmodel = "gbm"', r"\[market\] has no key 'model'; it has symbols, rate"),
        ('[market]\n[replay]\npath = "x"', r"two markets"),
        ("port = ", r"market.toml is not valid TOML"),
    ],
)
def test_a_mistake_names_the_key_and_what_it_may_be(tmp_path, text, says):
    for flags in ({}, {"server": {"host": "::1"}}):
        with pytest.raises(ConfigError, match=says):
            config.load(written(tmp_path, text), flags)


def test_a_replay_of_several_recordings_is_configured_as_it_is_commanded(tmp_path):
    text = (
        '[replay]\npath = ["a", "b"]\noffset = { b = "+5ms" }\nfrom = "+1s"\nto = "2024-08-09"\nstart_paused = true\n'
    )
    replay = config.load(written(tmp_path, text), {}).replay
    arguments = ["serve", "--replay", "a", "--replay", "b", "--offset", "b=+5ms", "--from", "+1s", "--to", "2024-08-09"]
    flags = _flags(build_parser().parse_args([*arguments, "--start-paused"]))
    assert config.load(None, flags).replay == replay
    assert (replay.path, replay.offset, replay.from_) == (("a", "b"), {"b": "+5ms"}, "+1s")


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"cannot read --config nowhere.toml: No such file"):
        config.load("nowhere.toml", {})


def test_other_machines_are_let_in_only_on_purpose():
    with pytest.raises(ConfigError, match="--insecure"):
        config.load(None, {"server": {"host": "0.0.0.0"}})
    assert config.load(None, {"server": {"host": "0.0.0.0", "insecure": True}}).server.insecure


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "--replay", "nowhere/day1"], "nowhere/day1"),
        (["serve", "--replay", "x", "--rate", "5"], "--rate is for the simulated market"),
        (["serve", "--speed", "5"], "--speed is for a replay"),
        (["serve", "--start-paused"], "--start-paused is for a replay"),
        (["serve", "--replay", "x", "--speed", "fast"], "fast"),
        (["serve", "--replay", "x", "--offset", "5ms"], "--offset 5ms is not NAME=+250ms"),
        (["serve", "--replay", "x", "--offset", "x=far"], "'far' is not a duration"),
        (["serve", "--replay", "x", "--from", "noon"], "'noon' is not an instant"),
        (["serve", "--replay", "x", "--replay", "nowhere/y"], "no recording"),
        (["serve", "--symbols", "nonsense"], "nonsense"),
        (["serve", "--model", "magic"], "gbm"),
        (["serve", "--market", "--model", "gbm"], "[market] has no key 'model'"),
        (["serve", "--market", "--replay", "x"], "two markets"),
        (["serve", "--market", "--symbols", "nonsense"], "nonsense"),
        (["serve", "--host", "192.0.2.1"], "--insecure"),
        (["info", "nowhere/day1"], "nowhere/day1"),
        (["compact", "nowhere/day1"], "there is no log to compact"),
        (["serve", "--relay", "ws://127.0.0.1:1/v2"], "no server at"),
        (["serve", "--relay", "ws://127.0.0.1:1/v2", "--seed", "5"], "--seed is for the simulated market"),
        (["serve", "--relay", "ws://127.0.0.1:1/v2", "--replay", "x"], "leave one out"),
        (["serve", "--port", "0", "--record", "pyproject.toml/day1"], "cannot be recorded to"),
        (["record", "nowhere", "-o", "day1"], "nowhere is not a WebSocket URL"),
    ],
)
def test_a_mistake_is_one_line_and_no_traceback(arguments, says, capsys):
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert says in errors
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) == 1


async def test_a_table_of_its_own_opens_a_market_of_order_books():
    feed = await open_feed(config.load(None, {"market": {"symbols": ["BTC/USD"], "seed": 5}}), trio.Event())
    assert isinstance(feed, MarketFeed)
    assert (feed.options.symbols, feed.options.seed) == (("BTC/USD",), 5)


def test_help_teaches_and_nothing_is_an_error_of_usage(capsys):
    assert main([]) == 2
    assert "ticker serve --replay" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ticker ")
    with pytest.raises(SystemExit) as exit_:
        main(["serve", "--help"])
    assert exit_.value.code == 0
    assert "--gap" in capsys.readouterr().out
