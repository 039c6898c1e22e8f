"""What a long recording taught is kept, for these very files only, and never in their folder."""

import logging
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from feeds import remembered, store
from feeds.instruments import Instrument, Instruments
from feeds.remembered import recall, remember
from tests.test_store import put

ONE = Instruments([Instrument(symbol="A", base="A", quote="", price_precision=2, qty_precision=3, aliases=("B",))])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ticker"


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("x.trades.parquet", "x.book.parquet")]
    for path in paths:
        path.write_bytes(b"12345")
    return paths


def test_what_was_learned_is_recalled_from_the_cache_folder(cache, files, tmp_path):
    assert recall(files) is None
    remember(files, ONE)
    assert list(recall(reversed(files))) == list(ONE)
    assert len(list(cache.iterdir())) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "x.book.parquet", "x.trades.parquet"]


def test_other_files_are_other_recordings(cache, files):
    remember(files, ONE)
    assert recall(files[:1]) is None
    stat = files[0].stat()
    files[0].write_bytes(b"54321")
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert recall(files) is None


def test_what_is_damaged_is_made_anew(cache, files, caplog):
    remember(files, ONE)
    (path,) = cache.iterdir()
    path.write_bytes(b"gone bad")
    assert recall(files) is None
    assert "is made anew" in caplog.text


def test_a_cache_that_cannot_be_written_is_told_and_no_error(files, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember(files, ONE)
    assert "cannot keep what was learned" in caplog.text


def test_without_a_home_nothing_is_kept_and_that_is_no_error(files, monkeypatch, caplog):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert recall(files) is None
    remember(files, ONE)
    assert "set XDG_CACHE_HOME" in caplog.text


def test_what_another_version_has_learned_is_not_recalled(cache, files, monkeypatch):
    remember(files, ONE)
    monkeypatch.setattr(remembered, "_VERSION", remembered._VERSION + 1)
    assert recall(files) is None


def test_a_long_recording_without_instruments_is_looked_through_once(cache, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(store, "LONG_ROWS", 3)
    for name, rows in (("short", 2), ("long", 3)):
        put(tmp_path, "trades", rows, name=name, price=[1.25] * rows)
    for name, lines in (("short", 0), ("long", 1), ("long", 0)):
        caplog.clear()
        (instrument,) = store.open_recording(tmp_path / name).instruments
        assert instrument.price_precision == 2
        assert caplog.text.count("learning them from all rows") == lines
    put(tmp_path, "trades", 3, name="long", price=[1.125] * 3)
    assert store.open_recording(tmp_path / "long").instruments[0].price_precision == 3


def test_it_is_a_table_of_instruments_like_any_other(cache, files):
    remember(files, ONE)
    (path,) = cache.iterdir()
    assert pq.read_schema(path).names[0] == "symbol"
