"""Binance's messages: the real capture against the recording made of it, and the making of books."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feeds.book import Books
from feeds.convert import Conversion, ConvertOptions
from feeds.errors import RecordingError
from feeds.formats.binance_messages import KEPT_CHANGES
from feeds.records import BUY, CLEAR, GAP, LAST, SELL, SET, SNAPSHOT
from feeds.store import open_recording
from tests.captures import T, capture, read, rows

SHARED = Path(__file__).parents[2] / "shared" / "data"
CAPTURES = [SHARED / "binance" / f"spot_{symbol}_20240808.gz" for symbol in ("btcusdt", "ethusdt")]
RECORDING = SHARED / "recordings" / "binance_spot_20240808"
real = pytest.mark.skipif(not CAPTURES[0].is_file(), reason="the shared data are not here")

TABLES = ("trades", "quotes", "book")
MS = 1_000_000


def quote(u=7, bid="100.10", bid_qty="2.5", ask="100.20", ask_qty="0.00100000", **more):
    return {"u": u, "s": "BTCUSDT", "b": bid, "B": bid_qty, "a": ask, "A": ask_qty, **more}


def trade(t=11, price="100.15", qty="0.5", m=False, **more):
    return {
        "e": "trade",
        "E": 1723161255343,
        "s": "BTCUSDT",
        "t": t,
        "p": price,
        "q": qty,
        "T": 1723161255342,
        "m": m,
    } | more


def agg_trade(a=21, price="100.15", qty="0.5", m=True):
    numbers = {"e": "aggTrade", "E": 1723161255343, "s": "BTCUSDT", "a": a, "p": price, "q": qty}
    return {**numbers, "f": 11, "l": 12, "T": 1723161255342, "m": m, "M": True}


def depth(first, last, bids=(), asks=(), **more):
    head = {"e": "depthUpdate", "E": 1723161255208, "s": "BTCUSDT", "U": first, "u": last}
    return {**head, "b": [list(level) for level in bids], "a": [list(level) for level in asks], **more}


def snapshot(last, bids=(), asks=(), **more):
    return {"lastUpdateId": last, "bids": [list(x) for x in bids], "asks": [list(x) for x in asks], **more}


def combined(stream, data):
    return {"stream": f"btcusdt@{stream}", "data": data}


BOOK = ("venue_seq", "action", "side", "price", "qty", "evt_flags")
CLEARED = (CLEAR, 0, None, None, SNAPSHOT)


# --- the real capture


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("converted") / "both"
    Conversion(CAPTURES, ConvertOptions()).write(prefix)
    return prefix


@real
@pytest.mark.parametrize("table", TABLES)
def test_the_recording_made_of_the_same_captures_is_equal_in_every_column(converted, table):
    ours, theirs = (pq.read_table(f"{prefix}.{table}.parquet") for prefix in (converted, RECORDING))
    assert ours.num_rows == theirs.num_rows == {"trades": 15_863, "quotes": 52_117, "book": 234_877}[table]
    for name in theirs.column_names:
        left, right = (found[name].combine_chunks() for found in (ours, theirs))
        if pa.types.is_dictionary(right.type):
            left, right = left.cast(pa.string()), right.cast(pa.string())
        assert left.equals(right), name


@real
def test_real_books_are_never_crossed_after_an_event(converted):
    recording = open_recording(converted)
    books, events, crossed = Books(), 0, 0
    for levels in recording.levels():
        for event in books.apply(levels):
            events += 1
            crossed += books[event.instrument].crossed
    assert (events, crossed) == (6_883, 0)


@real
def test_the_clock_of_the_capture_is_behind_the_venues_and_event_times_run_backwards():
    tables, _ = read(CAPTURES[0])
    received, happened = (tables["trades"][name].cast(pa.int64()).to_numpy() for name in ("ts_recv", "ts_event"))
    assert (received < happened).all()
    assert 1.2e9 < np.median(happened - received) < 1.3e9
    merged = pa.concat_tables([tables[t].select(["seq", "ts_event"]) for t in ("trades", "book")]).sort_by("seq")
    times = merged["ts_event"].cast(pa.int64()).drop_null().to_numpy()
    assert np.count_nonzero(np.diff(times) < 0) == 43


# --- one message of each kind


def test_quotes_of_spot(tmp_path):
    tables, _ = read(
        capture(tmp_path, [combined("bookTicker", quote()), quote(8, bid="0.00000000", bid_qty="0.00000000")])
    )
    quotes = tables["quotes"]
    assert rows(quotes, "ts_recv", "ts_event", "seq", "venue", "symbol", "evt_flags", "venue_seq") == [
        (T, None, 0, "BINANCE", "BTCUSDT", LAST, 7),
        (T + MS, None, 1, "BINANCE", "BTCUSDT", LAST, 8),
    ]
    assert rows(quotes, "bid_px", "bid_qty", "ask_px", "ask_qty") == [
        (100.1, 2.5, 100.2, 0.001),
        (None, None, 100.2, 0.001),
    ]


def test_quotes_of_futures_have_the_time_of_their_transaction(tmp_path):
    tables, _ = read(capture(tmp_path, [{"e": "bookTicker", **quote(E=1723161255343, T=1723161255340)}]))
    assert rows(tables["quotes"], "ts_event", "venue_seq") == [(1723161255340 * MS, 7)]


@pytest.mark.parametrize(("message", "ident", "side"), [(trade(), 11, BUY), (agg_trade(), 21, SELL)])
@pytest.mark.parametrize("stream", [None, "trade", "aggTrade"])
def test_trades(tmp_path, message, ident, side, stream):
    wrapped = message if stream is None else combined(message["e"], message)
    trades = read(capture(tmp_path, [wrapped]))[0]["trades"]
    assert rows(trades, "ts_event", "venue_seq", "trade_id", "price", "qty", "side", "evt_flags") == [
        (1723161255342 * MS, ident, str(ident), 100.15, 0.5, side, LAST)
    ]


def test_microseconds_are_told_from_milliseconds(tmp_path):
    trades = read(capture(tmp_path, [trade(T=1723161255342_123), trade(T=0)]))[0]["trades"]
    assert rows(trades, "ts_event") == [(1723161255342_123_000,), (None,)]


def test_the_stream_that_told_of_trades_first_goes_on_telling(tmp_path):
    tables, source = read(capture(tmp_path, [agg_trade(), trade(), agg_trade(22)]))
    assert tables["trades"]["trade_id"].to_pylist() == ["21", "22"]
    assert source.passed_over == {"trade beside aggTrade": 1}


def test_prints_without_a_price_are_passed_over(tmp_path):
    tables, source = read(capture(tmp_path, [trade(price="0", qty="0", X="NA"), trade()]))
    assert tables["trades"].num_rows == 1
    assert source.passed_over == {"trades without a price": 1}


OTHERS = {
    "kline": {"e": "kline", "E": 1, "s": "BTCUSDT", "k": {"t": 1, "o": "1"}},
    "24hrTicker": {"e": "24hrTicker", "E": 1, "s": "BTCUSDT", "p": "1", "b": "2", "a": "3", "A": "1"},
    "markPrice": combined("markPrice@1s", {"e": "markPriceUpdate", "s": "BTCUSDT", "p": "1"}),
    "ticker": '{"stream":"!ticker@arr","data":[{"e":"24hrTicker"}]}',
    "messages of no known kind": '{"result":null,"id":1}',
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_messages_are_passed_over_by_name(tmp_path, name):
    tables, source = read(capture(tmp_path, [quote(), OTHERS[name]]))
    assert source.passed_over == {name: 1}
    assert set(tables) == {"quotes"}


# --- books


def test_what_a_snapshot_contains_is_dropped_and_what_belongs_on_top_is_applied_after_it(tmp_path):
    messages = (
        depth(1, 5, [("99.0", "1")]),
        depth(6, 9, [("98.0", "1")], [("101.0", "0")]),
        depth(10, 12, [("97.0", "1")]),
        snapshot(8, [("99.5", "2")], [("101.0", "3")]),
        depth(13, 13, [("99.5", "0")]),
    )
    tables, _ = read(capture(tmp_path, messages))
    assert rows(tables["book"], *BOOK) == [
        (8, *CLEARED),
        (8, SET, BUY, 99.5, 2.0, SNAPSHOT),
        (8, SET, SELL, 101.0, 3.0, SNAPSHOT | LAST),
        (9, SET, BUY, 98.0, 1.0, 0),
        (9, SET, SELL, 101.0, 0.0, LAST),
        (12, SET, BUY, 97.0, 1.0, LAST),
        (13, SET, BUY, 99.5, 0.0, LAST),
    ]
    times = rows(tables["book"], "ts_recv", "ts_event")
    assert times == [(T + 3 * MS, None)] * 3 + [(T + 3 * MS, 1723161255208 * MS)] * 3 + [
        (T + 4 * MS, 1723161255208 * MS)
    ]


def test_a_later_snapshot_takes_what_belongs_on_top_of_it_again(tmp_path):
    messages = [
        snapshot(5, [("99", "1")]),
        depth(6, 6, [("98", "1")]),
        depth(7, 7, [("97", "1")]),
        snapshot(6, [("98", "1")]),
    ]
    book = read(capture(tmp_path, messages), symbol="BTCUSDT")[0]["book"]
    assert book["venue_seq"].to_pylist() == [5, 5, 6, 7, 6, 6, 7]


def test_a_hole_in_the_ids_marks_the_next_row(tmp_path):
    one = [("99", "1"), ("98", "1")]
    messages = [quote(), snapshot(5, one), depth(6, 7, one), depth(9, 9, one), depth(10, 10, one)]
    book = read(capture(tmp_path, messages))[0]["book"]
    assert rows(book, "venue_seq", "evt_flags")[3:] == [(7, 0), (7, LAST), (9, GAP), (9, LAST), (10, 0), (10, LAST)]


def test_a_hole_before_a_change_without_levels_marks_the_row_after(tmp_path):
    messages = [quote(), snapshot(5, [("99", "1")]), depth(9, 9), depth(10, 10, [("98", "1")])]
    assert rows(read(capture(tmp_path, messages))[0]["book"], "venue_seq", "evt_flags")[2:] == [(10, GAP | LAST)]


def test_a_snapshot_too_old_for_the_changes_before_it_marks_the_hole(tmp_path):
    messages = [depth(8, 9, [("99", "1")]), snapshot(5, [("99", "2")])]
    assert rows(read(capture(tmp_path, messages))[0]["book"], "venue_seq", "evt_flags")[-1] == (9, GAP | LAST)


def test_changes_that_were_there_already_are_dropped(tmp_path):
    messages = [quote(), snapshot(5, [("99", "1")]), depth(6, 7, [("98", "1")]), depth(6, 7, [("98", "1")])]
    assert read(capture(tmp_path, messages))[0]["book"]["venue_seq"].to_pylist() == [5, 5, 7]


def test_futures_say_themselves_what_came_before(tmp_path):
    one = [("99", "1")]
    messages = (
        snapshot(105, one, E=1723161255000, T=1723161254999),
        depth(100, 110, one, pu=95, T=1723161255100),
        depth(115, 120, one, pu=110),
        depth(130, 140, one, pu=125),
    )
    book = read(capture(tmp_path, messages), symbol="BTCUSDT")[0]["book"]
    assert rows(book, "venue_seq", "ts_event", "evt_flags")[1:] == [
        (105, 1723161254999 * MS, SNAPSHOT | LAST),
        (110, 1723161255100 * MS, LAST),
        (120, 1723161255208 * MS, LAST),
        (140, 1723161255208 * MS, GAP | LAST),
    ]


@pytest.mark.parametrize("count", [3, KEPT_CHANGES + 2])
def test_a_book_without_a_snapshot_is_marked_as_not_known(tmp_path, count):
    messages = [depth(i, i, [("99", str(i))]) for i in range(1, count + 1)]
    book = read(capture(tmp_path, messages))[0]["book"]
    assert book["venue_seq"].to_pylist() == list(range(1, count + 1))
    assert book["evt_flags"].to_pylist() == [GAP | LAST] + [LAST] * (count - 1)
    waited = min(count, KEPT_CHANGES) - 1
    assert book["ts_recv"].cast(pa.int64()).to_pylist()[:waited] == [T + waited * MS] * waited


@pytest.mark.parametrize(
    "data",
    [snapshot(5, [("99", "1")], [("101", "2")]), depth(4, 5, [("99", "1")], [("101", "2")], pu=3)],
    ids=["spot", "futures"],
)
def test_the_best_levels_sent_whole_are_a_snapshot_each_time(tmp_path, data):
    book = read(capture(tmp_path, [combined("depth20@100ms", data)] * 2))[0]["book"]
    assert book["action"].to_pylist() == [CLEAR, SET, SET] * 2
    assert set(book["symbol"].to_pylist()) == {"BTCUSDT"}


def test_a_snapshot_among_several_symbols_needs_a_name(tmp_path):
    other = {**quote(), "s": "ETHUSDT"}
    path = capture(tmp_path, [quote(), other, snapshot(5, [("99", "1")])])
    with pytest.raises(RecordingError, match=r"capture\.txt:3: a snapshot of unknown symbol; say which with --symbol"):
        read(path)
    assert read(path, symbol="ETHUSDT")[0]["book"]["symbol"].to_pylist() == ["ETHUSDT"] * 2


# --- damage

BAD = {
    "Expected `float`, got `str`": quote(bid="abc"),
    "Expected `float` >= 0.0": quote(bid="-1.0"),
    "Expected `float` >= 0.0 ": quote(bid="nan"),
    "Expected `float` <=": trade(price="inf"),
    "Expected `float` >= 0.0 - at `$.b[0][1]`": depth(1, 1, [("99", "-1")]),
    "missing required field": {"e": "trade", "s": "BTCUSDT"},
    "truncated": '{"stream":"btcusdt@bookTicker","data":{"u":50093',
    "Expected `int`": quote(u="x"),
    "malformed": "no json",
    "Expected `int` <= 9223372036854775807": quote(u=1 << 63),
}


@pytest.mark.parametrize("why", BAD)
def test_a_bad_line_is_named_or_left_out(tmp_path, why):
    path = capture(tmp_path, [quote(1), BAD[why], quote(2)])
    with pytest.raises(RecordingError, match=rf"capture\.txt:2: .*{re.escape(why.strip())}"):
        read(path)
    tables, source = read(path, skip_bad=True)
    assert tables["quotes"]["venue_seq"].to_pylist() == [1, 2]
    assert source.refused == 1


def test_a_last_line_cut_off_is_named_and_those_before_it_are_kept(tmp_path):
    path = capture(tmp_path, [quote(1), quote(2)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecordingError, match=r"capture\.txt:2: "):
        read(path)
    assert read(path, skip_bad=True)[0]["quotes"]["venue_seq"].to_pylist() == [1]


def test_a_change_with_one_bad_level_is_left_out_whole_and_missed(tmp_path):
    messages = [
        quote(),
        snapshot(5, [("99", "1")]),
        depth(6, 6, [("98", "1"), ("97", "-1")]),
        depth(7, 7, [("96", "1")]),
    ]
    tables, source = read(capture(tmp_path, messages), skip_bad=True)
    assert rows(tables["book"], "venue_seq", "evt_flags")[2:] == [(7, GAP | LAST)]
    assert source.complaints[0].startswith(f"{source.name}:3: Expected `float` >= 0.0 - at `$.b[1][1]`: '17231")


def test_nesting_without_end_is_an_error_of_its_line(tmp_path):
    with pytest.raises(RecordingError, match=r"capture\.txt:2: "):
        read(capture(tmp_path, [quote(), '{"e":"kline","k":' + "[" * 100_000]))
