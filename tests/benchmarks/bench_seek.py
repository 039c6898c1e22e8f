"""Seeking: how long a command takes to become a snapshot, in a long recording that it writes, and what opening costs.

``python -m tests.benchmarks seek``; ``TICKER_BENCH_ROWS`` says how many rows the recording has (10,000,000). Writing
it twice, with keyframes and without, takes most of the time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import trio

from feeds.clock import NS
from feeds.instruments import Instrument, Instruments
from feeds.records import BUY, CLEAR, LAST, MISSING, NO_SIDE, SELL, SNAPSHOT, Batch, Event, Levels, Quotes, Trades
from feeds.replay import ReplayFeed
from feeds.store import open_recording, write_recording
from tests.benchmarks.report import Row

ROWS = int(os.environ.get("TICKER_BENCH_ROWS", "10_000_000"))
SYMBOLS, DEPTH = 10, 100
#: Rows of books between keyframes, as a recorder writes them.
KEYFRAME_ROWS = 50_000
SEEKS = 40
TARGET_MS = 150.0
TARGET_START_S = 1.0
TARGET_MIB = 300.0

_T0 = 1_700_000_000 * NS
_STEP_NS = 100_000


def batches(rows: int, keyframes: bool) -> Iterator[Batch]:
    """Yield a market of ten symbols: of twenty rows fourteen of books, five quotes, a trade, 0.1 ms apart."""
    rng = np.random.default_rng(1)
    qty = rng.integers(1, 1000, (SYMBOLS, 2, DEPTH))
    seq = 0
    for at in range(0, rows, KEYFRAME_ROWS):
        if keyframes or not at:
            snapshot = _snapshot(qty, _T0 + at * _STEP_NS, seq)
            seq += len(snapshot)
            yield Batch(ts=_T0 + at * _STEP_NS, levels=snapshot)
        count = min(KEYFRAME_ROWS, rows - at)
        kind = rng.integers(0, 20, count)
        picks = [np.flatnonzero(kind < 14), np.flatnonzero((kind >= 14) & (kind < 19)), np.flatnonzero(kind == 19)]
        levels, quotes, trades = (_shared(rng, at, seq, pick) for pick in picks)
        n = len(picks[0])
        side, level, changed = rng.integers(0, 2, n), rng.integers(0, DEPTH, n), rng.integers(0, 1000, n)
        qty[levels["instrument"], side, level] = changed
        ones = np.ones(len(picks[1]), np.int64)
        yield Batch(
            ts=_T0 + (at + count) * _STEP_NS,
            levels=Levels(
                **levels,
                action=np.zeros(n, np.int8),
                side=np.where(side == 0, BUY, SELL).astype(np.int8),
                price=_price(side, level),
                qty=changed,
                order_id=np.zeros(n, np.uint64),
            ),
            quotes=Quotes(**quotes, bid_px=ones * 9999, bid_qty=ones, ask_px=ones * 10_000, ask_qty=ones),
            trades=Trades(
                **trades,
                price=np.full(len(picks[2]), 10_000),
                qty=np.ones(len(picks[2]), np.int64),
                side=np.ones(len(picks[2]), np.int8),
                trade_id=seq + picks[2],
            ),
        )
        seq += count


def _price(side: np.ndarray, level: np.ndarray) -> np.ndarray:
    return np.where(side == 0, 9_999 - level, 10_000 + level)


def _shared(rng: np.random.Generator, at: int, seq: int, rows: np.ndarray) -> dict[str, np.ndarray]:
    times = _T0 + (at + rows + 1) * _STEP_NS
    return {
        "ts_recv": times,
        "ts_event": times - 1_000_000,
        "seq": seq + rows,
        "instrument": rng.integers(0, SYMBOLS, len(rows)).astype(np.int32),
        "flags": np.full(len(rows), LAST, np.uint8),
    }


def _snapshot(qty: np.ndarray, ts: int, seq: int) -> Levels:
    instrument, side, level = (a.ravel() for a in np.indices(qty.shape))
    heads = np.arange(SYMBOLS) * 2 * DEPTH
    n = qty.size + SYMBOLS
    flags = np.full(n, SNAPSHOT, np.uint8)
    flags[heads[1:] + np.arange(SYMBOLS - 1)] |= LAST
    flags[-1] |= LAST
    return Levels(
        ts_recv=np.full(n, ts),
        ts_event=np.full(n, MISSING),
        seq=seq + np.arange(n),
        instrument=np.insert(instrument, heads, np.arange(SYMBOLS)).astype(np.int32),
        flags=flags,
        action=np.insert(np.zeros(qty.size, np.int8), heads, CLEAR),
        side=np.insert(np.where(side == 0, BUY, SELL), heads, NO_SIDE).astype(np.int8),
        price=np.insert(_price(side, level), heads, MISSING),
        qty=np.insert(qty.ravel(), heads, 0),
        order_id=np.zeros(n, np.uint64),
    )


def write(folder: Path) -> None:
    """Write the recording with keyframes and the same without."""
    symbols = [f"S{i}" for i in range(SYMBOLS)]
    instruments = Instruments(
        Instrument(symbol=s, base=s, quote="", price_precision=2, qty_precision=0) for s in symbols
    )
    for name in ("with", "without"):
        write_recording(folder / name, instruments, batches(ROWS, keyframes=name == "with"))


async def _seek(path: Path, seeks: int) -> tuple[list[float], list[float]]:
    """Return how long (ms) random seeks of a paused tape take, from the command to the snapshot, and their CPU (ms)."""
    feed = ReplayFeed(open_recording(path), start_paused=True)
    send, receive = trio.open_memory_channel[Event](0)
    playback, rng, taken, spent = feed.playback, np.random.default_rng(7), [], []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        await receive.receive()
        for ts_ns in rng.integers(playback.start_ns + NS, playback.end_ns, seeks).tolist():
            began, busy = time.perf_counter(), time.process_time()
            playback.seek(ts_ns)
            while not (isinstance(event := await receive.receive(), Batch) and event.ts == ts_ns):
                pass
            taken.append((time.perf_counter() - began) * 1e3)
            spent.append((time.process_time() - busy) * 1e3)
            await trio.sleep(0.2)  # somebody looks at it, and what is read ahead has been read
        nursery.cancel_scope.cancel()
    return taken, spent


async def _start(path: Path) -> tuple[float, float]:
    """Return how long (s) it takes from nothing to the first rows, and the memory (MiB) of playing some."""
    began = time.perf_counter()
    feed = ReplayFeed(open_recording(path))
    feed.playback.set_speed(10_000.0)
    send, receive = trio.open_memory_channel[Event](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        for _ in range(2):
            await receive.receive()
        first = time.perf_counter() - began
        with trio.move_on_after(5):
            async for _ in receive:
                pass
        nursery.cancel_scope.cancel()
    return first, _peak_mib()


def _own_process(command: str, path: Path) -> list[float]:
    """Run this module in a process of its own, whose memory is then its own too."""
    run = [sys.executable, "-m", "tests.benchmarks.bench_seek", command, str(path)]
    return [float(word) for word in subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()]


def rows() -> Iterator[Row]:
    """Measure, one row at a time."""
    with tempfile.TemporaryDirectory() as folder:
        _own_process("write", Path(folder))
        yield from _seeks(Path(folder))
        first, mib = _own_process("start", Path(folder) / "with")
        (idle,) = _own_process("idle", Path(folder))
        yield Row(
            what=f"From opening {ROWS:,} rows to the first of them; memory while they play",
            figure=f"{first:.2f} s, {mib:.0f} MiB",
            compared_with=f"the imports alone: {idle:.0f} MiB",
            target=f"at most {TARGET_START_S:g} s, {TARGET_MIB:g} MiB",
            reached=first <= TARGET_START_S and mib <= TARGET_MIB,
        )


def _seeks(folder: Path) -> Iterator[Row]:
    kept, cpu = trio.run(_seek, folder / "with", SEEKS)
    bare, bare_cpu = trio.run(_seek, folder / "without", 5)
    yield Row(
        what=f"Random seeks in {ROWS:,} rows, a keyframe every {KEYFRAME_ROWS:,} rows of tape, {SEEKS} times",
        figure=f"median {median(kept):.0f}, max {max(kept):.0f} ms to the snapshot; of CPU {median(cpu):.0f} ms",
        compared_with=f"without keyframes, 5 times: median {median(bare):,.0f}, of CPU {median(bare_cpu):,.0f} ms",
        target=f"at most {TARGET_MS:g} ms",
        reached=max(kept) <= TARGET_MS,
    )


def _peak_mib() -> float:
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    command, path = sys.argv[1], Path(sys.argv[2])
    if command == "write":
        write(path)
    elif command == "start":
        print(*trio.run(_start, path))
    else:
        print(_peak_mib())
