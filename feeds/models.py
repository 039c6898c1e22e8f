"""Price models, the pairs they are applied to, and the random numbers they are fed.

Everything here is arithmetic on flat arrays: one entry per event, the events of one symbol side by side in the
order of time. The models must not know of tables, batches or clocks, and they draw nothing themselves: the caller
hands them uniforms and normals, so that what a symbol does depends on its own stream of numbers alone.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from feeds.errors import OptionError
from feeds.instruments import Instrument, Instruments
from feeds.records import I64

F64 = npt.NDArray[np.float64]

_SYMBOL: Final = re.compile(r"[A-Z0-9._-]{1,16}/[A-Z0-9]{2,8}")
DAYS_PER_YEAR: Final = 365  #: these markets never close
NS_PER_YEAR: Final = DAYS_PER_YEAR * 86_400 * 1_000_000_000


def stable_hash(text: str) -> tuple[int, int]:
    """Return two 32-bit numbers that depend on the text only, unlike :func:`hash`, which is salted per process."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """What a pair looks like when its simulation begins.

    Attributes:
        price: Units of the quote currency per unit of the base.
        price_precision: Decimals of a price.
        qty_precision: Decimals of a quantity.
        daily_volatility: Standard deviation of the log return over one day.
        qty: Median size at the touch, in units of the base.
    """

    price: float
    price_precision: int
    qty_precision: int = 8
    daily_volatility: float
    qty: float

    @property
    def volatility(self) -> float:
        """Standard deviation of the log return over one year."""
        return self.daily_volatility * math.sqrt(DAYS_PER_YEAR)

    @property
    def price_ticks(self) -> float:
        """The price in ticks, not rounded."""
        return self.price * 10.0**self.price_precision

    @property
    def qty_lots(self) -> float:
        """The median size at the touch in lots, not rounded."""
        return self.qty * 10.0**self.qty_precision


#: Decimals as Kraken prints these pairs, prices and volatilities of the order seen in 2024 and 2025.
_KNOWN: Final = {
    symbol: Pair(price=price, price_precision=precision, daily_volatility=volatility, qty=qty)
    for symbol, price, precision, volatility, qty in (
        ("BTC/USD", 95_000.0, 1, 0.025, 0.05),
        ("BTC/EUR", 88_000.0, 1, 0.025, 0.05),
        ("ETH/USD", 3_200.0, 2, 0.034, 1.0),
        ("ETH/EUR", 2_950.0, 2, 0.034, 1.0),
        ("ETH/BTC", 0.0336, 5, 0.020, 1.0),
        ("SOL/USD", 180.0, 2, 0.045, 12.0),
        ("XRP/USD", 2.30, 5, 0.045, 1_500.0),
        ("ADA/USD", 0.75, 6, 0.048, 3_000.0),
        ("DOGE/USD", 0.25, 7, 0.052, 9_000.0),
        ("LTC/USD", 105.0, 2, 0.040, 20.0),
        ("BCH/USD", 430.0, 2, 0.042, 5.0),
        ("DOT/USD", 6.5, 4, 0.046, 300.0),
        ("LINK/USD", 18.0, 5, 0.048, 100.0),
        ("AVAX/USD", 32.0, 2, 0.048, 60.0),
        ("USDT/USD", 1.0, 5, 0.0006, 20_000.0),
        ("EUR/USD", 1.085, 5, 0.0045, 15_000.0),
        ("GBP/USD", 1.27, 5, 0.0050, 12_000.0),
        ("AUD/USD", 0.655, 5, 0.0060, 20_000.0),
        ("USD/JPY", 151.0, 3, 0.0058, 15_000.0),
        ("USD/CHF", 0.885, 5, 0.0045, 15_000.0),
    )
}


def pair(symbol: str) -> Pair:
    """Return what is known of a pair; of an unknown one something plausible that depends on its name only."""
    if symbol in _KNOWN:
        return _KNOWN[symbol]
    first, second = stable_hash(symbol)
    price = round(10.0 ** (3 * first / 2**32), 2)  # 1 to 1,000, as likely below 10 as above 100
    # At least 10,000 ticks, so that one tick is a basis point or less and the deepest book stays above zero.
    precision = 4 if price < 10 else 3 if price < 100 else 2
    return Pair(
        price=price,
        price_precision=precision,
        daily_volatility=round(0.02 + 0.04 * second / 2**32, 4),
        qty=2_000 / price,
    )


def instruments_of(symbols: Sequence[str]) -> Instruments:
    """Return the instruments of pairs, in their order.

    Raises:
        OptionError: There is none, one is not of the form BASE/QUOTE, or one is there twice.
    """
    if not symbols:
        raise OptionError("symbols: none is given; allowed is at least one symbol")
    for symbol, times in Counter(symbols).items():
        if not _SYMBOL.fullmatch(symbol):
            raise OptionError(f"symbols: {symbol!r} is not of the form BASE/QUOTE, as in BTC/USD: {_SYMBOL.pattern}")
        if times > 1:
            raise OptionError(f"symbols: each symbol once, and {symbol} is there more often")
    return Instruments(map(_instrument, symbols))


def _instrument(symbol: str) -> Instrument:
    base, quote = symbol.split("/")
    known = pair(symbol)
    return Instrument(
        symbol=symbol,
        base=base,
        quote=quote,
        price_precision=known.price_precision,
        qty_precision=known.qty_precision,
    )


class PriceModel(Protocol):
    """How the log price of every symbol moves; it may keep a state per symbol (a variance, an intensity).

    Attributes:
        normals: Standard normal numbers that one event needs.
        uniforms: Uniform numbers in [0, 1) that one event needs.
    """

    normals: int
    uniforms: int

    def log_returns(self, ids: I64, years: F64, normals: F64, uniforms: F64) -> F64:
        """Return each event's log return since the event before it of the same symbol.

        Args:
            ids: Shape ``(events,)``: dense ids, ascending; the events of one id are in the order of time.
            years: Shape ``(events,)``: time since that symbol's event before, in years, >= 0.
            normals: Shape ``(self.normals, events)``.
            uniforms: Shape ``(self.uniforms, events)``.

        Returns:
            float64, shape ``(events,)``. Each is computed from its own symbol's entries alone.
        """
        ...


class GeometricBrownianMotion:
    """Log returns that are independent and normal, without drift of the price itself.

    ``ln S(t+dt) - ln S(t) = -s^2/2 dt + s sqrt(dt) z`` with the annualised volatility ``s``: the solution of
    ``dS = s S dW`` (Black and Scholes, "The Pricing of Options and Corporate Liabilities", Journal of Political
    Economy 81 (1973), 637-654). The term ``-s^2/2`` makes the price, not its logarithm, a martingale.

    Args:
        volatility: float64, shape ``(symbols,)``: standard deviation of the log return over one year.
    """

    normals = 1
    uniforms = 0

    def __init__(self, volatility: F64) -> None:
        self._volatility = volatility

    def log_returns(self, ids: I64, years: F64, normals: F64, uniforms: F64) -> F64:
        """Return each event's log return; see :meth:`PriceModel.log_returns`."""
        deviation = self._volatility[ids] * np.sqrt(years)
        returns: F64 = deviation * (normals[0] - 0.5 * deviation)
        return returns


