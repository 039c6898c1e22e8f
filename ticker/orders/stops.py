"""Stop orders that wait for a price to be traded."""

from __future__ import annotations

import heapq


class Stops:
    """Keys by the price that they wait for: two heaps for each instrument, one for rises and one for falls."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[int, bool, int]] = {}
        self._heaps: dict[tuple[int, bool], list[tuple[int, int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, key: int, instrument: int, trigger: int, *, upwards: bool) -> None:
        """Have a key wait until ``trigger`` ticks, or beyond, are traded; it may wait for something else already."""
        self._waiting[key] = instrument, upwards, trigger
        heapq.heappush(self._heaps.setdefault((instrument, upwards), []), (trigger if upwards else -trigger, key))

    def discard(self, key: int) -> None:
        """Have a key wait no longer."""
        self._waiting.pop(key, None)

    def reached(self, instrument: int, low: int, high: int) -> list[int]:
        """Return the keys that trades between two prices reach, in the order of the keys; they wait no longer."""
        found = []
        for upwards, price in ((True, high), (False, -low)):
            heap = self._heaps.get((instrument, upwards), [])
            while heap and heap[0][0] <= price:
                signed, key = heapq.heappop(heap)
                # Who was discarded, or waits for another price by now, has left an entry behind.
                if self._waiting.get(key) == (instrument, upwards, signed if upwards else -signed):
                    del self._waiting[key]
                    found.append(key)
        return sorted(found)

    def clear(self) -> None:
        """Forget every key."""
        self._waiting.clear()
        self._heaps.clear()
