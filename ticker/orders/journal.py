"""The journal of orders: events on disk before anybody is told of them, and all of them back after a crash.

An event is bytes. This module numbers events from 1, chains them (SHA-256 of the digest before and the event), keeps
them in an SQLite database, and gives them back in order. It must not know what an event means, or who waits for it.

**On disk.** A group of events, what one :meth:`Journal.append` takes, is one row of table ``events``: the number of its
last event, the events, the digest after them. One statement writes it, and a trigger notes number and digest in table
``journal``; the digest does not depend on how events were grouped. A row per event would cost a hundred statements in
a group of a hundred, and every statement makes the worker thread wait for the interpreter's lock: beside a busy main
thread a group of 100 takes 237 ms by rows and 6 ms in one (1.0 and 0.5 ms beside an idle one). A snapshot replaces
the events before it, so the file stays as large as what recovery needs.

**What is noticed.** Everything in the file is checked whenever it is opened: numbers, digests, the note of the last
event. SQLite itself silently drops what follows a damaged place in its write-ahead log; more than one group lost in
this way is noticed too. What cannot be told from a group that never reached the disk is a log that ends early.

**After an error** nothing more is written until :meth:`Journal.reopen`. Whether the group is in the journal is then
seen by its ``head``: a disk that fails while it syncs leaves that unknown. What is found is written to the database
file and synced before it is believed; the kernel may have forgotten pages of the log whose sync has failed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

import msgspec
import trio

from ticker.errors import JournalError

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

MEMORY: Final = ":memory:"  #: The path of a journal that ends with the process.
VERSION: Final = 1
GENESIS: Final = bytes(32)  #: The digest over no events.
#: Bytes of the write-ahead log from which on it is moved into the database: SQLite's own measure, 1,000 pages.
LOG_BYTES: Final = 4 << 20

_SCHEMA: Final = f"""
    PRAGMA journal_mode = WAL;
    BEGIN;
    CREATE TABLE journal (version INTEGER, head INTEGER, chain BLOB, identity BLOB);
    CREATE TABLE events (seq INTEGER PRIMARY KEY, payloads BLOB, chain BLOB);
    CREATE TABLE snapshot (seq INTEGER, chain BLOB, payload BLOB, digest BLOB);
    INSERT INTO journal VALUES ({VERSION}, 0, x'{GENESIS.hex()}', randomblob(8));
    COMMIT;
"""
# An exclusive lock keeps other processes out for as long as the file is open. Without SQLite's own checkpoints a log
# holds nothing but groups in order, which is what _ends_at relies on. fullfsync: on macOS fsync alone does not reach
# the disk. The trigger is temporary, that is, not in the file, where it could be damaged.
_SETTINGS: Final = (
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",
    "PRAGMA wal_autocheckpoint = 0",
    "PRAGMA temp_store = MEMORY",
)
_TRIGGER: Final = """
    CREATE TEMP TRIGGER head AFTER INSERT ON events BEGIN UPDATE journal SET head = NEW.seq, chain = NEW.chain; END
