"""``ticker record`` and ``ticker compact``: a feed goes into a log and nowhere else, and a log becomes a recording."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from feeds.compaction import compact
from feeds.feed import Feed, Supervisor
from feeds.recorder import Recorder, RecorderOptions
from feeds.records import Marker
from ticker.bus import Bus
from ticker.info import duration

logger = logging.getLogger(__name__)

#: How often it is said how much has been recorded.
REPORT_S = 10.0


async def record(feed: Feed, options: RecorderOptions, seconds: float = math.inf) -> None:
    """Record a feed until it ends, until SIGINT or SIGTERM, or for some seconds.

    Raises:
        FeedError: The feed cannot go on, or the log cannot be begun.
    """
    recorder = Recorder(feed, options)

    async def on_marker(marker: Marker) -> None:
        recorder.take(marker)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as tasks:
            await tasks.start(recorder.run)
            logger.info("recording %s to %s", feed.name, options.path)
            tasks.start_soon(_report, recorder)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_told, signals, seconds, nursery.cancel_scope)
                await Supervisor(feed).run(Bus(recorder.take, on_marker))
                nursery.cancel_scope.cancel()
            tasks.cancel_scope.cancel()


def finish(path: str, keyframe_rows: int) -> None:
    """Make recordings of a log, and print what has become of it.

    Args:
        path: Folder and name.
        keyframe_rows: Rows of books between two keyframes; 0: none.

    Raises:
        RecordingError: There is none, or it cannot be compacted; it is then still there.
    """
    done = compact(path, keyframe_rows=keyframe_rows)
    for damage in done.damage:
        print(f"repaired {damage}")
    if not done.recordings:
        print(f"{path}: nothing was recorded")
    for recording in done.recordings:
        length = duration(recording.end_ns - recording.start_ns)
        print(f"recorded {Path(path).with_name(recording.name)}: {recording.rows:,} rows, {length}")


async def _until_told(signals: AsyncIterator[int], seconds: float, scope: trio.CancelScope) -> None:
    with trio.move_on_after(seconds):
        async for _ in signals:
            break
    scope.cancel()


async def _report(recorder: Recorder) -> None:
    while True:
        await trio.sleep(REPORT_S)
        told = recorder.statistics()
        logger.info("%s rows, %.1f MB, %d lost", f"{told.rows:,}", told.size / 1e6, told.lost)
