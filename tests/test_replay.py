"""Replay: the merge as pure code, and the instants at which a recording is played."""

import itertools
import math
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio
import trio.testing

from feeds.clock import KEEP, NS, SKIP, cap
from feeds.errors import OptionError, RecordingError
from feeds.instruments import Instrument, Instruments
from feeds.records import CLEAR, LAST, SNAPSHOT, Batch, Levels, Marker, Quotes, StreamDigest, Trades
from feeds.replay import ReplayFeed, ReplayOptions
from feeds.store import open_recording, write_recording

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"
real = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not here")

T0 = 1_700_000_000 * NS
ONE = Instruments([Instrument(symbol="A", base="A", quote="", price_precision=2, qty_precision=0)])


def rows_at(table, ts, seq):
    """A table with rows at the given instants and sequence numbers."""
    columns = {name: np.ones(len(ts), dtype) for name, dtype in table.DTYPES.items()}
    columns |= {"ts_recv": np.array(ts, np.int64), "seq": np.array(seq, np.int64)}
    columns |= {"instrument": np.zeros(len(ts), np.int32), "flags": np.full(len(ts), LAST, np.uint8)}
    return table(**columns)


def recorded(folder, trades=(), quotes=(), levels=()):
    """A recording with rows at these seconds of tape time; seq is the order of time."""
    events = sorted((s, kind) for kind, seconds in enumerate((trades, quotes, levels)) for s in seconds)
    tables = [
        rows_at(
            table,
            [T0 + round(s * NS) for s, k in events if k == kind],
            [seq for seq, (_, k) in enumerate(events) if k == kind],
        )
        for kind, table in enumerate((Trades, Quotes, Levels))
    ]
    return write_recording(folder / "r", ONE, [Batch(ts=T0, trades=tables[0], quotes=tables[1], levels=tables[2])])


def part_of(folder, name, rows):
    """The beginning of a real recording, a little more than so many rows."""
    whole = open_recording(RECORDINGS / name)
    taken = 0

    def some():
        nonlocal taken
        for batch in ReplayFeed(whole).slices(rows=100):
            if taken > rows:
                return
            taken += len(batch)
            yield batch

    return write_recording(folder / "part", whole.instruments, some())


async def played(feed, capacity=0):
    """Play a feed to its end; return (instant, event) pairs, instants since the start."""
    send, receive = trio.open_memory_channel(capacity)
    start, seen = trio.current_time(), []

    async def run():
        async with send:
            await feed.run(send)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        seen.extend([(trio.current_time() - start, event) async for event in receive])
    return seen


def batches(seen):
    return [(instant, event) for instant, event in seen if isinstance(event, Batch)]


def digest(events):
    whole = StreamDigest()
    for event in events:
        if isinstance(event, Batch):
            whole.update(event)
    return whole.hexdigest()


# --- the merge


def test_slices_hold_whole_instants_of_all_tables(tmp_path):
    feed = ReplayFeed(recorded(tmp_path, trades=[0, 1, 1, 2, 9], quotes=[1, 1, 3, 9], levels=[0, 3, 9]))
    assert [len(b) for b in feed.slices(rows=1)] == [2, 4, 1, 2, 3]
    # A table's last instant is held back until its file has ended, so batches also end where a table does.
    assert [len(b) for b in feed.slices(rows=3)] == [6, 1, 2, 3]
    assert [len(b) for b in feed.slices()] == [7, 2, 3]


@real
@pytest.mark.parametrize("name", ["binance_spot_20240808", "cme_ESH4_20231225", "cme_ESU4_20240701"])
@pytest.mark.parametrize("rows", [1_000, 8_192, 10**9])
def test_slices_of_real_tapes_are_complete_sorted_and_never_divide_an_instant(name, rows):
    recording = open_recording(RECORDINGS / name)
    last = 0
    count = dict.fromkeys(("trades", "quotes", "levels"), 0)
    for batch in ReplayFeed(recording).slices(rows):
        times = np.concatenate([getattr(batch, table).ts_recv for table in count])
        assert last < times.min()  # so no instant is in two batches
        last = int(times.max())
        assert batch.ts == last
        count = {table: n + len(getattr(batch, table)) for table, n in count.items()}
    expected = {"levels" if kind == "book" else kind: n for kind, n in recording.tables.items()}
    assert {table: n for table, n in count.items() if n} == expected


