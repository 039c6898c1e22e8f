"""One buffer to many sockets: the innermost loop of the fan-out.

After a system call the caches are cold, so what counts is how many objects are touched per socket: in the loop only the
socket itself, not even a bound method of it. With a :class:`~ticker.ring.Ring` nothing is: the kernel goes through a
row of file numbers by itself. It must not know whose the sockets are.
"""

from __future__ import annotations

import array
from collections.abc import Iterable, Sequence

import numpy as np

from ticker.outbox import Sink
from ticker.ring import Ring

#: Sockets from which on filling a ring, 20 µs, is cheaper than sending to each.
MANY = 64

#: A socket that did not take everything: its place, and how many bytes it took or what it raised.
Short = tuple[int, int | OSError]


class FanOut:
    """Sends to many.

    Args:
        ring: How, if the system lets us.
        many: From how many on it is used.
    """

    def __init__(self, ring: Ring | None = None, many: int = MANY) -> None:
        self._ring = ring
        self._many = many

    @property
    def way(self) -> str:
        """How it is done: ``io_uring`` or ``send``."""
        return "send" if self._ring is None else "io_uring"

    def send(self, sinks: Sequence[Sink], files: array.array[int], data: bytes) -> list[Short]:
        """Send a buffer to each of some sockets.

        Args:
            sinks: They.
            files: Their file numbers, -1 for what is none.
            data: The buffer.

        Returns:
            Those that did not take all of it.
        """
        if self._ring is None or len(files) < self._many:
            return _send_each(enumerate(sinks), data)
        short: list[Short] = []
        for first in range(0, len(files), self._ring.room):
            taken = self._ring.send(files[first : first + self._ring.room], data)
            for place in np.flatnonzero(taken != len(data)).tolist():
                if taken[place] > 0:
                    short.append((first + place, int(taken[place])))
                else:  # the sink itself says why, in its own words
                    short += _send_each([(first + place, sinks[first + place])], data)
        return short

    def close(self) -> None:
        """Give the ring back; what is sent afterwards is sent one by one."""
        self._ring = None


def _send_each(sinks: Iterable[tuple[int, Sink]], data: bytes) -> list[Short]:
    size = len(data)
    short: list[Short] = []
    for place, sink in sinks:
        try:
            sent = sink.send(data)
        except OSError as error:
            short.append((place, error))
            continue
        if sent != size:
            short.append((place, sent))
    return short
