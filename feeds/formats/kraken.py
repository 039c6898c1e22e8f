"""Kraken's trading history: lines of ``unix seconds,price,volume`` without header, side, ids or symbol.

The seconds are all there is of time, so many trades share one; their order is the file's.
Source: https://support.kraken.com/articles/360047543791
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from feeds.clock import NS
from feeds.errors import RecordingError
from feeds.formats.delimited import FLOAT, INT, rows
from feeds.formats.format import Assembly, Chunk, Part, ReadOptions
from feeds.formats.source import Source
from feeds.records import LAST

VENUE: Final = "KRAKEN"

_LINE: Final = re.compile(rb"[0-9]{9,10},[0-9]+(\.[0-9]+)?,[0-9]+(\.[0-9]+)?\r?(\n|$)")
#: "XBTUSD.csv" as Kraken names it, and "kraken_BCHEUR_trades.csv".
_FILE_NAME: Final = re.compile(r"(?:kraken_)?([A-Z0-9]{5,20})(?:_trades)?\.csv")


class KrakenHistory:
    """The format; see the module."""

    name = "kraken-history"

    def recognises(self, head: bytes, file_name: str) -> bool:
        """Return whether the first line is a time in seconds and two numbers."""
        return _LINE.match(head) is not None

    def read(self, source: Source, options: ReadOptions) -> Iterator[Chunk]:
        """Yield the prints; no aggressor is known."""
        match = _FILE_NAME.fullmatch(source.file_name)
        symbol = options.symbol or (match and match[1])
        if not symbol:
            raise RecordingError(f"{source.name}: neither the file nor its name says the symbol; give it with --symbol")
        assembly = Assembly()
        types = {"time": INT, "price": FLOAT, "qty": FLOAT}
        for part in rows(source, tuple(types), types, header=False):
            part = part.stamped(NS, "time").present("price", "qty").sound(["price"], ["qty"])
            times = part.ints("time") * NS
            shared = {"ts_recv": times, "ts_event": times, "venue": options.venue or VENUE, "symbol": symbol}
            yield assembly.chunk(
                shared, Part("trades", {"price": part.floats("price"), "qty": part.floats("qty")}, LAST)
            )
