"""The dead letters of the file: looking is a SELECT, ending one is a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from taskqueue.broker import Delivery, Ended, Lease
from taskqueue.brokers.sqlite import queues
from taskqueue.brokers.sqlite.database import Database
from taskqueue.brokers.sqlite.history import Ending
from taskqueue.brokers.sqlite.outbox import Outbox
from taskqueue.clock import Clock
from taskqueue.outcome import effects
from taskqueue.store import sender
from taskqueue.workitem import DEAD_LETTERS, Workitem

__all__ = ["SQLiteDeadLetters"]

T = TypeVar("T")
CHUNK = 200  # rows that are read at a time


class SQLiteDeadLetters:
    """Nothing is held: whoever ends a letter first has it."""

    def __init__(self, path: Path, synchronous: str, clock: Clock) -> None:
        self._path = path
        self._synchronous = synchronous
        self._clock = clock
        self._lease = Lease()
        self._database: Database | None = None
        self._using = asyncio.Lock()

    async def _do(self, work: Callable[[Database], T]) -> T:
        """Have `work` done beside the event loop: it may have to wait for others."""

        def opened() -> T:
            if self._database is None:
                self._database = Database(self._path, synchronous=self._synchronous)
            return work(self._database)

        async with self._using:
            return await asyncio.shield(asyncio.to_thread(opened))

    async def look(self) -> AsyncIterator[Delivery]:
        def numbers(database: Database) -> list[int]:
            with database.reading() as connection:
                return queues.numbers(connection, DEAD_LETTERS)

        there = await self._do(numbers)
        for start in range(0, len(there), CHUNK):
            chosen = there[start : start + CHUNK]

            def read(database: Database, chosen: Sequence[int] = chosen) -> list[tuple[int, Workitem]]:
                with database.reading() as connection:
                    return queues.waiting(connection, chosen)

            for number, letter in await self._do(read):
                yield Delivery(workitem=letter, queue=DEAD_LETTERS, tag=number, lease=self._lease)

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        if self._lease.lost:
            return [False] * len(ended)

        now, who = self._clock.wall(), sender()
        todo = {
            item.delivery.tag: Ending(
                effects(item.delivery.workitem, item.outcome, item.rules, queue=DEAD_LETTERS, now=now)
            )
            for item in ended
        }

        def end(database: Database) -> list[bool]:
            outbox = Outbox(now, again=True)
            with database.writing(told=outbox.told) as connection:
                counted = queues.end(connection, outbox, todo, None, who)
                outbox.store(connection)
            return [item.delivery.tag in counted for item in ended]

        return await self._do(end)

    async def close(self) -> None:
        self._lease.lost = True
        async with self._using:
            if self._database is not None:
                self._database.close()
                self._database = None
