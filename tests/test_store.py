"""Recordings on disk: what is found, what becomes of each column, and what is refused."""

import itertools
import os
import random
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds import layout
from feeds.errors import RecordingError
from feeds.inference import Inference
from feeds.instruments import MAX_UNITS, Instrument, Instruments
from feeds.records import ADD, CANCEL, GAP, LAST, MISSING, MODIFY, SNAPSHOT, Batch, Levels, Quotes, Trades
from feeds.store import Silences, describe, open_recording, write_recording
from feeds.tablefile import ROW_GROUP, TableFile

SHARED = Path(__file__).parents[2] / "shared" / "data"
RECORDINGS = SHARED / "recordings"
BINANCE, ESH4, ESU4 = "binance_spot_20240808", "cme_ESH4_20231225", "cme_ESU4_20240701"
S = 1_000_000_000
T0 = 1_700_000_000 * S

real = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not here")

FILL = {
    "trades": {"price": 1.5, "qty": 1.0, "side": 1, "trade_id": None, "cond": None},
    "quotes": {"bid_px": 1.5, "bid_qty": 1.0, "ask_px": 1.75, "ask_qty": 2.0},
    "book": {"action": 0, "side": 1, "price": 1.5, "qty": 1.0, "order_id": None},
}


def table_of(kind, rows, **columns):
    """A table in the layout: what is not given is the same in all rows, times and seq count up."""
    whole = {
        "ts_recv": [T0 + i for i in range(rows)],
        "ts_event": None,
        "seq": list(range(rows)),
        "venue": "TEST",
        "symbol": "ABC",
        "evt_flags": 0x80,
        "venue_seq": None,
        **FILL[kind],
        **columns,
    }
    schema = layout.SCHEMAS[kind]
    lists = {name: v if isinstance(v, list) else [v] * rows for name, v in whole.items()}
    return pa.table([_column(lists[f.name], f.type) for f in schema], names=schema.names)


def _column(values, kind):
    plain = pa.string() if pa.types.is_dictionary(kind) else kind
    return pa.array(values, plain).cast(kind)


def put(folder, kind, rows, name="x", **columns):
    path = folder / f"{name}.{kind}.parquet"
    pq.write_table(table_of(kind, rows, **columns), path)
    return path


def read(folder, kind, rows, **columns):
    """The integer table that comes back for a table in the layout, and its instruments."""
    put(folder, kind, rows, **columns)
    return whole(open_recording(folder), kind)


def whole(recording, kind):
    stream = {"trades": recording.trades, "quotes": recording.quotes, "book": recording.levels}[kind]
    return layout.TABLES[kind].concatenate(list(stream()))


def raw(name, kind):
    return pq.read_table(RECORDINGS / f"{name}.{kind}.parquet")


# --- real recordings


@real
def test_binance_instruments_are_inferred():
    btc, eth = open_recording(RECORDINGS / BINANCE).instruments
    # Five sizes of the whole capture have one decimal more than the venue's lot ("25.42618900", once at 200,000).
    assert (btc.symbol, btc.base, btc.quote, btc.aliases) == ("BTCUSDT", "BTC", "USDT", ("BTC/USDT",))
    assert (btc.price_precision, btc.qty_precision, btc.price_increment) == (2, 6, 1)
    assert (eth.symbol, eth.aliases) == ("ETHUSDT", ("ETH/USDT",))
    assert (eth.price_precision, eth.qty_precision, eth.price_increment) == (2, 5, 1)


@real
@pytest.mark.parametrize(("kind", "column", "decimals"), [("trades", "qty", (5, 4)), ("quotes", "bid_qty", (5, 4))])
def test_binance_trades_and_quotes_alone_need_the_venues_lots(tmp_path, kind, column, decimals):
    (tmp_path / f"{BINANCE}.{kind}.parquet").symlink_to(RECORDINGS / f"{BINANCE}.{kind}.parquet")
    assert tuple(i.qty_precision for i in open_recording(tmp_path).instruments) == decimals


@real
@pytest.mark.parametrize(("name", "symbol"), [(ESH4, "ESH4"), (ESU4, "ESU4")])
def test_futures_move_in_quarters_and_are_no_pair(name, symbol):
    (future,) = open_recording(RECORDINGS / name).instruments
    assert (future.symbol, future.base, future.quote, future.aliases) == (symbol, symbol, "", ())
    assert (future.price_precision, future.price_increment, future.qty_precision) == (2, 25, 0)


EVERY_TABLE = [
    *((BINANCE, kind) for kind in ("trades", "quotes", "book")),
    *((ESH4, kind) for kind in ("trades", "book")),
    (ESU4, "quotes"),
]


@real
@pytest.mark.parametrize(("name", "kind"), EVERY_TABLE)
def test_every_number_of_every_row_comes_through_exactly(name, kind):
    recording, file = open_recording(RECORDINGS / name), raw(name, kind)
    table = whole(recording, kind)
    for columns, scales, empty in (
        (layout.PRICES[kind], recording.instruments.price_scale, MISSING),
        (layout.QUANTITIES[kind], recording.instruments.qty_scale, 0),
    ):
        for column in columns:
            units, floats = getattr(table, column), file[column].to_numpy()
            null = np.isnan(floats)
            assert (units[null] == empty).all()
            np.testing.assert_array_equal((units / scales[table.instrument])[~null], floats[~null])
            pairs = {(units[i], floats[i], scales[table.instrument[i]]) for i in np.flatnonzero(~null)[::7]}
            assert all(Decimal(int(u)) / Decimal(int(s)) == Decimal(repr(float(f))) for u, f, s in pairs)


