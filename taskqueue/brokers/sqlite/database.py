"""The file: one connection to it, and write transactions that take turns with all other processes.

SQLite's own waiting for its lock is unfair: under a steady load a sender can starve altogether.  So whoever writes
first takes two lock files, one after the other: it waits at the door, which only one can hold, for the room; who
leaves the room can't be back at it before the next one has entered.

A commit is seen by all others at once, and who made it waits for the disk afterwards, with no lock in its hands.  So
nobody waits for the disk of others, and work begins while its sender still waits.  Whatever somebody makes durable who
saw a commit comes behind it in the write-ahead log, which is synced as a whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from taskqueue.brokers.sqlite.bell import Ringer
from taskqueue.brokers.sqlite.place import check_place, lock_file, places
from taskqueue.brokers.sqlite.schema import APPLICATION_ID, MIGRATIONS, VERSION
from taskqueue.errors import BrokerError, BrokerUnavailable

__all__ = ["Database"]

BUSY_TIMEOUT = 30.0
"""Seconds to wait for somebody who writes without our lock files, such as an sqlite3 shell."""
LOG_SIZE = 1024 * (4096 + 24)
"""Bytes of the write-ahead log, in pages with their headers: about where SQLite begins it anew."""
STEP = 256 * 1024  # bytes, more than SQLite needs at a time
ENLARGE_AT = 20
"""The transaction with which a connection enlarges the log: not for a command that sends one workitem."""
_REMEDIES = (  # beginnings of sqlite_errorname (https://www.sqlite.org/rescode.html), and what is to be done
    ("SQLITE_FULL", "the disk is full; nothing of this was stored, and nothing is lost: make room"),
    ("SQLITE_READONLY", "it can't be written; give this user the right to write the file and its directory"),
    ("SQLITE_CANTOPEN", "it can't be opened or made; does its directory exist, and may this user write there?"),
    ("SQLITE_NOTADB", "it is no SQLite file; name another file in the URL"),
    ("SQLITE_CORRUPT", "it is damaged; stop all daemons, and save what can be read with sqlite3's .recover"),
    ("SQLITE_IOERR", "the disk reports an error ({name}); look at the system's log"),
)


class Database:
    """One connection.  Not to be used by two threads at once, and never after a fork."""

    def __init__(self, path: Path, *, synchronous: str = "full") -> None:
        self.path = path
        self._errors = _Errors(path)
        self._files: list[int] = []
        self._syncs = synchronous == "full"
        self._log = -1  # the write-ahead log, once there is one
        self._begun = 0  # transactions
        with self._errors:
            check_place(path)
            self._files = [lock_file(path, name) for name in ("door", "room")]
            self._ringer = Ringer(places(path))
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            try:
                self._set_up()
            except BaseException:
                self.close()
                raise

    def _set_up(self) -> None:
        connection = self._connection
        connection.execute("BEGIN")  # together: somebody else may be making it right now
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        connection.execute("COMMIT")
        if application != APPLICATION_ID and tables:
            raise BrokerError(f"{self.path} is another program's SQLite file; name another file in the URL")
        if version > VERSION:
            raise BrokerError(
                f"{self.path} was written by a newer taskqueue (schema {version}, this one knows {VERSION}); "
                "install that version again, or name another file in the URL"
            )
        if mode != "wal":
            self._take_turn(wait=True)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            finally:
                self._leave()
        connection.execute("PRAGMA temp_store = MEMORY")  # what RETURNING collects would be a file each time
        connection.execute("PRAGMA synchronous = NORMAL")  # checkpoints are synced, commits by `sync`
        if version < VERSION:
            with self.writing():
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                for script in MIGRATIONS[version:]:  # none where somebody else was faster
                    for statement in script.split(";"):
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")

    def writing(
        self, *, durable: bool = True, told: Collection[str] = ()
    ) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """A write transaction: all of it is there at the end, or none of it.

        durable: also after a loss of power.  Without that it survives the death of any process, and costs no wait for
        the disk: for what needs to be true only as long as this host runs.
        told: the queues that got something, for `ring`; what is added to them meanwhile, too.

        Raises BrokerUnavailable where somebody else holds the file too long, BrokerError for what won't pass by itself.
        """
        return _Writing(self, durable, told)

    def write(self, statement: str, values: Sequence[Any], *, told: Collection[str]) -> None:
        """Have one statement be a transaction: a tenth less time for a send.  Raises what `writing` does."""
        if self._begun < ENLARGE_AT:
            with self.writing(told=told) as connection:
                connection.execute(statement, values)
            return
        with self._errors:
            self._take_turn(wait=True)
            try:
                self._connection.execute(statement, values)
            finally:
                self._leave()
        self.ring(told)
        self.sync()

    def begin(self, *, wait: bool) -> bool:
        """Begin a write transaction, which `commit` or an exception `inside` it ends.

        False where somebody else writes, or waits to, and `wait` is not set.  Raises what `writing` does.
        """
        with self._errors:
            if not self._take_turn(wait=wait):
                return False
            try:
                if not wait:
                    self._connection.execute("PRAGMA busy_timeout = 0")
                try:
                    self._connection.execute("BEGIN IMMEDIATE")
                finally:
                    if not wait:
                        self._connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT * 1000)}")
            except sqlite3.OperationalError as error:
                self._leave()
                if wait or not getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                    raise
                return False
            except BaseException:
                self._leave()
                raise
            self._begun += 1
            if self._begun == ENLARGE_AT:
                self._enlarge_log()
            return True

    def inside(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """The transaction that `begin` began; an exception undoes and ends it."""
        return _Inside(self)

    def commit(self) -> None:
        """End the transaction: all others see it.  Raises what `writing` does."""
        try:
            with self._errors:
                self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._leave()

    def sync(self) -> None:
        """Wait until all that was committed so far outlasts a loss of power.  Raises BrokerError."""
        if self._syncs:
            with self._errors:
                if self._log < 0:
                    self._log = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
                os.fdatasync(self._log)

    def _enlarge_log(self) -> None:
        """Inside a transaction: to sync a file that has grown takes nearly twice as long, for its size is synced, too.

        SQLite takes what is behind its last frame for no frame, whatever it is (https://www.sqlite.org/walformat.html).
        """
        if _room(self.path.parent) < 16 * LOG_SIZE:
            return
        with contextlib.suppress(OSError):  # then it grows as it is written
            file = os.open(f"{self.path}-wal", os.O_WRONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(file).st_size
                os.pwrite(file, bytes(max(0, LOG_SIZE - size)), size)
            finally:
                os.close(file)

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("ROLLBACK")

    def _undo(self, error: BaseException) -> None:
        self._roll_back()
        self._leave()
        with self._errors:
            raise error

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Single statements that only read; they wait for nobody."""
        with self._errors:
            yield self._connection

    def ring(self, queues: Iterable[str]) -> None:
        """Tell carriers and clients that these queues got something.  After the commit."""
        self._ringer.ring(queues)

    def _take_turn(self, *, wait: bool) -> bool:
        door, room = self._files
        how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
        try:
            fcntl.flock(door, how)
            try:
                fcntl.flock(room, how)
            finally:
                fcntl.flock(door, fcntl.LOCK_UN)
        except BlockingIOError:
            return False
        return True

    def _leave(self) -> None:
        if self._files:  # not where it has been closed meanwhile
            fcntl.flock(self._files[1], fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the file.  May be called twice."""
        self._connection.close()
        files, self._files = self._files, []
        if self._log >= 0:
            files.append(self._log)
            self._log = -1
        for file in files:
            os.close(file)
        self._ringer.close()


# Classes, not generators: each send goes through them.
class _Inside:
    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> sqlite3.Connection:
        return self._database._connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._database._undo(error)


class _Writing:
    def __init__(self, database: Database, durable: bool, told: Collection[str]) -> None:
        self._database = database
        self._durable = durable
        self._told = told

    def __enter__(self) -> sqlite3.Connection:
        self._database.begin(wait=True)
        return self._database._connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._database._undo(error)
        self._database.commit()
        if self._told:
            self._database.ring(self._told)
        if self._durable:
            self._database.sync()


class _Errors:
    """Raises ours instead of SQLite's, in words that say what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.DatabaseError):
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise BrokerUnavailable(f"{self._path}: another program has held it for {BUSY_TIMEOUT:g} s") from None
            raise BrokerError(f"{self._path}: {self._remedy(name, error)}") from None
        if isinstance(error, OSError):
            raise BrokerError(f"{error.filename or self._path}: {error.strerror}") from None

    def _remedy(self, name: str, error: sqlite3.Error) -> str:
        if name.startswith("SQLITE_IOERR") and _room(self._path.parent) < STEP:
            name = "SQLITE_FULL"  # SQLite says so only where it is the file itself that can't grow
        for prefix, text in _REMEDIES:
            if name.startswith(prefix):
                return text.format(name=name)
        return str(error)


def _room(directory: Path) -> int:
    """Bytes that can still be written."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
