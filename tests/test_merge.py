"""The merge of tables by time, of one recording and of several, and where events end."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.clock import NS
from feeds.merge import Events, Merge, whole_instants
from feeds.records import LAST, SNAPSHOT, Batch, Levels, Quotes, Trades


def rows_at(table, ts, seq):
    """A table with rows at the given instants and sequence numbers."""
    columns = {name: np.ones(len(ts), dtype) for name, dtype in table.DTYPES.items()}
    columns |= {"ts_recv": np.array(ts, np.int64), "seq": np.array(seq, np.int64)}
    return table(**columns)


def test_chunks_are_cut_between_instants():
    chunks = [rows_at(Trades, ts, range(len(ts))) for ts in ([1, 2, 2], [2], [], [2, 3], [3, 4])]
    assert [c.ts_recv.tolist() for c in whole_instants(chunks)] == [[1], [2, 2, 2, 2], [3, 3], [4]]


def test_no_chunks_no_instants():
    assert list(whole_instants([])) == []
    assert list(whole_instants([Trades.empty()])) == []


def loaded(trades=(), quotes=(), levels=()):
    merge = Merge()
    for source, table, ts in (
        (merge.trades[0], Trades, trades),
        (merge.quotes[0], Quotes, quotes),
        (merge.levels[0], Levels, levels),
    ):
        assert source.hungry
        source.load(rows_at(table, ts, range(len(ts))) if ts else None)
    return merge


def parts(batch):
    return tuple(table.ts_recv.tolist() for table in (batch.trades, batch.quotes, batch.levels))


def test_merge_takes_what_is_due_from_every_table():
    merge = loaded(trades=[1, 5], quotes=[2, 5], levels=[3, 5, 9])
    assert merge.next_ns() == 1
    batch = merge.take(4)
    assert parts(batch) == ([1], [2], [3])
    assert batch.ts == 3  # not 4: the same whenever it is asked
    assert merge.next_ns() == 5


def test_merge_stops_where_a_table_must_be_loaded_first():
    merge = loaded(trades=[1, 5], quotes=[2, 3, 8, 9])
    assert parts(merge.take(100)) == ([1, 5], [2, 3], [])
    assert merge.trades[0].hungry
    assert not merge.quotes[0].hungry
    merge.trades[0].load(rows_at(Trades, [6], [2]))
    assert parts(merge.take(100)) == ([6], [], [])
    merge.trades[0].load(None)
    assert parts(merge.take(100)) == ([], [8, 9], [])
    merge.quotes[0].load(None)
    assert merge.next_ns() is None


@pytest.mark.parametrize(("rows", "instant"), [(1, 1), (2, 2), (3, 5), (4, 5), (5, 5), (6, 9), (99, 9)])
def test_instant_after_so_many_rows(rows, instant):
    assert loaded(trades=[1, 5], quotes=[2, 5], levels=[5, 9]).within(9, rows) == instant


@pytest.mark.parametrize(("upto", "instant"), [(4, 4), (19, 19), (21, 10), (35, 10), (11, 11)])
def test_instant_before_a_silence_is_found_across_tables(upto, instant):
    # Silent from 10 to 21 only: at 12 to 30 one table is silent while another is not.
    assert loaded(trades=[1, 10, 30], quotes=[2, 8, 21, 40]).before_silence(upto, 10) == instant


# --- several recordings

KINDS = (Trades, Quotes, Levels)
#: Of each source by kind its instants; seq counts in their order, ties broken by kind.
SOURCE = st.tuples(*[st.lists(st.integers(0, 12), max_size=6).map(sorted) for _ in KINDS])


@given(sources=st.lists(SOURCE, min_size=2, max_size=3), cuts=st.lists(st.integers(0, 12), max_size=4).map(sorted))
def test_rows_of_several_sources_come_in_the_total_order(sources, cuts):
    merge, expected = Merge(len(sources)), []
    for rank, source in enumerate(sources):
        events = sorted((ts, kind) for kind, instants in enumerate(source) for ts in instants)
        expected += [(ts, rank, seq, kind) for seq, (ts, kind) in enumerate(events)]
        for kind, tracks in enumerate((merge.trades, merge.quotes, merge.levels)):
            own = [(ts, seq) for seq, (ts, k) in enumerate(events) if k == kind]
            tracks[rank].load(rows_at(KINDS[kind], *zip(*own, strict=True)) if own else None)
    expected.sort()
    seen = []
    for cut in [*cuts, 99]:
        while (next_ns := merge.next_ns()) is not None and next_ns <= cut:
            batch = merge.take(cut)
            for kind, table in enumerate((batch.trades, batch.quotes, batch.levels)):
                assert all(a < b for a, b in pairwise(table.seq.tolist()))
                seen += [(seq, ts, kind) for seq, ts in zip(table.seq.tolist(), table.ts_recv.tolist(), strict=True)]
            for track in merge.tracks:
                if track.hungry:
                    track.load(None)
    assert sorted(seen) == [(n, ts, kind) for n, (ts, _, _, kind) in enumerate(expected)]


# --- events


def instant(ts, *rows):
    """A batch of book rows, each (instrument, flags)."""
    levels = rows_at(Levels, [ts] * len(rows), range(len(rows)))
    instrument, flags = zip(*rows, strict=True)
    levels.instrument[:], levels.flags[:] = instrument, flags
    return Batch(ts=ts, levels=levels)


def marking(*instruments):
    """Events that has seen these instruments flag LAST."""
    events = Events(3)
    events.watch(instant(0, *((i, LAST) for i in instruments)).levels)
    return events


def test_an_event_goes_on_until_its_last_row():
    events = marking(0, 1)
    steps = [
        instant(1, (0, 0)),
        instant(2, (1, 0)),
        instant(3, (0, LAST)),
        instant(4, (1, LAST)),
        instant(5, (0, LAST)),
    ]
    assert [events.ends_with(step) for step in steps] == [False, False, False, True, True]


def test_an_instant_without_book_rows_is_an_event():
    assert marking(0).ends_with(Batch(ts=1, trades=rows_at(Trades, [1], [1])))


def test_who_never_marks_the_last_row_has_an_event_an_instant():
    events = Events(3)
    assert events.ends_with(instant(1, (0, 0)))
    events.watch(instant(2, (0, SNAPSHOT | LAST)).levels)  # a snapshot's mark says nothing about updates
    assert events.ends_with(instant(3, (0, 0)))
    assert events.ends_with(instant(4, (0, LAST)))
    assert not events.ends_with(instant(5, (0, 0)))


def test_a_snapshot_leaves_nothing_open():
    assert marking(0).ends_with(instant(1, (0, SNAPSHOT)))


def test_an_event_that_lost_its_end_ends_all_the_same():
    events = marking(0)
    assert [events.ends_with(instant(ts, (0, 0))) for ts in (1, NS, NS + 1, NS + 2)] == [False, False, True, False]
