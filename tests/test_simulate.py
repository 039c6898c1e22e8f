import math
import os
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import feeds
from feeds import clock, models, simulate
from feeds.book import Books
from feeds.errors import OptionError
from feeds.feed import Feed, Supervisor
from feeds.instruments import MAX_UNITS
from feeds.market import MarketFeed, MarketOptions
from feeds.records import (
    BUY,
    CLEAR,
    LAST,
    MISSING,
    SELL,
    SET,
    SNAPSHOT,
    Batch,
    Levels,
    Marker,
    Quotes,
    StreamDigest,
    Trades,
)
from feeds.simulate import SimulatedFeed, SimulationOptions

START = 1_750_000_000_000_000_000
WINDOW = 10_000_000
DEFAULT = SimulationOptions().symbols


def options(**changed):
    return SimulationOptions(**{"start_ns": START, **changed})


def batches_of(windows=60, **changed):
    """The opening and the first windows."""
    return list(islice(SimulatedFeed(options(**changed)).windows(), windows + 1))


def tables_of(batches):
    return (
        Trades.concatenate([b.trades for b in batches]),
        Quotes.concatenate([b.quotes for b in batches]),
        Levels.concatenate([b.levels for b in batches]),
    )


def digest_of(batches, origin=START):
    digest = StreamDigest(origin)
    for batch in batches:
        digest.update(batch)
    return digest.hexdigest()


def rows_in_order(batches):
    """Every row as (seq, ts, kind, row) in the order of seq; kind 0 trade, 1 quote, 2 book."""
    rows = []
    for kind, table in enumerate(tables_of(batches)):
        names = list(table.columns())
        for values in zip(*[c.tolist() for c in table.columns().values()], strict=True):
            row = dict(zip(names, values, strict=True))
            rows.append((row["seq"], row["ts_recv"], kind, row))
    return sorted(rows, key=lambda r: r[0])


class PlainBook:
    """The reference: dicts by price, changed row by row."""

    def __init__(self):
        self.sides = None

    def apply(self, row):
        if row["action"] == CLEAR:
            assert (row["side"], row["price"], row["qty"]) == (0, MISSING, 0)
            self.sides = {BUY: {}, SELL: {}}
            return
        assert row["action"] == SET
        assert row["order_id"] == 0
        side = self.sides[row["side"]]
        assert side.get(row["price"], 0) != row["qty"], "a row that changes nothing"
        if row["qty"]:
            side[row["price"]] = row["qty"]
        else:
            del side[row["price"]]

    def touch(self):
        bid, ask = max(self.sides[BUY]), min(self.sides[SELL])
        return bid, ask, self.sides[BUY][bid], self.sides[SELL][ask]


def check_consistency(batches, levels):
    """Replay all rows one by one: every trade at the touch, every book whole, uncrossed and with the quoted touch.

    Returns how many trades and how many book events were seen.
    """
    touches, books, trade_ids, event = {}, {}, {}, []
    trades = events = 0
    for _, ts, kind, row in rows_in_order(batches):
        symbol = row["instrument"]
        assert not event or (kind == 2 and symbol == event[0]["instrument"] and ts == event[0]["ts_recv"])
        if kind == 0:
            bid, ask, _, _ = touches[symbol]
            assert row["price"] == {BUY: ask, SELL: bid}[row["side"]]
            assert 1 <= row["qty"] <= MAX_UNITS
            assert row["trade_id"] == trade_ids.get(symbol, 0) + 1
            trade_ids[symbol] = row["trade_id"]
            trades += 1
        elif kind == 1:
            touches[symbol] = bid, ask, bid_qty, ask_qty = row["bid_px"], row["ask_px"], row["bid_qty"], row["ask_qty"]
            assert 0 < bid < ask < MAX_UNITS
            assert 1 <= min(bid_qty, ask_qty) <= max(bid_qty, ask_qty) <= MAX_UNITS
        else:
            event.append(row)
            if row["flags"] & LAST:
                check_book_event(books.setdefault(symbol, PlainBook()), event, levels, touches[symbol])
                events += 1
                event = []
    assert not event, "the last row of an event is missing"
    return trades, events


def check_book_event(book, rows, levels, touch):
    first = book.sides is None
    assert {row["flags"] & SNAPSHOT for row in rows} == {SNAPSHOT if first else 0}
    assert [row["action"] == CLEAR for row in rows] == [first, *[False] * (len(rows) - 1)]
    if first:
        assert len(rows) == 1 + 2 * levels
    assert len({(row["side"], row["price"]) for row in rows}) == len(rows), "a level is named twice"
    for row in rows:
        book.apply(row)
    assert [len(side) for side in book.sides.values()] == [levels, levels]
    assert min(book.sides[BUY]) > 0
    assert book.touch() == touch
    assert max(book.sides[BUY]) < min(book.sides[SELL])


