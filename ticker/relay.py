"""Another server's market as a feed: it is subscribed to like any client would, and its messages become rows.

It speaks to any Kraken v2 server. One that has the native profile is asked for every event (``mode: raw``); the
positions in its messages are compared with what is known of each stream, and after a loss of the connection it is asked
for exactly what was missed. A book is also kept here and compared with the server's checksum. Where either says that
something is missing, the next row is flagged GAP, and of a book a fresh snapshot is asked for.

What is not what it was at the source: ``ts_recv`` is the wall time at which the message arrived here, ``ts_event`` the
time in it, to the microsecond. Trades that come as a snapshot, after an absence, are flagged so. Rows are numbered as
they come, so the order *between* channels is the server's order of sending. Books have the best 1,000 levels of each
side, by level. The ``cond`` of trades and the ids of orders are not sent. A server without the native profile conflates
its ticker, which is where quotes come from.

It must not know of the server side of this package.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
import numpy as np
import trio

from feeds import clock
from feeds.book import Book
from feeds.errors import FeedError
from feeds.instruments import Instrument, Instruments
from feeds.records import (
    BUY,
    CLEAR,
    GAP,
    LAST,
    MISSING,
    NO_SIDE,
    SELL,
    SET,
    SNAPSHOT,
    Batch,
    Event,
    Levels,
    Marker,
    Quotes,
    Table,
    Trades,
)
from ticker.client.connection import (
    Connection,
    ConnectionLost,
    ConnectionRefused,
    Message,
    open_connection,
    picking_apart,
    portions,
)
from ticker.client.stream import persist
from ticker.pairs import instruments_of, units

TableT = TypeVar("TableT", bound=Table)

logger = logging.getLogger(__name__)

NATIVE: Final = "ticker.v1"
#: The deepest book that can be subscribed to.
DEPTH: Final = 1000
#: Parameters by channel; what follows is for servers with the native profile.
CHANNELS: Final[dict[str, Message]] = {
    "trade": {"snapshot": False},
    "ticker": {"event_trigger": "bbo"},
    "book": {"depth": DEPTH},
}
EVERY_EVENT: Final[dict[str, Message]] = {
    "trade": {"mode": "raw"},
    "ticker": {"mode": "raw", "on_slow": "drop_oldest"},
    "book": {"mode": "raw", "on_slow": "conflate"},
}
#: A book that does not come right is asked for again this often at most.
RESYNC_S: Final = 5.0
_SIDES: Final = {"buy": BUY, "sell": SELL}


class RelayOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which market is relayed.

    Attributes:
        url: Of its server, ``ws://HOST:PORT/v2``.
        symbols: Which of its pairs; all if empty.
    """

    url: str
    symbols: tuple[str, ...] = ()


class RelayStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What was received so far.

    Attributes:
        connected: Whether its server is connected to and subscribed to.
        native: Whether the server numbers its events, so that nothing can be missed unnoticed.
        messages: Messages with market data.
        rows: Rows made of them.
        connections: Connections that came to subscribe.
        holes: How often something was missing in a stream.
        missing: Events that the server has numbered and that are known to be missing.
        mismatches: Books that did not have the checksum that the server gave.
    """

    connected: bool
    native: bool
    messages: int
    rows: int
    connections: int
    holes: int
    missing: int
    mismatches: int


async def open_relay(options: RelayOptions) -> RelayFeed:
    """Ask a server for its pairs and return the feed of them.

    Raises:
        FeedError: There is no such server, or it does not have the symbols.
    """
    try:
        async with open_connection(options.url, subprotocols=(NATIVE,)) as connection:
            pairs = await connection.pairs()
    except (ConnectionRefused, ConnectionLost) as error:
        raise FeedError(str(error)) from None
    return RelayFeed(options, instruments_of(pairs, options.symbols))


def _time_ns(text: str | None) -> int:
    """Return an RFC 3339 instant as int ns UTC; MISSING where there is none."""
    return MISSING if text is None else int(np.datetime64(text.removesuffix("Z"), "ns").astype(np.int64))


class _Result(msgspec.Struct):
    symbol: str


class _Ext(msgspec.Struct):
    epoch: str
    head: int
    recovered: bool = False


class _Granted(msgspec.Struct):
    """What is made use of in the acknowledgement of a subscription; only the native profile has an ``ext``."""

    result: _Result
    ext: _Ext | None = None


class _Row(NamedTuple):
    """A row as it came: its columns without those that every table has."""

    ts_event: int
    flags: int
    values: tuple[int, ...]


class RelayFeed:
    """Relays the market of another server; a :class:`feeds.feed.Feed`.

    It comes back by itself when the connection is lost, with growing delays.

    Attributes:
        name: Of the server, "relay-127.0.0.1-8765": it may become part of a file's name.
        url: Of the server.
        mode: "relay".
        instruments: The server's.
    """

    mode = "relay"

    def __init__(self, options: RelayOptions, instruments: Instruments) -> None:
        self.name = "-".join(["relay", *re.findall(r"[\w.]+", urlsplit(options.url).netloc.rpartition("@")[2])])
        self.url = options.url
        self.instruments = instruments
        self._ids = {instrument.symbol: i for i, instrument in enumerate(instruments)}
        self._counts = dict.fromkeys(("messages", "rows", "connections", "holes", "missing", "mismatches"), 0)
        self._connected = self._native = False
        self._seq, self._ts = 1, 0
        self._forget()

    def _forget(self) -> None:
        """Begin anew: nothing is known of any stream."""
        self._epoch: str | None = None
        self._positions: dict[str, dict[str, int]] = {channel: {} for channel in CHANNELS}
        self._gaps: set[tuple[str, str]] = set()  # streams whose next row follows a gap
        self._books = [Book() for _ in self.instruments]
        self._ask_again: dict[str, None] = {}  # symbols whose book is to be asked for
        self._asked_at: dict[str, float] = {}

    def statistics(self) -> RelayStatistics:
        """Return what was received so far."""
        return RelayStatistics(connected=self._connected, native=self._native, **self._counts)

    async def run(self, out: trio.abc.SendChannel[Event]) -> None:
        """Relay until the server's feed has ended.

        Raises:
            FeedError: The server says that coming back is of no use, lists other pairs than before, or sends numbers
                that its own precisions cannot say.
        """
        self._forget()
        await out.send(self._marker("epoch", f"{self.url} is relayed"))

        async def visit() -> None:
            async with open_connection(self.url, subprotocols=(NATIVE,)) as connection:
                try:
                    await self._follow(connection, out)
                finally:
                    self._connected = False

        async def lost(why: str, delay: float) -> None:
            logger.warning("relay: %s; trying again in %.1f s", why, delay)

        try:
            await persist(visit, lost)
        except ConnectionLost as error:
            raise FeedError(str(error)) from None
        await out.send(self._marker("end", "the server's feed has ended"))

    def _marker(self, kind: Any, reason: str) -> Marker:  # noqa: ANN401 - a Literal
        return Marker(kind=kind, ts=self._now(), reason=reason)

    def _now(self) -> int:
        """Return the wall time, which never runs back here; ns."""
        self._ts = max(self._ts, clock.wall_ns())
        return self._ts

    async def _follow(self, connection: Connection, out: trio.abc.SendChannel[Event]) -> None:
        """Subscribe, and pass on what comes until the server's feed has ended."""
        if list(instruments_of(await connection.pairs(), list(self._ids))) != list(self.instruments):
            raise FeedError(f"{self.url} says other things of its pairs than before; start again")
        self._native = connection.subprotocol == NATIVE
        resumed = [await self._subscribe(connection, channel, out) for channel in CHANNELS]
        if self._counts["connections"] and not any(resumed):
            await out.send(self._marker("gap", "the connection was lost"))
        self._counts["connections"] += 1
        self._connected = True
        ended = False
        while True:
            message = await connection.receive_in_time()
            if message.get("channel") == "heartbeat":
                with picking_apart(self.url):
                    before, ended = ended, _says_ended(message)
                if before and ended:  # and nothing came between the two
                    return
                continue
            for event in self._understood(message):
                ended = False
                await out.send(event)
            await self._resync(connection)

    # Streams

    async def _subscribe(self, connection: Connection, channel: str, out: trio.abc.SendChannel[Event]) -> bool:
        """Subscribe to every symbol; return whether a stream goes on without a hole."""
        resumed = False
        params, known = dict(CHANNELS[channel]), dict(self._positions[channel])
        self._ask_again.clear()  # what is not resumed begins with a snapshot
        if self._native:
            params |= EVERY_EVENT[channel]
            if self._epoch is not None and known:
                params["resume"] = {"epoch": self._epoch, "after": known}
        for reply in await connection.subscribe(channel, list(self._ids), **params):
            if not reply.get("success"):
                raise FeedError(f"{self.url} refused {channel}: {reply.get('error')}")
            with picking_apart(self.url):
                granted = msgspec.convert(reply, _Granted)
            symbol, ext = granted.result.symbol, granted.ext
            if ext is None:
                if self._counts["connections"]:
                    self._hole(channel, symbol, 0)
                continue
            if (marker := self._begun(ext.epoch)) is not None:
                await out.send(marker)
            resumed = resumed or ext.recovered
            if not params.get("snapshot", True):  # else the snapshot says where the stream stands
                self._positions[channel].setdefault(symbol, ext.head)
        return resumed

    def _begun(self, epoch: str) -> Marker | None:
        """Note the server's numbering; return a marker if it is another than before."""
        before, self._epoch = self._epoch, epoch
        if before in (None, epoch):
            return None
        self._forget()
        self._epoch = epoch
        return self._marker("epoch", "the server began a new epoch")

    def _hole(self, channel: str, symbol: str, missing: int) -> None:
        self._counts["holes"] += 1
        self._counts["missing"] += missing
        self._gaps.add((channel, symbol))

    def _account(self, channel: str, symbol: str, pos: Message, rows: int) -> None:
        """Compare the positions of a message with so many rows with what is known of its stream."""
        known = self._positions[channel]
        last, known[symbol] = known.get(symbol), pos["last"]
        if last is None:
            return
        missing = pos["dropped"]
        if pos["prev"] is None:  # a snapshot: of a book or ticker the state, of trades the last ones
            missing += max(0, pos["last"] - last - (rows if channel == "trade" else 0))
        else:
            missing += abs(pos["prev"] - last)
            missing += pos["conflated"] if channel != "book" else 0  # of a book: changes that do not show
        if missing:
            self._hole(channel, symbol, missing)
            if channel == "book" and pos["prev"] is not None:
                self._ask_again[symbol] = None

    async def _resync(self, connection: Connection) -> None:
        """Ask for a snapshot of the books that are not right."""
        now = trio.current_time()
        due = [symbol for symbol in self._ask_again if now - self._asked_at.get(symbol, -RESYNC_S) >= RESYNC_S]
        due = next(portions(due), [])  # the others with the next message
        for symbol in due:
            del self._ask_again[symbol]
            self._asked_at[symbol] = now
        wish = {"channel": "book", "symbol": due, "depth": DEPTH}
        if due and self._native:
            await connection.request("resync", {**wish, **EVERY_EVENT["book"]})
        elif due:
            await connection.request("unsubscribe", wish)
            await connection.subscribe("book", due, depth=DEPTH)

    # Messages

    def _understood(self, message: Message) -> Iterable[Event]:
        """Return the same as :meth:`events`; what cannot be understood is missing, of whatever streams it was."""
        try:
            with picking_apart(self.url):
                return self.events(message)
        except ConnectionLost:
            self._forget()  # so nothing is resumed behind it, and a gap is told
            raise

    def events(self, message: Message) -> Iterable[Event]:
        """Return what a message says: a marker if a new epoch begins with it, and a batch if it has rows."""
        channel = message.get("channel")
        if channel not in CHANNELS or "data" not in message:
            return []
        self._counts["messages"] += 1
        events: list[Event] = []
        rows: list[tuple[int, _Row]] = []
        pos = message.get("pos")  # of all rows, which are then of one symbol
        for row in message["data"]:
            symbol, pos = row["symbol"], row.get("pos", pos)
            if symbol not in self._ids:
                continue
            if pos is not None:
                if (marker := self._begun(pos["epoch"])) is not None:
                    events.append(marker)
                self._account(channel, symbol, pos, len(message["data"]))
                pos = None
            rows += [(self._ids[symbol], made) for made in self._rows(channel, row, message["type"] == "snapshot")]
        if rows:
            events.append(self._batch(channel, rows))
        return events

    def _rows(self, channel: str, row: Message, snapshot: bool) -> list[_Row]:
        symbol = row["symbol"]
        if channel == "book" and not (snapshot or row.get("bids") or row.get("asks")):
            return []
        instrument = self._ids[symbol]
        flags = GAP if (channel, symbol) in self._gaps else 0
        self._gaps.discard((channel, symbol))
        flags |= SNAPSHOT if snapshot else 0
        ts_event = _time_ns(row.get("timestamp"))
        if channel == "book":
            return self._book_rows(instrument, row, flags, ts_event)
        make = self._trade if channel == "trade" else self._quote
        return [_Row(ts_event, flags | LAST, make(self.instruments[instrument], row))]

    def _trade(self, instrument: Instrument, row: Message) -> tuple[int, ...]:
        price = units(row["price"], instrument.price_precision)
        qty = units(row["qty"], instrument.qty_precision)
        return price, qty, _SIDES.get(row["side"], NO_SIDE), row["trade_id"]

    def _quote(self, instrument: Instrument, row: Message) -> tuple[int, ...]:
        values: list[int] = []
        for price, qty in (("bid", "bid_qty"), ("ask", "ask_qty")):
            empty = row[price] is None
            values.append(MISSING if empty else units(row[price], instrument.price_precision))
            values.append(0 if empty else units(row[qty], instrument.qty_precision))
        return tuple(values)

    def _book_rows(self, instrument: int, row: Message, flags: int, ts_event: int) -> list[_Row]:
        """Return the rows of a change of a book, and compare the book after it with the server's checksum."""
        listed, book = self.instruments[instrument], self._books[instrument]
        values: list[tuple[int, ...]] = []
        if flags & SNAPSHOT:
            book.clear()
            values.append((CLEAR, NO_SIDE, MISSING, 0, 0))
        for side, levels in ((BUY, row.get("bids", ())), (SELL, row.get("asks", ()))):
            for level in levels:
                price = units(level["price"], listed.price_precision)
                qty = units(level["qty"], listed.qty_precision)
                book.set_level(side, price, qty)
                values.append((SET, side, price, qty, 0))
            values += _cut_off(book, side)
        if row.get("checksum", 0) != book.checksum():
            self._counts["mismatches"] += 1
            self._hole("book", listed.symbol, 0)
            self._ask_again[listed.symbol] = None
        rows = [_Row(ts_event, flags & ~GAP, value) for value in values]
        rows[0] = rows[0]._replace(flags=flags)
        rows[-1] = rows[-1]._replace(flags=rows[-1].flags | LAST)
        return rows

    def _batch(self, channel: str, rows: list[tuple[int, _Row]]) -> Batch:
        ts, n = self._now(), len(rows)
        shared = {
            "ts_recv": np.full(n, ts),
            "ts_event": np.array([row.ts_event for _, row in rows], np.int64),
            "seq": np.arange(self._seq, self._seq + n),
            "instrument": np.array([instrument for instrument, _ in rows], np.int32),
            "flags": np.array([row.flags for _, row in rows], np.uint8),
        }
        self._seq += n
        self._counts["rows"] += n
        values = [row.values for _, row in rows]
        if channel == "trade":
            return Batch(ts=ts, trades=_table(Trades, shared, values))
        if channel == "ticker":
            return Batch(ts=ts, quotes=_table(Quotes, shared, values))
        return Batch(ts=ts, levels=_table(Levels, shared, values))


def _table(kind: type[TableT], shared: dict[str, Any], values: list[tuple[int, ...]]) -> TableT:
    own = list(kind.DTYPES.items())[len(Table.DTYPES) :]
    columns = zip(own, zip(*values, strict=True), strict=True)
    return kind(**shared, **{name: np.array(column, dtype) for (name, dtype), column in columns})


def _cut_off(book: Book, side: int) -> list[tuple[int, ...]]:
    """Take away the levels behind the depth, which a Kraken server no longer speaks of, and return rows that say so."""
    if len(book.side(side)) <= DEPTH:
        return []
    behind = book.top(side, len(book.side(side)))[DEPTH:]
    for price, _ in behind:
        book.set_level(side, price, 0)
    return [(SET, side, price, 0, 0) for price, _ in behind]


def _says_ended(heartbeat: Message) -> bool:
    rows = heartbeat.get("data") or []
    return bool(rows) and all(row.get("state") == "ended" for row in rows)
