"""Tickers after every event of a batch, made by column: the same bytes as when each event is a batch of its own."""

from __future__ import annotations

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from feeds.records import LAST, MISSING, SET, Batch, Levels, Quotes, Trades
from tests.scripted import INSTRUMENTS, START_NS
from ticker.history import History, HistoryOptions
from ticker.listings import Listings
from ticker.timeline import timeline
from ticker.topics import open_topic
from ticker.topics.topic import TopicKey

HOUR_NS = 3_600_000_000_000
KEYS = [
    TopicKey("ticker", variant, mode="batch", native=True, quoted=quoted, packed=packed)
    for variant in ("bbo", "trades")
    for quoted, packed in ((False, False), (True, False), (False, True))
]
#: Doubles cannot add up products of these exactly, so that the order of additions shows.
PRICES = st.integers(5_000_000, 7_000_000)
SIZES = st.integers(0, 3) | st.integers(10**8, 10**10)
ROW = st.tuples(st.sampled_from("TQQB"), st.integers(0, 1), PRICES, SIZES, st.integers(-5, 5), st.integers(0, 2))
#: How long before the end of a batch its rows are, and how long after the batch before it they come.
WHEN = st.tuples(st.sampled_from((0, 0, HOUR_NS // 3)), st.sampled_from((0, 1, HOUR_NS // 4, HOUR_NS, 25 * HOUR_NS)))
BATCHES = st.lists(st.tuples(st.lists(ROW, min_size=1, max_size=20), WHEN) | st.none(), min_size=1, max_size=8)


class Side:
    """A market as far as tickers need it."""

    def __init__(self) -> None:
        self.history = History(INSTRUMENTS, HistoryOptions())
        self.history.epoch = "0000abcd"
        listings = Listings(INSTRUMENTS)
        self.topics = [open_topic(key, self.history, listings) for key in KEYS]
        for topic in self.topics:
            topic.acquire(range(len(listings)))

    def one_by_one(self, batch: Batch) -> None:
        for piece in batch.by_event():
            self.history.apply(piece)
            for topic in self.topics:
                topic.applied(piece)

    def by_column(self, batch: Batch) -> int:
        first, rest = self.history.parted(batch)
        if first:
            self.one_by_one(first)
        if rest:
            events = self.history.apply_each(rest)
            for topic in self.topics:
                topic.applied_each(rest, events)
        return len(rest)

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
@given(BATCHES)
def test_by_column_and_one_by_one_tell_the_same_bytes(batches):
    columns, singly = Side(), Side()
    ns, seq, whole = START_NS, 1, 0
    for happens in batches:
        if happens is None:
            columns.begin()
            singly.begin()
            continue
        rows, (before_ns, later_ns) = happens
        ns += later_ns + before_ns
        batch = batch_of(rows, before_ns, seq, ns)
        seq += len(rows)
        whole += columns.by_column(batch)
        singly.one_by_one(batch)
        assert columns.told() == singly.told()
    event(f"rows by column: {'some' if whole else 'none'}")
    everything = np.arange(len(INSTRUMENTS), dtype=np.int32)
    assert columns.history.ticker_rows(everything) == singly.history.ticker_rows(everything)


def test_books_are_taken_one_by_one_only_until_their_first_quote():
    side = Side()
    rows = [("B", 0, 100, 1, 0, 0), ("T", 1, 100, 1, 0, 0), ("Q", 0, 100, 1, 0, 0), ("B", 0, 99, 1, 0, 0)]
    first, rest = side.history.parted(batch_of(rows, 0, 1, START_NS))
    assert (first.levels.seq.tolist(), first.trades.seq.tolist(), len(first.quotes)) == ([1], [2], 0)
    assert (rest.quotes.seq.tolist(), rest.levels.seq.tolist(), len(rest.trades)) == ([3], [4], 0)


def test_trades_from_before_the_half_hour_are_taken_one_by_one():
    side = Side()
    batch = batch_of([("T", 0, 100, 1, 0, 0), ("Q", 0, 100, 1, 0, 0)], HOUR_NS, 1, START_NS)
    first, rest = side.history.parted(batch)
    assert (len(first), len(rest)) == (2, 0)


def test_what_holds_after_each_event_is_of_its_own_instrument():
    rows = [("T", 0, 5, 5, 0, 0), ("Q", 0, 5, 5, 0, 0), ("Q", 1, 5, 5, 0, 0), ("T", 1, 5, 5, 0, 0)]
    batch = batch_of(rows, 0, 1, START_NS)
    line, before, after = timeline(batch.trades, batch.quotes), np.array([-1, -1, -2, -2]), np.array([10, 20])
    assert line.since_trade(after, before).tolist() == [10, 10, -2, 20]
    assert line.since_quote(after, before).tolist() == [-1, 10, 20, 20]
