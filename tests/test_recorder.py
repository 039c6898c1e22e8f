"""Recording a feed: what is in the log, whatever becomes of the disk or the process."""

from __future__ import annotations

import errno
import itertools
import random
import subprocess
import sys

import pytest
import trio

from feeds import tapelog
from feeds.compaction import compact
from feeds.errors import RecordingError
from feeds.instruments import Instruments
from feeds.recorder import RETRY_S, Recorder, RecorderOptions
from feeds.records import Batch, Marker, StreamDigest
from feeds.simulate import SimulatedFeed, SimulationOptions
from feeds.tapelog import read_log, repair, segments, survey
from tests.test_tapelog import same

START_NS = 10**18
EPOCH = Marker(kind="epoch", ts=START_NS, reason="the simulation begins")


def simulated(**options):
    return SimulatedFeed(SimulationOptions(start_ns=START_NS, **{"rate": 1000.0, **options}))


def batches_of(feed, count):
    return list(itertools.islice(feed.windows(), count))


@pytest.fixture(autouse=True)
def no_time_in_threads(monkeypatch):
    """Virtual time does not wait for threads: have the work done in place. The killed processes use real ones."""

    async def in_place(recorder, work):
        await trio.lowlevel.checkpoint()
        return work()

    monkeypatch.setattr(Recorder, "_in_thread", in_place)


class Recording:
    """A recorder under way in a test."""

    def __init__(self, recorder, prefix):
        self.recorder, self.prefix = recorder, prefix

    async def say(self, *events):
        """Let events happen, each after the one before was written."""
        for event in events:
            self.recorder.take(event)
            await trio.sleep(0.3)

    @property
    def told(self):
        return self.recorder.statistics()

    def events(self):
        return list(read_log(segments(self.prefix)))

    def markers(self):
        return [event for event in self.events() if isinstance(event, Marker)]


async def recorded(tmp_path, work, feed=None, **options):
    """Record while ``work`` runs; return its recording."""
    options = {"sync_s": 1e9, **options}  # a busy disk takes its time
    recorder = Recorder(feed or simulated(), RecorderOptions(path=str(tmp_path / "day"), **options))
    recording = Recording(recorder, tmp_path / "day")
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.run)
        await work(recording)
        nursery.cancel_scope.cancel()
    return recording


def rows(events):
    return sum(len(event) for event in events if isinstance(event, Batch))


async def test_everything_is_in_the_log_in_order(tmp_path, autojump_clock):
    happened = [EPOCH, *batches_of(simulated(), 50), Marker(kind="end", ts=START_NS, reason="enough")]
    recording = await recorded(tmp_path, lambda it: it.say(*happened))
    expected = [event for event in happened if isinstance(event, Marker) or len(event)]
    assert all(map(same, recording.events(), expected))
    told = recording.told
    assert (told.state, told.rows, told.lost, told.errors, told.waiting) == ("ended", rows(happened), 0, 0, 0)
    assert told.size == sum(path.stat().st_size for path in segments(recording.prefix))


async def test_what_was_taken_last_is_written_at_the_end(tmp_path, autojump_clock):
    batches = batches_of(simulated(), 20)

    async def work(recording):
        await recording.say(EPOCH)
        for batch in batches:
            recording.recorder.take(batch)
        assert recording.told.waiting == rows(batches)

    recording = await recorded(tmp_path, work)
    assert rows(recording.events()) == rows(batches)


async def test_what_waits_is_told(tmp_path, autojump_clock):
    async def work(recording):
        assert (recording.told.waiting, recording.told.waiting_s) == (0, 0.0)
        await trio.sleep(0.05)
        (batch,) = batches_of(simulated(), 1)
        recording.recorder.take(batch)
        await trio.sleep(0.05)
        told = recording.told
        assert (told.state, told.waiting, told.waiting_s) == ("recording", len(batch), pytest.approx(0.1))

    await recorded(tmp_path, work)


async def test_segments_end_by_size(tmp_path, autojump_clock):
    batches = batches_of(simulated(), 30)
    recording = await recorded(tmp_path, lambda it: it.say(EPOCH, *batches), segment_bytes=8_000)
    sizes = [path.stat().st_size for path in segments(recording.prefix)]
    assert len(sizes) == recording.told.segments > 2
    assert all(size >= 8_000 for size in sizes[:-1])
    assert rows(recording.events()) == rows(batches)


async def test_segments_end_by_time(tmp_path, autojump_clock):
    async def work(recording):
        for batch in batches_of(simulated(), 4):
            await recording.say(batch)
            await trio.sleep(70)

    recording = await recorded(tmp_path, work, segment_s=60.0)
    assert recording.told.segments == 4


