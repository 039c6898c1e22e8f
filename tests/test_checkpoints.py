"""Digests at every so many rows: the same however the stream was cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feeds.records import BUY, Batch, Levels, Quotes, StreamDigest, Trades
from tests.scripted import BTC, Tape
from ticker.checkpoints import Checkpoint, Checkpoints


def tape(kinds: list[int]) -> list[Batch]:
    """Return a batch a row: trades, quotes or rows of books, several of an instant as on any tape."""
    pen = Tape()
    batches = []
    for number, kind in enumerate(kinds):
        pen.ns -= 1_000_000 * (number % 3 != 0)  # three rows an instant
        make = (
            lambda n=number: pen.trades((BTC, BUY, 100 + n, 1)),
            lambda n=number: pen.quotes((BTC, n, 1, n + 1, 2)),
            lambda n=number: pen.levels(BTC, (BUY, 80 + n, 1)),
        )
        batches.append(make[kind]())
    return batches


def joined(batches: list[Batch]) -> Batch:
    return Batch(
        ts=batches[-1].ts,
        trades=Trades.concatenate([b.trades for b in batches if len(b.trades)]),
        quotes=Quotes.concatenate([b.quotes for b in batches if len(b.quotes)]),
        levels=Levels.concatenate([b.levels for b in batches if len(b.levels)]),
    )


def noted(every: int, batches: list[Batch]) -> list[Checkpoint]:
    checkpoints, seen = Checkpoints(every), []
    add, checkpoints._note = checkpoints._note, lambda: (add(), seen.append(checkpoints.last))
    for batch in batches:
        checkpoints.pass_over(batch)
    checkpoints.end()
    return seen


@given(
    kinds=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    every=st.integers(1, 12),
    cuts=st.lists(st.integers(1, 13), min_size=40, max_size=40),
)
def test_where_a_stream_is_cut_makes_no_difference(kinds, every, cuts):
    rows = tape(kinds)
    instants = [rows[start : start + 3] for start in range(0, len(rows), 3)]  # never divided on a tape
    whole, parts = [joined([row for rows in instants for row in rows])], []
    for size in cuts:
        if instants:
            parts.append(joined([row for rows in instants[:size] for row in rows]))
            instants = instants[size:]
    assert noted(every, whole) == noted(every, parts)
    counts = list(range(every, len(kinds) + 1, every))
    assert [point.events for point in noted(every, whole)] == counts + [len(kinds)] * (len(kinds) % every > 0)


def test_the_digest_is_that_of_the_whole_stream():
    batch = joined(tape([0, 1, 2] * 5))
    expected = StreamDigest()
    expected.update(batch)
    assert noted(1000, [batch]) == [Checkpoint(15, expected.hexdigest())]


def test_another_row_is_another_digest():
    one, other = joined(tape([0] * 10)), joined(tape([0] * 10))
    changed = other.trades.price.copy()
    changed[4] += 1
    other = Batch(ts=other.ts, trades=other.trades.take(np.arange(10)))
    other.trades.price[:] = changed
    before, after = noted(4, [one]), noted(4, [other])
    assert before[0] == after[0]
    assert before[1:] != after[1:]


def test_an_epoch_begins_anew():
    checkpoints, batch = Checkpoints(5), joined(tape([0] * 7))
    assert checkpoints.pass_over(batch) is True
    first = checkpoints.last
    checkpoints.begin()
    assert checkpoints.last is None
    assert checkpoints.pass_over(batch) is True
    assert checkpoints.last == first
    assert checkpoints.pass_over(joined(tape([0]))) is False
