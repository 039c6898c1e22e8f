"""Books that go to the end of a batch in one step end where they would have come row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.book import Books
from feeds.records import ADD, BUY, CLEAR, GAP, LAST, MISSING, NO_SIDE, SELL, SET, SNAPSHOT, Batch, Levels
from tests.scripted import BTC, ETH, INSTRUMENTS, Tape
from ticker.history import MANY_ROWS, History, HistoryOptions

#: Instrument, side, price, quantity, whether the event ends.
ROWS = st.lists(
    st.tuples(
        st.sampled_from((BTC, ETH)),
        st.sampled_from((BUY, SELL, NO_SIDE)),
        st.sampled_from((*range(100, 106), MISSING)),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=60,
)


def levels(rows, actions=None, flags=0):
    """Return rows as columns; those that end an event are flagged LAST."""
    n = len(rows)
    instrument, side, price, qty, last = (list(column) for column in zip(*rows, strict=True)) if rows else ([],) * 5
    columns = {name: np.zeros(n, dtype) for name, dtype in Levels.DTYPES.items()}
    columns |= {"instrument": np.array(instrument, np.int32), "side": np.array(side, np.int8)}
    columns |= {"price": np.array(price, np.int64), "qty": np.array(qty, np.int64)}
    columns |= {"action": np.full(n, SET, np.int8) if actions is None else np.array(actions, np.int8)}
    columns |= {"flags": (np.array(last, np.uint8) * LAST) | np.uint8(flags)}
    return Levels(**columns)


def shown(books):
    return [(books[i].top(BUY, 100), books[i].top(SELL, 100)) for i in (BTC, ETH)]


@given(parts=st.lists(ROWS, max_size=4))
def test_the_outcome_is_that_of_all_rows(parts):
    stepwise, at_once = Books(), Books()
    for part in parts:
        for _ in stepwise.apply(levels(part)):
            pass
        assert at_once.apply_outcome(levels(part)) is True
        assert shown(at_once) == shown(stepwise)


@pytest.mark.parametrize(("action", "flags"), [(ADD, 0), (CLEAR, 0), (SET, SNAPSHOT), (SET, GAP)])
def test_where_the_way_counts_nothing_is_done(action, flags):
    books = Books()
    rows = [(BTC, BUY, 100, 5, True), (BTC, BUY, 101, 5, True)]
    assert books.apply_outcome(levels(rows, [SET, action], flags)) is False
    assert shown(books) == [([], []), ([], [])]


def test_what_follows_a_snapshot_is_told_row_by_row():
    books = Books()
    list(books.apply(levels([(BTC, BUY, 100, 5, True)], flags=SNAPSHOT)))
    assert books.apply_outcome(levels([(BTC, BUY, 101, 5, True)])) is False
    assert books.apply_outcome(levels([(ETH, BUY, 101, 5, True)])) is True
    list(books.apply(levels([(BTC, BUY, 101, 5, True)])))
    assert books.apply_outcome(levels([(BTC, BUY, 102, 5, True)])) is True


@given(rows=st.lists(ROWS, min_size=2, max_size=6), quoted=st.booleans())
def test_a_history_is_the_same_with_and_without_somebody_who_looks(rows, quoted):
    looked_at, unseen = (History(INSTRUMENTS, HistoryOptions()) for _ in range(2))
    if quoted:
        for history in (looked_at, unseen):
            history.apply(Tape().quotes((BTC, 90, 1, 110, 1), (ETH, 90, 1, 110, 1)))
    for part in rows:
        table = levels((part * MANY_ROWS)[: MANY_ROWS + 3])
        looked_at.apply(Batch(ts=1, levels=table), lambda _: None)
        unseen.apply(Batch(ts=1, levels=table))
        assert shown(unseen.books) == shown(looked_at.books)
        assert unseen.book_position.tolist() == looked_at.book_position.tolist()
        assert unseen.quote_position.tolist() == looked_at.quote_position.tolist()
        assert unseen.bid_px.tolist() == looked_at.bid_px.tolist()