@pytest.mark.parametrize("keyframe_rows", [0, 400])
async def test_a_recorded_run_replays_to_the_digest_of_the_run(tmp_path, autojump_clock, keyframe_rows):
    happened = batches_of(simulated(rate=2000.0), 300)
    await recorded(tmp_path, lambda it: it.say(EPOCH, *happened), segment_bytes=100_000)
    (recording,) = compact(tmp_path / "day", keyframe_rows=keyframe_rows).recordings
    run, replay = StreamDigest(), StreamDigest()
    for batch in happened:
        run.update(batch)
    tables = zip(recording.trades(), recording.quotes(), recording.levels(), strict=True)
    added = 0
    for trades, quotes, levels in tables:  # one chunk each
        added = len(levels) - sum(len(batch.levels) for batch in happened)
        replay.update(Batch(ts=0, trades=trades, quotes=quotes, levels=levels))
    assert (added > 0) == (keyframe_rows == 400)  # with keyframes there are more rows, and tests/test_keyframes.py
    assert (replay.hexdigest() == run.hexdigest()) == (added == 0)  # says that the rest is as it was


async def test_in_silence_too_the_disk_is_asked_to_keep_what_it_has(tmp_path, autojump_clock, monkeypatch):
    synced = []
    monkeypatch.setattr(tapelog.LogWriter, "sync", lambda writer: synced.append((trio.current_time(), writer.size)))

    async def work(recording):
        await recording.say(EPOCH)
        await trio.sleep(5)
        assert [at for at, size in synced if size == recording.told.size] == [pytest.approx(1.0)]

    await recorded(tmp_path, work, sync_s=1.0)


# --- a disk that refuses


@pytest.fixture
def disk(monkeypatch):
    """A disk whose errors are in the test's hands: ``disk["error"]`` is what a write, or a sync, raises."""
    state = {"error": None, "in": "write"}
    originals = {"write": tapelog.os.write, "fsync": tapelog.os.fsync}

    def refusing(name):
        def call(*arguments):
            if state["error"] is not None and state["in"] == name:
                raise OSError(state["error"], "the disk refuses")
            return originals[name](*arguments)

        return call

    for name in originals:
        monkeypatch.setattr(tapelog.os, name, refusing(name))
    return state


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
async def test_a_disk_that_refuses_stops_the_recording_until_it_does_not(
    tmp_path, autojump_clock, disk, caplog, error, call
):
    batches = batches_of(simulated(), 40)

    async def work(recording):
        await recording.say(EPOCH, *batches[:10])
        disk.update({"error": error, "in": call})
        await recording.say(*batches[10:20])
        told = recording.told
        assert (told.state, told.waiting) == ("refused", 0)
        assert told.lost > 0
        assert told.errors >= 1
        disk["error"] = None
        await trio.sleep(RETRY_S)
        assert recording.told.state == "recording"
        await recording.say(*batches[20:])

    recording = await recorded(tmp_path, work, sync_s=0.1)
    told = recording.told
    assert told.lost + told.rows == rows(batches)
    assert [marker.kind for marker in recording.markers()] == ["epoch", "gap"]
    messages = [record.message for record in caplog.records]
    assert [message.split(":")[0] for message in messages] == [
        f"recording {recording.prefix} has stopped",
        f"recording {recording.prefix} goes on after a gap; {told.lost} rows are lost",
    ]
    assert len(segments(recording.prefix)) == 2
    (compacted,) = compact(recording.prefix).recordings
    assert compacted.rows == told.rows


async def test_an_epoch_that_begins_while_the_disk_refuses_is_not_forgotten(tmp_path, autojump_clock, disk):
    async def work(recording):
        first = batches_of(simulated(), 10)
        await recording.say(EPOCH, *first)
        disk["error"] = errno.ENOSPC
        await recording.say(first[-1], EPOCH, Marker(kind="gap", ts=START_NS, reason="the feed broke"))
        disk["error"] = None
        await trio.sleep(RETRY_S)
        await recording.say(*batches_of(simulated(), 10))

    recording = await recorded(tmp_path, work)
    assert [marker.kind for marker in recording.markers()] == ["epoch", "epoch"]


async def test_a_disk_that_refuses_to_the_end_leaves_what_it_took(tmp_path, autojump_clock, disk):
    batches = batches_of(simulated(), 20)

    async def work(recording):
        await recording.say(EPOCH, *batches[:10])
        disk["error"] = errno.EIO
        await recording.say(*batches[10:])

    recording = await recorded(tmp_path, work)
    assert rows(recording.events()) == rows(batches[:10]) == recording.told.rows


async def test_beyond_what_may_wait_rows_are_dropped_and_a_gap_says_so(tmp_path, autojump_clock):
    batches = [batch for batch in batches_of(simulated(), 40) if 0 < len(batch) < 100]

    async def work(recording):
        await recording.say(EPOCH)
        for batch in batches[:20]:
            recording.recorder.take(batch)
        assert recording.told.waiting <= 100
        await recording.say(*batches[20:])

    recording = await recorded(tmp_path, work, buffer_rows=100)
    told = recording.told
    assert told.lost > 0
    assert told.lost + told.rows == rows(batches)
    assert [marker.kind for marker in recording.markers()] == ["epoch", "gap"]


# --- a process that ends


