from __future__ import annotations

import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.book import Book, BookEvent, Books, Orders, checksum
from feeds.records import (
    ADD,
    BUY,
    CANCEL,
    CLEAR,
    FILL,
    GAP,
    LAST,
    MISSING,
    MODIFY,
    NO_SIDE,
    SELL,
    SET,
    SNAPSHOT,
    TRADE,
    Levels,
)

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"


#: No deadline: a busy machine is no failure.
reproducible = settings(deadline=None, derandomize=True)


class Row(NamedTuple):
    flags: int = LAST
    action: int = SET
    side: int = BUY
    price: int = 100
    qty: int = 1
    order_id: int = 0
    instrument: int = 0
    ts_recv: int = 0


def levels(*rows: Row) -> Levels:
    columns = dict(zip(Row._fields, zip(*rows, strict=True), strict=True))
    columns["seq"] = tuple(range(len(rows)))
    columns["ts_event"] = tuple(row.ts_recv - 5 for row in rows)
    return Levels(**{name: np.array(columns[name], dtype) for name, dtype in Levels.DTYPES.items()})


def state(book: Book) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    return book.top(BUY, 10**6), book.top(SELL, 10**6)


def play(books: Books, *rows: Row) -> list[BookEvent]:
    return list(books.apply(levels(*rows)))


# ---------------------------------------------------------------------------------------------------- checksum

# The worked example of Kraken's "Spot Websockets (v2) Book Checksum" guide,
# https://docs.kraken.com/api/docs/guides/spot-ws-book-v2: BTC/USD, price precision 1, quantity precision 8.
KRAKEN_ASKS = """45285.2 0.00100000 45286.4 1.54571953 45286.6 1.54571109 45289.6 1.54560911 45290.2 0.15890660
    45291.8 1.54553491 45294.7 0.04454749 45296.1 0.35380000 45297.5 0.09945542 45299.5 0.18772827"""
KRAKEN_BIDS = """45283.5 0.10000000 45283.4 1.54582015 45282.1 0.10000000 45281.0 0.10000000 45280.3 1.54592586
    45279.0 0.07990000 45277.6 0.03310103 45277.5 0.30000000 45277.3 1.54602737 45276.6 0.15445238"""
KRAKEN_CHECKSUM = 3310070434


def pairs(text: str) -> list[tuple[int, int]]:
    words = text.split()
    return [
        (int(Decimal(p).scaleb(1)), int(Decimal(q).scaleb(8))) for p, q in zip(words[::2], words[1::2], strict=True)
    ]


def test_checksum_of_krakens_published_example():
    assert checksum(pairs(KRAKEN_BIDS), pairs(KRAKEN_ASKS)) == KRAKEN_CHECKSUM


def test_book_checksum_takes_only_ten_levels_a_side():
    book = Book()
    for side, text, worse in (BUY, KRAKEN_BIDS, -1), (SELL, KRAKEN_ASKS, 1):
        for price, qty in pairs(text):
            book.set_level(side, price, qty)
        book.set_level(side, pairs(text)[-1][0] + worse, 7)
    assert book.checksum() == KRAKEN_CHECKSUM
    assert checksum(*state(book)) == KRAKEN_CHECKSUM
    book.set_level(BUY, pairs(KRAKEN_BIDS)[9][0], 7)
    assert book.checksum() != KRAKEN_CHECKSUM


def test_checksum_of_nothing_is_zero():
    assert Book().checksum() == checksum([], []) == 0


side_levels = st.dictionaries(st.integers(1, 10**7), st.integers(1, 10**10), max_size=14)


