"""Lossless replay: a recording at speed 0 to one client that wants every event, beside the recording read directly."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from feeds.errors import RecordingError
from feeds.replay import ReplayFeed
from feeds.store import Recording, open_recording
from tests.benchmarks.bench_replay import SHARED
from tests.benchmarks.processes import LIFETIME_S, LOAD_CORE, Bench, NotAvailableError, peer, running, serving
from tests.benchmarks.report import Row

#: Rows of tape per second at least, by encoding.
TARGETS: Final = {"json": 300_000, "struct": 1_500_000}
EVERY: Final = {"symbol": ["*"], "mode": "batch", "on_slow": "disconnect", "interval_ms": 0}
TRADES: Final = {"channel": "trade", **EVERY}
BOOK: Final = {"channel": "book", "depth": 10, **EVERY}
QUOTES: Final = {"channel": "ticker", "event_trigger": "bbo", **EVERY}
#: What a client asks for, in words.
WISHES: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "trades": (TRADES,),
    "trades and books of 10 levels": (TRADES, BOOK),
    "every quote": (QUOTES,),
}


class Drained(msgspec.Struct, frozen=True):
    """What a client measured that does nothing with what it reads.

    Attributes:
        seconds: From resuming the tape to its end.
        bytes: What it read meanwhile.
        published, delivered, dropped: What the server says became of the events.
        cpu_s: User and system time of the server meanwhile.
    """

    seconds: float
    bytes: int
    published: int
    delivered: int
    dropped: int
    cpu_s: float = 0.0


def rows(bench: Bench) -> Iterator[Row]:
    """Measure the recording alone and every wish, in turns."""
    path = Path(os.environ.get("TICKER_BENCH_DATA") or SHARED)
    try:
        tape = open_recording(path)
    except RecordingError as error:
        raise NotAvailableError(f"a recording in TICKER_BENCH_DATA: {error}") from error
    alone: list[tuple[float, float]] = []
    drained: dict[tuple[str, str], list[Drained]] = {(what, how): [] for what in WISHES for how in TARGETS}
    for _ in range(bench.rounds):
        alone.append(_alone(tape))
        for (what, how), seen in drained.items():
            seen.append(_drained(path, tuple({**wish, "encoding": how} for wish in WISHES[what])))
    direct, direct_cpu = (tape.rows / median(column) for column in zip(*alone, strict=True))
    for (what, how), seen in drained.items():
        yield _row(f"{how}, batch: {what}", tape.rows, direct, seen, TARGETS[how])
        per_cpu = tape.rows / median(one.cpu_s for one in seen)
        yield Row(
            what="the same by CPU, which other work on the machine does not change",
            figure=f"{per_cpu:,.0f} rows of tape per second of the server's CPU",
            compared_with=f"the recording read directly: {direct_cpu:,.0f}",
        )


def _alone(tape: Recording) -> tuple[float, float]:
    """Return wall and CPU time (s) that reading a recording takes, merged and cut into batches."""
    began, cpu = time.perf_counter(), time.process_time()
    for _ in ReplayFeed(tape).slices():
        pass
    return time.perf_counter() - began, time.process_time() - cpu


def _drained(path: Path, wishes: tuple[dict[str, Any], ...]) -> Drained:
    """Have a client replay a recording."""
    quiet = ("--symbols", "BTC/USD", "--rate", 1)  # the server's own market
    command = peer("limited", LIFETIME_S, "serve", "--port", 0, *quiet, "--replays", path.parent)
    with serving(command) as server:
        reader = peer("drain", server.port, path.name, *(json.dumps(wish) for wish in wishes))
        with running(reader, LOAD_CORE) as client:
            client.read_line(LIFETIME_S)
            before = server.cpu_s()
            seen = msgspec.json.decode(client.read_line(LIFETIME_S), type=Drained)
            return msgspec.structs.replace(seen, cpu_s=server.cpu_s() - before)


def _row(what: str, tape_rows: int, direct: float, seen: list[Drained], target: int) -> Row:
    per_s = tape_rows / median(one.seconds for one in seen)
    told = seen[0]
    return Row(
        what=f"{tape_rows:,} rows of tape at speed 0 to one client, {what}",
        figure=f"{per_s:,.0f} rows of tape/s; {told.delivered:,} rows told of {told.published:,} events, "
        f"{told.dropped:,} lost, {told.bytes / 1e6:.1f} MB",
        compared_with=f"the recording read directly: {direct:,.0f} rows/s ({per_s / direct:.2f} of it)",
        target=f"at least {target:,} rows/s, none lost",
        reached=per_s >= target and not told.dropped,
    )