class MertonJumpDiffusion:
    """Geometric Brownian motion with lognormal jumps that arrive as a Poisson process.

    Merton, "Option pricing when underlying stock returns are discontinuous", Journal of Financial Economics 3
    (1976), 125-144, his equation for ``S(t)``: over ``dt`` the log return is
    ``(-s^2/2 - l k) dt + s sqrt(dt) z + sum of N normals(m, d)`` with ``N`` Poisson of mean ``l dt`` and
    ``k = exp(m + d^2/2) - 1``. Here ``m = -d^2/2``, hence ``k = 0``: a jump has mean size zero and the price is a
    martingale. Given ``N``, the sum of the jumps is one normal of mean ``N m`` and variance ``N d^2``.

    Args:
        volatility: float64, shape ``(symbols,)``: standard deviation of the log return over one year, of
            diffusion and jumps together.
    """

    normals = 2
    uniforms = 1

    #: One jump in half an hour: rare enough to be an event, frequent enough to be met in a session.
    JUMPS_PER_DAY = 48
    #: The jumps' part of the variance; a jump then deviates by 0.1 of the daily volatility.
    JUMP_SHARE = 0.5

    def __init__(self, volatility: F64) -> None:
        self._intensity = float(self.JUMPS_PER_DAY * DAYS_PER_YEAR)
        self._diffusion = GeometricBrownianMotion(volatility * (1 - self.JUMP_SHARE) ** 0.5)
        self._jump = volatility * (self.JUMP_SHARE / self._intensity) ** 0.5

    def log_returns(self, ids: I64, years: F64, normals: F64, uniforms: F64) -> F64:
        """Return each event's log return; see :meth:`PriceModel.log_returns`."""
        returns = self._diffusion.log_returns(ids, years, normals[:1], uniforms)
        jumps = poisson(uniforms[0], self._intensity * years)
        at = np.flatnonzero(jumps)
        deviation = self._jump[ids[at]] * np.sqrt(jumps[at])
        returns[at] += deviation * normals[1, at] - 0.5 * jumps[at] * self._jump[ids[at]] ** 2
        return returns


