"""The control of a tape by itself: what its commands mean in every state, and how lateness is counted."""

import math

import numpy as np
import pytest

from feeds.errors import OptionError
from feeds.playback import LatenessHistogram, Playback, parse_speed
from feeds.records import Batch

START, END = 1_000, 9_000


@pytest.fixture
def playback():
    playback = Playback(START, END)
    playback.begin_epoch(START, by_itself=True)
    playback.start()
    return playback


def test_it_waits_until_it_is_started_paused_or_not():
    for paused, state in ((False, "playing"), (True, "paused")):
        playback = Playback(START, END, paused=paused)
        assert playback.state == "waiting"
        playback.start()
        assert playback.state == state


def test_a_pause_while_it_waits_holds_the_tape_when_it_starts():
    playback = Playback(START, END)
    playback.pause()
    assert playback.state == "waiting"
    playback.start()
    assert playback.state == "paused"


def test_steps_add_up_and_pause(playback):
    playback.step()
    playback.step(2)
    assert playback.state == "paused"
    for _ in range(3):
        assert not playback.wants_rest(START)
        playback.finish_event()
    assert playback.wants_rest(START)


@pytest.mark.parametrize("forget", [Playback.pause, lambda p: p.seek(2_000), lambda p: p.step_until(2_000)])
def test_steps_that_were_not_done_are_forgotten(playback, forget):
    playback.step(5)
    forget(playback)
    playback.pause()
    assert playback.wants_rest(2_000)


def test_a_step_until_an_instant_rests_before_it(playback):
    playback.step_until(5_000)
    assert not playback.wants_rest(4_999)
    assert playback.wants_rest(5_000)
    assert playback.wants_rest(None)


def test_a_seek_is_taken_once_and_the_last_one_counts(playback):
    playback.seek(3_000)
    playback.seek(4_000)
    assert playback.interrupted
    assert playback.statistics().position_ns == 4_000
    assert (playback.take_seek(), playback.take_seek()) == (4_000, None)
    assert not playback.interrupted


@pytest.mark.parametrize(("wanted", "meant"), [(0, START), (START, START), (END, END), (END + 1, END)])
def test_a_seek_stays_on_the_tape(playback, wanted, meant):
    playback.seek(wanted)
    assert playback.take_seek() == meant


def test_a_tape_that_has_ended_plays_again_after_a_seek_only(playback):
    playback.finish()
    assert (playback.state, playback.statistics().progress) == ("ended", 1.0)
    playback.resume()
    assert playback.state == "ended"
    playback.seek(START)
    assert (playback.state, playback.statistics().progress) == ("playing", 0.0)


def test_a_paused_tape_stays_paused_over_a_seek(playback):
    playback.pause()
    playback.seek(3_000)
    assert playback.state == "paused"


def test_nothing_follows_a_stop(playback):
    playback.stop()
    for command in (playback.pause, playback.resume, playback.step, playback.start, playback.finish):
        command()
        assert playback.state == "stopped"
    playback.seek(2_000)
    assert playback.state == "stopped"
    assert playback.take_seek() is None


def test_every_command_wakes_the_player(playback):
    woken = []
    playback.on_change = lambda: woken.append(playback.state)
    playback.pause()
    playback.set_speed(2.0)
    playback.step()
    playback.step_until(2_000)
    playback.seek(2_000)
    playback.resume()
    playback.stop()
    assert woken == ["paused"] * 5 + ["playing", "stopped"]


def test_statistics_count_what_was_told(playback):
    playback.tell(Batch(ts=3_000))
    playback.set_speed(math.inf)
    now = playback.statistics()
    assert (now.rows, now.batches, now.position_ns, now.progress, now.speed) == (0, 1, 3_000, 0.25, math.inf)
    playback.begin_epoch(START, by_itself=True)
    playback.begin_epoch(5_000, by_itself=False)
    now = playback.statistics()
    assert (now.epochs, now.passes, now.position_ns) == (3, 2, 5_000)


def test_steps_go_forward(playback):
    with pytest.raises(OptionError, match="step of 0 events"):
        playback.step(0)
    assert playback.state == "playing"


def test_a_wrong_speed_changes_nothing(playback):
    with pytest.raises(OptionError, match=r"speed 0\.001 is not a number"):
        playback.set_speed(0.001)
    assert playback.speed == 1.0


@pytest.mark.parametrize(
    ("text", "speed"), [("1", 1.0), ("10x", 10.0), ("0.01", 0.01), ("10000", 10_000.0), (" MAX ", math.inf)]
)
def test_speeds(text, speed):
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["0", "-1", "0.009", "10001", "nan", "fast", "", "x"])
def test_wrong_speeds(text):
    with pytest.raises(OptionError, match=rf"speed '{text}' is not a number from 0.01 to 10,000, or 'max'"):
        parse_speed(text)


# --- lateness


def test_histogram_percentiles_are_at_most_an_eighth_too_high():
    values = np.random.default_rng(1).lognormal(0.0, 2.0, 10_000)
    histogram = LatenessHistogram()
    for part in np.array_split(values, 7):
        histogram.add(part)
    for share in (0.5, 0.9, 0.99):
        true = float(np.quantile(values, share, method="inverted_cdf"))
        assert true <= histogram.percentile(share) <= true * 1.125
    assert histogram.max_ms == values.max()


def test_histogram_of_nothing_and_of_the_extremes():
    histogram = LatenessHistogram()
    assert histogram.percentile(0.5) == 0.0
    histogram.add(np.array([0.0]))
    assert histogram.percentile(0.5) == 0.0
    histogram.add(np.array([1e9, 1e9]))
    assert histogram.percentile(0.99) == 1e9
