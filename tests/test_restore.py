"""The state of a market at an instant: whatever lies before it, it is what playing from the start leaves."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feeds import layout
from feeds.book import Books
from feeds.errors import RecordingError
from feeds.instruments import Instrument, Instruments
from feeds.keyframes import Keyframes
from feeds.records import (
    ADD,
    BUY,
    CANCEL,
    CLEAR,
    GAP,
    LAST,
    MISSING,
    MODIFY,
    NO_SIDE,
    SELL,
    SET,
    SNAPSHOT,
    Levels,
    Quotes,
)
from feeds.replay import ReplayFeed
from feeds.store import open_recording, write_recording

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"
real = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not here")

T0 = 1_700_000_000_000_000_000
SYMBOLS = "ABC"
THREE = Instruments([Instrument(symbol=s, base=s, quote="", price_precision=0, qty_precision=0) for s in SYMBOLS])


def table(kind, rows):
    """A table of tuples in the order of the table's columns."""
    columns = zip(*rows, strict=True) if rows else [[] for _ in kind.DTYPES]
    return kind(**{n: np.array(c, d) for (n, d), c in zip(kind.DTYPES.items(), columns, strict=True)})


def put(folder, kind, rows, group):
    """Write one table with row groups of so many rows."""
    path = folder / f"r.{kind}.parquet"
    path.unlink(missing_ok=True)
    if rows:
        whole = layout.encode(kind, table(layout.TABLES[kind], rows), THREE, "TEST")
        pq.write_table(whole, path, row_group_size=group)


def book_states(books, instruments):
    """All that can be seen of books, orders included."""
    return {
        i: (sorted(rows[1:]), books[i].stale)
        for i in range(instruments)
        if (rows := books.rows(i)) and (len(rows) > 1 or books[i].stale)
    }


def told(quotes):
    columns = (quotes.instrument, quotes.ts_event, quotes.bid_px, quotes.bid_qty, quotes.ask_px, quotes.ask_qty)
    return {i: row for i, *row in zip(*(c.tolist() for c in columns), strict=True)}


def played(recording, instants):
    """Books and last quotes after all rows before each instant, in ascending order, in the slow and certain way."""
    levels, quotes = (Levels.concatenate(list(recording.levels())), Quotes.concatenate(list(recording.quotes())))
    books, states, done = Books(), [], 0
    for ts_ns in instants:
        count = int(levels.ts_recv.searchsorted(ts_ns))
        for _ in books.apply(levels.slice(done, count)):
            pass
        done = count
        last = told(quotes.slice(0, int(quotes.ts_recv.searchsorted(ts_ns))))
        states.append((book_states(books, len(recording.instruments)), last))
    return states


def restored(recording, ts_ns):
    """The same from the rows that restate it, which are checked as what they claim to be."""
    state = recording.state_before(ts_ns)
    levels, quotes = state.levels, state.quotes
    assert state.ts == ts_ns
    assert not len(state.trades)
    assert set(levels.ts_recv.tolist() + quotes.ts_recv.tolist()) <= {ts_ns}
    assert np.concatenate((levels.seq, quotes.seq)).tolist() == list(range(-len(state), 0))
    for _, rows in itertools.groupby(range(len(levels)), key=levels.instrument.tolist().__getitem__):
        places = list(rows)
        flags = levels.flags[places].tolist()
        assert levels.action[places[0]] == CLEAR
        snapshot = [f for f in flags if f & SNAPSHOT]
        assert flags[len(snapshot) :] in ([], [LAST])
        assert [bool(f & LAST) for f in snapshot] == [False] * (len(snapshot) - 1) + [True]
    books = Books()
    events = [e.instrument for e in books.apply(levels) if e.snapshot]
    assert len(set(events)) == len(events)
    assert len(told(quotes)) == len(quotes)
    return book_states(books, len(recording.instruments)), told(quotes)


