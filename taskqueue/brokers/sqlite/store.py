"""Answers questions about the workitems of the file, live or ended."""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from taskqueue.broker import Options
from taskqueue.brokers.sqlite import history, hours, queues
from taskqueue.brokers.sqlite.bell import Bell
from taskqueue.brokers.sqlite.database import Database
from taskqueue.brokers.sqlite.keeper import Keeper
from taskqueue.brokers.sqlite.outbox import ENDED as ENDED_NOW
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
CHUNK = 10_000  # ids that are asked for at a time
STEP = 500  # workitems that are cancelled in a transaction


class SQLiteBell:
    """The contract.  version: changes whenever others have written, for some end workitems and ring for nobody."""

    def __init__(self, bell: Bell, version: Callable[[], int]) -> None:
        self._bell = bell
        self._version = version
        self._seen = version()
        self._closed = threading.Event()

    def wait(self, timeout: float | None) -> bool:
        try:
            return self._wait(math.inf if timeout is None else time.monotonic() + timeout)
        except (OSError, ValueError):  # of a socket that is closed
            if self._closed.is_set():
                return False
            raise

    def _wait(self, deadline: float) -> bool:
        look_at = time.monotonic() + LOOK_EVERY
        poll = select.poll()  # select has no room for descriptors from 1024 on
        poll.register(self._bell.socket, select.POLLIN)
        while not self._closed.is_set():
            poll.poll(max(0.0, min(look_at, deadline) - time.monotonic()) * 1000)
            rang, now, before = ENDED_NOW in self._bell.heard(), time.monotonic(), self._seen
            if rang or now >= look_at:
                look_at = now + LOOK_EVERY
                self._seen = self._version()
            if rang or self._seen != before:
                return True
            if now >= deadline:
                break
        return False

    def close(self) -> None:
        self._closed.set()
        self._bell.close()


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
            record = history.find(connection, id, self._clock.wall())
        if record is None:
            raise UnknownTask(id)
        return record

    def history(
        self, *, reference: str = "", type: str = "", states: Sequence[State] = (), limit: int = 100
    ) -> list[Record]:
        with self._opened() as database, database.reading() as connection:
            return history.records(
                connection, reference=reference, type=type, states=states, limit=limit, now=self._clock.wall()
            )

    def wait(self, id: str, *, timeout: float | None) -> Record:
        record = self.record(id)
        deadline = None if timeout is None else time.monotonic() + timeout
        with contextlib.closing(self.bell()) as bell:
            while (record := self.record(id)).state not in ENDED:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                bell.wait(left)
        return record

    def ended(self, ids: Sequence[str]) -> dict[str, Record | None]:
        found: dict[str, Record | None] = {}
        with self._opened() as database, database.reading() as connection:
            for begin in range(0, len(ids), CHUNK):
                chunk = list(ids[begin : begin + CHUNK])
                live = history.live_ids(connection, chunk)  # first: what ends between the two is in one of them
                ended = history.ended(connection, chunk, self._clock.wall())
                found.update((id, ended.get(id)) for id in chunk if id not in live)
        return found

    def bell(self) -> SQLiteBell:
        with self._opened():  # makes the directory where it does not exist
            bell = Bell(places(self._path))
        return SQLiteBell(bell, self._version)

    def _version(self) -> int:
        """Changes with each transaction of others."""
        with self._opened() as database, database.reading() as connection:
            return int(connection.execute("PRAGMA data_version").fetchone()[0])

    def count(self, type: str) -> int:
        with self._opened() as database, database.reading() as connection:
            return queues.count(connection, type)

    def discard(self, type: str) -> int:
        total, most = 0, None
        with self._opened() as database:
            while True:
                outbox = Outbox(now := self._clock.wall())
                with database.writing(durable=False, told=outbox.told) as connection:
                    most = queues.last(connection) if most is None else most  # what comes later stays
                    count = queues.discard(connection, outbox, type, most, STEP, now)
                    outbox.store(connection)
                total += count
                if not count:
                    break
            database.sync()
        return total

    def cancel(self, id: str) -> bool:
        self.record(id)
        with self._opened() as database:
            outbox = Outbox(now := self._clock.wall())
            with database.writing(told=outbox.told) as connection:
                done = queues.cancel(connection, outbox, id, now)
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
