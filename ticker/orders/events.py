"""What the journal keeps: everything that has changed accounts and orders, in order.

An event says what happened, never how it was decided; the same events always lead to the same state
(:mod:`ticker.orders.ledger`), whatever market is served by then. Times are market time, int ns UTC: no event knows
the clock on the wall, so the same commands at the same instants of the same market make the same journal.
"""

from __future__ import annotations

from typing import Final

import msgspec

from ticker.orders.order import Terms


class Listed(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """An instrument can be traded; its precisions say what the integers of its orders mean."""

    symbol: str
    base: str
    quote: str
    price_precision: int
    qty_precision: int


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """An account begins with these balances, by asset, as decimal text."""

    account: str
    balances: dict[str, str]


class Placed(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """An order was accepted; ``body`` is the digest of the request, ``fee_ppm`` the highest fee that may fall due."""

    ts: int
    key: int
    account: str
    terms: Terms
    body: str
    fee_ppm: int


class Filled(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """An order traded ``qty`` lots at ``price`` ticks; ``fee`` is in ticks times lots."""

    ts: int
    key: int
    price: int
    qty: int
    fee: int
    maker: bool
    trade_id: int


class Amended(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """An open order has other terms from now on."""

    ts: int
    key: int
    terms: Terms


class Triggered(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The price that a stop waits for was traded."""

    ts: int
    key: int


class Canceled(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """An open order was taken out."""

    ts: int
    key: int
    reason: str


class Expired(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The time of an open order has come."""

    ts: int
    key: int


class Halted(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """An account's kill switch was pulled (``halted``) or released."""

    ts: int
    account: str
    halted: bool


Event = Listed | Opened | Placed | Filled | Amended | Triggered | Canceled | Expired | Halted

encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(Event).decode