@real
@pytest.mark.parametrize(("name", "kind"), EVERY_TABLE)
def test_every_other_column_comes_through_as_it_is(name, kind):
    recording, file = open_recording(RECORDINGS / name), raw(name, kind)
    table = whole(recording, kind)
    symbols = np.array([i.symbol for i in recording.instruments])
    np.testing.assert_array_equal(symbols[table.instrument], file["symbol"].to_numpy())
    others = {"ts_recv": "ts_recv", "ts_event": "ts_event", "seq": "seq", "flags": "evt_flags"}
    others |= {name: name for name in ("action", "side", "order_id") if name in table.DTYPES}
    for ours, theirs in others.items():
        column = file[theirs].cast(pa.int64()) if theirs.startswith("ts_") else file[theirs]
        expected = column.fill_null(MISSING if ours == "ts_event" else 0).to_numpy()
        np.testing.assert_array_equal(getattr(table, ours), expected)
        assert getattr(table, ours).dtype == table.DTYPES[ours]


@real
def test_chunks_are_bounded_by_the_row_group():
    recording = open_recording(RECORDINGS / BINANCE)
    assert [len(c) for c in recording.levels()] == [65_536, 65_536, 65_536, 38_269]
    assert recording.tables == {"trades": 15_863, "quotes": 52_117, "book": 234_877}
    assert recording.rows == 302_857


@real
def test_event_time_that_runs_backwards_is_kept_and_counted():
    recording = open_recording(RECORDINGS / BINANCE)
    event = whole(recording, "book").ts_event
    known = event[event != MISSING]
    assert np.count_nonzero(np.diff(known) < 0) == 356
    assert np.count_nonzero(event == MISSING) == 4_002


@real
def test_receive_clock_behind_the_venues_is_left_alone():
    trades = whole(open_recording(RECORDINGS / BINANCE), "trades")
    assert (trades.ts_recv < trades.ts_event).all()


@real
def test_crossed_book_before_the_opening_is_kept():
    levels = whole(open_recording(RECORDINGS / ESH4), "book")
    before_opening = levels.slice(0, int(np.searchsorted(levels.ts_recv, 1_703_545_200 * S)))  # 23:00 UTC
    orders = {}
    columns = (getattr(before_opening, name).tolist() for name in ("order_id", "action", "side", "price", "qty"))
    for order_id, action, side, price, qty in zip(*columns, strict=True):
        if action in (ADD, MODIFY):
            orders[order_id] = (side, price, qty)
        elif action == CANCEL and (left := orders[order_id][2] - qty):
            orders[order_id] = (side, price, left)
        elif action == CANCEL:
            del orders[order_id]
    bids, asks = ([price for side, price, _ in orders.values() if side == which] for which in (1, -1))
    assert max(bids) > min(asks)


@real
def test_snapshot_rows_hours_older_than_the_tape_are_kept_in_place():
    levels = whole(open_recording(RECORDINGS / ESH4), "book")
    age = (levels.ts_recv - levels.ts_event)[(levels.flags & SNAPSHOT) != 0]
    assert age.max() > 10 * 3600 * S
    assert (levels.flags[: len(age)] & SNAPSHOT).all()


@real
def test_recording_across_midnight():
    recording = open_recording(RECORDINGS / ESU4)
    day = 86_400 * S
    assert recording.end_ns // day == recording.start_ns // day + 1
    assert describe(recording).silences.longest_ns == 6_279_087_516  # midnight itself is no silence


@real
def test_binance_is_described():
    info = describe(open_recording(RECORDINGS / BINANCE))
    trades, quotes, book = info.tables
    assert (info.start_ns, info.end_ns) == (1723161254024619568, 1723161599999231384)
    assert info.silences == Silences(count=0, longest_ns=0, longest_at_ns=None)
    assert trades.silences == Silences(count=3, longest_ns=1_065_609_720, longest_at_ns=1723161453087468033)
    assert book.rows_by_symbol == {"BTCUSDT": 126_074, "ETHUSDT": 108_803}
    assert (book.snapshots, book.snapshot_rows, book.inversions, book.gap_rows) == (2, 4_002, 356, 0)
    assert quotes.without_ts_event == 52_117
    assert "ts_event" not in quotes.columns
    assert "order_id" not in book.columns


@real
def test_hours_of_silence_are_found():
    info = describe(open_recording(RECORDINGS / ESH4))
    assert info.silences.longest_ns == 79_200_181_198_464  # 22 hours
    assert info.silences.longest_at_ns == info.start_ns


@real
def test_one_second_ties_without_a_side_keep_their_order(tmp_path):
    lines = (SHARED / "kraken" / "kraken_BCHEUR_trades.csv").read_text().split()
    seconds, price, qty = zip(*(map(float, line.split(",")) for line in lines), strict=True)
    ts = [int(s) * S for s in seconds]
    assert len(set(ts)) < len(ts)
    trades = read(tmp_path, "trades", len(ts), ts_recv=ts, price=list(price), qty=list(qty), side=0)
    assert trades.ts_recv.tolist() == ts
    assert not trades.side.any()
    assert trades.trade_id.tolist() == list(range(1, len(ts) + 1))
    scale = open_recording(tmp_path).instruments.price_scale[0]
    assert [f"{t / scale:g}" for t in trades.price] == [f"{p:g}" for p in price]


