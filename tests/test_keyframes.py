"""Keyframes: a reader that begins at one knows every book, and one that begins at the start sees nothing new."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.book import Books
from feeds.keyframes import SPARSE, Keyframes
from feeds.records import (
    ADD,
    BUY,
    CANCEL,
    CLEAR,
    GAP,
    LAST,
    MISSING,
    NO_SIDE,
    SELL,
    SET,
    SNAPSHOT,
    Batch,
    Levels,
    Quotes,
    Trades,
)
from feeds.replay import ReplayFeed
from feeds.simulate import SimulatedFeed, SimulationOptions
from feeds.store import open_recording

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"
real = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not here")

SIMULATED = list(itertools.islice(SimulatedFeed(SimulationOptions(rate=300.0, start_ns=10**18)).windows(), 400))
TABLES = {"trades": Trades, "quotes": Quotes, "levels": Levels}


def whole(batches):
    batches = list(batches)
    tables = {name: kind.concatenate([getattr(b, name) for b in batches]) for name, kind in TABLES.items()}
    return Batch(ts=batches[-1].ts, **tables)


def keyed(batches, every_rows):
    keyframes = Keyframes(every_rows)
    return whole(keyframes.add(batch) for batch in batches)


def same(a, b):
    pairs = [(getattr(a, name).columns(), getattr(b, name).columns()) for name in TABLES]
    return all(np.array_equal(x[column], y[column]) for x, y in pairs for column in x)


def recut(batch, instants):
    """Cut a batch after some of its instants."""
    tables = [batch.trades, batch.quotes, batch.levels]
    bounds = [[0, *np.searchsorted(t.ts_recv, instants, side="right").tolist(), len(t)] for t in tables]
    for i in range(len(instants) + 1):
        pieces = [t.slice(b[i], b[i + 1]) for t, b in zip(tables, bounds, strict=True)]
        yield Batch(ts=batch.ts, **dict(zip(TABLES, pieces, strict=True)))


def added(before, after):
    """Return which book rows of ``after`` were added; the rest is ``before``, in its order."""
    extra = np.zeros(len(after.levels), bool)
    i = 0
    columns = [c for name, c in after.levels.columns().items() if name != "seq"]
    originals = [c for name, c in before.levels.columns().items() if name != "seq"]
    for at, row in enumerate(zip(*columns, strict=True)):
        if i < len(before.levels) and row == tuple(c[i] for c in originals):
            i += 1
        else:
            extra[at] = True
    assert i == len(before.levels)
    return extra


def tops(books, instruments):
    return {i: (books[i].top(BUY, 2000), books[i].top(SELL, 2000)) for i in instruments}


def states(levels, start=0):
    """Return the books of all instruments after each event, by the row that ends it."""
    books, seen = Books(), {}
    instruments = sorted(set(levels.instrument.tolist()))
    for at in range(start, len(levels)):
        for event in books.apply(levels.slice(at, at + 1)):
            seen[at] = (event.instrument, tops(books, instruments)[event.instrument])
    return seen


def test_nothing_but_keyframes_is_added_and_the_order_stays():
    before, after = whole(SIMULATED), keyed(SIMULATED, 200)
    extra = added(before, after)
    assert 300 < extra.sum() < len(before.levels)
    assert (after.levels.flags[extra] & SNAPSHOT).all()
    for name in ("trades", "quotes"):
        columns, originals = getattr(after, name).columns(), getattr(before, name).columns()
        assert all(np.array_equal(columns[c], originals[c]) for c in columns if c != "seq")
    seq = np.sort(np.concatenate([getattr(after, name).seq for name in TABLES]))
    assert np.array_equal(seq, np.arange(1, len(seq) + 1))  # as without them: no number twice, none left out
    order = np.argsort(np.concatenate([getattr(after, name).seq for name in TABLES]))
    times = np.concatenate([getattr(after, name).ts_recv for name in TABLES])[order]
    assert (np.diff(times) >= 0).all()


def test_without_a_keyframe_a_batch_is_as_it_was():
    assert same(keyed(SIMULATED, 10**9), whole(SIMULATED))


def starts(levels):
    """Return the rows at which a snapshot of every book begins."""
    clear = np.flatnonzero((levels.action == CLEAR) & (levels.flags & SNAPSHOT != 0))
    _, first, count = np.unique(levels.ts_recv[clear], return_index=True, return_counts=True)
    return clear[first[count == len(set(levels.instrument.tolist()))]].tolist()


def assert_the_same_books_from_every_keyframe(levels, least):
    from_start = states(levels)
    begun = starts(levels)
    assert len(begun) >= least
    for start in begun:
        stop = start + 1500
        part = states(levels.slice(0, min(stop, len(levels))), start)
        assert part
        known = {at: state for at, state in from_start.items() if start <= at < stop}
        assert part == known


def test_books_are_the_same_from_any_keyframe_on():
    assert_the_same_books_from_every_keyframe(keyed(SIMULATED, 200).levels, least=3)


def levels_of(*rows):
    """Rows are (ts, flags, action, side, price, qty, order id) of instrument 0."""
    ts, flags, action, side, price, qty, order_id = zip(*rows, strict=True)
    n = len(rows)
    values = {
        "ts_recv": ts, "ts_event": [MISSING] * n, "seq": range(1, n + 1), "instrument": [0] * n, "flags": flags,
        "action": action, "side": side, "price": price, "qty": qty, "order_id": order_id,
    }  # fmt: skip
    return Levels(**{name: np.array(list(values[name]), dtype) for name, dtype in Levels.DTYPES.items()})


def test_a_book_by_order_is_kept_by_order():
    rows = [(1, SNAPSHOT, CLEAR, NO_SIDE, MISSING, 0, 0), (1, SNAPSHOT | LAST, ADD, BUY, 100, 5, 7)]
    rows += [(t, LAST, ADD, SELL, 110 + t, 3, 10 + t) for t in range(2, 20)]
    rows += [(20, LAST, CANCEL, BUY, 100, 2, 7)]
    after = keyed([Batch(ts=20, levels=levels_of(*rows))], 5).levels
    (start, *_) = [at for at in starts(after) if at]
    keyframe = after.slice(start, len(after))
    assert keyframe.action[:3].tolist() == [CLEAR, ADD, ADD]
    assert keyframe.order_id[:3].tolist() == [0, 7, 12]
    books = Books()
    list(books.apply(keyframe))
    assert books[0].best_bid == (100, 3)


def test_a_keyframe_waits_for_the_end_of_an_event_over_several_instants():
    rows = [(1, SNAPSHOT | LAST, CLEAR, NO_SIDE, MISSING, 0, 0), (2, 0, SET, BUY, 100, 5, 0)]
    rows += [(3, 0, SET, BUY, 101, 5, 0), (4, LAST, SET, BUY, 102, 5, 0)]
    after = keyed([Batch(ts=4, levels=levels_of(*rows))], 2).levels
    assert after.ts_recv[after.flags & SNAPSHOT != 0].tolist() == [1, 4, 4, 4, 4]


def test_a_stale_book_is_in_no_keyframe_before_its_own_snapshot():
    rows = [(1, SNAPSHOT | LAST, CLEAR, NO_SIDE, MISSING, 0, 0), (2, LAST | GAP, SET, BUY, 100, 5, 0)]
    rows += [(t, LAST, SET, BUY, 100, t, 0) for t in range(3, 9)]
    before = levels_of(*rows)
    assert same(keyed([Batch(ts=9, levels=before)], 2), Batch(ts=9, levels=before))


def test_large_books_have_fewer_keyframes():
    after = keyed(SIMULATED, 1)
    extra = added(whole(SIMULATED), after)
    assert extra.sum() * SPARSE <= (~extra).sum() + 400


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 400), unique=True, max_size=40))
def test_where_keyframes_come_does_not_depend_on_the_batches(cuts):
    instants = np.array(sorted(10**18 + 10**7 * np.array(cuts, np.int64)), np.int64)
    fine = same(keyed(recut(whole(SIMULATED), instants), 200), keyed(SIMULATED, 200))
    assert fine  # not in one line: a failure would print every row


def test_a_stream_with_keyframes_gets_no_others():
    once = keyed(SIMULATED, 200)
    assert same(keyed([once], 200), once)
    instants = 10**18 + 10**7 * np.arange(0, 400, 3)
    assert same(keyed(recut(once, instants), 200), once)


@real
@pytest.mark.parametrize("name", ["binance_spot_20240808", "cme_ESH4_20231225"])
def test_a_real_book_is_the_same_from_every_keyframe_on(name):
    batches, rows = [], 0
    for batch in ReplayFeed(open_recording(RECORDINGS / name)).slices():
        batches.append(batch)
        rows += len(batch)
        if rows > 45_000:
            break
    after = keyed(batches, 12_000)
    extra = after.levels.flags & SNAPSHOT != 0
    assert extra.sum() > (whole(batches).levels.flags & SNAPSHOT != 0).sum()
    last = starts(after.levels)[-1]
    books, late = Books(), Books()
    list(books.apply(after.levels))
    list(late.apply(after.levels.slice(last, len(after.levels))))
    ids = sorted(set(after.levels.instrument.tolist()))
    assert tops(books, ids) == tops(late, ids)
    assert same(keyed([after], 12_000), after)
