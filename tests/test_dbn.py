"""DBN: real files against what is known of them, every kind of record in every version, and damage of all sorts."""

from __future__ import annotations

import tracemalloc
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.errors import RecordingError
from feeds.formats import dbn, detect
from feeds.formats.dbn import Dbn
from feeds.formats.format import ReadOptions
from feeds.formats.source import Source
from feeds.records import ADD, BAD_TS_RECV, BUY, CANCEL, CLEAR, FILL, GAP, LAST, MODIFY, SELL, SET, SNAPSHOT, TRADE
from tests.dbn_files import NO_PRICE, NO_TIME, bar, definition, header, mapping, order, record, status, ten, top, trade

SHARED = Path(__file__).parents[2] / "shared" / "data"
DATABENTO = SHARED / "databento"
real = pytest.mark.skipif(not DATABENTO.is_dir(), reason="the shared data are not here")

DAY = date(2023, 12, 25)
T = 1_703_462_400_000_000_000  # its first instant
NEXT_DAY = T + 86_400_000_000_000
MAPPINGS = {"ESH4": [(DAY, date(2023, 12, 26), "7")], "NQH4": [(DAY, date(2023, 12, 26), "8")]}
PX = 1_000_000_000


def read(path, *, skip_bad=False, options=None):
    """The tables of a file, and its source."""
    source = Source(path, skip_bad=skip_bad)
    tables = {}
    last_seq, last_ts = -1, 0
    for chunk in Dbn().read(source, options or ReadOptions()):
        for table, batch in chunk.items():
            batch.validate(full=True)
            assert batch.num_rows
            tables.setdefault(table, []).append(batch)
        seq = np.sort(np.concatenate([batch["seq"].to_numpy() for batch in chunk.values()]))
        assert seq[0] > last_seq
        assert (np.diff(seq) > 0).all()
        for batch in chunk.values():
            ts = batch["ts_recv"].cast(pa.int64()).to_numpy()
            assert ts[0] >= last_ts
            assert (np.diff(ts) >= 0).all()
        last_seq, last_ts = seq[-1], max(b["ts_recv"].cast(pa.int64()).to_numpy()[-1] for b in chunk.values())
    return {table: pa.Table.from_batches(batches) for table, batches in tables.items()}, source


def written(tmp_path, *records, version=3, mappings=MAPPINGS, name="x.dbn", **fields):
    path = tmp_path / name
    path.write_bytes(header(version, mappings, **fields) + b"".join(records))
    return path


def rows(table, *names):
    """Rows as tuples; times as int ns, words as text."""
    columns = [table[name].combine_chunks() for name in names]
    plain = [c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c for c in columns]
    return list(zip(*(column.to_pylist() for column in plain), strict=True))


# --- real files

COUNTS = {
    "XNAS.ITCH.mbp-1.dbn.zst": {"quotes": 4},
    "XNAS.ITCH.trades.dbn.zst": {"trades": 4},
    "dbn_test_data.bbo-1s.v3.dbn.zst": {"quotes": 4},
    "dbn_test_data.mbo.v3.dbn.zst": {"book": 2},
    "dbn_test_data.mbp-1.v3.dbn.zst": {"quotes": 2},
    "dbn_test_data.mbp-10.v3.dbn.zst": {"book": 22},
    "dbn_test_data.ohlcv-1s.v3.dbn.zst": {"trades": 8},
    "dbn_test_data.tbbo.v3.dbn.zst": {"quotes": 2, "trades": 2},
    "dbn_test_data.trades.v3.dbn.zst": {"trades": 2},
    "futures_mbp-1_2024-07-01T23-58_2024-07-02T00-02.dbn.zst": {"quotes": 2288, "trades": 120},
    "futures_ohlcv-1m_2024-07-01T23-40_2024-07-02T00-10.dbn.zst": {"trades": 240},
    "futures_trades_2024-07-01T23-58_2024-07-02T00-02.dbn.zst": {"trades": 120},
}
WITHOUT_ROWS = {
    "dbn_test_data.status.v3.dbn.zst": "status",
    "futures_definition.dbn.zst": "definitions",
}
ES_QUOTES = "futures_mbp-1_2024-07-01T23-58_2024-07-02T00-02.dbn.zst"
ES_TRADES = "futures_trades_2024-07-01T23-58_2024-07-02T00-02.dbn.zst"


