"""Replay: how fast Parquet becomes batches, and how late rows come at 10x.

Run from the project: ``PYTHONPATH=. python FILE [RECORDING]``; without an argument it takes the recording from
``TICKER_BENCH_DATA``, else the Binance one in the shared data folder. Takes about half a minute.
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
from feeds.records import Event
from feeds.replay import ReplayFeed, ReplayStatistics
from feeds.store import open_recording
from tests.benchmarks.processes import NotAvailableError
from tests.benchmarks.report import Row, print_table

SHARED = Path(__file__).parents[3] / "shared" / "data" / "recordings" / "binance_spot_20240808"

PASSES = 15
PACED_SECONDS = 20.0
TIMER_SECONDS = 5.0
TARGET_ROWS_PER_S = 3_000_000
TARGET_P99_MS = 10.0


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
    yield _lateness(path)


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


def _lateness(path: str) -> Row:
    played = trio.run(_play, path, 10.0, PACED_SECONDS)
    timer = trio.run(_timer, path, 10.0, TIMER_SECONDS)
    late = (played.lateness_p50_ms, played.lateness_p99_ms, played.lateness_max_ms)
    return Row(
        what=f"Lateness per row at 10x, {played.rows:,} rows in {PACED_SECONDS:g} s",
        figure="p50 {:.2f}, p99 {:.2f}, max {:.2f} ms".format(*late),
        compared_with=f"one sleep per instant, {TIMER_SECONDS:g} s of it: p99 {timer:.2f} ms",
        target=f"p99 at most {TARGET_P99_MS:g} ms",
        reached=played.lateness_p99_ms <= TARGET_P99_MS,
    )


if __name__ == "__main__":
    print_table("Replay", rows(*sys.argv[1:2]))
