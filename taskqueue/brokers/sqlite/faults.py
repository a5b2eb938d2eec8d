"""What may go wrong with the file, in words that say what to do."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from taskqueue.errors import BrokerError, BrokerUnavailable

__all__ = ["BUSY_TIMEOUT", "Faults", "room"]

BUSY_TIMEOUT = 30.0
"""Seconds to wait for somebody who writes without our lock files, such as an sqlite3 shell."""
STEP = 256 * 1024  # bytes, more than SQLite needs at a time
_REMEDIES = (  # beginnings of sqlite_errorname (https://www.sqlite.org/rescode.html), and what is to be done
    ("SQLITE_FULL", "the disk is full; nothing of this was stored, and nothing is lost: make room"),
    ("SQLITE_READONLY", "it can't be written; give this user the right to write the file and its directory"),
    ("SQLITE_CANTOPEN", "it can't be opened or made; does its directory exist, and may this user write there?"),
    ("SQLITE_NOTADB", "it is no SQLite file; name another file in the URL"),
    ("SQLITE_CORRUPT", "it is damaged; stop all daemons, and save what can be read with sqlite3's .recover"),
    ("SQLITE_IOERR", "the disk reports an error ({name}); look at the system's log"),
)


class Faults:
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
        if name.startswith("SQLITE_IOERR") and room(self._path.parent) < STEP:
            name = "SQLITE_FULL"  # SQLite says so only where it is the file itself that can't grow
        for prefix, text in _REMEDIES:
            if name.startswith(prefix):
                return text.format(name=name)
        return str(error)


def room(directory: Path) -> int:
    """Bytes that can still be written there."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
