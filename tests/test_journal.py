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
from itertools import chain
from pathlib import Path

import pytest
import trio
import trio.testing
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


def leave_out_syncs(patch: pytest.MonkeyPatch) -> None:
    """They change no byte, and take most of the time where a journal is opened hundreds of times."""
    patch.setattr(module, "_SETTINGS", (*module._SETTINGS, "PRAGMA synchronous = OFF"))


def chain_of(events: list[bytes]) -> bytes:
    digest = GENESIS
    for event in events:
        digest = sha256(digest + event).digest()
    return digest


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
    log = trio.Path(f"{path}-wal")
    async with await open_journal(path) as journal:
        sizes = []
        for _ in range(12):
            await journal.append([b"x" * 1_000_000])
            sizes.append((await log.stat()).st_size)
        assert max(sizes) < module.LOG_BYTES
        assert sizes.count(0) == 2
    assert not await log.exists()
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


async def test_a_file_that_can_only_be_read_is_refused_at_once(path):
    await write(path, GROUPS)
    with path.open("r+b") as file:  # root may write whatever the mode says; this is the format's own way to forbid it
        file.seek(18)
        file.write(b"\x03")
    assert "readonly" in str(await refusal(path))


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
        with pytest.MonkeyPatch.context() as patch:
            leave_out_syncs(patch)
            return self._opened()

    def _opened(self) -> list[bytes] | None:
        try:
            recovered = trio.run(self._read)
        except JournalError:
            error = trio.run(refusal, self.path)  # the next start has not forgotten it
            assert not error.retryable
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
@settings(max_examples=100, deadline=None)
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
    groups = [list(chain.from_iterable(GROUPS[1:count])) for count in range(1, len(GROUPS) + 1)]
    assert crashed.opened(crashed.log, content[: int(where * len(content))]) in (None, *groups)


# ------------------------------------------------------------------------------------- disks that fail