@reproducible
@given(side_levels, side_levels)
def test_checksum_is_that_of_printed_numbers_without_points_and_zeros(bids, asks):
    def printed(number: int, decimals: int) -> str:
        return f"{Decimal(number).scaleb(-decimals):.{decimals}f}".replace(".", "").lstrip("0")

    text = "".join(printed(p, 2) + printed(q, 8) for p, q in sorted(asks.items())[:10])
    text += "".join(printed(p, 2) + printed(q, 8) for p, q in sorted(bids.items(), reverse=True)[:10])
    assert checksum(sorted(bids.items(), reverse=True), sorted(asks.items())) == zlib.crc32(text.encode())


# -------------------------------------------------------------------------------------------------------- book


def test_an_empty_book_has_no_best():
    book = Book()
    assert (book.best_bid, book.best_ask, book.crossed, book.top(BUY, 5), book.stale) == (None, None, False, [], False)


def test_best_is_first_on_both_sides():
    book = Book()
    for price in (5, 9, 7):
        book.set_level(BUY, price, price * 10)
        book.set_level(SELL, price + 10, price * 10)
    assert (book.best_bid, book.best_ask) == ((9, 90), (15, 50))
    assert book.top(BUY, 2) == [(9, 90), (7, 70)]
    assert book.top(SELL, 2) == [(15, 50), (17, 70)]
    assert book.top(SELL, 0) == []
    assert len(book.bids) == 3


def test_negative_prices_sort_too():
    book = Book()
    for price in (-37, -1, 2):
        book.set_level(BUY, price, 1)
        book.set_level(SELL, price + 4, 1)
    assert [p for p, _ in book.top(BUY, 9)] == [2, -1, -37]
    assert [p for p, _ in book.top(SELL, 9)] == [-33, 3, 6]


def test_removing_a_level_that_is_not_there_changes_nothing():
    book = Book()
    book.set_level(BUY, 5, 1)
    book.set_level(BUY, 6, 0)
    book.set_level(SELL, 5, 0)
    assert state(book) == ([(5, 1)], [])


def test_a_missing_price_is_not_a_level():
    book = Book()
    book.set_level(SELL, MISSING, 3)
    assert state(book) == ([], [])


@pytest.mark.parametrize(("bid", "crossed"), [(9, False), (10, True), (11, True)])
def test_crossed_means_at_or_above(bid, crossed):
    book = Book()
    book.set_level(SELL, 10, 1)
    book.set_level(BUY, bid, 1)
    assert book.crossed is crossed


@reproducible
@given(st.lists(st.tuples(st.sampled_from([BUY, SELL]), st.integers(-4, 30), st.integers(0, 3)), max_size=80))
def test_book_equals_a_naive_dict(changes):
    book, naive = Book(), {BUY: {}, SELL: {}}
    for side, price, qty in changes:
        book.set_level(side, price, qty)
        naive[side][price] = qty
        bids = sorted(((p, q) for p, q in naive[BUY].items() if q), reverse=True)
        asks = sorted((p, q) for p, q in naive[SELL].items() if q)
        assert book.best_bid == (bids[0] if bids else None)
        assert book.best_ask == (asks[0] if asks else None)
        assert state(book) == (bids, asks)
        assert (book.top(BUY, 3), book.top(SELL, 3)) == (bids[:3], asks[:3])
        assert book.checksum() == checksum(bids, asks)


# -------------------------------------------------------------------------------------------- orders by id (L3)


def test_orders_at_a_price_add_up_and_leave_one_by_one():
    book = Book()
    orders = Orders(book)
    orders.apply(ADD, 1, BUY, 100, 5)
    orders.apply(ADD, 2, BUY, 100, 3)
    assert state(book) == ([(100, 8)], [])
    orders.apply(CANCEL, 1, BUY, 100, 2)
    assert (state(book), len(orders)) == (([(100, 6)], []), 2)
    orders.apply(CANCEL, 1, BUY, 100, 3)
    assert (state(book), len(orders)) == (([(100, 3)], []), 1)
    orders.apply(CANCEL, 2, BUY, 100, 99)
    assert (state(book), len(orders)) == (([], []), 0)