# --- columns


def test_one_sided_quotes_have_a_missing_price_and_no_size(tmp_path):
    nan = float("nan")
    quotes = read(tmp_path, "quotes", 3, bid_px=[None, nan, 1.5], bid_qty=[None, nan, 4.0], ask_px=[2.5, 2.5, None])
    assert quotes.bid_px.tolist() == [MISSING, MISSING, 15]
    assert quotes.bid_qty.tolist() == [0, 0, 4]
    assert quotes.ask_px.tolist() == [25, 25, MISSING]
    assert quotes.ask_qty.tolist() == [2, 2, 0]  # whatever size the file gives an absent offer


def test_zero_size_prints_are_kept(tmp_path):
    assert read(tmp_path, "trades", 3, qty=[1.0, 0.0, 2.0]).qty.tolist() == [1, 0, 2]


def test_negative_prices_are_prices(tmp_path):
    assert read(tmp_path, "trades", 2, price=[-37.63, 0.01]).price.tolist() == [-3763, 1]


def test_numeric_trade_ids_are_kept_and_others_are_rows(tmp_path):
    columns = {"symbol": ["A", "B", "A", "A", "B"], "trade_id": ["77", "x-1", None, "9" * 19, "x-2"]}
    assert read(tmp_path, "trades", 5, **columns).trade_id.tolist() == [77, 2, 3, 4, 5]


def test_trade_ids_may_be_a_dictionary(tmp_path):
    table = table_of("trades", 3, trade_id=["7", "7", None])
    at = table.schema.get_field_index("trade_id")
    words = table["trade_id"].combine_chunks().dictionary_encode()
    pq.write_table(table.set_column(at, "trade_id", words), tmp_path / "x.trades.parquet")
    assert whole(open_recording(tmp_path), "trades").trade_id.tolist() == [7, 7, 3]


def test_trades_are_counted_on_from_one_row_group_to_the_next(tmp_path):
    pq.write_table(table_of("trades", 5, symbol=["A", "B", "A", "A", "B"]), tmp_path / "x.trades.parquet", 2)
    recording = open_recording(tmp_path)
    assert [c.trade_id.tolist() for c in recording.trades()] in ([[1, 2], [3, 4], [5]], [[1, 2, 3, 4, 5]])
    assert [c.trade_id.tolist() for c in recording.trades(T0 + 3)] == [[4], [5]]


def test_instants_shown_in_another_zone_are_the_same_instants(tmp_path):
    table = table_of("trades", 2)
    local = table["ts_recv"].cast(pa.timestamp("ns", tz="America/Chicago"))
    pq.write_table(table.set_column(0, "ts_recv", local), tmp_path / "x.trades.parquet")
    assert whole(open_recording(tmp_path), "trades").ts_recv.tolist() == [T0, T0 + 1]


def test_a_cleared_book_has_neither_price_nor_size(tmp_path):
    levels = read(tmp_path, "book", 2, action=[4, 0], side=[0, 1], price=[None, 2.0], qty=[None, 3.0])
    assert levels.price.tolist() == [MISSING, 2]
    assert levels.qty.tolist() == [0, 3]
    assert levels.order_id.tolist() == [0, 0]


def test_order_ids_use_all_64_bits(tmp_path):
    assert read(tmp_path, "book", 1, action=1, order_id=[2**64 - 1]).order_id.tolist() == [2**64 - 1]


def test_plain_strings_and_absent_optional_columns_will_do(tmp_path):
    table = table_of("trades", 2, symbol=["B", "A"]).drop_columns(["venue", "venue_seq", "cond"])
    table = table.set_column(table.schema.get_field_index("symbol"), "symbol", pa.array(["B", "A"], pa.large_string()))
    pq.write_table(table, tmp_path / "x.trades.parquet")
    recording = open_recording(tmp_path)
    assert [i.symbol for i in recording.instruments] == ["A", "B"]
    assert whole(recording, "trades").instrument.tolist() == [1, 0]


def test_symbols_that_only_a_dictionary_lists_are_no_instruments(tmp_path):
    words = pa.DictionaryArray.from_arrays(pa.array([1, 1], pa.int32()), pa.array(["GONE", "HERE"]))
    table = table_of("trades", 2)
    table = table.set_column(table.schema.get_field_index("symbol"), "symbol", words)
    pq.write_table(table, tmp_path / "x.trades.parquet")
    assert [i.symbol for i in open_recording(tmp_path).instruments] == ["HERE"]


@given(
    units=st.lists(st.integers(0, MAX_UNITS) | st.integers(2**51, MAX_UNITS), min_size=1, max_size=20),
    precision=st.integers(0, 9),
)
def test_integers_survive_the_way_over_floats_up_to_the_limit(units, precision):
    instruments = Instruments(
        [Instrument(symbol="A", base="A", quote="", price_precision=precision, qty_precision=precision)]
    )
    ints = np.array(units, dtype=np.int64)
    columns = {name: np.zeros(len(ints), dtype) for name, dtype in Trades.DTYPES.items()}
    trades = Trades(**{**columns, "price": -ints, "qty": ints, "seq": np.arange(len(ints))})
    (batch,) = layout.encode("trades", trades, instruments, "T").to_batches()
    back = layout.Decoder("trades", Path("x"), instruments).decode(batch)
    np.testing.assert_array_equal(back.price, -ints)
    np.testing.assert_array_equal(back.qty, ints)