# The options.


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"symbols": ()}, "symbols.*at least one"),
        ({"symbols": ("BTCUSD",)}, "symbols.*'BTCUSD'.*BASE/QUOTE"),
        ({"symbols": ("btc/usd",)}, "symbols.*'btc/usd'"),
        ({"symbols": ("BTC/USD\n",)}, "symbols"),
        ({"symbols": ("BTC/USD", "ETH/USD", "BTC/USD")}, "symbols.*BTC/USD.*more often"),
        ({"model": "heston"}, "model.*'heston'.*gbm, jump"),
        ({"rate": 0.0}, "rate.*above 0"),
        ({"rate": -1.0}, "rate"),
        ({"rate": math.nan}, "rate"),
        ({"rate": 5_000_001.0}, "rate.*5000000"),
        ({"seed": -1}, "seed.*0 or more"),
        ({"start_ns": -1}, "start_ns"),
        ({"trade_share": 1.5}, "trade_share.*0 to 1"),
        ({"book_levels": 0}, "book_levels.*1 to 1000"),
        ({"window_ms": 0}, "window_ms.*1 to 100"),
        ({"book_interval_ms": 25}, "book_interval_ms.*25.*multiple of window_ms.*10"),
        ({"book_interval_ms": 60_010}, "book_interval_ms.*60000"),
    ],
)
def test_an_option_that_is_not_allowed_is_named_with_what_is(changed, says):
    with pytest.raises(OptionError, match=says):
        SimulatedFeed(options(**changed))


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_a_speed_that_is_not_allowed(speed):
    with pytest.raises(OptionError, match="speed"):
        SimulatedFeed(options(), speed=speed)


def test_it_is_a_feed_with_the_instruments_of_its_options():
    feed: Feed = SimulatedFeed(options(symbols=("ETH/USD", "FOO.X-1/EUR")))
    assert (feed.name, feed.mode) == ("simulated", "sim")
    assert [i.symbol for i in feed.instruments] == ["ETH/USD", "FOO.X-1/EUR"]
    assert (feed.instruments[1].base, feed.instruments[1].quote) == ("FOO.X-1", "EUR")


def test_without_a_start_it_starts_at_the_wall_time_of_its_creation(monkeypatch):
    monkeypatch.setattr(clock, "wall_ns", lambda: START + 7)
    feed = SimulatedFeed(SimulationOptions())
    monkeypatch.setattr(clock, "wall_ns", lambda: START + 10**12)
    assert next(feed.windows()).ts == START + 7
    assert feed.options.start_ns == START + 7


# The order of things.


@pytest.mark.parametrize("rate", [200.0, 20_000.0])
def test_every_batch_is_one_window(rate):
    batches = batches_of(40, rate=rate)
    assert [b.ts for b in batches] == [START + k * WINDOW for k in range(41)]
    for batch in batches[1:]:
        for table in (batch.trades, batch.quotes, batch.levels):
            assert ((table.ts_recv > batch.ts - WINDOW) & (table.ts_recv <= batch.ts)).all()
        assert (batch.levels.ts_recv == batch.ts).all()


def test_the_opening_is_a_quote_and_the_book_of_each_symbol_near_its_first_price():
    opening = batches_of(0)[0]
    assert opening.quotes.instrument.tolist() == list(range(len(DEFAULT)))
    assert not len(opening.trades)
    assert set(opening.quotes.ts_recv.tolist()) == set(opening.levels.ts_recv.tolist()) == {START}
    books = Books()
    assert [event.instrument for event in books.apply(opening.levels)] == list(range(len(DEFAULT)))
    assert [books[i].best_bid[0] for i in range(len(DEFAULT))] == opening.quotes.bid_px.tolist()
    assert [books[i].best_ask[0] for i in range(len(DEFAULT))] == opening.quotes.ask_px.tolist()
    first = np.array([models.pair(symbol).price_ticks for symbol in DEFAULT])
    assert (np.abs(opening.quotes.bid_px - first) < 60).all()


