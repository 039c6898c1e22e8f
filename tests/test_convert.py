"""Recordings made of vendors' files: one order, nothing lost, what is said about them, and the command."""

from __future__ import annotations

import errno
import gzip
import io
import subprocess
import sys
import threading
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from feeds.convert import MANY, Conversion, ConvertOptions
from feeds.errors import RecordingError
from feeds.formats.format import build
from feeds.formats.merge import Tape, merged
from feeds.instruments import Instrument, Instruments
from feeds.records import MISSING, Batch, Trades
from feeds.store import open_recording, write_recording
from feeds.survey import Survey
from feeds.tablefile import TableFile
from tests.format_samples import START_S, START_US, samples
from ticker.cli import main
from ticker.convert import convert

SHARED = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared recordings are not here")
S = 1_000_000_000
TRADES = "exchange,symbol,timestamp,local_timestamp,id,side,price,amount\n"


def conversion(*paths, **options):
    return Conversion([Path(path) for path in paths], ConvertOptions(**options))


def trades(path, *rows, venue="x"):
    """A tardis file of trades received at these microseconds, with these ids."""
    lines = [f"{venue},X,{START_US + at},{START_US + at},{name},buy,10.5,1\n" for at, name in rows]
    path.write_text(TRADES + "".join(lines))
    return path


def ids(prefix):
    return pq.read_table(f"{prefix}.trades.parquet")["trade_id"].to_pylist()


def tables(prefix):
    """All rows of a recording as the bus has them."""
    recording = open_recording(prefix)
    streams = (recording.trades(), recording.quotes(), recording.levels())
    return [np.concatenate([np.column_stack(list(t.columns().values())) for t in stream] or [[]]) for stream in streams]


# Round trips


@real
@pytest.mark.parametrize("name", ["binance_spot_20240808", "cme_ESH4_20231225", "cme_ESU4_20240701"])
def test_a_recording_converted_is_the_same_recording(tmp_path, name):
    source = SHARED / "recordings" / name
    summary = conversion(source).write(tmp_path / "again")
    before, after = open_recording(source), open_recording(tmp_path / "again")
    assert summary.rows == before.rows == after.rows
    assert list(after.instruments) == list(before.instruments)
    for old, new in zip(tables(source), tables(tmp_path / "again"), strict=True):
        if new.size:
            seq = 2  # numbered anew, without holes
            assert (np.delete(old, seq, axis=1) == np.delete(new, seq, axis=1)).all()
            assert (np.argsort(old[:, seq]) == np.argsort(new[:, seq])).all()
    numbers = np.sort(np.concatenate([table[:, 2] for table in tables(tmp_path / "again") if table.size]))
    assert (numbers == np.arange(before.rows)).all()


@pytest.mark.parametrize(("known", "name", "data"), [pytest.param(*sample, id=sample[1]) for sample in samples()])
def test_every_table_of_every_format_becomes_a_recording_that_replays(tmp_path, known, name, data):
    (tmp_path / name).write_bytes(data)
    summary = conversion(tmp_path / name, symbol="A/B").write(tmp_path / "out")
    recording = open_recording(tmp_path / "out")
    assert recording.tables == {table.table: table.rows for table in summary.tables}
    assert (recording.start_ns, recording.end_ns) == (summary.start_ns, summary.end_ns)
    assert sum(len(rows) for rows in tables(tmp_path / "out") if rows.size) == summary.rows
    assert list(recording.instruments) == list(summary.instruments)
    assert [source.format for source in summary.sources] == [known]


def test_what_a_recording_knows_of_its_instruments_is_kept(tmp_path):
    known = Instruments(
        [Instrument(symbol="X", base="B", quote="Q", price_precision=4, qty_precision=3, aliases=("B/Q",))]
    )
    one = {name: np.ones(1, kind) for name, kind in Trades.DTYPES.items()} | {"instrument": np.zeros(1, np.int32)}
    write_recording(tmp_path / "old", known, [Batch(ts=1, trades=Trades(**one))])
    assert list(conversion(tmp_path / "old").write(tmp_path / "new").instruments) == list(known)


# One order


def test_sources_are_merged_by_receive_time_and_at_one_instant_in_the_order_named(tmp_path):
    a = trades(tmp_path / "a.csv", (1, "a1"), (5, "a2"), (5, "a3"), (9, "a4"))
    b = trades(tmp_path / "b.csv", (0, "b1"), (5, "b2"), (9, "b3"))
    conversion(a, b).write(tmp_path / "ab")
    conversion(b, a).write(tmp_path / "ba")
    assert ids(tmp_path / "ab") == ["b1", "a1", "a2", "a3", "b2", "a4", "b3"]
    assert ids(tmp_path / "ba") == ["b1", "a1", "b2", "a2", "a3", "b3", "a4"]
    assert pq.read_table(tmp_path / "ab.trades.parquet")["seq"].to_pylist() == list(range(7))


