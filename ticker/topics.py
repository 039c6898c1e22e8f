"""What can be subscribed to: one topic per channel and parameters, encoded once for all its subscribers.

A topic turns changes of the market into frames and knows up to where it has told them. Per listing that point is a
*mark*: a position for ``ticker``, a view of the book for ``book``, an index of the ring for ``trade``, the begin of a
candle for ``ohlc``. From a mark alone a topic can tell a subscriber everything new in one go (:meth:`Topic.since`);
so a slow subscriber costs its marks and no queue, and a newcomer is one whose mark is :data:`NOTHING`.

Topics must not know sessions or sockets, and are entirely sync.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

import msgspec
import numpy as np

from feeds.analytics import Candles
from feeds.book import BookEvent, checksum
from feeds.records import BUY, MISSING, SELL, Batch
from ticker.codec import rfc3339
from ticker.history import History, prints
from ticker.listings import Listings

#: The mark of a subscriber that was told nothing yet.
NOTHING: Final = None

Mark = Any

#: A slow subscriber is told in pieces of about this size, so that its backlog stays small.
PIECE_BYTES: Final = 256 * 1024


class TopicKey(msgspec.Struct, frozen=True):
    """What makes subscribers want the same thing.

    Attributes:
        channel: ``ticker``, ``trade``, ``book`` or ``ohlc``.
        variant: ticker: ``trades`` or ``bbo``; book: depth; ohlc: minutes; trade: empty.
        interval_ms: At most one flush in this time; 0: every event.
    """

    channel: str
    variant: str | int = ""
    interval_ms: int = 0


class Flush(msgspec.Struct, frozen=True):
    """What a topic has to tell since its last flush.

    Attributes:
        frames: By listing: whole WebSocket frames, joined.
        before: By listing: the mark of a subscriber that does not get them.
    """

    frames: dict[int, bytes]
    before: dict[int, Mark]


class LostError(Exception):
    """A lossless topic no longer has what a subscriber missed."""


class Topic(ABC):
    """One channel with one set of parameters.

    Attributes:
        key: What it is.
        dirty: Whether there is something to flush.
    """

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        self.key = key
        self.dirty = False
        self._history = history
        self._listings = listings
        self._interest: Counter[int] = Counter()
        self._wanted: dict[int, list[int]] = defaultdict(list)  # listings of interest by instrument

    def acquire(self, listings: Iterable[int]) -> None:
        """Count subscribers in; only listings that somebody wants are encoded."""
        for listing in listings:
            self._interest[listing] += 1
            if self._interest[listing] == 1:
                self._wanted[self._listings.instrument_of[listing]].append(listing)
                self._first_wanted(listing)

    def release(self, listings: Iterable[int]) -> None:
        """Count subscribers out."""
        for listing in listings:
            self._interest[listing] -= 1
            if not self._interest[listing]:
                del self._interest[listing]
                instrument = self._listings.instrument_of[listing]
                self._wanted[instrument].remove(listing)
                if not self._wanted[instrument]:
                    del self._wanted[instrument]
                self._last_unwanted(listing)

    # Hooks that not every topic needs.

    def _first_wanted(self, listing: int) -> None:  # noqa: B027
        """A listing has its first subscriber, who has seen nothing yet."""

    def _last_unwanted(self, listing: int) -> None:  # noqa: B027
        """A listing has no subscribers any more."""

    def book_changed(self, event: BookEvent) -> None:  # noqa: B027
        """A book shows the state after ``event``."""

    @abstractmethod
    def applied(self, batch: Batch) -> None:
        """History has taken in ``batch``; set ``dirty`` if that concerns this topic."""

    @abstractmethod
    def collect(self) -> Flush:
        """Return what is new since the last call; from then on everybody is taken to know it."""

    @abstractmethod
    def mark(self, listing: int) -> Mark:
        """Return the mark of a subscriber that knows everything collected so far."""

    @abstractmethod
    def since(self, listing: int, mark: Mark) -> bytes:
        """Return frames from a mark to what was last collected; from :data:`NOTHING`, a snapshot."""

    def catch_up(self, marks: dict[int, Mark]) -> tuple[bytes, dict[int, Mark]]:
        """Return the next piece of what a subscriber with these marks was not told.

        Returns:
            Frames, about :data:`PIECE_BYTES` at most, and the marks after them; no marks: it knows everything that
            was collected.

        Raises:
            LostError: The topic is lossless and has forgotten part of it.
        """
        parts: list[bytes] = []
        size = 0
        rest = dict(marks)
        for listing, mark in marks.items():
            if size > PIECE_BYTES:
                return b"".join(parts), rest
            parts.append(self.since(listing, mark))
            size += len(parts[-1])
            del rest[listing]  # behind the others, so that the next piece begins with them
            rest[listing] = self.mark(listing)
        return b"".join(parts), {}

    def reset(self) -> None:
        """A new epoch has begun: every subscriber is told everything anew, as a snapshot."""
        self.dirty = False


class TickerTopic(Topic):
    """Latest price, best bid and offer, and 24-hour statistics; the newest value stands for all before it."""

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        super().__init__(key, history, listings)
        self._position = history.quote_position if key.variant == "bbo" else history.trade_position
        self._sent = np.zeros(len(history.instruments), np.int64)
        self._mask = np.zeros(len(history.instruments), np.bool_)
        self._every_event = key.interval_ms == 0
        self._pending: dict[int, bytes] = {}
        self._before: dict[int, Mark] = {}
        self._latest: dict[int, bytes] = {}

    def _first_wanted(self, listing: int) -> None:
        instrument = self._listings.instrument_of[listing]
        if not self._mask[instrument]:
            self._mask[instrument] = True
            self._sent[instrument] = self._position[instrument]

    def _last_unwanted(self, listing: int) -> None:
        instrument = self._listings.instrument_of[listing]
        self._mask[instrument] = instrument in self._wanted
        for of_listing in (self._pending, self._before, self._latest):
            of_listing.pop(listing, None)

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`."""
        if self._every_event:
            self._encode()
        self.dirty = bool(self._pending) or bool(((self._position > self._sent) & self._mask).any())

    def _encode(self) -> None:
        """Encode every instrument that has moved on, once per listing."""
        ids = np.flatnonzero((self._position > self._sent) & self._mask).astype(np.int32)
        if not len(ids):
            return
        sent = self._sent[ids].tolist()
        self._sent[ids] = self._position[ids]
        codecs, wanted, pending = self._listings.codecs, self._wanted, self._pending
        for i, before, row in zip(ids.tolist(), sent, self._history.ticker_rows(ids), strict=True):
            kind, timestamp = ("update" if before else "snapshot"), rfc3339(row.ts)
            for listing in wanted[i]:
                frame = codecs[listing].ticker(kind, row.values, timestamp)
                pending[listing] = pending[listing] + frame if listing in pending else frame
                self._latest[listing] = frame
                self._before.setdefault(listing, before)

    def collect(self) -> Flush:
        """See :meth:`Topic.collect`."""
        if not self._every_event:
            self._encode()
        flush = Flush(self._pending, self._before)
        self._pending, self._before, self.dirty = {}, {}, False
        return flush

    def mark(self, listing: int) -> Mark:
        """See :meth:`Topic.mark`."""
        return int(self._sent[self._listings.instrument_of[listing]])

    def since(self, listing: int, mark: Mark) -> bytes:
        """See :meth:`Topic.since`."""
        if mark is NOTHING:
            return self._snapshot(listing)
        if mark == self.mark(listing):
            return b""
        return self._latest.get(listing, b"")

    def _snapshot(self, listing: int) -> bytes:
        instrument = self._listings.instrument_of[listing]
        if not self._history.known(instrument):
            return b""
        (row,) = self._history.ticker_rows(np.array([instrument], np.int32))
        return self._listings.codecs[listing].ticker("snapshot", row.values, rfc3339(row.ts))

    def reset(self) -> None:
        """See :meth:`Topic.reset`."""
        super().reset()
        self._sent[:] = 0
        self._pending, self._before, self._latest = {}, {}, {}