@pytest.mark.parametrize(
    "changed",
    [{"rate": 300.0}, {"rate": 50_000.0}, {"rate": 5_000_000.0, "symbols": ("BTC/USD",), "windows": 3}],
    ids=["spans of windows", "single windows", "many ticks in one nanosecond"],
)
def test_the_order_is_total_over_the_three_tables(changed):
    batches = batches_of(**changed)
    rows = rows_in_order(batches)
    assert [seq for seq, *_ in rows] == list(range(1, len(rows) + 1))
    order = [(ts, kind) for _, ts, kind, _ in rows]
    assert order == sorted(order)
    for batch in batches:
        for table in (batch.trades, batch.quotes, batch.levels):
            assert (np.diff(table.seq) > 0).all()
            np.testing.assert_array_equal(table.ts_event, table.ts_recv)


@pytest.mark.parametrize("changed", [{"rate": 300.0}, {"rate": 20_000.0}, {"model": "jump"}, {"book_interval_ms": 10}])
def test_trades_are_at_the_touch_and_books_can_be_rebuilt(changed):
    trades, events = check_consistency(batches_of(100, **changed), levels=25)
    assert trades > 50
    assert events > len(DEFAULT) * 8


def test_many_ticks_of_one_symbol_in_one_nanosecond_are_still_consistent():
    batches = batches_of(1, rate=5_000_000.0, symbols=("BTC/USD",))
    trades, quotes, _ = tables_of(batches)
    assert len(np.intersect1d(trades.ts_recv, quotes.ts_recv)) > 5  # the case does occur
    check_consistency(batches, levels=25)


@settings(max_examples=25, deadline=None)
@given(
    symbols=st.lists(st.sampled_from([*DEFAULT, "EUR/USD", "AA/BB", "Z.9-_/EUR"]), min_size=1, max_size=5, unique=True),
    rate=st.sampled_from([1.0, 40.0, 1_000.0, 30_000.0]),
    seed=st.integers(0, 2**64),
    model=st.sampled_from(sorted(models.MODELS)),
    trade_share=st.sampled_from([0.0, 0.2, 1.0]),
    book_levels=st.sampled_from([1, 2, 10]),
    window_ms=st.sampled_from([1, 10]),
    slots=st.integers(1, 6),
)
def test_any_market_is_consistent(symbols, rate, seed, model, trade_share, book_levels, window_ms, slots):
    batches = batches_of(
        20, symbols=tuple(symbols), rate=rate, seed=seed, model=model, trade_share=trade_share,
        book_levels=book_levels, window_ms=window_ms, book_interval_ms=slots * window_ms,
    )  # fmt: skip
    _, events = check_consistency(batches, levels=book_levels)
    assert events >= len(symbols)


@pytest.mark.parametrize("levels", [1, 1_000])
def test_the_smallest_and_the_largest_book(levels):
    check_consistency(batches_of(30, book_levels=levels, symbols=("AA/BB", "ETH/BTC")), levels)


@pytest.mark.parametrize("price", [0.011, 4e10])
def test_prices_are_reflected_before_zero_and_before_the_largest_integer(monkeypatch, price):
    # A price next to the floor (or the ceiling, with four decimals), and 30 times its value in volatility a day.
    wild = models.Pair(price=price, price_precision=4, daily_volatility=3_000.0, qty=1.0)
    monkeypatch.setattr(models, "pair", lambda symbol: wild)
    batches = batches_of(200, symbols=("AA/BB",), rate=100.0)
    check_consistency(batches, levels=25)
    _, quotes, _ = tables_of(batches)
    assert quotes.bid_px.max() > 3 * quotes.bid_px.min()
    assert quotes.ask_px.max() < MAX_UNITS / 2


# Symbols on their own, and the same again.


@pytest.mark.parametrize("per_symbol", [20.0, 2_000.0])
@pytest.mark.parametrize("model", sorted(models.MODELS))
def test_a_symbol_moves_the_same_in_any_company(model, per_symbol):
    seen = []
    for symbols in (("BTC/USD",), ("ETH/USD", "BTC/USD", "AA/BB"), ("BTC/USD", *[f"S{i}/EUR" for i in range(40)])):
        tables = tables_of(batches_of(50, symbols=symbols, rate=per_symbol * len(symbols), model=model))
        own = [t.take(t.instrument == symbols.index("BTC/USD")).columns() for t in tables]
        seen.append([{n: c for n, c in columns.items() if n not in ("seq", "instrument")} for columns in own])
    for other in seen[1:]:
        for table, same in zip(seen[0], other, strict=True):
            assert len(table["ts_recv"]) > 0
            for name, column in table.items():
                np.testing.assert_array_equal(column, same[name], err_msg=name)


