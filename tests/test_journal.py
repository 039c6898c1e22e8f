"""The journal: what was acknowledged is there, once, in order; what was changed on disk is never taken for true."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import resource
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ticker.errors import JournalError
from ticker.orders import journal as module
from ticker.orders.journal import GENESIS, MEMORY, Journal, default_path, open_journal

GROUPS = [[b"1"], [b"2", b"", b"3" * 5000], [b"4"] * 40, [b"5"], [b"6", b"6"]]
EVENTS = [event for group in GROUPS for event in group]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "orders.journal"


def chain_of(events: list[bytes]) -> bytes:
    chain = GENESIS
    for event in events:
        chain = sha256(chain + event).digest()
    return chain


async def write(path: Path, groups: list[list[bytes]]) -> None:
    async with await open_journal(path) as journal:
        for group in groups:
            await journal.append(group)


async def read(path: Path) -> list[bytes]:
    async with await open_journal(path) as journal:
        events = journal.recovered.events
        assert (journal.head, journal.chain) == (len(events), chain_of(events))
        return events


# ------------------------------------------------------------------------------------- what it is for


async def test_events_come_back_in_order(path):
    await write(path, GROUPS[:2])
    await write(path, GROUPS[2:])
    assert await read(path) == EVENTS


@pytest.mark.parametrize("where", ["disk", "memory"])
async def test_head_and_chain_follow_every_group(path, where):
    async with await open_journal(path if where == "disk" else MEMORY) as journal:
        assert (journal.head, journal.chain, journal.recovered) == (0, GENESIS, (None, []))
        for count in range(1, len(GROUPS) + 1):
            await journal.append(GROUPS[count - 1])
            so_far = [event for group in GROUPS[:count] for event in group]
            assert (journal.head, journal.chain) == (len(so_far), chain_of(so_far))
        await journal.append([])
        assert journal.head == len(EVENTS)


async def test_recovery_begins_at_the_last_snapshot_and_the_digest_goes_on(path):
    async with await open_journal(path) as journal:
        await journal.append([b"a", b"b"])
        await journal.snapshot(b"after 2")
        await journal.append([b"c"])
        await journal.snapshot(b"after 3")
        await journal.append([b"d"])
    async with await open_journal(path) as journal:
        assert journal.recovered == (b"after 3", [b"d"])
        assert (journal.head, journal.chain) == (4, chain_of([b"a", b"b", b"c", b"d"]))


async def test_snapshots_keep_the_file_small(path):
    async with await open_journal(path) as journal:
        for _ in range(10):
            for _ in range(20):
                await journal.append([b"x" * 10_000] * 10)
            await journal.snapshot(b"so far")
    assert path.stat().st_size < 2.5 * 20 * 10 * 10_000


async def test_the_log_is_moved_into_the_file_now_and_then(path):
    log = Path(f"{path}-wal")
    async with await open_journal(path) as journal:
        sizes = []
        for _ in range(12):
            await journal.append([b"x" * 1_000_000])
            sizes.append(log.stat().st_size)
        assert max(sizes) < module.LOG_BYTES
        assert sizes.count(0) == 2
    assert not log.exists()
    assert len(await read(path)) == 12


async def test_calls_that_overlap_are_done_one_after_the_other(path):
    groups = [[b"%d" % k] * (k + 1) for k in range(20)]
    async with await open_journal(path) as journal, trio.open_nursery() as nursery:
        for group in groups:
            nursery.start_soon(journal.append, group)
    events = await read(path)
    for group in groups:
        at = events.index(group[0])
        assert events[at : at + len(group)] == group
    assert len(events) == sum(map(len, groups))


def test_the_default_is_in_the_users_data_folder(monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_path() == Path("/data/ticker/orders.journal")
    monkeypatch.setenv("HOME", "/home/me")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", ignored)
        assert default_path() == Path("/home/me/.local/share/ticker/orders.journal")


async def test_only_its_user_may_read_it(path):
    await write(path, GROUPS)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert list(path.parent.iterdir()) == [path]


# ------------------------------------------------------------------------------------- refusals


async def refusal(path: Path) -> JournalError:
    with pytest.raises(JournalError) as error:
        await open_journal(path)
    assert str(path) in str(error.value)
    return error.value


async def test_two_cannot_use_one_journal(path):
    async with await open_journal(path) as journal:
        error = await refusal(path)
        assert "another process" in str(error)
        assert error.retryable
        await journal.append([b"still works"])
    assert await read(path) == [b"still works"]


async def test_a_newer_version_is_refused(path):
    await write(path, GROUPS)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE journal SET version = 2")
    error = await refusal(path)
    assert "version 2, and this program reads up to 1" in str(error)
    assert not error.retryable


@pytest.mark.parametrize("content", [b"", b"[orders]\n" * 100, b"\0" * 8192])
async def test_another_kind_of_file_is_refused(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    assert "no journal" in str(await refusal(path))
    assert path.read_bytes() == content


async def test_another_database_is_refused_and_not_touched(path):
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE mine (a)")
    content = path.read_bytes()
    assert "no such table: journal" in str(await refusal(path))
    assert path.read_bytes() == content


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "file" in str(await refusal(tmp_path / "file" / "orders.journal"))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("UPDATE events SET payloads = x'91c40178' WHERE seq = 4", "event 2"),
        ("UPDATE events SET payloads = 'text' WHERE seq = 4", "event 2"),
        ("UPDATE events SET payloads = NULL WHERE seq = 45", "event 45"),
        ("UPDATE events SET chain = x'00' WHERE seq = 44", "event 5"),
        ("DELETE FROM events WHERE seq = 4", "event 2"),
        ("DELETE FROM events WHERE seq = 47", "event 46"),
        ("UPDATE events SET seq = 50 WHERE seq = 47", "event 46"),
        ("UPDATE journal SET chain = x'00'", "event 48"),
        ("INSERT INTO snapshot VALUES (2, x'00', 'state', x'00')", "the snapshot"),
        ("DELETE FROM journal", "its version"),
    ],
)
async def test_what_is_damaged_is_named_with_the_file(path, change, names):
    await write(path, GROUPS)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(change)
    error = await refusal(path)
    assert f": {names}. Nothing of it was used: restore a copy, or move it away" in str(error)
    assert not error.retryable


# ------------------------------------------------------------------------------------- changed bytes


class Image:
    """The files of a journal as a crash (or a clean end) has left them, to be changed and opened."""

    def __init__(self, folder: Path, *, crashed: bool) -> None:
        self.path, self.log = folder / "orders.journal", folder / "orders.journal-wal"
        self.files: dict[Path, bytes] = {}
        trio.run(self._write, crashed)

    async def _write(self, crashed: bool) -> None:
        async with await open_journal(self.path) as journal:
            await journal.append(GROUPS[0])
            await journal.snapshot(b"state")
        async with await open_journal(self.path) as journal:
            for group in GROUPS[1:]:
                await journal.append(group)
            if crashed:
                self.files = {file: file.read_bytes() for file in (self.path, self.log)}
        self.files = self.files or {self.path: self.path.read_bytes()}

    def opened(self, changed: Path, content: bytes) -> list[bytes] | None:
        """Return the events after the snapshot, None if the journal is refused."""
        for file, before in {**self.files, changed: content}.items():
            file.write_bytes(before)
        try:
            recovered = trio.run(self._read)
        except JournalError as error:
            assert str(changed) in str(error) or str(self.path) in str(error)
            assert not error.retryable
            with pytest.raises(JournalError):  # noqa: PT012 - it is not forgotten by the next start
                trio.run(self._read)
            return None
        finally:
            self.log.unlink(missing_ok=True)
        assert recovered.snapshot == b"state"
        return recovered.events

    async def _read(self) -> module.Recovered:
        async with await open_journal(self.path) as journal:
            recovered = journal.recovered
            await journal.append([b"goes on"])
            return recovered


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return Image(tmp_path_factory.mktemp("ended"), crashed=False)


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    return Image(tmp_path_factory.mktemp("crashed"), crashed=True)


@given(where=st.floats(0, 1, exclude_max=True), flips=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_changed_byte_of_the_file_changes_no_event(ended, where, flips):
    content = bytearray(ended.files[ended.path])
    content[int(where * len(content))] ^= flips
    assert ended.opened(ended.path, bytes(content)) in (None, EVENTS[1:])


@given(where=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None)
def test_a_file_that_ends_early_is_refused(ended, where):
    content = ended.files[ended.path]
    assert ended.opened(ended.path, content[: int(where * len(content))]) is None


@given(where=st.floats(0, 1, exclude_max=True), flips=st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_a_changed_byte_of_the_log_loses_nothing_silently_but_the_last_group(crashed, where, flips):
    content = bytearray(crashed.files[crashed.log])
    content[int(where * len(content))] ^= flips
    assert crashed.opened(crashed.log, bytes(content)) in (None, EVENTS[1:], EVENTS[1:-2])


@given(where=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_log_that_ends_early_leaves_whole_groups(crashed, where):
    content = crashed.files[crashed.log]
    groups = [sum(GROUPS[1:count], []) for count in range(1, len(GROUPS) + 1)]
    assert crashed.opened(crashed.log, content[: int(where * len(content))]) in (None, *groups)
