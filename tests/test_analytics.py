from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.analytics import MINUTE_NS, Candle, Candles, DayRows, DayStatistics
from feeds.instruments import MAX_UNITS
from feeds.records import BUY, LAST, MISSING, Trades

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"
N = 3
SECOND_NS = 1_000_000_000
HALF_HOUR_NS = 30 * MINUTE_NS
DAY_NS = 48 * HALF_HOUR_NS
ALL = np.arange(N, dtype=np.int32)


class Print(NamedTuple):
    """One trade; ``ts_event`` is ``ts_recv - late`` or, where ``late`` is None, missing."""

    ts_recv: int
    price: int = 100
    qty: int = 1
    instrument: int = 0
    late: int | None = 0

    @property
    def time(self) -> int:
        return self.ts_recv - (self.late or 0)


def trades(prints: Sequence[Print]) -> Trades:
    columns = {
        "ts_recv": [p.ts_recv for p in prints],
        "ts_event": [MISSING if p.late is None else p.time for p in prints],
        "seq": range(len(prints)),
        "instrument": [p.instrument for p in prints],
        "flags": [LAST] * len(prints),
        "price": [p.price for p in prints],
        "qty": [p.qty for p in prints],
        "side": [BUY] * len(prints),
        "trade_id": range(len(prints)),
    }
    return Trades(**{name: np.array(columns[name], dtype) for name, dtype in Trades.DTYPES.items()})


def fields(candle: Candle | None) -> tuple[float, ...] | None:
    return None if candle is None else tuple(getattr(candle, name) for name in Candle.__struct_fields__)


def same(left: Candle | None, right: Candle | None) -> bool:
    """Equal but for the last digits of vwap, as sums of floats depend on their order."""
    return fields(left) == (None if right is None else pytest.approx(fields(right), rel=1e-12, abs=0))


# ------------------------------------------------------------------------------------------------ the references


def candle_of(begin: int, prints: list[Print]) -> Candle:
    prices, volume = [p.price for p in prints], sum(p.qty for p in prints)
    vwap = sum(p.price * p.qty for p in prints) / volume
    return Candle(begin, prices[0], max(prices), min(prices), prices[-1], volume, vwap, len(prints))


def naive_candles(prints: Sequence[Print], instrument: int, minutes: int) -> list[Candle]:
    """Every candle of an instrument, the running one last; trade by trade."""
    candles: list[tuple[int, list[Print]]] = []
    for p in prints:
        if p.instrument != instrument or p.qty == 0:
            continue
        begin = p.time - p.time % (minutes * MINUTE_NS)
        if not candles or begin > candles[-1][0]:
            candles.append((begin, []))
        candles[-1][1].append(p)
    return [candle_of(begin, own) for begin, own in candles]


def naive_day(prints: Sequence[Print], instrument: int, now: int) -> dict[str, float]:
    own = [p for p in prints if p.instrument == instrument and p.qty]
    inside = [p for p in own if p.ts_recv // HALF_HOUR_NS > now // HALF_HOUR_NS - 48]
    last = own[-1].price if own else MISSING
    if not inside:
        vwap = last if own else 0
        return {"last_px": last, "open": last, "low": last, "high": last, "volume": 0, "vwap": vwap, "count": 0}
    c = candle_of(0, inside)
    row = {"last_px": last, "open": c.open, "low": c.low, "high": c.high, "volume": c.volume, "vwap": c.vwap}
    return row | {"count": c.trades}


def row(rows: DayRows, index: int) -> dict[str, float]:
    return {name: getattr(rows, name)[index].item() for name in DayRows.__struct_fields__}


# ------------------------------------------------------------------------------------------------------- streams

#: No deadline: a busy machine is no failure.
reproducible = settings(deadline=None, derandomize=True)

T0 = 1_723_161_254_000_000_000

steps = st.sampled_from([0, 0, SECOND_NS, 20 * SECOND_NS, 61 * SECOND_NS, 10 * MINUTE_NS, 40 * MINUTE_NS])
jumps = st.sampled_from([13 * 60 * MINUTE_NS, DAY_NS, DAY_NS + HALF_HOUR_NS, 9 * DAY_NS])
lateness = st.sampled_from([0, 0, -2 * SECOND_NS, 5 * SECOND_NS, 3 * MINUTE_NS, None])
events = st.tuples(
    st.one_of(steps, steps, steps, jumps), st.integers(-3, 9), st.integers(0, 4), st.integers(0, N - 1), lateness
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Print], list[int]]:
    """A tape and where it is cut into batches."""
    now, prints = T0, []
    for step, price, qty, instrument, late in draw(st.lists(events, max_size=40)):
        now += step
        prints.append(Print(now, price, qty, instrument, late))
    return prints, sorted(draw(st.lists(st.integers(0, len(prints)), max_size=5)))


