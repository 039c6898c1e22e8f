"""A market of agents: the same again, what it looks like, and clients in it."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice, pairwise

import numpy as np
import pytest
import trio

import feeds
from feeds import models
from feeds.agents import EVENTS, LIMIT_RATES, REACH, Agents, Terrain
from feeds.book import Books
from feeds.errors import OptionError
from feeds.feed import Feed
from feeds.market import MarketFeed, MarketOptions
from feeds.matching import OrderBook
from feeds.records import BUY, CLEAR, LAST, MISSING, SELL, SET, SNAPSHOT, Levels, Marker, Quotes, StreamDigest, Trades
from feeds.transcript import Transcript
from feeds.venue import Entry, Match

START = 1_750_000_000_000_000_000
WINDOW = 10_000_000
DEFAULT = MarketOptions().symbols


def options(**changed):
    return MarketOptions(**{"start_ns": START, **changed})


def batches_of(windows=100, **changed):
    """The opening and the first windows."""
    return list(islice(MarketFeed(options(**changed)).windows(), windows + 1))


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


def entry(key, side, price, qty, **terms):
    return Entry(**{"key": key, "owner": key, "instrument": 0, "side": side, "price": price, "qty": qty, **terms})


def levels_of(side):
    return [(abs(level.rank), level.lots) for level in side]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"symbols": ()}, "symbols.*at least one"),
        ({"symbols": ("btc/usd",)}, "symbols.*'btc/usd'"),
        ({"rate": 0.0}, "rate.*above 0"),
        ({"rate": 1_000_001.0}, "rate.*1000000"),
        ({"seed": -1}, "seed.*0 or more"),
        ({"start_ns": -1}, "start_ns"),
        ({"window_ms": 0}, "window_ms.*1 to 100"),
    ],
)
def test_an_option_that_is_not_allowed_is_named_with_what_is(changed, says):
    with pytest.raises(OptionError, match=says):
        MarketFeed(options(**changed))


def test_it_is_a_feed_with_the_instruments_of_its_options():
    feed: Feed = MarketFeed(options(symbols=("ETH/USD", "FOO/EUR")))
    assert (feed.name, feed.mode) == ("market", "sim")
    assert [i.symbol for i in feed.instruments] == ["ETH/USD", "FOO/EUR"]
    with pytest.raises(OptionError, match="speed"):
        MarketFeed(options(), speed=0.0)


# What is published.


def test_the_opening_is_a_whole_book_of_each_symbol_near_its_first_price():
    opening = batches_of(0)[0]
    assert opening.quotes.instrument.tolist() == list(range(len(DEFAULT)))
    assert opening.levels.action.tolist().count(CLEAR) == len(DEFAULT)
    assert (opening.levels.flags & SNAPSHOT).all()
    first = np.array([models.pair(symbol).price_ticks for symbol in DEFAULT])
    assert (np.abs(opening.quotes.bid_px / first - 1) < 1e-4).all()
    assert (opening.quotes.ask_px > opening.quotes.bid_px).all()


@pytest.mark.parametrize("rate", [300.0, 60_000.0])
def test_what_is_published_is_the_book_after_every_window(rate):
    feed, books = MarketFeed(options(rate=rate)), Books()
    numbers, touch = [], {}
    for k, batch in enumerate(islice(feed.windows(), 30)):
        assert batch.ts == START + k * WINDOW
        for table in (batch.trades, batch.quotes, batch.levels):
            assert ((table.ts_recv > batch.ts - WINDOW) & (table.ts_recv <= batch.ts)).all()
            assert (np.diff(table.ts_recv) >= 0).all()
            numbers += table.seq.tolist()
        for event in books.apply(batch.levels):
            assert not books[event.instrument].crossed
        quotes = batch.quotes
        columns = (quotes.instrument, quotes.bid_px, quotes.bid_qty, quotes.ask_px, quotes.ask_qty)
        touch |= {row[0]: row[1:] for row in zip(*[c.tolist() for c in columns], strict=True)}
        for instrument, book in enumerate(feed.venue.books):
            assert books[instrument].top(BUY, 10**6) == levels_of(book.bids)
            assert books[instrument].top(SELL, 10**6) == levels_of(book.asks)
            assert touch[instrument] == (*books[instrument].best_bid, *books[instrument].best_ask)
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert set(batch.levels.action.tolist()) == {SET}


def test_trades_are_numbered_in_each_book_and_the_last_row_of_an_event_is_marked():
    trades, _, levels = tables_of(batches_of(100, rate=20_000.0))
    for instrument in range(len(DEFAULT)):
        ids = trades.trade_id[trades.instrument == instrument]
        assert ids.tolist() == list(range(1, len(ids) + 1))
    for table in (trades, levels):
        same = (np.diff(table.ts_recv) == 0) & (np.diff(table.instrument) == 0)
        assert (((table.flags & LAST) == 0)[:-1] == same).all()


# Symbols on their own, and the same again.


@pytest.mark.parametrize("per_symbol", [50.0, 2_000.0])
def test_a_symbol_moves_the_same_in_any_company(per_symbol):
    seen = []
    for symbols in (("BTC/USD",), ("ETH/USD", "BTC/USD"), ("BTC/USD", *[f"S{i}/EUR" for i in range(10)])):
        tables = tables_of(batches_of(60, symbols=symbols, rate=per_symbol * len(symbols)))
        own = [t.take(t.instrument == symbols.index("BTC/USD")).columns() for t in tables]
        seen.append([{n: c.tolist() for n, c in columns.items() if n not in ("seq", "instrument")} for columns in own])
    assert len(seen[0][2]["qty"]) > 30
    assert seen[1:] == seen[:1] * 2


def test_how_time_is_cut_into_windows_does_not_show():
    assert digest_of(batches_of(100, window_ms=10)) == digest_of(batches_of(10, window_ms=100))


def test_how_many_numbers_are_drawn_at_once_does_not_show_in_the_opening(monkeypatch):
    opening = digest_of(batches_of(0))
    monkeypatch.setattr(Agents, "BLOCK", 7)
    assert digest_of(batches_of(0)) == opening


def test_the_same_seed_is_the_same_market_wherever_it_starts_and_another_is_another():
    assert digest_of(batches_of()) == digest_of(batches_of())
    assert digest_of(batches_of(start_ns=0), origin=0) == digest_of(batches_of())
    assert digest_of(batches_of(seed=2)) != digest_of(batches_of(seed=1))


def test_a_process_with_another_hash_seed_simulates_the_same():
    program = (
        "from itertools import islice; from feeds.records import StreamDigest; from feeds.market import *\n"
        f"d, options = StreamDigest({START}), MarketOptions(start_ns={START})\n"
        "for b in islice(MarketFeed(options).windows(), 101): d.update(b)\n"
        "print(d.hexdigest())"
    )
    root = os.path.dirname(os.path.dirname(feeds.__file__))
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert done.stdout.decode().strip() == digest_of(batches_of())


# In time, with clients.


class Trader(trio.abc.SendChannel):
    """Takes a stream in like a bus, trades at fixed market times, and remembers what it is told."""

    def __init__(self, venue, windows):
        self.venue, self.windows = venue, windows
        self.digest, self.told = StreamDigest(START), []
        self.enough = trio.Event()

    async def send(self, value):
        if not isinstance(value, Marker) and not self.enough.is_set():
            self.digest.update(value)
            self.told += self.venue.moved(value)
            self.trade((value.ts - START) // WINDOW)
        await trio.lowlevel.checkpoint()

    async def aclose(self):
        raise AssertionError("a feed leaves the channel open")

    def trade(self, window):
        if window % 7 == 3:
            bid = self.venue.books[0].bids.best.rank + 1
            self.told.append(self.venue.enter(entry(window, BUY, bid, 5_000_000, owner=1)))
        if window % 7 == 5:
            self.told.append(self.venue.enter(entry(window, SELL, None, 20_000_000, owner=2)))
        if window % 7 == 2:
            self.venue.cancel(window - 6)
        if window == self.windows:
            self.enough.set()


async def traded(speed):
    """What the stream is, and what a trader is told."""
    feed = MarketFeed(options(rate=6_000.0), speed=speed)
    trader = Trader(feed.venue, 150)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, trader)
        await trader.enough.wait()
        nursery.cancel_scope.cancel()
    return trader.digest.hexdigest(), trader.told


async def test_the_same_commands_at_the_same_market_times_are_the_same_market_at_any_speed(autojump_clock):
    digest, told = await traded(1.0)
    assert any(match.maker for match in told if isinstance(match, Match))
    assert [await traded(speed) for speed in (7.0, float("inf"))] == [(digest, told)] * 2


async def test_each_window_comes_when_its_end_is_due(autojump_clock):
    feed = MarketFeed(options(), speed=4.0)
    send, receive = trio.open_memory_channel(0)
    await trio.sleep(3.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run, send)
        await receive.receive()
        for k in range(12):
            assert (await receive.receive()).ts == START + k * WINDOW
            assert trio.current_time() == 3.0 + k * 0.01 / 4
        nursery.cancel_scope.cancel()


async def test_run_again_it_opens_again_with_new_books_and_without_entries(autojump_clock):
    feed = MarketFeed(options())
    send, receive = trio.open_memory_channel(0)
    for reason, start_ns in (("the market opens", START), ("the market opens again", START + 1_020_000_000)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run, send)
            assert await receive.receive() == Marker(kind="epoch", ts=start_ns, reason=reason)
            opening = await receive.receive()
            assert (opening.ts, int(opening.levels.action[0])) == (start_ns, CLEAR)
            feed.venue.enter(entry(1, BUY, 900_000, 77))
            assert (await receive.receive()).levels.qty.tolist().count(77) == 1
            await receive.receive()
            nursery.cancel_scope.cancel()
        await trio.sleep(1.0)


def test_a_clients_order_shows_in_its_level_and_its_fills_print():
    feed = MarketFeed(options(symbols=("BTC/USD",), rate=20_000.0))
    windows, books = feed.windows(), Books()
    opening = next(windows)
    price, stood = books_after(books, opening)[0].best_bid
    assert feed.venue.enter(entry(1, BUY, price, 7)).rests == 7
    shown = books_after(books, batch := next(windows))
    assert batch.levels.ts_recv[0] == START
    assert batch.levels.qty[0] == stood + 7
    assert shown[0].best_bid is not None
    filled = []
    while not filled:
        batch = next(windows)
        filled = feed.venue.moved(batch)
    assert all(match.maker and (match.key, match.price) == (1, price) for match in filled)
    assert [prints_of(batch)[match.trade_id] for match in filled] == [(price, match.qty, SELL) for match in filled]


def test_a_client_who_takes_prints_as_the_aggressor():
    feed = MarketFeed(options(symbols=("BTC/USD",)))
    windows = feed.windows()
    ask, qty = feed.venue.books[0].asks.best.rank * -1, feed.venue.books[0].asks.best.lots
    next(windows)
    outcome = feed.venue.enter(entry(1, BUY, ask, qty, rests=False))
    assert [m.trade_id for m in outcome.matches] == list(range(1, len(outcome.matches) + 1))
    printed = prints_of(next(windows))
    assert [printed[m.trade_id] for m in outcome.matches] == [(ask, m.qty, BUY) for m in outcome.matches]
    assert sum(m.qty for m in outcome.matches) == qty


def books_after(books, batch):
    for _ in books.apply(batch.levels):
        pass
    return books


def prints_of(batch):
    trades = batch.trades
    columns = zip(trades.price.tolist(), trades.qty.tolist(), trades.side.tolist(), strict=True)
    return dict(zip(trades.trade_id.tolist(), columns, strict=True))


# What it looks like.


@pytest.fixture(scope="module")
def busy():
    """Tables of BTC/USD for 150,000 events, twelve minutes at the default rate, and how many seconds they take here."""
    batches = batches_of(75, symbols=("BTC/USD",), rate=20_000.0, window_ms=100)
    return tables_of(batches), 7.5


def test_agents_are_as_busy_as_asked(busy):
    (_, _, levels), seconds = busy
    assert (levels.flags & LAST != 0).sum() / seconds == pytest.approx(20_000, rel=0.03)


def test_the_spread_is_narrow_and_the_market_two_sided(busy):
    (_, quotes, _), _ = busy
    assert (quotes.bid_px != MISSING).all()
    assert (quotes.ask_px != MISSING).all()
    spread = (quotes.ask_px - quotes.bid_px) // 19
    shares = np.bincount(spread, weights=np.diff(quotes.ts_recv, append=quotes.ts_recv[-1]))
    shares /= shares.sum()
    assert shares[1] == pytest.approx(0.79, abs=0.04)
    assert (np.diff(shares[1:6]) < 0).all()


def test_agents_take_no_more_than_the_best_price_offers(busy):
    (trades, _, _), _ = busy
    of_one_order = np.diff(trades.ts_recv) == 0
    assert of_one_order.any()
    assert (np.diff(trades.price)[of_one_order] == 0).all()


def test_buys_follow_buys_for_a_long_time(busy):
    (trades, _, _), _ = busy
    signs = trades.side[np.diff(trades.ts_recv, prepend=0) > 0].astype(float)  # one of each market order
    signs -= signs.mean()

    def memory(x):
        return np.mean([(x[:-lag] * x[lag:]).mean() / x.var() for lag in range(1, 21)])

    shuffled = np.random.default_rng(1).permutation(signs)
    assert memory(signs) > 0.04
    assert abs(memory(shuffled)) < 0.015


def test_returns_have_fat_tails_and_prices_move_as_far_as_those_of_the_pair(busy):
    (_, quotes, _), seconds = busy
    grid = START + np.arange(0, seconds, 0.01) * 1e9  # of 0.01 s at this rate, 1 s at the default
    mid = ((quotes.bid_px + quotes.ask_px) / 2)[np.searchsorted(quotes.ts_recv, grid, side="right") - 1]
    returns = np.diff(np.log(mid))
    assert (returns**4).mean() / (returns**2).mean() ** 2 > 4
    daily = returns.std() * 86_400**0.5
    assert 0.2 < daily / models.pair("BTC/USD").daily_volatility < 1


def test_the_book_is_deep_near_its_best_prices_and_thins_out():
    feed = MarketFeed(options(symbols=("BTC/USD",), rate=20_000.0, window_ms=100))
    depth = np.zeros(2 * REACH)
    for _ in islice(feed.windows(), 40):
        book = feed.venue.books[0]
        for side, against in ((book.bids, book.asks), (book.asks, book.bids)):
            for level in side:
                depth[min(-(level.rank + against.best.rank) // 19, 2 * REACH - 1)] += level.lots
    near, middle, far = depth[1:6].mean(), depth[15:25].mean(), depth[40:50].mean()
    assert near > middle > far > 0


# Where it could go wrong.


def agents_at(price, step=1, seed=1):
    """Agents in one book, with the transcript of it."""
    transcript = Transcript(1)
    book = OrderBook(0, price, transcript)
    terrain = Terrain(price, step, 100.0)
    return Agents(book, terrain, np.random.SeedSequence(seed), start_ns=0, events_per_s=1000.0), book


def test_at_the_floor_prices_stay_above_zero_and_the_market_two_sided():
    one, book = agents_at(REACH + 2)
    parents = one._parents
    lowest = book.asks.best.rank
    for k in range(1, 200):
        parents[:] = [-1_000] * len(parents)  # everybody sells
        one.act(k * 100_000_000)
        assert all(level.rank > 0 for level in book.bids)
        lowest = max(lowest, book.asks.best.rank)
    assert -lowest < REACH + 2  # it did come down
    assert book.bids.best.lots
    assert book.asks.best.lots


@pytest.mark.parametrize("side", [BUY, SELL])
def test_a_side_that_a_client_sweeps_comes_back_near_the_last_price(side):
    feed = MarketFeed(options(symbols=("BTC/USD",), rate=2_000.0))
    windows = feed.windows()
    next(windows)
    book = feed.venue.books[0]
    outcome = feed.venue.enter(entry(1, side, None, 10**12))
    far = outcome.matches[-1].price
    feed.venue.enter(entry(2, -side, 10 * far if side == BUY else 1, 1))  # alone on its side, out of all proportion
    for _ in islice(windows, 100):
        pass
    assert book.bids.best.lots
    assert book.asks.best.lots
    assert abs(book.bids.best.rank - far) < 4 * REACH * 19
    assert abs(-book.asks.best.rank - far) < 4 * REACH * 19


def test_quotes_of_agents_keep_to_their_grid_whatever_clients_quote():
    feed = MarketFeed(options(symbols=("BTC/USD",), rate=2_000.0))
    windows = feed.windows()
    next(windows)
    book = feed.venue.books[0]
    feed.venue.enter(entry(1, BUY, book.bids.best.rank + 5, 1))
    feed.venue.enter(entry(2, SELL, -book.asks.best.rank - 5, 1))
    for _ in islice(windows, 50):
        pass
    off_grid = {level.rank for side in (book.bids, book.asks) for level in side if level.rank % 19}
    assert len(off_grid) <= 2


def test_rates_fall_with_the_distance_and_sum_up():
    assert len(LIMIT_RATES) == REACH
    assert all(near > far for near, far in pairwise(LIMIT_RATES))
    assert pytest.approx(4 * LIMIT_RATES.sum()) == EVENTS
