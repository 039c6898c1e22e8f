"""Messages of Binance, spot and futures, by WebSocket and REST, bare or of a combined stream.

A book is put together as Binance says: what a snapshot contains already is dropped, and what came before it but
belongs on top is applied after it. Source: https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
and the pages of the same name for futures. This module must not know how messages are kept in a file.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Final, Generic, TypeVar

import msgspec

from feeds.formats.gathering import Gathering, Level, Number
from feeds.formats.source import Source
from feeds.records import BUY, MISSING, SELL

VENUE: Final = "BINANCE"

#: How many changes of a book are kept for a snapshot that comes after them: 12.8 s of the usual stream. A book that
#: has had so many and no snapshot goes on without one.
KEPT_CHANGES: Final = 128

_Id = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
#: Milliseconds below this (the year 2261), above it microseconds, which Binance sends on request.
_MICROSECONDS: Final = 9_200_000_000_000
_Time = Annotated[int, msgspec.Meta(ge=0, lt=_MICROSECONDS * 1_000)]


class _Quote(msgspec.Struct, gc=False):
    u: _Id
    s: str
    b: Number
    B: Number
    a: Number
    A: Number
    E: _Time = 0
    T: _Time = 0


class _Trade(msgspec.Struct, gc=False):
    s: str
    t: _Id
    p: Number
    q: Number
    T: _Time
    m: bool


class _AggTrade(msgspec.Struct, gc=False):
    s: str
    a: _Id
    p: Number
    q: Number
    T: _Time
    m: bool


class _Depth(msgspec.Struct):
    s: str
    U: _Id
    u: _Id
    b: list[Level]
    a: list[Level]
    E: _Time = 0
    T: _Time = 0
    pu: _Id | None = None

    @property
    def previous(self) -> int:
        """The last id before this change; spot numbers without gaps and does not send it."""
        return self.U - 1 if self.pu is None else self.pu


class _Snapshot(msgspec.Struct):
    lastUpdateId: _Id
    bids: list[Level]
    asks: list[Level]
    E: _Time = 0
    T: _Time = 0


_T = TypeVar("_T")


class _Combined(msgspec.Struct, Generic[_T]):
    data: _T


#: What is read, by the name of its stream; a snapshot by REST is called by its first key.
_TYPES: Final[dict[bytes, type[msgspec.Struct]]] = {
    b"bookTicker": _Quote,
    b"trade": _Trade,
    b"aggTrade": _AggTrade,
    b"depth": _Depth,
    b"lastUpdateId": _Snapshot,
}


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:  # noqa: ANN401 - mypy has no name for any type whatever
    """Return a decoder that takes strings for the numbers they stand for, as prices and quantities are written."""
    return msgspec.json.Decoder(kind, strict=False)


_BARE: Final = {name: _decoder(kind) for name, kind in _TYPES.items()}
_COMBINED: Final = {name: _decoder(_Combined[kind]) for name, kind in _TYPES.items()}  # type: ignore[valid-type]
#: The beginning of a message: symbol ("!" for all of them), name and depth of its stream; or its event's name; or the
#: first key of one without ("u": bookTicker of spot).
_START: Final = re.compile(
    rb'\{\s*"(?:stream"\s*:\s*"(?:([^"@!]*)@|!)([A-Za-z]+)([0-9]*)|e"\s*:\s*"([A-Za-z0-9]+)|(u|lastUpdateId)"\s*:)'
)
#: A stream that is not named within so many bytes is looked at anew in each message.
_LONGEST_STREAM: Final = 80
_ALIASES: Final = {b"u": b"bookTicker", b"depthUpdate": b"depth"}


def _ns(time: int) -> int:
    if not time:
        return MISSING
    return time * 1_000_000 if time < _MICROSECONDS else time * 1_000


class _Book:
    """How far the changes of one book have come.

    Attributes:
        last: The id of the newest change or snapshot that was passed on; None while waiting for a snapshot.
    """

    def __init__(self, symbol: str, gathering: Gathering) -> None:
        self.last: int | None = None
        self._symbol, self._gathering = symbol, gathering
        self._recent: deque[_Depth] = deque(maxlen=KEPT_CHANGES)
        self._gap = False

    def change(self, depth: _Depth) -> None:
        """Take in a change; one that was there already does nothing."""
        if self.last is not None and depth.u <= self.last:
            return
        self._recent.append(depth)
        if self.last is not None:
            self._pass_on(depth)
        elif len(self._recent) == KEPT_CHANGES:
            self.give_up()

    def snapshot(self, snapshot: _Snapshot) -> None:
        """Begin anew with a snapshot, and put on top of it what belongs there of the changes before it."""
        ts_event = _ns(snapshot.T or snapshot.E)
        self.last = snapshot.lastUpdateId
        self._gap = False
        self._gathering.snapshot(self._symbol, ts_event, self.last, (snapshot.bids, snapshot.asks))
        self._catch_up()

    def give_up(self) -> None:
        """Pass on what has waited for a snapshot, as changes of a book that is not known."""
        if self.last is None:
            self.last = -1
            self._catch_up()

    def _catch_up(self) -> None:
        """Pass on those of the last changes that are newer than what was passed on."""
        for depth in self._recent:
            if depth.u > self.last:  # type: ignore[operator]
                self._pass_on(depth)

    def _pass_on(self, depth: _Depth) -> None:
        self._gap |= depth.previous > self.last  # type: ignore[operator]
        self.last = depth.u
        if depth.b or depth.a:
            ts_event = _ns(depth.T or depth.E)
            self._gathering.changes(self._symbol, ts_event, depth.u, (depth.b, depth.a), gap=self._gap)
            self._gap = False


class BinanceMessages:
    """Reads messages into a gathering.

    Args:
        source: For what is passed over or refused.
        gathering: Where the events go.
        symbol: Of snapshots that do not name theirs; None if it is the only one of the capture.
    """

    venue: ClassVar[str] = VENUE
    host: ClassVar[bytes] = b"binance"

    def __init__(self, source: Source, gathering: Gathering, symbol: str | None) -> None:
        self._source, self._gathering, self._symbol = source, gathering, symbol
        self._books: dict[str, _Book] = {}
        self._tellers: dict[str, bytes] = {}
        self._readers: dict[bytes, Callable[[Any], None]] = {
            b"bookTicker": self._quote,
            b"trade": self._trade,
            b"aggTrade": self._agg_trade,
            b"depth": self._depth,
        }
        self._streams: dict[bytes, tuple[Callable[[bytes], Any], Callable[[Any], None]]] = {}

    @staticmethod
    def knows(payload: bytes) -> bool:
        """Return whether a message looks like one of Binance's."""
        return _START.match(payload) is not None

    def take(self, payload: bytes, url_symbol: str | None = None) -> None:
        """Take in one message.

        Args:
            payload: JSON.
            url_symbol: The symbol in the address that it was fetched from.

        Raises:
            msgspec.DecodeError: It is no JSON, or a message that should be known has another form.
        """
        # All messages of a stream begin alike: {"stream":"btcusdt@trade","data":...
        known = self._streams.get(payload[: payload.find(b",", 0, _LONGEST_STREAM)])
        if known is None:
            self._take(payload, url_symbol)
        else:
            decode, read = known
            read(decode(payload).data)

    def _take(self, payload: bytes, url_symbol: str | None) -> None:
        """Take in a message of which it must be told what it is."""
        start = _START.match(payload)
        if start is None:
            msgspec.json.decode(payload)
            self._source.pass_over("messages of no known kind")
            return
        symbol, stream, levels, event, key = start.groups()
        name = stream or event or key
        name = _ALIASES.get(name, name)
        if name not in _TYPES:
            msgspec.json.decode(payload)
            self._source.pass_over(name.decode())
        elif levels and name == b"depth":
            self._partial(payload, symbol.decode().upper())
        elif name == b"lastUpdateId":
            self._whole(_BARE[name].decode(payload), url_symbol)
        elif stream:
            decode, read = _COMBINED[name].decode, self._readers[name]
            read(decode(payload).data)
            if b"," in payload[:_LONGEST_STREAM]:
                self._streams[payload[: payload.index(b",")]] = decode, read
        else:
            self._readers[name](_BARE[name].decode(payload))

    def finish(self) -> None:
        """Pass on what still waits, at the end of a capture."""
        for book in self._books.values():
            book.give_up()

    def _quote(self, quote: _Quote) -> None:
        prices = (quote.b, quote.B, quote.a, quote.A)
        self._gathering.quote(quote.s, _ns(quote.T or quote.E), quote.u, prices)

    def _trade(self, trade: _Trade) -> None:
        self._print(trade, b"trade", trade.t)

    def _agg_trade(self, trade: _AggTrade) -> None:
        self._print(trade, b"aggTrade", trade.a)

    def _print(self, trade: _Trade | _AggTrade, name: bytes, ident: int) -> None:
        # Both streams tell of the same trades; the one that was first goes on telling.
        if self._tellers.setdefault(trade.s, name) != name:
            self._source.pass_over(f"{name.decode()} beside {self._tellers[trade.s].decode()}")
        elif not trade.p:
            self._source.pass_over("trades without a price")  # futures' funds and liquidations
        else:
            print_ = (trade.p, trade.q, SELL if trade.m else BUY)
            self._gathering.trade(trade.s, _ns(trade.T), ident, print_)

    def _depth(self, depth: _Depth) -> None:
        self._book(depth.s).change(depth)

    def _partial(self, payload: bytes, symbol: str) -> None:
        """Take in the best levels, sent whole every time: on spot like a snapshot, on futures like a change."""
        try:
            snapshot = _COMBINED[b"lastUpdateId"].decode(payload).data
        except msgspec.ValidationError:
            depth = _COMBINED[b"depth"].decode(payload).data
            snapshot = _Snapshot(depth.u, depth.b, depth.a, depth.E, depth.T)
        self._book(symbol).snapshot(snapshot)

    def _whole(self, snapshot: _Snapshot, url_symbol: str | None) -> None:
        symbol = url_symbol or self._symbol or self._only_symbol()
        if symbol is None:
            raise msgspec.ValidationError("a snapshot of unknown symbol; say which with --symbol")
        self._book(symbol).snapshot(snapshot)

    def _only_symbol(self) -> str | None:
        """Return the symbol of all messages so far; None if there are several, or none."""
        seen = {*self._gathering.symbols, *self._books}
        return seen.pop() if len(seen) == 1 else None

    def _book(self, symbol: str) -> _Book:
        book = self._books.get(symbol)
        if book is None:
            book = self._books[symbol] = _Book(symbol, self._gathering)
        return book
