"""What can be subscribed to: one topic per channel and parameters, encoded once for all its subscribers.

Every stream, a channel of an instrument, numbers its source events 1, 2, 3 inside an epoch. A topic turns them into
frames and knows the position up to which it has *told* them. A :class:`Mark` is such a point: a position, and for a
book the view at it. From a mark alone a topic can tell a subscriber everything new (:meth:`Topic.catch_up`); so a slow
subscriber costs its marks and no queue, and a newcomer is one whose mark is :data:`NOTHING`.

In mode ``merge`` the newest state stands for all events before it; in ``batch`` and ``raw`` every event is a row, and
those that a subscriber missed are taken from a bounded ring. What was not sent is always accounted for: of the events
between two positions, ``n`` are rows, the others were conflated or dropped, and the native profile says how many.

Topics must not know sessions or sockets, and are entirely sync.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from feeds.analytics import Candles
from feeds.book import BookEvent, checksum
from feeds.records import BUY, I64, MISSING, SELL, Batch
from ticker.codec import RowCodec, message, rfc3339
from ticker.history import History
from ticker.listings import Listings

Mode = Literal["merge", "batch", "raw"]
OnSlow = Literal["conflate", "drop_oldest", "disconnect"]

#: A slow subscriber is told in pieces of about this size, so that its backlog stays small.
PIECE_BYTES: Final = 256 * 1024
#: Events of one listing that a topic of mode batch or raw keeps for those who fall behind.
RING_ROWS: Final = 4096


class Mark(NamedTuple):
    """A point of a stream up to which somebody knows it.

    Attributes:
        position: Number of the last event known.
        epoch: The numbering that it is of.
        state: What else is needed to go on from there: of a book its :class:`BookView`.
    """

    position: int
    epoch: str
    state: Any = None


#: The mark of a subscriber that was told nothing yet.
NOTHING: Final = None

Marks = dict[int, Mark | None]


class TopicKey(msgspec.Struct, frozen=True):
    """What makes subscribers want the same thing.

    Attributes:
        channel: ``ticker``, ``trade``, ``book`` or ``ohlc``.
        variant: ticker: ``trades`` or ``bbo``; book: depth; ohlc: minutes; trade: empty.
        interval_ms: At most one flush in this time; 0: whenever something happens.
        mode: ``merge``: the newest state; ``batch``, ``raw``: every event.
        native: Whether messages say what was left out.
        quoted: Whether numbers are strings.
    """

    channel: str
    variant: str | int = ""
    interval_ms: int = 0
    mode: Mode = "merge"
    native: bool = False
    quoted: bool = False


class Piece(NamedTuple):
    """Whole frames about one listing.

    Attributes:
        data: The frames, joined.
        events: Source events that they take the listing on by; none for a snapshot.
        rows: Those that are rows in them.
        dropped: Those that are lost for this subscriber; the others were conflated.
    """

    data: bytes
    events: int
    rows: int
    dropped: int = 0


EMPTY: Final = Piece(b"", 0, 0)


def joined(pieces: Sequence[Piece]) -> Piece:
    """Return several pieces as one."""
    data = b"".join([piece.data for piece in pieces])
    return Piece(data, sum([p.events for p in pieces]), sum([p.rows for p in pieces]), sum([p.dropped for p in pieces]))


class Flush(NamedTuple):
    """What a topic has to tell since its last flush.

    Attributes:
        pieces: By listing.
        before: By listing: the mark of a subscriber that does not get them.
    """

    pieces: dict[int, Piece]
    before: Marks


class CatchUp(NamedTuple):
    """The next part of what one subscriber was not told.

    Attributes:
        piece: Whole frames, about :data:`PIECE_BYTES` at most.
        marks: Where the subscriber stands after them.
        complete: Whether ``marks`` are where the topic itself stands, or ahead of it.
        ahead: Whether one of them is ahead: the topic has to flush before the subscriber is in step.
    """

    piece: Piece
    marks: Marks
    complete: bool
    ahead: bool


class LostError(Exception):
    """A subscriber must not lose events, and they are no longer there."""


class Topic(ABC):
    """One channel with one set of parameters.

    Attributes:
        key: What it is.
        dirty: Whether there is something to flush.
    """

    def __init__(self, key: TopicKey, history: History, listings: Listings, position: I64) -> None:
        self.key = key
        self.dirty = False
        self._history = history
        self._listings = listings
        self._codecs: Sequence[RowCodec] = listings.quoted_codecs if key.quoted else listings.codecs
        self._position = position
        self._told = np.zeros(len(history.instruments), np.int64)
        self._seen = np.zeros(len(history.instruments), np.int64)  # mode batch, raw: entered as rows
        self._mask = np.zeros(len(history.instruments), np.bool_)
        self._interest: Counter[int] = Counter()
        self._wanted: dict[int, list[int]] = defaultdict(list)  # listings of interest by instrument
        self._every_event = key.mode != "merge"
        self._rows: dict[int, list[tuple[int, str]]] = {}  # mode batch, raw: events not yet told, by listing
        self._ring: dict[int, deque[tuple[int, str]]] = {}  # and those told, with their positions

    # Interest

    def acquire(self, listings: Iterable[int], donor: Topic | None = None) -> None:
        """Count subscribers in; only listings that somebody wants are encoded.

        Args:
            listings: What they want.
            donor: The same topic with another interval, from which they come: what it still keeps of a listing that
                is new here is taken over.
        """
        fresh: set[int] = set()
        for listing in listings:
            self._interest[listing] += 1
            if self._interest[listing] == 1:
                instrument = self._listings.instrument_of[listing]
                if not self._mask[instrument]:
                    fresh.add(instrument)
                    self._mask[instrument] = True
                    self._told[instrument] = self._seen[instrument] = self._position[instrument]
                    self._first_wanted(instrument)
                self._wanted[instrument].append(listing)
                self._listing_wanted(listing, instrument)
                if donor is not None and instrument in fresh:
                    self._adopt(donor, listing, instrument)

    def _adopt(self, donor: Topic, listing: int, instrument: int) -> None:
        """Go on with a listing where another topic stands."""
        self._told[instrument] = donor._told[instrument]
        if listing in donor._rows:
            self._rows[listing] = list(donor._rows[listing])
        if listing in donor._ring:
            self._ring[listing] = donor._ring[listing].copy()
        self.dirty = True

    def release(self, listings: Iterable[int]) -> None:
        """Count subscribers out."""
        for listing in listings:
            self._interest[listing] -= 1
            if not self._interest[listing]:
                del self._interest[listing]
                instrument = self._listings.instrument_of[listing]
                self._wanted[instrument].remove(listing)
                self._rows.pop(listing, None)
                self._ring.pop(listing, None)
                self._listing_unwanted(listing)
                if not self._wanted[instrument]:
                    del self._wanted[instrument]
                    self._mask[instrument] = False
                    self._last_unwanted(instrument)

    def _first_wanted(self, instrument: int) -> None:  # noqa: B027 - not every topic keeps state
        """Somebody wants an instrument; its present state is what everybody is taken to know."""

    def _last_unwanted(self, instrument: int) -> None:  # noqa: B027
        """Nobody wants an instrument any more."""

    def _listing_wanted(self, listing: int, instrument: int) -> None:  # noqa: B027
        """Somebody wants an instrument under this name."""

    def _listing_unwanted(self, listing: int) -> None:  # noqa: B027
        """Nobody wants this name any more."""

    # Events

    def book_changed(self, event: BookEvent) -> None:  # noqa: B027 - only books care
        """A book shows the state after ``event``."""

    @abstractmethod
    def applied(self, batch: Batch) -> None:
        """History has taken in ``batch``; set ``dirty`` if that concerns this topic."""

    def _enter(self, listing: int, position: int, row: str) -> None:
        """Keep an event as a row until the next flush."""
        self._rows.setdefault(listing, []).append((position, row))
        self.dirty = True

    def reset(self) -> None:
        """A new epoch has begun: every subscriber is told everything anew, as a snapshot."""
        self.dirty = False
        self._told[:] = self._seen[:] = 0
        self._rows.clear()
        self._ring.clear()

    # What to tell

    def collect(self) -> Flush:
        """Return what is new since the last call; from then on everybody is taken to know it."""
        self.dirty = False
        flush = Flush({}, {})
        if self._every_event:
            self._collect_rows(flush)
        else:
            self._collect_state(flush)
        return flush

    @abstractmethod
    def _collect_state(self, flush: Flush) -> None:
        """Fill in one piece for every listing whose state has changed, and move ``_told`` on."""

    def _collect_rows(self, flush: Flush) -> None:
        """Fill in the rows that wait, and move ``_told`` on to the last of them."""
        before = {listing: self.mark(listing) for listing in self._rows}
        for listing, rows in self._rows.items():
            flush.before[listing] = before[listing]
            flush.pieces[listing] = self._piece_of_rows(listing, before[listing].position, rows)
            ring = self._ring.get(listing)
            if ring is None:
                ring = self._ring[listing] = deque(maxlen=RING_ROWS)
            ring.extend(rows)
        for listing, rows in self._rows.items():
            self._tell(self._listings.instrument_of[listing], rows[-1][0])
        self._rows = {}

    def _tell(self, instrument: int, position: int) -> None:
        """Note that everybody in step knows an instrument up to a position."""
        self._told[instrument] = position

    def _at(self, position: int, state: Any = None) -> Mark:  # noqa: ANN401 - the topic's own
        return Mark(position, self._history.epoch, state)

    def mark(self, listing: int) -> Mark:
        """Return the mark of a subscriber that knows everything collected so far."""
        return self._at(int(self._told[self._listings.instrument_of[listing]]))

    def told(self, listings: Iterable[int]) -> int:
        """Return the sum of the positions up to which listings were told."""
        return int(self._told[[self._listings.instrument_of[listing] for listing in listings]].sum())

    def oldest(self, listing: int) -> int:
        """Return the position from which on a returning subscriber can be told every event."""
        ring = self._ring.get(listing)
        return ring[0][0] - 1 if ring else self.mark(listing).position

    def resumed(self, listing: int, after: int) -> Mark | None:
        """Return the mark of a subscriber that says it knows a stream up to ``after``; None if that is of no use."""
        told = self.mark(listing)
        if after == told.position:
            return told
        if after > told.position or (self._every_event and after < self.oldest(listing)):
            return None
        return self._mark_at(listing, after)

    def _mark_at(self, listing: int, position: int) -> Mark | None:
        """Return the mark of a point that was told once; None if its state is not known any more."""
        return self._at(position)

    def catch_up(self, marks: Marks, on_slow: OnSlow) -> CatchUp:
        """Return the next part of what a subscriber with these marks was not told.

        Raises:
            LostError: ``on_slow`` is ``disconnect`` and part of it is gone.
        """
        parts: list[Piece] = []
        size = 0
        rest = dict(marks)
        ahead = False
        for listing, mark in marks.items():
            if size > PIECE_BYTES:
                return CatchUp(joined(parts), rest, complete=False, ahead=False)
            piece, after = self._missed(listing, mark, on_slow)
            ahead = ahead or after.position > self.mark(listing).position
            parts.append(piece)
            size += len(piece.data)
            del rest[listing]  # behind the others, so that the next part begins with them
            rest[listing] = after
        return CatchUp(joined(parts), rest, complete=True, ahead=ahead)

    def _missed(self, listing: int, mark: Mark | None, on_slow: OnSlow) -> tuple[Piece, Mark]:
        """Return the frames that lead from a mark to the present, and the mark after them."""
        if mark is NOTHING:
            return self._snapshot(listing)
        if mark.epoch != self._history.epoch:
            if self._every_event and on_slow == "disconnect":
                raise LostError(f"the end of the last epoch of {self._listings.names[listing]} is gone")
            return self._snapshot(listing)
        told = self._present(listing)
        if mark.position >= told.position:
            return EMPTY, mark
        if self._every_event and on_slow != "conflate":
            return self._missed_rows(listing, mark.position, on_slow), told
        return self._merged(listing, mark, told), told

    def _present(self, listing: int) -> Mark:
        """Return the mark up to which somebody who is behind is told."""
        return self.mark(listing)

    def _missed_rows(self, listing: int, after: int, on_slow: OnSlow) -> Piece:
        """Return every row after a position that is still there."""
        rows, oldest = self._rows_after(listing, after), self.oldest(listing)
        dropped = max(0, oldest - after)
        if dropped and on_slow == "disconnect":
            raise LostError(f"{dropped} events of {self._listings.names[listing]} behind what is kept")
        return self._piece_of_rows(listing, after, rows, dropped)

    def _rows_after(self, listing: int, after: int) -> list[tuple[int, str]]:
        return [row for row in self._ring.get(listing, ()) if row[0] > after]

    @abstractmethod
    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        """Return the one message that leads from a mark to what was told."""

    @abstractmethod
    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        """Return the present state as a snapshot, nothing if nothing is known yet, and the mark after it."""

    # How it is said

    def _piece_of_rows(self, listing: int, after: int, rows: Sequence[tuple[int, str]], dropped: int = 0) -> Piece:
        if not rows:
            return EMPTY
        return self._say("update", ",".join([row for _, row in rows]), after, rows[-1][0], len(rows), dropped)

    def _say(self, kind: str, rows: str, prev: int | None, last: int, n: int, dropped: int = 0) -> Piece:
        """Return a message about one listing; ``prev`` is None in a snapshot."""
        pos = self._pos(prev, last, n, dropped) if self.key.native else ""
        return Piece(message(self.key.channel, kind, rows, pos=pos), 0 if prev is None else last - prev, n, dropped)

    def _pos(self, prev: int | None, last: int, n: int, dropped: int) -> str:
        before = "null" if prev is None else prev
        conflated = 0 if prev is None else last - prev - n - dropped
        return (
            f'{{"epoch":"{self._history.epoch}","prev":{before},"last":{last},"n":{n},"conflated":{conflated},'
            f'"dropped":{dropped},"window_ms":{self.key.interval_ms}}}'
        )


class TickerTopic(Topic):
    """Latest price, best bid and offer, and 24-hour statistics."""

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        position = history.quote_position if key.variant == "bbo" else history.trade_position
        super().__init__(key, history, listings, position)
        self._latest: dict[int, str] = {}  # by listing: the row that was told last

    def _adopt(self, donor: Topic, listing: int, instrument: int) -> None:
        super()._adopt(donor, listing, instrument)
        assert isinstance(donor, TickerTopic)
        if listing in donor._latest:
            self._latest[listing] = donor._latest[listing]

    def _listing_wanted(self, listing: int, instrument: int) -> None:
        if self._history.known(instrument):
            (row,) = self._history.ticker_rows(np.array([instrument], np.int32))
            self._latest[listing] = self._codecs[listing].ticker(row.values, row.ts)

    def _listing_unwanted(self, listing: int) -> None:
        self._latest.pop(listing, None)

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`."""
        known = self._seen if self._every_event else self._told
        moved = (self._position > known) & self._mask
        if not moved.any():
            return
        self.dirty = True
        if self._every_event:
            ids = np.flatnonzero(moved).astype(np.int32)
            self._seen[ids] = self._position[ids]
            positions = self._position[ids].tolist()
            for i, position, row in zip(ids.tolist(), positions, self._history.ticker_rows(ids), strict=True):
                for listing in self._wanted[i]:
                    self._enter(listing, position, self._codecs[listing].ticker(row.values, row.ts))

    def _collect_state(self, flush: Flush) -> None:
        ids = np.flatnonzero((self._position > self._told) & self._mask).astype(np.int32)
        if not len(ids):
            return
        before, now = self._told[ids].tolist(), self._position[ids].tolist()
        self._told[ids] = self._position[ids]
        codecs, wanted, latest = self._codecs, self._wanted, self._latest
        for i, prev, last, row in zip(ids.tolist(), before, now, self._history.ticker_rows(ids), strict=True):
            for listing in wanted[i]:
                text = latest[listing] = codecs[listing].ticker(row.values, row.ts)
                flush.pieces[listing] = self._update(text, prev, last)
                flush.before[listing] = self._at(prev)

    def _update(self, row: str, prev: int, last: int) -> Piece:
        """Return a message of one row; the first of an epoch is a snapshot for everybody."""
        return self._say("update", row, prev, last, 1) if prev else self._say("snapshot", row, None, last, 0)

    def _piece_of_rows(self, listing: int, after: int, rows: Sequence[tuple[int, str]], dropped: int = 0) -> Piece:
        if not rows:
            return EMPTY
        self._latest[listing] = rows[-1][1]
        if not self.key.native:
            # Clients of Kraken's tickers read the first row of a message and no other.
            return joined([self._update(row, position - 1, position) for position, row in rows])
        if after:
            return super()._piece_of_rows(listing, after, rows, dropped)
        position, row = rows[0]
        start = self._say("snapshot", row, None, position, 0)
        return joined([start, super()._piece_of_rows(listing, position, rows[1:])])

    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        return self._say("update", self._latest[listing], mark.position, told.position, 1)

    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        instrument = self._listings.instrument_of[listing]
        if not self._history.known(instrument):
            return EMPTY, self.mark(listing)
        (row,) = self._history.ticker_rows(np.array([instrument], np.int32))
        position = int(self._position[instrument])
        text = self._codecs[listing].ticker(row.values, row.ts)
        return self._say("snapshot", text, None, position, 0), self._at(position)

    def reset(self) -> None:
        """See :meth:`Topic.reset`."""
        super().reset()
        self._latest.clear()