def test_a_cancel_of_more_than_is_left_takes_nothing_off_the_other_orders():
    book = Book()
    orders = Orders(book)
    orders.apply(ADD, 1, BUY, 100, 5)
    orders.apply(ADD, 2, BUY, 100, 3)
    orders.apply(CANCEL, 1, BUY, 100, 7)
    assert state(book) == ([(100, 3)], [])


def test_modify_moves_an_order_and_enters_an_unknown_one():
    book = Book()
    orders = Orders(book)
    orders.apply(MODIFY, 1, SELL, 100, 5)
    assert state(book) == ([], [(100, 5)])
    orders.apply(MODIFY, 1, SELL, 101, 2)
    assert (state(book), len(orders)) == (([], [(101, 2)]), 1)


@pytest.mark.parametrize("action", [TRADE, FILL])
def test_trades_and_fills_leave_the_book_to_the_row_that_follows(action):
    book = Book()
    orders = Orders(book)
    orders.apply(ADD, 1, SELL, 100, 5)
    orders.apply(action, 1, SELL, 100, 5)
    assert state(book) == ([], [(100, 5)])


def test_a_cancel_of_an_unknown_order_changes_nothing():
    book = Book()
    orders = Orders(book)
    orders.apply(ADD, 1, BUY, 100, 5)
    orders.apply(CANCEL, 2, BUY, 100, 5)
    assert state(book) == ([(100, 5)], [])


@pytest.mark.parametrize(("side", "price"), [(NO_SIDE, 100), (BUY, MISSING)])
def test_an_order_without_side_or_price_does_not_rest(side, price):
    book = Book()
    orders = Orders(book)
    orders.apply(ADD, 1, side, price, 5)
    assert (state(book), len(orders)) == (([], []), 0)


order_rows = st.tuples(
    st.sampled_from([ADD, ADD, CANCEL, MODIFY, TRADE, FILL]),
    st.integers(1, 6),
    st.sampled_from([BUY, SELL]),
    st.integers(90, 95),
    st.integers(1, 4),
)


def naive_order(resting: dict[int, list[int]], action: int, order_id: int, side: int, price: int, qty: int) -> None:
    if action in (ADD, MODIFY):
        resting[order_id] = [side, price, qty]
    elif action == CANCEL and order_id in resting:
        resting[order_id][2] -= qty
        if resting[order_id][2] <= 0:
            del resting[order_id]