# --- instruments


def instrument_of(folder, **columns):
    put(folder, "trades", max(len(v) for v in columns.values()), **columns)
    (instrument,) = open_recording(folder).instruments
    return instrument


@pytest.mark.parametrize(
    ("prices", "precision", "increment"),
    [
        ([100.0, 350.0], 0, 1),
        ([4800.25, 4801.0], 2, 25),
        ([4800.5], 1, 5),
        ([0.1 + 0.2, 0.7], 1, 1),  # a float beside the one that "0.3" gives
        ([110.03125, 110.0625], 5, 3125),  # 1/32
        ([0.000000001, 2.0], 9, 1),
        ([123456789.12345], 5, 5),
    ],
)
def test_precision_and_increment_are_inferred(tmp_path, prices, precision, increment):
    instrument = instrument_of(tmp_path, price=prices)
    assert (instrument.price_precision, instrument.price_increment) == (precision, increment)


def test_precision_grows_from_one_row_group_to_the_next(tmp_path):
    table = table_of("trades", 3, price=[7.0, 7.5, 7.25], qty=[1.0, 1.0, 0.001])
    pq.write_table(table, tmp_path / "x.trades.parquet", row_group_size=1)
    (instrument,) = open_recording(tmp_path).instruments
    assert (instrument.price_precision, instrument.price_increment, instrument.qty_precision) == (2, 25, 3)


@pytest.mark.parametrize(
    ("venue", "symbol", "base", "quote", "aliases"),
    [
        ("BINANCE", "BTCUSDT", "BTC", "USDT", ("BTC/USDT",)),
        ("BINANCE", "BTCFDUSD", "BTC", "FDUSD", ("BTC/FDUSD",)),  # not BTCFD in USD
        ("BINANCE", "ETHBTC", "ETH", "BTC", ("ETH/BTC",)),
        ("BINANCE", "USDT", "USDT", "", ()),
        ("KRAKEN", "BTC/USD", "BTC", "USD", ()),
        ("GLBX", "ESH4", "ESH4", "", ()),
        ("XNAS", "PLUSD", "PLUSD", "", ()),  # no pair, whatever it ends with
    ],
)
def test_pairs_are_split_where_the_venue_has_pairs(tmp_path, venue, symbol, base, quote, aliases):
    instrument = instrument_of(tmp_path, venue=[venue], symbol=[symbol])
    assert (instrument.base, instrument.quote, instrument.aliases) == (base, quote, aliases)


def declare(folder, price_precision, qty_precision=0):
    """Write the instruments file of the recording "x"."""
    declared = Instrument(
        symbol="ABC", base="ABC", quote="", price_precision=price_precision, qty_precision=qty_precision
    )
    pq.write_table(layout.instruments_to_table(Instruments([declared])), folder / "x.instruments.parquet")


def test_noise_is_not_taken_for_decimals(tmp_path):
    path = put(tmp_path, "trades", 2, price=[1.5, 1 / 3])
    with pytest.raises(RecordingError, match=r"x\.trades\.parquet: row 1: price 0\.3+ has over 9 decimals"):
        open_recording(path)


def test_more_decimals_than_are_inferred_may_be_declared(tmp_path):
    path = put(tmp_path, "trades", 2, price=[1.5, 0.000000000012])
    declare(tmp_path, 12)
    assert whole(open_recording(path), "trades").price.tolist() == [1_500_000_000_000, 12]


@pytest.mark.parametrize("decimals", [-1, 16, 400, 20_000_000])
@pytest.mark.parametrize("of", ["price", "quantity"])
def test_a_precision_that_no_number_can_have_is_refused(tmp_path, of, decimals):
    path = put(tmp_path, "trades", 2)
    fine = layout.instruments_to_table(open_recording(path).instruments)
    column = {"price": "price_precision", "quantity": "qty_precision"}[of]
    wrong = fine.set_column(fine.schema.get_field_index(column), column, pa.array([decimals]))
    pq.write_table(wrong, tmp_path / "x.instruments.parquet")
    with pytest.raises(
        RecordingError, match=rf"instruments\.parquet: {column} of ABC is {decimals}; allowed is 0 to 15"
    ):
        open_recording(path)


@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        ("trades", {"price": [1.25, 1.125]}, r"row 1: price has more decimals than .* say of ABC \(1\.125\); give it"),
        ("trades", {"qty": [0.1, 0.004]}, r"row 1: qty has more decimals than .* say of ABC \(0\.004\); give it"),
        ("quotes", {"ask_px": [1.75, 1 / 3]}, r"row 1: ask_px has more decimals .*; give it more .*, or round"),
        ("book", {"qty": [4.25, 4.5]}, "row 0: qty has more decimals"),
    ],
)
def test_rows_are_not_rounded_to_an_instruments_file_that_is_coarser(tmp_path, kind, columns, message):
    path = put(tmp_path, kind, 2, **columns)
    declare(tmp_path, 2, 1)
    with pytest.raises(RecordingError, match=message):
        whole(open_recording(path), kind)


