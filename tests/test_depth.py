import numpy as np
import pytest

from feeds import models
from feeds.depth import DepthModel, level_steps

# What a replayed stream of books must satisfy is in test_simulate.py; here are single publications.

BTC = [models.pair("BTC/USD")]
IDS = np.array([0])
STEP = int(level_steps(BTC)[0])


def test_a_book_without_a_new_quote_mostly_stays():
    model = DepthModel(BTC, 200)
    touch = np.array([[950_000], [950_001], [5], [7]])
    random = np.random.default_rng(3)
    first = model.publish(IDS, touch, random.random((1, model.uniforms)))
    assert first.column.tolist() == [0, *range(401, 801)]
    again = model.publish(IDS, touch, random.random((1, model.uniforms)))
    assert len(again.book) / 398 == pytest.approx(1 / 8, abs=0.05)
    assert not np.isin(again.column, [401, 601]).any()  # the touch is as it was
    calm = model.publish(IDS, touch, np.full((1, model.uniforms), 0.9))
    assert len(calm.book) == 0
    # Sizes grow with the root of the depth.
    near, far = first.qty[1:51].mean(), first.qty[151:201].mean()
    assert 1.5 < far / near < 5


def test_a_touch_that_moves_within_the_grid_changes_few_levels():
    model = DepthModel(BTC, 25)
    calm = np.full((1, model.uniforms), 0.9)
    bid = 50_000 * STEP + 1
    model.publish(IDS, np.array([[bid], [bid + 1], [5], [7]]), calm)
    change = model.publish(IDS, np.array([[bid + STEP], [bid + STEP + 1], [5], [7]]), calm)
    removed = change.price[change.qty == 0].tolist()
    # Bids: the old touch and the deepest go. Asks: the old touch and the nearest level, overtaken, go.
    assert removed == [bid, (50_000 - 23) * STEP, bid + 1, 50_001 * STEP]
    assert len(change.price) == 8


def test_a_touch_on_the_grid_that_is_overtaken_stays_and_can_be_the_touch_again():
    model = DepthModel(BTC, 25)
    calm = np.full((1, model.uniforms), 0.9)
    on_grid, ask = 50_000 * STEP, 50_000 * STEP + 50
    model.publish(IDS, np.array([[on_grid], [ask], [5], [7]]), calm)
    up = model.publish(IDS, np.array([[on_grid + 1], [ask], [6], [7]]), calm)
    # A new touch, the deepest level makes room, and nothing at the price of the old touch.
    assert sorted(zip(up.price.tolist(), up.qty.tolist(), strict=True)) == [(on_grid - 24 * STEP, 0), (on_grid + 1, 6)]
    down = model.publish(IDS, np.array([[on_grid], [ask], [5], [7]]), calm)
    assert sorted(down.price.tolist()) == [on_grid - 24 * STEP, on_grid + 1]