class TradeTopic(Topic):
    """Every trade, in order; in mode ``merge`` the last one of each flush. Missed trades are the history's."""

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        super().__init__(key, history, listings, history.trade_position)

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`."""
        if not self.dirty and len(batch.trades):
            self.dirty = bool(((self._position > self._told) & self._mask).any())

    def _collect_rows(self, flush: Flush) -> None:
        self._collect_state(flush)

    def _collect_state(self, flush: Flush) -> None:
        for i in np.flatnonzero((self._position > self._told) & self._mask).tolist():
            prev = int(self._told[i])
            self._tell(i, int(self._position[i]))
            for listing in self._wanted[i]:
                flush.before[listing] = self._at(prev)
                if self._every_event:
                    flush.pieces[listing] = self._missed_rows(listing, prev, "drop_oldest")
                else:
                    flush.pieces[listing] = self._merged(listing, self._at(prev), self.mark(listing))

    def oldest(self, listing: int) -> int:
        """See :meth:`Topic.oldest`."""
        return self._history.oldest_print(self._listings.instrument_of[listing])

    def _rows_after(self, listing: int, after: int) -> list[tuple[int, str]]:
        i, trade = self._listings.instrument_of[listing], self._codecs[listing].trade
        first = max(after, self.oldest(listing))
        count = int(self._told[i]) - first
        rows = islice(self._history.prints(i, int(self._position[i]) - first), count)
        return [(position, trade(*row)) for position, row in enumerate(rows, first + 1)]

    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        ((_, row),) = self._rows_after(listing, told.position - 1)
        return self._say("update", row, mark.position, told.position, 1)

    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        i, trade = self._listings.instrument_of[listing], self._codecs[listing].trade
        mark = self._at(int(self._position[i]))
        rows = [trade(*row) for row in self._history.prints(i, self._history.SNAPSHOT_TRADES)]
        return (self._say("snapshot", ",".join(rows), None, mark.position, 0) if rows else EMPTY), mark


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
    """The best levels of order books: a snapshot, then what changed.

    Events that change nothing among these levels are conflated into the next that does.
    """

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        super().__init__(key, history, listings, history.book_position)
        self._depth = int(key.variant)
        self._views: dict[int, Mark] = {}  # by instrument: after the last event that shows
        self._told_views: dict[int, Mark] = {}  # by instrument: after the last flush

    def _first_wanted(self, instrument: int) -> None:
        view = self._look(instrument, self._history.ts)
        if view is not None:
            self._views[instrument] = self._told_views[instrument] = self._at(int(self._position[instrument]), view)

    def _last_unwanted(self, instrument: int) -> None:
        self._views.pop(instrument, None)
        self._told_views.pop(instrument, None)

    def _adopt(self, donor: Topic, listing: int, instrument: int) -> None:
        super()._adopt(donor, listing, instrument)
        assert isinstance(donor, BookTopic)
        for own, theirs in ((self._views, donor._views), (self._told_views, donor._told_views)):
            if instrument in theirs:
                own[instrument] = theirs[instrument]
            else:
                own.pop(instrument, None)

    def _look(self, instrument: int, ts: int) -> BookView | None:
        book = self._history.books[instrument]
        bids, asks = book.top(BUY, self._depth), book.top(SELL, self._depth)
        return BookView(dict(bids), dict(asks), checksum(bids, asks), ts) if bids or asks else None

    def book_changed(self, event: BookEvent) -> None:
        """See :meth:`Topic.book_changed`."""
        i = event.instrument
        if i not in self._wanted:
            return
        ts = event.ts_recv if event.ts_event == MISSING else event.ts_event
        old, new = self._views.get(i), self._look(i, ts) or BookView({}, {}, 0, ts)
        if old is not None and old.state.bids == new.bids and old.state.asks == new.asks:
            return
        mark = self._views[i] = self._at(int(self._position[i]), new)
        self.dirty = True
        if self._every_event:
            for listing in self._wanted[i]:
                self._enter(listing, mark.position, self._row(listing, old, new))

    def _row(self, listing: int, old: Mark | None, new: BookView) -> str:
        """Return the row that turns one view into another; the whole view if there was none."""
        before = BookView({}, {}, 0, 0) if old is None else old.state
        bids, asks = changes(before.bids, new.bids), changes(before.asks, new.asks)
        return self._codecs[listing].book(bids, asks, new.checksum, new.ts)

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`; everything was said in :meth:`book_changed`."""

    def _collect_state(self, flush: Flush) -> None:
        for i, mark in self._views.items():
            told = self._told_views.get(i)
            if mark is not told:
                for listing in self._wanted[i]:
                    flush.before[listing] = told
                    flush.pieces[listing] = self._lead(listing, told, mark)
        for i, mark in self._views.items():
            self._told_views[i] = mark
            self._told[i] = mark.position

    def _lead(self, listing: int, old: Mark | None, new: Mark) -> Piece:
        row = self._row(listing, old, new.state)
        if old is None:
            return self._say("snapshot", row, None, new.position, 0)
        return self._say("update", row, old.position, new.position, 1)

    def _collect_rows(self, flush: Flush) -> None:
        told = {listing: self._told_views.get(self._listings.instrument_of[listing]) for listing in self._rows}
        super()._collect_rows(flush)
        flush.before.update(told)

    def _tell(self, instrument: int, position: int) -> None:
        super()._tell(instrument, position)
        self._told_views[instrument] = self._views[instrument]

    def _piece_of_rows(self, listing: int, after: int, rows: Sequence[tuple[int, str]], dropped: int = 0) -> Piece:
        if not rows:
            return EMPTY
        first = self._listings.instrument_of[listing] not in self._told_views
        if self.key.native and not first:
            return super()._piece_of_rows(listing, after, rows, dropped)
        # One row a message, as Kraken has it; the first of an epoch is a snapshot for everybody.
        parts: list[Piece] = []
        for position, row in rows:
            start = first and not parts
            kind = "snapshot" if start else "update"
            parts.append(self._say(kind, row, None if start else after, position, 0 if start else 1))
            after = position
        return joined(parts)

    def mark(self, listing: int) -> Mark:
        """See :meth:`Topic.mark`."""
        instrument = self._listings.instrument_of[listing]
        return self._told_views.get(instrument) or self._at(int(self._told[instrument]))

    def _mark_at(self, listing: int, position: int) -> Mark | None:
        return self._at(position) if self._every_event else None

    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        return self._lead(listing, mark if mark.state is not None else None, told)

    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        told = self.mark(listing)
        return (self._lead(listing, None, told) if told.state is not None else EMPTY), told

    def reset(self) -> None:
        """See :meth:`Topic.reset`."""
        super().reset()
        self._views.clear()
        self._told_views.clear()


def changes(old: dict[int, int], new: dict[int, int]) -> list[tuple[int, int]]:
    """Return the levels that turn ``old`` into ``new``: removals (quantity 0), then what is set, best first."""
    removed = [(price, 0) for price in old if price not in new]
    return removed + [level for level in new.items() if old.get(level[0]) != level[1]]


class OhlcTopic(Topic):
    """Candles of one length: the running one whenever it changes, and the last word on one that closed."""

    #: How many candles a snapshot has.
    SNAPSHOT_CANDLES = 60

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        super().__init__(key, history, listings, history.candle_position)
        self._minutes = int(key.variant)
        self._row = Candles.INTERVALS.index(self._minutes)

    def applied(self, batch: Batch) -> None:
        """See :meth:`Topic.applied`."""
        if not len(batch.trades):
            return
        known = self._seen if self._every_event else self._told
        moved = np.flatnonzero((self._position > known) & self._mask)
        self.dirty = self.dirty or bool(len(moved))
        if self._every_event:
            for i in moved.tolist():
                position = int(self._position[i])
                self._seen[i] = position
                candle = self._history.candles.current(self._row, i)
                if candle is not None:
                    for listing in self._wanted[i]:
                        self._enter(listing, position, self._codecs[listing].candle(candle, self._minutes))

    def _collect_state(self, flush: Flush) -> None:
        for i in np.flatnonzero((self._position > self._told) & self._mask).tolist():
            prev, last = int(self._told[i]), int(self._position[i])
            self._tell(i, last)
            for listing in self._wanted[i]:
                flush.before[listing] = self._at(prev)
                flush.pieces[listing] = self._candles(listing, prev, last)

    def _candles(self, listing: int, prev: int, last: int) -> Piece:
        """Return the candles that the events after ``prev`` changed; from the start of an epoch, a snapshot."""
        i = self._listings.instrument_of[listing]
        current = self._history.candles.current(self._row, i)
        if current is None:
            return EMPTY
        rows = [current]
        position = int(self._position[i]) - current.trades  # where the oldest candle in rows began
        for closed in reversed(self._history.candles.closed(self._row, i)):
            if position <= prev or (not prev and len(rows) > self.SNAPSHOT_CANDLES):
                break
            rows.append(closed)
            position -= closed.trades
        text = ",".join([self._codecs[listing].candle(candle, self._minutes) for candle in reversed(rows)])
        return self._say("update", text, prev, last, len(rows)) if prev else self._say("snapshot", text, None, last, 0)

    def _say(self, kind: str, rows: str, prev: int | None, last: int, n: int, dropped: int = 0) -> Piece:
        pos = self._pos(prev, last, n, dropped) if self.key.native else ""
        data = message("ohlc", kind, rows, pos=pos, timestamp=rfc3339(self._history.ts))
        return Piece(data, 0 if prev is None else last - prev, n, dropped)

    def _present(self, listing: int) -> Mark:
        """Candles are shown as they are now, so who is behind gets ahead of what was flushed."""
        if self._every_event:
            return self.mark(listing)
        return self._at(int(self._position[self._listings.instrument_of[listing]]))

    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        return self._candles(listing, mark.position, told.position)

    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        mark = self._at(int(self._position[self._listings.instrument_of[listing]]))
        return self._candles(listing, 0, mark.position), mark


TOPICS: Final[dict[str, type[Any]]] = {
    "ticker": TickerTopic,
    "trade": TradeTopic,
    "book": BookTopic,
    "ohlc": OhlcTopic,
}
