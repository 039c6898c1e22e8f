"""Which recordings of a folder can be had, and that no name leads out of it."""

from __future__ import annotations

import shutil

import pytest

from feeds.records import BUY
from feeds.store import write_recording
from tests.scripted import BTC, INSTRUMENTS, Tape
from ticker.errors import Code, ConfigError, RequestError
from ticker.library import Library


def record(folder, name: str) -> None:
    write_recording(folder / name, INSTRUMENTS, [Tape().trades((BTC, BUY, 100, 1))])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").mkdir()
    record(tmp_path / "inside", "day1")
    record(tmp_path / "inside", "day.2")
    record(tmp_path / "outside", "secret")
    return tmp_path / "inside"


def code_of(library: Library, name: str) -> Code:
    with pytest.raises(RequestError) as caught:
        library.open(name)
    return caught.value.code


def test_the_recordings_of_the_folder_are_listed_and_open(folder):
    library = Library(str(folder))
    assert library.names() == ["day.2", "day1"]
    assert library.open("day1").rows == 1


def test_one_that_came_later_is_there_too(folder):
    library = Library(str(folder))
    record(folder, "day3")
    assert "day3" in library.names()
    assert library.open("day3").rows == 1


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../outside/secret", "inside/day1", "./day1", "day1.trades.parquet", "day1/", "/etc/passwd",
     "day1\0", "DAY1", "*", "day1.trades", "~", "x" * 10_000],
)  # fmt: skip
def test_nothing_but_a_plain_name_is_a_source(folder, name):
    assert code_of(Library(str(folder)), name) is Code.UNKNOWN_SOURCE


def test_an_absolute_path_is_no_name_even_of_a_recording_inside(folder):
    assert code_of(Library(str(folder)), str(folder / "day1")) is Code.UNKNOWN_SOURCE


def test_a_symbolic_link_does_not_lead_out_of_the_folder(folder):
    outside = folder.parent / "outside" / "secret.trades.parquet"
    (folder / "linked.trades.parquet").symlink_to(outside)
    shutil.copy(outside, folder / "half.trades.parquet")
    (folder / "half.instruments.parquet").symlink_to(outside.with_name("secret.instruments.parquet"))
    (folder / "nowhere.trades.parquet").symlink_to(folder / "gone")
    (folder / "circle.trades.parquet").symlink_to(folder / "circle.trades.parquet")
    (folder / "long.trades.parquet").symlink_to("x" * 300)  # longer than a name can be: an error of its own
    library = Library(str(folder))
    assert library.names() == ["day.2", "day1"]
    assert code_of(library, "linked") is Code.UNKNOWN_SOURCE


def test_a_folder_that_is_itself_a_link_is_as_good_as_any(folder):
    (folder.parent / "link").symlink_to(folder)
    library = Library(str(folder.parent / "link"))
    assert library.open("day1").rows == 1


def test_a_recording_that_cannot_be_read_says_so_and_not_where_it_lies(folder):
    (folder / "day1.trades.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RequestError, match=r"^day1\.trades\.parquet: cannot be read") as caught:
        Library(str(folder)).open("day1")
    assert caught.value.code is Code.UNREADABLE_SOURCE


def test_a_folder_that_has_gone_is_told_and_no_defect(folder):
    library = Library(str(folder))
    shutil.rmtree(folder)
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        library.names()


def test_without_a_folder_there_is_nothing():
    library = Library("")
    assert library.names() == []
    with pytest.raises(RequestError, match="Unknown source day1"):
        library.open("day1")


def test_a_folder_that_is_not_there_is_a_mistake_of_who_starts_the_server(tmp_path):
    with pytest.raises(ConfigError, match=r"\[replays\] directory .*nothing"):
        Library(str(tmp_path / "nothing"))
