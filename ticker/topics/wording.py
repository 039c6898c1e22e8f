"""How a topic says its rows: as JSON messages, or as packed records. Both say what was left out before each.

A row comes with the position of the event that it shows, printed by :class:`ticker.codec.RowCodec` or packed by
:class:`ticker.binary.RecordCodec`. A wording must not know where rows come from or who is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from ticker import binary
from ticker.codec import frame, message, rfc3339
from ticker.deflate import deflated_frame
from ticker.history import History
from ticker.listings import Listings

if TYPE_CHECKING:
    from ticker.topics.topic import TopicKey

#: Text or bytes, as the codecs of a topic make them.
Row = Any
Rows = Sequence[tuple[int, Row]]

#: Packed messages are not longer, because clients refuse long ones: ``websockets`` those over 1 MiB.
MESSAGE_BYTES: Final = 512 * 1024


class Wording(Protocol):
    """Turns rows into bytes for the socket."""

    def say(self, listing: int, prev: int | None, rows: Rows, dropped: int = 0) -> bytes:
        """Return what tells at least one row of a listing.

        Args:
            listing: Its id.
            prev: Position up to which the reader knows it; None makes the rows a snapshot of the last one's position.
            rows: Positions and rows, oldest first.
            dropped: How many events before the first row are lost to the reader; others before a row are conflated.
        """

    def updates(
        self, listings: Sequence[int], prev: Sequence[int], last: Sequence[int], rows: Sequence[Row]
    ) -> list[bytes]:
        """Return the same as :meth:`say` for one row each of many listings, nothing dropped."""

    def enclosed(self, data: bytes) -> bytes:
        """Return what is sent for the joined data of several of these."""


class Printed:
    """JSON messages, one for each call of :meth:`say`, in a frame of their own."""

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        self._key = key
        self._history = history
        self._session = listings.session
        self._label = _label(key) if key.native else ""
        self._framed: Callable[[bytes], bytes] = deflated_frame if key.deflated else frame

    def say(self, listing: int, prev: int | None, rows: Rows, dropped: int = 0) -> bytes:
        """See :meth:`Wording.say`."""
        channel = self._key.channel
        pos = self._pos(prev, rows[-1][0], len(rows), dropped) if self._key.native else ""
        timestamp = rfc3339(self._history.ts) if channel == "ohlc" else ""
        kind, text = "snapshot" if prev is None else "update", ",".join([row for _, row in rows])
        label, session = self._label, self._session
        return self._framed(message(channel, kind, text, label=label, pos=pos, timestamp=timestamp, session=session))

    def _pos(self, prev: int | None, last: int, n: int, dropped: int) -> str:
        before, n = ("null", 0) if prev is None else (prev, n)
        conflated = 0 if prev is None else last - prev - n - dropped
        return (
            f'{{"epoch":"{self._history.epoch}","prev":{before},"last":{last},"n":{n},"conflated":{conflated},'
            f'"dropped":{dropped},"window_ms":{self._key.interval_ms}}}'
        )

    def updates(
        self, listings: Sequence[int], prev: Sequence[int], last: Sequence[int], rows: Sequence[Row]
    ) -> list[bytes]:
        """See :meth:`Wording.updates`; written out, because these lines are much of what 10,000 rows/s cost."""
        framed, head = self._framed, f'{{"channel":"{self._key.channel}","type":"update",{self._label}'
        if not self._key.native:
            return [framed(f'{head}"data":[{row}]}}'.encode()) for row in rows]
        if self._session:
            head += f'"session":"{self._session}",'
        head += f'"pos":{{"epoch":"{self._history.epoch}","prev":'
        tail = f',"dropped":0,"window_ms":{self._key.interval_ms}}},"data":['
        return [
            framed(f'{head}{before},"last":{after},"n":1,"conflated":{after - before - 1}{tail}{row}]}}'.encode())
            for before, after, row in zip(prev, last, rows, strict=True)
        ]

    def enclosed(self, data: bytes) -> bytes:
        """See :meth:`Wording.enclosed`."""
        return data


class Packed:
    """Records; what is joined goes out as one binary message, or as few as are not too long."""

    def __init__(self, key: TopicKey, history: History, listings: Listings) -> None:
        self._channel = binary.CHANNELS[key.channel]
        self._history = history
        self._first = listings.first
        self._body = binary.BODIES[key.channel].itemsize
        record = binary.DTYPES[key.channel].itemsize
        self._most = MESSAGE_BYTES // record * record

    def say(self, listing: int, prev: int | None, rows: Rows, dropped: int = 0) -> bytes:
        """See :meth:`Wording.say`; of a row of several records the last one takes the reader on."""
        channel, head, epoch = self._channel, binary.head, int(self._history.epoch, 16)
        number = self._first + listing
        if prev is None:
            start = head(channel, 0, number, epoch, binary.NO_PREV, rows[-1][0], 0, 0, 0)
            return b"".join([start + body for _, row in rows for body in self._bodies(row)])
        parts: list[bytes] = []
        for position, row in rows:
            *others, final = self._bodies(row)
            parts += [head(channel, 1, number, epoch, prev, prev, 0, 0, 0) + body for body in others]
            conflated = position - prev - 1 - dropped
            parts += head(channel, 1, number, epoch, prev, position, 1, conflated, dropped), final
            prev, dropped = position, 0
        return b"".join(parts)

    def _bodies(self, row: bytes) -> list[bytes]:
        size = self._body
        return [row] if len(row) == size else [row[start : start + size] for start in range(0, len(row), size)]

    def updates(
        self, listings: Sequence[int], prev: Sequence[int], last: Sequence[int], rows: Sequence[Row]
    ) -> list[bytes]:
        """See :meth:`Wording.updates`; for rows of one record."""
        channel, head, epoch, first = self._channel, binary.head, int(self._history.epoch, 16), self._first
        return [
            head(channel, 1, first + listing, epoch, before, after, 1, after - before - 1, 0) + row
            for listing, before, after, row in zip(listings, prev, last, rows, strict=True)
        ]

    def enclosed(self, data: bytes) -> bytes:
        """See :meth:`Wording.enclosed`."""
        most = self._most
        if len(data) <= most:
            return frame(data, binary.BINARY) if data else data
        return b"".join([frame(data[start : start + most], binary.BINARY) for start in range(0, len(data), most)])


def _label(key: TopicKey) -> str:
    """Return what tells the topics of a channel apart, as JSON; candles say themselves how long they are."""
    if key.channel == "book":
        return f'"depth":{key.variant},'
    return f'"event_trigger":"{key.variant}",' if key.channel == "ticker" else ""


def wording(key: TopicKey, history: History, listings: Listings) -> Wording:
    """Return how a topic says its rows."""
    return Packed(key, history, listings) if key.packed else Printed(key, history, listings)
