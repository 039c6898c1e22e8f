"""Instruments: what a symbol means in integers, and the dense ids that stand for it on the bus.

Prices travel as ``int64`` *ticks* and quantities as ``int64`` *lots*. A tick is the last printed decimal of a
price, ``10**-price_precision``; a lot is ``10**-qty_precision``. A venue's own increment may be several ticks
(0.25 on the E-mini is 25 ticks of 0.01). Counting in printed decimals makes printing exact and makes the text of
a price in a checksum simply ``str(ticks)``.

This module must not know of feeds, files or the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.errors import RecordingError, UnknownSymbolError

#: Integers beyond this are refused at a feed's edge: up to here ``ticks / 10**precision`` printed with
#: ``precision`` decimals gives back the exact digits, because a double's relative error is at most 2**-53.
MAX_UNITS = 2**52
#: With one decimal more even a whole 1 would be beyond :data:`MAX_UNITS`.
MAX_PRECISION = 15


class SymbolError(RecordingError):
    """An instrument has a name that cannot be used as one; of recordings, since most names come from there."""


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """One tradable instrument.

    Attributes:
        symbol: Its name on this market, as recorded or as configured ("BTC/USD", "BTCUSDT").
        base: What is bought and sold; the symbol itself where that is not known.
        quote: The currency of the price; empty where that is not known.
        price_precision: Decimals of a price; one tick is ``10**-price_precision``.
        qty_precision: Decimals of a quantity; one lot is ``10**-qty_precision``.
        price_increment: The venue's smallest price step, in ticks.
        qty_increment: The venue's smallest quantity step, in lots.
        qty_min: The smallest order, in lots.
        aliases: Further names under which it is offered ("BTC/USDT" for "BTCUSDT").
    """

    symbol: str
    base: str
    quote: str
    price_precision: int
    qty_precision: int
    price_increment: int = 1
    qty_increment: int = 1
    qty_min: int = 1
    aliases: tuple[str, ...] = ()

    @property
    def price_scale(self) -> float:
        """Ticks per unit of price: ``10**price_precision``."""
        return float(10**self.price_precision)

    @property
    def qty_scale(self) -> float:
        """Lots per unit of quantity: ``10**qty_precision``."""
        return float(10**self.qty_precision)


class Instruments(Sequence[Instrument]):
    """The fixed list of a market's instruments; the position in it is the instrument's dense id.

    Venues have names with spaces, dots, colons, quotes and letters of any script, so every printable text is a name.
    What is not printable would garble terminals and logs, and half of a surrogate pair cannot be sent at all.

    Raises:
        SymbolError: A name is empty or not printable.

    Attributes:
        price_scale: float64, shape ``(n,)``: ticks per unit of price. Read only.
        qty_scale: float64, shape ``(n,)``: lots per unit of quantity. Read only.
    """

    price_scale: npt.NDArray[np.float64]
    qty_scale: npt.NDArray[np.float64]

    def __init__(self, instruments: Iterable[Instrument]) -> None:
        self._items = tuple(instruments)
        self._ids: dict[str, int] = {}
        # An alias never hides another instrument's own name, so own names are entered first.
        for names in ([i.symbol] for i in self._items), (i.aliases for i in self._items):
            for dense_id, own in enumerate(names):
                for name in own:
                    self._ids.setdefault(name, dense_id)
        if odd := [name for name in self._ids if not name or not name.isprintable()]:
            raise SymbolError(f"{odd[0]!a} is no name of an instrument; a name is printable text")
        self.price_scale = np.array([i.price_scale for i in self._items], dtype=np.float64)
        self.qty_scale = np.array([i.qty_scale for i in self._items], dtype=np.float64)
        self.price_scale.flags.writeable = False
        self.qty_scale.flags.writeable = False

    @overload
    def __getitem__(self, index: int) -> Instrument: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Instrument]: ...
    def __getitem__(self, index: int | slice) -> Instrument | Sequence[Instrument]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Instrument]:
        return iter(self._items)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that :meth:`id_of` knows: symbols first, then aliases."""
        return tuple(self._ids)

    def id_of(self, name: str) -> int:
        """Return the dense id of a symbol or alias.

        Raises:
            UnknownSymbolError: No instrument has that name.
        """
        try:
            return self._ids[name]
        except KeyError:
            raise UnknownSymbolError(f"no instrument is named {name!r}") from None