@real
@pytest.mark.parametrize("name", ["binance_spot_20240808", "cme_ESH4_20231225", "cme_ESU4_20240701"])
def test_any_instant_of_a_real_tape_is_what_playing_there_leaves(name):
    recording = open_recording(RECORDINGS / name)
    start, end = recording.start_ns, recording.end_ns
    instants = [start, start + 1, *(start + (end - start) * share // 10 for share in (2, 5, 9)), end, end + 1]
    assert [restored(recording, ts_ns) for ts_ns in instants] == played(recording, instants)


@real
def test_a_crossed_book_before_an_opening_is_restored_as_it_is():
    recording = open_recording(RECORDINGS / "cme_ESH4_20231225")
    ts_ns = int(np.datetime64("2023-12-25T22:59", "ns").astype(np.int64))
    books = Books()
    for _ in books.apply(recording.state_before(ts_ns).levels):
        pass
    assert books[0].crossed


@real
def test_with_keyframes_what_lies_before_them_is_not_read(tmp_path):
    source = open_recording(RECORDINGS / "binance_spot_20240808")
    keyframes = Keyframes(50_000)
    recording = write_recording(
        tmp_path / "r", source.instruments, (keyframes.add(batch) for batch in ReplayFeed(source).slices())
    )
    ts_ns = recording.end_ns - 60 * 10**9
    expected = played(recording, [ts_ns])
    path = tmp_path / "r.book.parquet"
    content = bytearray(path.read_bytes())
    content[4:1_000] = bytes(996)  # rows of the first row group
    path.write_bytes(content)
    assert [restored(recording, ts_ns)] == expected
    with pytest.raises(RecordingError):
        list(recording.levels())


# Instants come with ties; prices and orders are few, so that rows meet.
LEVEL = st.tuples(st.just(SET), st.sampled_from([BUY, SELL]), st.integers(1, 4), st.integers(0, 3), st.just(0))
ORDER = st.tuples(
    st.sampled_from([ADD, CANCEL, MODIFY]),
    st.sampled_from([BUY, SELL]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
)


@st.composite
def book_events(draw, bare):
    """Rows of one event of one instrument: changes, or a snapshot, which may be bare of its CLEAR, or a loss."""
    by_order = draw(st.booleans())
    rows = draw(st.lists(ORDER if by_order else LEVEL, min_size=1, max_size=4))
    flags = [0] * len(rows)
    if draw(st.integers(0, 3)) == 0:
        flags = [SNAPSHOT] * len(rows)
        if not bare or draw(st.booleans()):
            rows, flags = [(CLEAR, NO_SIDE, MISSING, 0, 0), *rows], [SNAPSHOT, *flags]
    elif draw(st.integers(0, 5)) == 0:
        flags[0] |= GAP
    flags[-1] |= LAST
    return [(flag, *row) for flag, row in zip(flags, rows, strict=True)]


@st.composite
def tapes(draw, bare=True):
    """Rows of a book and of quotes, by levels or by orders per instrument, with seq and ts_recv in order."""
    by_order = draw(st.tuples(*[st.booleans()] * len(SYMBOLS)))
    ts, seq, levels, quotes = T0, 0, [], []
    for _ in range(draw(st.integers(1, 25))):
        ts += draw(st.integers(0, 3))
        i = draw(st.integers(0, len(SYMBOLS) - 1))
        if draw(st.integers(0, 4)) == 0:
            quotes.append((ts, draw(st.sampled_from([MISSING, ts - 5])), seq, i, LAST, 1, seq + 1, 2, seq + 2))
            seq += 1
            continue
        rows = draw(
            book_events(bare).filter(lambda rows, i=i: all((r[5] > 0) == by_order[i] for r in rows if r[1] != CLEAR))
        )
        for flags, *row in rows:
            levels.append((ts, MISSING, seq, i, flags, *row))
            seq += 1
    return levels, quotes


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(tape=tapes(), group=st.integers(1, 9), at=st.lists(st.integers(0, 80), min_size=1, max_size=4))
def test_any_instant_of_any_tape_is_what_playing_there_leaves(tmp_path_factory, tape, group, at):
    folder = tmp_path_factory.mktemp("r")
    put(folder, "book", tape[0], group)
    put(folder, "quotes", tape[1], group)
    recording = open_recording(folder)
    expected = dict(zip(sorted(at), played(recording, [T0 + offset for offset in sorted(at)]), strict=True))
    for offset in at:  # one after another, so that what was seen of row groups is used again
        assert restored(recording, T0 + offset) == expected[offset]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(tape=tapes(), at=st.integers(0, 80))
def test_what_follows_the_restored_state_leads_where_the_whole_tape_leads(tmp_path_factory, tape, at):
    """Caught in the act: a snapshot of the tape, without CLEAR, was taken for the rest of the restored one."""
    folder = tmp_path_factory.mktemp("r")
    put(folder, "book", tape[0], 4)
    put(folder, "quotes", tape[1], 4)
    recording = open_recording(folder)
    books = Books()
    for levels in (recording.state_before(T0 + at).levels, *recording.levels(T0 + at)):
        for _ in books.apply(levels):
            pass
    assert book_states(books, len(recording.instruments)) == played(recording, [recording.end_ns + 1])[0][0]


def test_a_book_without_rows_is_restored_as_nothing(tmp_path):
    pq.write_table(layout.SCHEMAS["book"].empty_table(), tmp_path / "r.book.parquet")
    put(tmp_path, "quotes", [(T0, MISSING, 0, 0, LAST, 1, 2, 3, 4)], 4)
    recording = open_recording(tmp_path)
    state = recording.state_before(T0 + 1)
    assert (len(state.levels), len(state.quotes)) == (0, 1)


async def test_a_cancel_does_not_wait_for_the_whole_book(tmp_path, monkeypatch):
    rows = [(T0 + i, MISSING, i, 0, LAST, ADD, BUY, 1, 1, i + 1) for i in range(500)]
    put(tmp_path, "book", rows, 1)
    recording, decode, seen = open_recording(tmp_path), layout.Decoder.decode, []

    def cancelled_soon(decoder, batch):
        seen.append(batch.num_rows)
        if len(seen) == 3:
            trio.from_thread.run_sync(scope.cancel)
        return decode(decoder, batch)

    monkeypatch.setattr(layout.Decoder, "decode", cancelled_soon)
    with trio.CancelScope() as scope:
        await trio.to_thread.run_sync(recording.state_before, T0 + 500)
    assert scope.cancelled_caught
    assert len(seen) <= 3
