"""The journal: groups on disk per second, beside a bare write and fsync of as many bytes, and recovery.

On the disk that holds temporary files (``TMPDIR``). Run from the project: ``PYTHONPATH=. python FILE``.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from statistics import median
from unittest.mock import patch

import trio

from tests.benchmarks.report import Row, print_table
from ticker.orders import journal as journal_module
from ticker.orders.journal import Journal, open_journal

REPEATS = 3
GROUPS = 200
EVENT = bytes(range(200))
RECOVERED = 100_000
TARGET_S = 1.0


async def appends(journal: Journal, size: int) -> float:
    """Return the seconds that a group of ``size`` events takes, one after the other."""
    began = time.perf_counter()
    for _ in range(GROUPS):
        await journal.append([EVENT] * size)
    return (time.perf_counter() - began) / GROUPS


def bare(file: int, size: int) -> float:
    """Return the seconds that a write of as many bytes and an fsync take."""
    began = time.perf_counter()
    for _ in range(GROUPS):
        os.write(file, EVENT * size)
        os.fsync(file)
    return (time.perf_counter() - began) / GROUPS


async def taking_turns(folder: Path, size: int) -> tuple[float, float]:
    """Return the seconds of a group, and of the bare write: medians."""
    file = os.open(folder / "bare", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    async with await open_journal(folder / f"{size}.journal") as journal:
        rounds = [(await appends(journal, size), bare(file, size)) for _ in range(REPEATS)]
    os.close(file)
    ours, theirs = zip(*rounds, strict=True)
    return median(ours), median(theirs)


async def recovery(folder: Path, size: int) -> tuple[float, float]:
    """Return the seconds from nothing to all events in memory, checked, and how many of them are CPU time."""
    path = folder / f"recovered-{size}.journal"
    unsynced = (*journal_module._SETTINGS, "PRAGMA synchronous = OFF")  # how it was written is not measured here
    with patch.object(journal_module, "_SETTINGS", unsynced):
        async with await open_journal(path) as journal:
            for _ in range(RECOVERED // size):
                await journal.append([EVENT] * size)
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter(), time.process_time()
        async with await open_journal(path) as journal:
            took.append((time.perf_counter() - began[0], time.process_time() - began[1]))
            assert len(journal.recovered.events) == RECOVERED
    return median(wall for wall, _ in took), median(cpu for _, cpu in took)


def digests() -> float:
    """Return the seconds of CPU time that the digests alone take."""
    began = time.process_time()
    chain = bytes(32)
    for _ in range(RECOVERED):
        chain = sha256(chain + EVENT).digest()
    return time.process_time() - began


def rows() -> Iterator[Row]:
    """Measure; medians of three, ours and the peer taking turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in (1, 20, 100):
            ours, theirs = trio.run(taking_turns, folder, size)
            yield Row(
                what=f"append groups of {size} events of {len(EVENT)} bytes, one after the other",
                figure=f"{1 / ours:,.0f} groups/s, {size / ours:,.0f} events/s, {ours * 1e3:.2f} ms each",
                compared_with=f"write and fsync of the bytes: {theirs * 1e3:.2f} ms ({ours / theirs:.2f} times)",
            )
        for size in (1, 20):
            wall, cpu = trio.run(recovery, folder, size)
            yield Row(
                what=f"recover {RECOVERED:,} events, all checked, from groups of {size}",
                figure=f"{wall:.2f} s, {cpu:.2f} s of it CPU",
                compared_with=f"SHA-256 of them alone: {digests():.2f} s of CPU",
                target=f"less than {TARGET_S:g} s",
                reached=wall < TARGET_S,
            )


if __name__ == "__main__":
    print_table("ticker.orders.journal", rows())
