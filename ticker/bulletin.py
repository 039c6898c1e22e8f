"""Where a replay is, told to whoever reads the ``replay`` channel: the server's own tape and replays on request alike.

Readers hear it at once when an epoch begins or ends, when a digest is due and when somebody controls the tape; besides
that once a second while it plays. An epoch that is over, be it a pass of a loop or what a seek has broken off, is told
once more with the digest of all of it. Nothing here moves the tape. It must not know requests, sessions or sockets.
"""

from __future__ import annotations

import math
from typing import Any, Final, Protocol

import trio

from feeds.playback import Playback
from feeds.records import Batch, Marker
from ticker.checkpoints import Checkpoints
from ticker.codec import rfc3339_exact
from ticker.history import History

#: Readers hear this often where a tape is that plays; one that stands still is looked at more often, for its steps.
REPORT_S: Final = 1.0
LOOK_S: Final = 0.1


class Reader(Protocol):
    """What a bulletin needs of a client."""

    def told(self, row: dict[str, Any]) -> None:
        """Take note of where a replay is."""


class Bulletin:
    """Tells where a tape is, and the digests of what it has played.

    Args:
        playback: Where it is.
        history: Of its market, for the epoch.
        digest_events: A digest is told every so many rows, and at the end.
        session: The replay's name, which every row says first; empty for the server's own.

    Attributes:
        readers: Those who are told.
    """

    def __init__(self, playback: Playback, history: History, digest_events: int, session: str = "") -> None:
        self.readers: dict[Reader, None] = {}
        self._playback = playback
        self._history = history
        self._label = {"session": session} if session else {}
        self._checkpoints = Checkpoints(digest_events)
        self._told: dict[str, Any] = {}  # the row that readers heard last
        self._played_ns = 0  # up to where
        self._over = False
        self._error = ""

    def standing(self) -> dict[str, Any]:
        """Return where the tape is: state, speed, tape time, epoch, progress and the last digest, as JSON.

        It says "ended" once the market has, so that the digest beside it is that of everything.
        """
        figures = self._playback.statistics()
        row = {
            "state": "playing" if figures.state == "ended" and not self._history.ended else figures.state,
            "speed": shown_speed(figures.speed),
            "ts": rfc3339_exact(figures.position_ns),
            "epoch": self._history.epoch,
            "progress": round(figures.progress, 4),
            "digest": self._checkpoints.last,
        }
        return row | {"error": self._error} if self._error else row

    def row(self) -> dict[str, Any]:
        """Return where the tape is as readers are told it."""
        return {**self._label, **self.standing()}

    def report(self) -> None:
        """Tell everybody where the tape is; that it has been stopped they hear once it is over."""
        if self._playback.stopped and not self._over:
            return
        self._tell(self.row())

    def _tell(self, row: dict[str, Any]) -> None:
        self._told = row
        for reader in list(self.readers):
            reader.told(row)

    async def run(self) -> None:
        """Report for ever what changes by itself: the time."""
        while True:
            await trio.sleep(REPORT_S if self._playback.state == "playing" else LOOK_S)
            if self.row() != self._told:
                self.report()

    # What the tape plays

    def pass_over(self, batch: Batch) -> None:
        """Take in a batch that has been published."""
        self._played_ns = batch.ts
        if self._checkpoints.pass_over(batch):
            self.report()

    def mark(self, marker: Marker) -> None:
        """Take in a marker that the market has just taken in."""
        if marker.kind == "epoch":
            self._conclude()
            self._checkpoints.begin()
        elif marker.kind == "end":
            self._checkpoints.end()
        self.report()

    def _conclude(self) -> None:
        """Tell how far the last epoch came, with its digest, unless readers know; the market has begun the next one."""
        digest = self._checkpoints.end()
        if digest.events and self._told["digest"] != digest:
            progress = round(self._playback.progress_at(self._played_ns), 4)
            self._tell(self._told | {"ts": rfc3339_exact(self._played_ns), "progress": progress, "digest": digest})

    def finish(self, error: str = "") -> None:
        """Tell everybody that the tape is over, and why if it broke off."""
        self._over, self._error = True, error
        self.report()


def shown_speed(speed: float) -> float:
    """Return a speed as clients see it: 0 is as fast as possible."""
    if math.isinf(speed):
        return 0
    return int(speed) if speed == int(speed) else speed