def test_a_float_beside_the_one_that_is_meant_is_no_decimal_more(tmp_path):
    path = put(tmp_path, "trades", 1, price=[0.1 + 0.2])
    declare(tmp_path, 1)
    assert whole(open_recording(path), "trades").price.tolist() == [3]


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("AB"), st.sampled_from([0, 1, 10**8 + 1, 2**52 - 1, 2**53]), st.integers(0, 9)),
        min_size=1,
        max_size=8,
    ),
    cut=st.integers(0, 8),
)
def test_with_instruments_that_were_inferred_every_row_can_be_read(rows, cut):
    symbols, units, decimals = zip(*rows, strict=True)
    values = [float(Decimal(u).scaleb(-d)) for u, d in zip(units, decimals, strict=True)]
    table = table_of("trades", len(rows), symbol=list(symbols), price=values, qty=values)
    pieces = [piece for part in (table.slice(0, cut), table.slice(cut)) for piece in part.to_batches() if len(piece)]
    inference = Inference()
    try:
        for piece in pieces:
            inference.update("trades", Path("x"), 0, piece)
    except RecordingError:  # what cannot be inferred is told before anything is written
        return
    instruments = inference.instruments()
    decoder = layout.Decoder("trades", Path("x"), instruments)
    read = Trades.concatenate([decoder.decode(piece) for piece in pieces])
    np.testing.assert_allclose(read.price / instruments.price_scale[read.instrument], values, rtol=2**-50)


def test_a_large_number_is_refused_when_later_rows_have_too_many_decimals_beside_it(tmp_path):
    table = table_of("trades", 4, symbol=["ABC", "ABC", "XYZ", "ABC"], qty=[5e7, 1.5, 1e-8, 1e-8])
    pq.write_table(table, tmp_path / "x.trades.parquet", row_group_size=1)
    with pytest.raises(RecordingError, match=r"row 3: qty 1e-08 has more decimals than 50000000 before it"):
        open_recording(tmp_path)


def test_a_symbol_that_the_instruments_file_lacks_is_refused(tmp_path):
    path = put(tmp_path, "trades", 2, symbol=["ABC", "XYZ"])
    declared = Instruments([Instrument(symbol="ABC", base="ABC", quote="", price_precision=2, qty_precision=0)])
    pq.write_table(layout.instruments_to_table(declared), tmp_path / "x.instruments.parquet")
    with pytest.raises(RecordingError, match="row 1: symbol is null or not among the instruments ABC"):
        list(open_recording(path).trades())


# --- finding


@pytest.mark.parametrize("given_path", ["x", "x.trades.parquet", "x.quotes.parquet", "."])
def test_prefix_file_and_folder_mean_the_same(tmp_path, given_path):
    put(tmp_path, "trades", 2)
    put(tmp_path, "quotes", 3)
    recording = open_recording(str(tmp_path / given_path))
    assert (recording.name, recording.tables) == ("x", {"trades": 2, "quotes": 3})
    assert not list(recording.levels())


def test_names_may_have_dots(tmp_path):
    put(tmp_path, "trades", 2, name="a.b")
    assert open_recording(tmp_path / "a.b").name == "a.b"


@pytest.mark.parametrize(
    ("given_path", "message"),
    [
        (".", "holds 2 recordings; choose one of .*one, .*two"),
        ("three", r"three: no recording; looked for three\.\{trades,quotes,book\}\.parquet; .* has one, two"),
        ("one.quotes.parquet", r"one\.quotes\.parquet: there is no such file"),
        ("empty", "empty: holds no recording; looked for NAME"),
        ("nowhere/x", "nowhere/x: no recording"),
        ("notes.txt", "ticker convert"),
    ],
)
def test_what_cannot_be_found_is_said(tmp_path, given_path, message):
    put(tmp_path, "trades", 1, name="one")
    put(tmp_path, "trades", 1, name="two")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RecordingError, match=message):
        open_recording(tmp_path / given_path)


# --- refusing


def spoil(path, how):
    content = path.read_bytes()
    middle = len(content) // 3
    spoiled = {
        "empty": b"",
        "short": content[: len(content) // 2],
        "random": random.Random(1).randbytes(4096),
        "magic": b"PAR1" + random.Random(2).randbytes(4096) + b"PAR1",
        "text": b"ts_recv,price\n1,2\n",
    }
    path.write_bytes(spoiled[how] if how in spoiled else content[:middle] + b"\xff" * 64 + content[middle + 64 :])


@pytest.mark.parametrize("how", ["empty", "short", "random", "magic", "text"])
@pytest.mark.parametrize("file", ["trades", "instruments"])
def test_unreadable_files_are_named(tmp_path, how, file):
    path = put(tmp_path, "trades", 100)
    if file == "instruments":
        path = tmp_path / "x.instruments.parquet"
        pq.write_table(layout.instruments_to_table(open_recording(tmp_path).instruments), path)
    spoil(path, how)
    unfinished = (file, how) == ("instruments", "empty")
    said = "is empty: .*; write it again" if unfinished else r"cannot be read as Parquet \(.+\); truncated"
    with pytest.raises(RecordingError, match=rf"x\.{file}\.parquet: {said}"):
        open_recording(tmp_path)


def test_damage_inside_a_file_is_found_when_its_rows_are_read(tmp_path):
    (instrument,) = open_recording(put(tmp_path, "trades", 1)).instruments
    recording = write_recording(tmp_path / "y", Instruments([instrument]), some_batches(3, rows=2_000))
    spoil(tmp_path / "y.trades.parquet", "middle")
    with pytest.raises(RecordingError, match=r"y\.trades\.parquet: cannot be read"):
        list(recording.trades())


def test_a_single_wrong_byte_in_the_rows_never_ends_in_another_exception(tmp_path):
    write_recording(tmp_path / "y", PAIR, some_batches(2))
    path = tmp_path / "y.quotes.parquet"
    good, draw, refused = path.read_bytes(), random.Random(3), 0
    footer = int.from_bytes(good[-8:-4], "little") + 8
    for _ in range(150):
        at = draw.randrange(len(good) - footer)
        path.write_bytes(good[:at] + bytes([good[at] ^ draw.randrange(1, 256)]) + good[at + 1 :])
        try:
            describe(open_recording(path))
        except RecordingError:
            refused += 1
    assert refused > 75  # the others hit what nobody reads, such as statistics


def test_missing_column_is_named(tmp_path):
    pq.write_table(table_of("trades", 2).drop_columns("side"), tmp_path / "x.trades.parquet")
    with pytest.raises(RecordingError, match=r"x\.trades\.parquet: column 'side' is missing"):
        open_recording(tmp_path)


@pytest.mark.parametrize(("column", "wrong"), [("price", pa.float32()), ("seq", pa.int32()), ("ts_recv", pa.int64())])
def test_wrong_type_is_named(tmp_path, column, wrong):
    table = table_of("trades", 2)
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, column, table[column].cast(wrong)), tmp_path / "x.trades.parquet")
    with pytest.raises(RecordingError, match=f"column '{column}' is {wrong}, not "):
        open_recording(tmp_path)