@real
@pytest.mark.parametrize("name", COUNTS)
def test_every_record_of_a_real_file_becomes_rows(name):
    tables, source = read(DATABENTO / name)
    assert {table: rows.num_rows for table, rows in tables.items()} == COUNTS[name]
    assert not source.passed_over
    assert detect(source).name == "dbn"


@real
@pytest.mark.parametrize("name", WITHOUT_ROWS)
def test_a_real_file_without_prices_is_refused_by_what_it_holds(name):
    with pytest.raises(RecordingError, match=WITHOUT_ROWS[name]):
        read(DATABENTO / name)


@real
def test_all_real_files_are_known_here():
    assert {path.name for path in DATABENTO.iterdir()} == {*COUNTS, *WITHOUT_ROWS}


@real
def test_the_recording_made_of_the_same_quotes_is_equal():
    ours = read(DATABENTO / ES_QUOTES)[0]["quotes"]
    theirs = pq.read_table(SHARED / "recordings" / "cme_ESU4_20240701.quotes.parquet")
    names = [name for name in theirs.column_names if name != "seq"]
    assert rows(ours, *names) == rows(theirs, *names)


@real
def test_trades_inside_of_quotes_are_those_of_the_schema_trades():
    inside, alone = (read(DATABENTO / name)[0]["trades"].drop_columns("seq") for name in (ES_QUOTES, ES_TRADES))
    assert rows(inside, *inside.column_names) == rows(alone, *alone.column_names)


@real
def test_one_sided_quotes_have_no_price_and_no_quantity_there():
    quotes = read(DATABENTO / "XNAS.ITCH.mbp-1.dbn.zst")[0]["quotes"]
    first = rows(quotes, "bid_px", "bid_qty", "ask_px", "ask_qty")[0]
    assert first == (502.0, 2.0, None, None)


@real
def test_a_real_bar_is_four_prints():
    trades = read(DATABENTO / "dbn_test_data.ohlcv-1s.v3.dbn.zst")[0]["trades"]
    first = rows(trades, "ts_recv", "price", "cond")[:4]
    second = 1_609_160_400_000_000_000
    assert [row[1] for row in first] == [372025.0, 372025.0, 372050.0, 372050.0]
    assert (first[0][0], first[-1][0]) == (second, second + 999_999_999)
    assert sum(trades["qty"].to_pylist()[:4]) == 57.0


# --- every kind in every version

versions = pytest.mark.parametrize("version", [1, 2, 3])


