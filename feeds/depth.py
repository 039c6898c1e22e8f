"""Simulated depth: how the books behind the touch change, and their changes as rows.

It takes the touch as given and must not know how prices come about, of clocks, or of anything that happens between
two publications of a book.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from feeds import records
from feeds.instruments import MAX_UNITS
from feeds.models import F64, Pair
from feeds.records import I64, Levels

Mask = npt.NDArray[np.bool_]

#: The sign of each side's prices in :class:`DepthModel`: bids, asks.
_SIGNS: Final = np.array([1, -1], np.int64)


def level_steps(pairs: Sequence[Pair]) -> I64:
    """Return the distance of two levels behind the touch, shape ``(pairs,)``: 0.2 basis points, at least one tick.

    25 levels then show 5 basis points, about what the books of large pairs show, and the touch crosses a few levels
    in a second, so that levels come and go while most of them stay.
    """
    return np.maximum(np.rint(np.array([pair.price_ticks for pair in pairs]) * 2e-5), 1.0).astype(np.int64)


class DepthModel:
    """Books by level: the touch as quoted, and behind it levels on a fixed grid of prices.

    A price is kept with the sign of its side, so that on both sides the better price is the larger number and one
    arithmetic does for both. Behind the touch, level *i* of a side lies *i* steps below the first multiple of the
    step that is worse than the touch; so a level keeps its price, and its size, while the touch moves. A touch on
    the grid that is overtaken stays as a level.

    Sizes are exponential: the gamma law found by Bouchaud, Mezard and Potters, "Statistical properties of stock
    order books: empirical results and models", Quantitative Finance 2 (2002), 251-256, at shape one. Their mean
    grows with the square root of the depth.

    Args:
        pairs: The pairs; the position is the dense id.
        levels: Price levels on each side, the touch among them, >= 1.

    Attributes:
        uniforms: Uniform numbers that one publication of one book needs.
    """

    #: One level in so many gets a new size at each publication.
    REDRAWN = 8

    def __init__(self, pairs: Sequence[Pair], levels: int) -> None:
        self.uniforms = 2 * (levels - 1)
        self._levels = levels
        self._places = np.arange(1, levels)
        self._step = level_steps(pairs)[:, np.newaxis]
        self._median = np.array([pair.qty_lots for pair in pairs])
        self._growth = np.sqrt(1.0 + np.arange(levels))
        # The books as published: signed price of the touch, sizes of all levels, the touch first; 0 before the first.
        # The sizes have one more place, always 0, for whatever is looked for outside of the ladder.
        self._price = np.zeros((len(pairs), 2), np.int64)
        self._sizes = np.zeros((len(pairs), 2, levels + 1), np.int64)

    def publish(self, ids: I64, touch: I64, uniforms: F64) -> Changes:
        """Bring books up to their touch and return how they differ from what was published before.

        Args:
            ids: Shape ``(books,)``: the symbols, each once.
            touch: Shape ``(4, books)``: bid and ask (ticks), bid and ask quantity (lots, >= 1).
            uniforms: Shape ``(books, self.uniforms)``.
        """
        step = self._step[ids]
        old = _Sides(self._price[ids], self._sizes[ids], step)
        new = _Sides(touch[:2].T * _SIGNS, np.zeros_like(old.sizes), step)
        new.sizes[..., 0] = touch[2:].T
        carried = self._carried(old, new)
        new.sizes[..., 1:-1] = self._redrawn(ids, carried, uniforms)
        self._price[ids], self._sizes[ids] = new.price, new.sizes
        changed = np.empty((len(ids), 1 + 4 * self._levels), np.bool_)
        changed[:, 0] = old.sizes[:, 0, 0] == 0
        parts = changed[:, 1:].reshape(len(ids), 2, 2, self._levels)
        self._mark_gone(parts[:, 0], old, new)
        self._mark_set(parts[:, 1], old, new, carried)
        return self._rows(changed, old, new)

    def _carried(self, old: _Sides, new: _Sides) -> I64:
        """Return the size that stands already at each level behind the new touch, shape ``(books, 2, levels - 1)``."""
        shift = (new.top - old.top)[..., np.newaxis]
        carried = np.take_along_axis(old.sizes, self._within(self._places - shift), axis=-1)
        place = self._place(old.price, new)
        book, side = (place < self._levels).nonzero()
        carried[book, side, place[book, side] - 1] = old.sizes[book, side, 0]
        return carried

    def _redrawn(self, ids: I64, carried: I64, uniforms: F64) -> I64:
        """Return the sizes behind the touch with new ones where there was none, and at one level in eight."""
        # One uniform says both: its integer part after scaling whether, the rest how much.
        scaled = uniforms.reshape(carried.shape) * self.REDRAWN
        book, side, place = ((scaled < 1.0) | (carried == 0)).nonzero()
        rest = scaled[book, side, place] % 1.0
        lots = -np.log(1.0 - rest) * self._median[ids[book]] * self._growth[place + 1]
        sizes = carried.copy()
        sizes[book, side, place] = np.ceil(lots).clip(1.0, MAX_UNITS).astype(np.int64)
        return sizes

    def _mark_gone(self, gone: Mask, old: _Sides, new: _Sides) -> None:
        """Mark the levels of the old ladders that are not in the new ones, shape ``(books, 2, levels)``."""
        nothing = self._levels
        gone[..., 0] = (old.sizes[..., 0] > 0) & (old.price != new.price) & (self._place(old.price, new) == nothing)
        now = self._places + (new.top - old.top)[..., np.newaxis]
        reached = self._place(new.price, old)[..., np.newaxis]
        gone[..., 1:] = (old.sizes[..., 1:-1] > 0) & ((now < 1) | (now >= nothing)) & (self._places != reached)

    def _mark_set(self, changed: Mask, old: _Sides, new: _Sides, carried: I64) -> None:
        """Mark the levels of the new ladders that have another size than before, shape ``(books, 2, levels)``."""
        # The new touch may be where the old one was, or at a level that was behind it.
        reached = np.where(new.price == old.price, 0, self._place(new.price, old))[..., np.newaxis]
        stood = np.take_along_axis(old.sizes, reached, axis=-1)[..., 0]
        changed[..., 0] = new.sizes[..., 0] != stood
        changed[..., 1:] = new.sizes[..., 1:-1] != carried

    def _rows(self, changed: Mask, old: _Sides, new: _Sides) -> Changes:
        """Return the marked cells with their prices and quantities."""
        book, column = changed.nonzero()
        cell = np.maximum(column - 1, 0)
        is_new, side, place = cell // (2 * self._levels), cell // self._levels % 2, cell % self._levels
        touch = np.stack((old.price, new.price))[is_new, book, side]
        behind = (np.stack((old.top, new.top))[is_new, book, side] + 1 - place) * new.step[book, 0]
        price = np.where(place == 0, touch, behind) * _SIGNS[side]
        return Changes(book, column, price, np.where(is_new, new.sizes[book, side, place], 0))

    def _place(self, price: I64, sides: _Sides) -> I64:
        """Return the level behind a touch at which a signed price lies, or the place of nothing."""
        steps = price // sides.step
        return np.where(steps * sides.step == price, self._within(sides.top + 1 - steps), self._levels)

    def _within(self, places: I64) -> I64:
        """Return places with those that are not behind the touch replaced by the place of nothing."""
        return np.where((places >= 1) & (places < self._levels), places, self._levels)


class Changes(NamedTuple):
    """How some books differ from before: the rows of one book side by side.

    Attributes:
        book: int64, shape ``(rows,)``: which of the books, ascending.
        column: int64, shape ``(rows,)``: what changed, ascending in a book. 0: there was no book before. Then, with
            ``levels`` columns for each, best first: old bids and old asks that are gone, new bids, new asks.
        price: int64, shape ``(rows,)``: ticks; without meaning in column 0.
        qty: int64, shape ``(rows,)``: lots, 0 for what is gone.
    """

    book: I64
    column: I64
    price: I64
    qty: I64


class _Sides:
    """Both sides of some books.

    Attributes:
        price: int64, shape ``(books, 2)``: signed price of the touch, ticks.
        sizes: int64, shape ``(books, 2, levels + 1)``: lots at the touch and behind it, then a 0.
        step: int64, shape ``(books, 1)``: distance of two levels behind the touch, ticks.
        top: int64, shape ``(books, 2)``: price of the first level behind the touch, in steps.
    """

    def __init__(self, price: I64, sizes: I64, step: I64) -> None:
        self.price, self.sizes, self.step = price, sizes, step
        self.top = (price - 1) // step


class Books:
    """The books of all symbols as rows of a table.

    Args:
        pairs: The pairs; the position is the dense id.
        levels: Price levels on each side, the touch among them, >= 1.

    Attributes:
        uniforms: Uniform numbers that one publication takes.
    """

    def __init__(self, pairs: Sequence[Pair], levels: int) -> None:
        self._model = DepthModel(pairs, levels)
        self.uniforms = self._model.uniforms
        # Side and action of a row follow from its column in the model's answer.
        sides = np.repeat([records.BUY, records.SELL, records.BUY, records.SELL], levels)
        self._side = np.concatenate(([records.NO_SIDE], sides)).astype(np.int8)
        self._action = np.full(len(self._side), records.SET, np.int8)
        self._action[0] = records.CLEAR

    def publish(self, ids: I64, touch: I64, uniforms: F64, ts: I64, seq: I64) -> Levels:
        """Bring books up to their touch and return exactly what changed, event by event.

        The first event of a symbol is a snapshot: CLEAR, then every level.

        Args:
            ids: Shape ``(books,)``: the symbols, each once.
            touch: Shape ``(4, books)``: bid and ask, bid and ask quantity.
            uniforms: Shape ``(books, self.uniforms)``.
            ts: Shape ``(books,)``, ascending: when each is published, ns UTC.
            seq: Shape ``(books,)``: to be added to the position of a row in the table, for its ``seq``.
        """
        book, column, price, qty = self._model.publish(ids, touch, uniforms)
        first = column == 0
        times = ts[book]
        snapshots = np.zeros(len(ids), np.uint8)
        snapshots[book[first]] = records.SNAPSHOT
        flags = snapshots[book]
        flags[:-1] |= np.where(book[1:] != book[:-1], records.LAST, 0).astype(np.uint8)
        flags[-1:] |= np.uint8(records.LAST)
        return Levels(
            ts_recv=times,
            ts_event=times,
            seq=seq[book] + np.arange(len(book)),
            instrument=ids[book].astype(np.int32),
            flags=flags,
            action=self._action[column],
            side=self._side[column],
            price=np.where(first, records.MISSING, price),
            qty=np.where(first, 0, qty),
            order_id=np.zeros(len(book), np.uint64),
        )