def test_no_rows_at_all(tmp_path):
    put(tmp_path, "trades", 0)
    with pytest.raises(RecordingError, match="holds no rows"):
        open_recording(tmp_path)


def test_one_empty_table_does_no_harm(tmp_path):
    put(tmp_path, "trades", 0)
    put(tmp_path, "quotes", 2)
    recording = open_recording(tmp_path)
    assert recording.tables == {"trades": 0, "quotes": 2}
    assert (recording.start_ns, recording.end_ns) == (T0, T0 + 1)
    assert [t.rows for t in describe(recording).tables] == [0, 2]


NAN, INF = float("nan"), float("inf")
OPENING = [
    ("trades", {"price": [1.0, 2.0**53]}, "row 1: price 9007199254740992.0 is beyond 4503599627370496;"),
    ("trades", {"price": [1.0, INF]}, "row 1: price inf is beyond"),
    ("trades", {"qty": [0.001, 2.0**44]}, "row 1: qty .* is beyond .* units of the symbol's last decimal"),
    ("quotes", {"ask_qty": [1.0, 1e300]}, "row 1: ask_qty 1e.300 is beyond"),
]
READING = [
    ("trades", {"ts_recv": [T0 + 1, T0]}, "row 1: ts_recv runs backwards: sort the file"),
    ("trades", {"seq": [7, 7]}, r"row 1: seq does not increase: sort the file by ts_recv and seq \(7\)"),
    ("trades", {"price": [1.0, NAN]}, "row 1: a trade has no price"),
    ("trades", {"qty": [1.0, -2.0]}, r"row 1: qty is negative or not a number \(-2.0\)"),
    ("trades", {"qty": [1.0, NAN]}, "row 1: qty is negative or not a number"),
    ("trades", {"side": [1, 2]}, r"row 1: side is not one of -1 to 1 \(2\)"),
    ("trades", {"symbol": ["A", None]}, "row 1: symbol is null"),
    ("trades", {"side": [1, None]}, "row 1: side is null"),
    ("quotes", {"bid_qty": [1.0, NAN]}, "row 1: bid_qty is negative or not a number"),
    ("quotes", {"ts_recv": [T0, None]}, "row 1: ts_recv is null"),
    ("book", {"action": [0, 7]}, r"row 1: action is not one of 0 to 6 \(7\)"),
    ("book", {"price": [1.0, None]}, "row 1: a set, add or modify has no price"),
]


@pytest.mark.parametrize(("kind", "columns", "message"), OPENING)
def test_bad_numbers_are_refused_on_opening(tmp_path, kind, columns, message):
    path = put(tmp_path, kind, 2, **columns)
    with pytest.raises(RecordingError, match=rf"{path.name}: {message}"):
        open_recording(tmp_path)


@pytest.mark.parametrize(("kind", "columns", "message"), READING)
def test_bad_rows_are_refused_on_reading(tmp_path, kind, columns, message):
    path = put(tmp_path, kind, 2, **columns)
    with pytest.raises(RecordingError, match=rf"{path.name}: {message}"):
        whole(open_recording(tmp_path), kind)


def test_numbers_beyond_the_limit_are_refused_where_the_precision_is_declared(tmp_path):
    declared = Instruments([Instrument(symbol="ABC", base="ABC", quote="", price_precision=9, qty_precision=9)])
    put(tmp_path, "trades", 3, price=[1.0, 2.0, 1e300])
    pq.write_table(layout.instruments_to_table(declared), tmp_path / "x.instruments.parquet")
    with pytest.raises(RecordingError, match="row 2: price is beyond"):
        list(open_recording(tmp_path).trades())


