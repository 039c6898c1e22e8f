"""What ``subscribe`` parameters mean: which topic, and what the acknowledgement says.

The acknowledgement's ``result`` is itself a valid ``params``: clients keep it and send it back when they reconnect.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET

from feeds.analytics import Candles
from ticker.errors import Code, RequestError
from ticker.topics.topic import Mode, OnSlow, TopicKey
from ticker.wire import MAX_ECHO, SubscribeParams

DEPTHS: Final = (10, 25, 100, 500, 1000)
#: Channels of market data, by symbol; ``instrument`` and the private channels have no symbols.
MARKET_CHANNELS: Final = ("ticker", "trade", "book", "ohlc")
MAX_INTERVAL_MS: Final = 60_000


class Wish(msgspec.Struct, frozen=True):
    """A subscription to a channel of market data, as understood.

    Attributes:
        key: The topic.
        on_slow: What becomes of events that are not taken in time.
        symbols: As asked for.
        snapshot: Whether the present state comes first.
        parameters: What the acknowledgement repeats besides the symbol.
    """

    key: TopicKey
    on_slow: OnSlow
    symbols: list[str]
    snapshot: bool
    parameters: dict[str, Any]


def understand(params: SubscribeParams, ticker_interval_ms: int, *, native: bool, deflated: bool = False) -> Wish:
    """Return what ``subscribe`` or ``unsubscribe`` parameters for a market channel ask for.

    Args:
        params: From the client.
        ticker_interval_ms: The server's throttle of the ticker channel, unless a native client chooses its own.
        native: Whether the native profile's parameters count.
        deflated: Whether its messages are compressed.

    Raises:
        RequestError: The channel does not exist, or one of its parameters has a value that it does not have.
    """
    channel = params.channel
    if channel not in MARKET_CHANNELS:
        raise RequestError(f"Channel not supported {channel[:MAX_ECHO]}", Code.UNKNOWN_CHANNEL, field="channel")
    if not params.symbols:
        raise RequestError("symbol is required", Code.INVALID_FIELD, field="symbol")
    extra = _variant(params)
    variant = next(iter(extra.values()), "")
    symbols = list(dict.fromkeys(params.symbols))
    snapshot = channel != "trade" if params.snapshot is UNSET else params.snapshot
    if not native:
        interval_ms = ticker_interval_ms if channel == "ticker" else 0
        merges = channel == "ohlc" or (channel == "ticker" and interval_ms > 0)
        key = TopicKey(channel, variant, interval_ms, "merge" if merges else "raw", deflated=deflated)
        on_slow: OnSlow = "disconnect" if channel == "trade" else "conflate"
        return Wish(key, on_slow, symbols, snapshot, {"snapshot": snapshot, **extra})
    mode: Mode = ("batch" if channel == "trade" else "merge") if params.mode is UNSET else params.mode
    on_slow = ("disconnect" if channel == "trade" else "conflate") if params.on_slow is UNSET else params.on_slow
    if mode == "merge":  # the newest state is all that there is to miss
        on_slow = "conflate"
    packed = params.encoding == "struct"
    quoted = params.numbers == "string" and not packed
    key = TopicKey(
        channel=channel,
        variant=variant,
        interval_ms=_interval_ms(params, ticker_interval_ms, mode),
        mode=mode,
        native=True,
        quoted=quoted,
        packed=packed,
        deflated=deflated and not packed,  # the digits of doubles do not shrink
    )
    extra |= {"interval_ms": key.interval_ms, "mode": mode, "on_slow": on_slow}
    extra |= {"numbers": "string" if quoted else "number", "encoding": "struct" if packed else "json"}
    return Wish(key, on_slow, symbols, snapshot, {"snapshot": snapshot, **extra})


def _variant(params: SubscribeParams) -> dict[str, Any]:
    """Return the parameter by which a channel has several topics, if it has."""
    if params.channel == "ticker":
        return {"event_trigger": "trades" if params.event_trigger is UNSET else params.event_trigger}
    if params.channel == "book":
        return {"depth": _one_of("depth", params.depth, DEPTHS)}
    if params.channel == "ohlc":
        return {"interval": _one_of("interval", params.interval, Candles.INTERVALS)}
    return {}


def _interval_ms(params: SubscribeParams, ticker_interval_ms: int, mode: Mode) -> int:
    if mode == "raw":
        return 0
    if params.interval_ms is UNSET:
        return ticker_interval_ms if params.channel == "ticker" else 0
    return checked_interval(params.interval_ms)


def checked_interval(interval_ms: int) -> int:
    """Return an interval.

    Raises:
        RequestError: It is out of range.
    """
    if not 0 <= interval_ms <= MAX_INTERVAL_MS:
        text = f"interval_ms must be from 0 to {MAX_INTERVAL_MS}"
        raise RequestError(text, Code.INVALID_FIELD, field="interval_ms")
    return interval_ms


def _one_of(name: str, value: Any, allowed: tuple[int, ...]) -> int:  # noqa: ANN401 - an int, or UNSET
    """Return the value, or the first allowed one where none was given."""
    if value is UNSET:
        return allowed[0]
    if value not in allowed:
        text = f"{name} must be one of {', '.join(map(str, allowed))}"
        raise RequestError(text, Code.INVALID_FIELD, field=name)
    return int(value)
