"""Bytes of market data: WebSocket frames, fixed-point numbers, timestamps and rows.

It knows instruments and integers and returns bytes. It must not know subscribers, sockets or time.

Numbers are printed from integers, always with all decimals of the instrument. A row is one ``%`` operation on a
template made once per name: twelve numbers in 2 µs, where formatting them one by one takes 5. ``ticks / scale``
printed with ``precision`` decimals gives the exact digits up to ``feeds.instruments.MAX_UNITS``, which every feed
guarantees for single prices and quantities; sums can grow beyond it and are then printed digit by digit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache

import msgspec
import numpy as np

from feeds.analytics import Candle
from feeds.clock import NS
from feeds.instruments import Instrument
from feeds.records import BUY, I64, MISSING, SELL

TEXT = 0x81  #: first byte of an unfragmented text frame (RFC 6455 section 5.2)
CLOSE = 0x88
PING = 0x89


_MIDDLING = struct.Struct("!BBH").pack


def frame(payload: bytes, first_byte: int = TEXT) -> bytes:
    """Return a complete server frame: servers do not mask, so one frame serves every client."""
    size = len(payload)
    if size < 126:
        return bytes((first_byte, size)) + payload
    if size < 65536:
        return _MIDDLING(first_byte, 126, size) + payload
    return struct.pack("!BBQ", first_byte, 127, size) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a Close frame; the reason is cut to the 123 bytes that fit a control frame."""
    text = reason.encode()[:123].decode(errors="ignore").encode()
    return frame(struct.pack("!H", code) + text, CLOSE)


def fixed(units: int, precision: int) -> str:
    """Return ``units / 10**precision`` with exactly ``precision`` decimals, for an int of any size."""
    if precision == 0:
        return str(units)
    digits = f"{abs(units):0{precision + 1}d}"
    return f"{'-' if units < 0 else ''}{digits[:-precision]}.{digits[-precision:]}"


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return f"{np.datetime64(seconds, 's')}"


def rfc3339(ns: int) -> str:
    """Return an instant (int ns UTC) as RFC 3339 text with microseconds, as Kraken prints it."""
    seconds, rest = divmod(ns, NS)
    return f"{_second(seconds)}.{rest // 1000:06d}Z"


def rfc3339_exact(ns: int) -> str:
    """Return an instant (int ns UTC) as RFC 3339 text with all its digits."""
    seconds, rest = divmod(ns, NS)
    return f"{_second(seconds)}.{rest:09d}Z"


