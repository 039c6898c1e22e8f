"""Messages of Kraken's WebSocket v2: ticker, trade, book.

Kraken sends no message for a level that a better one has pushed out of the depth subscribed to; its subscribers cut
their books, so the levels cut off are rows here. The depth is what the acknowledgement of the subscription says. In a
capture without it a snapshot of just 10, 25, 100 or 500 levels is taken to be cut at so many; any other is of a book
with fewer levels than the depth, whatever that is, so nothing is cut below the largest depth. Checksums are not
compared: they are of digits as printed, and what is printed may have been parsed before it was captured.
Source: https://docs.kraken.com/api/docs/guides/spot-ws-book-v2

This module must not know how messages are kept in a file.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar, Final

import msgspec

from feeds.formats.gathering import Gathering, Level, Number
from feeds.formats.source import Source
from feeds.records import BUY, MISSING, NO_SIDE, SELL

VENUE: Final = "KRAKEN"
#: The depths that can be subscribed to.
DEPTHS: Final = (10, 25, 100, 500, 1000)

_SIDES: Final = {"buy": BUY, "sell": SELL}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(2262, 1, 1, tzinfo=UTC)  # int64 nanoseconds end in April
_US: Final = timedelta(microseconds=1)
_START: Final = re.compile(
    rb'\{\s*"(?:channel"\s*:\s*"(?:status|heartbeat|ticker|trade|book|ohlc|instrument|level3)|method"\s*:)'
)


class _Level(msgspec.Struct, gc=False):
    price: Number
    qty: Number


class _Row(msgspec.Struct):
    """A row of any of the three channels; what the others lack has a default."""

    symbol: str
    timestamp: datetime | None = None
    bid: Number = 0.0
    bid_qty: Number = 0.0
    ask: Number = 0.0
    ask_qty: Number = 0.0
    side: str = ""
    price: Number | None = None
    qty: Number | None = None
    trade_id: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0
    bids: tuple[_Level, ...] = ()
    asks: tuple[_Level, ...] = ()


class _Message(msgspec.Struct):
    channel: str
    type: str
    data: tuple[_Row, ...]


class _Head(msgspec.Struct):
    """What a message that is not read says of itself."""

    channel: str = ""
    method: str = ""


class _Granted(msgspec.Struct):
    channel: str = ""
    symbol: str = ""
    depth: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _Acknowledged(msgspec.Struct):
    """The answer to a subscription; without ``result`` it is the request, or a refusal."""

    result: _Granted | None = None


_MESSAGE: Final = msgspec.json.Decoder(_Message, strict=False)
_HEAD: Final = msgspec.json.Decoder(_Head)
_ACKNOWLEDGED: Final = msgspec.json.Decoder(_Acknowledged)


class _Side:
    """One side of a book of limited depth."""

    def __init__(self, sign: int, levels: list[Level], depth: int) -> None:
        self._sign, self._depth = sign, depth
        self._keys = sorted({price * -sign for price, _ in levels})  # the best comes first

    def change(self, levels: list[Level]) -> list[Level]:
        """Return the changes, and after them the levels that they push out, with quantity 0."""
        keys = self._keys
        for price, qty in levels:
            key = price * -self._sign
            at = bisect_left(keys, key)
            there = at < len(keys) and keys[at] == key
            if qty and not there:
                insort(keys, key)
            elif there and not qty:
                del keys[at]
        out = [(key * -self._sign, 0.0) for key in keys[self._depth :]]
        del keys[self._depth :]
        return levels + out


class KrakenMessages:
    """Reads messages into a gathering.

    Args:
        source: For what is passed over or refused.
        gathering: Where the events go.
        symbol: Not needed: every message names its own.
    """

    venue: ClassVar[str] = VENUE
    host: ClassVar[bytes] = b"kraken"

    def __init__(self, source: Source, gathering: Gathering, symbol: str | None) -> None:
        self._source, self._gathering = source, gathering
        self._books: dict[str, tuple[_Side, _Side]] = {}
        self._depths: dict[str, int] = {}  # as acknowledged, by symbol
        self._take = {"ticker": self._ticker, "trade": self._trade, "book": self._book}

    @staticmethod
    def knows(payload: bytes) -> bool:
        """Return whether a message looks like one of Kraken's."""
        return _START.match(payload) is not None

    def take(self, payload: bytes, url_symbol: str | None = None) -> None:
        """Take in one message.

        Args:
            payload: JSON.
            url_symbol: Not needed.

        Raises:
            msgspec.DecodeError: It is no JSON, or a message that should be known has another form.
        """
        head = _HEAD.decode(payload)
        take = self._take.get(head.channel)
        if take is None:
            if head.method == "subscribe":
                self._acknowledge(_ACKNOWLEDGED.decode(payload).result)
            self._source.pass_over(head.channel or head.method or "messages of no known kind")
            return
        message = _MESSAGE.decode(payload)
        for row in message.data:
            take(row, message.type == "snapshot")

    def finish(self) -> None:
        """Do nothing: nothing waits for anything."""

    def _acknowledge(self, granted: _Granted | None) -> None:
        if granted is not None and granted.channel == "book" and granted.depth is not None:
            self._depths[granted.symbol] = granted.depth

    def _ticker(self, row: _Row, snapshot: bool) -> None:
        self._gathering.quote(row.symbol, _ns(row), MISSING, (row.bid, row.bid_qty, row.ask, row.ask_qty))

    def _trade(self, row: _Row, snapshot: bool) -> None:
        # The snapshot of this channel is of trades from before the capture, at times when nothing else is known.
        if snapshot:
            self._source.pass_over("trades from before the subscription")
        elif row.price is None or row.qty is None:
            raise msgspec.ValidationError("a trade without a price or a quantity")
        else:
            print_ = (row.price, row.qty, _SIDES.get(row.side, NO_SIDE))
            self._gathering.trade(row.symbol, _ns(row), row.trade_id, print_)

    def _book(self, row: _Row, snapshot: bool) -> None:
        bids, asks = ([(level.price, level.qty) for level in side] for side in (row.bids, row.asks))
        if snapshot:
            levels = max(len(bids), len(asks))
            depth = self._depths.get(row.symbol, levels if levels in DEPTHS else DEPTHS[-1])
            self._books[row.symbol] = _Side(BUY, bids, depth), _Side(SELL, asks, depth)
            self._gathering.snapshot(row.symbol, _ns(row), MISSING, (bids, asks))
            return
        sides = self._books.get(row.symbol)
        gap = sides is None
        if sides is None:
            sides = self._books[row.symbol] = _Side(BUY, [], DEPTHS[-1]), _Side(SELL, [], DEPTHS[-1])
        changes = sides[0].change(bids), sides[1].change(asks)
        if changes[0] or changes[1]:
            self._gathering.changes(row.symbol, _ns(row), MISSING, changes, gap=gap)


def _ns(row: _Row) -> int:
    """Return the row's time, int ns UTC, or MISSING.

    Raises:
        msgspec.ValidationError: It cannot be told in int64 nanoseconds.
    """
    if row.timestamp is None or row.timestamp.tzinfo is None:
        return MISSING
    if not _EPOCH <= row.timestamp < _END:
        raise msgspec.ValidationError(f"a time outside of 1970 to {_END.year} ({row.timestamp})")
    return (row.timestamp - _EPOCH) // _US * 1_000
