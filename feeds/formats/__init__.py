"""Vendors' formats, one module each; all of them are listed here.

This module must not know how any of them is read.
"""

from __future__ import annotations

from typing import Final

from feeds.errors import RecordingError
from feeds.formats.binance import Binance
from feeds.formats.binance_messages import BinanceMessages
from feeds.formats.capture import Capture
from feeds.formats.dbn import Dbn
from feeds.formats.format import Format
from feeds.formats.kraken import KrakenHistory
from feeds.formats.kraken_messages import KrakenMessages
from feeds.formats.lobster import Lobster
from feeds.formats.recording import Recording
from feeds.formats.source import Source
from feeds.formats.tardis import Tardis

#: All formats. The first that recognises a file reads it, so the more particular come first.
FORMATS: Final[tuple[Format, ...]] = (
    Recording(),
    Dbn(),
    Capture("binance-capture", BinanceMessages),
    Capture("kraken-capture", KrakenMessages),
    Tardis(),
    Binance(),
    Lobster(),
    KrakenHistory(),
)


def detect(source: Source) -> Format:
    """Return the format of a source, told by its content.

    Raises:
        RecordingError: No format recognises it, or it cannot be read.
    """
    head = source.head()
    if not head:
        raise RecordingError(f"{source.name}: is empty, or damaged from the first byte on")
    for known in FORMATS:
        if known.recognises(head, source.file_name):
            return known
    raise RecordingError(
        f"{source.name}: of no known format ({', '.join(f.name for f in FORMATS)}); name it with --format"
    )


def by_name(name: str) -> Format:
    """Return the format called ``name``.

    Raises:
        RecordingError: There is none.
    """
    for known in FORMATS:
        if known.name == name:
            return known
    raise RecordingError(f"no format is called {name!r}; there are {', '.join(f.name for f in FORMATS)}")
