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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.book import BookEvent
from feeds.records import I32, I64, Batch
from ticker.binary import RecordCodec
from ticker.codec import RowCodec
from ticker.history import Afterwards, History
from ticker.listings import Listings
from ticker.topics.ring import Ring
from ticker.topics.wording import Row, Rows, wording

Mode = Literal["merge", "batch", "raw"]
OnSlow = Literal["conflate", "drop_oldest", "disconnect"]

#: A slow subscriber is told in pieces of about this size, so that its backlog stays small.
PIECE_BYTES: Final = 256 * 1024


class Mark(NamedTuple):
    """A point of a stream up to which somebody knows it.

    Attributes:
        position: Number of the last event known.
        epoch: The numbering that it is of.
        state: What else is needed to go on from there: of a book its :class:`BookView`.
        owed: Whether every event after it is owed, whatever becomes of slow subscribers: it came back for them.
    """

    position: int
    epoch: str
    state: Any = None
    owed: bool = False


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
        packed: Whether messages are binary records instead of JSON.
        deflated: Whether messages are compressed.
    """

    channel: str
    variant: str | int = ""
    interval_ms: int = 0
    mode: Mode = "merge"
    native: bool = False
    quoted: bool = False
    packed: bool = False
    deflated: bool = False


#: How many events, how many of them rows, and how many lost.
Counts = tuple[int, int, int]


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

    @property
    def counts(self) -> Counts:
        """Events, rows and dropped."""
        return self[1:]


EMPTY: Final = Piece(b"", 0, 0)


def joined(pieces: Sequence[Piece]) -> Piece:
    """Return several pieces as one."""
    data = b"".join([piece.data for piece in pieces])
    return Piece(data, sum([p.events for p in pieces]), sum([p.rows for p in pieces]), sum([p.dropped for p in pieces]))


class Flush:
    """What a topic has to tell since its last flush.

    Attributes:
        pieces: Whole frames by listing.
        before: By listing: the mark of a subscriber that does not get them; an int stands for a plain position.
        counts: Events, rows and dropped of each piece, in the order of ``pieces``.
    """

    __slots__ = ("before", "counts", "pieces")

    def __init__(self) -> None:
        self.pieces: dict[int, bytes] = {}
        self.before: dict[int, Mark | int | None] = {}
        self.counts: list[Counts] = []

    def add(self, listing: int, before: Mark | int | None, piece: Piece) -> None:
        """Add what there is to tell about a listing."""
        self.before[listing] = before
        self.pieces[listing] = piece.data
        self.counts.append(piece.counts)

    def counts_of(self, listings: frozenset[int]) -> Counts:
        """Return the sum of the counts of some listings."""
        told = zip(self.pieces, self.counts, strict=True)
        concerned = [counts for listing, counts in told if listing in listings]
        return sum([c[0] for c in concerned]), sum([c[1] for c in concerned]), sum([c[2] for c in concerned])


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
        self._codecs: Sequence[RowCodec | RecordCodec] = (
            listings.record_codecs if key.packed else listings.quoted_codecs if key.quoted else listings.codecs
        )
        self._wording = wording(key, history, listings)
        self._position = position
        self._told = np.zeros(len(history.instruments), np.int64)
        self._seen = np.zeros(len(history.instruments), np.int64)  # mode batch, raw: entered as rows
        self._mask = np.zeros(len(history.instruments), np.bool_)
        #: Events, rows and dropped of everything flushed, by listing. Lists: with a single event, numpy costs 40 µs.
        self._counts = [0] * len(listings), [0] * len(listings), [0] * len(listings)
        self._interest: Counter[int] = Counter()
        self._wanted: dict[int, list[int]] = defaultdict(list)  # listings of interest by instrument
        self._every_event = key.mode != "merge"
        self._rows: dict[int, list[tuple[int, Row]]] = {}  # mode batch, raw: events not yet told, by listing
        self._ring: dict[int, Ring[Row]] = {}  # and those told

    # Interest

    @property
    def wanted(self) -> bool:
        """Whether anybody wants anything of it."""
        return bool(self._interest)

    @property
    def resumable(self) -> bool:
        """Whether who comes back later can be told every event from what this topic itself keeps."""
        return self.key.native and self._every_event

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
                if donor is not None and instrument in fresh:
                    self._adopt(donor, listing, instrument)
            if donor is not None:
                self._keep_older(donor, listing)

    def _adopt(self, donor: Topic, listing: int, instrument: int) -> None:
        """Go on with a listing where another topic stands."""
        self._told[instrument] = donor._told[instrument]
        if listing in donor._rows:
            self._rows[listing] = list(donor._rows[listing])
        self.dirty = True

    def _keep_older(self, donor: Topic, listing: int) -> None:
        """Keep what another topic has from before the oldest event here, for who comes from there."""
        own, theirs = self._ring.get(listing), donor._ring.get(listing)
        known = [*(theirs.after(0) if theirs else ()), *donor._rows.get(listing, ())]
        older = [event for event in known if event[0] <= self.oldest(listing)]
        if older:
            self._ring[listing] = self._new_ring()
            self._ring[listing].extend([*older, *(own.after(0) if own else ())])

    def _new_ring(self) -> Ring[Row]:
        options = self._history.options
        return Ring(options.event_rows, options.event_bytes)

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

    def _listing_unwanted(self, listing: int) -> None:  # noqa: B027
        """Nobody wants this name any more."""

    # Events

    def book_changed(self, event: BookEvent) -> None:  # noqa: B027 - only books care
        """A book shows the state after ``event``."""

    @abstractmethod
    def applied(self, batch: Batch) -> None:
        """History has taken in ``batch``; set ``dirty`` if that concerns this topic."""

    def applied_each(self, batch: Batch, afterwards: Afterwards) -> None:
        """The same, with what held after every single event of the batch for those who tell it."""
        self.applied(batch)

    def _enter(self, listing: int, position: int, row: Row) -> None:
        """Keep an event as a row until the next flush."""
        self._rows.setdefault(listing, []).append((position, row))
        self.dirty = True

    def _enter_each(self, ids: I32, seq: I64, rows_of: Callable[[list[int], I64], list[Row]]) -> None:
        """Keep events as rows until the next flush; what is kept is the same as with :meth:`_enter` for each.

        Args:
            ids: Instruments that somebody wants, shape ``(m,)``: ordered, of each one the last of its events.
            seq: Place on the tape of each event, shape ``(m,)``.
            rows_of: Makes rows, given a listing for each and which of the events it is.
        """
        starts = np.flatnonzero(np.diff(ids, prepend=-1))
        stops = np.append(starts[1:], len(ids))
        stretches: list[tuple[int, range]] = []  # listing and events
        for k in np.argsort(seq[starts]).tolist():  # listings are told in the order of their first events
            instrument, events = int(ids[starts[k]]), range(int(starts[k]), int(stops[k]))
            self._seen[instrument] = self._position[instrument]
            stretches += [(listing, events) for listing in self._wanted[instrument]]
        listings = [listing for listing, events in stretches for _ in events]
        rows = iter(rows_of(listings, np.array([event for _, events in stretches for event in events], np.int64)))
        for listing, events in stretches:
            last = int(self._seen[self._listings.instrument_of[listing]])
            positions = range(last + 1 - len(events), last + 1)
            self._rows.setdefault(listing, []).extend(zip(positions, islice(rows, len(events)), strict=True))
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
        flush = Flush()
        if self._every_event:
            self._collect_rows(flush)
        else:
            self._collect_state(flush)
        events, rows, dropped = self._counts
        for listing, (more_events, more_rows, more_dropped) in zip(flush.pieces, flush.counts, strict=True):
            events[listing] += more_events
            rows[listing] += more_rows
            dropped[listing] += more_dropped
        return flush

    def counts_of(self, listings: Sequence[int]) -> Counts:
        """Return what became of the events of some listings in all flushes so far."""
        events, rows, dropped = self._counts
        return sum([events[k] for k in listings]), sum([rows[k] for k in listings]), sum([dropped[k] for k in listings])

    @abstractmethod
    def _collect_state(self, flush: Flush) -> None:
        """Fill in one piece for every listing whose state has changed, and move ``_told`` on."""

    def _collect_rows(self, flush: Flush) -> None:
        """Fill in the rows that wait, and move ``_told`` on to the last of them."""
        before = {listing: self.mark(listing) for listing in self._rows}
        for listing, rows in self._rows.items():
            flush.add(listing, before[listing], self._piece_of_rows(listing, before[listing].position, rows))
            ring = self._ring.get(listing)
            if ring is None:
                ring = self._ring[listing] = self._new_ring()
            ring.extend(rows)
        for listing, rows in self._rows.items():
            self._tell(self._listings.instrument_of[listing], rows[-1][0])
        self._rows = {}

    def _tell(self, instrument: int, position: int) -> None:
        """Note that everybody in step knows an instrument up to a position."""
        self._told[instrument] = position

    def before(self, flush: Flush, listing: int) -> Mark | None:
        """Return the mark of a subscriber that does not get a flush."""
        mark = flush.before[listing]
        return self._at(mark) if isinstance(mark, int) else mark

    def _at(self, position: int, state: Any = None) -> Mark:  # noqa: ANN401 - the topic's own
        return Mark(position, self._history.epoch, state)

    def mark(self, listing: int) -> Mark:
        """Return the mark of a subscriber that knows everything collected so far."""
        return self._at(int(self._told[self._listings.instrument_of[listing]]))

    def now(self, listing: int) -> Mark:
        """Return the mark of everything that has happened, told or not."""
        return self._at(int(self._position[self._listings.instrument_of[listing]]))

    def enclosed(self, data: bytes) -> bytes:
        """Return what is sent for the joined data of some pieces."""
        return self._wording.enclosed(data)

    def instruments(self, listings: Sequence[int]) -> I32:
        """Return the instruments of some listings."""
        return np.array([self._listings.instrument_of[listing] for listing in listings], np.int32)

    def _listings_of(self, moved: npt.NDArray[np.signedinteger]) -> list[int]:
        """Return the listings of instruments that somebody wants; an instrument may go by several names."""
        return [listing for i in moved.tolist() for listing in self._wanted[i]]

    def told(self, instruments: I32) -> int:
        """Return the sum of the positions up to which some instruments were told."""
        return int(self._told[instruments].sum())

    def happened(self, instruments: I32) -> int:
        """Return the sum of the positions up to which something has happened to them."""
        return int(self._position[instruments].sum())

    def oldest(self, listing: int) -> int:
        """Return the position from which on a returning subscriber can be told every event."""
        ring = self._ring.get(listing)
        return ring.oldest if ring is not None else self.mark(listing).position

    def resumed(self, listing: int, after: int) -> Mark | None:
        """Return the mark of a subscriber that says it knows a stream up to ``after``; None if that is of no use."""
        told, now = self.mark(listing), self.now(listing)
        for known in (told, now):
            if after == known.position:
                return known
        if not 0 <= after < now.position or (self._every_event and after < self.oldest(listing)):
            return None
        mark = self._mark_at(listing, after)
        return mark if mark is None else mark._replace(owed=self._every_event)

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
        owed = mark.owed and mark.position >= self.oldest(listing)
        if self._every_event and (owed or on_slow != "conflate"):
            return self._missed_rows(listing, mark.position, on_slow), told
        return self._merged(listing, mark, told), told

    def _present(self, listing: int) -> Mark:
        """Return the mark up to which somebody who is behind is told."""
        return self.mark(listing)

    def _missed_rows(self, listing: int, after: int, on_slow: OnSlow) -> Piece:
        """Return every row after a position that is still there."""
        dropped = max(0, self.oldest(listing) - after)
        if dropped and on_slow == "disconnect":
            raise LostError(f"{dropped} events of {self._listings.names[listing]} behind what is kept")
        return self._rows_since(listing, after, dropped)

    def _rows_since(self, listing: int, after: int, dropped: int) -> Piece:
        return self._piece_of_rows(listing, after, self._rows_after(listing, after), dropped)

    def _rows_after(self, listing: int, after: int) -> Rows:
        ring = self._ring.get(listing)
        return ring.after(after) if ring is not None else []

    @abstractmethod
    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        """Return the one message that leads from a mark to what was told."""

    @abstractmethod
    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        """Return the present state as a snapshot, nothing if nothing is known yet, and the mark after it."""

    # How it is said

    def _piece_of_rows(self, listing: int, after: int, rows: Rows, dropped: int = 0) -> Piece:
        return self._say(listing, after, rows, dropped) if rows else EMPTY

    def _say(self, listing: int, prev: int | None, rows: Rows, dropped: int = 0) -> Piece:
        """Return rows of a listing as a piece; ``prev`` is None for a snapshot."""
        data = self._wording.say(listing, prev, rows, dropped)
        return Piece(data, 0, 0) if prev is None else Piece(data, rows[-1][0] - prev, len(rows), dropped)