def test_symbols_differ_from_each_other():
    _, quotes, _ = tables_of(batches_of(50, symbols=("AA/BB", "AA/BC")))
    first, second = (quotes.take(quotes.instrument == i) for i in (0, 1))
    assert first.ts_recv[1:6].tolist() != second.ts_recv[1:6].tolist()


def test_the_same_seed_is_the_same_market_and_another_is_another():
    assert digest_of(batches_of()) == digest_of(batches_of())
    assert digest_of(batches_of(seed=2)) != digest_of(batches_of(seed=1))


def test_each_call_of_windows_begins_at_the_beginning():
    feed = SimulatedFeed(options())
    first = list(islice(feed.windows(), 30))
    assert digest_of(first) == digest_of(islice(feed.windows(), 30))


def test_the_market_does_not_depend_on_when_it_starts():
    assert digest_of(batches_of(start_ns=0), origin=0) == digest_of(batches_of())


def test_how_many_windows_are_computed_at_once_does_not_show(monkeypatch):
    spans = batches_of(60, rate=800.0)
    monkeypatch.setattr(simulate._Market, "SPAN", 1)
    singly = batches_of(60, rate=800.0)
    assert [digest_of([b]) for b in spans] == [digest_of([b]) for b in singly]


def test_a_process_with_another_hash_seed_simulates_the_same():
    program = (
        "from itertools import islice; from feeds.records import StreamDigest; from feeds.simulate import *\n"
        f"d, options = StreamDigest({START}), SimulationOptions(start_ns={START}, model='jump')\n"
        "for b in islice(SimulatedFeed(options).windows(), 31): d.update(b)\n"
        "print(d.hexdigest())"
    )
    root = os.path.dirname(os.path.dirname(feeds.__file__))
    found = {digest_of(batches_of(30, model="jump"))}
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        found.add(done.stdout.decode().strip())
    assert len(found) == 1


# What it looks like.