@real
def test_two_thousand_rows_of_one_instant_stay_together():
    feed = ReplayFeed(open_recording(RECORDINGS / "binance_spot_20240808"))
    sizes = [np.count_nonzero(b.levels.flags & SNAPSHOT) for b in feed.slices(rows=100)]
    assert [n for n in sizes if n] == [2_001, 2_001]  # one symbol each: a clear and 1,000 levels a side


def test_slices_that_begin_in_the_middle_begin_with_the_market_as_it_was(tmp_path):
    recording = recorded(tmp_path, trades=[0, 1, 2], quotes=[0, 1, 2], levels=[0, 2])
    first, *rest = ReplayFeed(recording, from_ns=T0 + 2 * NS).slices()
    assert (first.ts, [len(table) for table in (first.trades, first.quotes, first.levels)]) == (T0 + 2 * NS, [0, 1, 3])
    assert first.levels.action[0] == CLEAR
    assert [len(batch) for batch in rest] == [3]


# --- pacing


@pytest.mark.parametrize("speed", [0.1, 1.0, 10.0])
async def test_rows_come_when_they_are_due(tmp_path, autojump_clock, speed):
    feed = ReplayFeed(recorded(tmp_path, trades=[0, 1, 1, 4], quotes=[1, 2.5], levels=[60]), speed=speed)
    seen = batches(await played(feed))
    assert [at for at, _ in seen] == pytest.approx([t / speed for t in (0, 1, 2.5, 4, 60)], rel=1e-12)
    assert [(len(b.trades), len(b.quotes), len(b.levels)) for _, b in seen][1] == (2, 1, 0)
    assert [b.ts - T0 for _, b in seen] == [0, NS, 2_500_000_000, 4 * NS, 60 * NS]


async def test_everything_due_comes_in_one_batch_after_a_wait(tmp_path, autojump_clock):
    feed = ReplayFeed(recorded(tmp_path, trades=[0, 1, 2, 3, 4, 10]))
    send, receive = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        assert isinstance(await receive.receive(), Marker)
        await receive.receive()
        await trio.sleep(3.5)  # a reader that is slow: second 1 waits for it, 2 and 3 come due meanwhile
        assert [len(await receive.receive()) for _ in range(4)] == [1, 2, 1, 1]
        assert trio.current_time() == 10.0  # and the tape has caught up
        assert await receive.receive() == Marker(kind="end", ts=T0 + 10 * NS, reason="the recording has ended")


async def test_lateness_is_counted_by_row(tmp_path, autojump_clock):
    feed = ReplayFeed(recorded(tmp_path, trades=[0, 1, 2, 3, 4, 10]), speed=1.0)
    send, receive = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        await receive.receive()
        await receive.receive()
        await trio.sleep(3.5)
        for _ in range(5):
            await receive.receive()
    statistics = feed.statistics()
    assert statistics.lateness_max_ms == 1_500.0  # second 2, at 3.5
    assert statistics.lateness_p99_ms == 1_500.0
    assert statistics.lateness_p50_ms <= 0.011
    assert (statistics.rows, statistics.batches) == (6, 5)


