"""Bytes of market data: WebSocket frames, fixed-point numbers, timestamps and rows.

It knows instruments and integers and returns bytes. It must not know subscribers, sockets or time.

Numbers are printed from integers, always with all decimals of the instrument. A row is one ``%`` operation on a
template made once per name: twelve numbers in 2 µs, where formatting them one by one takes 5. ``ticks / scale``
printed with ``precision`` decimals gives the exact digits up to ``feeds.instruments.MAX_UNITS``, which every feed
guarantees for single prices and quantities; sums can grow beyond it and are checked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from feeds.analytics import Candle
from feeds.clock import NS
from feeds.instruments import MAX_UNITS, Instrument
from feeds.records import BUY, MISSING, SELL

TEXT = 0x81  #: first byte of an unfragmented text frame (RFC 6455 section 5.2)
CLOSE = 0x88
PING = 0x89


def frame(payload: bytes, first_byte: int = TEXT) -> bytes:
    """Return a complete server frame: servers do not mask, so one frame serves every client."""
    size = len(payload)
    if size < 126:
        return bytes((first_byte, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", first_byte, 126, size) + payload
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


class RowCodec:
    """Prints the rows of one instrument under one name (its symbol or an alias).

    Args:
        instrument: Gives the decimals.
        name: What the rows say in ``symbol``.
    """

    def __init__(self, instrument: Instrument, name: str) -> None:
        self.name = name
        self._price_precision, self._qty_precision = instrument.price_precision, instrument.qty_precision
        self._price_scale, self._qty_scale = instrument.price_scale, instrument.qty_scale
        px, qty = f"%.{instrument.price_precision}f", f"%.{instrument.qty_precision}f"
        head = f'{{"symbol":"{name}",'
        self._ticker = (
            f'{{"channel":"ticker","type":"%s","data":[{head}"bid":{px},"bid_qty":{qty},"ask":{px},"ask_qty":{qty},'
            f'"last":{px},"volume":{qty},"vwap":{px},"low":{px},"high":{px},"change":{px},"change_pct":%.2f,'
            '"timestamp":"%s"}]}'
        )
        self._trade = f'{head}"side":%s,"price":{px},"qty":{qty},"ord_type":"market","trade_id":%d,"timestamp":"%s"}}'
        self._level = f'{{"price":{px},"qty":{qty}}}'
        self._ohlc = (
            f'{head}"open":{px},"high":{px},"low":{px},"close":{px},"vwap":{px},"trades":%d,"volume":%s,'
            '"interval_begin":"%s","interval":%d,"timestamp":"%s"}'
        )

    def price(self, ticks: int) -> str:
        """Return a price as JSON: a fixed-point number, or null where there is none."""
        return "null" if ticks == MISSING else fixed(ticks, self._price_precision)

    def qty(self, lots: int) -> str:
        """Return a quantity as JSON."""
        return fixed(lots, self._qty_precision)

    def ticker(self, kind: str, row: Sequence[float], timestamp: str) -> bytes:
        """Return the frame of a ticker message.

        Args:
            kind: ``snapshot`` or ``update``.
            row: bid, bid_qty, ask, ask_qty, last, volume, vwap, low, high, change in ticks and lots, and change_pct
                in percent. A price may be :data:`feeds.records.MISSING`.
            timestamp: RFC 3339.
        """
        p, q = self._price_scale, self._qty_scale
        bid, bid_qty, ask, ask_qty, last, volume, vwap, low, high, change, change_pct = row
        if MISSING in (bid, ask, last) or volume > MAX_UNITS:
            return self._partial_ticker(kind, row, timestamp)
        text = self._ticker % (
            kind, bid / p, bid_qty / q, ask / p, ask_qty / q, last / p, volume / q, vwap / p, low / p, high / p,
            change / p, change_pct, timestamp,
        )  # fmt: skip
        return frame(text.encode())

    def _partial_ticker(self, kind: str, row: Sequence[float], timestamp: str) -> bytes:
        """The same message where a side is empty, nothing was traded yet, or a sum outgrew a double."""
        bid, bid_qty, ask, ask_qty, last, volume, vwap, low, high, change, change_pct = row
        untraded = last == MISSING
        prices = [self.price(int(v)) for v in (bid, ask, last)]
        rest = ["null"] * 4 if untraded else [self.price(round(v)) for v in (vwap, low, high, change)]
        text = (
            f'{{"channel":"ticker","type":"{kind}","data":[{{"symbol":"{self.name}","bid":{prices[0]},'
            f'"bid_qty":{self.qty(int(bid_qty))},"ask":{prices[1]},"ask_qty":{self.qty(int(ask_qty))},'
            f'"last":{prices[2]},"volume":{self.qty(int(volume))},"vwap":{rest[0]},"low":{rest[1]},"high":{rest[2]},'
            f'"change":{rest[3]},"change_pct":{"null" if untraded else f"{change_pct:.2f}"},'
            f'"timestamp":"{timestamp}"}}]}}'
        )
        return frame(text.encode())

    def trades(self, kind: str, rows: Iterable[tuple[int, int, int, int, int]]) -> bytes:
        """Return the frame of a trade message.

        Args:
            kind: ``snapshot`` or ``update``.
            rows: (side, price ticks, qty lots, trade_id, time ns), oldest first. An unknown side prints as null.
        """
        p, q, row = self._price_scale, self._qty_scale, self._trade
        data = ",".join(
            [row % (_SIDES[side], price / p, qty / q, tid, rfc3339(ts)) for side, price, qty, tid, ts in rows]
        )
        return frame(f'{{"channel":"trade","type":"{kind}","data":[{data}]}}'.encode())

    def book(
        self,
        kind: str,
        bids: Iterable[tuple[int, int]],
        asks: Iterable[tuple[int, int]],
        checksum: int,
        timestamp: str,
    ) -> bytes:
        """Return the frame of a book message; levels are (price ticks, qty lots), quantity 0 deletes."""
        p, q, level = self._price_scale, self._qty_scale, self._level
        bid_text = ",".join([level % (price / p, qty / q) for price, qty in bids])
        ask_text = ",".join([level % (price / p, qty / q) for price, qty in asks])
        return frame(
            f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{self.name}","bids":[{bid_text}],'
            f'"asks":[{ask_text}],"checksum":{checksum},"timestamp":"{timestamp}"}}]}}'.encode()
        )

    def ohlc(self, kind: str, candles: Iterable[Candle], minutes: int, timestamp: str) -> bytes:
        """Return the frame of an ohlc message.

        Args:
            kind: ``snapshot`` or ``update``.
            candles: Oldest first.
            minutes: Length of a candle.
            timestamp: RFC 3339 of the message, beside ``data`` as Kraken has it.
        """
        rows = ",".join([self._candle(candle, minutes) for candle in candles])
        return frame(f'{{"channel":"ohlc","type":"{kind}","timestamp":"{timestamp}","data":[{rows}]}}'.encode())

    def _candle(self, candle: Candle, minutes: int) -> str:
        p = self._price_scale
        return self._ohlc % (
            candle.open / p, candle.high / p, candle.low / p, candle.close / p, candle.vwap / p, candle.trades,
            self.qty(candle.volume), rfc3339(candle.begin_ns), minutes,
            rfc3339(candle.begin_ns + minutes * 60 * NS),
        )  # fmt: skip


_SIDES = {BUY: '"buy"', SELL: '"sell"', 0: "null"}
