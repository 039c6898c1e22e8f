"""What may be the name of an instrument."""

import pytest

from feeds.errors import FeedError
from feeds.instruments import Instrument, Instruments, SymbolError


def named(symbol: str, *aliases: str) -> Instruments:
    return Instruments(
        [Instrument(symbol=symbol, base="A", quote="B", price_precision=2, qty_precision=0, aliases=aliases)]
    )


@pytest.mark.parametrize(
    "name", ["BTC-28JUN24-70000-C", "1000PEPE/USDT", "XBT_USD", "UD:1V: GN 2912", "BRK.B", '50% "OFF"', "币安人生USDT"]
)
def test_a_name_is_any_printable_text(name):
    assert named(name).id_of(name) == named("A", name).id_of(name) == 0


@pytest.mark.parametrize("name", ["", "A\nB", "A\x1b[2J", "A\0", "A\ud800", "A\u202eB"])
def test_a_name_that_nobody_could_read_is_refused_and_shown(name):
    with pytest.raises(SymbolError) as caught:
        named("A", name)
    assert str(caught.value) == f"{name!a} is no name of an instrument; a name is printable text"
    assert str(caught.value).isprintable()
    assert isinstance(caught.value, FeedError)  # told at the start, without a traceback
    with pytest.raises(SymbolError):
        named(name)
