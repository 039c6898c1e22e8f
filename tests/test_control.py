"""A tape under control: what comes out of the feed while somebody pauses, steps, seeks and changes its speed."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feeds.book import Books
from feeds.clock import NS, cap
from feeds.errors import OptionError
from feeds.instruments import Instrument, Instruments
from feeds.playback import Playback
from feeds.records import CLEAR, LAST, SNAPSHOT, Batch, Levels, Marker, Trades
from feeds.replay import ReplayFeed
from feeds.store import open_recording

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"
real = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not here")

T0 = 1_700_000_000 * NS
ONE = Instruments([Instrument(symbol="A", base="A", quote="", price_precision=2, qty_precision=0)])


def rows_at(table, instants, flags=LAST):
    columns = {name: np.ones(len(instants), dtype) for name, dtype in table.DTYPES.items()}
    columns |= {"ts_recv": np.array(instants, np.int64), "seq": np.arange(len(instants))}
    columns |= {"instrument": np.zeros(len(instants), np.int32), "flags": np.full(len(instants), flags, np.uint8)}
    return table(**columns)


class Tape:
    """Trades at these seconds, in memory; its state at an instant is a row that says nothing but when."""

    name, instruments = "tape", ONE

    def __init__(self, seconds, chunk=3):
        self.instants = [T0 + round(s * NS) for s in sorted(seconds)]
        self.start_ns, self.end_ns = self.instants[0], self.instants[-1]
        self._chunk = chunk

    @property
    def sources(self):
        return (self,)

    def trades(self, from_ns=None):
        rows = rows_at(Trades, self.instants)
        rows = rows.slice(int(rows.ts_recv.searchsorted(from_ns)), len(rows))
        for at in range(0, len(rows), self._chunk):
            yield rows.slice(at, min(at + self._chunk, len(rows)))

    def quotes(self, from_ns=None):
        return iter(())

    def levels(self, from_ns=None):
        return iter(())

    def state_before(self, ts_ns):
        levels = rows_at(Levels, [ts_ns], SNAPSHOT | LAST)
        levels.action[:] = CLEAR
        return Batch(ts=ts_ns, levels=levels)


class Listener:
    """Runs a feed and keeps what it says, with the seconds since the start."""

    def __init__(self, feed):
        self.feed = feed
        self.playback = feed.playback
        self.seen = []

    async def run(self):
        send, receive = trio.open_memory_channel(0)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feed, send)
            async for event in receive:
                self.seen.append((trio.current_time() - start, event))

    async def _feed(self, send):
        async with send:
            await self.feed.run(send)

    def said(self):
        """What came since the last call: markers by kind, states as "state", rows as tape seconds."""
        seen, self.seen = self.seen, []
        said = []
        for at, event in seen:
            if isinstance(event, Marker):
                said.append((at, event.kind))
            elif len(event.levels):
                said.append((at, "state"))
            else:
                said.append((at, ((event.trades.ts_recv - T0) / NS).tolist()))
        return said


async def settled():
    """Let everybody do what they can do without time passing."""
    await trio.sleep(1e-6)


@pytest.fixture(autouse=True)
def reading_takes_no_time(monkeypatch):
    """Read without a thread: the virtual clock does not wait for one."""

    async def at_once(function, *args, limiter=None):
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)


@pytest.fixture
async def listening(nursery):
    def listen(seconds, **options):
        listener = Listener(ReplayFeed(Tape(seconds), hold_end=True, **options))
        nursery.start_soon(listener.run)
        return listener

    yield listen
    nursery.cancel_scope.cancel()


def rounded(said):
    return [(round(at, 3), what) for at, what in said]


async def test_a_pause_stops_the_clock(listening, autojump_clock):
    desk = listening(range(10))
    await trio.sleep(2.5)
    desk.playback.pause()
    await trio.sleep(100)
    assert desk.playback.state == "paused"
    desk.playback.resume()
    await trio.sleep(1)
    assert rounded(desk.said()) == [(0, "epoch"), (0, [0]), (1, [1]), (2, [2]), (103, [3])]


async def test_the_speed_changes_from_where_the_tape_is(listening, autojump_clock):
    desk = listening(range(10))
    await trio.sleep(1.5)
    desk.playback.set_speed(0.5)
    await trio.sleep(1.25)  # now at 2.125 s of tape
    desk.playback.pause()
    desk.playback.set_speed(10_000.0)
    await trio.sleep(10)
    assert rounded(desk.said()) == [(0, "epoch"), (0, [0]), (1, [1]), (2.5, [2])]
    desk.playback.set_speed(2.0)
    desk.playback.resume()
    await trio.sleep(1.25)
    assert rounded(desk.said()) == [(13.188, [3]), (13.688, [4])]


async def test_from_infinite_speed_the_tape_goes_on_from_its_last_row(listening, autojump_clock):
    desk = listening([0, 1, 2, 60], speed=math.inf, start_paused=True)
    await settled()
    desk.playback.step(2)
    await settled()
    desk.playback.set_speed(1.0)
    desk.playback.resume()
    await trio.sleep(2)
    assert [what for _, what in desk.said()] == ["epoch", [0], [1], [2]]


async def test_a_silence_is_shortened_once_however_often_it_is_disturbed(listening, autojump_clock):
    desk = listening([0, 100, 200], gap=cap(10))
    for _ in range(4):
        await trio.sleep(1)
        desk.playback.set_speed(1.0)
        desk.playback.pause()
        desk.playback.resume()
    await trio.sleep(20)
    assert rounded(desk.said()) == [(0, "epoch"), (0, [0]), (10, [100]), (20, [200]), (20, "end")]


async def test_steps_are_events_and_take_no_time(listening, autojump_clock):
    desk = listening([0, 1, 1, 1, 7, 9], start_paused=True)
    await trio.sleep(1)
    desk.playback.step()
    await settled()
    assert rounded(desk.said()) == [(0, "epoch"), (1, [0])]
    desk.playback.step(2)
    await settled()
    assert rounded(desk.said()) == [(1, [1, 1, 1]), (1, [7])]
    desk.playback.resume()
    await trio.sleep(2.5)
    assert rounded(desk.said()) == [(3, [9]), (3, "end")]


async def test_stepping_until_an_instant_tells_all_before_it(listening, autojump_clock):
    desk = listening(range(10), start_paused=True)
    await settled()
    desk.playback.step_until(T0 + 4 * NS)
    await settled()
    assert [what for _, what in desk.said()[1:]] == [[0, 1], [2, 3]]
    desk.playback.resume()
    await settled()
    assert [what for _, what in desk.said()] == []  # 4 s is due a second after 3 s


async def test_commands_in_one_breath_are_done_in_their_order(listening, autojump_clock):
    desk = listening(range(10), start_paused=True)
    await settled()
    desk.playback.seek(T0 + 3 * NS)
    desk.playback.step_until(T0 + 5 * NS)
    desk.playback.step()
    await settled()
    assert [what for _, what in desk.said()] == ["epoch", "epoch", "state", [3, 4], [5]]


async def test_a_seek_is_an_epoch_with_the_state_of_the_market(listening, autojump_clock):
    desk = listening(range(10))
    await trio.sleep(1.5)
    desk.playback.seek(T0 + 7 * NS)
    await trio.sleep(1.5)
    assert rounded(desk.said()) == [
        *((0, "epoch"), (0, [0]), (1, [1])),
        *((1.5, "epoch"), (1.5, "state"), (1.5, [7]), (2.5, [8])),
    ]


async def test_a_seek_while_paused_shows_the_state_and_stays(listening, autojump_clock):
    desk = listening(range(10), start_paused=True)
    await trio.sleep(1)
    desk.playback.seek(T0 + 5 * NS)
    await trio.sleep(50)
    assert [what for _, what in desk.said()] == ["epoch", "epoch", "state"]
    assert desk.playback.statistics().position_ns == T0 + 5 * NS
    desk.playback.step()
    await settled()
    assert [what for _, what in desk.said()] == [[5]]


async def test_after_the_end_a_seek_plays_again_and_a_stop_returns(listening, autojump_clock):
    desk = listening(range(3))
    await trio.sleep(10)
    assert desk.playback.state == "ended"
    desk.said()
    desk.playback.seek(T0 + NS)
    await trio.sleep(10)
    assert [what for _, what in desk.said()] == ["epoch", "state", [1], [2], "end"]
    desk.playback.seek(T0)
    await settled()
    desk.playback.stop()
    await settled()
    assert [what for _, what in desk.said()] == ["epoch", [0], "end"]


async def test_a_seek_to_the_start_needs_no_state(listening, autojump_clock):
    desk = listening(range(3), start_paused=True)
    await settled()
    desk.playback.seek(0)
    await settled()
    assert [what for _, what in desk.said()] == ["epoch", "epoch"]


async def test_a_part_of_a_tape_begins_with_its_state_and_loops(listening, autojump_clock):
    desk = listening(range(10), from_ns=T0 + 3 * NS, to_ns=T0 + 5 * NS, loop=True)
    await trio.sleep(1.5)
    assert [what for _, what in desk.said()] == ["epoch", "state", [3], [4], "epoch", "state", [3]]
    now = desk.playback.statistics()
    assert (now.start_ns, now.end_ns, now.passes) == (T0 + 3 * NS, T0 + 5 * NS - 1, 2)


async def test_a_venues_event_is_not_divided_by_a_step(autojump_clock):
    class Packets(Tape):
        """An event of two rows a millisecond apart, after one whose row is flagged LAST."""

        def trades(self, from_ns=None):
            return iter(())

        def levels(self, from_ns=None):
            rows = rows_at(Levels, self.instants)
            rows.flags[1] = 0
            yield rows

    feed = ReplayFeed(Packets([0, 1, 1.001, 2]), start_paused=True)
    send, receive = trio.open_memory_channel(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        counts = []
        for _ in range(3):
            feed.playback.step()
            await settled()
            counts.append(receive.statistics().current_buffer_used)
        nursery.cancel_scope.cancel()
    assert counts == [2, 4, 5]  # after the marker one event, one of two rows, one


async def test_a_command_takes_effect_between_two_batches_of_bounded_size(autojump_clock):
    feed = ReplayFeed(Tape(np.arange(100_000) / 1000, chunk=65_536), speed=math.inf, hold_end=True)
    send, receive = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        await receive.receive()
        first = await receive.receive()
        assert len(first) == 8_192
        await settled()  # the feed waits with its second batch: that much it had taken when the command came
        feed.playback.pause()
        assert len(await receive.receive()) == 8_192
        await trio.sleep(10)
        assert receive.statistics().tasks_waiting_send == 0
        feed.playback.seek(T0)
        assert (await receive.receive()).kind == "epoch"
        feed.playback.stop()
        assert (await receive.receive()).kind == "end"


async def test_a_paced_tape_that_is_far_behind_catches_up_in_bounded_batches(autojump_clock):
    feed = ReplayFeed(Tape(np.arange(30_000) / 1000, chunk=65_536))
    send, receive = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        await receive.receive()
        await receive.receive()
        await trio.sleep(60)
        sizes = []
        while isinstance(event := await receive.receive(), Batch):
            sizes.append(len(event))
    assert sum(sizes) == 29_999
    assert max(sizes) == 8_192


async def test_a_stop_does_not_wait_for_the_first_listener(listening, autojump_clock):
    desk = listening(range(3), wait_start=trio.sleep_forever)
    await trio.sleep(1)
    assert desk.playback.state == "waiting"
    desk.playback.seek(T0 + NS)
    await trio.sleep(1)
    desk.playback.stop()
    await settled()
    assert rounded(desk.said()) == [(0, "epoch"), (2, "end")]


def test_a_part_that_is_empty_is_refused():
    with pytest.raises(OptionError, match="nothing between 'from' and 'to'"):
        ReplayFeed(Tape([0, 1]), from_ns=T0 + 2 * NS)
    with pytest.raises(OptionError, match="nothing between"):
        ReplayFeed(Tape([0, 1]), from_ns=T0 + 1, to_ns=T0 + 1)


# --- any sequence of commands

INSTANT = st.integers(-2, 22).map(lambda half: T0 + half * NS // 2)
COMMAND = st.one_of(
    st.just(Playback.pause),
    st.just(Playback.resume),
    INSTANT.map(lambda ts: lambda playback: playback.seek(ts)),
    INSTANT.map(lambda ts: lambda playback: playback.step_until(ts)),
    st.integers(1, 4).map(lambda n: lambda playback: playback.step(n)),
    st.sampled_from([0.01, 1.0, 7.0, 10_000.0, math.inf]).map(lambda x: lambda playback: playback.set_speed(x)),
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seconds=st.lists(st.integers(0, 20).map(lambda half: half / 2), min_size=1, max_size=12),
    commands=st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0, 2.5]), COMMAND), max_size=8),
    paused=st.booleans(),
    gap=st.sampled_from([cap(1.0), cap(100.0)]),
)
def test_whatever_is_commanded_the_rows_are_those_of_the_tape_from_the_last_seek_on(seconds, commands, paused, gap):
    async def main():
        listener = Listener(ReplayFeed(Tape(seconds), hold_end=True, start_paused=paused, gap=gap))
        playback = listener.playback
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.run)
            await settled()
            for delay, command in commands:
                await trio.sleep(delay)
                command(playback)
            playback.set_speed(1.0)
            playback.resume()
            await trio.sleep(10_000)
            assert playback.state == "ended"
            playback.stop()
        return [event for _, event in listener.seen]

    events = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    tape = Tape(seconds).instants
    begins = [i for i, event in enumerate(events) if isinstance(event, Marker) and event.kind == "epoch"]
    assert begins[0] == 0
    for begin, end in pairwise([*begins, len(events)]):
        ts_ns = events[begin].ts
        batches = [event for event in events[begin + 1 : end] if isinstance(event, Batch)]
        if ts_ns > tape[0]:
            state = batches.pop(0)
            assert (state.ts, len(state.levels), len(state.trades)) == (ts_ns, 1, 0)
        rows = [ts for batch in batches for ts in batch.trades.ts_recv.tolist()]
        following = [ts for ts in tape if ts >= ts_ns]
        assert rows == following[: len(rows)]
        assert all(a[-1] < b[0] for a, b in pairwise([batch.trades.ts_recv for batch in batches]))
    assert rows == following


# --- a real tape


@real
@pytest.mark.parametrize("name", ["binance_spot_20240808", "cme_ESH4_20231225"])
async def test_after_a_seek_the_books_are_those_of_the_whole_tape(autojump_clock, name):
    recording = open_recording(RECORDINGS / name)
    ts_ns = recording.end_ns - 5 * NS
    feed = ReplayFeed(recording, speed=math.inf, start_paused=True)
    feed.playback.seek(ts_ns)
    feed.playback.resume()
    send, receive = trio.open_memory_channel(math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        events = [await receive.receive()]
        while not (isinstance(events[-1], Marker) and events[-1].kind == "end"):
            events.append(await receive.receive())
    sought, whole = Books(), Books()
    last_epoch = max(i for i, event in enumerate(events) if isinstance(event, Marker) and event.kind == "epoch")
    for event in events[last_epoch + 1 : -1]:
        for _ in sought.apply(event.levels):
            pass
    for levels in recording.levels():
        for _ in whole.apply(levels):
            pass
    for i in range(len(recording.instruments)):
        assert sorted(sought.rows(i)) == sorted(whole.rows(i))
        assert len(sought.rows(i)) > 100
