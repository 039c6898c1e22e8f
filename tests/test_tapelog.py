"""The append log: what comes back, and that nothing wrong ever does."""

from __future__ import annotations

import itertools
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds import tapelog
from feeds.errors import RecordingError
from feeds.records import Batch, Levels, Marker, Quotes, Trades
from feeds.simulate import SimulatedFeed, SimulationOptions
from feeds.tapelog import (
    MARKER,
    ROWS,
    Header,
    Lock,
    LogWriter,
    SegmentReader,
    batch_of,
    read_log,
    repair,
    rows_of,
    segment_path,
    segments,
    survey,
)

FEED = SimulatedFeed(SimulationOptions(rate=2000.0, start_ns=10**18))
HEADER = Header(feed="simulated", mode="sim", instruments=tuple(FEED.instruments))
EPOCH = Marker(kind="epoch", ts=10**18, reason="the simulation begins")
BATCHES = [batch for batch in itertools.islice(FEED.windows(), 30) if len(batch)]


def same(a, b):
    if isinstance(a, Marker) or isinstance(b, Marker):
        return a == b
    tables = [(a.trades, b.trades), (a.quotes, b.quotes), (a.levels, b.levels)]
    return a.ts == b.ts and all(
        np.array_equal(x, y) and x.dtype == y.dtype
        for p, q in tables
        for x, y in zip(p.columns().values(), q.columns().values(), strict=True)
    )


def written(path, events):
    """Write a segment, and return where each of its frames ends."""
    writer = LogWriter(path, HEADER)
    ends = [writer.size]
    for event in events:
        if isinstance(event, Marker):
            writer.append(MARKER, msgspec.json.encode(event))
        else:
            writer.append(ROWS, rows_of([event]))
        ends.append(writer.size)
    writer.close()
    return ends


def read(path):
    reader = SegmentReader(path)
    return list(reader.events()), reader


EVENTS = [EPOCH, *BATCHES[:4]]


@pytest.fixture
def path(tmp_path):
    return segment_path(tmp_path / "day", 1)


def test_what_was_written_comes_back(path):
    ends = written(path, EVENTS)
    events, reader = read(path)
    assert len(events) == len(EVENTS)
    assert all(map(same, events, EVENTS))
    assert (reader.header, reader.damage, reader.end) == (HEADER, None, ends[-1])


def test_batches_of_one_group_become_one():
    together = batch_of(rows_of(BATCHES))
    assert together.ts == BATCHES[-1].ts
    for kind, table in (("trades", Trades), ("quotes", Quotes), ("levels", Levels)):
        whole = table.concatenate([getattr(b, kind) for b in BATCHES])
        assert same(Batch(ts=0, **{kind: getattr(together, kind)}), Batch(ts=0, **{kind: whole}))


def test_columns_that_are_read_may_be_written_to_and_are_aligned(path):
    written(path, EVENTS)
    (_, batch, *_), _ = read(path)
    for table in (batch.trades, batch.quotes, batch.levels):
        assert all(column.flags.aligned and column.flags.writeable for column in table.columns().values())


def test_a_segment_is_never_written_over(path):
    written(path, EVENTS)
    with pytest.raises(FileExistsError):
        LogWriter(path, HEADER)


def test_the_last_frame_cut_at_every_byte_is_noticed_and_everything_before_it_is_there(path):
    small = min((batch for batch in BATCHES if len(batch) > 2), key=len)
    *_, start, end = written(path, [EPOCH, small, small])
    data = path.read_bytes()
    assert end - start > 150
    for size in range(start + 1, end):
        path.write_bytes(data[:size])
        events, reader = read(path)
        assert len(events) == 2
        assert reader.damage is not None
        assert (reader.damage.at, reader.damage.size) == (start, size - start)
    path.write_bytes(data[:start])
    assert read(path)[1].damage is None  # nobody can know that there was another frame


@pytest.fixture(scope="module")
def mutable(tmp_path_factory):
    """A segment to be mutated: its file, its bytes, and where its frames end."""
    path = segment_path(tmp_path_factory.mktemp("mutable") / "day", 1)
    ends = written(path, EVENTS)
    return path, path.read_bytes(), ends


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_mutated_log_is_never_read_wrong(mutable, data):
    path, original, ends = mutable
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    events, reader = read(path)
    if content == original:  # two mutations may undo each other
        assert reader.damage is None
        return
    first = next(at for at, (a, b) in enumerate(zip(content, original, strict=True)) if a != b)
    assert reader.damage is not None
    assert len(events) == max(0, sum(end <= first for end in ends) - 1)  # without the header
    assert all(map(same, events, EVENTS))


@pytest.mark.parametrize("order", [(0, 1, 1, 2), (0, 2, 1), (0, 2), (1, 2), (0, 0, 1)])
def test_frames_repeated_left_out_or_moved_are_noticed(path, order):
    ends = [0, *written(path, EVENTS[:2])]
    data = path.read_bytes()
    path.write_bytes(b"".join(data[ends[i] : ends[i + 1]] for i in order))
    events, reader = read(path)
    assert reader.damage is not None
    assert all(map(same, events, EVENTS))


