"""What is done inside a transaction of the caller's own, over the caller's own connection to the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from taskqueue.broker import Ended
from taskqueue.brokers.sqlite import names, queues
from taskqueue.brokers.sqlite.database import Database
from taskqueue.brokers.sqlite.history import ending
from taskqueue.brokers.sqlite.outbox import Outbox
from taskqueue.brokers.sqlite.schema import VERSION, Life
from taskqueue.clock import Clock
from taskqueue.errors import BrokerError, DeliveryLost, Unsupported
from taskqueue.joining import Connection, check_independent, join
from taskqueue.store import sender
from taskqueue.workitem import Workitem, worker_queue

__all__ = ["SQLiteJoined", "complete"]


class SQLiteJoined:
    """The contract of taskqueue.broker.Joined.

    Nobody is woken up, for that would have to come after the commit: carriers find the work within a second.
    """

    def __init__(self, path: Path, clock: Clock, connection: Connection) -> None:
        self._connection = _inside(path, connection)
        self._clock = clock

    def send(self, workitems: Sequence[Workitem], *, queue: str = "") -> list[str]:
        check_independent(workitems)
        named = [workitem.named() for workitem in workitems]
        to = [queue or worker_queue(workitem.type) for workitem in named]
        said = sender()
        lives = {name: queues.born(name, said) for name in set(to)}
        outbox = Outbox(self._clock.wall())
        outbox.put([(name, w, lives[name]) for name, w in zip(to, named, strict=True)])
        for name in lives:
            names.declare(self._connection, name)
        outbox.store(self._connection)
        return [workitem.id for workitem in named]


def complete(connection: object, ticket: Mapping[str, Any], ended: Ended, now: float) -> None:
    """See taskqueue.broker.complete."""
    inner = _inside(Path(ticket["file"]), join(connection))
    outbox = Outbox(now)
    todo = {ticket["seq"]: ending(ended, Life(*ticket["life"]), now)}
    if not queues.end(inner, outbox, todo, ticket["carrier"], sender()):
        raise DeliveryLost(
            f"workitem {ended.delivery.workitem.id} is not this worker process' any more: it was completed before, or "
            "its carrier is gone, and somebody else has it or will"
        )
    outbox.store(inner)


def _inside(path: Path, connection: Connection) -> sqlite3.Connection:
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
