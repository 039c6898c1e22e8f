"""Converting: rows a second, from a vendor's file to a finished recording.

The peer is what no reader in Python can beat by much, pyarrow's own parser of the same file, which neither checks nor
writes anything. For binary records and for lines of JSON it is a limit: summing up the file's bytes, and decoding the
lines. Binary records are also only read. Converting is judged by the time it takes, as two threads work at it, and told
by processor time too; reading, in one thread, and the peers by processor time, so that other work on the machine hardly
shows. Takes about a minute; run alone with ``PYTHONPATH=. python FILE``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv

from feeds import formats
from feeds.convert import Conversion, ConvertOptions
from feeds.formats import dbn_records
from feeds.formats.format import ReadOptions
from feeds.formats.source import Source
from tests import dbn_files
from tests.benchmarks.report import Row, print_table

ROWS = 500_000
LINES = 100_000
PASSES = 3
START_US = 1_723_118_400_000_000


class Input(NamedTuple):
    """A file to convert.

    Attributes:
        what: In words.
        write: Writes it into a folder and returns its path.
        peer: Reads it as the peer does, and the peer's name.
        target: Rows a second to reach, of a capture lines.
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


def _dbn(kind: int, records: bytes, count: int) -> Callable[[Path], Path]:
    """Return a writer of so many records of a kind, like those given over and over, of one instrument."""

    def write(folder: Path) -> Path:
        dtype = dbn_records.KINDS[kind].dtype
        many = np.frombuffer(records * (count * dtype.itemsize // len(records)), dtype).copy()
        times, price, _ = _market(len(many))
        many["ts_recv"] = times * 1_000
        many["ts_event"] = times * 1_000 - 900
        many["price"] = np.rint(price * 10) * 100_000_000
        day = date(2024, 8, 8)
        path = folder / f"{dbn_records.KINDS[kind].name}.dbn"
        path.write_bytes(dbn_files.header(3, {"ESU4": [(day, date(2025, 1, 1), "7")]}) + many.tobytes())
        return path

    return write


def _summed(path: Path) -> None:
    data = np.fromfile(path, np.uint8)
    data[: len(data) // 8 * 8].view(np.int64).sum()


def _captured(folder: Path) -> Path:
    """Write a capture in the proportions of a real one: of 25 lines 17 quotes, 6 trades, 2 changes of the book."""
    times, price, qty = (column.tolist() for column in _market(LINES))
    path = folder / "btcusdt.txt"
    with path.open("w") as file:
        for i, (us, px, size) in enumerate(zip(times, price, qty, strict=True)):
            stream, data = _message(i, us // 1_000, px, size)
            file.write(f'{us * 1_000} {{"stream":"btcusdt@{stream}","data":{{{data}}}}}\n')
    return path


def _message(i: int, ms: int, px: float, size: float) -> tuple[str, str]:
    if i % 25 < 17:
        return (
            "bookTicker",
            f'"u":{i},"s":"BTCUSDT","b":"{px:.8f}","B":"{size:.8f}","a":"{px + 0.1:.8f}","A":"1.00000000"',
        )
    if i % 25 < 23:
        numbers = f'"t":{i},"p":"{px:.8f}","q":"{size:.8f}","T":{ms},"m":true,"M":true'
        return "trade", f'"e":"trade","E":{ms},"s":"BTCUSDT",{numbers}'
    bids, asks = (",".join(f'["{px + sign * k / 10:.8f}","{size:.8f}"]' for k in range(1, 18)) for sign in (-1, 1))
    head = f'"e":"depthUpdate","E":{ms},"s":"BTCUSDT","U":{i},"u":{i}'
    return "depth@100ms", f'{head},"b":[{bids}],"a":[{asks}]'


def _decoded(path: Path) -> None:
    """Decode the messages of a capture and do nothing with them."""
    decode = msgspec.json.Decoder().decode
    with path.open("rb") as file:
        for line in file:
            decode(line.partition(b" ")[2])


_QUOTE = ((60_000 * 10**9, 5), (60_001 * 10**9, 7))
_TOP = b"".join(dbn_files.top(1_000, *_QUOTE, action=action, side="B") for action in "AAAAACCCCT")
_ORDER = b"".join(dbn_files.order(1_000, action, 5, 10**9, 3) for action in "AACCACACTF")
_ASKS = [((60_001 + k) * 10**9, 9) for k in range(10)]
_BIDS = [((60_000 - k) * 10**9, 9) for k in range(1, 10)]
_TEN = b"".join(dbn_files.ten(1_000, [(60_000 * 10**9, size), *_BIDS], _ASKS) for size in (1, 2))

PYARROW = ("pyarrow.csv alone", _pyarrow)
SUMMED = ("limit, numpy summing up the file", _summed)
BINARY = [
    Input("DBN trades", _dbn(0, dbn_files.trade(1_000, 10**9, 3), 2 * ROWS), SUMMED, 5_000_000),
    Input("DBN mbp-1", _dbn(1, _TOP, 2 * ROWS), SUMMED, 5_000_000),
    Input("DBN mbo", _dbn(160, _ORDER, 2 * ROWS), SUMMED, 5_000_000),
    Input("DBN mbp-10, a row a record", _dbn(10, _TEN, ROWS // 2), SUMMED, 5_000_000),
]
TEXT = [
    Input("tardis trades CSV", _trades, PYARROW, 1_000_000),
    Input("tardis quotes CSV", _quotes, PYARROW, 1_000_000),
    Input("tardis incremental_book_L2 CSV", _book, PYARROW, 1_000_000),
    Input("Binance aggTrades CSV without header", _aggregates, PYARROW, 1_000_000),
    Input("a capture of Binance messages", _captured, ("limit, msgspec decoding the lines", _decoded), 80_000),
]


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the median time of several passes."""
    seconds = []
    for _ in range(PASSES):
        started = clock()
        work()
        seconds.append(clock() - started)
    return median(seconds)


def _converted(path: Path, folder: Path) -> int:
    return Conversion([path], ConvertOptions(force=True)).write(folder / "out").rows


def _read(path: Path) -> int:
    source = Source(path)
    chunks = formats.detect(source).read(source, ReadOptions())
    return sum(rows.num_rows for chunk in chunks for rows in chunk.values())


def _measured(source: Input, folder: Path, work: Callable[[Path], int], what: str) -> Row:
    path = source.write(folder)
    rows = work(path)  # also warms up
    unit, count = ("lines", LINES) if path.suffix == ".txt" else ("rows", rows)
    of_core = count / _seconds(lambda: work(path), time.process_time)
    ours = of_core if work is _read else count / _seconds(lambda: work(path), time.perf_counter)
    name, peer = source.peer
    theirs = count / _seconds(lambda: peer(path), time.process_time)
    path.unlink()
    return Row(
        what=f"{source.what} to {what}, {count:,} {unit}, median of {PASSES}",
        figure=("" if work is _read else f"{ours:,.0f} {unit}/s; ") + f"{of_core:,.0f} {unit}/s of one core",
        compared_with=f"{name}: {theirs:,.0f} {unit}/s",
        target=f"at least {source.target:,} {unit}/s",
        reached=ours >= source.target,
    )


def rows() -> Iterator[Row]:
    """Measure, one input at a time."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for source in TEXT + BINARY:
            yield _measured(source, folder, partial(_converted, folder=folder), "a recording")
        for source in BINARY:
            yield _measured(source, folder, _read, "record batches")


if __name__ == "__main__":
    print_table("Convert", rows())
