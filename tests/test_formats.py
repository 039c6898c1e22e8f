"""Vendors' formats: real files against an independent parse, and the traps that such files hold."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from feeds import formats
from feeds.errors import RecordingError
from feeds.formats import recording
from feeds.formats.arrow_messages import unpacked_bytes
from feeds.formats.bars import prints
from feeds.formats.format import ReadOptions, ReceiveClock
from feeds.formats.ladder import Ladder, Ladders
from feeds.formats.lines import blocks
from feeds.formats.numbers import fits
from feeds.formats.source import NAME_LENGTH, NAMES, Limits, Source, open_sources
from feeds.layout import SCHEMAS
from feeds.records import BAD_TS_RECV, BUY, CLEAR, GAP, LAST, SELL, SET, SNAPSHOT
from tests.format_samples import START_S, START_US, samples

SHARED = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared recordings are not here")
SAMPLES = [pytest.param(*sample, id=sample[1]) for sample in samples()]
US, S = 1_000, 1_000_000_000
SIDES = {"bid": BUY, "ask": SELL, "b": BUY, "a": SELL, "buy": BUY, "sell": SELL}
HEADER = "exchange,symbol,timestamp,local_timestamp,"


def read(path, skip_bad=False, **options):
    """The rows of a file by table, each a list of dicts; times as ints, whole chunks checked on the way."""
    (source,) = open_sources(Path(path), skip_bad=skip_bad)
    return read_source(source, **options), source


def read_source(source, **options):
    found = {}
    last_seq, last_ts = -1, 0
    for chunk in formats.detect(source).read(source, ReadOptions(**options)):
        keys = []
        for table, rows in chunk.items():
            assert rows.schema.equals(SCHEMAS[table])
            plain = rows.cast(pa.schema([(f.name, pa.int64() if f.name[:3] == "ts_" else f.type) for f in rows.schema]))
            found.setdefault(table, []).extend(plain.to_pylist())
            keys += zip(rows["seq"].to_pylist(), plain["ts_recv"].to_pylist(), strict=True)
        for seq, ts in sorted(keys):
            assert seq > last_seq
            assert ts >= last_ts
            last_seq, last_ts = seq, ts
    return found


@pytest.fixture
def write(tmp_path):
    """Writes a file of lines and returns its path."""

    def written(name, *lines, end="\n"):
        (tmp_path / name).write_text("\n".join(lines) + end)
        return tmp_path / name

    return written


def lines_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# Real files


@real
def test_tardis_trades():
    path = SHARED / "tardis" / "tardis_bitmex_trades_XBTUSD.csv"
    rows = read(path)[0]["trades"]
    assert len(rows) == len(lines_of(path)) == 10
    for row, line in zip(rows, lines_of(path), strict=True):
        assert (row["ts_recv"], row["ts_event"]) == (int(line["local_timestamp"]) * US, int(line["timestamp"]) * US)
        assert (row["price"], row["qty"]) == (float(line["price"]), float(line["amount"]))
        assert (row["side"], row["trade_id"]) == (SIDES[line["side"]], line["id"])
        assert (row["venue"], row["symbol"], row["evt_flags"]) == ("bitmex", "XBTUSD", LAST)
    assert rows[0]["ts_recv"] == 1_583_020_803_307_160_000


@real
def test_tardis_quotes_have_the_ask_before_the_bid_and_amounts_outside():
    path = SHARED / "tardis" / "tardis_huobi-dm-swap_quotes_BTC-USD.csv"
    rows = read(path)[0]["quotes"]
    for row, line in zip(rows, lines_of(path), strict=True):
        assert (row["bid_px"], row["bid_qty"]) == (float(line["bid_price"]), float(line["bid_amount"]))
        assert (row["ask_px"], row["ask_qty"]) == (float(line["ask_price"]), float(line["ask_amount"]))
    assert (rows[0]["bid_px"], rows[0]["bid_qty"], rows[0]["ask_px"], rows[0]["ask_qty"]) == (8629.2, 806, 8629.3, 5494)


@real
def test_tardis_incremental_book():
    path = SHARED / "tardis" / "tardis_deribit_incremental_book_L2_BTC-PERPETUAL.csv"
    rows = read(path)[0]["book"]
    for row, line in zip(rows, lines_of(path), strict=True):
        assert (row["action"], row["side"], row["price"]) == (SET, SIDES[line["side"]], float(line["price"]))
        assert row["qty"] == float(line["amount"])
        assert row["evt_flags"] & SNAPSHOT
    # All of them came in one message, whose last row is the last.
    assert [bool(row["evt_flags"] & LAST) for row in rows] == [False] * 14 + [True]


def state_after(rows, event):
    """The levels of a book after each event, by (side, price)."""
    book, states = {}, []
    for row in rows:
        if row["action"] == CLEAR:
            book.clear()
        elif row["qty"]:
            book[row["side"], row["price"]] = row["qty"]
        else:
            del book[row["side"], row["price"]]
        if row["evt_flags"] & LAST:
            states.append((row[event], dict(book)))
    return states


@real
@pytest.mark.parametrize("levels", [5, 25])
def test_tardis_snapshots_become_changes_that_make_the_same_books(levels):
    path = SHARED / "tardis" / f"tardis_binance-futures_book_snapshot_{levels}_BTCUSDT.csv"
    rows = read(path)[0]["book"]
    lines = lines_of(path)
    wanted = []
    for line in lines:
        sides = ((BUY, "bids"), (SELL, "asks"))
        places = [(side, f"{name}[{i}].") for side, name in sides for i in range(levels)]
        book = {(side, float(line[f"{p}price"])): float(line[f"{p}amount"]) for side, p in places}
        if not wanted or wanted[-1][1] != book:
            wanted.append((int(line["local_timestamp"]) * US, book))
    assert state_after(rows, "ts_recv") == wanted
    assert sum(bool(row["evt_flags"] & SNAPSHOT) for row in rows) == 2 * levels + 1
    assert len(rows) < 2 * levels * len(lines) / 3


@real
@pytest.mark.parametrize("part", ["snap", "update"])
def test_binance_depth(part):
    path = SHARED / "binance" / f"binance_btcusdt-depth-{part}.csv"
    rows = read(path)[0]["book"]
    lines = lines_of(path)
    assert len(rows) == len(lines) == 100
    for row, line in zip(rows, lines, strict=True):
        assert row["ts_recv"] == row["ts_event"] == int(line["timestamp"]) * 1_000_000
        assert (row["side"], row["price"]) == (SIDES[line["side"]], float(line["price"]))
        assert (row["qty"], row["venue_seq"]) == (float(line["qty"]), int(line["last_update_id"]))
        assert bool(row["evt_flags"] & SNAPSHOT) == (part == "snap")
    assert sum(bool(row["evt_flags"] & LAST) for row in rows) == len({line["last_update_id"] for line in lines})


@real
def test_kraken_history_has_ties_of_a_second_and_no_side():
    path = SHARED / "kraken" / "kraken_BCHEUR_trades.csv"
    rows = read(path)[0]["trades"]
    with path.open() as file:
        wanted = [(int(t) * S, float(price), float(qty)) for t, price, qty in csv.reader(file)]
    assert [(row["ts_recv"], row["price"], row["qty"]) for row in rows] == wanted
    assert max(Counter(row["ts_recv"] for row in rows).values()) > 1
    assert {row["side"] for row in rows} == {0}
    assert {(row["venue"], row["symbol"]) for row in rows} == {("KRAKEN", "BCHEUR")}


@real
@pytest.mark.parametrize("path", sorted((SHARED / "recordings").glob("*.parquet")), ids=lambda path: path.name)
def test_our_own_files_are_read_as_they_are(path):
    (source,) = open_sources(path)
    chunks = list(formats.detect(source).read(source, ReadOptions()))
    table = path.name.split(".")[1]
    found = pa.Table.from_batches([chunk[table] for chunk in chunks]).unify_dictionaries()
    wanted = pa.parquet.read_table(path).select(SCHEMAS[table].names).cast(SCHEMAS[table])
    for name in wanted.schema.names:
        plain = (
            pa.string() if pa.types.is_dictionary(wanted.schema.field(name).type) else wanted.schema.field(name).type
        )
        assert found[name].cast(plain).equals(wanted[name].cast(plain)), name


# Samples


@pytest.mark.parametrize(("known", "name", "data"), SAMPLES)
def test_every_table_is_told_by_its_content_under_any_name(tmp_path, known, name, data):
    path = tmp_path / ("renamed.bin" if known != "lobster" else name)
    path.write_bytes(data)
    (source,) = open_sources(path)
    assert formats.detect(source).name == known
    assert sum(map(len, read_source(source, symbol="A/B").values())) >= 10


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: pa.Codec("zstd").compress(data, asbytes=True)])
def test_compression_is_told_by_the_first_bytes(tmp_path, pack):
    for known, name, data in samples():
        if known != "recording":
            (tmp_path / name).write_bytes(data)
            plain, _ = read(tmp_path / name, symbol="A/B")
            (tmp_path / name).write_bytes(pack(data))
            assert read(tmp_path / name, symbol="A/B")[0] == plain


def test_every_member_of_an_archive_is_a_source(tmp_path):
    data = {name: data for known, name, data in samples() if known == "binance"}
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.mkdir("day")
        for name, content in data.items():
            archive.writestr(f"day/{name}", content)
    sources = open_sources(tmp_path / "all.zip")
    assert [source.file_name for source in sources] == sorted(data)
    assert sources[0].name == f"{tmp_path}/all.zip:day/{sorted(data)[0]}"
    assert {row["symbol"] for source in sources for rows in read_source(source).values() for row in rows} == {"BTCUSDT"}


def test_what_macos_puts_into_archives_is_no_source(tmp_path):
    beside = ("__MACOSX/day/._XBTUSD.csv", "day/._XBTUSD.csv", "day/.DS_Store")
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        archive.writestr("day/XBTUSD.csv", f"{START_S},10.5,1\n")
        for name in beside:
            archive.writestr(name, b"\x00\x05\x16\x07")
    assert len(read(tmp_path / "mac.zip")[0]["trades"]) == 1
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr(beside[0], b"\x00\x05\x16\x07")
    with pytest.raises(RecordingError, match="the archive holds no file"):
        read(tmp_path / "none.zip")


def test_however_many_kinds_of_records_have_no_place_few_are_told_apart(tmp_path):
    (tmp_path / "x").touch()
    source = Source(tmp_path / "x")
    for i in range(1_000):
        source.pass_over(f"{i:03}" + "x" * 1_000)
        source.pass_over("000" + "x" * 1_000)
    assert len(source.passed_over) == NAMES + 1
    assert max(map(len, source.passed_over)) == NAME_LENGTH
    assert source.passed_over["others"] == 1_000 - NAMES
    assert sum(source.passed_over.values()) == 2_000


# Traps


def test_binance_times_are_milliseconds_before_2025_and_microseconds_after(write):
    lines = ["1,10.5,2,21,1735689599999,True,True", "2,10.5,2,21,1735689600000123,false,True"]
    rows = read(write("BTCUSDT-trades-2025-01-01.csv", *lines))[0]["trades"]
    assert [row["ts_recv"] for row in rows] == [1_735_689_599_999_000_000, 1_735_689_600_000_123_000]
    assert [row["side"] for row in rows] == [SELL, BUY]
    assert [row["trade_id"] for row in rows] == ["1", "2"]


@pytest.mark.parametrize("time", [9_223_372_036_855, 17_231_612_557_470, 10**14 - 1])
def test_binance_times_between_milliseconds_and_microseconds_are_bad(write, time):
    lines = [f"{i},10.5,2,21,{at},True,True" for i, at in enumerate((1_723_161_255_747, time, 1_723_161_255_748))]
    path = write("BTCUSDT-trades-2024-08-08.csv", *lines)
    with pytest.raises(RecordingError, match=rf"\.csv:2: time is no time of this age \({time}\)"):
        read(path)
    assert [row["trade_id"] for row in read(path, skip_bad=True)[0]["trades"]] == ["0", "2"]


@pytest.mark.parametrize("header", ["", "id,price,qty,quote_qty,time,is_buyer_maker\n"])
def test_binance_files_have_a_header_or_none(tmp_path, header):
    path = tmp_path / "BTCUSDT-trades-2024-08-08.csv"
    path.write_text(header + "7,10.5,2,21,1723118400000,true\n8,10.6,3,21,1723118400001,false\n")
    rows = read(path)[0]["trades"]
    assert [(row["price"], row["qty"], row["side"]) for row in rows] == [(10.5, 2, SELL), (10.6, 3, BUY)]


def test_binance_book_ticker_was_received_when_the_event_was_sent(write):
    path = write("BTCUSDT-bookTicker-2024-08-08.csv", "9,100.5,1,100.6,2,1723118400000,1723118400007")
    (row,) = read(path)[0]["quotes"]
    assert (row["ts_event"], row["ts_recv"]) == (START_S * S, START_S * S + 7_000_000)
    assert (row["bid_px"], row["bid_qty"], row["ask_px"], row["ask_qty"], row["venue_seq"]) == (100.5, 1, 100.6, 2, 9)


def test_a_lost_update_of_a_depth_file_is_flagged_as_a_gap(write):
    header = "symbol,timestamp,first_update_id,last_update_id,side,update_type,price,qty,pu"
    updates = [(9, 5), (9, 5), (19, 9), (39, 29), (49, 39)]
    lines = [f"BTCUSDT,{START_S}000,1,{last},b,set,{10 + i},1,{pu}" for i, (last, pu) in enumerate(updates)]
    rows = read(write("depth.csv", header, *lines))[0]["book"]
    assert [row["evt_flags"] for row in rows] == [0, LAST, LAST, GAP | LAST, LAST]


def test_klines_become_prints_that_make_the_same_bars(write):
    rising, falling = "10,14,9,12,4.00000003", "12,13,8,9,0"
    lines = [
        f"{START_S + i * 60}000,{bar},{START_S + i * 60 + 59}999,1,1,1,1,0" for i, bar in enumerate((rising, falling))
    ]
    rows = read(write("BTCUSDT-1m-2024-08.csv", *lines))[0]["trades"]
    assert [row["price"] for row in rows] == [10, 9, 14, 12, 12, 13, 8, 9]
    assert sum(row["qty"] for row in rows[:4]) == pytest.approx(4.00000003, abs=1e-12)
    assert rows[0]["ts_recv"] == START_S * S
    assert rows[3]["ts_recv"] == (START_S + 60) * S - 1_000_000
    assert {row["side"] for row in rows} == {0}


@pytest.mark.parametrize("known_symbol", [True, False])
def test_a_symbol_that_nothing_names_must_be_given(write, known_symbol):
    path = write("download.csv", "7,10.5,2,21,1723118400000,true")
    if known_symbol:
        assert read(path, symbol="BTC/USDT", venue="X")[0]["trades"][0]["symbol"] == "BTC/USDT"
    else:
        with pytest.raises(RecordingError, match=r"download\.csv: .* --symbol"):
            read(path)


def test_one_sided_quotes(write):
    header = HEADER + "ask_amount,ask_price,bid_price,bid_amount"
    start = f"deribit,X,{START_US},{START_US}"
    rows = read(write("q.csv", header, f"{start},1,10.5,,", f"{start},,,10,2", f"{start},0,0,10,2"))[0]["quotes"]
    sides = [tuple(row[name] for name in ("bid_px", "bid_qty", "ask_px", "ask_qty")) for row in rows]
    assert sides == [(None, None, 10.5, 1), (10, 2, None, None), (10, 2, None, None)]


def test_prints_of_no_size_are_kept(write):
    header, start = HEADER + "id,side,price,amount", f"bitmex,X,{START_US},{START_US}"
    rows = read(write("t.csv", header, f"{start},a,buy,10.5,0", f"{start},,unknown,10.5,1"))[0]["trades"]
    assert [(row["qty"], row["side"], row["trade_id"]) for row in rows] == [(0, BUY, "a"), (1, 0, None)]


def test_a_receive_clock_that_runs_backwards_is_held_and_flagged(write):
    header = HEADER + "id,side,price,amount"
    lines = [f"bitmex,X,{START_US - 9},{START_US + late},a,buy,10,1" for late in (5, 3, 5, 6)]
    rows = read(write("t.csv", header, *lines))[0]["trades"]
    assert [row["ts_recv"] - START_US * US for row in rows] == [5_000, 5_000, 5_000, 6_000]
    assert [row["evt_flags"] & BAD_TS_RECV for row in rows] == [0, BAD_TS_RECV, 0, 0]


def test_event_times_may_run_backwards_and_snapshot_rows_be_hours_old(write):
    header = HEADER + "is_snapshot,side,price,amount"
    old = [f"x,X,{START_US - 40_000_000_000 - i},{START_US},true,bid,{9 - i},1" for i in range(2)]
    rows = read(write("b.csv", header, *old, f"x,X,{START_US},{START_US + 1},false,ask,10,0"))[0]["book"]
    assert [row["ts_event"] - START_US * US for row in rows] == [-40_000_000_000_000, -40_000_000_001_000, 0]
    assert [row["evt_flags"] for row in rows] == [SNAPSHOT, SNAPSHOT | LAST, LAST]


def test_an_event_that_is_cut_by_a_block_has_one_last_row(tmp_path, monkeypatch):
    monkeypatch.setattr("feeds.formats.delimited.blocks", partial(blocks, size=256))
    lines = [f"x,X,{START_US},{START_US + i // 7},false,bid,{i + 1},1" for i in range(40)]
    (tmp_path / "b.csv").write_text("\n".join([HEADER + "is_snapshot,side,price,amount", *lines]))
    rows = read(tmp_path / "b.csv")[0]["book"]
    assert [i for i, row in enumerate(rows) if row["evt_flags"] & LAST] == [6, 13, 20, 27, 34, 39]


def test_a_file_with_hours_of_nothing(write):
    rows = read(write("XBTUSD.csv", f"{START_S},1,1", f"{START_S + 80_000},1,1"))[0]["trades"]
    assert rows[1]["ts_recv"] - rows[0]["ts_recv"] == 80_000 * S


def test_derivative_tickers_become_prints_of_no_size_where_the_last_price_changes(write):
    header = (
        HEADER + "funding_timestamp,funding_rate,predicted_funding_rate,open_interest,last_price,index_price,mark_price"
    )
    prices = [("X", "10"), ("Y", "20"), ("X", "10"), ("X", ""), ("Y", "20"), ("X", "11")]
    lines = [f"x,{symbol},{START_US},{START_US},,,,,{price},," for symbol, price in prices]
    rows = read(write("d.csv", header, *lines))[0]["trades"]
    assert [(row["symbol"], row["price"], row["qty"]) for row in rows] == [("X", 10, 0), ("Y", 20, 0), ("X", 11, 0)]


@pytest.mark.parametrize("levels", [[1], [0, 2], ["00"], [0, "0"]])
def test_a_header_without_all_levels_from_the_first_on_is_not_recognised(write, levels):
    columns = [f"{side}[{i}].{what}" for i in levels for side in ("asks", "bids") for what in ("price", "amount")]
    path = write("s.csv", HEADER + ",".join(columns), f"x,X,{START_US},{START_US}" + ",1" * len(columns))
    with pytest.raises(RecordingError, match="of no known format"):
        read(path)
    with pytest.raises(RecordingError, match="the header is none of tardis'"):
        list(formats.by_name("tardis").read(Source(path), ReadOptions()))


def test_books_of_several_instruments_in_one_file_are_kept_apart(write):
    header = HEADER + "asks[0].price,asks[0].amount,bids[0].price,bids[0].amount"
    ladders = [("X", "11,1,10,1"), ("Y", "21,1,20,1"), ("X", "11,1,10,1"), ("Y", "22,1,,"), ("X", "11,2,10,1")]
    rows = read(write("s.csv", header, *(f"x,{s},{START_US},{START_US},{ladder}" for s, ladder in ladders)))[0]["book"]
    changes = [
        (row["symbol"], row["side"], row["price"], row["qty"]) for row in rows if not row["evt_flags"] & SNAPSHOT
    ]
    assert changes == [("Y", BUY, 20, 0), ("Y", SELL, 21, 0), ("Y", SELL, 22, 1), ("X", SELL, 11, 2)]


LOBSTER = "AAPL_2012-06-21_34200000_57600000_{}_2.csv"
MESSAGES = (
    "34200.017459617,1,11,100,5853300,1",  # a bid of 100
    "34200.5,1,12,50,5859400,-1",  # an offer of 50
    "34201,2,11,40,5853300,1",  # 40 of the bid are taken back
    "34202,4,12,20,5859400,-1",  # 20 of the offer are bought
    "34203,5,0,7,5856000,1",  # a hidden bid is sold into
    "34204,6,0,9,5857000,-1",  # a cross
    "34205,7,0,0,-1,-1",  # a halt
    "34206,3,11,60,5853300,1",  # the rest of the bid is taken back
)


def test_lobster_messages_alone_make_a_book_by_orders(write):
    found = read(write(LOBSTER.format("message"), *MESSAGES))[0]
    # Midnight in New York in June is 04:00 UTC.
    assert found["book"][0]["ts_recv"] == 1_340_251_200 * S + 34_200_017_459_617
    book = [tuple(row[name] for name in ("action", "side", "price", "qty", "order_id")) for row in found["book"]]
    assert book == [
        (1, BUY, 585.33, 100, 11),
        (1, SELL, 585.94, 50, 12),
        (2, BUY, 585.33, 40, 11),
        (2, SELL, 585.94, 20, 12),
        (2, BUY, 585.33, 60, 11),
    ]
    trades = [(row["seq"], row["price"], row["qty"], row["side"]) for row in found["trades"]]
    assert trades == [(3, 585.94, 20, BUY), (5, 585.6, 7, SELL), (6, 585.7, 9, 0)]
    assert [row["seq"] for row in found["book"]] == [0, 1, 2, 4, 7]
    assert {(row["venue"], row["symbol"]) for row in found["book"]} == {("NASDAQ", "AAPL")}


def test_lobster_order_book_beside_the_messages_makes_a_book_by_levels(write, monkeypatch):
    monkeypatch.setattr("feeds.formats.delimited.blocks", partial(blocks, size=64))
    none = "9999999999,0,-9999999999,0"
    states = [f"5859400,50,5853300,100,{none}", f"5859400,50,5853300,60,{none}", f"{none},5853300,60,5850000,1"]
    write(LOBSTER.format("orderbook"), *states)
    found = read(write(LOBSTER.format("message"), *MESSAGES[1:4]))[0]
    top = [{k: v for k, v in book.items() if v} for _, book in state_after(found["book"], "ts_recv")]
    assert top == [
        {(BUY, 585.33): 100, (SELL, 585.94): 50},
        {(BUY, 585.33): 60, (SELL, 585.94): 50},
        {(SELL, 585.33): 60, (BUY, 585.0): 1},
    ]
    assert len(found["trades"]) == 1


def test_lobster_sizes_that_no_market_has_are_bad(write):
    path = write(LOBSTER.format("message"), MESSAGES[0], "34200.5,1,12,4503599627370497,5859400,-1")
    with pytest.raises(RecordingError, match=r"message_2\.csv:2: size is too large \(4503599627370497\)"):
        read(path)
    write(LOBSTER.format("orderbook"), "5859400,4503599627370497,5853300,100,5859500,1,5853200,1")
    with pytest.raises(RecordingError, match=r"orderbook_2\.csv:1: ask_size\[0\] is too large"):
        read(write(LOBSTER.format("message"), MESSAGES[0]))


def test_lobster_files_in_one_archive_are_read_together(tmp_path):
    book = "".join(f"5859400,50,5853300,{100 - i},5859500,1,5853200,1\n" for i in range(3))
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        archive.writestr("day/" + LOBSTER.format("message"), "\n".join(MESSAGES[1:4]) + "\n")
        archive.writestr("day/" + LOBSTER.format("orderbook"), book)
    messages, states = open_sources(tmp_path / "both.zip")
    found = read_source(messages)
    assert (len(found["trades"]), len(found["book"])) == (1, 7)
    assert read_source(states) == {}
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr(LOBSTER.format("orderbook"), book)
    with pytest.raises(RecordingError, match="name only that one"):
        read(tmp_path / "one.zip")


def test_lobster_files_that_do_not_belong_together(write):
    write(LOBSTER.format("orderbook"), "5859400,50,5853300,100,5859500,1,5853200,1")
    path = write(LOBSTER.format("message"), *MESSAGES)
    with pytest.raises(RecordingError, match=r"message_2\.csv:2: has no line in the order book file"):
        read(path)
    found, source = read(path, skip_bad=True)
    assert (len(found["book"]), source.refused) == (5, len(MESSAGES) - 1)
    with pytest.raises(RecordingError, match="name only that one"):
        read(path.with_name(LOBSTER.format("orderbook")))


def arrow(rows, *, stream=False, codec=None):
    buffer = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(
        buffer, rows.schema, options=pa.ipc.IpcWriteOptions(compression=codec)
    ) as writer:
        writer.write_table(rows)
    return buffer.getvalue()


def sample_rows(name):
    (data,) = (data for _, found, data in samples() if found == name)
    return pa.parquet.read_table(io.BytesIO(data))


@pytest.mark.parametrize("codec", [None, "zstd", "lz4"])
@pytest.mark.parametrize("stream", [True, False])
def test_what_a_batch_of_arrow_unpacks_to_is_known_and_limited_before_it_is_unpacked(
    tmp_path, monkeypatch, codec, stream
):
    rows = pa.concat_tables([sample_rows("day.trades.parquet")] * 50).unify_dictionaries().combine_chunks()
    rows = rows.set_column(rows.schema.get_field_index("seq"), "seq", pa.array(range(len(rows))))
    rows = rows.set_column(
        rows.schema.get_field_index("ts_recv"),
        "ts_recv",
        pa.array([S] * len(rows)).cast(rows.schema.field("ts_recv").type),
    )
    (tmp_path / "x.arrow").write_bytes(arrow(rows, stream=stream, codec=codec))
    assert len(read(tmp_path / "x.arrow")[0]["trades"]) == 2_000
    size = sum(unpacked_bytes(message) for message in pa.ipc.MessageReader.open_stream(arrow(rows, stream=True)))
    assert 2_000 * 60 < size < 2_000 * 90
    monkeypatch.setattr(recording, "MAX_BATCH_BYTES", 10_000)
    monkeypatch.setattr(recording, "_pieces", None)
    with pytest.raises(
        RecordingError, match=r"x\.arrow: a record batch unpacks to [0-9,]{7} bytes, over 10,000; write"
    ):
        read(tmp_path / "x.arrow")


@pytest.mark.parametrize("codec", [None, "zstd", "lz4"])
def test_packed_batches_and_dictionaries_of_arrow_are_as_large_as_unpacked_ones(codec):
    words = pa.array([f"word {i % 3_000}" for i in range(9_000)])
    rows = pa.table({"n": np.zeros(9_000), "text": words, "word": words.dictionary_encode(), "none": pa.nulls(9_000)})
    sizes = []
    for packing in (None, codec):
        messages = pa.ipc.MessageReader.open_stream(arrow(rows, stream=True, codec=packing))
        sizes.append([(message.type, unpacked_bytes(message)) for message in messages])
    assert [kind for kind, _ in sizes[0]] == ["schema", "dictionary", "record batch"]
    assert sizes[0] == sizes[1]
    assert sizes[0][1][1] > 3_000 * 9


def test_arrow_dictionaries_are_limited_together(tmp_path, monkeypatch):
    rows = sample_rows("day.trades.parquet")
    for name in ("venue", "symbol"):
        words = pa.array(["V" * 600] * len(rows)).dictionary_encode()
        rows = rows.set_column(rows.schema.get_field_index(name), name, words)
    (tmp_path / "x.arrow").write_bytes(arrow(rows))
    monkeypatch.setattr(recording, "MAX_BATCH_BYTES", 1_000)
    with pytest.raises(RecordingError, match=r"a dictionary unpacks to 1,\d\d\d bytes"):
        read(tmp_path / "x.arrow")


def test_an_arrow_message_that_claims_to_be_huge_takes_no_memory(tmp_path):
    data = arrow(sample_rows("day.trades.parquet"), stream=True)
    sizes = {len(message.body) for message in pa.ipc.MessageReader.open_stream(data) if message.type == "record batch"}
    length = sizes.pop().to_bytes(8, "little")
    assert data.count(length) == 1
    (tmp_path / "x.arrows").write_bytes(data.replace(length, (1 << 46).to_bytes(8, "little")))
    with pytest.raises(RecordingError, match="cannot be read as Parquet or Arrow IPC"):
        read(tmp_path / "x.arrows")


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: pa.compress(data, codec="zstd", asbytes=True)])
def test_arrow_may_be_packed_and_parquet_may_not(tmp_path, pack):
    rows = sample_rows("day.trades.parquet")
    for stream in (True, False):
        (tmp_path / "x").write_bytes(pack(arrow(rows, stream=stream)))
        assert len(read(tmp_path / "x")[0]["trades"]) == len(rows)
    pa.parquet.write_table(rows, tmp_path / "y")
    (tmp_path / "y").write_bytes(pack((tmp_path / "y").read_bytes()))
    with pytest.raises(RecordingError, match=r"y: is packed Parquet, .* unpack it"):
        read(tmp_path / "y")
    (tmp_path / "y").write_bytes(pack(b"1,2\n"))
    with pytest.raises(RecordingError, match="y: is neither Parquet nor Arrow IPC"):
        list(formats.by_name("recording").read(Source(tmp_path / "y"), ReadOptions()))


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_our_own_rows_without_a_venue_have_an_empty_one(tmp_path, kind):
    rows = sample_rows("day.trades.parquet").slice(0, 3)
    venues = pa.array(["V", None, None]).cast(kind)
    path = tmp_path / "day.trades.parquet"
    pa.parquet.write_table(rows.set_column(rows.schema.get_field_index("venue"), "venue", venues), path)
    assert [row["venue"] for row in read(path)[0]["trades"]] == ["V", "", ""]
    assert [row["venue"] for row in read(path, venue="W")[0]["trades"]] == ["W"] * 3


# What is wrong, and where


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("bitmex,X,1583020803145000,1583020803307160,a,buy,abc,1", r"price is not a number \('abc'\)"),
        ("bitmex,X,1583020803145000,12:00,a,buy,1,1", r"local_timestamp is not an integer \('12:00'\)"),
        ("bitmex,X,1583020803145000,-5,a,buy,1,1", r"local_timestamp is no time of this age \(-5\)"),
        ("bitmex,X,1583020803145000,1583020803307160,a,buy,1", "has 7 columns, not 8"),
        ("bitmex,X,1583020803145000,1583020803307160,a,hold,1,1", r"side is none of buy, sell, .* \('hold'\)"),
        ("bitmex,X,1583020803145000,1583020803307160,a,buy,1,-1", r"amount is negative \(-1.0\)"),
        ("bitmex,X,1583020803145000,1583020803307160,a,buy,,1", r"price is empty"),
        ("bitmex,X,1583020803145000,1583020803307160,a,buy,nan,1", r"price is not|price has over"),
        ("bitmex,X,1583020803145000,1583020803307160,a,buy,0.33333333333333,1", "price has over 9 decimals"),
        ("bitmex,X,1583020803145000,1583020803307160,a,buy,1e300,1", "price has over 9 decimals or is too large"),
        ("bitmex,,1583020803145000,1583020803307160,a,buy,1,1", "symbol is empty"),
        ("bitmex,X\udcff,1583020803145000,1583020803307160,a,buy,1,1", "symbol is not text in UTF-8"),
        ("a\rb", "has 1 columns, not 8"),
    ],
)
def test_a_bad_row_names_its_line_and_can_be_left_out(tmp_path, line, complaint):
    good = "bitmex,X,1583020803145000,1583020803307160,a,buy,10.5,2"
    path = tmp_path / "t.csv"
    text = "\n".join([HEADER + "id,side,price,amount", good, "", good, line, good])
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecordingError, match=rf"t\.csv:5: .*({complaint})"):
        read(path)
    found, source = read(path, skip_bad=True)
    assert len(found["trades"]) == 3
    assert source.refused == 1
    assert source.complaints[0].startswith(f"{path}:5: ")


NAN = {
    "XBTUSD.csv": [f"{START_S},10.5,1", f"{START_S},nan,1", f"{START_S},10.5,NaN"],
    "BTCUSDT-trades-2024-08-08.csv": [
        f"{i},{row},21,{START_S}000,true" for i, row in enumerate(("1,1", "nan,1", "1,NaN"))
    ],
    "b.csv": [f"x,X,{START_US},{START_US},false,bid,{row}" for row in ("10,1", "nan,1", "10,NaN")],
    "q.csv": [f"x,X,{START_US},{START_US},{row},11,1" for row in ("10,1", "nan,1", "10,NaN")],
}


@pytest.mark.parametrize("name", NAN)
def test_text_that_says_it_is_no_number_is_a_bad_value_even_if_all_other_rows_are_good(write, name):
    headers = {"b.csv": "is_snapshot,side,price,amount", "q.csv": "bid_price,bid_amount,ask_price,ask_amount"}
    header = [HEADER + headers[name]] if name in headers else []
    path = write(name, *header, *NAN[name])
    with pytest.raises(RecordingError, match=rf"{name}:{len(header) + 2}: \w+ is not a number \('nan'\)"):
        read(path)
    found, source = read(path, skip_bad=True)
    assert [len(rows) for rows in found.values()] == [1]
    assert source.refused == 2


def test_a_line_that_was_cut_off_at_the_end(write):
    path = write("XBTUSD.csv", f"{START_S},10.5,1", f"{START_S},10.5", end="")
    with pytest.raises(RecordingError, match=r"XBTUSD\.csv:2: has 2 columns, not 3"):
        read(path)
    found, source = read(path, skip_bad=True)
    assert (len(found["trades"]), source.refused) == (1, 1)


def test_what_came_before_the_cut_of_a_packed_file_can_be_kept(tmp_path):
    rng = np.random.default_rng(1)
    data = "".join(f"{START_S + i},{rng.random():.8f},1\n" for i in range(60_000)).encode()
    (tmp_path / "XBTUSD.csv.gz").write_bytes(gzip.compress(data)[:-200_000])
    with pytest.raises(RecordingError, match="damaged or cut off after"):
        read(tmp_path / "XBTUSD.csv.gz")
    found, source = read(tmp_path / "XBTUSD.csv.gz", skip_bad=True)
    assert 10_000 < len(found["trades"]) < 60_000
    assert source.refused == 1  # the cut; what was unpacked in one step with it is lost


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: pa.compress(data, codec="zstd", asbytes=True)])
@pytest.mark.parametrize("damage", ["garbage", "cut"])
def test_damage_of_a_packed_file_is_counted_once_and_nothing_comes_twice(tmp_path, pack, damage):
    rng = np.random.default_rng(1)
    data = "".join(f"{START_S + i},{rng.random():.8f},1\n" for i in range(60_000)).encode()
    packed = pack(data)
    bad = packed + b"garbage garbage" if damage == "garbage" else packed[:-200_000]
    (tmp_path / "XBTUSD.csv.gz").write_bytes(bad)
    found, source = read(tmp_path / "XBTUSD.csv.gz", skip_bad=True)
    times = [row["ts_recv"] for row in found["trades"]]
    assert len(set(times)) == len(times)
    assert sum("damaged or cut off" in complaint for complaint in source.complaints) == 1


@pytest.mark.parametrize(
    "content", [b"", b"hello, world\n", b"exchange,symbol,timestamp,local_timestamp,x\n1", b"\x00" * 99]
)
def test_what_is_of_no_known_format(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(RecordingError, match=r"x\.csv: (of no known format|is empty)"):
        read(tmp_path / "x.csv")


def test_formats_have_names_of_their_own():
    names = [known.name for known in formats.FORMATS]
    assert len(set(names)) == len(names)
    assert [formats.by_name(name).name for name in names] == names
    with pytest.raises(RecordingError, match=r"no format is called 'csv'; there are .*tardis"):
        formats.by_name("csv")


@pytest.mark.parametrize(("known", "name", "data"), SAMPLES)
def test_a_format_that_is_forced_on_another_file_says_so(tmp_path, known, name, data):
    (tmp_path / name).write_bytes(data)
    for other in formats.FORMATS:
        if other.name != known:
            with pytest.raises(RecordingError, match=name):
                list(other.read(Source(tmp_path / name), ReadOptions(symbol="X")))


def test_what_unpacks_to_too_much(tmp_path):
    path = tmp_path / "XBTUSD.csv.gz"
    path.write_bytes(gzip.compress(f"{START_S},10.5,1\n".encode() * 100_000))
    with pytest.raises(RecordingError, match="unpacks to more than 1,000 bytes"):
        read_source(Source(path, limits=Limits(max_bytes=1_000)))
    with pytest.raises(RecordingError, match="unpacks to over 20 times its size"):
        read_source(Source(path, limits=Limits(max_ratio=20, free_bytes=1_000)))
    assert len(read_source(Source(path))["trades"]) == 100_000


def test_a_line_longer_than_a_block_is_refused_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"a\nb\n" + b"x" * 70 + b"\nc\n" + b"y" * 70)
    with pytest.raises(RecordingError, match=r"lines:3: the line is longer than 16 bytes"):
        list(blocks(Source(path), 16))
    source = Source(path, skip_bad=True)
    kept = list(blocks(source, 16))
    assert b"".join(block.data for block in kept) == b"a\nb\nc\n"
    assert [(block.first, block.lines) for block in kept] == [(1, 2), (4, 1)]
    assert source.refused == 2


@given(
    data=st.lists(st.binary(max_size=20)).map(b"\n".join).map(lambda data: b"-" + data),
    size=st.just(24),
)
def test_blocks_are_whole_lines_numbered_from_one(tmp_path_factory, data, size):
    path = tmp_path_factory.mktemp("blocks") / "x"
    path.write_bytes(data)
    number = 1
    kept = b""
    for block in blocks(Source(path), size):
        assert block.first == number
        assert block.lines == len(io.BytesIO(block.data).readlines())
        number, kept = number + block.lines, kept + block.data
        assert block.data.endswith(b"\n") or kept == data
    assert kept == data


# Pieces


@given(hnp.arrays(np.int64, st.integers(0, 30), elements=st.integers(0, 20)), st.integers(0, 30))
def test_held_times_never_decrease_and_only_held_rows_are_flagged(times, cut):
    clock = ReceiveClock()
    parts = [clock.hold(part) for part in (times[:cut], times[cut:])]
    held, flags = (np.concatenate(column) for column in zip(*parts, strict=True))
    assert held.tolist() == [max(times[: i + 1].tolist()) for i in range(len(times))]
    assert ((flags == BAD_TS_RECV) == (held != times)).all()


@given(st.data())
def test_changes_of_ladders_make_the_ladders_again(data):
    records, levels = data.draw(st.integers(1, 12)), 3
    codes = np.array(data.draw(st.lists(st.integers(0, 1), min_size=records, max_size=records)), np.int32)

    def side():
        price = np.full((records, levels), np.nan)
        qty = price.copy()
        for row in range(records):
            chosen = data.draw(st.lists(st.integers(1, 5), max_size=levels, unique=True))
            price[row, : len(chosen)] = chosen
            qty[row, : len(chosen)] = data.draw(st.lists(st.integers(1, 2), min_size=len(chosen), max_size=len(chosen)))
        return Ladder(price, qty)

    bids, asks, ladders = side(), side(), Ladders()
    cut = data.draw(st.integers(0, records))
    books = ({}, {})
    for part in (slice(0, cut), slice(cut, records)):
        if not len(codes[part]):
            continue
        ours = Ladder(bids.price[part], bids.qty[part]), Ladder(asks.price[part], asks.qty[part])
        changes = ladders.changes(["X", "Y"], codes[part], *ours)
        for record in range(len(codes[part])):
            book = books[codes[part][record]]
            for at in np.flatnonzero(changes.record == record):
                if changes.action[at] == CLEAR:
                    book.clear()
                elif changes.qty[at]:
                    book[changes.side[at], changes.price[at]] = changes.qty[at]
                else:
                    del book[changes.side[at], changes.price[at]]
            wanted = {
                (sign, price): qty
                for sign, ladder in ((BUY, ours[0]), (SELL, ours[1]))
                for price, qty in zip(ladder.price[record], ladder.qty[record], strict=True)
                if price == price
            }
            assert book == wanted
        ends = np.flatnonzero(changes.flags & LAST)
        assert (np.diff(changes.record, append=records)[ends] > 0).all()


@given(st.lists(st.tuples(*[st.integers(1, 10_000)] * 4, st.integers(0, 10**12)), min_size=1, max_size=5))
def test_prints_of_bars_make_the_bars_again(bars):
    columns = np.array(bars, np.float64).T
    ohlc = columns[0] / 100, columns[:4].max(axis=0) / 100, columns[:4].min(axis=0) / 100, columns[3] / 100
    start = np.arange(len(bars)) * 60 * S
    made = prints(start, start + 60 * S - 1, ohlc, columns[4] / 1e8)
    price = made.price.reshape(-1, 4)
    again = price[:, 0], price.max(axis=1), price.min(axis=1), price[:, 3]
    assert all((a == b).all() for a, b in zip(again, ohlc, strict=True))
    assert np.rint(made.qty * 1e8).reshape(-1, 4).sum(axis=1).tolist() == columns[4].tolist()
    assert (np.diff(made.ts) >= 0).all()


@pytest.mark.parametrize(
    ("volume", "quantities"),
    [
        (57.0, [14, 14, 14, 15]),
        (3.0, [0.75] * 4),
        (1.0, [0.25] * 4),
        (4e-8, [1e-8] * 4),
        (3e-8, [0, 0, 0, 3e-8]),
        (123_456_789.7, [30_864_197, 30_864_197, 30_864_197, 30_864_198.7]),
        (300_000_000_000_001.0, [75_000_000_000_000, 75_000_000_000_000, 75_000_000_000_000, 75_000_000_000_001]),
        (2.0**52 - 1, [2**50 - 1, 2**50 - 1, 2**50 - 1, 2**50 + 2]),
    ],
)
def test_a_volume_is_divided_into_whole_units_where_there_are_four(volume, quantities):
    one = np.ones(1)
    made = prints(np.zeros(1, np.int64), np.full(1, 59), (one, one, one, one), np.array([volume]))
    assert made.qty.tolist() == quantities
    assert fits(made.qty).all()


@pytest.mark.parametrize(
    "number", [0.0, 1.1, 0.1 + 0.2, 1e-9, -5.25, 9_000_000.25, 12_345_678.123, float("nan"), 2.0**52]
)
def test_numbers_that_fit(number):
    assert fits(np.array([number])).all()


@pytest.mark.parametrize("number", [1 / 3, 1e-10, 1e16, float("inf"), -float("inf")])
def test_numbers_that_do_not_fit(number):
    assert not fits(np.array([number])).any()


def test_damaged_files_of_every_format_end_in_a_clear_error_or_a_clean_result():
    """Each within two seconds of processor time, all of them within 64 MiB above what the first few took."""
    command = [sys.executable, "-m", "tests.fuzzing", "300", "7", "XBTUSD.csv"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300, check=True
    )
    result = json.loads(done.stdout)
    assert result["formats"].keys() == {known.name for known in formats.FORMATS} | {"bombs"}
    assert [report["failures"] for report in result["formats"].values()] == [[]] * len(result["formats"])
    assert all(sum(r["ended"].values()) >= 300 for name, r in result["formats"].items() if name != "bombs")
    assert result["formats"]["bombs"]["ended"] == {"error": 8}
    assert result["peak_mib"] < 64
