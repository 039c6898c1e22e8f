"""``ticker info``: what it says about recordings, real ones and made ones, and about what is none."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from feeds.instruments import Instrument, Instruments
from feeds.records import BUY, GAP, LAST, MISSING, SNAPSHOT, Batch, Quotes, StreamDigest, Trades
from feeds.replay import ReplayFeed
from feeds.store import open_recording, write_recording
from ticker.cli import main
from ticker.info import SHOWN_SYMBOLS, duration, print_info, utc

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"
real = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not here")
S = 1_000_000_000
#: 2026-01-02T09:04:31Z
START_NS = 1_767_344_671 * S

INSTRUMENTS = Instruments(
    [
        Instrument(symbol="BTCUSD", base="BTC", quote="USD", price_precision=1, qty_precision=8, aliases=("BTC/USD",)),
        Instrument(symbol="[red]ES[/red]", base="ES", quote="", price_precision=2, qty_precision=0, price_increment=25),
    ]
)


def rows(table, seconds, instrument, seq, **columns):
    """A table whose rows come at these seconds; what is not given is the same in all rows."""
    n = len(seconds)
    common = {
        "ts_recv": START_NS + np.array([round(s * S) for s in seconds]),
        "ts_event": np.full(n, MISSING),
        "seq": np.arange(seq, seq + n),
        "instrument": np.full(n, instrument),
        "flags": np.full(n, LAST),
    }
    values = {**common, **{name: np.broadcast_to(value, n) for name, value in columns.items()}}
    return table(**{name: np.array(values[name], dtype) for name, dtype in table.DTYPES.items()})


@pytest.fixture
def made(tmp_path):
    """Trades with a late event time and a silence of two minutes, quotes with a snapshot and a gap."""
    times = START_NS + np.array([0, 2, 1, 130]) * S
    trades = rows(Trades, [0, 2, 3, 125.5], 0, 1, ts_event=times, price=600_001, qty=1, side=BUY, trade_id=[1, 2, 3, 4])
    flags = [SNAPSHOT, SNAPSHOT | LAST, LAST | GAP]
    quotes = rows(Quotes, [126, 126, 130], 1, 10, flags=flags, bid_px=500, bid_qty=1, ask_px=525, ask_qty=1)
    write_recording(tmp_path / "made", INSTRUMENTS, [Batch(ts=START_NS + 200 * S, trades=trades, quotes=quotes)])
    return tmp_path / "made"


def printed(path, width=120):
    console = Console(width=width, file=io.StringIO())
    print_info(str(path), console)
    return console.file.getvalue()


def cells(text, label):
    """Return what a row says behind its label, as words."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(label + "  ")]
    return line.split(label, 1)[1].split()


# --- words


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0.000 s"),
        (1_274_999_999, "1.274 s"),
        (59_999_999_999, "59.999 s"),
        (60 * S, "1 m 00 s"),
        (3599 * S, "59 m 59 s"),
        (86_399 * S, "23 h 59 m 59 s"),
        (86_400 * S, "1 d 0 h"),
        (100 * 3600 * S, "4 d 4 h"),
    ],
)
def test_lengths_of_time(ns, text):
    assert duration(ns) == text


def test_instants():
    assert utc(START_NS + 1_999_999) == "2026-01-02 09:04:31.001"


# --- a made recording


def test_what_was_written_is_what_is_told(made):
    text = printed(made)
    assert text.startswith("made  7 rows, 2 m 10 s\n2026-01-02 09:04:31.000 to 2026-01-02 09:06:41.000 UTC\n")
    assert cells(text, "rows") == ["4", "3", "7"]
    assert cells(text, "silences > 1 s") == ["2", "1", "3"]
    assert cells(text, "longest silence") == ["2", "m", "02", "s", "4.000", "s", "2", "m", "02", "s"]
    assert cells(text, "that began at")[:2] == ["2026-01-02", "09:04:34.000"]
    assert cells(text, "ts_event inversions") == ["1", "0", "1"]
    assert cells(text, "without ts_event") == ["0", "3", "3"]
    assert cells(text, "rows after a gap") == ["0", "1", "1"]
    assert cells(text, "snapshots") == ["0", "1", "1"]
    assert cells(text, "snapshot rows") == ["0", "2", "2"]


def test_rows_per_symbol_and_instruments(made):
    text = printed(made)
    symbols, instruments = text[text.index("Rows per symbol") :].split("Instruments")
    assert cells(symbols, "BTCUSD") == ["4", "0", "4"]
    assert cells(symbols, "[red]ES[/red]") == ["0", "3", "3"]
    assert cells(instruments, "BTCUSD") == ["BTC/USD", "BTC", "USD", "0.1", "1", "0.00000001", "8"]
    assert cells(instruments, "[red]ES[/red]") == ["-", "ES", "-", "0.25", "2", "1", "0"]


