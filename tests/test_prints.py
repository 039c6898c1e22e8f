"""The ring of trades against the plainest thing that could keep them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.records import Trades
from tests.scripted import INSTRUMENTS
from ticker.history import History, HistoryOptions
from ticker.prints import ROW_BYTES, Print, Prints

COUNT, ROWS = 3, 5
BATCHES = st.lists(st.lists(st.integers(0, COUNT - 1), max_size=30), max_size=12)


def trades_of(ids: list[int], first: int) -> Trades:
    """Trades of these instruments, told apart by their trade id and price."""
    n = len(ids)
    number = np.arange(first, first + n)
    return Trades(
        ts_recv=number, ts_event=number, seq=number, instrument=np.array(ids, np.int32), flags=np.zeros(n, np.uint8),
        price=number * 10, qty=number * 100, side=np.where(number % 2, 1, -1).astype(np.int8), trade_id=number,
    )  # fmt: skip


@given(batches=BATCHES)
@settings(max_examples=300, deadline=None)
def test_the_last_trades_of_every_instrument_are_kept_in_order(batches: list[list[int]]) -> None:
    ring, position, seen = Prints(COUNT, ROWS), np.zeros(COUNT, np.int64), defaultdict[int, list[Print]](list)
    number = 1
    for ids in batches:
        trades = trades_of(ids, number)
        ring.add(trades, trades.ts_recv + 7, position)
        position += np.bincount(trades.instrument, minlength=COUNT)
        for i in ids:
            seen[i].append((1 if number % 2 else -1, number * 10, number * 100, number, number + 7))
            number += 1
        for i in range(COUNT):
            last = int(position[i])
            for after in range(max(0, last - ROWS), last + 1):
                assert ring.between(i, after, last) == seen[i][after:last]


def test_rows_and_bytes_both_bound_the_ring_and_a_snapshot_fits_in_any_case() -> None:
    def kept(**options: int) -> int:
        history = History(INSTRUMENTS, HistoryOptions(**options))
        history.trade_position[0] = 10_000
        return 10_000 - history.oldest_print(0)

    assert kept(trade_rows=400) == 200  # of each of two instruments
    assert kept(trade_bytes=300 * ROW_BYTES) == 150
    assert kept(trade_rows=1) == kept(trade_bytes=1) == 50
