"""What ``subscribe`` parameters mean: which topic, and what the acknowledgement says.

The acknowledgement's ``result`` is itself a valid ``params``: clients keep it and send it back when they reconnect.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET

from feeds.analytics import Candles
from ticker.errors import Code, RequestError
from ticker.topics import TopicKey
from ticker.wire import MAX_ECHO, SubscribeParams

DEPTHS: Final = (10, 25, 100, 500, 1000)
#: Channels of market data, by symbol; ``instrument`` and the private channels have no symbols.
MARKET_CHANNELS: Final = ("ticker", "trade", "book", "ohlc")


class Wish(msgspec.Struct, frozen=True):
    """A subscription to a channel of market data, as understood.

    Attributes:
        key: The topic.
        symbols: As asked for.
        snapshot: Whether the present state comes first.
        parameters: What the acknowledgement repeats besides the symbol.
    """

    key: TopicKey
    symbols: list[str]
    snapshot: bool
    parameters: dict[str, Any]


def understand(params: SubscribeParams, ticker_interval_ms: int) -> Wish:
    """Return what ``subscribe`` or ``unsubscribe`` parameters for a market channel ask for.

    Args:
        params: From the client.
        ticker_interval_ms: The server's throttle of the ticker channel.

    Raises:
        RequestError: The channel does not exist, or one of its parameters has a value that it does not have.
    """
    if params.channel not in MARKET_CHANNELS:
        raise RequestError(f"Channel not supported {params.channel[:MAX_ECHO]}", Code.UNKNOWN_CHANNEL)
    if not params.symbols:
        raise RequestError("symbol is required", Code.INVALID_FIELD)
    extra: dict[str, Any] = {}
    interval_ms = 0
    if params.channel == "ticker":
        extra["event_trigger"] = "trades" if params.event_trigger is UNSET else params.event_trigger
        interval_ms = ticker_interval_ms
    elif params.channel == "book":
        extra["depth"] = _one_of("depth", params.depth, DEPTHS)
    elif params.channel == "ohlc":
        extra["interval"] = _one_of("interval", params.interval, Candles.INTERVALS)
    snapshot = params.channel != "trade" if params.snapshot is UNSET else params.snapshot
    key = TopicKey(params.channel, next(iter(extra.values()), ""), interval_ms)
    symbols = list(dict.fromkeys(params.symbols))
    return Wish(key, symbols, snapshot, {"snapshot": snapshot, **extra})


def _one_of(name: str, value: Any, allowed: tuple[int, ...]) -> int:  # noqa: ANN401 - an int, or UNSET
    """Return the value, or the first allowed one where none was given."""
    if value is UNSET:
        return allowed[0]
    if value not in allowed:
        raise RequestError(f"{name} must be one of {', '.join(map(str, allowed))}", Code.INVALID_FIELD)
    return int(value)