def test_members_of_an_archive_come_in_the_order_of_their_names_at_one_instant(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("b", "a"):
            archive.write(trades(tmp_path / f"{name}.csv", (5, f"{name}1"), (5, f"{name}2")), f"{name}.csv")
    conversion(tmp_path / "all.zip").write(tmp_path / "out")
    assert ids(tmp_path / "out") == ["a1", "a2", "b1", "b2"]


def test_a_year_of_daily_files_in_any_order_is_opened_one_after_the_other(tmp_path):
    days = [trades(tmp_path / f"{d:02}.csv", *((d * 1_000 + i, f"{d}-{i}") for i in range(3))) for d in range(MANY + 5)]
    conversion(*reversed(days)).write(tmp_path / "year")
    assert ids(tmp_path / "year") == [f"{d}-{i}" for d in range(MANY + 5) for i in range(3)]


def test_a_bad_row_is_counted_once_even_where_sources_are_looked_at_twice(tmp_path):
    paths = [trades(tmp_path / f"{d:02}.csv", (d, "x")) for d in range(MANY + 1)]
    paths[0].write_text(paths[0].read_text() + "bad\n")
    assert sum(source.refused for source in conversion(*paths, skip_bad=True).check().sources) == 1


def test_files_of_one_recording_named_one_by_one_are_still_one_source(tmp_path):
    for known, name, data in samples():
        if known == "recording" and name.startswith("day."):
            (tmp_path / name).write_bytes(data)
    parts = [tmp_path / f"day.{part}.parquet" for part in ("book", "trades")]
    for at, part in enumerate(parts):  # trades and book take turns at one instant
        rows = pq.read_table(part).to_batches()[0]
        columns = {name: rows[name] for name in rows.schema.names}
        columns |= {"seq": np.arange(40) * 2 + 1 - at, "ts_recv": np.full(40, START_S * S)}
        pq.write_table(pa.Table.from_batches([build(part.name.split(".")[1], columns)]), part)
    conversion(*parts).write(tmp_path / "out")
    assert pq.read_table(tmp_path / "out.trades.parquet")["seq"].to_pylist() == list(range(0, 80, 2))
    assert pq.read_table(tmp_path / "out.book.parquet")["seq"].to_pylist() == list(range(1, 80, 2))


@given(st.data())
def test_merging_is_sorting_by_time_rank_and_number(data):
    wanted, tapes = [], []
    for rank in range(data.draw(st.integers(1, 4))):
        times = sorted(data.draw(st.lists(st.integers(1, 8), max_size=8)))
        kinds = [data.draw(st.sampled_from(["trades", "quotes"])) for _ in times]
        wanted += [(at, rank, seq, kind) for seq, (at, kind) in enumerate(zip(times, kinds, strict=True))]
        cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(times)), max_size=3))), len(times)]
        chunks = []
        for start, stop in pairwise(cuts):
            places = {kind: [i for i in range(start, stop) if kinds[i] == kind] for kind in ("trades", "quotes")}
            chunks.append({kind: row(kind, rank, times, at) for kind, at in places.items() if at})
        late = data.draw(st.booleans())
        tapes.append(Tape(rank, times[0] if times and late else MISSING, lambda chunks=chunks: iter(chunks)))
    found = []
    for chunk in merged(tapes):
        for kind, rows in chunk.items():
            old = rows["venue_seq"].to_pylist(), rows["venue"].to_pylist(), rows["ts_recv"].cast("int64").to_pylist()
            found += zip(rows["seq"].to_pylist(), old[2], map(int, old[1]), old[0], [kind] * len(rows), strict=True)
    assert [key for _, *key in sorted(found)] == [list(key) for key in sorted(wanted)]
    assert [number for number, *_ in sorted(found)] == list(range(len(wanted)))


def row(kind, rank, times, at):
    seq = np.array(at)
    columns = {"ts_recv": np.array(times)[at], "seq": seq, "venue_seq": seq, "venue": str(rank), "symbol": f"S{rank}"}
    return build(kind, columns)


# What is said