def test_the_columns_that_hold_something(made):
    text = printed(made)
    listed = cells(text[text.index("Columns with values") :], "quotes")
    assert "bid_px," in listed
    assert "ts_event," not in listed


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_it_fits_a_terminal(made, width):
    assert max(len(line) for line in printed(made, width).splitlines()) <= width


def test_many_symbols_are_summed_up(tmp_path):
    many = Instruments(
        Instrument(symbol=f"S{n:03d}", base=f"S{n:03d}", quote="", price_precision=0, qty_precision=0)
        for n in range(SHOWN_SYMBOLS + 30)
    )
    trades = rows(Trades, [0] * len(many), range(len(many)), 1, price=1, qty=1, side=BUY, trade_id=1)
    write_recording(tmp_path / "many", many, [Batch(ts=START_NS, trades=trades)])
    text = printed(tmp_path)
    assert text.count("S000") == 3  # rows; symbol and base of the instrument
    assert f"S{SHOWN_SYMBOLS:03d}" not in text
    assert cells(text[: text.index("Instruments")], "30 more") == ["30", "30"]


# --- real recordings


@real
@pytest.mark.parametrize(
    ("name", "rows_", "span"),
    [
        ("binance_spot_20240808", ["15,863", "52,117", "234,877", "302,857"], "5 m 45 s"),
        ("cme_ESH4_20231225", ["2,973", "68,792", "71,765"], "23 h 59 m 59 s"),
        ("cme_ESU4_20240701", ["2,288", "2,288"], "3 m 58 s"),
    ],
)
def test_real_recordings(name, rows_, span):
    text = printed(RECORDINGS / name)
    assert text.startswith(f"{name}  {rows_[-1]} rows, {span}\n")
    assert cells(text, "rows") == rows_


@real
def test_what_is_wrong_with_a_real_capture_is_told():
    text = printed(RECORDINGS / "binance_spot_20240808")
    assert cells(text, "ts_event inversions") == ["0", "0", "356", "356"]
    assert cells(text, "snapshots") == ["0", "0", "2", "2"]
    assert cells(text, "snapshot rows") == ["0", "0", "4,002", "4,002"]
    assert cells(text[text.index("Instruments") :], "BTCUSDT")[0] == "BTC/USDT"


# --- the command


def test_the_command_prints_and_succeeds(made, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["info", str(made)]) == 0
    told = capsys.readouterr()
    assert told.out == printed(made)
    assert told.err == ""


def one_line_of_trouble(capsys, path):
    assert main(["info", str(path)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("ticker info: ")
    assert told.err.count("\n") == 1
    assert "Traceback" not in told.err
    return told.err


def test_the_digest_is_that_of_a_replay_and_of_nothing_else(made, capsys):
    digest = StreamDigest()
    for batch in ReplayFeed(open_recording(made)).slices(rows=1):
        digest.update(batch)
    assert main(["info", "--digest", str(made)]) == 0
    assert capsys.readouterr().out == f"{digest.hexdigest()}\n"
    path = made.with_name("made.trades.parquet")
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("qty"), "qty", pc.add(table["qty"], 1.0)), path)
    assert main(["info", "--digest", str(made)]) == 0
    assert capsys.readouterr().out != f"{digest.hexdigest()}\n"


def test_a_missing_path_is_one_line(tmp_path, capsys):
    assert "no recording" in one_line_of_trouble(capsys, tmp_path / "nothing")


def test_a_truncated_file_is_one_line(made, capsys):
    file = made.with_name("made.trades.parquet")
    file.write_bytes(file.read_bytes()[:-100])
    assert "made.trades.parquet: cannot be read as Parquet" in one_line_of_trouble(capsys, made)


def test_a_file_of_noise_is_one_line(made, capsys):
    file = made.with_name("made.quotes.parquet")
    file.write_bytes(np.random.default_rng(1).bytes(5000))
    assert "made.quotes.parquet" in one_line_of_trouble(capsys, made)


@pytest.mark.parametrize("seed", range(10))
def test_a_file_with_wrong_bytes_is_never_a_traceback(made, capsys, seed):
    """Parquet's page checksums do not cover everything; what still reads is described, what does not is one line."""
    chance = np.random.default_rng(seed)
    file = made.with_name("made.trades.parquet")
    data = bytearray(file.read_bytes())
    at = int(chance.integers(4, len(data) // 2))
    data[at : at + 8] = chance.bytes(8)
    file.write_bytes(data)
    code = main(["info", str(made)])
    told = capsys.readouterr()
    assert (code, told.err.count("\n")) in ((0, 0), (1, 1))
    assert "Traceback" not in told.err