def test_what_a_power_cut_leaves_behind_a_file_is_noticed(path):
    ends = written(path, EVENTS)
    with path.open("ab") as file:
        file.write(bytes(5000))
    events, reader = read(path)
    assert len(events) == len(EVENTS)
    assert (reader.damage.at, reader.damage.size) == (ends[-1], 5000)


def test_another_version_is_no_damage_but_refused(path):
    LogWriter(path, msgspec.structs.replace(HEADER, format=2)).close()
    with pytest.raises(RecordingError, match="format 2; this version reads 1"):
        read(path)


# --- repair


def test_a_repaired_segment_says_that_something_is_missing_and_what_was_cut_off_is_kept(path):
    ends = written(path, EVENTS)
    data = path.read_bytes()
    path.write_bytes(data[:-7])
    damage = repair(path)
    assert str(damage) == (
        f"{path}: a frame is cut off at byte {ends[-2]:,}; the last {len(data) - 7 - ends[-2]:,} bytes are left out"
    )
    events, reader = read(path)
    assert all(map(same, events[:-1], EVENTS[:-1]))
    assert events[-1] == Marker(kind="gap", ts=EVENTS[-2].ts, reason="a frame is cut off")
    assert reader.damage is None
    assert path.with_name(f"{path.name}.cut").read_bytes() == data[ends[-2] : -7]
    assert repair(path) is None


def test_a_whole_segment_is_left_alone(path):
    written(path, EVENTS)
    before = path.read_bytes()
    assert repair(path) is None
    assert path.read_bytes() == before
    assert segments(path.parent / "day") == [path]


@pytest.mark.parametrize("content", [b"", b"\x01\x02", bytes(100)])
def test_a_segment_without_a_header_is_put_aside(path, content):
    path.write_bytes(content)
    assert repair(path) is not None
    assert segments(path.parent / "day") == []
    assert path.with_name(f"{path.name}.cut").read_bytes() == content


def test_every_cut_can_be_repaired(path):
    written(path, EVENTS)
    data = path.read_bytes()
    for size in random.Random(1).sample(range(1, len(data)), 60):
        path.write_bytes(data[:size])
        repair(path)
        if path.exists():
            events = list(read_log([path]))
            assert all(map(same, events, EVENTS[: len(events) - 1]))
            path.unlink()


# --- whole logs


def test_segments_are_read_in_order_and_a_missing_one_is_a_gap(tmp_path):
    prefix = tmp_path / "day"
    for number in (1, 2, 4, 12):
        written(segment_path(prefix, number), [BATCHES[number]])
    written(segment_path(tmp_path / "day-2", 1), [EPOCH])  # another recording
    events = list(read_log(segments(prefix)))
    assert [event.ts for event in events if isinstance(event, Batch)] == [BATCHES[n].ts for n in (1, 2, 4, 12)]
    assert [event.reason for event in events if isinstance(event, Marker)] == [
        "segment 3 is missing",
        "segment 5 is missing",
    ]


def test_a_log_that_was_not_repaired_is_not_read_to_its_end(path):
    written(path, EVENTS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecordingError, match="a frame is cut off"):
        list(read_log([path]))


def test_a_log_is_surveyed_without_being_touched(path):
    written(path, [*EVENTS, Marker(kind="gap", ts=1, reason="the disk refused")])
    with path.open("ab") as file:
        file.write(b"torn")
    before = path.read_bytes()
    info = survey(path.parent / "day")
    assert path.read_bytes() == before
    assert info.rows == {
        "trades": sum(len(b.trades) for b in BATCHES[:4]),
        "quotes": sum(len(b.quotes) for b in BATCHES[:4]),
        "book": sum(len(b.levels) for b in BATCHES[:4]),
    }
    assert (info.segments, info.size, info.epochs, info.gaps) == (1, len(before), 1, ("the disk refused",))
    assert (info.start_ns, info.end_ns, info.in_use) == (BATCHES[0].ts, BATCHES[3].ts, False)
    assert [damage.size for damage in info.damage] == [4]


def test_no_log_is_said(tmp_path):
    with pytest.raises(RecordingError, match=r"no log; looked for day.0001.tape"):
        survey(tmp_path / "day")


def test_a_log_in_use_is_known_as_such(path):
    written(path, EVENTS)
    lock = Lock(path)
    assert survey(path.parent / "day").in_use
    with pytest.raises(RecordingError, match="is being recorded by another process"):
        Lock(path)
    lock.close()
    assert not survey(path.parent / "day").in_use


def test_a_write_that_fails_midway_leaves_whole_frames(path, monkeypatch):
    writer = LogWriter(path, HEADER)
    writer.append(ROWS, rows_of(BATCHES[:1]))
    whole, room = writer.size, [100]
    write = tapelog.os.write

    def full(descriptor, data):
        if not room[0]:
            raise OSError(28, "No space left on device")
        taken, room[0] = write(descriptor, data[: room[0]]), 0
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(tapelog.os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            writer.append(ROWS, rows_of(BATCHES[1:2]))
    writer.close()
    assert path.stat().st_size == writer.size == whole
    assert read(path)[1].damage is None