@versions
def test_trades(tmp_path, version):
    path = written(tmp_path, trade(T, 4800 * PX + PX // 4, 3), trade(T + 1, -37_630_000_000, 1, "A"), version=version)
    trades = read(path)[0]["trades"]
    assert rows(trades, "ts_recv", "ts_event", "seq", "venue", "symbol", "evt_flags", "venue_seq") == [
        (T, T - 9, 0, "GLBX", "ESH4", LAST, 1),
        (T + 1, T - 8, 1, "GLBX", "ESH4", LAST, 1),
    ]
    assert rows(trades, "price", "qty", "side", "trade_id") == [(4800.25, 3.0, BUY, None), (-37.63, 1.0, SELL, None)]


@versions
@pytest.mark.parametrize("rtype", [1, 177, 194, 197])
def test_quotes_with_trades_put_the_trade_after_the_quote_it_met(tmp_path, version, rtype):
    quote = ((4799 * PX, 5), (4800 * PX, 7))
    records = (
        top(T, *quote, rtype=rtype),
        top(T + 1, *quote, action="T", side="B", price=4800 * PX, size=2, rtype=rtype),
    )
    tables, _ = read(written(tmp_path, *records, version=version))
    assert rows(tables["quotes"], "seq", "bid_px", "bid_qty", "ask_px", "ask_qty") == [
        (0, 4799.0, 5.0, 4800.0, 7.0),
        (1, 4799.0, 5.0, 4800.0, 7.0),
    ]
    assert rows(tables["trades"], "seq", "ts_recv", "price", "qty", "side") == [(2, T + 1, 4800.0, 2.0, BUY)]


@versions
@pytest.mark.parametrize("rtype", [192, 193, 195, 196])
def test_sampled_quotes_make_no_trades_of_the_last_one(tmp_path, version, rtype):
    quote = top(T, (4799 * PX, 5), (NO_PRICE, 0), price=4800 * PX, size=2, action="T", rtype=rtype, ts_event=NO_TIME)
    tables, _ = read(written(tmp_path, quote, version=version))
    assert set(tables) == {"quotes"}
    assert rows(tables["quotes"], "ts_recv", "ts_event", "bid_px", "ask_px", "ask_qty") == [
        (T, None, 4799.0, None, None)
    ]


@versions
def test_orders(tmp_path, version):
    letters = {"A": ADD, "C": CANCEL, "M": MODIFY, "T": TRADE, "F": FILL}
    records = [order(T, "R", 0, NO_PRICE, 0, "N", flags=SNAPSHOT)]
    records += [order(T + i, letter, 90 + i, i * PX, i, "BA"[i % 2]) for i, letter in enumerate(letters, 1)]
    tables, _ = read(written(tmp_path, *records, version=version))
    assert rows(tables["book"], "action", "side", "price", "qty", "order_id", "evt_flags") == [
        (CLEAR, 0, None, None, 0, SNAPSHOT),
        *(
            (action, (BUY, SELL)[i % 2], float(i), float(i), 90 + i, LAST)
            for i, action in enumerate(letters.values(), 1)
        ),
    ]
    assert rows(tables["trades"], "price", "qty", "side") == [(4.0, 4.0, BUY)]
    assert tables["trades"]["seq"][0].as_py() == 4  # right before its row in the book, which is the fifth
    assert tables["book"]["seq"].to_pylist() == [0, 1, 2, 3, 5, 6]


def test_an_order_record_that_changes_nothing_is_kept_only_to_end_an_event(tmp_path):
    records = (
        order(T, "A", 1, PX, 5, flags=0),
        order(T, "N", 2, NO_PRICE, 9, "N", flags=0),
        order(T, "N", 0, NO_PRICE, 9, "N"),
    )
    book = read(written(tmp_path, *records))[0]["book"]
    assert rows(book, "action", "qty", "evt_flags") == [(ADD, 5.0, 0), (CANCEL, 0.0, LAST)]


@versions
def test_bars_of_several_instruments_are_prints_in_one_order_of_time(tmp_path, version):
    minute = 60_000_000_000
    records = [
        bar(T + at * minute, (at * PX, (at + 2) * PX, at * PX, (at + 1) * PX), 400, instrument=instrument)
        for at in (1, 2)
        for instrument in (7, 8)
    ]
    trades = read(written(tmp_path, *records, version=version))[0]["trades"]
    assert trades.num_rows == 16
    assert rows(trades, "symbol", "price")[:4] == [("ESH4", 1.0), ("NQH4", 1.0), ("ESH4", 1.0), ("NQH4", 1.0)]
    assert not np.bitwise_and(trades["evt_flags"].to_numpy(), BAD_TS_RECV).any()
    assert set(trades["cond"].to_pylist()) == {"bar"}
    assert trades["venue_seq"].null_count == 16


@pytest.mark.parametrize("size", [16, 56, 100, 300])
def test_where_blocks_end_changes_nothing_of_bars_of_several_instruments(tmp_path, monkeypatch, size):
    minute = 60_000_000_000
    bars = [bar(T + i // 4 * minute, (PX, PX, PX, PX), 4 * i, instrument=7 + i % 4) for i in range(30)]
    path = written(tmp_path, *bars)
    whole = read(path)[0]["trades"]
    monkeypatch.setattr(dbn, "BLOCK_BYTES", size)
    pieces = read(path)[0]["trades"]
    assert rows(pieces, *whole.column_names) == rows(whole, *whole.column_names)


def test_not_all_bars_of_a_file_are_waited_for_though_all_be_of_one_time(tmp_path, monkeypatch):
    monkeypatch.setattr(dbn, "BLOCK_BYTES", 56)
    monkeypatch.setattr(dbn, "MOST_WAITING", 3)
    path = written(tmp_path, *(bar(T, (PX, PX, PX, PX), 4, instrument=7 + i) for i in range(10)))
    chunks = list(Dbn().read(Source(path), ReadOptions()))
    assert [chunk["trades"].num_rows for chunk in chunks] == [16, 16, 8]


@real
def test_where_blocks_end_changes_nothing_of_real_bars(monkeypatch):
    path = DATABENTO / "futures_ohlcv-1m_2024-07-01T23-40_2024-07-02T00-10.dbn.zst"
    whole = read(path)[0]["trades"]
    monkeypatch.setattr(dbn, "BLOCK_BYTES", 400)
    pieces = read(path)[0]["trades"]
    assert rows(pieces, *whole.column_names) == rows(whole, *whole.column_names)


@pytest.mark.parametrize(("rtype", "seconds"), [(32, 1), (33, 60), (34, 3600), (35, 86_400), (36, 86_400)])
def test_a_bar_ends_where_the_next_begins(tmp_path, rtype, seconds):
    trades = read(written(tmp_path, bar(T, (PX, PX, PX, PX), 4, rtype=rtype)))[0]["trades"]
    assert rows(trades, "ts_recv")[-1] == (T + seconds * 10**9 - 1,)


# --- books of ten levels

PRICES = st.integers(1, 25)
LADDER = st.dictionaries(PRICES, st.integers(1, 9), max_size=10)


def levels_of(ladder, sign):
    return [(price * PX * sign, size) for price, size in sorted(ladder.items())]


@given(st.lists(st.tuples(st.sampled_from([7, 8]), LADDER, LADDER), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_setting_the_rows_gives_every_ladder_again(tmp_path_factory, ladders):
    records = [
        ten(T + i, levels_of(bids, -1), levels_of(asks, 1), instrument=instrument)
        for i, (instrument, bids, asks) in enumerate(ladders)
    ]
    book = read(written(tmp_path_factory.mktemp("ten"), *records))[0]["book"]
    states, changed = {}, rows(book, "ts_recv", "symbol", "action", "side", "price", "qty")
    for i, (instrument, bids, asks) in enumerate(ladders):
        symbol = {7: "ESH4", 8: "NQH4"}[instrument]
        while changed and changed[0][0] == T + i:
            _, _, action, side, price, qty = changed.pop(0)
            if action == CLEAR:
                states[symbol] = {}
            elif qty:
                states[symbol][side, price] = qty
            else:
                del states[symbol][side, price]  # only what is there is removed
        assert states[symbol] == {
            **{(BUY, -float(price)): float(size) for price, size in bids.items()},
            **{(SELL, float(price)): float(size) for price, size in asks.items()},
        }
    assert not changed


def test_only_what_changed_is_written_and_each_change_ends_an_event(tmp_path):
    asks = [(price * PX, 5) for price in range(101, 111)]
    records = (
        ten(T, [(100 * PX, 4)], asks, flags=0),
        ten(T + 1, [(100 * PX, 4)], asks, action="T", side="B", price=101 * PX, size=2, flags=0),
        ten(T + 2, [(100 * PX, 4)], [(101 * PX, 3), *asks[1:]], flags=SNAPSHOT | GAP),
    )
    tables, _ = read(written(tmp_path, *records))
    assert rows(tables["book"], "action", "evt_flags")[0] == (CLEAR, SNAPSHOT)
    assert rows(tables["book"], "ts_recv", "action", "side", "price", "qty", "evt_flags")[11:] == [
        (T, SET, SELL, 110.0, 5.0, SNAPSHOT | LAST),
        (T + 2, SET, SELL, 101.0, 3.0, GAP | LAST),
    ]
    assert rows(tables["trades"], "ts_recv", "price", "qty") == [(T + 1, 101.0, 2.0)]


# --- several kinds in one file


def mixed(version):
    return (
        definition(version),
        mapping(version, "ESM4", instrument=9),
        status(T),
        trade(T + 1, PX, 1),
        order(T + 2, "A", 5, 2 * PX, 1),
        status(T + 2),
        trade(T + 3, 3 * PX, 1, instrument=9),
        record(23, bytes(64)),
        order(T + 4, "T", 0, 4 * PX, 1),
        trade(T + 4, 4 * PX, 1),
        top(T + 5, (5 * PX, 1), (6 * PX, 1), instrument=8, action="T", side="A", price=5 * PX, size=9),
        record(99, bytes(4)),
        bar(T, (PX, PX, PX, PX), 4),
    )


@versions
def test_records_of_all_kinds_in_one_file_keep_their_order(tmp_path, version):
    tables, source = read(written(tmp_path, *mixed(version), version=version))
    assert rows(tables["trades"], "seq", "ts_recv", "symbol", "price") == [
        (0, T + 1, "ESH4", 1.0),
        (2, T + 3, "ESM4", 3.0),
        (4, T + 4, "ESH4", 4.0),
        (6, T + 5, "NQH4", 5.0),
    ]
    assert rows(tables["book"], "seq", "ts_recv", "action") == [(1, T + 2, ADD), (3, T + 4, TRADE)]
    assert rows(tables["quotes"], "seq", "ts_recv") == [(5, T + 5)]
    assert source.passed_over == {
        "definitions": 1,
        "symbol mappings": 1,
        "status": 2,
        "system messages": 1,
        "records of kind 99": 1,
        "ohlcv-1m": 1,
        "trades told twice": 1,
    }


def test_where_blocks_end_changes_nothing(tmp_path, monkeypatch):
    path = written(tmp_path, *(mixed(2)[:-1] * 30), version=2)  # bars are told if the first block has nothing else
    whole, _ = read(path)
    for size in (16, 100, 1_000):
        monkeypatch.setattr(dbn, "BLOCK_BYTES", size)
        pieces, _ = read(path)
        assert set(pieces) == set(whole)
        for table in whole:
            names = whole[table].column_names
            assert rows(pieces[table], *names) == rows(whole[table], *names)


def test_bars_alone_in_the_first_block_go_on_being_told(tmp_path, monkeypatch):
    monkeypatch.setattr(dbn, "BLOCK_BYTES", 56)
    bars = [bar(T + i, (PX, PX, PX, PX), 4) for i in range(2)]  # the first is told once a later one is there
    tables, source = read(written(tmp_path, *bars, trade(T, PX, 1), trade(T, PX, 1, instrument=8)))
    assert tables["trades"].num_rows == 9
    assert source.passed_over == {"trades told twice": 1}


def test_two_kinds_that_tell_one_book_do_not_both_change_it(tmp_path):
    records = (
        order(T, "A", 1, PX, 5),
        ten(T + 1, [(PX, 5)], []),
        ten(T + 2, [(PX, 6)], [], instrument=8),
        order(T + 3, "A", 1, PX, 5, instrument=8),
    )
    tables, source = read(written(tmp_path, *records))
    assert rows(tables["book"], "symbol", "action") == [("ESH4", ADD), ("NQH4", CLEAR), ("NQH4", SET)]
    assert source.passed_over == {"book told twice": 3}


# --- times, symbols, venues


def test_receive_times_that_run_backwards_are_held_over_all_kinds(tmp_path):
    records = (trade(T + 5, PX, 1), order(T + 3, "A", 1, PX, 1), trade(T + 4, PX, 1), trade(T + 6, PX, 1))
    tables, _ = read(written(tmp_path, *records))
    assert rows(tables["book"], "ts_recv", "evt_flags") == [(T + 5, LAST | BAD_TS_RECV)]
    assert rows(tables["trades"], "ts_recv", "evt_flags") == [
        (T + 5, LAST),
        (T + 5, LAST | BAD_TS_RECV),
        (T + 6, LAST),
    ]


def test_a_record_without_a_receive_time_takes_that_of_its_event(tmp_path):
    trades = read(written(tmp_path, trade(NO_TIME, PX, 1, ts_event=T)))[0]["trades"]
    assert rows(trades, "ts_recv", "ts_event") == [(T, T)]


def test_a_symbol_changes_its_id_at_midnight(tmp_path):
    days = (DAY, date(2023, 12, 26), date(2023, 12, 27))
    mappings = {"ESH4": [(days[0], days[1], "7")], "ESM4": [(days[1], days[2], "7")]}
    records = [trade(ts, PX, 1) for ts in (NEXT_DAY - 1, NEXT_DAY, NEXT_DAY + 86_400_000_000_000)]
    trades = read(written(tmp_path, *records, mappings=mappings))[0]["trades"]
    assert trades["symbol"].to_pylist() == ["ESH4", "ESM4", "7"]  # nothing says what 7 is on the third day


@versions
def test_a_mapping_among_the_records_holds_for_what_comes_after_it(tmp_path, version):
    records = [trade(T, PX, 1), mapping(version, "ESU4", instrument=7), trade(T, PX, 1)]
    records += [mapping(version, "ESZ4", instrument=7), mapping(version, "NQZ4", instrument=8)]
    records += [trade(T, PX, 1), trade(T, NO_PRICE, 1), trade(T, PX, 1, instrument=8)]
    path = written(tmp_path, *records, version=version)
    with pytest.raises(RecordingError, match=r"x\.dbn:7: the trade has no price"):
        read(path)
    tables, source = read(path, skip_bad=True)
    assert tables["trades"]["symbol"].to_pylist() == ["ESH4", "ESU4", "ESZ4", "NQZ4"]
    assert source.passed_over == {"symbol mappings": 3}


def test_a_file_asked_for_by_id_names_the_symbols_too(tmp_path):
    path = written(tmp_path, trade(T, PX, 1), mappings={"7": [(DAY, date(2023, 12, 26), "ESH4")]}, by_id=True)
    assert read(path)[0]["trades"]["symbol"].to_pylist() == ["ESH4"]


def test_trades_at_other_venues_than_the_datasets_own_are_told_apart(tmp_path):
    records = [trade(T, PX, 1, publisher=publisher) for publisher in (81, 82, 60_000)]
    path = written(tmp_path, *records, dataset="XNAS.BASIC", mappings={"AAPL": [(DAY, date(2023, 12, 26), "7")]})
    assert rows(read(path)[0]["trades"], "symbol", "venue") == [
        ("AAPL", "XNAS"),
        ("AAPL@FINN", "FINN"),
        ("AAPL", "XNAS"),
    ]
    trades = read(path, options=ReadOptions(venue="MINE"))[0]["trades"]
    assert trades["venue"].to_pylist() == ["MINE"] * 3


def test_records_with_the_time_of_sending_behind_them(tmp_path):
    records = [trade(T + i, i * PX, 1, out=bytes(8)) for i in range(5)]
    trades = read(written(tmp_path, *records, ts_out=True))[0]["trades"]
    assert trades["price"].to_pylist() == [0.0, 1.0, 2.0, 3.0, 4.0]


# --- damage

GOOD = trade(T, PX, 1)
UNFIT = 4_550_000_000_000_005  # has nine decimals, of which its size leaves room for eight
BAD = {
    "the trade has no price": trade(T, NO_PRICE, 1),
    "the side is none of A, B, N": trade(T, PX, 1, "X"),
    "neither a receive time nor an event time": trade(NO_TIME, PX, 1, ts_event=NO_TIME),
    "the action is none of": order(T, "Z", 1, PX, 1),
    "an add, a modify or a trade has no price": order(T, "A", 1, NO_PRICE, 1),
    "the bar lacks a price": bar(T, (PX, NO_PRICE, PX, PX), 1),
    "the volume is too large": bar(T, (PX, PX, PX, PX), 2**52 + 1),
    "a price is too large for its decimals": trade(T, UNFIT, 1),
    "is too large for its decimals": top(T, (PX, 1), (-UNFIT, 1)),
    "too large for its decimals": ten(T, [(PX, 1)], [(PX, 1), (UNFIT, 1)]),
    "large for its decimals": order(T, "C", 1, UNFIT, 1),
    "price is too large for its decimals": bar(T, (PX, PX, PX, UNFIT), 1),
    "has not the 48 bytes of its kind": record(0, bytes(40)),
    "has not the 176 bytes of its kind": record(22, bytes(4)),
}


@pytest.mark.parametrize("why", BAD)
def test_a_bad_record_is_named_by_its_number_or_left_out(tmp_path, why):
    path = written(tmp_path, GOOD, BAD[why], GOOD)
    # A bar beside trades is not looked at, so it stands alone.
    if BAD[why][1] == 33:
        path = written(tmp_path, bar(T, (PX, PX, PX, PX), 1), BAD[why], bar(T, (PX, PX, PX, PX), 1))
    with pytest.raises(RecordingError, match=rf"x\.dbn:2: .*{why}"):
        read(path)
    tables, source = read(path, skip_bad=True)
    assert tables["trades"].num_rows in (2, 8)
    assert source.refused == 1


def test_large_prices_that_can_be_printed_are_good(tmp_path):
    trades = read(written(tmp_path, trade(T, 9_000_000_250_000_000, 1), trade(T, -9_000_000_250_000_000, 1)))[0][
        "trades"
    ]
    assert trades["price"].to_pylist() == [9_000_000.25, -9_000_000.25]


def test_a_record_cut_off_is_named_and_those_before_it_are_kept(tmp_path):
    path = written(tmp_path, GOOD, GOOD, GOOD[:30])
    with pytest.raises(RecordingError, match=r"x\.dbn:3: the record is cut off after 30 of 48 bytes"):
        read(path)
    assert read(path, skip_bad=True)[0]["trades"].num_rows == 2


@pytest.mark.parametrize("length", [0, 3])
def test_a_record_of_impossible_length_ends_the_file(tmp_path, length):
    path = written(tmp_path, GOOD, bytes([length]) + GOOD[1:], GOOD)
    with pytest.raises(RecordingError, match=rf"x\.dbn:2: a record of {length * 4} bytes"):
        read(path)
    tables, source = read(path, skip_bad=True)
    assert (tables["trades"].num_rows, source.refused) == (1, 1)


@pytest.mark.parametrize("version", [0, 4, 255])
def test_other_versions_are_refused_by_name(tmp_path, version):
    path = written(tmp_path, GOOD)
    path.write_bytes(path.read_bytes().replace(b"DBN\x03", b"DBN" + bytes([version]), 1))
    assert detect(Source(path)).name == "dbn"
    with pytest.raises(RecordingError, match=f"DBN version {version}; versions 1 to 3"):
        read(path)


def test_what_is_no_dbn_is_not_recognised(tmp_path):
    assert not Dbn().recognises(b"", "x.dbn")
    assert not Dbn().recognises(b"DBN", "x.dbn")
    assert not Dbn().recognises(b"timestamp,price\n", "x.dbn")


@pytest.mark.parametrize("size", [0, 4, 7, 8, 50, 107, 150, 300])
def test_a_header_cut_off_is_refused(tmp_path, size):
    path = tmp_path / "x.dbn"
    path.write_bytes(header(3, MAPPINGS)[:size])
    with pytest.raises(RecordingError):
        read(path)


def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path):
    path = tmp_path / "x.dbn"
    path.write_bytes(b"DBN\x03\xff\xff\xff\xff" + bytes(100))
    with pytest.raises(RecordingError, match="4,294,967,295 bytes"):
        read(path)
    path.write_bytes(b"DBN\x03\x00\x00\x00\x10" + bytes(100))
    tracemalloc.start()
    try:
        with pytest.raises(RecordingError, match="header is damaged"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
