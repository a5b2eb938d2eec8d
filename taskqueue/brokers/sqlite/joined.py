"""What is done inside a transaction of the caller's own, over the caller's own connection to the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from taskqueue.brokers.sqlite import queues
from taskqueue.brokers.sqlite.database import Database
from taskqueue.brokers.sqlite.outbox import Outbox
from taskqueue.brokers.sqlite.schema import VERSION
from taskqueue.clock import Clock
from taskqueue.errors import BrokerError, Unsupported
from taskqueue.joining import Connection
from taskqueue.store import sender
from taskqueue.workitem import Workitem, worker_queue

__all__ = ["SQLiteJoined", "inside"]


class SQLiteJoined:
    """The contract of taskqueue.broker.Joined.

    Nobody is woken up, for that would have to come after the commit: carriers find the work within a second.
    """

    def __init__(self, path: Path, clock: Clock, connection: Connection) -> None:
        self._connection = inside(path, connection)
        self._clock = clock

    def send(self, workitems: Sequence[Workitem], *, queue: str = "") -> list[str]:
        named = [workitem.named() for workitem in workitems]
        to = [queue or worker_queue(workitem.type) for workitem in named]
        said = sender()
        lives = {name: queues.born(name, said) for name in set(to)}
        outbox = Outbox()
        outbox.put([(name, w, lives[name]) for name, w in zip(to, named, strict=True)], self._clock.wall())
        for name in lives:
            queues.declare(self._connection, name)
        outbox.store(self._connection)
        return [workitem.id for workitem in named]


def inside(path: Path, connection: Connection) -> sqlite3.Connection:
    """The caller's connection, as `queues` uses one.  Raises BrokerError where it is to another file."""
    driver = connection.driver
    if not hasattr(driver, "in_transaction"):
        raise Unsupported(f"{type(driver).__module__} is no driver for SQLite: expected a connection to {path}")
    cursor = driver.cursor()
    cursor.row_factory = None
    file = next(file for _, name, file in cursor.execute("PRAGMA database_list") if name == "main")
    if not file or Path(file).resolve() != path.resolve():
        raise BrokerError(f"the connection is to {file or 'a database in memory'}: expected one to {path}")
    if cursor.execute("PRAGMA user_version").fetchone()[0] != VERSION:
        if driver.in_transaction:
            raise BrokerError(f"{path} is not set up yet: expected no transaction to have begun, just this once")
        Database(path).close()
    return cast(sqlite3.Connection, cursor)  # it executes as a connection does, whatever rows the caller's has
