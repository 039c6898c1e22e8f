"""The replay clock: a line from monotonic seconds to tape nanoseconds, moved but never bent."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.clock import KEEP, NS, SKIP, GapPolicy, ReplayClock, cap, parse_gap, wall_ns
from feeds.errors import OptionError

TAPE = 1_723_161_254_024_619_568  # a real ts_recv: nanoseconds that a float does not hold


def test_starts_at_its_anchor():
    clock = ReplayClock(TAPE, now=100.0)
    assert clock.tape_at(100.0) == TAPE
    assert clock.due(TAPE) == 100.0


@pytest.mark.parametrize("speed", [0.1, 1.0, 10.0, 1000.0])
def test_a_second_lasts_a_second_divided_by_the_speed(speed):
    clock = ReplayClock(TAPE, now=100.0, speed=speed)
    assert clock.due(TAPE + 5 * NS) == 100.0 + 5.0 / speed
    assert clock.tape_at(102.0) == TAPE + round(2 * speed * NS)


def test_infinite_speed_is_always_due_and_stands_still():
    clock = ReplayClock(TAPE, now=100.0, speed=math.inf)
    assert clock.due(TAPE + 10**18) == -math.inf
    assert clock.tape_at(1e9) == TAPE


def test_before_the_anchor_the_tape_is_not_there_yet():
    clock = ReplayClock(TAPE, now=1.0)
    assert clock.tape_at(1.0 - 2**-31) < TAPE  # half a nanosecond early is early


@given(
    now=st.floats(0, 1e6),
    speed=st.floats(0.1, 1000.0),
    ahead=st.integers(0, 86_400 * NS),
)
def test_when_due_the_tape_is_there_within_the_precision_of_the_clock(now, speed, ahead):
    clock = ReplayClock(TAPE, now=now, speed=speed)
    off = clock.tape_at(clock.due(TAPE + ahead)) - (TAPE + ahead)
    # One unit in the last place of the monotonic time, played at that speed, and the rounding down.
    assert abs(off) <= 2 * math.ulp(now + ahead / (speed * NS)) * speed * NS + ahead * 2**-50 + 2


def test_jump_puts_an_instant_at_a_time():
    clock = ReplayClock(TAPE, now=100.0, speed=2.0)
    clock.jump(103.0, TAPE + 3600 * NS)
    assert clock.due(TAPE + 3600 * NS) == 103.0
    assert clock.due(TAPE + 3604 * NS) == 105.0


def test_left_out_stretch_moves_everything_after_it():
    clock = ReplayClock(TAPE, now=100.0, speed=2.0)
    clock.leave_out(3600 * NS)
    assert clock.due(TAPE + 3604 * NS) == 102.0
    assert clock.tape_at(102.0) == TAPE + 3604 * NS


def test_a_million_left_out_stretches_do_not_drift():
    clock = ReplayClock(TAPE, now=12_345.678, speed=0.3)
    stretch = 1_234_567_891
    for _ in range(1_000_000):
        clock.leave_out(stretch)
    assert clock.due(TAPE + 1_000_000 * stretch) == 12_345.678


def test_speed_changes_from_where_the_tape_is():
    clock = ReplayClock(TAPE, now=100.0)
    clock.set_speed(110.0, 4.0)
    assert clock.tape_at(110.0) == TAPE + 10 * NS
    assert clock.due(TAPE + 14 * NS) == 111.0


def test_from_infinite_speed_the_tape_goes_on_from_the_anchor():
    clock = ReplayClock(TAPE, now=100.0, speed=math.inf)
    clock.jump(107.0, TAPE + NS)
    clock.set_speed(108.0, 1.0)
    assert clock.due(TAPE + 2 * NS) == 109.0


def test_wall_time_is_in_nanoseconds_of_this_century():
    assert 1_700_000_000 * NS < wall_ns() < 4_000_000_000 * NS


@pytest.mark.parametrize(
    ("text", "gap"),
    [
        ("keep", KEEP),
        ("skip", SKIP),
        ("cap:2", GapPolicy(2 * NS, 2 * NS)),
        ("CAP:0.5", cap(0.5)),
        ("cap:1e300", KEEP),  # longer than any tape
    ],
)
def test_gap_policies(text, gap):
    assert parse_gap(text) == gap


@pytest.mark.parametrize("text", ["", "cap", "cap:", "cap:0", "cap:-1", "cap:nan", "cap:inf", "cap:x", "skip:1", "no"])
def test_wrong_gap_policies(text):
    with pytest.raises(OptionError, match=rf"gap '{text}' is not 'keep', 'skip' or 'cap:SECONDS'"):
        parse_gap(text)
