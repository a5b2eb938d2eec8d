"""All that a carrier does with the file: in one thread, and whatever has come together meanwhile in one transaction."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import random
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from taskqueue.brokers.sqlite import carriers, queues
from taskqueue.brokers.sqlite.bell import Bell
from taskqueue.brokers.sqlite.database import Database
from taskqueue.brokers.sqlite.outbox import Outbox
from taskqueue.brokers.sqlite.place import LockFile, places
from taskqueue.clock import Clock
from taskqueue.errors import BrokerError
from taskqueue.retry import backoff
from taskqueue.store import sender

__all__ = ["Engine"]

log = logging.getLogger(__name__)
T = TypeVar("T")
Work = Callable[[sqlite3.Connection, Outbox], T]

RETRY_BASE, RETRY_MAXIMUM = 0.1, 15.0  # seconds
LARGE = 1024
"""So many workitems in a transaction make the commit cheap, and give two worker processes enough meanwhile."""
SHARED = 200
"""So many where others write, too: what they wait is the length of a transaction."""
SHARED_FOR = 0.05  # seconds from when somebody else was seen to wait
QUIET = 3  # turns of the event loop in which nothing comes
BRIEF = 0.002  # seconds; a commit that takes no longer holds nobody up where nothing runs
LOOK_EVERY = 1.0  # seconds between looks for what nobody rang for: dead carriers, and work that a bell missed


class Member(Protocol):
    """A consumer, as its engine sees it."""

    @property
    def held(self) -> int:
        """How many workitems it was lent that have not ended."""

    def rung(self, queues: set[str]) -> None:
        """There may be something in these queues; none: in any queue."""


@dataclass(slots=True, eq=False)
class _Operation:
    work: Work[Any]
    then: Callable[[Any], object]
    begin: Callable[[], tuple[int, bool]]
    done: asyncio.Future[Any]


class Engine:
    """Owns the connection, this carrier's number with its lock, and its bell."""

    def __init__(self, path: Path, synchronous: str, clock: Clock) -> None:
        self.path = path
        self.carrier = 0
        self.sender = sender()
        self.clock = clock
        self.ending = 0  # workitems that the next transactions are about
        self.members: list[Member] = []
        self._synchronous = synchronous
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="taskqueue-sqlite")
        self._database: Database | None = None
        self._shared_until = 0.0
        self._commit_took = BRIEF  # seconds, the last time
        self._turn = asyncio.Lock()  # held in a transaction and while reading: one at a time uses the connection
        self._lock: LockFile | None = None
        self._bell: Bell | None = None
        self._pending: list[_Operation] = []
        self._working: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._told: Callable[[str], None] = lambda trouble: None
        self._trouble: str | None = None  # what was told last
        self._opening: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def large(self) -> int:
        """Workitems that a transaction may be about."""
        return SHARED if self.clock.monotonic() < self._shared_until else LARGE

    def watch(self, told: Callable[[str], None]) -> None:
        """Open the file now; `told` is called with each change of what is wrong with it."""
        self._told = told
        self._opening = asyncio.get_running_loop().create_task(self.read(lambda connection: None))

    def _report(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._told(trouble)

    async def write(
        self,
        work: Work[T],
        then: Callable[[T], object] = lambda _: None,
        begin: Callable[[], tuple[int, bool]] = lambda: (1, True),
    ) -> T:
        """Have `work` done in a transaction, and wait until it is stored.

        work: gets the connection, and an outbox for what is only to be stored.  It may be called more than once: a
        transaction that fails (a full disk) is tried again until it passes.
        then: called with what it returned, in the event loop, also where nobody waits any more.
        begin: called in the event loop, just before it is done; says how many workitems it is about, and whether it has
        to be durable (see Database.writing).
        """
        operation = _Operation(work, then, begin, asyncio.get_running_loop().create_future())
        self._pending.append(operation)
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._work())
        result: T = await operation.done
        return result

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Have `work`, which only reads, done."""

        def reading() -> T:
            with self._open().reading() as connection:
                return work(connection)

        async def here_or_there() -> T:
            async with self._turn:
                return await self._in_thread(reading) if self._database is None else reading()

        return await self._patiently(here_or_there)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat `attempt` until it passes: a fault is waited out."""
        for failures in itertools.count():
            try:
                result = await attempt()
            except BrokerError as error:
                log.log(logging.WARNING if failures else logging.ERROR, "%s; trying on", error)
                self._report(str(error))
                delay = backoff(failures, base=RETRY_BASE, maximum=RETRY_MAXIMUM, jitter=random.random())
                await asyncio.sleep(delay)
            else:
                self._report("")
                self._listen()
                return result
        raise AssertionError("unreachable")

    async def _work(self) -> None:
        while self._pending:
            await self._gather()
            size, count, durable, large = 0, 0, False, self.large
            while count < len(self._pending) and size < large:
                more, lasts = self._pending[count].begin()
                size, count, durable = size + more, count + 1, durable or lasts
            batch, self._pending = self._pending[:count], self._pending[count:]
            results, told, safe = await self._patiently(functools.partial(self._transaction, batch, durable))
            if not safe:  # it is done, and seen by others: not to be done again
                await self._patiently(functools.partial(self._in_thread, self._open().sync))
            for operation, result in zip(batch, results, strict=True):
                operation.then(result)
                if not operation.done.done():
                    operation.done.set_result(result)
            self._tell(told)
        self._working = None

    async def _gather(self) -> None:
        """Let what is about to end come along, for a commit costs as much for one workitem as for many."""
        quiet, large = 0 if self.ending > 1 else QUIET, self.large
        while quiet < QUIET and self.ending < large:
            before = self.ending
            await asyncio.sleep(0)
            quiet = 0 if self.ending > before else quiet + 1

    async def _transaction(self, batch: list[_Operation], durable: bool) -> tuple[list[Any], set[str], bool]:
        """Statements of many steps in this thread; what waits, for other processes or the disk, in the other.

        Each step of a statement lets other threads run, and waits for them then: in the other thread, many steps while
        this one is busy would take twice as long.  Those of an outbox are few.  Where nothing runs, as between the
        steps of a chain, and the disk is fast, this one waits for it, too: to change threads takes half as long.

        Gives the results, the queues that got something, and whether it is as durable as it has to be.
        """
        async with self._turn:
            database = self._database
            if database is None or not database.begin(wait=False):
                return await self._in_thread(functools.partial(self._in_turn, batch, durable))
            outbox = Outbox(self.clock.wall())
            with database.inside() as connection:
                results = [operation.work(connection, outbox) for operation in batch]
                idle = self._commit_took < BRIEF and not any(member.held for member in self.members)
                here = not durable or (idle and outbox.is_brief(connection))

            def commit() -> bool:
                begun = self.clock.monotonic()
                with database.inside() as connection:
                    outbox.store(connection)
                self._look_around(database)
                database.commit()
                database.ring(outbox.told)
                if not durable:
                    return True
                safe = _is_synced(database)
                self._commit_took = self.clock.monotonic() - begun
                return safe

            return results, outbox.told, commit() if here else await self._in_thread(commit)

    def _in_turn(self, batch: list[_Operation], durable: bool) -> tuple[list[Any], set[str], bool]:
        outbox = Outbox(self.clock.wall())
        database = self._open()
        with database.writing(durable=False, told=outbox.told) as connection:
            results = [operation.work(connection, outbox) for operation in batch]
            outbox.store(connection)
            self._look_around(database)
        return results, outbox.told, not durable or _is_synced(database)

    def _look_around(self, database: Database) -> None:
        """At the end of a transaction, in whichever thread."""
        if database.is_wanted():
            self._shared_until = self.clock.monotonic() + SHARED_FOR

    def _open(self) -> Database:
        if self._database is None:
            database = Database(self.path, synchronous=self._synchronous)
            with database.writing() as connection:
                self.carrier = queues.register(connection, os.getpid(), self.clock.wall())
                self._lock = LockFile(self.path, carriers.lock_name(self.carrier))
                self._lock.take(wait=True)
            self._database = database
        return self._database

    def _listen(self) -> None:
        """Once the file is open: hear its bell, and look now and then for what nobody rang for."""
        if self._ticking is not None:
            return
        loop = asyncio.get_running_loop()
        self._ticking = loop.create_task(self._tick())
        try:
            self._bell = Bell(places(self.path))
        except OSError as error:
            log.warning("%s: no bell (%s): work is found by looking every %g s", self.path, error, LOOK_EVERY)
        else:
            loop.add_reader(self._bell.socket, self._heard)

    def _heard(self) -> None:
        assert self._bell is not None
        self._tell(self._bell.heard())

    def _tell(self, told: set[str]) -> None:
        if told:
            for member in self.members:
                member.rung(told)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if await self.read(lambda connection: carriers.orphans(connection, self.path, self.carrier)):
                await self.write(lambda connection, _: carriers.adopt(connection, self.path, self.carrier))
            for member in self.members:
                member.rung(set())

    async def close(self) -> None:
        """Give everything back, and let go of the file.  May be called twice."""
        for task in (self._opening, self._ticking):
            if task is not None:
                task.cancel()
        if self._bell is not None:
            asyncio.get_running_loop().remove_reader(self._bell.socket)
            self._bell.close()
            self._bell = None
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._executor, self._leave)
        self._executor.shutdown()

    def _leave(self) -> None:
        """In the thread, so after an opening that is still under way there."""
        if self._database is None:
            return
        try:
            with self._database.writing() as connection:
                queues.release(connection, self.carrier)
        except BrokerError as error:
            log.warning("%s; the next one finds what this carrier had", error)
        self._database.close()
        self._database = None
        if self._lock is not None:
            self._lock.close()
        carriers.forget(self.path, self.carrier)


def _is_synced(database: Database) -> bool:
    try:
        database.sync()
    except BrokerError:
        return False
    return True
