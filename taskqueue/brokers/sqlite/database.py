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
import os
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from taskqueue.brokers.sqlite.bell import Ringer
from taskqueue.brokers.sqlite.faults import BUSY_TIMEOUT, Faults, room
from taskqueue.brokers.sqlite.forking import keep
from taskqueue.brokers.sqlite.place import LockFile, check_place, places
from taskqueue.brokers.sqlite.schema import APPLICATION_ID, MIGRATIONS, VERSION
from taskqueue.errors import BrokerError
from taskqueue.workitem import made_at

__all__ = ["Database"]

LOG_SIZE = 1024 * (4096 + 24)
"""Bytes of the write-ahead log, in pages with their headers: about where SQLite begins it anew."""
ENLARGE_AT = 20
"""The transaction with which a connection enlarges the log: not for a command that sends one workitem."""


class Database:
    """One connection.  Not to be used by two threads at once, and not in a child after a fork.

    A fork closes it for a moment (see `forking`): it is opened again when it is used again.
    """

    def __init__(self, path: Path, *, synchronous: str = "full") -> None:
        self.path = path
        self._faults = Faults(path)
        self._locks: list[LockFile] = []
        self._syncs = synchronous == "full"
        self._log = -1  # the write-ahead log, once there is one
        self._begun = 0  # transactions
        self._using = threading.Lock()  # held by who is inside SQLite, or in a transaction; taken after a turn only
        self._user = 0  # the thread that takes it, set as long as that may hold it: its signals' handlers may fork
        self._is_open = False
        with self._faults:
            check_place(path)
            self._locks = [LockFile(path, name) for name in ("door", "room")]
            self._ringer = Ringer(places(path))
            keep(self)
            try:
                self._set_up()
            except BaseException:
                self.close()
                raise

    def _open(self) -> None:
        self._close_log()  # after a fork it may be another file: the last one who closes the old one removes it
        self._connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        self._is_open = True
        self._connection.create_function("made_at", 1, made_at, deterministic=True)
        self._connection.execute("PRAGMA temp_store = MEMORY")  # what RETURNING collects would be a file each time
        self._connection.execute("PRAGMA synchronous = NORMAL")  # checkpoints are synced, commits by `sync`

    def _set_up(self) -> None:
        with self._used():
            application, version, tables, mode = self._found()
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
                with self._used():
                    self._connection.execute("PRAGMA journal_mode = WAL")
            finally:
                self._leave()
        if version < VERSION:
            with self.writing() as connection:
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                for script in MIGRATIONS[version:]:  # none where somebody else was faster
                    for statement in script.split(";"):
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")

    def _found(self) -> tuple[int, int, int, str]:
        """Whose file it is, the version of its schema, how many tables it has, and how it keeps its journal."""
        connection = self._connection
        connection.execute("BEGIN")  # together: somebody else may be making it right now
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        connection.execute("COMMIT")
        return application, version, tables, mode

    def _acquire(self) -> None:
        self._user = threading.get_ident()
        self._using.acquire()
        if not self._is_open:
            try:
                self._open()
            except BaseException:
                self._release()
                raise

    def _release(self) -> None:
        self._using.release()
        self._user = 0

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        self._acquire()
        try:
            yield
        finally:
            self._release()

    def before_fork(self) -> None:
        """Where it is this thread that uses it, what it does there fails: a signal's handler forks."""
        if self._user != threading.get_ident():
            self._using.acquire()
        self._shut()

    def after_fork(self, *, child: bool) -> None:
        if self._user != threading.get_ident():
            self._using.release()
        if child:
            self._let_go()

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
        with self._faults:
            self._take_turn(wait=True)
            try:
                self._acquire()
                try:
                    self._connection.execute(statement, values)
                finally:
                    self._release()
            finally:
                self._leave()
        self.ring(told)
        self.sync()

    def begin(self, *, wait: bool) -> bool:
        """Begin a write transaction, which `commit` or an exception `inside` it ends.

        False where somebody else writes, or waits to, and `wait` is not set.  Raises what `writing` does.
        """
        with self._faults:
            if not self._take_turn(wait=wait):
                return False
            try:
                self._acquire()
            except BaseException:
                self._leave()
                raise
            try:
                if not wait:
                    self._connection.execute("PRAGMA busy_timeout = 0")
                try:
                    self._connection.execute("BEGIN IMMEDIATE")
                finally:
                    if not wait:
                        self._connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT * 1000)}")
            except sqlite3.OperationalError as error:
                self._end()
                if wait or not getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                    raise
                return False
            except BaseException:
                self._end()
                raise
            self._begun += 1
            if self._begun == ENLARGE_AT:
                self._enlarge_log()
            return True

    def is_wanted(self) -> bool:
        """Inside a transaction: whether somebody waits for the next one."""
        door = self._locks[0]
        if not door.take(wait=False):
            return True
        door.leave()
        return False

    def inside(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """The transaction that `begin` began; an exception undoes and ends it."""
        return _Inside(self)

    def commit(self) -> None:
        """End the transaction: all others see it.  Raises what `writing` does."""
        try:
            with self._faults:
                self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._end()

    def sync(self) -> None:
        """Wait until all that was committed so far outlasts a loss of power.  Raises BrokerError."""
        if self._syncs:
            with self._faults:
                if self._log < 0:
                    try:
                        self._log = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
                    except FileNotFoundError:
                        return  # a fork closed the file, and with the last one who closes it all of it is synced
                os.fdatasync(self._log)

    def _enlarge_log(self) -> None:
        """Inside a transaction: to sync a file that has grown takes nearly twice as long, for its size is synced, too.

        SQLite takes what is behind its last frame for no frame, whatever it is (https://www.sqlite.org/walformat.html).
        """
        if room(self.path.parent) < 16 * LOG_SIZE:
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
        self._end()
        with self._faults:
            raise error

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Single statements that only read; they wait for nobody."""
        with self._faults, self._used():
            yield self._connection

    def ring(self, queues: Iterable[str]) -> None:
        """Tell carriers and clients that these queues got something.  After the commit."""
        self._ringer.ring(queues)

    def _take_turn(self, *, wait: bool) -> bool:
        door, room = self._locks
        if not door.take(wait=wait):
            return False
        try:
            return room.take(wait=wait)
        finally:
            door.leave()

    def _leave(self) -> None:
        self._locks[1].leave()

    def _end(self) -> None:
        self._release()
        self._leave()

    def _shut(self) -> None:
        if self._is_open:
            self._is_open = False
            self._connection.close()

    def _close_log(self) -> None:
        log, self._log = self._log, -1
        if log >= 0:
            os.close(log)

    def close(self) -> None:
        """Let go of the file.  May be called twice."""
        self._using.acquire()
        self._shut()
        self._using.release()
        self._let_go()

    def _let_go(self) -> None:
        self._close_log()
        for lock in self._locks:
            lock.close()
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
