"""Recording: what it costs beside a busy market, and what it costs to do it in other ways.

The same 100,000 ticks/s of 1,000 symbols, with their books, are handed on at their pace to nobody and to a recorder;
the difference in CPU time of the process is what recording costs, its worker thread and the disk's part among it.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import trio

from feeds.compaction import compact
from feeds.recorder import Recorder, RecorderOptions
from feeds.records import Batch, Levels, Quotes, Trades
from feeds.simulate import SimulatedFeed, SimulationOptions
from feeds.tapelog import ROWS, Header, LogWriter, rows_of, segment_path
from tests.benchmarks.report import Row

SYMBOLS = tuple(f"S{i:04d}/USD" for i in range(1_000))
TICKS_PER_S = 100_000
SECONDS = 3.0
ROUNDS = 3
FLUSH_S = 0.2
TARGET_US = 0.5


def _market() -> tuple[SimulatedFeed, list[Batch]]:
    feed = SimulatedFeed(SimulationOptions(symbols=SYMBOLS, rate=TICKS_PER_S, start_ns=10**18))
    windows = itertools.takewhile(lambda batch: batch.ts <= 10**18 + SECONDS * 1e9, feed.windows())
    return feed, list(windows)


async def _play(batches: Sequence[Batch], take: Callable[[Batch], None]) -> None:
    start = trio.current_time()
    for batch in batches:
        await trio.sleep_until(start + (batch.ts - 10**18) / 1e9)
        take(batch)


async def _alone(batches: Sequence[Batch]) -> float:
    """Return the CPU time (s) of handing batches on to nobody."""
    began = time.process_time()
    await _play(batches, lambda batch: None)
    return time.process_time() - began


async def _recorded(feed: SimulatedFeed, batches: Sequence[Batch], path: Path) -> tuple[float, float]:
    """Return the CPU time (s) of handing batches on to a recorder, and that of the event loop's thread alone."""
    recorder = Recorder(feed, RecorderOptions(path=str(path)))
    began, loop_began = time.process_time(), time.thread_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.run)
        await _play(batches, recorder.take)
        nursery.cancel_scope.cancel()
    used = time.process_time() - began, time.thread_time() - loop_began
    told = recorder.statistics()
    assert told.lost == 0
    assert told.rows == sum(map(len, batches))
    return used


def _groups(batches: Sequence[Batch]) -> list[list[Batch]]:
    """Return the batches as the recorder would write them."""
    return [list(group) for _, group in itertools.groupby(batches, lambda b: (b.ts - 10**18 - 1) // int(FLUSH_S * 1e9))]


def _cpu(work: Callable[[], None]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def _tables(group: Sequence[Batch]) -> tuple[Trades, Quotes, Levels]:
    return (
        Trades.concatenate([b.trades for b in group]),
        Quotes.concatenate([b.quotes for b in group]),
        Levels.concatenate([b.levels for b in group]),
    )


def _tobytes(groups: Sequence[Sequence[Batch]]) -> None:
    for group in groups:
        for table in _tables(group):
            for column in table.columns().values():
                column.tobytes()


def _log(groups: Sequence[Sequence[Batch]], path: Path, header: Header) -> None:
    writer = LogWriter(segment_path(path, 1), header)
    for group in groups:
        writer.append(ROWS, rows_of(group))
    writer.close()


def _arrow(groups: Sequence[Sequence[Batch]], folder: Path, compression: str | None) -> None:
    """Write an Arrow IPC stream for each table."""
    options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
    streams: list[pa.ipc.RecordBatchStreamWriter | None] = [None, None, None]
    for group in groups:
        for i, table in enumerate(_tables(group)):
            batch = pa.record_batch({name: pa.array(column) for name, column in table.columns().items()})
            if streams[i] is None:
                streams[i] = pa.ipc.new_stream(str(folder / f"{i}.arrows"), batch.schema, options=options)
            streams[i].write_batch(batch)
    for stream in streams:
        if stream is not None:
            stream.close()


def rows() -> Iterator[Row]:
    """Measure, one row at a time."""
    feed, batches = _market()
    ticks = sum(len(b.trades) + len(b.quotes) for b in batches)
    with TemporaryDirectory() as name:
        folder = Path(name)
        yield from _beside(feed, batches, ticks, folder)
        yield _formats(feed, batches, ticks, folder)
        began = time.perf_counter()
        done = compact(folder / "day0")
        seconds = time.perf_counter() - began
        size = sum(os.path.getsize(file) for file in folder.glob("day0.*"))
        yield Row(
            what=f"Compaction with keyframes, {done.recordings[0].rows:,} rows",
            figure=f"{done.recordings[0].rows / seconds:,.0f} rows/s",
            compared_with=f"{done.log_bytes / 1e6:,.1f} MB of log become {size / 1e6:,.1f} MB",
        )


def _beside(feed: SimulatedFeed, batches: Sequence[Batch], ticks: int, folder: Path) -> Iterator[Row]:
    alone, recorded, loop = [], [], []
    for turn in range(ROUNDS):
        alone.append(trio.run(_alone, batches))
        whole, in_loop = trio.run(_recorded, feed, batches, folder / f"day{turn}")
        recorded.append(whole)
        loop.append(in_loop)
    cost = (median(recorded) - median(alone)) / ticks * 1e6
    limit = median(_cpu(lambda: _tobytes(_groups(batches))) for _ in range(ROUNDS)) / ticks * 1e6
    yield Row(
        what=f"Recorder beside {TICKS_PER_S:,} ticks/s of {len(SYMBOLS):,} symbols with books, median of {ROUNDS}",
        figure=f"{cost:.3f} us of CPU a tick",
        compared_with=f"numpy tobytes of the same columns: {limit:.3f} us; "
        f"the market handed to nobody: {median(alone) / ticks * 1e6:.3f} us",
        target=f"at most {TARGET_US} us",
        reached=cost <= TARGET_US,
    )
    yield Row(
        what="Of that in the thread of the event loop",
        figure=f"{(median(loop) - median(alone)) / ticks * 1e6:.3f} us a tick",
    )


def _formats(feed: SimulatedFeed, batches: Sequence[Batch], ticks: int, folder: Path) -> Row:
    header = Header(feed=feed.name, mode=feed.mode, instruments=tuple(feed.instruments))
    groups, figures = _groups(batches), []
    for what, compression in (("Arrow IPC", None), ("with lz4", "lz4"), ("with zstd", "zstd")):
        cost = median(_cpu(lambda c=compression: _arrow(groups, folder, c)) for _ in range(ROUNDS))
        size = sum(file.stat().st_size for file in folder.glob("*.arrows"))
        figures.append(f"{what} {cost / ticks * 1e6:.3f} us, {size / ticks:.0f} bytes")
    costs = np.median([_cpu(lambda i=i: _log(groups, folder / f"log{i}", header)) for i in range(ROUNDS)])
    size = segment_path(folder / "log0", 1).stat().st_size
    return Row(
        what="The log alone: columns, CRC-32 and write, a tick with its share of book rows",
        figure=f"{costs / ticks * 1e6:.3f} us, {size / ticks:.0f} bytes",
        compared_with="; ".join(figures),
    )
