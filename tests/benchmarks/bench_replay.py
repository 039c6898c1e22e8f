"""Replay: how fast Parquet becomes batches, what a digest costs, and how late rows come at 1x, 10x and 50x.

Run from the project: ``PYTHONPATH=. python FILE [RECORDING]``; without an argument it takes the recording from
``TICKER_BENCH_DATA``, else the Binance one in the shared data folder. Takes about a minute.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq
import trio

from feeds import layout
from feeds.errors import RecordingError
from feeds.records import Batch, Event, StreamDigest
from feeds.replay import ReplayFeed, ReplayStatistics
from feeds.store import open_recording
from tests.benchmarks.processes import NotAvailableError
from tests.benchmarks.report import Row, print_table

SHARED = Path(__file__).parents[3] / "shared" / "data" / "recordings" / "binance_spot_20240808"

PASSES = 15
TIMER_SECONDS = 5.0
TARGET_ROWS_PER_S = 3_000_000
#: By speed: for how many seconds it is played (the recording lasts 345), and the p99 (ms) that it must reach.
PACED = {1.0: (20.0, 6.0), 10.0: (20.0, 5.0), 50.0: (6.0, 3.0)}


def _rows_per_s(rows: int, work: Callable[[], object]) -> float:
    """Return rows/s of the median of several passes after one that warms up."""
    seconds = []
    for _ in range(PASSES + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return rows / median(seconds[1:])


def _open_and_convert(path: str) -> None:
    recording = open_recording(path)
    for stream in (recording.trades, recording.quotes, recording.levels):
        for _ in stream():
            pass


def _decode_only(files: dict[Path, list[str]]) -> None:
    for file, columns in files.items():
        pq.read_table(file, columns=columns)


async def _play(path: str, speed: float, seconds: float) -> ReplayStatistics:
    """Replay into a reader that does nothing, for some seconds of real time."""
    feed = ReplayFeed(open_recording(path), speed=speed)
    send, receive = trio.open_memory_channel[Event](16)

    async def run() -> None:
        async with send:
            await feed.run(send)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with trio.move_on_after(seconds):
            async for _ in receive:
                pass
        nursery.cancel_scope.cancel()
    return feed.statistics()


async def _timer(path: str, speed: float, seconds: float) -> float:
    """Return the p99 lateness (ms) of a ``sleep_until`` for each instant of the tape, one after the other."""
    batches = ReplayFeed(open_recording(path)).slices()
    times = np.concatenate([t.ts_recv for b in batches for t in (b.trades, b.quotes, b.levels)])
    instants = (np.unique(times) - times.min()) / (speed * 1e9)
    start, late = trio.current_time(), []
    for due in (start + instants[instants < seconds]).tolist():
        await trio.sleep_until(due)
        late.append(trio.current_time() - due)
    return float(np.quantile(late, 0.99)) * 1e3


def rows(path: str | None = None) -> Iterator[Row]:
    """Measure, one row at a time."""
    path = path or os.environ.get("TICKER_BENCH_DATA") or str(SHARED)
    try:
        recording = open_recording(path)
    except RecordingError as error:
        raise NotAvailableError(f"a recording in TICKER_BENCH_DATA: {error}") from error
    yield _conversion(path)
    rushed = _rows_per_s(recording.rows, lambda: trio.run(_play, path, math.inf, math.inf))
    yield Row(what="The same through the feed at infinite speed, to its reader", figure=f"{rushed:,.0f} rows/s")
    yield _digest(path)
    for speed in PACED:
        yield _lateness(path, speed)


def _digest(path: str) -> Row:
    batches, rows = list(ReplayFeed(open_recording(path)).slices()), open_recording(path).rows
    paced = [batch for whole in batches[:4] for batch in whole.by_event()]
    few = sum(map(len, paced)) / len(paced)
    whole, single = _rows_per_s(rows, lambda: _hash(batches)), _rows_per_s(len(paced), lambda: _hash(paced))
    return Row(
        what="Digest of the stream, whole batches",
        figure=f"{whole:,.0f} rows/s",
        compared_with=f"in batches of {few:.0f} rows, as a tape at 1x has them: {1e6 / single:.0f} µs a batch",
    )


def _hash(batches: list[Batch]) -> None:
    digest = StreamDigest()
    for batch in batches:
        digest.update(batch)


def _conversion(path: str) -> Row:
    recording = open_recording(path)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    files = {folder / f"{recording.name}.{kind}.parquet": layout.needed(kind) for kind in recording.tables}
    converted = _rows_per_s(recording.rows, lambda: _open_and_convert(path))
    decoded = _rows_per_s(recording.rows, lambda: _decode_only(files))
    return Row(
        what=f"Parquet to integer tables, instruments inferred, {recording.rows:,} rows, median of {PASSES}",
        figure=f"{converted:,.0f} rows/s",
        compared_with=f"limit, pyarrow decoding the same columns once: {decoded:,.0f} rows/s",
        target=f"at least {TARGET_ROWS_PER_S:,} rows/s",
        reached=converted >= TARGET_ROWS_PER_S,
    )


def _lateness(path: str, speed: float) -> Row:
    seconds, target = PACED[speed]
    played = trio.run(_play, path, speed, seconds)
    timer = trio.run(_timer, path, speed, TIMER_SECONDS)
    late = (played.lateness_p50_ms, played.lateness_p99_ms, played.lateness_max_ms)
    return Row(
        what=f"Lateness per row at {speed:g}x, {played.rows:,} rows in {seconds:g} s",
        figure="p50 {:.2f}, p99 {:.2f}, max {:.2f} ms".format(*late),
        compared_with=f"one sleep per instant, {TIMER_SECONDS:g} s of it: p99 {timer:.2f} ms",
        target=f"p99 at most {target:g} ms",
        reached=played.lateness_p99_ms <= target,
    )


if __name__ == "__main__":
    print_table("Replay", rows(*sys.argv[1:2]))
