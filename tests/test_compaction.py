"""What becomes of a log: takes, gaps, and files that are complete before the log is gone."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest

from feeds.book import Books
from feeds.compaction import compact
from feeds.errors import RecordingError
from feeds.records import BUY, GAP, LAST, SELL, Batch, Levels, Marker, Quotes, Trades
from feeds.replay import ReplayFeed
from feeds.simulate import SimulatedFeed, SimulationOptions
from feeds.store import open_recording, write_recording
from feeds.tablefile import TableFile
from feeds.tapelog import MARKER, ROWS, Header, LogWriter, rows_of, segment_path, segments

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"
real = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not here")

START_NS = 10**18
TABLES = {"trades": Trades, "quotes": Quotes, "levels": Levels}


def run_of(start_ns=START_NS, count=60):
    feed = SimulatedFeed(SimulationOptions(rate=1000.0, start_ns=start_ns, symbols=("BTC/USD", "ETH/USD")))
    return list(itertools.islice(feed.windows(), count))


INSTRUMENTS = SimulatedFeed(SimulationOptions(start_ns=0, symbols=("BTC/USD", "ETH/USD"))).instruments


def logged(prefix, events, instruments=INSTRUMENTS, number=1):
    writer = LogWriter(segment_path(prefix, number), Header(feed="test", mode="sim", instruments=tuple(instruments)))
    for event in events:
        if isinstance(event, Marker):
            writer.append(MARKER, msgspec.json.encode(event))
        elif len(event):
            writer.append(ROWS, rows_of([event]))
    writer.close()


def marker(kind, ts=START_NS):
    return Marker(kind=kind, ts=ts, reason=kind)


def whole(batches):
    batches = list(batches)
    return {name: kind.concatenate([getattr(b, name) for b in batches]) for name, kind in TABLES.items()}


def content(recording):
    return whole(ReplayFeed(recording).slices())


def assert_same(a, b, but=()):
    for name in TABLES:
        for column, values in a[name].columns().items():
            if column not in but:
                np.testing.assert_array_equal(values, b[name].columns()[column])


def gaps(table):
    return np.flatnonzero(table.flags & GAP).tolist()


def test_a_log_becomes_a_recording_and_is_gone(tmp_path):
    run = run_of()
    logged(tmp_path / "day", [marker("epoch"), *run[:30]])
    logged(tmp_path / "day", [*run[30:], marker("end")], number=2)
    done = compact(tmp_path / "day")
    (recording,) = done.recordings
    assert (recording.name, done.damage) == ("day", ())
    assert list(recording.instruments) == list(INSTRUMENTS)
    assert_same(content(recording), whole(run))
    assert segments(tmp_path / "day") == []


def test_after_a_gap_the_first_row_of_each_instrument_and_table_says_so(tmp_path):
    run = run_of()
    logged(tmp_path / "day", [marker("epoch"), *run[:30], marker("gap"), *run[30:]])
    (recording,) = compact(tmp_path / "day").recordings
    told, before = content(recording), whole(run[:30])
    for name, table in told.items():
        first = len(before[name])
        rest = table.instrument[first:]
        assert gaps(table) == sorted(first + int(np.argmax(rest == i)) for i in (0, 1))
    assert_same(told, whole(run), but=("flags",))


def test_a_gap_before_the_first_row_is_none(tmp_path):
    logged(tmp_path / "day", [marker("gap"), marker("epoch"), *run_of()])
    (recording,) = compact(tmp_path / "day").recordings
    assert not any(gaps(table) for table in content(recording).values())


def test_an_epoch_that_goes_on_in_time_is_a_gap_and_its_numbers_go_on(tmp_path):
    first, second = run_of(), run_of(START_NS + 10**12)
    logged(tmp_path / "day", [marker("epoch"), *first, marker("epoch"), *second])
    (recording,) = compact(tmp_path / "day").recordings
    told, count = content(recording), sum(map(len, first))
    seq = np.sort(np.concatenate([table.seq for table in told.values()]))
    np.testing.assert_array_equal(seq, np.arange(1, count + sum(map(len, second)) + 1))
    books = Books()
    list(books.apply(told["levels"]))
    expected = Books()
    list(expected.apply(whole(second)["levels"]))
    for i in (0, 1):
        assert not books[i].stale
        assert [books[i].top(side, 99) for side in (BUY, SELL)] == [expected[i].top(side, 99) for side in (BUY, SELL)]
    assert all(gaps(table) for table in told.values())


def test_an_epoch_whose_times_run_back_is_a_take_of_its_own(tmp_path):
    run = run_of()
    logged(tmp_path / "day", [m for _ in range(3) for m in (marker("epoch"), *run)])
    done = compact(tmp_path / "day")
    assert [recording.name for recording in done.recordings] == ["day", "day-2", "day-3"]
    for recording in done.recordings:
        assert_same(content(recording), whole(run))


def test_what_is_missing_in_a_damaged_log_is_said_and_kept(tmp_path):
    run = run_of()
    logged(tmp_path / "day", [marker("epoch"), *run[:30]])
    logged(tmp_path / "day", run[30:], number=2)
    path = segment_path(tmp_path / "day", 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = compact(tmp_path / "day")
    (damage,), (recording,) = done.damage, done.recordings
    assert damage.why == "a frame is damaged"
    told = content(recording)
    assert len(told["quotes"]) < len(whole(run)["quotes"])
    assert all(gaps(table) for table in told.values())
    assert path.with_name(f"{path.name}.cut").read_bytes() == data[damage.at :]


def test_a_log_without_rows_is_no_recording(tmp_path):
    logged(tmp_path / "day", [marker("epoch")])
    assert compact(tmp_path / "day").recordings == ()
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_is_nothing_but_damage_is_no_recording(tmp_path):
    segment_path(tmp_path / "day", 1).write_bytes(b"noise")
    assert compact(tmp_path / "day").recordings == ()
    assert [path.name for path in tmp_path.iterdir()] == ["day.0001.tape.cut"]


def test_what_is_interrupted_can_be_done_again(tmp_path, monkeypatch):
    run = run_of()
    logged(tmp_path / "day", [marker("epoch"), *run])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError("interrupted")))
        with pytest.raises(RecordingError, match="the log is still there"):
            compact(tmp_path / "day")
    (recording,) = compact(tmp_path / "day").recordings
    assert_same(content(recording), whole(run))


def test_takes_that_were_finished_before_an_interruption_stay_and_the_others_follow(tmp_path, monkeypatch):
    run, publish, done = run_of(), TableFile.publish, itertools.count()
    logged(tmp_path / "day", [m for _ in range(3) for m in (marker("epoch"), *run)])

    def interrupted(file):
        if next(done) == 6:  # four files of the first take, two of the second
            raise OSError("interrupted")
        publish(file)

    with monkeypatch.context() as patch:
        patch.setattr(TableFile, "publish", interrupted)
        with pytest.raises(RecordingError, match="interrupted"):
            compact(tmp_path / "day")
    done = compact(tmp_path / "day")
    assert [recording.name for recording in done.recordings] == ["day", "day-2", "day-3"]
    for recording in done.recordings:
        assert_same(content(recording), whole(run))
    assert len(list(tmp_path.iterdir())) == 12


@pytest.mark.parametrize("name", ["day", "day-2"])
def test_a_recording_made_meanwhile_is_not_written_over(tmp_path, name):
    run = run_of()
    logged(tmp_path / "day", [m for _ in range(2) for m in (marker("epoch"), *run)])
    other = content(write_recording(tmp_path / name, INSTRUMENTS, run[:30]))
    with pytest.raises(RecordingError, match=f"{name}: there is another recording of that name; move it away"):
        compact(tmp_path / "day")
    assert_same(content(open_recording(tmp_path / name)), other)
    for path in tmp_path.glob(f"{name}.*.parquet"):
        path.rename(path.with_name(path.name.replace("day", "moved")))
    assert [recording.name for recording in compact(tmp_path / "day").recordings] == ["day", "day-2"]


def test_no_log_is_said(tmp_path):
    with pytest.raises(RecordingError, match="there is no log to compact"):
        compact(tmp_path / "day")


def part_of(folder, name, rows):
    recording, batches = open_recording(RECORDINGS / name), []
    for batch in ReplayFeed(recording).slices(1000):
        batches.append(batch)
        if sum(map(len, batches)) > rows:
            break
    return write_recording(folder / "part", recording.instruments, batches)


@real
@pytest.mark.parametrize("name", ["binance_spot_20240808", "cme_ESH4_20231225", "cme_ESU4_20240701"])
def test_recorded_replayed_and_recorded_again_is_the_same(tmp_path, name):
    part = part_of(tmp_path, name, 30_000)
    logged(tmp_path / "once", [marker("epoch"), *ReplayFeed(part).slices(700)], part.instruments)
    (once,) = compact(tmp_path / "once", keyframe_rows=5_000).recordings
    logged(tmp_path / "twice", [marker("epoch"), *ReplayFeed(once).slices(300)], once.instruments)
    (twice,) = compact(tmp_path / "twice", keyframe_rows=5_000).recordings
    assert_same(content(once), content(twice))
    assert list(once.instruments) == list(twice.instruments)
    assert_same({**content(once), "levels": Levels.empty()}, {**content(part), "levels": Levels.empty()}, but=("seq",))


def test_a_keyframe_ends_each_book_with_last(tmp_path):
    logged(tmp_path / "day", [marker("epoch"), *run_of(count=200)])
    (recording,) = compact(tmp_path / "day", keyframe_rows=300).recordings
    levels = content(recording)["levels"]
    snapshot = levels.flags & ~np.uint8(LAST) != 0
    ends = snapshot & (levels.flags & LAST != 0)
    following = np.flatnonzero(ends)[:-1] + 1
    changes = levels.instrument[following] != levels.instrument[following - 1]
    assert (changes | ~snapshot[following]).all()
    assert ends.sum() == 4  # two snapshots of the feed's own, and a keyframe


def batch_without_rows():
    return Batch(ts=START_NS)


def test_batches_without_rows_are_passed_over(tmp_path):
    run = run_of()
    logged(tmp_path / "day", [batch_without_rows(), *run])
    (recording,) = compact(tmp_path / "day").recordings
    assert_same(content(recording), whole(run))
