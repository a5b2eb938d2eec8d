"""Which carriers there are, and which of them are dead: one lives as long as it holds the lock of its file.

The kernel lets go of it with the process.  So what a dead one had been lent is found at once, with no clock.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from pathlib import Path

from taskqueue.brokers.sqlite import queues
from taskqueue.brokers.sqlite.place import places

__all__ = ["adopt", "forget", "lock_name", "orphans"]

log = logging.getLogger(__name__)


def lock_name(carrier: int) -> str:
    """The file that `carrier` holds the lock of."""
    return f"carrier-{carrier}"


def forget(path: Path, carrier: int) -> None:
    """Remove the lock file of `carrier`, which is gone."""
    (places(path) / lock_name(carrier)).unlink(missing_ok=True)


def orphans(connection: sqlite3.Connection, path: Path, me: int = 0) -> list[int]:
    """The carriers that are dead; `me` is not asked."""
    others = connection.execute("SELECT id FROM carriers WHERE id <> ?", (me,)).fetchall()
    return [number for (number,) in others if not _alive(path, number)]


def adopt(connection: sqlite3.Connection, path: Path, me: int = 0) -> int:
    """Inside a transaction: give back what dead carriers had been lent.  How many there were."""
    dead = orphans(connection, path, me)
    for number in dead:
        queues.release(connection, number)
        log.warning("carrier %d is dead: what it had is lent again", number)
        forget(path, number)
    return len(dead)


def _alive(path: Path, carrier: int) -> bool:
    """Whether somebody holds the lock of `carrier`."""
    try:
        file = os.open(places(path) / lock_name(carrier), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
