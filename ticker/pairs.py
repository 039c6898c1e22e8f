"""The pairs that another server lists, as instruments, and the numbers that it sends, as their integers.

It must not know of connections or feeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Annotated

import msgspec

from feeds.errors import FeedError
from feeds.instruments import MAX_UNITS, Instrument, Instruments
from ticker.client.connection import Message, distinct


def instruments_of(pairs: Sequence[Message], symbols: Sequence[str]) -> Instruments:
    """Return the instruments that the ``instrument`` channel lists.

    Args:
        pairs: Its rows.
        symbols: Which of them; all, without second names, if empty.

    Raises:
        FeedError: It does not list a symbol.
    """
    listed = {pair["symbol"]: pair for pair in pairs}
    if unknown := [symbol for symbol in symbols if symbol not in listed]:
        raise FeedError(f"the server has no pair {unknown[0]}; it has {', '.join(list(listed)[:12])}")
    chosen = [listed[symbol] for symbol in symbols] or distinct(pairs)
    taken = {pair["symbol"] for pair in chosen}
    return Instruments(_instrument(pair, listed.keys() - taken) for pair in chosen)


#: An int64 has no room for more.
_Decimals = Annotated[int, msgspec.Meta(ge=0, le=18)]


class _Pair(msgspec.Struct):
    """What is made use of in a pair."""

    symbol: str
    base: str
    quote: str
    price_precision: _Decimals
    qty_precision: _Decimals
    price_increment: Decimal
    qty_increment: Decimal
    qty_min: Decimal


def _instrument(listed: Message, others: Iterable[str]) -> Instrument:
    try:
        pair = msgspec.convert(listed, _Pair)
    except msgspec.ValidationError as error:
        raise FeedError(f"what the server lists is no pair: {error}") from None
    second = f"{pair.base}/{pair.quote}"
    return Instrument(
        symbol=pair.symbol,
        base=pair.base,
        quote=pair.quote,
        price_precision=pair.price_precision,
        qty_precision=pair.qty_precision,
        price_increment=max(1, units(pair.price_increment, pair.price_precision)),
        qty_increment=max(1, units(pair.qty_increment, pair.qty_precision)),
        qty_min=max(1, units(pair.qty_min, pair.qty_precision)),
        aliases=(second,) if second in others else (),
    )


def units(value: Decimal | int, precision: int) -> int:
    """Return a number of the wire as ticks or lots.

    Raises:
        FeedError: It has more decimals than its instrument, or is too large.
    """
    scaled = Decimal(value) * 10**precision
    whole = int(scaled)
    if whole != scaled or not -MAX_UNITS <= whole <= MAX_UNITS:
        raise FeedError(f"the server sent {value}, which {precision} decimals cannot say")
    return whole
