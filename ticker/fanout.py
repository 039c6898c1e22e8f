"""One buffer to many sockets: the innermost loop of the fan-out.

After a system call the caches are cold, so what counts is how many objects are touched per socket: in the loop only the
socket itself, not even a bound method of it. With a :class:`~ticker.uring.Uring` none is: the kernel goes through a row
of file numbers by itself. It must not know whose the sockets are.
"""

from __future__ import annotations

import array
import logging
from collections.abc import Iterable, Sequence

import numpy as np

from ticker.outbox import Sink
from ticker.uring import Uring

logger = logging.getLogger(__name__)

#: From so many sockets on a ring is cheaper than sending to each; measured: the same at 150, 4 % less at 300.
MANY = 150
#: Without a ring, more sockets at once would save nothing.
SOME = 64

#: A socket that did not take everything: its place, and how many bytes it took or what it raised.
Short = tuple[int, int | OSError]


class FanOut:
    """Sends to many.

    Args:
        ring: How, if the system lets us.
        many: From how many on it is used.
    """

    def __init__(self, ring: Uring | None = None, many: int = MANY) -> None:
        self._ring = ring
        self._many = many

    @property
    def way(self) -> str:
        """How it is done: ``io_uring`` or ``send``."""
        return "send" if self._ring is None else "io_uring"

    @property
    def at_once(self) -> int:
        """How many sockets one call may be for."""
        return SOME if self._ring is None else self._ring.room

    def send(self, sinks: Sequence[Sink], files: array.array[int], data: bytes) -> list[Short]:
        """Send a buffer to each of some sockets.

        Args:
            sinks: They, at most :attr:`at_once`, none of them twice.
            files: Their file numbers, -1 for what is none.
            data: The buffer.

        Returns:
            Those that did not take all of it.
        """
        if self._ring is None or len(files) < self._many:
            return _send_each(enumerate(sinks), data)
        try:
            taken = self._ring.send(files, data)
        except OSError as error:
            logger.warning("io_uring has failed (%s); from now on each send is a system call", error)
            self.close()
            return _send_each(enumerate(sinks), data)
        odd = np.flatnonzero(taken != len(data)).tolist()
        parts: list[Short] = [(place, int(taken[place])) for place in odd if taken[place] > 0]
        # Those that took nothing are asked again: the sink itself says why, in its own words.
        return parts + _send_each([(place, sinks[place]) for place in odd if taken[place] <= 0], data)

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