class TradeTopic(Topic):
    """Every trade, in order. Lossless: who falls behind further than the ring is cut off, not left with a hole.

    The ring is bounded by bytes; its default holds some 200,000 trades of one listing.
    """

    RING_BYTES = 32 * 1024 * 1024

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        super().__init__(key, history, listings)
        self._pending: dict[int, list[bytes]] = {}
        self._ring: deque[dict[int, bytes]] = deque()
        self._ring_bytes = 0
        self._head = 0  # index of the next flush

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`."""
        if not self._wanted or not len(batch.trades):
            return
        rows: dict[int, list[tuple[int, int, int, int, int]]] = {}
        for i, *rest in prints(batch.trades):
            if i in self._wanted:
                rows.setdefault(i, []).append(tuple(rest))  # type: ignore[arg-type]
        for i, of_instrument in rows.items():
            for listing in self._wanted[i]:
                frame = self._listings.codecs[listing].trades("update", of_instrument)
                self._pending.setdefault(listing, []).append(frame)
        self.dirty = bool(self._pending)

    def collect(self) -> Flush:
        """See :meth:`Topic.collect`."""
        frames = {listing: b"".join(parts) for listing, parts in self._pending.items()}
        flush = Flush(frames, dict.fromkeys(frames, self._head))
        self._pending, self.dirty = {}, False
        self._ring.append(frames)
        self._ring_bytes += sum(map(len, frames.values()))
        self._head += 1
        while self._ring_bytes > self.RING_BYTES:
            self._ring_bytes -= sum(map(len, self._ring.popleft().values()))
        return flush

    def mark(self, listing: int) -> Mark:
        """See :meth:`Topic.mark`."""
        return self._head

    def since(self, listing: int, mark: Mark) -> bytes:
        """See :meth:`Topic.since`."""
        if mark is NOTHING:
            return self._snapshot(listing)
        return b"".join([frames.get(listing, b"") for frames in self._flushes(mark)])

    def catch_up(self, marks: dict[int, Mark]) -> tuple[bytes, dict[int, Mark]]:
        """See :meth:`Topic.catch_up`; goes through the ring once for all listings."""
        parts = [self._snapshot(listing) for listing, mark in marks.items() if mark is NOTHING]
        known = {listing: self._head if mark is NOTHING else mark for listing, mark in marks.items()}
        start = min(known.values())
        size = sum(map(len, parts))
        for index, frames in enumerate(self._flushes(start), start):
            if size > PIECE_BYTES:
                return b"".join(parts), {listing: max(mark, index) for listing, mark in known.items()}
            missed = [frame for listing, frame in frames.items() if known.get(listing, self._head) <= index]
            size += sum(map(len, missed))
            parts += missed
        return b"".join(parts), {}

    def _flushes(self, start: int) -> Iterator[dict[int, bytes]]:
        """Return the flushes from index ``start`` on."""
        first = self._head - len(self._ring)
        if start < first:
            raise LostError(f"more than {self.RING_BYTES} bytes of trades behind")
        return islice(self._ring, start - first, None)

    def _snapshot(self, listing: int) -> bytes:
        rows = self._history.prints(self._listings.instrument_of[listing])
        return self._listings.codecs[listing].trades("snapshot", rows) if rows else b""

    def reset(self) -> None:
        """See :meth:`Topic.reset`. What was traded in the last epoch stays owed to the slow."""
        self.dirty = bool(self._pending)


class BookView(msgspec.Struct, frozen=True):
    """The best levels of a book at one moment, never changed.

    Attributes:
        bids: Quantity by price, best first.
        asks: Quantity by price, best first.
        checksum: Kraken's CRC32 of the ten best levels of each side.
        ts: int ns UTC.
    """

    bids: dict[int, int]
    asks: dict[int, int]
    checksum: int
    ts: int


class BookTopic(Topic):
    """The best levels of order books: a snapshot, then what changed with each event of the venue."""

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        super().__init__(key, history, listings)
        self._depth = int(key.variant)
        self._views: dict[int, BookView] = {}  # by instrument: after the last event
        self._told: dict[int, BookView] = {}  # by instrument: after the last flush
        self._pending: dict[int, list[bytes]] = {}

    def _first_wanted(self, listing: int) -> None:
        instrument = self._listings.instrument_of[listing]
        if instrument not in self._views and (view := self._look(instrument, self._history.ts)) is not None:
            self._views[instrument] = self._told[instrument] = view

    def _last_unwanted(self, listing: int) -> None:
        self._pending.pop(listing, None)
        instrument = self._listings.instrument_of[listing]
        if instrument not in self._wanted:
            self._views.pop(instrument, None)
            self._told.pop(instrument, None)

    def _look(self, instrument: int, ts: int) -> BookView | None:
        book = self._history.books[instrument]
        bids, asks = book.top(BUY, self._depth), book.top(SELL, self._depth)
        if not bids and not asks:
            return None
        return BookView(dict(bids), dict(asks), checksum(bids, asks), ts)

    def book_changed(self, event: BookEvent) -> None:
        """See :meth:`Topic.book_changed`."""
        if event.instrument not in self._wanted:
            return
        ts = event.ts_recv if event.ts_event == MISSING else event.ts_event
        old = self._views.get(event.instrument)
        new = self._look(event.instrument, ts) or BookView({}, {}, 0, ts)
        if old is not None and old.bids == new.bids and old.asks == new.asks:
            return
        self._views[event.instrument] = new
        for listing in self._wanted[event.instrument]:
            self._pending.setdefault(listing, []).append(self._frame(listing, old, new))
        self.dirty = True

    def _frame(self, listing: int, old: BookView | None, new: BookView) -> bytes:
        codec, timestamp = self._listings.codecs[listing], rfc3339(new.ts)
        if old is None:
            return codec.book("snapshot", new.bids.items(), new.asks.items(), new.checksum, timestamp)
        return codec.book("update", changes(old.bids, new.bids), changes(old.asks, new.asks), new.checksum, timestamp)

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`; everything was said in :meth:`book_changed`."""

    def collect(self) -> Flush:
        """See :meth:`Topic.collect`."""
        frames = {listing: b"".join(parts) for listing, parts in self._pending.items()}
        before: dict[int, Mark] = {}
        for listing in frames:
            instrument = self._listings.instrument_of[listing]
            before[listing] = self._told.get(instrument, NOTHING)
        for listing in frames:
            instrument = self._listings.instrument_of[listing]
            self._told[instrument] = self._views[instrument]
        self._pending, self.dirty = {}, False
        return Flush(frames, before)

    def mark(self, listing: int) -> Mark:
        """See :meth:`Topic.mark`."""
        return self._told.get(self._listings.instrument_of[listing], NOTHING)

    def since(self, listing: int, mark: Mark) -> bytes:
        """See :meth:`Topic.since`."""
        told: BookView | None = self.mark(listing)
        return b"" if told is None or told is mark else self._frame(listing, mark, told)

    def reset(self) -> None:
        """See :meth:`Topic.reset`."""
        super().reset()
        self._views, self._told, self._pending = {}, {}, {}


def changes(old: dict[int, int], new: dict[int, int]) -> list[tuple[int, int]]:
    """Return the levels that turn ``old`` into ``new``: removals (quantity 0), then what is set, best first."""
    removed = [(price, 0) for price in old if price not in new]
    return removed + [level for level in new.items() if old.get(level[0]) != level[1]]


class OhlcTopic(Topic):
    """Candles of one length: the running one whenever it changes, and the last word on one that closed."""

    #: How many candles a snapshot has.
    SNAPSHOT_CANDLES = 60

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        super().__init__(key, history, listings)
        self._minutes = int(key.variant)
        self._row = Candles.INTERVALS.index(self._minutes)
        self._told: dict[int, tuple[int, int]] = {}  # by instrument: (begin of the candle, trades in it)

    def _state(self, instrument: int) -> tuple[int, int] | None:
        candle = self._history.candles.current(self._row, instrument)
        return None if candle is None else (candle.begin_ns, candle.trades)

    def _first_wanted(self, listing: int) -> None:
        instrument = self._listings.instrument_of[listing]
        if instrument not in self._told and (state := self._state(instrument)) is not None:
            self._told[instrument] = state

    def _last_unwanted(self, listing: int) -> None:
        instrument = self._listings.instrument_of[listing]
        if instrument not in self._wanted:
            self._told.pop(instrument, None)

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`."""
        if not self.dirty and len(batch.trades):
            self.dirty = not self._wanted.keys().isdisjoint(batch.trades.instrument.tolist())

    def collect(self) -> Flush:
        """See :meth:`Topic.collect`."""
        frames: dict[int, bytes] = {}
        before: dict[int, Mark] = {}
        for instrument, listings in self._wanted.items():
            state, told = self._state(instrument), self._told.get(instrument, NOTHING)
            if state is None or state == told:
                continue
            for listing in listings:
                frames[listing], before[listing] = self._frame(listing, told), told
            self._told[instrument] = state
        self.dirty = False
        return Flush(frames, before)

    def _frame(self, listing: int, mark: tuple[int, int] | None) -> bytes:
        candles, instrument = self._history.candles, self._listings.instrument_of[listing]
        current = candles.current(self._row, instrument)
        if current is None:
            return b""
        closed = candles.closed(self._row, instrument, -1 if mark is NOTHING else mark[0] - 1)
        rows = [*closed[-self.SNAPSHOT_CANDLES :], current] if mark is NOTHING else [*closed, current]
        kind = "snapshot" if mark is NOTHING else "update"
        return self._listings.codecs[listing].ohlc(kind, rows, self._minutes, rfc3339(self._history.ts))

    def mark(self, listing: int) -> Mark:
        """See :meth:`Topic.mark`."""
        return self._told.get(self._listings.instrument_of[listing], NOTHING)

    def since(self, listing: int, mark: Mark) -> bytes:
        """See :meth:`Topic.since`."""
        told = self.mark(listing)
        return b"" if told is None or told == mark else self._frame(listing, mark)

    def reset(self) -> None:
        """See :meth:`Topic.reset`."""
        super().reset()
        self._told = {}


TOPICS: Final[dict[str, type[Topic]]] = {
    "ticker": TickerTopic,
    "trade": TradeTopic,
    "book": BookTopic,
    "ohlc": OhlcTopic,
}
