import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds import models
from feeds.models import MODELS, NS_PER_YEAR, RandomStreams

SYMBOLS = ("BTC/USD", "ETH/USD", "A/B1")


def returns_of(name, *, volatility=0.8, seconds=60.0, events=400_000):
    """Independent log returns of one symbol over `seconds` each, and their time in years."""
    random = np.random.default_rng(5)
    years = np.full(events, seconds * 1e9 / NS_PER_YEAR)
    model = MODELS[name](np.array([volatility]))
    normals = random.standard_normal((model.normals, events))
    uniforms = random.random((model.uniforms, events))
    return model.log_returns(np.zeros(events, np.int64), years, normals, uniforms), years


def test_a_hash_that_is_the_same_in_every_process():
    assert models.stable_hash("BTC/USD") == (0x7B4C9651, 0xC426361E)  # printf BTC/USD | sha256sum


def test_known_pairs_have_the_decimals_of_kraken():
    precisions = {symbol: models.pair(symbol).price_precision for symbol in ("BTC/USD", "ETH/USD", "XRP/USD")}
    assert precisions == {"BTC/USD": 1, "ETH/USD": 2, "XRP/USD": 5}


@given(st.from_regex(r"[A-Z0-9]{1,8}/[A-Z]{3}", fullmatch=True))
def test_an_unknown_pair_is_plausible_and_always_the_same(symbol):
    pair = models.pair("X" + symbol)
    assert pair == models.pair("X" + symbol)
    assert 1 <= pair.price <= 1_000
    assert 2 <= pair.price_precision <= 4
    assert pair.price_ticks >= 10_000 * (1 - 1e-12)
    assert 0.02 <= pair.daily_volatility <= 0.06


def test_unknown_pairs_differ():
    assert len({models.pair(f"COIN{i}/USD").price for i in range(200)}) > 190


@pytest.mark.parametrize("name", sorted(MODELS))
def test_variance_is_what_the_volatility_says(name):
    returns, years = returns_of(name, volatility=0.8)
    # The jumps' fourth moment makes the estimate of the variance of "jump" far noisier than that of "gbm".
    tolerance = {"gbm": 0.01, "jump": 0.06}[name]
    assert returns.var() == pytest.approx(0.8**2 * years[0], rel=tolerance)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_price_is_a_martingale(name):
    # Over a third of a year at this volatility the term -s^2/2 dt is -0.33, thousands of standard errors.
    returns, _ = returns_of(name, volatility=1.4, seconds=120 * 86_400.0 if name == "gbm" else 86_400.0)
    growth = np.exp(returns)
    assert growth.mean() == pytest.approx(1.0, abs=5 * growth.std() / math.sqrt(len(growth)))


def test_no_time_no_return():
    returns, _ = returns_of("jump", seconds=0.0, events=1_000)
    assert not returns.any()


def test_normal_tails_without_jumps_and_fat_tails_with_them():
    def kurtosis(returns):
        return ((returns - returns.mean()) ** 4).mean() / returns.var() ** 2

    assert kurtosis(returns_of("gbm")[0]) == pytest.approx(3.0, abs=0.05)
    # Merton's fourth cumulant over dt is 3 l dt d^4: here 3 + 3 * 0.5**2 / (48 jumps a day * one minute) = 25.5.
    assert kurtosis(returns_of("jump")[0]) == pytest.approx(25.5, rel=0.1)


def test_each_symbol_has_its_own_volatility():
    model = MODELS["gbm"](np.array([0.1, 0.9]))
    ids, years = np.array([0, 0, 1]), np.full(3, 1e-8)
    returns = model.log_returns(ids, years, np.ones((1, 3)), np.empty((0, 3)))
    assert returns[2] / returns[0] == pytest.approx(9.0, rel=1e-3)


@pytest.mark.parametrize("mean", [0.001, 0.7, 5.0, 60.0])
def test_poisson_numbers_by_inversion(mean):
    uniforms = (np.arange(200_000) + 0.5) / 200_000
    numbers = models.poisson(uniforms, np.full(200_000, mean))
    assert numbers.mean() == pytest.approx(mean, rel=0.01)
    assert numbers.var() == pytest.approx(mean, rel=0.02)
    assert (numbers == np.searchsorted(models.poisson_table(mean), uniforms, side="right")).mean() > 0.9999


def test_poisson_numbers_end_where_the_sum_stops_growing():
    highest = np.nextafter(1.0, 0.0)
    numbers = models.poisson(np.full(3, highest), np.array([0.0, 1.0, 1e9]))
    assert numbers[0] == 0
    assert 15 < numbers[1] < 60
    assert 700 < numbers[2] < 1_100


@pytest.mark.parametrize("mean", [1e-7, 0.5, 50_000.0])
def test_the_table_of_one_mean_is_a_distribution(mean):
    table = models.poisson_table(mean)
    assert (np.diff(table) >= 0).all()
    assert table[-1] == 1.0
    assert table[0] == pytest.approx(math.exp(-mean), rel=1e-6)
    assert (1 - table).sum() == pytest.approx(mean, rel=1e-6)  # the mean of a number is the sum of its tail


def reference(symbol, purpose, *, normal, count):
    key = (*models.stable_hash(symbol), purpose)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(9, spawn_key=key)))
    return generator.standard_normal(count) if normal else generator.random(count)


@pytest.mark.parametrize("normal", [False, True])
@pytest.mark.parametrize("reserve", [4, 700])
def test_streams_are_read_in_order_whatever_is_taken_at_once(normal, reserve):
    streams = RandomStreams(9, SYMBOLS, 2, normal=normal, size=3, reserve=reserve)
    random = np.random.default_rng(1)
    seen = [[] for _ in SYMBOLS]
    for _ in range(2_500):
        streams.refill()
        counts = random.integers(0, 4, len(SYMBOLS))
        ids = np.repeat(np.arange(len(SYMBOLS)), counts)
        for symbol, run in zip(ids, streams.take_runs(ids, counts), strict=True):
            seen[symbol].append(run)
        for symbol, run in zip([2, 0], streams.take(np.array([2, 0])), strict=True):
            seen[symbol].append(run)
    for symbol, runs in zip(SYMBOLS, seen, strict=True):
        values = np.concatenate(runs)
        assert len(values) > 8_192  # a row was refilled
        np.testing.assert_array_equal(values, reference(symbol, 2, normal=normal, count=len(values)))


def test_runs_of_nothing():
    streams = RandomStreams(9, SYMBOLS, 0, normal=False, size=0, reserve=1)
    streams.refill()
    assert streams.take(np.array([0, 2])).shape == (2, 0)
