"""The ``book`` channel: views of the best levels, and what leads from one to the next."""

from __future__ import annotations

from typing import Any

import msgspec

from feeds.book import BookEvent, checksum
from feeds.records import BUY, MISSING, SELL, Batch
from ticker.history import History
from ticker.listings import Listings
from ticker.topics.topic import EMPTY, Flush, Mark, Piece, Topic, TopicKey, joined
from ticker.topics.wording import Row, Rows


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
        self._whole: dict[int, int] = {}  # by instrument: position of the event whose row is the whole view

    def _first_wanted(self, instrument: int) -> None:
        view = self._look(instrument, self._history.ts)
        if view is not None:
            self._views[instrument] = self._told_views[instrument] = self._at(int(self._position[instrument]), view)

    def _last_unwanted(self, instrument: int) -> None:
        for by_instrument in (self._views, self._told_views, self._whole):
            by_instrument.pop(instrument, None)

    def _adopt(self, donor: Topic, listing: int, instrument: int) -> None:
        super()._adopt(donor, listing, instrument)
        assert isinstance(donor, BookTopic)
        pairs: tuple[tuple[dict[int, Any], dict[int, Any]], ...] = (
            (self._views, donor._views), (self._told_views, donor._told_views), (self._whole, donor._whole),
        )  # fmt: skip
        for own, theirs in pairs:
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
        if old is None:
            self._whole[i] = mark.position
        self.dirty = True
        if self._every_event:
            for listing in self._wanted[i]:
                self._enter(listing, mark.position, self._row(listing, old, new))

    def _row(self, listing: int, old: Mark | None, new: BookView) -> Row:
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
                    flush.add(listing, told, self._lead(listing, told, mark))
        for i, mark in self._views.items():
            self._told_views[i] = mark
            self._told[i] = mark.position

    def _lead(self, listing: int, old: Mark | None, new: Mark) -> Piece:
        prev = None if old is None else old.position
        return self._say(listing, prev, [(new.position, self._row(listing, old, new.state))])

    def _collect_rows(self, flush: Flush) -> None:
        told = {listing: self._told_views.get(self._listings.instrument_of[listing]) for listing in self._rows}
        super()._collect_rows(flush)
        flush.before.update(told)

    def _tell(self, instrument: int, position: int) -> None:
        super()._tell(instrument, position)
        self._told_views[instrument] = self._views[instrument]

    def _piece_of_rows(self, listing: int, after: int, rows: Rows, dropped: int = 0) -> Piece:
        if not rows:
            return EMPTY
        whole = self._whole.get(self._listings.instrument_of[listing])
        if self.key.native and rows[0][0] != whole:
            return super()._piece_of_rows(listing, after, rows, dropped)
        # One row a message, as Kraken has it; the first of an epoch is a snapshot for everybody.
        parts: list[Piece] = []
        for row in rows:
            parts.append(self._say(listing, None if row[0] == whole else after, [row]))
            after = row[0]
        return joined(parts)

    def mark(self, listing: int) -> Mark:
        """See :meth:`Topic.mark`."""
        instrument = self._listings.instrument_of[listing]
        return self._told_views.get(instrument) or self._at(int(self._told[instrument]))

    def now(self, listing: int) -> Mark:
        """See :meth:`Topic.now`; what has changed nothing among these levels has not happened."""
        return self._views.get(self._listings.instrument_of[listing]) or self.mark(listing)

    def _mark_at(self, listing: int, position: int) -> Mark | None:
        return self._at(position) if self._every_event else None

    def _merged(self, listing: int, mark: Mark, told: Mark) -> Piece:
        return self._lead(listing, mark if mark.state is not None else None, told)

    def _snapshot(self, listing: int) -> tuple[Piece, Mark]:
        now = self.now(listing)
        return (self._lead(listing, None, now) if now.state is not None else EMPTY), now

    def reset(self) -> None:
        """See :meth:`Topic.reset`."""
        super().reset()
        for by_instrument in (self._views, self._told_views, self._whole):
            by_instrument.clear()


def changes(old: dict[int, int], new: dict[int, int]) -> list[tuple[int, int]]:
    """Return the levels that turn ``old`` into ``new``: removals (quantity 0), then what is set, best first."""
    removed = [(price, 0) for price in old if price not in new]
    return removed + [level for level in new.items() if old.get(level[0]) != level[1]]
