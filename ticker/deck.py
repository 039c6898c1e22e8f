"""The controls of a replay in the terminal: what each key asks for, and the line that says where the tape is.

Both are plain functions of the tape's last known state; :class:`Deck` keeps that state by asking the server, and sends
what the keys ask for.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Final

import trio
from rich.text import Text

from feeds.clock import NS
from feeds.instants import parse_instant
from ticker.client.connection import ConnectionLost, ConnectionRefused, Message
from ticker.client.remote import ActionRefused, Remote

POLL_S: Final = 0.5
JUMP_S: Final = 10
#: Steps of the speed; the last is as fast as possible.
SPEEDS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 0)
KEYS: Final = "space pause/resume  ←→ 10 s  +- speed  . step  q quit"
_MARKS: Final = {"playing": "▶", "paused": "⏸", "waiting": "○", "ended": "■", "stopped": "■"}


def request(key: str, state: Message) -> Message | None:
    """Return what a key asks for, as the body of ``POST /api/replay``; None if nothing.

    Args:
        key: Its name, as :mod:`ticker.keys` has it.
        state: What ``GET /api/replay`` said.
    """
    if key == "space":
        return {"action": "pause" if state["state"] == "playing" else "resume"}
    if key in ("left", "right"):
        jump_ns = (JUMP_S if key == "right" else -JUMP_S) * NS
        return {"action": "seek", "to": parse_instant(state["ts"], 0) + jump_ns}
    if key in ("+", "=", "-"):
        return {"action": "speed", "speed": _next_speed(state["speed"], faster=key != "-")}
    return {"action": "step"} if key == "." else None


def _next_speed(speed: float, *, faster: bool) -> float:
    now = speed or math.inf
    if faster:
        return next((step for step in SPEEDS if (step or math.inf) > now), 0)
    return next((step for step in reversed(SPEEDS) if (step or math.inf) < now), SPEEDS[0])


def status_line(state: Message, *, keys: bool) -> Text:
    """Return where the tape is: state, its time, speed, progress; and what the keys do, if they do."""
    ts, speed = state["ts"][:23].replace("T", " "), state["speed"]
    pace = f"{speed:g}x" if speed else "max"
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{_MARKS.get(state['state'], ' ')} {state['state']}", "bold")
    text.append(f"  {ts}  {pace}  {100 * state['progress']:.0f} %")
    return text.append(f"  {KEYS}", "bright_black") if keys else text


class Deck:
    """Follows a replay and passes keys on to it.

    Args:
        remote: Of the server.
        obeys: Whether there are keys.

    Attributes:
        obeys: As given.
        state: What the server said last; None while it says nothing, or has no replay.
        text: Why the last key did nothing; empty if it did.
    """

    def __init__(self, remote: Remote, *, obeys: bool) -> None:
        self._remote = remote
        self.obeys = obeys
        self.state: Message | None = None
        self.text = ""

    async def follow(self) -> None:
        """Ask for ever where the replay is; return if there is none."""
        while True:
            try:
                state = await self._remote.state()
            except (ConnectionRefused, ConnectionLost, ActionRefused):
                self.state = None  # the stream of tickers says what is wrong with the connection
            else:
                if state.get("source") is None:
                    return
                self.state = state
            await trio.sleep(POLL_S)

    async def obey(self, keys: AsyncIterator[str]) -> None:
        """Do what keys ask for, until ``q``."""
        async for key in keys:
            if key == "q":
                return
            wish = None if self.state is None else request(key, self.state)
            if wish is not None:
                await self._do(wish)

    async def _do(self, wish: Message) -> None:
        try:
            self.state, self.text = await self._remote.control(**wish), ""
        except (ConnectionRefused, ConnectionLost, ActionRefused) as error:
            self.text = str(error)
