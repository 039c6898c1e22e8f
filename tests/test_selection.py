"""Some of a tape's instruments, numbered anew."""

from __future__ import annotations

import pytest

from feeds.records import BUY
from tests.scripted import BTC, ETH, INSTRUMENTS, Tape
from ticker.errors import Code, RequestError
from ticker.selection import Selection


def batch():
    return Tape().trades((BTC, BUY, 100, 1), (ETH, BUY, 200, 2), (BTC, BUY, 101, 3))


@pytest.mark.parametrize("symbols", [[], ["BTC/USD", "ETHUSDT"], ["ETH/USDT", "BTC/USD", "ETHUSDT"]])
def test_all_of_them_are_the_tape_itself(symbols):
    whole, selection = batch(), Selection(INSTRUMENTS, symbols)
    assert selection.instruments is INSTRUMENTS
    assert selection.of(whole) is whole


def test_the_others_are_left_out():
    selection = Selection(INSTRUMENTS, ["ETH/USDT"])
    assert [instrument.symbol for instrument in selection.instruments] == ["ETHUSDT"]
    trades = selection.of(batch()).trades
    assert (trades.instrument.tolist(), trades.price.tolist(), trades.seq.tolist()) == ([0], [200], [2])


def test_what_the_tape_does_not_have_is_refused():
    with pytest.raises(RequestError) as caught:
        Selection(INSTRUMENTS, ["ETHUSDT", "NO/PE"])
    assert caught.value.code is Code.UNKNOWN_SYMBOL
