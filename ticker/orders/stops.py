"""Orders that wait: for a price to be traded, or for a number such as a time to be reached."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

#: A heap is made anew when it has more than this many entries and most are of keys that wait no longer.
SMALL: Final = 64


class Waiting:
    """Keys that wait for a number to be reached, each for its own; as large as there are keys that wait."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, key: int, number: int) -> None:
        """Have a key wait for a number, and no longer for the one that it waited for before."""
        self._numbers[key] = number
        heapq.heappush(self._heap, (number, key))
        self._tidy()

    def discard(self, key: int) -> None:
        """Have a key wait no longer."""
        if self._numbers.pop(key, None) is not None:
            self._tidy()

    def reached(self, number: int) -> Iterator[int]:
        """Yield the keys that wait for a number or one below it, lowest first; they wait no longer."""
        while self._heap and self._heap[0][0] <= number:
            waited_for, key = heapq.heappop(self._heap)
            # Who was discarded, or waits for another number by now, has left an entry behind.
            if self._numbers.get(key) == waited_for:
                del self._numbers[key]
                yield key

    def _tidy(self) -> None:
        if len(self._heap) > max(SMALL, 2 * len(self._numbers)):
            self._heap = [(number, key) for key, number in self._numbers.items()]
            heapq.heapify(self._heap)


class Stops:
    """Keys by the price that they wait for, rises and falls of each instrument apart."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[int, bool]] = {}
        self._waiting: dict[tuple[int, bool], Waiting] = {}

    def __bool__(self) -> bool:
        return bool(self._places)

    def add(self, key: int, instrument: int, trigger: int, *, upwards: bool) -> None:
        """Have a key wait until ``trigger`` ticks, or beyond, are traded; it may wait for something else already."""
        self.discard(key)
        self._places[key] = instrument, upwards
        self._waiting.setdefault((instrument, upwards), Waiting()).add(key, trigger if upwards else -trigger)

    def discard(self, key: int) -> None:
        """Have a key wait no longer."""
        if key in self._places:
            self._waiting[self._places.pop(key)].discard(key)

    def reached(self, instrument: int, low: int, high: int) -> list[int]:
        """Return the keys that trades between two prices reach, in the order of the keys; they wait no longer."""
        found: list[int] = []
        for upwards, price in ((True, high), (False, -low)):
            if waiting := self._waiting.get((instrument, upwards)):
                found += waiting.reached(price)
        for key in found:
            del self._places[key]
        return sorted(found)

    def clear(self) -> None:
        """Forget every key."""
        self._places.clear()
        self._waiting.clear()