@pytest.mark.parametrize(("column", "values"), [("ts_recv", [T0 + 5, T0 + 6, T0 + 4]), ("seq", [5, 6, 6])])
def test_order_is_checked_across_row_groups_and_rows_are_counted_from_the_file(tmp_path, column, values):
    table = table_of("trades", 3, **{column: values})
    decoder = layout.Decoder(
        "trades",
        tmp_path,
        Instruments([Instrument(symbol="ABC", base="ABC", quote="", price_precision=1, qty_precision=0)]),
    )
    first, second = table.slice(0, 2).combine_chunks().to_batches()[0], table.slice(2).combine_chunks().to_batches()[0]
    decoder.decode(first)
    with pytest.raises(RecordingError, match=f"row 2: {column}"):
        decoder.decode(second)


# --- describing


def test_silence_is_when_no_table_has_a_row(tmp_path):
    put(tmp_path, "trades", 3, ts_recv=[T0, T0 + 10 * S, T0 + 20 * S])
    put(tmp_path, "quotes", 2, ts_recv=[T0 + 4 * S, T0 + 19 * S])
    info = describe(open_recording(tmp_path))
    assert info.silences == Silences(count=3, longest_ns=9 * S, longest_at_ns=T0 + 10 * S)
    assert [t.silences.count for t in info.tables] == [2, 1]


def test_a_silence_lasts_longer_than_a_second_and_may_span_chunks(tmp_path):
    pq.write_table(
        table_of("trades", 3, ts_recv=[T0, T0 + S, T0 + 2 * S + 1]), tmp_path / "x.trades.parquet", row_group_size=1
    )
    assert describe(open_recording(tmp_path)).silences == Silences(count=1, longest_ns=S + 1, longest_at_ns=T0 + S)


def test_flags_are_counted(tmp_path):
    flags = [SNAPSHOT, SNAPSHOT | LAST, SNAPSHOT | LAST, GAP | LAST, SNAPSHOT, SNAPSHOT, LAST]
    symbols = ["A", "A", "A", "A", "A", "B", "A"]
    put(tmp_path, "book", 7, evt_flags=flags, symbol=symbols, ts_event=[None, 5, 3, None, 3, 4, 2])
    (book,) = describe(open_recording(tmp_path)).tables
    assert (book.snapshots, book.snapshot_rows, book.gap_rows) == (4, 5, 1)
    assert (book.inversions, book.without_ts_event) == (2, 2)
    assert book.rows_by_symbol == {"A": 6, "B": 1}


# --- writing

PAIR = Instruments(
    [
        Instrument(
            symbol="B/C", base="B", quote="C", price_precision=2, qty_precision=8, price_increment=5, qty_min=10
        ),
        Instrument(symbol="A/C", base="A", quote="C", price_precision=0, qty_precision=0, aliases=("AC", "XAC")),
    ]
)


def some_batches(count, rows=10):
    """Batches with all three tables, absent values among them."""
    draw = np.random.default_rng(7)
    for i in range(count):
        seq = (i * rows + np.arange(rows)) * 3
        shared = {"ts_recv": T0 + seq // 7, "flags": np.full(rows, LAST, dtype=np.uint8)}
        shared["ts_event"] = np.where(seq % 4 == 0, MISSING, T0 - seq)
        shared["instrument"] = np.zeros(rows, dtype=np.int32)
        price, qty = draw.integers(1, 10**7, rows), draw.integers(0, 10**12, rows)
        side = draw.choice(np.array([-1, 1], dtype=np.int8), rows)
        gone = np.arange(rows) % 3 == 0
        yield Batch(
            ts=int(shared["ts_recv"][-1]),
            trades=Trades(**shared, seq=seq, price=price, qty=qty, side=side, trade_id=seq + 9),
            quotes=Quotes(
                **shared,
                seq=seq + 1,
                bid_px=np.where(gone, MISSING, price),
                bid_qty=np.where(gone, 0, qty),
                ask_px=price + 1,
                ask_qty=qty,
            ),
            levels=Levels(
                **shared,
                seq=seq + 2,
                action=np.where(gone, 4, 1).astype(np.int8),
                side=side,
                price=np.where(gone, MISSING, price),
                qty=np.where(gone, 0, qty),
                order_id=np.where(gone, 0, seq).astype(np.uint64),
            ),
        )


def test_what_is_written_is_read_back(tmp_path):
    recording = write_recording(tmp_path / "r", PAIR, some_batches(20), venue="SIM")
    batches = list(some_batches(20))
    for kind, field in (("trades", "trades"), ("quotes", "quotes"), ("book", "levels")):
        back = whole(recording, kind)
        for name, dtype in back.DTYPES.items():
            expected = np.concatenate([getattr(getattr(b, field), name) for b in batches])
            np.testing.assert_array_equal(getattr(back, name), expected)
            assert getattr(back, name).dtype == dtype
    assert list(recording.instruments) == list(PAIR)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"r.{part}.parquet" for part in ("book", "instruments", "quotes", "trades")
    ]


def test_files_are_in_the_layout(tmp_path):
    write_recording(tmp_path / "r", PAIR, some_batches(70, rows=1_000), venue="SIM")
    for kind in layout.TABLES:
        file = pq.ParquetFile(tmp_path / f"r.{kind}.parquet")
        assert file.schema_arrow.equals(layout.SCHEMAS[kind])
        assert [file.metadata.row_group(i).num_rows for i in range(2)] == [ROW_GROUP, 70_000 - ROW_GROUP]
        column = file.metadata.row_group(0).column(0)
        assert (column.compression, column.has_offset_index, column.has_column_index) == ("ZSTD", True, True)
        assert set(file.read(["venue"])["venue"].to_pylist()) == {"SIM"}


