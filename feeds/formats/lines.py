"""Text in blocks of whole lines, with the number of each block's first line.

For formats of lines: CSV and raw captures. This module must not know what is in a line.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from feeds.formats.source import Source

#: Bytes in a block, about 16,000 lines of CSV; also the longest line, where a format does not say otherwise.
BLOCK_BYTES: Final = 1 << 20


_NEWLINE: Final = ord("\n")


class Lines(NamedTuple):
    """Whole lines.

    Attributes:
        first: Number of the first line in its file, from 1.
        lines: How many.
        data: The lines with their ends; only the last one of a file may be without.
    """

    first: int
    lines: int
    data: bytes


def blocks(source: Source, size: int = BLOCK_BYTES, longest: int | None = None) -> Iterator[Lines]:
    """Yield all lines of a source, about ``size`` bytes at a time.

    A line of more than ``longest`` bytes (``size`` if not given) is refused, and left out if bad rows are skipped.

    Raises:
        RecordingError: A line is too long, or the bytes cannot be unpacked.
    """
    longest = longest or size
    with source.open() as reader:
        line, rest = 1, b""
        while data := reader.read(size):
            data = rest + data
            end = data.rfind(b"\n") + 1
            if end:
                whole = data[:end]
                count = _count(whole)
                yield Lines(line, count, whole)
                line += count
            rest = data[end:]
            if len(rest) > longest:
                source.refuse(line, f"the line is longer than {longest:,} bytes; is this a text file?")
                line += 1
                rest = _after_line(reader, size)
        if rest:
            yield Lines(line, _count(rest) + (not rest.endswith(b"\n")), rest)


def _count(data: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == _NEWLINE))  # six times as fast as bytes.count


def _after_line(reader: io.BufferedReader, size: int) -> bytes:
    """Read on to the end of a line and return what was read beyond it."""
    while data := reader.read(size):
        end = data.find(b"\n") + 1
        if end:
            return data[end:]
    return b""