#: The models by the name that ``SimulationOptions.model`` gives them; each takes the annualised volatilities.
MODELS: Final[dict[str, Callable[[F64], PriceModel]]] = {
    "gbm": GeometricBrownianMotion,
    "jump": MertonJumpDiffusion,
}


def poisson(uniforms: F64, means: F64) -> F64:
    """Return Poisson numbers of small, differing means by inversion: one number for each uniform.

    Means above 700 are taken as 700, where ``exp(-mean)`` is still a normal double; a mean that large is a silence
    of two weeks in :class:`MertonJumpDiffusion`.
    """
    means = np.minimum(means, 700.0)
    term = np.exp(-means)
    below = term.copy()
    counts = np.zeros(len(uniforms))
    # Far out in the tail the sum stops growing before it reaches one; a term that small ends the search.
    for k in range(1, 2_000):
        above = (uniforms >= below) & ((term > 1e-20) | (k < means))
        if not above.any():
            break
        counts += above
        term *= means / k
        below += term
    return counts


def poisson_table(mean: float) -> F64:
    """Return the distribution function of a Poisson number of one mean, from 0 to beyond twelve deviations.

    ``np.searchsorted(table, u, side="right")`` is then such a number, and less than ``len(table)``.
    """
    numbers = np.arange(1, int(mean + 12 * mean**0.5) + 20, dtype=np.float64)
    logs = np.concatenate(([0.0], np.cumsum(np.log(mean / numbers)))) - mean
    table = np.cumsum(np.exp(logs))
    table /= table[-1]
    return table


class RandomStreams:
    """One endless stream of random numbers per symbol, read by many symbols at once in runs of one length.

    A stream depends on the seed, the symbol's name and the purpose, never on which other symbols there are or on how
    many numbers are drawn at once. Each is drawn in blocks into its row of one array; a row is refilled only when it
    could run out, because a call into a generator costs as much as hundreds of the numbers it returns.

    Args:
        seed: The seed of all streams, >= 0.
        symbols: The names.
        purpose: Tells the streams of one symbol apart.
        normal: Standard normal numbers instead of uniform ones in [0, 1).
        size: Numbers in a run.
        reserve: The most runs that one symbol takes between two calls of :meth:`refill`.
    """

    #: Numbers in all rows together, if the reserve allows: 16 MiB, some seconds of a usual load.
    BUDGET = 2**21
    #: Numbers in a row, at most: beyond it the cost of a call no longer matters.
    ROW = 8_192

    def __init__(
        self, seed: int, symbols: Sequence[str], purpose: int, *, normal: bool, size: int, reserve: int
    ) -> None:
        keys = [(*stable_hash(symbol), purpose) for symbol in symbols]
        generators = [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=k))) for k in keys]
        self._draw = [g.standard_normal if normal else g.random for g in generators]
        self._size = size
        self._width = max(2 * reserve * size, min(self.ROW, self.BUDGET // len(symbols)))
        self._rows = np.empty((len(symbols), self._width))
        # Row i of this view is flat[i : i + size]: one index per run instead of one per number, 4 times faster.
        flat = self._rows.reshape(-1)
        self._runs = np.lib.stride_tricks.as_strided(
            flat, (len(flat) - size + 1, size), (flat.itemsize, flat.itemsize), writeable=False
        )
        # Where each symbol's next number is, in the flat view of the rows; at first all rows are used up.
        self._ends = np.arange(1, len(symbols) + 1, dtype=np.int64) * self._width
        self._next = self._ends.copy()
        self._refill_from = self._ends - reserve * size

    def refill(self) -> None:
        """Make sure that every symbol can take its reserve."""
        for row in (self._next > self._refill_from).nonzero()[0].tolist():
            left = int(self._ends[row] - self._next[row])
            numbers = self._rows[row]
            numbers[:left] = numbers[self._width - left :].copy()
            self._draw[row](out=numbers[left:])
            self._next[row] = self._ends[row] - self._width

    def take(self, ids: I64) -> F64:
        """Return the next run of the symbols ``ids``, none of them twice; shape ``(ids, size)``."""
        numbers: F64 = self._runs[self._next[ids]]
        self._next[ids] += self._size
        return numbers

    def take_runs(self, ids: I64, counts: I64) -> F64:
        """Return one run for each event, shape ``(events, size)``.

        Args:
            ids: Shape ``(events,)``: the symbol of each event, ascending.
            counts: Shape ``(symbols,)``: how often each id occurs in ``ids``.
        """
        runs_before = counts.cumsum() - counts
        first = self._next - runs_before * self._size
        numbers: F64 = self._runs[first[ids] + np.arange(len(ids)) * self._size]
        self._next += counts * self._size
        return numbers
