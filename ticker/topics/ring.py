"""The last events of one stream as rows, for those who missed them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Generic, TypeVar

_Row = TypeVar("_Row", str, bytes)


class Ring(Generic[_Row]):
    """Rows with their positions, oldest first; bounded by their number and by their length together.

    Args:
        rows: At most so many.
        size: At most so many characters or bytes in all, but one row in any case.
    """

    __slots__ = ("_events", "_max_rows", "_max_size", "_size")

    def __init__(self, rows: int, size: int) -> None:
        self._events: deque[tuple[int, _Row]] = deque()
        self._max_rows = rows
        self._max_size = size
        self._size = 0

    def extend(self, events: Iterable[tuple[int, _Row]]) -> None:
        """Take in further events and let go the oldest that are too many."""
        for event in events:
            self._events.append(event)
            self._size += len(event[1])
        while len(self._events) > 1 and (len(self._events) > self._max_rows or self._size > self._max_size):
            self._size -= len(self._events.popleft()[1])

    @property
    def oldest(self) -> int:
        """Position before the oldest event."""
        return self._events[0][0] - 1

    def after(self, position: int) -> list[tuple[int, _Row]]:
        """Return the events after a position."""
        missed = 0
        for event in reversed(self._events):
            if event[0] <= position:
                break
            missed += 1
        return list(islice(self._events, len(self._events) - missed, None))