VICTIM = """
import itertools, sys, trio
from feeds.recorder import Recorder, RecorderOptions
from feeds.simulate import SimulatedFeed, SimulationOptions

async def main():
    feed = SimulatedFeed(SimulationOptions(start_ns=10**18, rate=20_000.0))
    recorder = Recorder(feed, RecorderOptions(path=sys.argv[1], flush_s=0.01, segment_bytes=200_000))
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.run)
        for batch in feed.windows():
            recorder.take(batch)
            await trio.sleep(0.002)
            print(recorder.statistics().rows, flush=True)

trio.run(main)
"""


def killed(prefix, lines):
    """Record in another process, kill it after it has said so many lines, and return how many rows it had written."""
    with subprocess.Popen([sys.executable, "-c", VICTIM, str(prefix)], stdout=subprocess.PIPE, text=True) as victim:
        said = [victim.stdout.readline() for _ in range(lines)]
        victim.kill()
        said += victim.stdout.readlines()
    return int([line for line in said if line.endswith("\n")][-1])


@pytest.mark.parametrize("lines", random.Random(7).sample(range(1, 250), 3))
def test_a_killed_recording_has_everything_that_was_written(tmp_path, lines):
    prefix = tmp_path / "day"
    least = killed(prefix, lines)
    for path in segments(prefix):
        repair(path)
    events = [event for event in read_log(segments(prefix)) if isinstance(event, Batch)]
    assert rows(events) >= least
    run, log = StreamDigest(), StreamDigest()
    left = rows(events)
    for batch in simulated(rate=20_000.0).windows():
        run.update(batch)
        left -= len(batch)
        if left <= 0:
            break
    assert left == 0  # groups are whole batches
    for event in events:
        log.update(event)
    assert log.hexdigest() == run.hexdigest()


async def test_the_next_start_repairs_and_goes_on(tmp_path, autojump_clock, caplog):
    first, second = batches_of(simulated(), 20), batches_of(simulated(), 40)
    await recorded(tmp_path, lambda it: it.say(EPOCH, *first))
    (path,) = segments(tmp_path / "day")
    path.write_bytes(path.read_bytes()[:-5])
    lost = len([batch for batch in first if len(batch)][-1])
    recording = await recorded(tmp_path, lambda it: it.say(EPOCH, *second))
    assert "a frame is cut off" in caplog.text
    assert "it goes on after a gap" in caplog.text
    assert rows(recording.events()) == rows(first) - lost + rows(second)
    assert [marker.kind for marker in recording.markers()] == ["epoch", "gap", "epoch"]
    assert survey(tmp_path / "day").damage == ()


# --- what a recording may not be


async def test_a_recording_is_never_written_over(tmp_path, autojump_clock):
    await recorded(tmp_path, lambda it: it.say(EPOCH, *batches_of(simulated(), 5)))
    compact(tmp_path / "day")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.RaisesGroup(pytest.RaisesExc(RecordingError, match="there is a recording of that name")):
        await recorded(tmp_path, lambda it: it.say(EPOCH))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


async def test_nor_is_one_of_its_takes(tmp_path, autojump_clock):
    (tmp_path / "day-2.trades.parquet").touch()
    with pytest.RaisesGroup(pytest.RaisesExc(RecordingError, match=r"day-2\.trades\.parquet")):
        await recorded(tmp_path, lambda it: it.say(EPOCH))


async def test_two_do_not_record_to_one_log(tmp_path, autojump_clock):
    async def work(recording):
        with pytest.RaisesGroup(pytest.RaisesExc(RecordingError, match="is being recorded by another process")):
            await recorded(tmp_path, lambda it: it.say(EPOCH))
        with pytest.raises(RecordingError, match="is being recorded by another process"):
            compact(tmp_path / "day")

    await recorded(tmp_path, work)


async def test_a_log_of_other_instruments_does_not_go_on(tmp_path, autojump_clock):
    await recorded(tmp_path, lambda it: it.say(EPOCH))
    with pytest.RaisesGroup(pytest.RaisesExc(RecordingError, match="has other instruments")):
        await recorded(tmp_path, lambda it: it.say(EPOCH), feed=simulated(symbols=("BTC/EUR",)))


async def test_a_folder_that_cannot_be_written_is_said(tmp_path, autojump_clock):
    (tmp_path / "file").touch()
    recorder = Recorder(simulated(), RecorderOptions(path=str(tmp_path / "file" / "day")))
    with pytest.raises(RecordingError, match="cannot be recorded to"):
        await recorder.run()


async def test_folders_are_made(tmp_path, autojump_clock):
    await recorded(tmp_path / "new" / "folder", lambda it: it.say(EPOCH))
    assert len(segments(tmp_path / "new" / "folder" / "day")) == 1


async def test_a_feed_without_instruments_can_be_recorded(tmp_path, autojump_clock):
    feed = simulated()
    feed.instruments = Instruments([])
    recording = await recorded(tmp_path, lambda it: it.say(EPOCH), feed=feed)
    assert recording.events() == [EPOCH]