def rfc3339_column(ns: I64) -> list[str]:
    """Return the same for every instant of an int64 array; a third of the cost each."""
    seconds, rest = np.divmod(ns, NS)
    texts = {second: _second(second) for second in set(seconds.tolist())}
    micros = (rest // 1000).tolist()
    return [f"{texts[second]}.{micro:06d}Z" for second, micro in zip(seconds.tolist(), micros, strict=True)]


def message(
    channel: str, kind: str, rows: str, *, label: str = "", pos: str = "", timestamp: str = "", session: str = ""
) -> bytes:
    """Return a market data message, without its frame.

    Args:
        channel: Its name.
        kind: ``snapshot`` or ``update``.
        rows: JSON objects, joined with commas.
        label: The native profile's further keys, as JSON, each with a comma behind it.
        pos: The native profile's accounting, as JSON; empty for plain clients.
        timestamp: RFC 3339, where the message carries one itself.
        session: The replay session that it is of; empty for the server's own market.
    """
    head = f'{{"channel":"{channel}","type":"{kind}",{label}'
    if session:
        head += f'"session":"{session}",'
    if timestamp:
        head += f'"timestamp":"{timestamp}",'
    if pos:
        head += f'"pos":{pos},'
    return f'{head}"data":[{rows}]}}'.encode()


class RowCodec:
    """Prints the rows of one instrument under one name (its symbol or an alias).

    Args:
        instrument: Gives the decimals.
        name: What the rows say in ``symbol``.
        quoted: Whether prices and quantities are strings (``numbers: "string"`` of the native profile).
    """

    def __init__(self, instrument: Instrument, name: str, *, quoted: bool = False) -> None:
        self._price_precision, self._qty_precision = instrument.price_precision, instrument.qty_precision
        self._price_scale, self._qty_scale = instrument.price_scale, instrument.qty_scale
        self._quote = quote = '"' if quoted else ""
        px = f"{quote}%.{instrument.price_precision}f{quote}"
        qty = f"{quote}%.{instrument.qty_precision}f{quote}"
        self._head = f'{{"symbol":{msgspec.json.encode(name).decode()},'
        head = self._head.replace("%", "%%")  # of templates
        self._ticker = (
            f'{head}"bid":{px},"bid_qty":{qty},"ask":{px},"ask_qty":{qty},"last":{px},"volume":{qty},"vwap":{px},'
            f'"low":{px},"high":{px},"change":{px},"change_pct":{quote}%.2f{quote},"timestamp":"%s"}}'
        )
        self._trade = f'{head}"side":%s,"price":{px},"qty":{qty},"ord_type":"market","trade_id":%d,"timestamp":"%s"}}'
        self._level = f'{{"price":{px},"qty":{qty}}}'
        self._ohlc = (
            f'{head}"open":{px},"high":{px},"low":{px},"close":{px},"vwap":{px},"trades":%d,"volume":%s,'
            '"interval_begin":"%s","interval":%d,"timestamp":"%s"}'
        )

    def price(self, ticks: int) -> str:
        """Return a price as JSON: a fixed-point number, or null where there is none."""
        return "null" if ticks == MISSING else f"{self._quote}{fixed(ticks, self._price_precision)}{self._quote}"

    def qty(self, lots: int) -> str:
        """Return a quantity as JSON."""
        return f"{self._quote}{fixed(lots, self._qty_precision)}{self._quote}"

    def ticker(self, row: tuple[float | str, ...], exact: tuple[float, ...] | None) -> str:
        """Return a ticker row.

        Args:
            row: bid, bid_qty, ask, ask_qty, last, volume, vwap, low, high, change in units of price and quantity,
                change_pct in percent, and the timestamp as text.
            exact: Where something is missing or beyond a double's precision: the numbers in ticks and lots; a price
                may be :data:`feeds.records.MISSING`.
        """
        if exact is not None:
            return self._partial_ticker(exact, str(row[-1]))
        return self._ticker % row

    def _partial_ticker(self, row: tuple[float, ...], timestamp: str) -> str:
        """The same row where a side is empty, nothing was traded yet, or a sum outgrew a double."""
        bid, bid_qty, ask, ask_qty, last, volume, vwap, low, high, change, change_pct = row
        untraded = last == MISSING
        prices = [self.price(int(v)) for v in (bid, ask, last)]
        rest = ["null"] * 4 if untraded else [self.price(round(v)) for v in (vwap, low, high, change)]
        percent = "null" if untraded else f"{self._quote}{change_pct:.2f}{self._quote}"
        return (
            f'{self._head}"bid":{prices[0]},"bid_qty":{self.qty(int(bid_qty))},"ask":{prices[1]},'
            f'"ask_qty":{self.qty(int(ask_qty))},"last":{prices[2]},"volume":{self.qty(int(volume))},"vwap":{rest[0]},'
            f'"low":{rest[1]},"high":{rest[2]},"change":{rest[3]},"change_pct":{percent},"timestamp":"{timestamp}"}}'
        )

    def trade(self, side: int, price: int, qty: int, trade_id: int, ts: int) -> str:
        """Return a trade row: aggressor's side, ticks, lots, id, int ns UTC. An unknown side prints as null."""
        return self._trade % (_SIDES[side], price / self._price_scale, qty / self._qty_scale, trade_id, rfc3339(ts))

    def book(self, bids: Iterable[tuple[int, int]], asks: Iterable[tuple[int, int]], checksum: int, ts: int) -> str:
        """Return a book row; levels are (price ticks, qty lots), quantity 0 deletes; ``ts`` int ns UTC."""
        p, q, level = self._price_scale, self._qty_scale, self._level
        bid_text = ",".join([level % (price / p, qty / q) for price, qty in bids])
        ask_text = ",".join([level % (price / p, qty / q) for price, qty in asks])
        return (
            f'{self._head}"bids":[{bid_text}],"asks":[{ask_text}],"checksum":{checksum},"timestamp":"{rfc3339(ts)}"}}'
        )

    def candle(self, candle: Candle, minutes: int) -> str:
        """Return an ohlc row of a candle of ``minutes``."""
        p = self._price_scale
        return self._ohlc % (
            candle.open / p, candle.high / p, candle.low / p, candle.close / p, candle.vwap / p, candle.trades,
            self.qty(candle.volume), rfc3339(candle.begin_ns), minutes,
            rfc3339(candle.begin_ns + minutes * 60 * NS),
        )  # fmt: skip


_SIDES = {BUY: '"buy"', SELL: '"sell"', 0: "null"}