def aggregated(resting: dict[int, list[int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    sums: dict[int, dict[int, int]] = {BUY: {}, SELL: {}}
    for side, price, qty in resting.values():
        sums[side][price] = sums[side].get(price, 0) + qty
    return sorted(sums[BUY].items(), reverse=True), sorted(sums[SELL].items())


@reproducible
@given(st.lists(order_rows, max_size=60))
def test_orders_equal_a_naive_dict_of_orders(rows):
    book, resting = Book(), {}
    orders = Orders(book)
    for row in rows:
        orders.apply(*row)
        naive_order(resting, *row)
        assert state(book) == aggregated(resting)


# ------------------------------------------------------------------------------------------------------ events


def test_an_event_shows_the_book_after_its_last_row():
    books = Books()
    rows = (Row(flags=0, price=99), Row(price=100, ts_recv=7), Row(price=100, qty=0, ts_recv=8))
    assert [(event, state(books[0])[0]) for event in books.apply(levels(*rows))] == [
        (BookEvent(0, 7, 2, False), [(100, 1), (99, 1)]),
        (BookEvent(0, 8, 3, False), [(99, 1)]),
    ]


def test_a_row_without_a_side_sets_nothing_but_ends_its_event():
    books = Books()
    assert len(play(books, Row(side=NO_SIDE))) == 1
    assert state(books[0]) == ([], [])


def test_events_of_several_instruments_may_interleave():
    books = Books()
    events = books.apply(levels(Row(flags=0, price=1), Row(flags=0, price=2, instrument=1), Row(price=3)))
    assert next(events).instrument == 0
    assert state(books[0])[0] == [(3, 1), (1, 1)]
    assert next(events, None) is None
    assert [e.instrument for e in play(books, Row(instrument=1, price=4))] == [1]
    assert state(books[1])[0] == [(4, 1), (2, 1)]


def test_a_new_receive_time_does_not_end_an_event():
    # Real: 2,691 events of cme_ESH4_20231225 came in several packets.
    assert len(play(Books(), Row(flags=0, ts_recv=1), Row(flags=0, ts_recv=2), Row(ts_recv=3))) == 1


def test_a_snapshot_with_clear_rebuilds_the_book():
    books = Books()
    play(books, Row(price=1), Row(action=ADD, order_id=9, price=5))
    events = play(
        books,
        Row(flags=SNAPSHOT, action=CLEAR, side=NO_SIDE, price=MISSING, qty=0),
        Row(flags=SNAPSHOT | LAST, price=5),
    )
    assert [e.snapshot for e in events] == [True]
    assert state(books[0])[0] == [(5, 1)]
    play(books, Row(action=CANCEL, order_id=9, price=5))  # an order from before the snapshot: unknown
    assert state(books[0])[0] == [(5, 1)]


def test_a_snapshot_without_clear_and_last_ends_before_the_first_update():
    books = Books()
    play(books, Row(action=ADD, order_id=1, price=1))
    assert play(books, *(Row(flags=SNAPSHOT, action=ADD, order_id=i, price=i, ts_recv=i) for i in (2, 3))) == []
    events = books.apply(levels(Row(action=ADD, order_id=4, price=4, ts_recv=10)))
    assert next(events) == BookEvent(0, 3, -2, True)
    assert state(books[0])[0] == [(3, 1), (2, 1)]
    assert next(events) == BookEvent(0, 10, 5, False)
    assert state(books[0])[0] == [(4, 1), (3, 1), (2, 1)]


def test_a_snapshot_that_marks_every_row_last_keeps_them_all():
    books = Books()
    assert len(play(books, *(Row(flags=SNAPSHOT | LAST, price=p) for p in (1, 2, 3)))) == 3
    assert len(state(books[0])[0]) == 3


def test_flush_ends_a_snapshot_that_nothing_follows():
    books = Books()
    play(books, Row(flags=SNAPSHOT, ts_recv=4))
    assert list(books.flush()) == [BookEvent(0, 4, -1, True)]
    assert list(books.flush()) == []
    assert [e.snapshot for e in play(books, Row())] == [False]


def test_a_gap_makes_the_book_stale_until_the_next_snapshot():
    books = Books()
    play(books, Row(flags=LAST | GAP), Row(instrument=1))
    assert (books[0].stale, books[1].stale) == (True, False)
    play(books, Row())
    assert books[0].stale
    play(books, Row(flags=SNAPSHOT | LAST, price=5))
    assert (books[0].stale, state(books[0])[0]) == (False, [(5, 1)])


def test_a_clear_after_a_gap_ends_it_and_a_gap_inside_a_snapshot_does_not():
    books = Books()
    play(books, Row(flags=GAP), Row(action=CLEAR, side=NO_SIDE))
    assert not books[0].stale
    play(books, Row(flags=SNAPSHOT), Row(flags=SNAPSHOT | GAP | LAST))
    assert books[0].stale


def test_a_gap_in_the_stream_makes_every_book_stale():
    books = Books()
    play(books, Row(), Row(instrument=1))
    books.mark_stale()
    assert books[0].stale
    assert books[1].stale


def test_reset_forgets_books_orders_and_open_snapshots():
    books = Books()
    play(books, Row(flags=SNAPSHOT, action=ADD, order_id=1))
    books.reset()
    assert state(books[0]) == ([], [])
    assert list(books.flush()) == []


any_rows = st.builds(
    Row,
    flags=st.sampled_from([0, 0, LAST, LAST, SNAPSHOT, SNAPSHOT | LAST, GAP]),
    action=st.sampled_from([SET, SET, ADD, CANCEL, MODIFY, CLEAR]),
    side=st.sampled_from([BUY, SELL]),
    price=st.integers(90, 95),
    qty=st.integers(0, 3),
    order_id=st.integers(1, 4),
    instrument=st.integers(0, 1),
    ts_recv=st.integers(0, 3),
)


@reproducible
@given(st.lists(any_rows, min_size=1, max_size=30), st.integers(0, 30))
def test_events_do_not_depend_on_how_the_stream_is_cut(rows, cut):
    def shown(*parts: Levels) -> Iterator[object]:
        books = Books()
        for part in parts:
            for event in books.apply(part):
                yield event, state(books[event.instrument]), books[event.instrument].stale

    whole = levels(*rows)
    assert list(shown(whole)) == list(shown(whole.slice(0, cut), whole.slice(cut, len(rows))))


# --------------------------------------------------------------------------------------------------- real data


def integers(table: pa.Table, name: str) -> np.ndarray:
    column = table[name]
    return (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).fill_null(MISSING).to_numpy()


def scaled(table: pa.Table, name: str, scale: float | np.ndarray) -> np.ndarray:
    column = table[name]
    units = np.rint(column.fill_null(0.0).to_numpy() * scale).astype(np.int64)
    units[column.is_null().to_numpy()] = MISSING
    return units


def recording(name: str) -> pa.Table:
    path = RECORDINGS / f"{name}.parquet"
    if not path.exists():
        pytest.skip(f"no recording {path.name} beside the project")
    return pq.read_table(path)


def recorded_levels(table: pa.Table, lots: dict[str, float]) -> Levels:
    symbols = np.array(sorted(lots))
    instrument = np.searchsorted(symbols, table["symbol"].to_numpy(zero_copy_only=False).astype(str))
    return Levels(
        ts_recv=integers(table, "ts_recv"),
        ts_event=integers(table, "ts_event"),
        seq=table["seq"].to_numpy(),
        instrument=instrument.astype(np.int32),
        flags=table["evt_flags"].to_numpy(),
        action=table["action"].to_numpy(),
        side=table["side"].to_numpy(),
        price=scaled(table, "price", 100),
        qty=scaled(table, "qty", np.array([lots[s] for s in symbols])[instrument]),
        order_id=table["order_id"].fill_null(0).to_numpy(),
    )


LOTS = {"BTCUSDT": 1e5, "ETHUSDT": 1e4}


class Binance(NamedTuple):
    """The rows, and what the quotes say the best levels were after each event."""

    rows: Levels
    ends: np.ndarray
    best: list[tuple[tuple[int, int], tuple[int, int]]]


@pytest.fixture(scope="module")
def binance() -> Binance:
    table, quotes = recording("binance_spot_20240808.book"), recording("binance_spot_20240808.quotes")
    rows = recorded_levels(table, LOTS)
    ends = np.flatnonzero(rows.flags & LAST)
    update_id, symbol = table["venue_seq"].to_numpy(), quotes["symbol"].to_numpy(zero_copy_only=False).astype(str)
    best = np.empty((len(ends), 4), dtype=np.int64)
    for instrument, name in enumerate(sorted(LOTS)):
        own = quotes.filter(pa.array(symbol == name))
        columns = [scaled(own, n, 100 if n.endswith("px") else LOTS[name]) for n in ("bid_px", "bid_qty")]
        columns += [scaled(own, n, 100 if n.endswith("px") else LOTS[name]) for n in ("ask_px", "ask_qty")]
        mine = rows.instrument[ends] == instrument
        # A diff ends at an update id; the quote with the latest id up to there is the venue's own word on the top.
        quote = np.searchsorted(own["venue_seq"].to_numpy(), update_id[ends[mine]], side="right") - 1
        assert (quote >= 0).all()
        best[mine] = np.stack(columns, axis=1)[quote]
    return Binance(rows, ends, [((a, b), (c, d)) for a, b, c, d in best.tolist()])


def disagreements(rows: Levels, best: list[tuple[tuple[int, int], tuple[int, int]]]) -> tuple[int, int]:
    """Return after how many events the book was crossed, and after how many its top was not the venue's."""
    books, crossed, wrong = Books(), 0, 0
    for event, (bid, ask) in zip(books.apply(rows), best, strict=True):
        book = books[event.instrument]
        crossed += book.crossed
        wrong += book.best_bid != bid or book.best_ask != ask
    return crossed, wrong


def test_binance_top_of_book_is_exactly_the_venues_after_every_event(binance):
    assert len(binance.ends) == 6883
    assert disagreements(binance.rows, binance.best) == (0, 0)


def test_binance_with_one_diff_dropped_is_wrong(binance):
    event = 283
    keep = np.ones(len(binance.rows), dtype=bool)
    keep[binance.ends[event - 1] + 1 : binance.ends[event] + 1] = False
    best = binance.best[:event] + binance.best[event + 1 :]
    crossed, wrong = disagreements(binance.rows.take(keep), best)
    assert crossed > 1000
    assert wrong > 1000


def test_binance_equals_a_naive_rebuild(binance):
    rows, books, start = binance.rows, Books(), 0
    naive: dict[tuple[int, int], dict[int, int]] = {}
    for stop in (2001, 4002, 50_000, 120_001, 200_000, len(rows)):
        part, start = rows.slice(start, stop), stop
        for _ in books.apply(part):
            pass
        columns = (part.action, part.instrument, part.side, part.price, part.qty)
        for action, instrument, side, price, qty in zip(*(c.tolist() for c in columns), strict=True):
            if action == SET:
                naive.setdefault((instrument, side), {})[price] = qty
        for (instrument, side), quantities in naive.items():
            left = sorted(((p, q) for p, q in quantities.items() if q), reverse=side == BUY)
            assert books[instrument].top(side, 10**6) == left
    assert [len(books[i].bids) for i in (0, 1)] == [1209, 1195]


@pytest.fixture(scope="module")
def cme() -> Levels:
    return recorded_levels(recording("cme_ESH4_20231225.book"), {"ESH4": 1.0})


def test_cme_snapshot_without_clear_or_last_is_one_event(cme):
    books = Books()
    first = next(books.apply(cme))
    assert first == BookEvent(0, cme.ts_recv[8724].item(), cme.ts_event[8724].item(), True)
    assert sum(q for side in (BUY, SELL) for _, q in books[0].top(side, 10**6)) == cme.qty[:8725].sum()


#: The opening auction's last crossed event came 69 us into the open; trades follow it.
CME_OPEN_NS = 1_703_545_200_000_068_972


def test_cme_book_is_crossed_before_the_open_and_never_after(cme):
    books = Books()
    events = [(event.ts_recv, books[0].crossed) for event in books.apply(cme)]
    crossed = [ts for ts, is_crossed in events if is_crossed]
    assert (len(events), len(crossed)) == (47_023, 891)
    assert crossed[-1] == CME_OPEN_NS
    assert sum(ts > CME_OPEN_NS for ts, _ in events) > 37_000


def test_cme_levels_equal_a_naive_aggregation_of_orders(cme):
    books, start = Books(), 0
    resting: dict[int, list[int]] = {}
    for stop in (8725, 9650, 20_000, 45_678, len(cme)):
        part, start = cme.slice(start, stop), stop
        for _ in books.apply(part):
            pass
        columns = (part.action, part.order_id, part.side, part.price, part.qty)
        for row in zip(*(c.tolist() for c in columns), strict=True):
            naive_order(resting, *row)
        assert state(books[0]) == aggregated(resting)
    assert len(resting) == 11_217