"""
_RETRYABLE: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_RETRYABLE_OS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_LOG_HEADER, _FRAME_HEADER = 32, 24  # https://www.sqlite.org/walformat.html


def default_path() -> Path:
    """Return where a user's journal is: ``ticker/orders.journal`` in the folder for the user's data (XDG)."""
    home = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not home.is_absolute():  # the specification has a relative one ignored
        home = Path.home() / ".local" / "share"
    return home / "ticker" / "orders.journal"


class Recovered(NamedTuple):
    """What a journal held when it was opened.

    Attributes:
        snapshot: The last snapshot, or None if there was none.
        events: The events after it, in order.
    """

    snapshot: bytes | None
    events: list[bytes]


async def open_journal(path: Path | str) -> Journal:
    """Open a journal; a file that does not exist, and its folder, are made, for this user only.

    A cancel takes effect before anything is opened, or not at all.

    Args:
        path: The file, or :data:`MEMORY`.

    Raises:
        JournalError: It is damaged, of a newer version, used by another process, or cannot be read or written.
    """
    journal = Journal(path)
    await journal.reopen()
    return journal


class Journal(trio.abc.AsyncResource):
    """Events on disk. One task writes; calls that overlap are done one after the other.

    All work on the database is done in a worker thread. A cancel of any method takes effect before that work begins,
    and then nothing was done; once begun it is done to its end, and the method returns as if there were no cancel.

    Attributes:
        recovered: What the journal held when it was last opened; empty from the first append or snapshot on.
    """

    def __init__(self, path: Path | str) -> None:
        self._database = _Database(str(path))
        self._limiter = trio.CapacityLimiter(1)
        self.recovered = Recovered(None, [])

    @property
    def head(self) -> int:
        """The number of the last event that is on disk; 0 before the first."""
        return self._database.end[0]

    @property
    def chain(self) -> bytes:
        """The digest over all events up to :attr:`head` since the journal was made, 32 bytes."""
        return self._database.end[1]

    @property
    def durable(self) -> bool:
        """Whether it outlives the process."""
        return self._database.path != MEMORY

    @property
    def identity(self) -> str:
        """Names this journal: 16 hexadecimal digits, drawn when it was made; its events do not depend on them."""
        return self._database.identity

    async def append(self, payloads: Sequence[bytes]) -> None:
        """Write a group of events; all or none of them are in the journal. Returns when they are on disk.

        Args:
            payloads: The events, in order; not to be changed meanwhile.

        Raises:
            JournalError: They may not be on disk; nothing more is written until :meth:`reopen`.
        """
        await self._in_thread(self._database.append, payloads)
        self.recovered = Recovered(None, [])

    async def snapshot(self, payload: bytes) -> None:
        """Write what all events up to :attr:`head` come to. Recovery begins there; those events are deleted.

        Raises:
            JournalError: It may not be on disk; nothing more is written until :meth:`reopen`. No event is lost.
        """
        await self._in_thread(self._database.snapshot, payload)
        self.recovered = Recovered(None, [])

    async def reopen(self) -> None:
        """Find out after an error what is on disk: sets ``head``, ``chain`` and ``recovered``.

        A journal in memory is empty afterwards.

        Raises:
            JournalError: As :func:`open_journal`; if it is retryable, this can be called again.
        """
        self.recovered = await self._in_thread(self._database.open)

    async def aclose(self) -> None:
        """Close the file. A cancel does not keep it from being closed."""
        with trio.CancelScope(shield=True):
            await self._in_thread(self._database.close)
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _in_thread(self, work: Callable[[*Arguments], Result], *args: *Arguments) -> Result:
        return await trio.to_thread.run_sync(work, *args, limiter=self._limiter)


class _Database:
    """The file, for one thread at a time.

    Attributes:
        end: Number of the last event, and the digest after it.
        identity: Random, from when the file was made.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._log = Path(f"{path}-wal")
        self._connection: sqlite3.Connection | None = None
        self._writable = False
        self.end = 0, GENESIS
        self.identity = ""

    def open(self) -> Recovered:
        self.close()
        try:
            with self._translated():
                self._connection = db = self._connected()
                self._check_version(db)
                self._take_over_log(db)
                recovered = self._read(db)
        except JournalError:
            self.close()
            raise
        self._writable = True
        return recovered

    def _connected(self) -> sqlite3.Connection:
        if self.path == MEMORY:
            db = _connect(MEMORY)
            db.executescript(_SCHEMA)
            return db
        if not os.path.lexists(self.path):
            _create(Path(self.path))
        return _connect(self.path)

    def close(self) -> None:
        connection, self._connection, self._writable = self._connection, None, False
        if connection is not None:
            connection.close()  # moves the log into the file, and removes it if that succeeds

    def append(self, payloads: Sequence[bytes]) -> None:
        if not payloads:
            return
        seq, chain = self.end
        seq, chain = seq + len(payloads), reduce(_link, payloads, chain)
        with self._writing() as db:
            db.execute("INSERT INTO events VALUES (?, ?, ?)", (seq, msgspec.msgpack.encode(payloads), chain))
        self.end = seq, chain

    def snapshot(self, payload: bytes) -> None:
        seq, chain = self.end
        with self._writing() as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("DELETE FROM snapshot")
            db.execute("INSERT INTO snapshot VALUES (?, ?, ?, ?)", (seq, chain, payload, _seal(seq, chain, payload)))
            db.execute("DELETE FROM events")
            db.execute("COMMIT")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Give out the connection, and let nobody write any more if anything goes wrong with it."""
        if not self._writable or self._connection is None:
            raise JournalError(f"{self.path} is closed, or has failed: open it again first", retryable=True)
        self._writable = False
        with self._translated():
            yield self._connection
            if self.path != MEMORY and self._log.stat().st_size > LOG_BYTES:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._writable = True

    def _check_version(self, db: sqlite3.Connection) -> None:
        """Look whether it is a journal at all before anything touches it."""
        for setting in _SETTINGS:
            db.execute(setting)
        versions = db.execute("SELECT version FROM journal").fetchall()
        if len(versions) == 1 and isinstance(versions[0][0], int) and versions[0][0] > VERSION:
            raise JournalError(
                f"{self.path} has version {versions[0][0]}, and this program reads up to {VERSION}: "
                "start a newer one, or name another file"
            )
        if versions != [(VERSION,)]:
            raise self._damaged("its version")
        db.execute("PRAGMA journal_mode = WAL")  # as it was made; a damaged header may say otherwise
        db.execute(_TRIGGER)

    def _take_over_log(self, db: sqlite3.Connection) -> None:
        """Move what a crash has left in the write-ahead log into the file, unless SQLite does not see all of it."""
        log = self._log.read_bytes() if self._log.exists() else b""
        ((_, used, _),) = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        ((page_size,),) = db.execute("PRAGMA page_size").fetchall()
        if not _ends_at(log, used, page_size):
            ((head,),) = db.execute("SELECT head FROM journal").fetchall()
            self.close()
            self._log.write_bytes(log)  # closing has removed it
            raise JournalError(
                f"{self._log} is damaged and has lost what followed event {head}: restore a copy of both files, or "
                "move this one away to go on from there"
            )
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("UPDATE journal SET version = version")  # that it can be written is known before the first order

    def _read(self, db: sqlite3.Connection) -> Recovered:
        """Return what is in the file, all of it checked."""
        seq, chain, snapshot = self._read_snapshot(db)
        seq, chain, events = self._read_events(db, seq, chain)
        noted = db.execute("SELECT head, chain, identity FROM journal").fetchall()
        if [(seq, chain)] != [note[:2] for note in noted] or not isinstance(noted[0][2], bytes):
            raise self._damaged(f"event {seq + 1}")
        self.end, self.identity = (seq, chain), noted[0][2].hex()
        return Recovered(snapshot, events)

    def _read_snapshot(self, db: sqlite3.Connection) -> tuple[int, bytes, bytes | None]:
        """Return number and digest that the first event follows, and the snapshot."""
        rows = db.execute("SELECT seq, chain, payload, digest FROM snapshot").fetchall()
        if not rows:
            return 0, GENESIS, None
        seq, chain, payload, digest = rows[0]
        if [type(value) for value in rows[0]] != [int, bytes, bytes, bytes] or digest != _seal(seq, chain, payload):
            raise self._damaged("the snapshot")
        return seq, chain, payload

    def _read_events(self, db: sqlite3.Connection, seq: int, chain: bytes) -> tuple[int, bytes, list[bytes]]:
        """Return number and digest of the last event, and all events; the arguments are those before the first."""
        events: list[bytes] = []
        rows = db.execute("SELECT seq, payloads, chain FROM events ORDER BY seq")
        try:
            for last, payloads, digest in rows:
                group = msgspec.msgpack.decode(payloads, type=list[bytes])
                after = reduce(_link, group, chain)
                if (seq + len(group), after) != (last, digest):
                    raise self._damaged(f"event {seq + 1}")
                seq, chain = last, after
                events += group
        except (msgspec.MsgspecError, TypeError) as error:
            raise self._damaged(f"event {seq + 1}") from error
        except sqlite3.DatabaseError as error:
            raise self._translation(error, f"event {seq + 1}") from error
        finally:
            rows.close()  # an open cursor would keep the file locked
        return seq, chain, events

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._translation(error, "the file") from error
        except UnicodeDecodeError as error:  # of SQLite's message about a damaged name
            raise self._damaged("the file") from error
        except OSError as error:
            raise JournalError(f"{self.path}: {error}", retryable=error.errno in _RETRYABLE_OS) from error

    def _translation(self, error: sqlite3.DatabaseError, what: str) -> JournalError:
        if not hasattr(error, "sqlite_errorcode"):
            raise error  # not the file's fault but a defect
        code = error.sqlite_errorcode & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            text = f"{self.path} is used by another process: stop that one, or name another file"
            return JournalError(text, retryable=True)
        if code == sqlite3.SQLITE_READONLY or code in _RETRYABLE:
            text = f"{self.path} cannot be read or written: {error} ({error.sqlite_errorname})"
            return JournalError(text, retryable=code in _RETRYABLE)
        return self._damaged(f"{what} ({error})")

    def _damaged(self, what: str) -> JournalError:
        return JournalError(
            f"{self.path} is damaged, or no journal: {what}. Nothing of it was used: restore a copy, or move it away "
            "to begin anew"
        )


def _create(path: Path) -> None:
    """Make a journal without events, whole or not at all: an empty file at ``path`` is a damaged journal."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    os.close(file)
    try:
        with contextlib.closing(_connect(name)) as db:
            db.executescript(_SCHEMA)
        with contextlib.suppress(FileExistsError):  # another process was faster; the lock will tell
            os.link(name, path)
    finally:
        os.unlink(name)


def _connect(path: str) -> sqlite3.Connection:
    uri = path if path == MEMORY else f"{Path(path).absolute().as_uri()}?mode=rw"
    db = sqlite3.connect(uri, uri=True, timeout=0.0, isolation_level=None, check_same_thread=False)
    db.text_factory = bytes  # a damaged row may say that bytes are text
    return db


def _link(chain: bytes, payload: bytes) -> bytes:
    return sha256(chain + payload).digest()


def _seal(seq: int, chain: bytes, payload: bytes) -> bytes:
    return sha256(chain + b"%d " % seq + payload).digest()


def _ends_at(log: bytes, used: int, page_size: int) -> bool:
    """Whether a write-ahead log holds, after ``used`` pages, no more than the one group that was being written.

    A group's last page says how large the database is with it, so whatever follows such a page is a further group,
    which was begun after the group before it was on disk.
    """
    size = _FRAME_HEADER + page_size
    unused = range(_LOG_HEADER + used * size, len(log) - size + 1, size)
    commits = [log[at + 4 : at + 8] != bytes(4) for at in unused]
    return not any(commits[:-1])