def test_a_summary_counts_what_is_odd(tmp_path):
    path = tmp_path / "t.csv"
    times = [(0, 0), (10, 10), (9, 10), (3_000_009, 3_000_010), (3_000_011, 2_000_000)]
    lines = [f"x,X,{START_US + event},{START_US + recv},,buy,10.5,{i}\n" for i, (event, recv) in enumerate(times)]
    path.write_text(TRADES + "".join([*lines, lines[-1]]))
    summary = conversion(path).check()
    (table,) = summary.tables
    assert (table.table, table.rows, table.inversions, table.held, table.duplicates) == ("trades", 6, 1, 2, 1)
    assert summary.silences.count == 1
    assert summary.silences.longest_ns == 3 * S
    assert summary.silences.longest_at_ns == START_S * S + 10_000
    assert (summary.start_ns, summary.end_ns) == (START_S * S, START_S * S + 3_000_010_000)


def test_overlapping_files_repeat_rows(tmp_path):
    rows = [(at, f"id{at}-{i}") for at in range(50) for i in range(3)]
    a, b = trades(tmp_path / "a.csv", *rows), trades(tmp_path / "b.csv", *rows[60:])
    assert conversion(a, b).check().tables[0].duplicates == 90


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=30), st.integers(0, 30))
def test_rows_that_repeat_another_are_counted_wherever_the_chunks_are_cut(rows, cut):
    rows = sorted(rows, key=lambda row: row[0])
    survey = Survey()
    for part in (rows[:cut], rows[cut:]):
        if part:
            times, prices = (np.array(column) for column in zip(*part, strict=True))
            columns = {
                "ts_recv": times + S,
                "price": prices + 0.5,
                "symbol": "X",
                "venue": "V",
                "qty": np.ones(len(part)),
            }
            survey.add({"trades": build("trades", columns)})
    counted = survey.tables()[0].duplicates if rows else 0
    assert counted == len(rows) - len(set(rows))


def test_crossed_books_are_counted_by_a_check_and_never_refused(tmp_path):
    header = "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount\n"
    rows = [("bid", 10, 1), ("ask", 11, 1), ("ask", 10, 1), ("bid", 12, 1), ("bid", 12, 0), ("ask", 10, 0)]
    lines = [f"x,X,{START_US},{START_US + i},false,{side},{p},{q}\n" for i, (side, p, q) in enumerate(rows)]
    (tmp_path / "b.csv").write_text(header + "".join(lines))
    assert conversion(tmp_path / "b.csv").check().tables[0].crossed == 3
    assert conversion(tmp_path / "b.csv").write(tmp_path / "out").tables[0].crossed is None


@real
def test_the_book_of_the_e_mini_is_crossed_before_it_opens():
    summary = conversion(SHARED / "recordings" / "cme_ESH4_20231225").check()
    assert {table.table: table.crossed for table in summary.tables}["book"] == 891
    assert {table.table: table.held for table in summary.tables}["book"] > 0


# What is wrong


def test_a_symbol_of_two_venues_is_not_mixed(tmp_path):
    a = trades(tmp_path / "a.csv", (1, "a"), venue="one")
    b = trades(tmp_path / "b.csv", (2, "b"), venue="two")
    with pytest.raises(RecordingError, match="X is there from one and from two"):
        conversion(a, b).check()
    assert conversion(a, b, venue="both").check().rows == 2


