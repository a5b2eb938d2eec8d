"""A whole system over a store: what a test takes out of queues itself, it takes through the broker."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from types import SimpleNamespace

from installations import Installation
from system import PATIENCE, Message, System

from taskqueue.broker import Ended, connect
from taskqueue.outcome import Done
from taskqueue.workitem import Workitem


class StoreSystem(System):
    """Results may be in records, so nobody counts or takes them by looking at one table."""

    def collect(self, queue: str, count: int, *, timeout: float = PATIENCE) -> list[Message]:
        found: list[Workitem] = []

        async def reading() -> None:
            broker = connect(self.url)
            consumer = broker.consumer(queue, reserve=count)
            try:
                async with asyncio.timeout(timeout):
                    while len(found) < count:
                        deliveries = await consumer.receive(limit=count - len(found))
                        await consumer.settle([Ended(delivery, Done(None)) for delivery in deliveries])
                        found.extend(delivery.workitem for delivery in deliveries)
            except TimeoutError:
                raise AssertionError(f"{len(found)} of {count} in {queue} within {timeout:g} s: {found[-3:]}") from None
            finally:
                await broker.close()

        asyncio.run(reading())
        return [_message(workitem) for workitem in found]


def _message(workitem: Workitem) -> Message:
    properties = SimpleNamespace(
        message_id=workitem.id,
        content_type=workitem.content_type or None,
        correlation_id=workitem.correlation_id or None,
        reply_to=workitem.reply_to or None,
        headers=dict(workitem.headers),
    )
    return Message(workitem.body, properties)


class SQLiteSystem(StoreSystem):
    """Over a file."""

    def __init__(self, installation: Installation) -> None:
        super().__init__(installation, "")
        self.file = self.directory / "queue.db"
        self.url = f"sqlite:///{self.file}"

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.file, timeout=PATIENCE, isolation_level=None)) as connection:
            yield connection

    def depth(self, queue: str) -> int | None:
        waiting = "SELECT count(*) FROM workitems WHERE queue = ? AND state = 0"
        unread = "SELECT count(*) FROM ended WHERE results = ?"
        with self._database() as connection:
            try:
                known = connection.execute("SELECT 1 FROM queues WHERE name = ?", (queue,)).fetchone()
                found = sum(connection.execute(sql, (queue,)).fetchone()[0] for sql in (waiting, unread))
            except sqlite3.OperationalError:  # no table yet
                return None
            return found if known or found else None
