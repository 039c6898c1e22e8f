"""A ring of rows against a list."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ticker.topics.ring import Ring

ROWS, SIZE = 7, 40
LENGTHS = st.lists(st.lists(st.integers(0, 60), max_size=12), max_size=8)


def bounded(events: list[tuple[int, str]]) -> list[tuple[int, str]]:
    kept = events[-ROWS:]
    while len(kept) > 1 and sum(len(row) for _, row in kept) > SIZE:
        kept = kept[1:]
    return kept


@given(flushes=LENGTHS, step=st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_the_newest_are_kept_within_both_bounds(flushes: list[list[int]], step: int) -> None:
    ring, kept, position = Ring[str](ROWS, SIZE), list[tuple[int, str]](), 0
    for lengths in flushes:
        events = [(position := position + step, "x" * length) for length in lengths]
        ring.extend(events)
        kept = bounded(kept + events)
        if kept:
            assert ring.oldest == kept[0][0] - 1
        again = Ring[str](ROWS, SIZE)  # as when a topic takes over what another has kept
        again.extend(ring.after(0))
        for after in range(position + 2):
            assert ring.after(after) == again.after(after) == [event for event in kept if event[0] > after]


def test_one_row_is_kept_however_long_it_is() -> None:
    ring = Ring[bytes](ROWS, 10)
    ring.extend([(1, b"a"), (2, b"b" * 100)])
    assert ring.after(0) == [(2, b"b" * 100)]
