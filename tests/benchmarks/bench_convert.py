"""Converting: rows a second of one core, from a vendor's file to a finished recording.

The peer is what no reader in Python can beat by much, pyarrow's own parser of the same file, which neither checks nor
writes anything. Processor time is what is divided by, so other work on the machine hardly shows. Takes about half a
minute; run alone with ``PYTHONPATH=. python FILE``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv

from feeds.convert import Conversion, ConvertOptions
from tests.benchmarks.report import Row, print_table

ROWS = 500_000
PASSES = 3
START_US = 1_723_118_400_000_000


class Input(NamedTuple):
    """A file to convert.

    Attributes:
        what: In words.
        write: Writes it into a folder and returns its path.
        peer: Reads it as the peer does, and the peer's name.
        target: Rows a second to reach.
    """

    what: str
    write: Callable[[Path], Path]
    peer: tuple[str, Callable[[Path], object]]
    target: int


def _pyarrow(path: Path) -> None:
    """Parse a CSV file in blocks, in this thread, with types inferred."""
    with pcsv.open_csv(path, read_options=pcsv.ReadOptions(use_threads=False)) as reader:
        for _ in reader:
            pass


def _market(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return microseconds, prices and quantities of a busy market."""
    rng = np.random.default_rng(1)
    times = START_US + np.cumsum(rng.integers(0, 1_000, rows))
    price = np.round(60_000 + np.cumsum(rng.integers(-2, 3, rows)) * 0.1, 1)
    return times, price, rng.integers(1, 5_000, rows) / 1_000


def _csv(path: Path, columns: dict[str, object], *, header: bool = True) -> Path:
    options = pcsv.WriteOptions(include_header=header, quoting_style="none", quoting_header="none")
    pcsv.write_csv(pa.table(columns), path, options)
    return path


def _tardis(folder: Path, name: str, columns: dict[str, object], times: np.ndarray) -> Path:
    words = {"exchange": ["binance-futures"] * len(times), "symbol": ["BTCUSDT"] * len(times)}
    return _csv(folder / name, words | {"timestamp": times, "local_timestamp": times + 900} | columns)


def _trades(folder: Path) -> Path:
    times, price, qty = _market(ROWS)
    ids = [f"{number}" for number in range(10**9, 10**9 + ROWS)]
    columns = {"id": ids, "side": np.where(qty < 2.5, "buy", "sell").tolist(), "price": price, "amount": qty}
    return _tardis(folder, "trades.csv", columns, times)


def _quotes(folder: Path) -> Path:
    times, price, qty = _market(ROWS)
    columns = {"ask_amount": qty, "ask_price": price, "bid_price": np.round(price - 0.1, 1), "bid_amount": qty[::-1]}
    return _tardis(folder, "quotes.csv", columns, times)


def _book(folder: Path) -> Path:
    times, price, qty = _market(ROWS)
    side = np.where(qty < 2.5, "bid", "ask").tolist()
    columns = {"is_snapshot": ["false"] * ROWS, "side": side, "price": price, "amount": qty}
    return _tardis(folder, "incremental_book_L2.csv", columns, np.repeat(times[::20], 20)[:ROWS])


def _aggregates(folder: Path) -> Path:
    times, price, qty = _market(ROWS)
    number = np.arange(ROWS)
    columns = {
        "a": number,
        "p": price,
        "q": qty,
        "f": number,
        "l": number,
        "T": times // 1_000,
        "m": qty < 2.5,
        "M": qty > 0,
    }
    return _csv(folder / "BTCUSDT-aggTrades-2024-08-08.csv", columns, header=False)


PYARROW = ("pyarrow.csv alone", _pyarrow)
INPUTS = [
    Input("tardis trades CSV", _trades, PYARROW, 1_000_000),
    Input("tardis quotes CSV", _quotes, PYARROW, 1_000_000),
    Input("tardis incremental_book_L2 CSV", _book, PYARROW, 1_000_000),
    Input("Binance aggTrades CSV without header", _aggregates, PYARROW, 1_000_000),
]


def _cpu_seconds(work: Callable[[], object]) -> float:
    """Return the median processor time of several passes."""
    seconds = []
    for _ in range(PASSES):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return median(seconds)


def _converted(path: Path, folder: Path) -> int:
    return Conversion([path], ConvertOptions(force=True)).write(folder / "out").rows


def rows() -> Iterator[Row]:
    """Measure, one input at a time."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for source in INPUTS:
            path = source.write(folder)
            count = _converted(path, folder)  # also warms up
            ours = count / _cpu_seconds(lambda path=path: _converted(path, folder))
            name, peer = source.peer
            theirs = count / _cpu_seconds(lambda path=path, peer=peer: peer(path))
            path.unlink()
            yield Row(
                what=f"{source.what} to a recording, {count:,} rows, median of {PASSES}",
                figure=f"{ours:,.0f} rows/s of one core",
                compared_with=f"{name}: {theirs:,.0f} rows/s",
                target=f"at least {source.target:,} rows/s",
                reached=ours >= source.target,
            )


if __name__ == "__main__":
    print_table("Convert", rows())
