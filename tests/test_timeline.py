"""Tickers and candles after every event, made by column: the same bytes as when each event is a batch of its own."""

from __future__ import annotations

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from feeds.analytics import Candles
from feeds.records import LAST, MISSING, SET, Batch, Levels, Quotes, Trades
from tests.scripted import INSTRUMENTS, START_NS
from ticker.history import History, HistoryOptions
from ticker.intake import take_in
from ticker.listings import Listings
from ticker.timeline import timeline
from ticker.topics import open_topic
from ticker.topics.topic import TopicKey

HOUR_NS = 3_600_000_000_000
TICKERS = [
    TopicKey("ticker", variant, mode="batch", native=True, quoted=quoted, packed=packed)
    for variant in ("bbo", "trades")
    for quoted, packed in ((False, False), (True, False), (False, True))
]
CANDLES = [
    TopicKey("ohlc", minutes, mode="raw", native=True, quoted=quoted, packed=packed)
    for minutes, quoted, packed in ((1, False, False), (1, True, False), (30, False, True), (1440, False, False))
]
#: Doubles cannot add up products of these exactly, so that the order of additions shows.
PRICES = st.integers(5_000_000, 7_000_000)
SIZES = st.integers(0, 3) | st.integers(10**8, 10**10)
ROW = st.tuples(st.sampled_from("TQQB"), st.integers(0, 1), PRICES, SIZES, st.integers(-5, 5), st.integers(0, 2))
#: How long before the end of a batch its rows are, and how long after the batch before it they come.
WHEN = st.tuples(st.sampled_from((0, 0, HOUR_NS // 3)), st.sampled_from((0, 1, HOUR_NS // 4, HOUR_NS, 25 * HOUR_NS)))
BATCHES = st.lists(st.tuples(st.lists(ROW, min_size=1, max_size=20), WHEN) | st.none(), min_size=1, max_size=8)


class Side:
    """A market as far as tickers and candles need it."""

    def __init__(self, keys: list[TopicKey]) -> None:
        self.history = History(INSTRUMENTS, HistoryOptions())
        self.history.epoch = "0000abcd"
        listings = Listings(INSTRUMENTS)
        self.topics = [open_topic(key, self.history, listings) for key in keys]
        for topic in self.topics:
            topic.acquire(range(len(listings)))

    def one_by_one(self, batch: Batch) -> None:
        for piece in batch.by_event():
            self.history.apply(piece)
            for topic in self.topics:
                topic.applied(piece)

    def whole(self, batch: Batch) -> None:
        take_in(batch, self.history, self.topics)

    def begin(self) -> None:
        self.history._begin()
        self.history.epoch = "0000abce"
        for topic in self.topics:
            topic.reset()

    def told(self) -> list[list[object]]:
        return [[topic.dirty, *(flush := topic.collect()).pieces.items(), flush.counts] for topic in self.topics]


def table(kind, rows, ns):
    """Rows are (place on the tape, instrument, price, size, event time before the receipt, which side is missing)."""
    seq, who, price, size, late, lacks = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    common = {
        "ts_recv": np.full(len(rows), ns),
        "ts_event": np.where(late == 5, MISSING, ns - late * 1_000_000),
        "seq": seq,
        "instrument": who.astype(np.int32),
        "flags": np.full(len(rows), LAST, np.uint8),
    }
    side = np.where(lacks == 0, 1, -1).astype(np.int8)
    if kind is Trades:
        return Trades(**common, price=price, qty=size, side=side, trade_id=seq)
    if kind is Quotes:
        return Quotes(
            **common,
            bid_px=np.where(lacks == 1, MISSING, price),
            bid_qty=np.where(lacks == 1, 0, size),
            ask_px=np.where(lacks == 2, MISSING, price + 1),
            ask_qty=np.where(lacks == 2, 0, size),
        )
    action, order_id = np.full(len(rows), SET, np.int8), np.zeros(len(rows), np.uint64)
    return Levels(**common, action=action, side=side, price=price, qty=size, order_id=order_id)


def batch_of(rows, before_ns, first_seq, ns):
    of = {"T": [], "Q": [], "B": []}
    for seq, (what, *row) in enumerate(rows, first_seq):
        of[what].append((seq, *row))
    kinds = {"trades": ("T", Trades), "quotes": ("Q", Quotes), "levels": ("B", Levels)}
    tables = {name: table(kind, of[what], ns - before_ns) for name, (what, kind) in kinds.items() if of[what]}
    return Batch(ts=ns, **tables)


@settings(max_examples=150, deadline=None)
@given(BATCHES, st.sampled_from((TICKERS, CANDLES, TICKERS + CANDLES)))
def test_by_column_and_one_by_one_tell_the_same_bytes(batches, keys):
    columns, singly = Side(keys), Side(keys)
    ns, seq, by_column = START_NS, 1, 0
    for happens in batches:
        if happens is None:
            columns.begin()
            singly.begin()
            continue
        rows, (before_ns, later_ns) = happens
        ns += later_ns + before_ns
        batch = batch_of(rows, before_ns, seq, ns)
        seq += len(rows)
        by_column += len(columns.history.parted(batch, tickers=keys is not CANDLES)[1])
        columns.whole(batch)
        singly.one_by_one(batch)
        assert columns.told() == singly.told()
    event(f"rows by column: {'some' if by_column else 'none'}")
    everything = np.arange(len(INSTRUMENTS), dtype=np.int32)
    if keys is not CANDLES:  # else nobody looks at the last digits of the day's sums
        assert columns.history.ticker_rows(everything) == singly.history.ticker_rows(everything)
    for index in range(len(Candles.INTERVALS)):
        sides = [[side.history.candles.closed(index, i) for i in everything.tolist()] for side in (columns, singly)]
        assert [[candle.trades for candle in row] for row in sides[0]] == [[c.trades for c in row] for row in sides[1]]


def parted(rows, before_ns, *, tickers):
    return History(INSTRUMENTS, HistoryOptions()).parted(batch_of(rows, before_ns, 1, START_NS), tickers=tickers)


def test_books_are_taken_one_by_one_only_until_their_first_quote():
    rows = [("B", 0, 100, 1, 0, 0), ("T", 1, 100, 1, 0, 0), ("Q", 0, 100, 1, 0, 0), ("B", 0, 99, 1, 0, 0)]
    first, rest = parted(rows, 0, tickers=True)
    assert (first.levels.seq.tolist(), first.trades.seq.tolist(), len(first.quotes)) == ([1], [2], 0)
    assert (rest.quotes.seq.tolist(), rest.levels.seq.tolist(), len(rest.trades)) == ([3], [4], 0)
    assert [len(part) for part in parted(rows, 0, tickers=False)] == [0, 4]


def test_trades_from_before_the_half_hour_are_taken_one_by_one():
    rows = [("T", 0, 100, 1, 0, 0), ("Q", 0, 100, 1, 0, 0)]
    assert [len(part) for part in parted(rows, HOUR_NS, tickers=True)] == [2, 0]
    assert [len(part) for part in parted(rows, HOUR_NS, tickers=False)] == [0, 2]


def test_what_holds_after_each_event_is_of_its_own_instrument():
    rows = [("T", 0, 5, 5, 0, 0), ("Q", 0, 5, 5, 0, 0), ("Q", 1, 5, 5, 0, 0), ("T", 1, 5, 5, 0, 0)]
    batch = batch_of(rows, 0, 1, START_NS)
    line, before, after = timeline(batch.trades, batch.quotes), np.array([-1, -1, -2, -2]), np.array([10, 20])
    assert line.since_trade(after, before).tolist() == [10, 10, -2, 20]
    assert line.since_quote(after, before).tolist() == [-1, 10, 20, 20]
