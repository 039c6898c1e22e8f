"""What the keys of ``ticker watch`` ask a replay for, and the line that says where it is."""

from __future__ import annotations

import os
import pty
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import trio

from feeds.records import BUY
from feeds.replay import ReplayFeed
from feeds.store import open_recording, write_recording
from tests.scripted import BTC, INSTRUMENTS, Tape
from tests.serving import open_house
from ticker.client.remote import Remote
from ticker.deck import Deck, request, status_line
from ticker.keys import names, single_keys

STATE = {"source": "day1", "state": "playing", "speed": 10, "ts": "2024-08-08T23:56:00.123456789Z", "progress": 0.314}


@pytest.mark.parametrize(
    ("key", "state", "wish"),
    [
        ("space", {}, {"action": "pause"}),
        ("space", {"state": "paused"}, {"action": "resume"}),
        ("space", {"state": "waiting"}, {"action": "resume"}),
        ("left", {}, {"action": "seek", "to": 1_723_161_350_123_456_789}),
        ("right", {}, {"action": "seek", "to": 1_723_161_370_123_456_789}),
        ("+", {}, {"action": "speed", "speed": 20}),
        ("=", {"speed": 7}, {"action": "speed", "speed": 10}),
        ("+", {"speed": 1000}, {"action": "speed", "speed": 0}),
        ("+", {"speed": 0}, {"action": "speed", "speed": 0}),
        ("-", {}, {"action": "speed", "speed": 5}),
        ("-", {"speed": 0}, {"action": "speed", "speed": 1000}),
        ("-", {"speed": 0.05}, {"action": "speed", "speed": 0.1}),
        (".", {}, {"action": "step"}),
        ("x", {}, None),
    ],
)
def test_what_a_key_asks_for(key, state, wish):
    assert request(key, {**STATE, **state}) == wish


def test_the_line_says_where_the_tape_is():
    assert status_line(STATE, keys=False).plain == "▶ playing  2024-08-08 23:56:00.123  10x  31 %"
    assert "q quit" in status_line(STATE, keys=True).plain
    assert " max " in status_line({**STATE, "speed": 0}, keys=False).plain


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (" ", ["space"]),
        ("\x1b[C\x1b[D", ["right", "left"]),
        ("\x1bOC+-.q", ["right", "+", "-", ".", "q"]),
        ("\x1b[5~", []),
        ("", []),
    ],
)
def test_keys_by_their_names(text, keys):
    assert list(names(text)) == keys


async def _use_the_keys(ours: int, theirs: int) -> None:
    with single_keys() as keys:
        assert not termios.tcgetattr(theirs)[3] & (termios.ICANON | termios.ECHO)
        assert termios.tcgetattr(theirs)[3] & termios.ISIG  # Ctrl-C still interrupts
        os.write(ours, b" ")
        assert await anext(keys) == "space"
        os.write(ours, b"\x1b[Cq")
        assert [await anext(keys), await anext(keys)] == ["right", "q"]
        raise ZeroDivisionError("whatever happens")


async def test_a_terminal_hands_over_single_keys_and_is_as_before_afterwards(monkeypatch) -> None:
    ours, theirs = pty.openpty()
    try:
        with os.fdopen(theirs, "rb", buffering=0, closefd=False) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            before = termios.tcgetattr(theirs)
            with pytest.raises(ZeroDivisionError):
                await _use_the_keys(ours, theirs)
            assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def test_without_a_terminal_there_are_no_keys(monkeypatch) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with single_keys() as keys:
            assert keys is None


async def test_keys_control_a_server(tmp_path) -> None:
    pen = Tape()
    write_recording(tmp_path / "day1", INSTRUMENTS, [pen.trades((BTC, BUY, 1000 + k, 1)) for k in range(3)])
    feed = ReplayFeed(open_recording(tmp_path / "day1"), start_paused=True, hold_end=True, speed=10)
    states = []

    async def pressed() -> AsyncIterator[str]:
        while deck.state is None:
            await trio.lowlevel.checkpoint()
        for key in (".", "+", "x", "q", "-"):
            yield key
            states.append(deck.state["speed"])

    async with open_house(feed, tcp=True) as house, trio.open_nursery() as nursery:
        deck = Deck(Remote(f"ws://127.0.0.1:{house.port}/v2"), obeys=True)
        nursery.start_soon(deck.follow)
        with trio.fail_after(10):
            async with aclosing(pressed()) as keys:
                await deck.obey(keys)
        nursery.cancel_scope.cancel()
    assert states == [10, 20, 20]
    assert deck.text == ""


async def test_a_refusal_is_shown_and_a_simulated_market_is_not_followed() -> None:
    async with open_house(tcp=True) as house:
        deck = Deck(Remote(f"ws://127.0.0.1:{house.port}/v2"), obeys=True)
        await deck.follow()
        assert deck.state is None
        deck.state = STATE

        async def pressed() -> AsyncIterator[str]:
            yield "space"

        await deck.obey(pressed())
        assert deck.text.endswith("this market is no replay")