def test_nothing_is_written_over_without_force_and_nothing_is_left_of_a_failure(tmp_path):
    good = trades(tmp_path / "good.csv", (1, "a"))
    bad = trades(tmp_path / "bad.csv", (1, "b"))
    bad.write_text(bad.read_text() + "x,X,1,2,3\n")
    conversion(good).write(tmp_path / "out")
    with pytest.raises(RecordingError, match=r"out\.trades\.parquet: is there already"):
        conversion(good).write(tmp_path / "out")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RecordingError, match=r"bad\.csv:3: has 5 columns"):
        conversion(bad, force=True).write(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert ids(tmp_path / "out") == ["a"]
    conversion(bad, force=True, skip_bad=True).write(tmp_path / "out")
    assert ids(tmp_path / "out") == ["b"]


def test_a_name_that_is_being_recorded_under_is_taken(tmp_path):
    good = trades(tmp_path / "good.csv", (1, "a"))
    (tmp_path / "out.0001.tape").touch()
    for force in (False, True):
        with pytest.raises(RecordingError, match=r"out\.0001\.tape: is to become a recording of that name"):
            conversion(good, force=force).write(tmp_path / "out")
    conversion(good).write(tmp_path / "other")


def many_trades(path):
    """A tardis file of three row groups of trades, and some."""
    return trades(path, *((at, f"{at:06}") for at in range(200_000)))


def test_what_goes_wrong_while_rows_are_encoded_is_told_and_nothing_is_left(tmp_path, monkeypatch):
    write, written = TableFile.write, []

    def full(file, rows):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, rows)
        written.append(rows.num_rows)

    path = many_trades(tmp_path / "t.csv")
    monkeypatch.setattr(TableFile, "write", full)
    with pytest.raises(RecordingError, match=r"out: cannot be written \(.*No space left on device"):
        conversion(path).write(tmp_path / "out")
    assert written
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_no_file_and_no_thread(tmp_path):
    path, threads = many_trades(tmp_path / "t.csv"), threading.active_count()

    def interrupt(*_):
        if any(tmp_path.glob(".out.trades.parquet.*.tmp")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversion(path).write(tmp_path / "out", interrupt)
    assert list(tmp_path.iterdir()) == [path]
    assert threading.active_count() == threads


def test_a_forced_conversion_leaves_no_table_of_the_recording_before(tmp_path):
    quotes = next(data for known, name, data in samples() if (known, name) == ("tardis", "quotes.csv"))
    (tmp_path / "q.csv").write_bytes(quotes)
    conversion(tmp_path / "q.csv").write(tmp_path / "out")
    conversion(trades(tmp_path / "t.csv", (1, "a")), force=True).write(tmp_path / "out")
    assert open_recording(tmp_path / "out").tables == {"trades": 1}


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        (["missing.csv"], "missing.csv: there is no such file"),
        (["."], "is a folder; name the files in it"),
        (["empty.csv"], "is empty"),
        (["header.csv"], "hold no rows"),
        (["notes.txt"], "of no known format"),
        (["good.csv", "--format", "nonsense"], "no format is called 'nonsense'"),
        (["good.csv", "--format", "kraken-history"], "has 8 columns, not 3"),
        (["good.csv", "-o", "nowhere/out"], "nowhere: there is no such folder"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(tmp_path, capsys, monkeypatch, sources, complaint):
    monkeypatch.chdir(tmp_path)
    trades(tmp_path / "good.csv", (1, "a"))
    (tmp_path / "empty.csv").touch()
    (tmp_path / "header.csv").write_text(TRADES)
    (tmp_path / "notes.txt").write_text("buy milk\n")
    assert main(["convert", *sources, *([] if "-o" in sources else ["--check"]), "--symbol", "XBTUSD"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ticker convert: ")
    assert complaint in error
    assert error.count("\n") == 1


def test_a_vendors_file_cannot_be_served_but_the_error_says_how_to_convert_it(tmp_path, capsys):
    path = trades(tmp_path / "t.csv", (1, "a"))
    assert main(["serve", "--replay", str(path), "--port", "0"]) == 1
    assert f"`ticker convert {path} -o NAME` makes one of it" in capsys.readouterr().err


# The command


def test_the_command_writes_reports_and_says_how_to_play_it(tmp_path, capsys):
    path = trades(tmp_path / "t.csv", (1, "a"), (2, "b"))
    assert main(["convert", str(path), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "2 rows" in said
    assert "tardis" in said
    assert "ticker serve --replay" in said
    assert open_recording(tmp_path / "out").rows == 2


def test_the_command_only_reports_with_check(tmp_path, capsys):
    path = trades(tmp_path / "t.csv", (1, "a"))
    path.write_text(path.read_text() + "bad\n" * 15)
    assert main(["convert", str(path), "--check", "--skip-bad"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "t.csv:3: has 1 columns, not 8" in said
    assert "and 5 more" in said
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.csv"]


def test_progress_is_shown_on_a_terminal_only(tmp_path):
    path = trades(tmp_path / "t.csv", (1, "a"))
    shown = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        convert([str(path)], None, ConvertOptions(), console)
        shown[terminal] = console.file.getvalue()
    assert "100 %" in shown[True]
    assert "%" not in shown[False]


MEASURE = """
import resource, sys
from pathlib import Path
from feeds.convert import Conversion, ConvertOptions

def convert(name):
    rows = Conversion([Path(name)], ConvertOptions(force=True)).write(Path("out")).rows
    return rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

_, before = convert("small.csv")
rows, after = convert("large.csv.gz")
print(rows, after - before)
"""


def test_a_large_file_is_converted_in_little_memory(tmp_path):
    """400,000 rows, 50 MB of text, in a process of its own: what a small file does not need is what counts."""
    with gzip.open(tmp_path / "large.csv.gz", "wt", 1) as file:
        file.write(TRADES)
        for second in range(400):
            at = START_US + second * 1_000_000
            file.write(
                "".join(f"exchange,BTCUSDT,{at + i},{at + i},id-{second:09}-{i:012},buy,10.5,1\n" for i in range(1_000))
            )
    trades(tmp_path / "small.csv", (1, "a"))
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=tmp_path, capture_output=True, text=True, check=True)
    rows, more_mib = done.stdout.split()
    assert int(rows) == 400_000
    assert float(more_mib) < 64
    groups = pq.ParquetFile(tmp_path / "out.trades.parquet").metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [65_536] * 6 + [6_784]