def test_rate_and_trade_share():
    trades, quotes, _ = tables_of(batches_of(200, rate=100_000.0, trade_share=0.3))
    ticks = len(trades) + len(quotes) - len(DEFAULT)
    assert ticks == pytest.approx(200_000, abs=5 * 200_000**0.5)
    assert len(trades) / ticks == pytest.approx(0.3, abs=0.006)
    assert (trades.side == BUY).mean() == pytest.approx(0.5, abs=0.01)
    in_windows = np.bincount((trades.ts_recv - START - 1) // WINDOW, minlength=200)
    assert in_windows.var() / in_windows.mean() == pytest.approx(1.0, abs=0.5)  # Poisson


@pytest.mark.parametrize("model", sorted(models.MODELS))
def test_realised_volatility_is_that_of_the_pair(model):
    # 400 symbols for 20 s, sampled from first to last quote; half of a jump model's variance is in 48 jumps a day,
    # about 4 in this sample, so there only the order of magnitude can be seen.
    symbols = tuple(f"S{i}/USD" for i in range(400))
    feed = SimulatedFeed(options(symbols=symbols, rate=4_000.0, model=model, window_ms=100, book_levels=1))
    _, quotes, _ = tables_of(list(islice(feed.windows(), 201)))
    moves = []
    for i, symbol in enumerate(symbols):
        own = quotes.take(quotes.instrument == i)
        mid = np.log((own.bid_px[[0, -1]] + own.ask_px[[0, -1]]) / 2)
        days = (own.ts_recv[-1] - own.ts_recv[0]) / 86_400e9
        moves.append((mid[1] - mid[0]) / (models.pair(symbol).daily_volatility * days**0.5))
    ratio = np.std(moves)
    low, high = {"gbm": (0.85, 1.15), "jump": (0.6, 1.6)}[model]
    assert low < ratio < high


def test_spreads_are_one_tick_in_half_of_the_cases():
    _, quotes, _ = tables_of(batches_of(50, rate=50_000.0))
    spread = quotes.ask_px - quotes.bid_px
    assert (spread == 1).mean() == pytest.approx(0.5, abs=0.02)
    assert (spread == 2).mean() == pytest.approx(0.25, abs=0.02)


def test_books_come_once_in_their_interval_and_not_all_at_once():
    symbols = tuple(f"S{i}/USD" for i in range(100))
    _, _, levels = tables_of(batches_of(40, symbols=symbols, rate=10_000.0))
    last = levels.take((levels.flags & LAST) != 0)
    opening, *times = last.ts_recv[last.instrument == 3].tolist()
    assert opening == START
    assert len(times) == 4
    assert set(np.diff(times).tolist()) == {10 * WINDOW}
    windows = np.bincount((levels.ts_recv - START) // WINDOW)[11:]
    assert windows.min() > 0


# In time.


def simulated_now():
    return SimulatedFeed(SimulationOptions())


def agents_now():
    return MarketFeed(MarketOptions())


async def received(feed, count, send, receive):
    """The first events of a run with the instants at which they came."""
    seen = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        while len(seen) < count:
            event = await receive.receive()
            seen.append((trio.current_time(), event))
        nursery.cancel_scope.cancel()
    return seen


@pytest.mark.parametrize("speed", [1.0, 4.0, 0.5])
async def test_each_window_comes_when_its_end_is_due(autojump_clock, speed):
    feed = SimulatedFeed(options(), speed=speed)
    await trio.sleep(3.0)
    seen = await received(feed, 32, *trio.open_memory_channel(0))
    assert seen[0] == (3.0, Marker(kind="epoch", ts=START, reason="the simulation begins"))
    assert [at for at, _ in seen[1:]] == [3.0 + k * 0.01 / speed for k in range(31)]
    assert digest_of([batch for _, batch in seen[1:]]) == digest_of(batches_of(30))


@pytest.mark.parametrize("make", [simulated_now, agents_now])
async def test_a_market_of_today_shows_the_time_of_the_wall_however_late_it_is_begun(autojump_clock, monkeypatch, make):
    feed = make()
    monkeypatch.setattr(clock, "since_s", lambda ts_ns: 0.25)
    seen = await received(feed, 32, *trio.open_memory_channel(0))
    opening = seen[0][1].ts
    assert [at for at, batch in seen if batch.ts <= opening + 250_000_000] == [0.0] * 27  # an epoch, and 26 batches
    assert seen[-1][0] == pytest.approx(0.05)


async def test_without_pacing_no_time_passes_and_nothing_differs(autojump_clock):
    seen = await received(SimulatedFeed(options(), speed=math.inf), 102, *trio.open_memory_channel(1))
    assert {at for at, _ in seen} == {0.0}
    assert digest_of([batch for _, batch in seen[1:]]) == digest_of(batches_of(100))


async def test_what_is_late_comes_at_once_and_then_the_pace_is_that_of_the_clock(autojump_clock):
    send, receive = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(SimulatedFeed(options()).run, send)
        await receive.receive()
        await trio.sleep(0.1)
        instants = []
        for _ in range(14):
            await receive.receive()
            instants.append(trio.current_time())
        nursery.cancel_scope.cancel()
    assert instants == [0.1] * 11 + [0.11, 0.12, 0.13]


async def test_it_lets_others_run_although_its_reader_is_always_ready():
    class Sink(trio.abc.SendChannel):
        sent = 0

        async def send(self, value):
            await trio.lowlevel.checkpoint()
            Sink.sent += 1

        async def aclose(self):
            await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(SimulatedFeed(options(), speed=math.inf).run, Sink())
            while Sink.sent < 50:
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert Sink.sent < 60


@pytest.mark.parametrize("speed", [2.0, math.inf])
async def test_a_second_run_goes_on_at_the_market_time_reached(autojump_clock, speed):
    feed = SimulatedFeed(options(), speed=speed)
    first = await received(feed, 12, *trio.open_memory_channel(0))
    await trio.sleep(1.0)
    second = await received(feed, 12, *trio.open_memory_channel(0))
    reached = START + 10 * WINDOW + (2_000_000_000 if speed == 2.0 else 0)
    assert first[-1][1].ts == START + 10 * WINDOW
    marker, opening = second[0][1], second[1][1]
    assert marker == Marker(kind="epoch", ts=reached, reason="the simulation begins again")
    assert opening.ts == reached
    assert digest_of([b for _, b in second[1:]], reached) == digest_of([b for _, b in first[1:]])


async def test_the_supervisor_can_start_it_again(autojump_clock):
    class Breaks(SimulatedFeed):
        async def run(self, out):
            if self._clock is None:
                with trio.move_on_after(0.025):
                    await super().run(out)
                raise RuntimeError("broken once")
            await super().run(out)

    send, receive = trio.open_memory_channel(0)
    times, kinds = [], []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Supervisor(Breaks(options())).run, send)
        while len(times) < 8:
            event = await receive.receive()
            if isinstance(event, Batch):
                times.append(event.ts)
            else:
                kinds.append(event.kind)
        nursery.cancel_scope.cancel()
    assert kinds == ["epoch", "gap", "epoch"]
    assert times == sorted(times)
