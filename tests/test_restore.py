"""The state of a market at an instant: whatever lies before it, it is what playing from the start leaves."""

import bisect
import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feeds import layout
from feeds.book import Books
from feeds.instruments import Instrument, Instruments
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


def played(recording, ts_ns):
    """Books and last quotes after all rows before an instant, in the slow and certain way."""
    books, quotes = Books(), {}
    for levels in recording.levels():
        for _ in books.apply(levels.slice(0, int(levels.ts_recv.searchsorted(ts_ns)))):
            pass
    for table in recording.quotes():
        rows = table.slice(0, int(table.ts_recv.searchsorted(ts_ns)))
        columns = (rows.instrument, rows.ts_event, rows.bid_px, rows.bid_qty, rows.ask_px, rows.ask_qty)
        quotes |= {i: row for i, *row in zip(*(c.tolist() for c in columns), strict=True)}
    return book_states(books, len(recording.instruments)), quotes


def restored(recording, ts_ns):
    """The same from the rows that restate it, which are checked as what they claim to be."""
    state = recording.state_before(ts_ns)
    levels, quotes = state.levels, state.quotes
    assert state.ts == ts_ns
    assert not len(state.trades)
    assert set(levels.ts_recv.tolist() + quotes.ts_recv.tolist()) <= {ts_ns}
    assert np.concatenate((levels.seq, quotes.seq)).tolist() == list(range(-len(state), 0))
    assert (levels.flags & SNAPSHOT).all()
    for _, rows in itertools.groupby(range(len(levels)), key=levels.instrument.tolist().__getitem__):
        first, *others = list(rows)
        assert levels.action[first] == CLEAR
        assert [bool(f & LAST) for f in levels.flags[[first, *others]]] == [False] * len(others) + [True]
    books = Books()
    events = list(books.apply(levels))
    assert all(e.snapshot for e in events)
    assert len({e.instrument for e in events}) == len(events)
    columns = (quotes.instrument, quotes.ts_event, quotes.bid_px, quotes.bid_qty, quotes.ask_px, quotes.ask_qty)
    last = {i: row for i, *row in zip(*(c.tolist() for c in columns), strict=True)}
    assert len(last) == len(quotes)
    return book_states(books, len(recording.instruments)), last


@real
@pytest.mark.parametrize("name", ["binance_spot_20240808", "cme_ESH4_20231225", "cme_ESU4_20240701"])
def test_any_instant_of_a_real_tape_is_what_playing_there_leaves(name):
    recording = open_recording(RECORDINGS / name)
    middle = [int(t) for t in np.linspace(recording.start_ns, recording.end_ns, 7)[1:-1]]
    for ts_ns in (recording.start_ns, recording.start_ns + 1, *middle, recording.end_ns, recording.end_ns + 1):
        assert restored(recording, ts_ns) == played(recording, ts_ns)


@real
def test_a_crossed_book_before_an_opening_is_restored_as_it_is():
    recording = open_recording(RECORDINGS / "cme_ESH4_20231225")
    ts_ns = int(np.datetime64("2023-12-25T22:59", "ns").astype(np.int64))
    books = Books()
    for _ in books.apply(recording.state_before(ts_ns).levels):
        pass
    assert books[0].crossed


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
    for offset in at:  # one after another, so that what was seen of row groups is used again
        assert restored(recording, T0 + offset) == played(recording, T0 + offset)