async def test_statistics_follow_the_tape(tmp_path, autojump_clock):
    feed = ReplayFeed(recorded(tmp_path, trades=[0, 1, 4]), speed=2.0)
    assert (feed.statistics().state, feed.statistics().progress) == ("waiting", 0.0)
    send, receive = trio.open_memory_channel(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        await receive.receive()
        await receive.receive()  # only now does the clock run: reading takes no virtual time
        await trio.sleep(1.0)
        now = feed.statistics()
        assert (now.state, now.rows, now.progress, now.position_ns) == ("playing", 2, 0.25, T0 + NS)
    now = feed.statistics()
    assert (now.state, now.rows, now.progress, now.passes) == ("ended", 3, 1.0, 1)
    assert receive.statistics().current_buffer_used == 3


async def test_infinite_speed_takes_no_time_and_lets_others_run(tmp_path, autojump_clock):
    feed = ReplayFeed(recorded(tmp_path, trades=range(30_000)), speed=math.inf)
    seen = await played(feed)
    assert {at for at, _ in seen} == {0.0}
    assert [len(b) for _, b in batches(seen)] == [8_192, 8_192, 8_192, 5_423, 1]  # the last instant is held back
    assert feed.statistics().lateness_max_ms == 0.0


# --- silences

SILENT = {"trades": [0, 1, 3], "quotes": [103, 104.5], "levels": [3600]}


@pytest.mark.parametrize(
    ("gap", "instants"),
    [
        (KEEP, [0, 1, 3, 103, 104.5, 3600]),
        (cap(2.0), [0, 1, 3, 5, 6.5, 8.5]),
        (cap(200.0), [0, 1, 3, 103, 104.5, 304.5]),
        (SKIP, [0, 1, 1, 1, 1, 1]),  # 0 to 1 is one second, not more
    ],
)
@pytest.mark.parametrize("speed", [1.0, 10.0])
async def test_silences_last_as_long_as_the_policy_says(tmp_path, autojump_clock, gap, instants, speed):
    seen = batches(await played(ReplayFeed(recorded(tmp_path, **SILENT), speed=speed, gap=gap)))
    assert [b.ts - T0 for _, b in seen] == [round(s * NS) for s in (0, 1, 3, 103, 104.5, 3600)]
    assert [at for at, _ in seen] == pytest.approx([t / speed for t in instants], rel=1e-12)


async def test_a_capped_silence_counts_even_when_the_reader_slept_through_it(tmp_path, autojump_clock):
    """Caught in the act: what is due at 3.5 s must be reckoned with the silence as played, not as recorded."""
    feed = ReplayFeed(recorded(tmp_path, trades=[0, 1, 1.5, 3, 3.5, 10]), gap=cap(1.0))
    send, receive = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        await receive.receive()
        await receive.receive()
        await trio.sleep(2.75)
        instants = []
        for _ in range(5):
            await receive.receive()
            instants.append(trio.current_time())
        await receive.receive()  # the end
    # On the capped tape they are due at 0, 1, 1.5, 2.5, 3 and 4.
    assert instants == [2.75, 2.75, 2.75, 3.0, 4.0]
    assert feed.statistics().rows == 6


async def test_two_thousand_shortened_silences_do_not_drift(tmp_path, autojump_clock):
    feed = ReplayFeed(recorded(tmp_path, trades=[i * 7.7 for i in range(2_001)]), speed=3.0, gap=cap(0.3))
    seen = batches(await played(feed))
    assert len(seen) == 2_001
    assert seen[-1][0] == pytest.approx(2_000 * 0.3 / 3.0, abs=1e-9)


@real
async def test_twenty_two_hours_of_silence_are_skipped(tmp_path, autojump_clock):
    recording = part_of(tmp_path, "cme_ESH4_20231225", rows=10_000)
    assert recording.end_ns - recording.start_ns > 22 * 3600 * NS
    seen = batches(await played(ReplayFeed(recording, speed=1000.0, gap=SKIP)))
    assert sum(len(b) for _, b in seen) == recording.rows
    assert seen[-1][0] < 0.5  # minutes of trading at 1000x


# --- the stream as a whole


async def test_markers_frame_the_tape(tmp_path, autojump_clock):
    seen = [event for _, event in await played(ReplayFeed(recorded(tmp_path, trades=[5, 6])))]
    assert seen[0] == Marker(kind="epoch", ts=T0 + 5 * NS, reason="the recording begins")
    assert seen[-1] == Marker(kind="end", ts=T0 + 6 * NS, reason="the recording has ended")
    assert len(seen) == 4


async def test_in_a_loop_every_pass_is_an_epoch_with_the_recorded_times(tmp_path, autojump_clock):
    feed = ReplayFeed(recorded(tmp_path, trades=[0, 1], quotes=[2]), loop=True)
    send, receive = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        seen = [await receive.receive() for _ in range(12)]
        assert trio.current_time() == 6.0  # three passes of two seconds
        assert (feed.statistics().passes, feed.statistics().state) == (3, "playing")
        nursery.cancel_scope.cancel()
    assert [e.kind if isinstance(e, Marker) else e.ts - T0 for e in seen] == ["epoch", 0, NS, 2 * NS] * 3


async def test_the_tape_is_held_until_somebody_listens_but_only_once(tmp_path, autojump_clock):
    calls = []

    async def wait_start():
        calls.append(trio.current_time())
        await trio.sleep(7.0)

    feed = ReplayFeed(recorded(tmp_path, trades=[0, 1]), loop=True, wait_start=wait_start)
    send, receive = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        seen = []
        for _ in range(6):
            event = await receive.receive()
            seen.append((trio.current_time(), event.kind if isinstance(event, Marker) else "batch"))
            if len(seen) == 1:
                await trio.testing.wait_all_tasks_blocked()
                assert feed.statistics().state == "waiting"
        nursery.cancel_scope.cancel()
    assert seen == [(0, "epoch"), (7, "batch"), (8, "batch"), (8, "epoch"), (8, "batch"), (9, "batch")]
    assert calls == [0.0]


async def test_run_again_it_begins_with_a_new_epoch(tmp_path, autojump_clock):
    feed = ReplayFeed(recorded(tmp_path, trades=[0, 1]))
    first, second = await played(feed), await played(feed)
    assert [type(e) for _, e in first] == [type(e) for _, e in second]
    assert digest(e for _, e in first) == digest(e for _, e in second)


@real
async def test_content_is_the_same_at_any_speed(tmp_path, autojump_clock):
    recording = part_of(tmp_path, "binance_spot_20240808", rows=8_000)
    digests = {digest(ReplayFeed(recording).slices(rows)) for rows in (1, 777, 10**9)}
    for speed in (1.0, 50.0, math.inf):
        digests.add(digest(event for _, event in await played(ReplayFeed(recording, speed=speed))))
    digests.add(digest(event for _, event in await played(ReplayFeed(recording, speed=10.0, gap=SKIP))))
    assert len(digests) == 1


@real
async def test_content_of_a_whole_tape_is_the_same_merged_and_rushed(autojump_clock):
    recording = open_recording(RECORDINGS / "binance_spot_20240808")
    rushed = [event for _, event in await played(ReplayFeed(recording, speed=math.inf))]
    assert digest(rushed) == digest(ReplayFeed(recording).slices())


async def test_a_seek_reads_from_there(tmp_path):
    feed = ReplayFeed(recorded(tmp_path, trades=range(100), quotes=[10, 60]), speed=math.inf, start_paused=True)
    send, receive = trio.open_memory_channel(math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        assert (await receive.receive()).kind == "epoch"
        feed.playback.seek(T0 + 50 * NS)
        assert (await receive.receive()).ts == T0 + 50 * NS
        state = await receive.receive()
        assert (state.quotes.ts_recv.tolist(), len(state)) == ([T0 + 50 * NS], 1)
        feed.playback.resume()
        rows = []
        while isinstance(event := await receive.receive(), Batch):
            rows += event.trades.ts_recv.tolist()
    assert rows == [T0 + second * NS for second in range(50, 100)]
    now = feed.statistics()
    assert (now.state, now.epochs, now.passes, now.rows) == ("ended", 2, 1, 51)


async def test_a_seek_does_not_wait_for_tables_that_are_of_no_use_any_more(autojump_clock):
    begun, reading, go_on = [], trio.Event(), threading.Event()

    class Slow:
        name, instruments, start_ns, end_ns = "s", ONE, T0, T0 + 100 * NS

        def trades(self, from_ns):
            begun.append(from_ns)
            trio.from_thread.run_sync(reading.set)
            go_on.wait()
            yield rows_at(Trades, [T0 + 60 * NS], [0])

        def quotes(self, from_ns):
            for rows in self.trades(from_ns):
                yield rows_at(Quotes, rows.ts_recv, rows.seq + 1)

        def levels(self, from_ns):
            for rows in self.trades(from_ns):
                yield rows_at(Levels, rows.ts_recv, rows.seq + 2)

        def state_before(self, ts_ns):
            if ts_ns == T0 + 40 * NS:
                trio.from_thread.run_sync(feed.playback.seek, T0 + 50 * NS)
            return Batch(ts=ts_ns)

        @property
        def sources(self):
            return (self,)

    feed = ReplayFeed(Slow())
    send, receive = trio.open_memory_channel(math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        await reading.wait()
        feed.playback.seek(T0 + 40 * NS)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert begun == [T0] + 3 * [T0 + 50 * NS]
    events = [receive.receive_nowait() for _ in range(receive.statistics().current_buffer_used)]
    told = [event.kind if isinstance(event, Marker) else len(event) for event in events]
    assert told == ["epoch", "epoch", "epoch", 3, "end"]


# --- what goes wrong


async def test_a_bad_row_ends_the_feed_with_the_error_itself(tmp_path, autojump_clock):
    recording = recorded(tmp_path, trades=[0, 1], quotes=[0])
    (tmp_path / "r.trades.parquet").write_bytes(b"gone bad")
    with pytest.raises(RecordingError, match=r"r\.trades\.parquet: cannot be read") as caught:
        await ReplayFeed(recording).run(trio.open_memory_channel(10)[0])
    assert caught.value.__cause__ is not None  # pyarrow's own words, for the log


async def test_a_closed_channel_ends_the_feed_with_that_error_itself(tmp_path, autojump_clock):
    send, receive = trio.open_memory_channel(1)
    feed = ReplayFeed(recorded(tmp_path, trades=[0, 1]))
    async with trio.open_nursery() as nursery:

        async def run():
            with pytest.raises(trio.BrokenResourceError):
                await feed.run(send)

        nursery.start_soon(run)
        await receive.receive()
        receive.close()


async def test_a_cancel_leaves_no_file_open(tmp_path, autojump_clock):
    closed = []

    class Watched:
        name, instruments, start_ns, end_ns = "w", ONE, T0, T0 + 1000 * NS

        def trades(self, from_ns):
            try:
                for second in itertools.count():
                    yield rows_at(Trades, [T0 + second * NS], [second])
            finally:
                closed.append("trades")

        def quotes(self, from_ns):
            yield from ()

        levels = quotes

        @property
        def sources(self):
            return (self,)

    send, receive = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ReplayFeed(Watched()).run, send)
        for _ in range(10):
            await receive.receive()
        nursery.cancel_scope.cancel()
    assert closed == ["trades"]


async def test_reading_runs_ahead_by_one_chunk_only(tmp_path, autojump_clock):
    read = []

    class Counting:
        name, instruments, start_ns, end_ns = "c", ONE, T0, T0 + 100 * NS

        def trades(self, from_ns):
            for second in range(100):
                read.append(second)
                yield rows_at(Trades, [T0 + second * NS], [second])

        def quotes(self, from_ns):
            yield from ()

        levels = quotes

        @property
        def sources(self):
            return (self,)

    send, receive = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ReplayFeed(Counting()).run, send)
        for _ in range(1 + 50):
            await receive.receive()
        # 50 rows have come, one waits in the merge, one beside it, and to cut the latter one more was looked at.
        assert len(read) <= 50 + 3
        nursery.cancel_scope.cancel()


# --- options


def test_options_are_checked_where_they_are_read():
    assert msgspec.convert({"path": "x"}, ReplayOptions) == ReplayOptions(path="x", speed=1.0, loop=False, gap="keep")
    with pytest.raises(msgspec.ValidationError, match="speed 0"):
        msgspec.convert({"path": "x", "speed": 0.0}, ReplayOptions)
    with pytest.raises(msgspec.ValidationError, match="gap 'drop'"):
        msgspec.convert({"path": "x", "gap": "drop"}, ReplayOptions)
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"path": "x", "sped": 1.0}, ReplayOptions)


def test_the_feed_refuses_a_speed_out_of_range(tmp_path):
    with pytest.raises(OptionError, match=r"speed 0\.001"):
        ReplayFeed(recorded(tmp_path, trades=[0]), speed=0.001)