def batches(prints: Sequence[Print], cuts: Sequence[int]) -> list[Trades]:
    bounds = [0, *cuts, len(prints)]
    return [trades(prints[a:b]) for a, b in pairwise(bounds)]


# ------------------------------------------------------------------------------------------------- DayStatistics


@reproducible
@given(streams(), st.sampled_from([0, HALF_HOUR_NS, DAY_NS // 2, DAY_NS, 2 * DAY_NS]), st.booleans())
def test_day_equals_the_naive_window_however_the_tape_is_cut(stream, later, asked_between):
    prints, cuts = stream
    day = DayStatistics(N)
    taken = 0
    for batch in batches(prints, cuts):
        day.apply(batch)
        taken += len(batch)
        if asked_between and taken:
            check_day(day, prints[:taken], prints[taken - 1].ts_recv)
    check_day(day, prints, (prints[-1].ts_recv if prints else T0) + later)


def check_day(day: DayStatistics, prints: Sequence[Print], now: int) -> None:
    rows = day.rows(ALL, now)
    for instrument in range(N):
        assert row(rows, instrument) == pytest.approx(naive_day(prints, instrument, now), rel=1e-12)


def test_a_trade_before_the_moment_that_was_asked_for_counts_all_the_same():
    day, start = DayStatistics(N), T0 // HALF_HOUR_NS * HALF_HOUR_NS
    prints = [Print(start, price=5), Print(start + HALF_HOUR_NS - 1, price=9), Print(start + HALF_HOUR_NS, price=7)]
    for k, print_ in enumerate(prints, 1):
        day.apply(trades([print_]))
        check_day(day, prints[:k], start + HALF_HOUR_NS)


def test_day_rows_have_the_documented_dtypes():
    day = DayStatistics(N)
    day.apply(trades([Print(T0)]))
    rows = day.rows(ALL, T0)
    sums = dict.fromkeys(("volume", "vwap"), "float64")
    others = dict.fromkeys(("last_px", "open", "low", "high", "count"), "int64")
    assert {n: getattr(rows, n).dtype.name for n in DayRows.__struct_fields__} == others | sums


def test_day_rows_come_in_the_order_asked_for():
    day = DayStatistics(N)
    day.apply(trades([Print(T0, price=7, instrument=2), Print(T0, price=5, instrument=1)]))
    assert day.rows(np.array([2, 1, 2], dtype=np.int32), T0).last_px.tolist() == [7, 5, 7]
    assert day.rows(np.empty(0, dtype=np.int32), T0).volume.tolist() == []


def test_an_instrument_that_never_traded_has_no_prices_and_no_nan():
    rows = DayStatistics(1).rows(np.array([0], dtype=np.int32), T0)
    assert (rows.last_px[0], rows.open[0], rows.low[0], rows.high[0]) == (MISSING,) * 4
    assert (rows.vwap[0], rows.volume[0], rows.count[0]) == (0.0, 0, 0)


def test_a_day_of_silence_leaves_the_last_price():
    day = DayStatistics(1)
    day.apply(trades([Print(T0, price=90, qty=5), Print(T0, price=80, qty=5)]))
    rows = day.rows(np.array([0], dtype=np.int32), T0 + DAY_NS)
    assert (rows.last_px[0], rows.open[0], rows.high[0], rows.low[0], rows.vwap[0]) == (80, 80, 80, 80, 80.0)
    assert rows.volume[0] == 0


def test_the_day_moves_by_half_an_hour():
    day, start = DayStatistics(1), T0 - T0 % HALF_HOUR_NS
    day.apply(trades([Print(start, price=1), Print(start + HALF_HOUR_NS, price=2)]))
    ids = np.array([0], dtype=np.int32)
    assert day.rows(ids, start + DAY_NS - 1).open[0] == 1
    assert day.rows(ids, start + DAY_NS).open[0] == 2


def test_day_sums_do_not_overflow():
    price, qty = 10**7, 10**11  # 1,000 bitcoin in lots of 1e-8 at 100,000: 9 such products pass 2**63
    day = DayStatistics(1)
    day.apply(trades([Print(T0, price, qty)] * 20))
    rows = day.rows(np.array([0], dtype=np.int32), T0)
    assert (rows.vwap[0], rows.volume[0]) == (price, 20 * qty)


@pytest.mark.parametrize("length", [1, 700, 3_000])
def test_no_volume_wraps_round_whatever_a_venue_trades(length):
    qty, count = MAX_UNITS - 1, 3_000  # 2**63 lots and more, in trades that are each allowed
    day, candles = DayStatistics(1), Candles(1)
    batch = trades([Print(T0, 3, qty)] * count)
    for start in range(0, count, length):
        day.apply(batch.slice(start, start + length))
        candles.apply(batch.slice(start, start + length))
    rows = day.rows(np.array([0], dtype=np.int32), T0)
    assert (rows.volume[0], rows.vwap[0]) == pytest.approx((qty * count, 3))
    candle = candles.current(0, 0)
    assert isinstance(candle.volume, int)
    assert (candle.volume, candle.vwap) == pytest.approx((qty * count, 3))


def test_volumes_after_each_trade_do_not_wrap_round_either():
    batch = trades([Print(T0, 3, MAX_UNITS - 1)] * 3_000)
    together, singly = DayStatistics(1), DayStatistics(1)
    each = together.apply_each(batch, T0)
    candles = Candles(1)
    sums = candles.apply_each(batch, [0])[0].sums
    for k in range(len(batch)):
        singly.apply(batch.slice(k, k + 1))
    last = singly.rows(np.array([0], dtype=np.int32), T0).volume[0]
    assert last == pytest.approx(3_000 * (MAX_UNITS - 1))
    assert (np.diff(each.volume) > 0).all()
    assert each.volume[-1] == together.rows(np.array([0], dtype=np.int32), T0).volume[0] == last
    assert sums.volume[-1] == candles.current(0, 0).volume == last


def test_day_reset_forgets():
    day = DayStatistics(1)
    day.apply(trades([Print(T0)]))
    day.reset()
    assert day.rows(np.array([0], dtype=np.int32), T0).last_px[0] == MISSING
    day.apply(trades([Print(T0 - DAY_NS, price=3)]))
    assert day.rows(np.array([0], dtype=np.int32), T0 - DAY_NS).open[0] == 3


def test_a_market_of_more_than_32767_instruments_keeps_them_apart():
    n = 40_000
    day, candles = DayStatistics(n), Candles(n)
    batch = trades([Print(T0, price=p, instrument=i) for p, i in ((1, 39_999), (2, 4), (3, 39_999))])
    day.apply(batch)
    candles.apply(batch)
    assert day.rows(np.array([4, 39_999], dtype=np.int32), T0).last_px.tolist() == [2, 3]
    assert candles.current(8, 39_999).open == 1


# ------------------------------------------------------------------------------------------------------- Candles


@reproducible
@given(streams())
def test_candles_equal_the_naive_ones_however_the_tape_is_cut(stream):
    prints, cuts = stream
    candles = Candles(N)
    for batch in batches(prints, cuts):
        candles.apply(batch)
    for index, minutes in enumerate(Candles.INTERVALS):
        for instrument in range(N):
            expected = naive_candles(prints, instrument, minutes)
            assert same(candles.current(index, instrument), expected[-1] if expected else None)
            closed = candles.closed(index, instrument)
            assert len(closed) == max(len(expected) - 1, 0)
            assert all(same(a, b) for a, b in zip(closed, expected[:-1], strict=True))


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 4))
def test_candles_after_each_trade_are_those_of_one_trade_at_a_time_to_the_last_digit(seed, count, batches):
    random = np.random.default_rng(seed)
    together, singly = Candles(N), Candles(N)
    now, indices = 100 * HALF_HOUR_NS, (0, 1, 4)
    for _ in range(batches):
        now += int(random.choice([1, HALF_HOUR_NS]))
        lows, highs = (0, 5_000_000, -(10**9), 0, 0), (3 * MINUTE_NS, 7_000_000, 10**10, N, 2 * MINUTE_NS)
        columns = [random.integers(low, high, count) for low, high in zip(lows, highs, strict=True)]
        columns[0] = now + np.sort(columns[0])
        columns[2] = np.maximum(columns[2], 0)  # some of size 0
        batch = trades([Print(*row) for row in zip(*[column.tolist() for column in columns], strict=True)])
        each = together.apply_each(batch, indices)
        expected: dict[int, list[tuple[int, Candle]]] = {index: [] for index in indices}
        for k in np.argsort(batch.instrument, kind="stable").tolist():
            singly.apply(batch.slice(k, k + 1))
            instrument = int(batch.instrument[k])
            for index in indices if batch.qty[k] else ():
                expected[index].append((instrument, singly.current(index, instrument)))
        for index in indices:
            rows = np.arange(len(each[index].instrument))
            assert list(zip(each[index].instrument.tolist(), each[index].candles(rows), strict=True)) == expected[index]
            assert [together.current(index, i) for i in range(N)] == [singly.current(index, i) for i in range(N)]


def test_a_late_trade_goes_into_the_current_candle():
    start = T0 - T0 % MINUTE_NS
    candles = Candles(1)
    candles.apply(trades([Print(start + 5, price=10)]))
    candles.apply(trades([Print(start + 6, price=99, late=2 * MINUTE_NS)]))
    assert candles.current(0, 0) == Candle(start, 10, 99, 10, 99, 2, 54.5, 2)
    assert candles.closed(0, 0) == []


def test_a_candle_without_an_event_time_takes_the_receive_time():
    candles = Candles(1)
    candles.apply(trades([Print(T0, late=None)]))
    assert candles.current(0, 0).begin_ns == T0 - T0 % MINUTE_NS


def test_zero_size_prints_are_neither_a_price_nor_a_trade():
    candles, day = Candles(1), DayStatistics(1)
    for batch in ([Print(T0, price=10)], [Print(T0, price=1, qty=0), Print(T0, price=99, qty=0)]):
        candles.apply(trades(batch))
        day.apply(trades(batch))
    assert fields(candles.current(0, 0))[1:] == (10, 10, 10, 10, 1, 10.0, 1)
    assert row(day.rows(np.array([0], dtype=np.int32), T0), 0)["low"] == 10


def test_a_candle_closes_with_the_first_trade_of_the_next():
    start = T0 - T0 % DAY_NS
    candles = Candles(2)
    candles.apply(trades([Print(start, price=1, qty=2, instrument=1)]))
    candles.apply(trades([Print(start + MINUTE_NS, price=5, instrument=1)]))
    assert candles.closed(0, 1) == [Candle(start, 1, 1, 1, 1, 2, 1.0, 1)]
    assert candles.closed(1, 1) == []
    assert candles.current(0, 1).begin_ns == start + MINUTE_NS
    assert candles.current(1, 1).volume == 3
    candles.apply(Trades.empty())
    assert len(candles.closed(0, 1)) == 1


def test_only_the_last_720_closed_candles_are_kept():
    start = T0 - T0 % MINUTE_NS
    candles = Candles(1)
    candles.apply(trades([Print(start + i * MINUTE_NS, price=i) for i in range(1000)]))
    closed = candles.closed(0, 0)
    assert [c.open for c in closed] == list(range(1000 - 1 - 720, 999))


def test_candles_reset_forgets():
    candles = Candles(1)
    candles.apply(trades([Print(T0), Print(T0 + MINUTE_NS)]))
    candles.reset()
    assert (candles.current(0, 0), candles.closed(0, 0)) == (None, [])
    candles.apply(trades([Print(T0 - DAY_NS)]))
    assert candles.current(0, 0).begin_ns < T0 - DAY_NS + 1


@pytest.mark.parametrize(("index", "instrument"), [(9, 0), (-1, 0), (0, 2), (0, -1)])
def test_an_interval_or_instrument_that_does_not_exist_is_an_error(index, instrument):
    candles = Candles(2)
    with pytest.raises(IndexError, match=str(index)):
        candles.current(index, instrument)
    with pytest.raises(IndexError, match=str(instrument)):
        candles.closed(index, instrument)


# ------------------------------------------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def binance() -> list[Print]:
    path = RECORDINGS / "binance_spot_20240808.trades.parquet"
    if not path.exists():
        pytest.skip(f"no recording {path.name} beside the project")
    table = pq.read_table(path)
    times = [table[name].cast(pa.int64()).to_numpy() for name in ("ts_recv", "ts_event")]
    instrument = (table["symbol"].to_numpy(zero_copy_only=False) == "ETHUSDT").astype(np.int64)
    price = np.rint(table["price"].to_numpy() * 100).astype(np.int64)
    qty = np.rint(table["qty"].to_numpy() * np.where(instrument == 1, 1e4, 1e5)).astype(np.int64)
    columns = (times[0], price, qty, instrument, times[0] - times[1])
    return [Print(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


@pytest.mark.parametrize("length", [7, 1000, 100_000])
def test_binance_candles_and_day_equal_the_naive_ones(binance, length):
    candles, day = Candles(2), DayStatistics(2)
    whole = trades(binance)
    for start in range(0, len(whole), length):
        candles.apply(whole.slice(start, start + length))
        day.apply(whole.slice(start, start + length))
    for index, minutes in enumerate(Candles.INTERVALS):
        for instrument in (0, 1):
            expected = naive_candles(binance, instrument, minutes)
            got = [*candles.closed(index, instrument), candles.current(index, instrument)]
            assert len(got) == len(expected)
            assert all(same(a, b) for a, b in zip(got, expected, strict=True))
    assert len(candles.closed(0, 0)) == 6
    now = binance[-1].ts_recv
    rows = day.rows(np.array([0, 1], dtype=np.int32), now)
    for instrument in (0, 1):
        assert row(rows, instrument) == pytest.approx(naive_day(binance, instrument, now), rel=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 3))
def test_statistics_after_each_trade_are_those_of_one_trade_at_a_time_to_the_last_digit(seed, count, batches):
    random = np.random.default_rng(seed)
    together, singly = DayStatistics(N), DayStatistics(N)
    now = 100 * HALF_HOUR_NS
    for _ in range(batches + 1):
        now += int(random.choice([1, HALF_HOUR_NS, DAY_NS]))
        columns = [random.integers(*bounds, count) for bounds in ((5_000_000, 7_000_000), (-(10**9), 10**10), (0, N))]
        columns[1] = np.maximum(columns[1], 0)  # some of size 0
        columns[2].sort()
        batch = trades([Print(now, *row) for row in zip(*[column.tolist() for column in columns], strict=True)])
        assert together.all_running(batch, now)
        each = together.apply_each(batch, now)
        for k in range(count):
            singly.apply(batch.slice(k, k + 1))
            expected = singly.rows(batch.instrument[k : k + 1], now)
            for name in DayRows.__struct_fields__:
                assert getattr(each, name)[k] == getattr(expected, name)[0], name
