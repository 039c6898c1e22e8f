"""Captures: the messages of a venue as they came, one a line, behind the time of receipt.

Two programs' lines are read: ``NANOSECONDS JSON`` as hftbacktest's collector writes them, and ``SECONDS: JSON`` as
cryptofeed does, which also notes the addresses that it spoke to. This module must not know what is in a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, Final, Protocol

from feeds.errors import RecordingError
from feeds.formats.format import Chunk, ReadOptions
from feeds.formats.gathering import Gathering
from feeds.formats.lines import blocks
from feeds.formats.source import Source

#: No line is longer: Binance's list of all its instruments has 15 million bytes.
LONGEST_LINE: Final = 16 << 20
#: Receive times between 1973 and 2262; anything else is not in nanoseconds.
_FIRST_NS, _END_NS = 10**17, 2**63
_NS: Final = 1_000_000_000

#: cryptofeed's notes: what it connected to and asked for, and answers to requests, of which only these are messages.
_NOTE: Final = re.compile(rb"(?:configuration: |(?:wss?|https?)://)")
_ADDRESS: Final = re.compile(rb"(?:wss?|https?)://[^/ ]+")
_ANSWER: Final = re.compile(rb"(https?://[^ ]*) -> ([0-9]+\.[0-9]+): ")
_SYMBOL: Final = re.compile(rb"[?&]symbol=([A-Za-z0-9_]+)")


class Messages(Protocol):
    """Reads the messages of one venue into a gathering.

    Attributes:
        venue: What the column ``venue`` says.
        host: What all its addresses have in their name.
    """

    venue: ClassVar[str]
    host: ClassVar[bytes]

    def __init__(self, source: Source, gathering: Gathering, symbol: str | None) -> None: ...

    @staticmethod
    def knows(payload: bytes) -> bool:
        """Return whether a message looks like one of the venue's."""
        ...

    def take(self, payload: bytes, url_symbol: str | None = None) -> None:
        """Take in one message, fetched from an address with that symbol in it.

        Raises:
            msgspec.DecodeError: It is no JSON, or not of the form that its kind has.
        """
        ...

    def finish(self) -> None:
        """Pass on what still waits for something, at the end of a capture."""
        ...


def _seconds(text: bytes) -> int:
    """Return nanoseconds; exact, where a float would be off by a hundred."""
    whole, _, fraction = text.partition(b".")
    return int(whole) * _NS + int(fraction[:9].ljust(9, b"0"))


def _parse(line: bytes) -> tuple[int, bytes, str | None] | None:
    """Return a line's time, message and symbol from its address, if any; None for a note that is no message.

    Raises:
        ValueError: It is neither.
    """
    head, _, payload = line.partition(b" ")
    url_symbol = None
    if head.isdigit():
        ts = int(head[:20])
    elif _NOTE.match(line):
        answer = _ANSWER.match(line)
        if answer is None:
            return None
        symbol = _SYMBOL.search(answer[1])
        url_symbol = symbol[1].decode().upper() if symbol else None
        ts, payload = _seconds(answer[2][:40]), line[answer.end() :]
    else:
        ts = _seconds(head[:40].rstrip(b":"))
    if not _FIRST_NS <= ts < _END_NS:
        raise ValueError("the receive time is not one of nanoseconds, or of seconds with a colon")
    return ts, payload, url_symbol


class Capture:
    """The format, for one venue; see the module.

    Args:
        name: What the format is called.
        messages: The venue's.
    """

    def __init__(self, name: str, messages: type[Messages]) -> None:
        self.name = name
        self._messages = messages

    def recognises(self, head: bytes, file_name: str) -> bool:
        """Return whether the first message that can be told, or the first address, is one of the venue's."""
        for line in head.split(b"\n"):
            address = _ADDRESS.match(line)
            if address is not None:
                return self._messages.host in address[0]
            try:
                parsed = _parse(line)
            except ValueError:
                return False
            if parsed is not None and self._messages.knows(parsed[1]):
                return True
        return False

    def read(self, source: Source, options: ReadOptions) -> Iterator[Chunk]:
        """Yield the rows of a capture."""
        gathering = Gathering()
        messages = self._messages(source, gathering, options.symbol)
        venue, empty = options.venue or messages.venue, True
        for block in blocks(source, longest=LONGEST_LINE):
            for number, line in enumerate(block.data.split(b"\n"), block.first):
                gathering.line = number
                if line and (why := _taken(line, gathering, messages)):
                    source.refuse(number, why)
            chunk = gathering.chunk(venue, source)
            empty &= not chunk
            if chunk:
                yield chunk
        messages.finish()
        chunk = gathering.chunk(venue, source)
        if chunk:
            yield chunk
        elif empty:
            seen = f" ({', '.join(source.passed_over)})" if source.passed_over else ""
            raise RecordingError(f"{source.name}: none of its messages has a place in a recording{seen}")


def _taken(line: bytes, gathering: Gathering, messages: Messages) -> str | None:
    """Take in a line; return what is wrong with it, if anything is."""
    try:
        parsed = _parse(line)
        if parsed is not None:
            gathering.ts, payload, url_symbol = parsed
            messages.take(payload, url_symbol)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        return f"{error}: {line[:60].decode('utf-8', 'replace')!r}"
    return None