class Bookkeeper:
    """Writes like whoever journals before acknowledging: after an error it looks at what is there, and goes on."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.events: list[bytes] = []
        self.errors: list[JournalError] = []

    async def append(self, group: list[bytes]) -> None:
        while (missing := len(self.events) + len(group) - self.journal.head) > 0:
            assert missing == len(group)
            try:
                await self.journal.append(group)
            except JournalError as error:
                await self._reopen(error)
        self.events += group
        assert self.journal.chain == chain_of(self.events)

    async def snapshot(self) -> None:
        while True:
            try:
                return await self.journal.snapshot(b"%d" % len(self.events))
            except JournalError as error:
                await self._reopen(error)

    async def _reopen(self, error: JournalError) -> None:
        self.errors.append(error)
        with pytest.raises(JournalError, match="open it again first"):
            await self.journal.append([b"must not be written"])
        while error.retryable:
            try:
                return await self.journal.reopen()
            except JournalError as again:
                error = again
        raise error


class Faulty(sqlite3.Connection):
    """Fails at one statement, or several in a row, before they are done or (as a sync may) after."""

    fails: range = range(0)
    done = 0
    after = False
    error = sqlite3.SQLITE_IOERR

    def execute(self, *args):
        Faulty.done += 1
        if Faulty.done not in Faulty.fails:
            return super().execute(*args)
        if Faulty.after:
            super().execute(*args)
        error = sqlite3.OperationalError("the disk failed")
        error.sqlite_errorcode, error.sqlite_errorname = Faulty.error, "SQLITE_IOERR"
        raise error


@pytest.mark.parametrize("lasting", [1, 10])
@pytest.mark.parametrize(("error", "after"), [(sqlite3.SQLITE_FULL, False), (sqlite3.SQLITE_IOERR_FSYNC, True)])
async def test_an_error_at_any_statement_loses_and_doubles_nothing(tmp_path, monkeypatch, error, after, lasting):
    leave_out_syncs(monkeypatch)
    monkeypatch.setattr("sqlite3.connect", partial(sqlite3.connect, factory=Faulty))
    monkeypatch.setattr(module, "LOG_BYTES", 0)
    monkeypatch.setattr(Faulty, "error", error)
    monkeypatch.setattr(Faulty, "after", after)
    for statement in range(100):
        path = tmp_path / f"{statement}.journal"
        async with await open_journal(path) as journal:
            bookkeeper = Bookkeeper(journal)
            monkeypatch.setattr(Faulty, "done", 0)
            monkeypatch.setattr(Faulty, "fails", range(statement + 1, statement + 1 + lasting))
            await bookkeeper.append([b"1", b"2"])
            await bookkeeper.append([b"3"])
            await bookkeeper.snapshot()
            await bookkeeper.append([b"4", b"5", b"6"])
            monkeypatch.setattr(Faulty, "fails", range(0))
        async with await open_journal(path) as journal:
            assert journal.recovered == (b"3", [b"4", b"5", b"6"])
            assert (journal.head, journal.chain) == (6, chain_of(bookkeeper.events))
        if not bookkeeper.errors:
            break
    assert 10 < statement < 99


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Have the system refuse, and cut short, every write beyond ``size`` bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("log_bytes", [0, module.LOG_BYTES])
async def test_a_write_that_fails_at_any_place_of_the_files_loses_and_doubles_nothing(tmp_path, monkeypatch, log_bytes):
    leave_out_syncs(monkeypatch)
    monkeypatch.setattr(module, "LOG_BYTES", log_bytes)
    group = [bytes([k]) * 3000 for k in range(7)]
    base = tmp_path / "base.journal"
    await write(base, [[b"before"]])
    failed = 0
    for size in (*range(0, 100, 7), *range(100, 45_000, 1499)):
        path = tmp_path / "orders.journal"
        shutil.copy(base, path)
        async with await open_journal(path) as journal:
            acknowledged = False
            with contextlib.suppress(JournalError), files_end_at(size):
                await journal.append(group)
                acknowledged = True
            if not acknowledged:
                failed += 1
                await journal.reopen()
                assert journal.recovered.events in ([b"before"], [b"before", *group])
            events = [b"before", *group] if acknowledged else journal.recovered.events
            await journal.append([b"after"])
        assert await read(path) == [*events, b"after"]
        path.unlink()
    assert 25 < failed < 44


async def test_a_full_disk_refuses_and_takes_events_again_when_there_is_room(path, monkeypatch):
    full = pytest.MonkeyPatch()
    full.setattr(module, "_SETTINGS", (*module._SETTINGS, "PRAGMA max_page_count = 40"))
    async with await open_journal(path) as journal:
        bookkeeper = Bookkeeper(journal)
        with pytest.raises(JournalError, match="SQLITE_FULL") as error:  # noqa: PT012 - which one fails is not known
            for k in range(1000):
                await journal.append([b"%d" % k] * 100)
                bookkeeper.events += [b"%d" % k] * 100
        assert error.value.retryable
        assert len(bookkeeper.events) == journal.head > 1000
        await journal.reopen()
        assert journal.recovered.events == bookkeeper.events
        full.undo()
        await journal.reopen()
        await bookkeeper.append([b"fits"])
    assert await read(path) == bookkeeper.events


async def test_a_log_that_somebody_removes_is_noticed(path):
    async with await open_journal(path) as journal:
        await journal.append([b"1"])
        await trio.Path(f"{path}-wal").unlink()
        with pytest.raises(JournalError, match="No such file"):
            await journal.append([b"2"])


# ------------------------------------------------------------------------------------- cancels


class Held(sqlite3.Connection):
    """Waits in the middle of an insert."""

    reached = threading.Event()
    go_on = threading.Event()

    def execute(self, sql, *args):
        if sql.startswith("INSERT"):
            Held.reached.set()
            Held.go_on.wait()
        return super().execute(sql, *args)


async def test_a_group_that_is_being_written_is_written_in_spite_of_a_cancel(path, monkeypatch):
    monkeypatch.setattr("sqlite3.connect", partial(sqlite3.connect, factory=Held))
    returned = []
    async with await open_journal(path) as journal:

        async def append(event: bytes) -> None:
            await journal.append([event])
            returned.append(event)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, b"being written")
            await trio.to_thread.run_sync(Held.reached.wait)
            nursery.start_soon(append, b"waiting")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            Held.go_on.set()
        assert returned == [b"being written"]
        assert (journal.head, journal.chain) == (1, chain_of([b"being written"]))
        await journal.append([b"next"])
    assert await read(path) == [b"being written", b"next"]


async def test_a_cancelled_close_closes(path):
    journal = await open_journal(path)
    with trio.CancelScope() as scope:
        scope.cancel()
        await journal.aclose()
    assert scope.cancelled_caught
    assert await read(path) == []
    await journal.aclose()
    with pytest.raises(JournalError, match="closed"):
        await journal.append([b"late"])


# ------------------------------------------------------------------------------------- kill -9

KILLS = 20


def write_until_killed(path: Path, seed: int, acknowledged) -> None:
    """Append numbered events, with a snapshot now and then; say after each call how many are on disk."""

    async def main() -> None:
        rng = random.Random(seed)
        module.LOG_BYTES = 100_000  # so that kills also meet the moves of the log into the file
        async with await open_journal(path) as journal:
            acknowledged.send(journal.head)
            while True:
                await journal.append([b"%d" % (journal.head + k) for k in range(rng.choice((1, 3, 40)))])
                acknowledged.send(journal.head)
                if rng.random() < 0.1:
                    await journal.snapshot(b"%d" % journal.head)

    trio.run(main)


def test_what_was_acknowledged_survives_kill_9_once_and_in_order(path):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    rng = random.Random(1)
    told = 0
    for kill in range(KILLS):
        ours, theirs = processes.Pipe(duplex=False)
        process = processes.Process(target=write_until_killed, args=(path, kill, theirs))
        process.start()
        theirs.close()
        for _ in range(rng.randrange(1, 30)):
            told = ours.recv()
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):
            while True:
                told = ours.recv()
        ours.close()
        told = trio.run(check_numbered, path, told)
    assert told > 100 * KILLS // 2


async def check_numbered(path: Path, told: int) -> int:
    async with await open_journal(path) as journal:
        snapshot, events = journal.recovered
        first = int(snapshot or 0)
        assert events == [b"%d" % k for k in range(first, journal.head)]
        assert journal.chain == chain_of([b"%d" % k for k in range(journal.head)])
        assert journal.head >= told
        return journal.head
