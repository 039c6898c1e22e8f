"""Frames, fixed-point numbers, timestamps, rows."""

import json
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from feeds.analytics import Candle
from feeds.instruments import MAX_UNITS, Instrument
from feeds.records import BUY, MISSING, NO_SIDE, SELL
from tests.scripted import START_NS, frames
from ticker.codec import RowCodec, close_frame, fixed, frame, message, rfc3339, rfc3339_column
from ticker.history import TickerColumns

UNITS = st.integers(-MAX_UNITS, MAX_UNITS)


def codec(price_precision: int = 2, qty_precision: int = 8, *, name: str = "A/B", quoted: bool = False) -> RowCodec:
    instrument = Instrument(
        symbol="A/B", base="A", quote="B", price_precision=price_precision, qty_precision=qty_precision
    )
    return RowCodec(instrument, name, quoted=quoted)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_a_frame_states_its_length(size):
    assert list(frames(frame(b"x" * size))) == [(1, b"x" * size)]


def test_a_close_reason_is_cut_to_what_a_control_frame_holds_without_splitting_a_character():
    ((opcode, payload),) = frames(close_frame(1008, "é" * 100))
    assert (opcode, payload[:2]) == (8, (1008).to_bytes(2))
    assert payload[2:].decode() == "é" * 61


@pytest.mark.parametrize(
    ("units", "precision", "expected"),
    [(0, 0, "0"), (0, 2, "0.00"), (5, 8, "0.00000005"), (-5, 2, "-0.05"), (12345, 2, "123.45"), (7, 0, "7")],
)
def test_fixed_point_has_all_decimals_and_no_exponent(units, precision, expected):
    assert fixed(units, precision) == expected


@given(units=st.integers(-(10**40), 10**40), precision=st.integers(0, 18))
def test_fixed_point_is_exact_for_any_integer(units, precision):
    assert int(fixed(units, precision).replace(".", "")) == units
    assert len(fixed(units, precision).partition(".")[2]) == precision


def test_a_timestamp_has_microseconds():
    assert rfc3339(START_NS + 1_234_567_890) == "2026-01-02T09:04:32.234567Z"
    assert rfc3339(0) == "1970-01-01T00:00:00.000000Z"
    instants = np.array([0, START_NS, START_NS + 1_234_567_890, START_NS + 999_999_999])
    assert rfc3339_column(instants) == [rfc3339(ns) for ns in instants.tolist()]


@given(price=UNITS, qty=st.integers(0, MAX_UNITS), precisions=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_rows_print_the_exact_digits_of_their_integers(price, qty, precisions):
    """The row templates divide by a power of ten; up to MAX_UNITS that loses nothing."""
    row = json.loads(codec(*precisions).trade(BUY, price, qty, 1, START_NS), parse_float=str, parse_int=str)
    assert Decimal(row["price"]) == Decimal(price).scaleb(-precisions[0])
    assert row["price"].lstrip("-") == fixed(abs(price), precisions[0])
    assert row["qty"] == fixed(qty, precisions[1])


@given(values=st.lists(st.integers(1, MAX_UNITS), min_size=9, max_size=9), change=UNITS, quoted=st.booleans())
def test_the_ticker_template_and_its_slow_twin_say_the_same(values, change, quoted):
    columns = TickerColumns(tuple(np.array([v]) for v in (*values, change, -1.25)), np.array([START_NS]))
    ((row, exact),) = columns.rows(np.array([1e2]), np.array([1e8]))
    assert exact is None
    printer = codec(quoted=quoted)
    assert printer.ticker(row, None) == printer.ticker(row, (*values, change, -1.25))


def test_columns_say_which_rows_a_double_cannot():
    rows = np.array([[1, 1, 2, 1, 1, volume, 1, 1, 1, 0, 0] for volume in (5, 2**52 + 1, 5)])
    rows[2][0] = MISSING
    columns = TickerColumns(tuple(rows.T), np.array([START_NS] * 3))
    exact = [row[1] for row in columns.rows(np.ones(3), np.ones(3))]
    assert exact == [None, tuple(rows[1].tolist()), tuple(rows[2].tolist())]


def test_a_ticker_without_a_bid_or_a_trade_says_null():
    row = (MISSING, 0, 10012, 5, MISSING, 0, 0.0, MISSING, MISSING, MISSING, 0.0)
    printed = json.loads(codec().ticker(("T",), row))
    assert (printed["bid"], printed["ask"], printed["last"]) == (None, 100.12, None)
    assert [printed[key] for key in ("vwap", "low", "high", "change", "change_pct")] == [None] * 5
    assert printed["volume"] == 0


def test_a_volume_beyond_a_doubles_precision_is_printed_exactly():
    volume = 2**60 + 1
    row = (1, 1, 2, 1, 1, volume, 1.0, 1, 1, 0, 0.0)
    assert f'"volume":{fixed(volume, 8)},' in codec().ticker(("T",), row)
    candle = Candle(0, 1, 1, 1, 1, volume, 1.0, 3)
    assert f'"volume":{fixed(volume, 8)},' in codec().candle(candle, 1)


def test_sides_are_words_and_an_unknown_side_is_null():
    rows = [json.loads(codec().trade(side, 100, 1, 7, START_NS)) for side in (BUY, SELL, NO_SIDE)]
    assert [row["side"] for row in rows] == ["buy", "sell", None]


@given(name=st.text(st.characters(exclude_categories=["Cs"])))
@example(name='50%s "\\x" {0}')
def test_a_name_is_told_as_it_is_whatever_is_in_it(name):
    printer, candle = codec(name=name), Candle(0, 1, 1, 1, 1, 1, 1.0, 3)
    whole, partial = ((1.0,) * 11 + ("T",), None), (("T",), (MISSING, 0, 1, 5, MISSING, 0, 0.0, 0, 0, 0, 0.0))
    rows = [printer.ticker(*whole), printer.ticker(*partial), printer.trade(BUY, 1, 1, 1, 0)]
    rows += [printer.book([(1, 1)], [], 5, 0), printer.candle(candle, 1)]
    assert {json.loads(row)["symbol"] for row in rows} == {name}


def test_numbers_can_be_strings():
    row = json.loads(codec(quoted=True).trade(BUY, 100, 1, 7, START_NS))
    assert (row["price"], row["qty"], row["trade_id"]) == ("1.00", "0.00000001", 7)
    book = json.loads(codec(quoted=True).book([(100, 1)], [], 5, START_NS))
    assert book["bids"] == [{"price": "1.00", "qty": "0.00000001"}]


def test_a_message_names_its_channel_and_carries_what_it_is_given():
    ((opcode, payload),) = frames(frame(message("trade", "update", '{"a":1},{"a":2}', pos='{"n":2}', timestamp="T")))
    assert opcode == 1
    assert json.loads(payload) == {
        "channel": "trade", "type": "update", "timestamp": "T", "pos": {"n": 2}, "data": [{"a": 1}, {"a": 2}],
    }  # fmt: skip
