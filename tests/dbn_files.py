"""Writes DBN as Databento does, record by record with ``struct``: what the reader is tested against."""

from __future__ import annotations

import struct
from datetime import date

NO_PRICE = 2**63 - 1
NO_TIME = 2**64 - 1
#: By name: number and length of the fields behind the header of 16 bytes.
SIZES = {1: (80, 360), 2: (176, 400), 3: (176, 520)}


def cstr(text: str, width: int) -> bytes:
    return text.encode().ljust(width, b"\0")


def header(
    version: int,
    mappings: dict[str, list[tuple[date, date, str]]],
    *,
    dataset: str = "GLBX.MDP3",
    symbols: tuple[str, ...] = ("ESH4",),
    by_id: bool = False,
    ts_out: bool = False,
) -> bytes:
    width = 22 if version == 1 else 71
    fixed = cstr(dataset, 16) + struct.pack("<HQQQ", 0xFFFF, 0, NO_TIME, 0)
    if version == 1:
        fixed += struct.pack("<Q", 0)
    fixed += bytes([0 if by_id else 1, 1 if by_id else 0, ts_out])
    if version > 1:
        fixed += struct.pack("<H", width)
    body = fixed.ljust(100, b"\0") + struct.pack("<I", 0)
    body += struct.pack("<I", len(symbols)) + b"".join(cstr(symbol, width) for symbol in symbols)
    body += struct.pack("<I", 1) + cstr("PART", width) + struct.pack("<I", 0)
    body += struct.pack("<I", len(mappings))
    for raw, intervals in mappings.items():
        body += cstr(raw, width) + struct.pack("<I", len(intervals))
        for first, end, symbol in intervals:
            body += struct.pack("<II", _day(first), _day(end)) + cstr(symbol, width)
    body += bytes(-len(body) % 8)
    return b"DBN" + bytes([version]) + struct.pack("<I", len(body)) + body


def _day(day: date) -> int:
    return day.year * 10_000 + day.month * 100 + day.day


def record(rtype: int, body: bytes, *, instrument: int = 7, publisher: int = 1, ts_event: int = 0) -> bytes:
    assert len(body) % 4 == 0
    return struct.pack("<BBHIQ", (16 + len(body)) // 4, rtype, publisher, instrument, ts_event) + body


def _print(price, size, action, side, flags, ts_recv, sequence):
    head = struct.pack("<qIccBBQ", price, size, action.encode(), side.encode(), flags, 0, ts_recv)
    return head + struct.pack("<iI", 1_000, sequence)


def trade(ts, price, size, side="B", *, action="T", flags=0x80, sequence=1, rtype=0, out=b"", **head):
    return record(rtype, _print(price, size, action, side, flags, ts, sequence) + out, **{"ts_event": ts - 9, **head})


def top(ts, bid, ask, *, price=NO_PRICE, size=0, action="A", side="N", flags=0x80, sequence=1, rtype=1, **head):
    levels = struct.pack("<qqIIII", bid[0], ask[0], bid[1], ask[1], 1, 1)
    body = _print(price, size, action, side, flags, ts, sequence) + levels
    return record(rtype, body, **{"ts_event": ts - 9, **head})


def ten(ts, bids, asks, *, price=NO_PRICE, size=0, action="A", side="N", flags=0x80, sequence=1, **head):
    none = (NO_PRICE, 0)
    levels = b"".join(
        struct.pack("<qqIIII", bid[0], ask[0], bid[1], ask[1], 0, 0)
        for bid, ask in zip([*bids, *[none] * (10 - len(bids))], [*asks, *[none] * (10 - len(asks))], strict=True)
    )
    body = _print(price, size, action, side, flags, ts, sequence) + levels
    return record(10, body, **{"ts_event": ts - 9, **head})


def order(ts, action, order_id, price, size, side="B", *, flags=0x80, sequence=1, **head):
    body = struct.pack("<QqIBBcc", order_id, price, size, flags, 0, action.encode(), side.encode())
    return record(160, body + struct.pack("<QiI", ts, 1_000, sequence), **{"ts_event": ts - 9, **head})


def bar(ts, ohlc, volume, *, rtype=33, **head):
    return record(rtype, struct.pack("<qqqqQ", *ohlc, volume), ts_event=ts, **head)


def status(ts, **head):
    return record(18, struct.pack("<Q16x", ts), ts_event=ts, **head)


def definition(version, **head):
    return record(19, bytes(SIZES[version][1] - 16), **head)


def mapping(version, symbol, **head):
    """Say that an id stands for a symbol, in the middle of a stream."""
    if version == 1:
        return record(22, cstr("ES.FUT", 22) + cstr(symbol, 22) + bytes(20), **head)
    return record(22, b"\4" + cstr("ES.FUT", 71) + b"\1" + cstr(symbol, 71) + bytes(16), **head)