@real
def test_our_schemas_are_those_of_the_shared_recordings():
    for kind in layout.TABLES:
        assert raw(BINANCE, kind).schema.equals(layout.SCHEMAS[kind])


def test_cut_short_it_leaves_the_older_recording_as_it_was(tmp_path):
    write_recording(tmp_path / "r", PAIR, some_batches(2))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def breaking():
        yield from some_batches(70, rows=1_000)
        raise RuntimeError("the feed broke")

    with pytest.raises(RuntimeError, match="the feed broke"):
        write_recording(tmp_path / "r", PAIR, breaking())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_table_that_is_no_longer_recorded_does_not_stay_behind(tmp_path):
    write_recording(tmp_path / "r", PAIR, some_batches(2))
    only_quotes = (Batch(ts=b.ts, quotes=b.quotes) for b in some_batches(2))
    assert write_recording(tmp_path / "r", PAIR, only_quotes).tables == {"quotes": 20}


def test_nothing_is_no_recording(tmp_path):
    with pytest.raises(RecordingError, match="nothing to record"):
        write_recording(tmp_path / "r", PAIR, [])
    assert not list(tmp_path.iterdir())


def test_a_second_epoch_does_not_fit_behind_the_first(tmp_path):
    with pytest.raises(RecordingError, match="rows out of order; record one epoch"):
        write_recording(tmp_path / "r", PAIR, itertools.chain(some_batches(2), some_batches(2)))


def content(recording):
    """All values of a recording, to be compared."""
    columns = {kind: whole(recording, kind).columns() for kind in layout.TABLES}
    return {(kind, name): values.tolist() for kind in columns for name, values in columns[kind].items()}


@pytest.mark.parametrize("step", ["hold_place", 0, 1, 2, 3])
def test_what_is_published_in_part_never_opens_as_one_recording(tmp_path, monkeypatch, step):
    older = content(write_recording(tmp_path / "r", PAIR, some_batches(1)))
    done = itertools.count()
    publish = TableFile.publish

    def fail(*_):
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(TableFile, "publish", lambda file: fail() if next(done) == step else publish(file))
        if step == "hold_place":
            patch.setattr(TableFile, "hold_place", fail)
        with pytest.raises(RecordingError, match=r"r: cannot be written \(interrupted\); check the folder"):
            write_recording(tmp_path / "r", PAIR, some_batches(3))
    if step == "hold_place":
        assert content(open_recording(tmp_path / "r")) == older
    else:
        with pytest.raises(RecordingError, match=r"r\.instruments\.parquet: is empty: .* write it again"):
            open_recording(tmp_path / "r")
    newer = content(write_recording(tmp_path / "r", PAIR, some_batches(3)))
    assert newer != older
    assert len(list(tmp_path.iterdir())) == 4


def test_the_disk_has_every_file_before_it_gets_its_name(tmp_path, monkeypatch):
    synced, fsync, publish = set(), os.fsync, TableFile.publish

    def noted(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(file):
        assert file._temporary.stat().st_ino in synced
        publish(file)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(TableFile, "publish", checked)
    write_recording(tmp_path / "r", PAIR, some_batches(1))
    assert tmp_path.stat().st_ino in synced


def test_two_that_write_one_name_at_once_do_not_get_into_each_others_files(tmp_path):
    def with_another_meanwhile():
        yield from some_batches(70, rows=1_000)  # more than a row group: its files are begun
        write_recording(tmp_path / "r", PAIR, some_batches(70, rows=1_000))

    last = content(write_recording(tmp_path / "r", PAIR, with_another_meanwhile()))
    assert last == content(write_recording(tmp_path / "s", PAIR, some_batches(70, rows=1_000)))


def test_what_a_killed_writer_left_is_removed_and_what_another_still_writes_is_not(tmp_path):
    left = tmp_path / ".r.book.parquet.0123456789abcdef.tmp"
    left.write_bytes(b"half a book")
    others = TableFile(tmp_path / "r.trades.parquet", layout.SCHEMAS["trades"])
    others.write(table_of("trades", 2).cast(layout.SCHEMAS["trades"]))
    write_recording(tmp_path / "r", PAIR, some_batches(1))
    assert not left.exists()
    assert others.finish()
    others.publish()
    assert pq.read_table(tmp_path / "r.trades.parquet").num_rows == 2
    others.abandon()


def test_a_link_to_an_older_file_is_left_alone(tmp_path):
    write_recording(tmp_path / "r", PAIR, some_batches(1))
    (tmp_path / "kept").hardlink_to(tmp_path / "r.instruments.parquet")
    before = (tmp_path / "kept").read_bytes()
    write_recording(tmp_path / "r", PAIR, some_batches(2))
    assert (tmp_path / "kept").read_bytes() == before


def test_only_the_very_same_may_be_there_if_nothing_is_to_be_replaced(tmp_path):
    write_recording(tmp_path / "r", PAIR, some_batches(2))
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    write_recording(tmp_path / "r", PAIR, some_batches(2), replace=False)
    with pytest.raises(RecordingError, match="r: there is another recording of that name; move it away"):
        write_recording(tmp_path / "r", PAIR, some_batches(3), replace=False)
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(RecordingError, match="r: cannot be written"):
        write_recording(tmp_path / "no" / "r", PAIR, some_batches(1))
