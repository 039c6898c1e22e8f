"""What waits for a price or a time is found when it comes, and nothing is kept of what waits no longer."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from ticker.orders.stops import SMALL, Stops, Waiting

KEYS = st.integers(1, 5)
STEP = st.one_of(
    st.tuples(st.just("add"), KEYS, st.integers(-9, 9)),
    st.tuples(st.just("discard"), KEYS, st.just(0)),
    st.tuples(st.just("reached"), st.just(0), st.integers(-9, 9)),
)


@given(st.lists(STEP, max_size=200))
def test_a_key_is_reached_once_at_the_last_number_that_it_was_to_wait_for(steps):
    waiting, model = Waiting(), {}
    for step, key, number in steps:
        if step == "add":
            waiting.add(key, number)
            model[key] = number
        elif step == "discard":
            waiting.discard(key)
            model.pop(key, None)
        else:
            found = sorted((waits_for, key) for key, waits_for in model.items() if waits_for <= number)
            assert list(waiting.reached(number)) == [key for _, key in found]
            model = {key: waits_for for key, waits_for in model.items() if waits_for > number}
        assert len(waiting) == len(model)


def test_keys_that_wait_no_longer_leave_nothing_behind():
    waiting, stops = Waiting(), Stops()
    waiting.add(0, 2**40)
    stops.add(0, 0, 2**40, upwards=True)
    for key in range(1, 100 * SMALL):
        waiting.add(key, 2**40)
        stops.add(key, 0, 2**40, upwards=True)
        waiting.discard(key)
        stops.discard(key)
    assert len(pickle.dumps((waiting, stops))) < 50 * SMALL
    assert list(waiting.reached(2**40)) == stops.reached(0, 0, 2**40) == [0]


def test_a_key_that_waits_for_another_price_waits_for_that_alone():
    stops = Stops()
    stops.add(1, 0, 100, upwards=True)
    stops.add(2, 0, 100, upwards=False)
    stops.add(1, 0, 90, upwards=False)
    assert stops.reached(0, 95, 105) == [2]
    assert stops.reached(1, 0, 200) == []
    assert stops.reached(0, 90, 90) == [1]
    assert not stops
