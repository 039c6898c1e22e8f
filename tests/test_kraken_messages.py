"""Kraken's messages: each channel, and books that are cut at the depth subscribed to."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.errors import RecordingError
from feeds.formats.kraken_messages import DEPTHS
from feeds.records import BUY, CLEAR, GAP, LAST, SELL, SET, SNAPSHOT
from tests.captures import T, capture, read, rows

STAMP = "2023-10-06T17:35:55.440295Z"
STAMP_NS = 1_696_613_755_440_295_000
MS = 1_000_000


def message(channel, *data, update="update"):
    return {"channel": channel, "type": update, "data": list(data)}


def ticker(symbol="BTC/USD", **more):
    quote = {"bid": 27_500.1, "bid_qty": 0.5, "ask": 27_500.2, "ask_qty": 1.25}
    return {"symbol": symbol, **quote, "last": 27_500.2, "volume": 9.5, "vwap": 27_000.0, **more}


def trade(trade_id=4_665_906, side="buy", **more):
    row = {"symbol": "BTC/USD", "side": side, "price": 27_500.2, "qty": 0.02, "ord_type": "limit"}
    return row | {"trade_id": trade_id, "timestamp": STAMP} | more


def book(bids=(), asks=(), update="update", symbol="BTC/USD"):
    sides = [[{"price": price, "qty": qty} for price, qty in side] for side in (bids, asks)]
    row = {"symbol": symbol, "bids": sides[0], "asks": sides[1], "checksum": 2_114_181_697, "timestamp": STAMP}
    return message("book", row, update=update)


def snapshot(bids=(), asks=()):
    return book(bids, asks, update="snapshot")


def test_ticker(tmp_path):
    data = [message("ticker", ticker(), ticker("ETH/USD", timestamp=STAMP), update="snapshot")]
    quotes = read(capture(tmp_path, data))[0]["quotes"]
    assert rows(quotes, "ts_recv", "ts_event", "seq", "venue", "symbol", "evt_flags", "venue_seq") == [
        (T, None, 0, "KRAKEN", "BTC/USD", LAST, None),
        (T, STAMP_NS, 1, "KRAKEN", "ETH/USD", LAST, None),
    ]
    assert rows(quotes, "bid_px", "bid_qty", "ask_px", "ask_qty") == [(27_500.1, 0.5, 27_500.2, 1.25)] * 2


def test_trades_but_not_those_from_before_the_subscription(tmp_path):
    messages = [message("trade", trade(1), update="snapshot"), message("trade", trade(), trade(4_665_907, "sell"))]
    tables, source = read(capture(tmp_path, messages))
    assert rows(tables["trades"], "ts_event", "venue_seq", "trade_id", "price", "qty", "side") == [
        (STAMP_NS, 4_665_906, "4665906", 27_500.2, 0.02, BUY),
        (STAMP_NS, 4_665_907, "4665907", 27_500.2, 0.02, SELL),
    ]
    assert source.passed_over == {"trades from before the subscription": 1}


def test_books(tmp_path):
    messages = [snapshot([(99.0, 1.0)], [(101.0, 2.0)]), book([(99.0, 0.0), (98.0, 3.0)]), book(asks=[(101.5, 4.0)])]
    levels = read(capture(tmp_path, messages))[0]["book"]
    assert rows(levels, "ts_recv", "action", "side", "price", "qty", "evt_flags") == [
        (T, CLEAR, 0, None, None, SNAPSHOT),
        (T, SET, BUY, 99.0, 1.0, SNAPSHOT),
        (T, SET, SELL, 101.0, 2.0, SNAPSHOT | LAST),
        (T + MS, SET, BUY, 99.0, 0.0, 0),
        (T + MS, SET, BUY, 98.0, 3.0, LAST),
        (T + 2 * MS, SET, SELL, 101.5, 4.0, LAST),
    ]
    assert set(levels["ts_event"].cast(pa.int64()).to_pylist()) == {STAMP_NS}


def test_a_level_pushed_out_of_the_depth_is_removed(tmp_path):
    bids = [(100.0 - i, 1.0) for i in range(10)]
    asks = [(101.0 + i, 1.0) for i in range(10)]
    messages = [snapshot(bids, asks), book([(100.5, 2.0)], [(101.0, 0.0), (111.0, 1.0), (100.8, 1.0)])]
    levels = read(capture(tmp_path, messages))[0]["book"]
    assert rows(levels, "side", "price", "qty", "evt_flags")[21:] == [
        (BUY, 100.5, 2.0, 0),
        (BUY, 91.0, 0.0, 0),
        (SELL, 101.0, 0.0, 0),
        (SELL, 111.0, 1.0, 0),
        (SELL, 100.8, 1.0, 0),
        (SELL, 111.0, 0.0, LAST),
    ]


PRICE = st.integers(1, 40).map(float)
UPDATE = st.lists(st.tuples(PRICE, st.sampled_from([0.0, 1.0, 2.5])), max_size=8)


@given(st.sampled_from([BUY, SELL]), st.dictionaries(PRICE, st.just(1.0), max_size=10), st.lists(UPDATE, max_size=10))
@settings(max_examples=30, deadline=None)
def test_the_rows_give_the_book_of_a_subscriber_who_cuts_his(tmp_path_factory, side, start, updates):
    sides = {BUY: "bids", SELL: "asks"}[side]
    other = [(price, 1.0) for price in range(1, 11)]  # ten levels on the other side: this one has a depth of ten too
    first = snapshot(**{"bids": other, "asks": other, sides: list(start.items())})
    messages = [first, *(book(**{sides: update}) for update in updates)]
    levels = read(capture(tmp_path_factory.mktemp("book"), messages))[0]["book"]
    told, cut, ours = rows(levels, "ts_recv", "side", "price", "qty"), dict(start), {}
    for i, update in enumerate([[], *updates]):
        cut |= dict(update)
        kept = sorted((price for price, qty in cut.items() if qty), reverse=side == BUY)[:10]
        cut = {price: cut[price] for price in kept}
        ours |= {price: qty for ts, of, price, qty in told if ts == T + i * MS and of == side}
        assert {price: qty for price, qty in ours.items() if qty} == cut


def test_changes_of_a_book_that_is_not_known_are_marked(tmp_path):
    levels = read(capture(tmp_path, [book([(99.0, 1.0)]), book([(98.0, 1.0)])]))[0]["book"]
    assert levels["evt_flags"].to_pylist() == [GAP | LAST, LAST]


def acknowledged(depth, symbol="BTC/USD"):
    return {"method": "subscribe", "result": {"channel": "book", "depth": depth, "symbol": symbol}, "success": True}


def removed(tmp_path, *messages):
    """Prices of the levels that are removed by more bids, one by one."""
    bids = [book([(1_001.0 + i, 1.0)]) for i in range(5)]
    levels = read(capture(tmp_path, [*messages, *bids]))[0]["book"]
    return [price for price, qty in rows(levels, "price", "qty") if qty == 0.0]


def bids(count):
    return snapshot([(1_000.0 - i, 1.0) for i in range(count)])


def test_the_depth_is_the_one_acknowledged_however_many_levels_the_snapshot_has(tmp_path):
    assert removed(tmp_path, acknowledged(25), bids(8)) == []
    assert removed(tmp_path, acknowledged(25), bids(23)) == [978.0, 979.0, 980.0]
    assert removed(tmp_path, acknowledged(10), acknowledged(25), bids(10)) == []
    assert removed(tmp_path, acknowledged(25), acknowledged(10, "ETH/USD"), bids(10)) == []


def test_without_an_acknowledgement_only_a_snapshot_of_a_whole_depth_tells_it(tmp_path):
    assert removed(tmp_path, bids(8)) == removed(tmp_path, bids(24)) == []
    assert removed(tmp_path, bids(25)) == [976.0, 977.0, 978.0, 979.0, 980.0]
    assert 25 in DEPTHS
    assert removed(tmp_path, acknowledged(None), bids(24)) == []
    refusal = {"method": "subscribe", "error": "Currency pair not supported", "result": None, "success": False}
    assert removed(tmp_path, refusal, bids(9)) == []


OTHERS = {
    "heartbeat": {"channel": "heartbeat"},
    "status": message("status", {"system": "online", "api_version": "v2", "connection_id": 1, "version": "2.0.1"}),
    "instrument": {"channel": "instrument", "type": "snapshot", "data": {"assets": [], "pairs": []}},
    "ohlc": message("ohlc", {"symbol": "BTC/USD", "open": 1.0}),
    "subscribe": {"method": "subscribe", "result": {"channel": "ticker", "symbol": "BTC/USD"}, "success": True},
    "messages of no known kind": {"event": "systemStatus"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_messages_are_passed_over_by_name(tmp_path, name):
    tables, source = read(capture(tmp_path, [message("ticker", ticker()), OTHERS[name]]))
    assert source.passed_over == {name: 1}
    assert set(tables) == {"quotes"}


def test_numbers_written_as_text_are_numbers(tmp_path):
    quotes = read(capture(tmp_path, [message("ticker", ticker(bid="27500.1"))]))[0]["quotes"]
    assert quotes["bid_px"].to_pylist() == [27_500.1]


def test_a_capture_of_nothing_but_heartbeats_is_refused(tmp_path):
    with pytest.raises(RecordingError, match=r"none of its messages has a place in a recording \(heartbeat\)"):
        read(capture(tmp_path, [{"channel": "heartbeat"}] * 3))


BAD = {
    "text": message("ticker", ticker(bid="abc")),
    "negative": message("ticker", ticker(bid=-1.0)),
    "no symbol": message("ticker", {"bid": 1.0}),
    "no price": message("trade", {"symbol": "BTC/USD", "side": "buy"}),
    "no data": {"channel": "ticker", "type": "update"},
    "far date": message("trade", trade(timestamp="9696-01-01T00:00:00Z")),
    "date": message("trade", trade(timestamp="yesterday")),
    "cut off": json.dumps(message("ticker", ticker()))[:50],
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_line_is_named_or_left_out(tmp_path, bad):
    good = message("ticker", ticker())
    path = capture(tmp_path, [good, BAD[bad], good])
    with pytest.raises(RecordingError, match=r"capture\.txt:2: "):
        read(path)
    tables, source = read(path, skip_bad=True)
    assert tables["quotes"].num_rows == 2
    assert source.refused == 1
