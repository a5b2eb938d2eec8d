"""The file: one connection to it, and write transactions that take turns with all other processes.

SQLite's own waiting for its lock is unfair: under a steady load a sender can starve altogether.  So whoever writes
first takes two lock files, one after the other: it waits at the door, which only one can hold, for the room; who
leaves the room can't be back at it before the next one has entered.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from taskqueue.brokers.sqlite.schema import APPLICATION_ID, SCHEMA, VERSION
from taskqueue.errors import BrokerError, BrokerUnavailable

__all__ = ["Database", "places"]

BUSY_TIMEOUT = 30.0
"""Seconds to wait for somebody who writes without our lock files, such as an sqlite3 shell."""
_REMOTE = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs", "ncpfs"))
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
        self._files: list[int] = []
        with self._errors():
            _check_place(path)
            self._files = [_lock_file(path, name) for name in ("door", "room")]
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            try:
                self._set_up(synchronous)
            except BaseException:
                self.close()
                raise

    def _set_up(self, synchronous: str) -> None:
        connection = self._connection
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application != APPLICATION_ID and tables:
            raise BrokerError(f"{self.path} is another program's SQLite file; name another file in the URL")
        if version > VERSION:
            raise BrokerError(
                f"{self.path} was written by a newer taskqueue (schema {version}, this one knows {VERSION}); "
                "install that version again, or name another file in the URL"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous.upper()}")
        if version < VERSION:
            with self.writing():
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version < VERSION:  # and nobody else was faster
                    for statement in SCHEMA.split(";"):
                        connection.execute(statement)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: all of it is durable at the end, or none of it is there.

        Raises BrokerUnavailable where somebody else holds the file too long, BrokerError for what won't pass by itself.
        """
        with self._errors(), self._turn():
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            try:
                connection.execute("COMMIT")
            except sqlite3.Error:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Single statements that only read; they wait for nobody."""
        with self._errors():
            yield self._connection

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        door, room = self._files
        fcntl.flock(door, fcntl.LOCK_EX)
        try:
            fcntl.flock(room, fcntl.LOCK_EX)
        finally:
            fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise BrokerUnavailable(f"{self.path}: another program has held it for {BUSY_TIMEOUT:g} s") from None
            raise BrokerError(f"{self.path}: {self._remedy(name, error)}") from None
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "")
            raise BrokerError(f"{self.path}: {self._remedy(name, error)}") from None
        except OSError as error:
            raise BrokerError(f"{error.filename or self.path}: {error.strerror}") from None

    def _remedy(self, name: str, error: sqlite3.Error) -> str:
        """What is wrong, in words that say what to do."""
        if name.startswith("SQLITE_IOERR") and not _room(self.path.parent):
            name = "SQLITE_FULL"  # SQLite says so only where it is the file itself that can't grow
        for prefix, text in _REMEDIES:
            if name.startswith(prefix):
                return text.format(name=name)
        return str(error)

    def close(self) -> None:
        """Let go of the file.  May be called twice."""
        self._connection.close()
        files, self._files = self._files, []
        for file in files:
            os.close(file)


def _room(directory: Path) -> bool:
    """Whether there is room for SQLite's next step, which is of tens of KiB."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize > 256 * 1024


def places(path: Path) -> Path:
    """The directory beside the file that has locks and sockets."""
    return path.with_name(f"{path.name}.d")


def _lock_file(path: Path, name: str) -> int:
    directory = places(path)
    # With the rights of the file's own directory, whoever may write the file may use its locks.
    directory.mkdir(mode=0o700 | path.parent.stat().st_mode & 0o070, exist_ok=True)
    return os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)


def _check_place(path: Path) -> None:
    """SQLite's WAL needs shared memory, and flock one kernel: one host only."""
    if not path.parent.is_dir():
        raise BrokerError(f"{path}: there is no directory {path.parent}; make it, or name another file in the URL")
    kind = _file_system(path.parent.resolve())
    if kind in _REMOTE:
        raise BrokerError(
            f"{path} is on a network file system ({kind}), where SQLite's locks don't hold; "
            "name a file on a local disk, or use amqp:// or postgresql:// for several hosts"
        )


def _file_system(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that `directory` is on; empty where that can't be told (proc(5))."""
    best, kind = "", ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if directory.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind
