"""What the instruments of a recording are that does not say so itself: learned from every row of it.

This module must not know how files are read, nor where what was learned is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feeds.errors import RecordingError
from feeds.instruments import MAX_UNITS, Instrument, Instruments
from feeds.layout import MAX_DECIMALS, PRICES, QUANTITIES, floats, inexact, symbol_codes
from feeds.records import I64

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_POWERS: Final[F64] = np.array([10.0**decimals for decimals in range(MAX_DECIMALS + 1)])
#: Values up to here are within ``MAX_UNITS`` whatever decimals they turn out to have.
_ALWAYS_FITS: Final = MAX_UNITS / 10**MAX_DECIMALS

#: Venues whose symbols are a base and a quote currency run together.
PAIR_VENUES: Final = frozenset(
    {"BINANCE", "BINANCE_SPOT", "BINANCE-FUTURES", "BINANCE-US", "BYBIT", "BYBIT-SPOT"}
    | {"MEXC", "BITGET", "KUCOIN", "HUOBI", "HTX", "KRAKEN"}
)
#: Currencies that such a symbol may end with.
QUOTE_CURRENCIES: Final = (
    *("USDT", "USDC", "FDUSD", "TUSD", "BUSD", "USDP", "DAI", "BTC", "ETH", "BNB"),
    *("EUR", "GBP", "TRY", "BRL", "JPY", "AUD", "ARS", "PLN", "UAH", "ZAR", "USD"),
)


def split_pair(symbol: str, venue: str) -> tuple[str, str]:
    """Return base and quote currency of a symbol; the symbol itself and "" where that cannot be told."""
    base, slash, quote = symbol.partition("/")
    if slash:
        return base, quote
    if venue.upper() in PAIR_VENUES:
        for currency in sorted(QUOTE_CURRENCIES, key=len, reverse=True):
            if symbol.endswith(currency) and symbol != currency:
                return symbol.removesuffix(currency), currency
    return symbol, ""


class _Column:
    """What has been seen of prices or of quantities.

    Attributes:
        decimals: int64, shape ``(symbols,)``: the decimals needed.
        step: int64, shape ``(symbols,)``: the common step, in units of the last decimal.
        largest: float64, shape ``(symbols,)``: the largest absolute value above :data:`_ALWAYS_FITS`, else 0.
    """

    def __init__(self) -> None:
        self.decimals = np.zeros(0, dtype=np.int64)
        self.step = np.ones(0, dtype=np.int64)
        self.largest = np.zeros(0, dtype=np.float64)

    def grow(self, symbols: int) -> None:
        new = symbols - len(self.decimals)
        self.decimals = np.append(self.decimals, np.zeros(new, dtype=np.int64))
        self.step = np.append(self.step, np.ones(new, dtype=np.int64))
        self.largest = np.append(self.largest, np.zeros(new, dtype=np.float64))

    def beyond(self, ids: I64, values: F64) -> Mask:
        """Take in how large values are, and return the symbols of which one, now or before, has too many units."""
        if max(values.max(), -values.min()) > _ALWAYS_FITS:
            np.maximum.at(self.largest, ids, np.abs(values))
        found: Mask = np.rint(self.largest * _POWERS[self.decimals]) > MAX_UNITS
        return found

    def units(self, ids: I64, values: F64) -> tuple[F64, I64]:
        """Return values in units of the last decimal, and the positions that no allowed decimals can print."""
        scale = _POWERS[self.decimals][ids]
        units = np.rint(values * scale)
        rest = np.flatnonzero(units / scale != values)
        if not len(rest):
            return units, rest
        rest = rest[inexact(values[rest], scale[rest])]
        while len(rest) and self.decimals[more := np.unique(ids[rest])].max() < MAX_DECIMALS:
            self.decimals[more] += 1
            self.step[more] *= 10
            rest = rest[inexact(values[rest], _POWERS[self.decimals[ids[rest]]])]
        return np.rint(values * _POWERS[self.decimals][ids]), rest

    def divide(self, ids: I64, units: F64) -> None:
        """Take integers into the common step, which starts as one whole unit of price."""
        if (self.step != 1).any():
            ticks = units.astype(np.int64)
            odd = ticks % self.step[ids] != 0  # few, once the step is found: the slow part is then skipped
            np.gcd.at(self.step, ids[odd], ticks[odd])


class Inference:
    """Infers instruments from the symbols, prices and quantities of a recording, one record batch at a time."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._venues: dict[str, str] = {}
        self._prices, self._quantities = _Column(), _Column()

    def update(self, kind: str, path: Path, first_row: int, batch: pa.RecordBatch) -> None:
        """Take in a batch that holds symbol, prices, quantities and, if the file has it, venue.

        Raises:
            RecordingError: A value needs more than :data:`MAX_DECIMALS` decimals or is beyond ``MAX_UNITS``.
        """
        ids = self._symbol_ids(batch)
        rows = np.arange(first_row, first_row + batch.num_rows)
        for names, seen in ((PRICES[kind], self._prices), (QUANTITIES[kind], self._quantities)):
            seen.grow(len(self._ids))
            for name in names:
                values = floats(batch.column(name), np.nan)
                where = f"{path}: row {{}}: {name}"
                if (absent := np.isnan(values) | (ids < 0)).any():
                    self._take(seen, ids[~absent], values[~absent], where, rows[~absent])
                else:
                    self._take(seen, ids, values, where, rows)

    def _symbol_ids(self, batch: pa.RecordBatch) -> I64:
        codes, symbols = symbol_codes(batch.column("symbol"))
        venue = batch.column("venue")[0].as_py() if "venue" in batch.schema.names and batch.num_rows else None
        lookup = np.full(len(symbols) + 1, -1, dtype=np.int64)
        # A dictionary may also list symbols that no row has; those are no instruments.
        for code in np.flatnonzero(np.bincount(codes + 1, minlength=1)[1:]):
            if (symbol := symbols[code]) is not None:
                lookup[code] = self._ids.setdefault(symbol, len(self._ids))
                self._venues.setdefault(symbol, venue or "")
        return lookup[codes]

    def _take(self, seen: _Column, ids: I64, values: F64, where: str, rows: I64) -> None:
        def refuse(at: int, why: str) -> NoReturn:
            raise RecordingError(f"{where.format(rows[at])} {values[at]} {why}")

        if not len(values):
            return
        if max(values.max(), -values.min()) > MAX_UNITS:
            refuse(int(np.argmax(np.abs(values))), f"is beyond {MAX_UNITS}; mend or leave out the row")
        units, unfit = seen.units(ids, values)
        if len(unfit):
            refuse(
                int(unfit[0]),
                f"has over {MAX_DECIMALS} decimals; round it, or name its precision in an instruments file",
            )
        if (beyond := seen.beyond(ids, values)).any():
            symbol = int(np.argmax(beyond))
            units = np.where(ids == symbol, np.abs(units), 0.0)
            if units.max() > MAX_UNITS:
                at, what = int(np.argmax(units)), f"is beyond {MAX_UNITS} units of the symbol's last decimal"
            else:
                coarser = _POWERS[seen.decimals[ids] - 1]
                at = int(np.argmax((ids == symbol) & inexact(values, coarser)))
                what = f"has more decimals than {seen.largest[symbol]:.15g} before it can have within {MAX_UNITS} units"
            refuse(at, f"{what}; mend or leave out the row")
        if seen is self._prices:
            seen.divide(ids, units)

    def instruments(self) -> Instruments:
        """Return what was seen, sorted by symbol."""
        return Instruments(self._instrument(symbol, at) for symbol, at in sorted(self._ids.items()))

    def _instrument(self, symbol: str, at: int) -> Instrument:
        base, quote = split_pair(symbol, self._venues[symbol])
        pair = f"{base}/{quote}"
        return Instrument(
            symbol=symbol,
            base=base,
            quote=quote,
            price_precision=int(self._prices.decimals[at]),
            qty_precision=int(self._quantities.decimals[at]),
            price_increment=int(self._prices.step[at]),
            aliases=(pair,) if quote and pair != symbol else (),
        )
