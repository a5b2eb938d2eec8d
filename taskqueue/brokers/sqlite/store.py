"""Answers questions about the workitems of the file, live or ended."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from taskqueue.broker import Options
from taskqueue.brokers.sqlite import history, hours, queues
from taskqueue.brokers.sqlite.bell import Bell
from taskqueue.brokers.sqlite.database import Database
from taskqueue.brokers.sqlite.keeper import Keeper
from taskqueue.brokers.sqlite.outbox import Outbox
from taskqueue.brokers.sqlite.place import places
from taskqueue.clock import Clock
from taskqueue.errors import UnknownTask
from taskqueue.lifecycle import ENDED, State
from taskqueue.record import Record
from taskqueue.statistics import Tally
from taskqueue.upkeep import Keeping, Round

__all__ = ["SQLiteStore"]

LOOK_EVERY = 1.0  # seconds between looks for what nobody rang for


class SQLiteStore:
    """The contract.  Reading waits for nobody."""

    def __init__(self, path: Path, synchronous: str, clock: Clock, options: Options) -> None:
        self._path = path
        self._synchronous = synchronous
        self._clock = clock
        self._using = threading.Lock()
        self._pid = 0
        self._database: Database | None = None
        self._closing = threading.Event()
        self._keeper = Keeper(path, synchronous, clock, options, self._closing)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Database]:
        with self._using:
            if self._database is None or self._pid != os.getpid():  # what a parent process had open is left alone
                self._database = Database(self._path, synchronous=self._synchronous)
                self._pid = os.getpid()
            yield self._database

    def record(self, id: str) -> Record:
        with self._opened() as database, database.reading() as connection:
            record = history.find(connection, id)
        if record is None:
            raise UnknownTask(id)
        return record

    def history(
        self, *, reference: str = "", type: str = "", states: Sequence[State] = (), limit: int = 100
    ) -> list[Record]:
        with self._opened() as database, database.reading() as connection:
            return history.records(connection, reference=reference, type=type, states=states, limit=limit)

    def wait(self, id: str, *, timeout: float | None) -> Record:
        record = self.record(id)
        deadline = None if timeout is None else time.monotonic() + timeout
        bell = Bell(places(self._path))
        try:
            while (record := self.record(id)).state not in ENDED:
                left = LOOK_EVERY if deadline is None else min(LOOK_EVERY, deadline - time.monotonic())
                if left <= 0:
                    break
                select.select([bell.socket], [], [], left)
                bell.heard()
        finally:
            bell.close()
        return record

    def cancel(self, id: str) -> bool:
        self.record(id)
        with self._opened() as database:
            outbox = Outbox()
            with database.writing(told=outbox.told) as connection:
                done = queues.cancel(connection, outbox, id, self._clock.wall())
                outbox.store(connection)
        return done

    def statistics(self, *, type: str = "", since: float = 0.0) -> list[Tally]:
        with self._opened() as database, database.reading() as connection:
            return hours.statistics(connection, type=type, since=since, now=self._clock.wall())

    def maintain(self, keeping: Keeping) -> Round:
        return self._keeper.round(keeping)

    def close(self) -> None:
        self._closing.set()
        with self._using:
            if self._database is not None and self._pid == os.getpid():
                self._database.close()
                self._database = None
