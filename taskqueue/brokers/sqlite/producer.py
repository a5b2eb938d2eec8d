"""Sends workitems into the file: a transaction a call, in the caller's own thread."""

from __future__ import annotations

import os
import select
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from taskqueue.brokers.sqlite import dependencies, names, queues
from taskqueue.brokers.sqlite.bell import Bell
from taskqueue.brokers.sqlite.database import Database
from taskqueue.brokers.sqlite.outbox import Outbox, sending
from taskqueue.brokers.sqlite.place import places
from taskqueue.clock import Clock
from taskqueue.store import sender
from taskqueue.workitem import Workitem, worker_queue

__all__ = ["SQLiteProducer"]

CHUNK = 500  # replies that are taken at a time
LOOK_EVERY = 1.0  # seconds between looks for replies that nobody rang for


class SQLiteProducer:
    """The producer contract.  After a fork the child has a connection of its own: a handle must not be carried over."""

    def __init__(self, path: Path, synchronous: str, clock: Clock) -> None:
        self._path = path
        self._synchronous = synchronous
        self._clock = clock
        self._using = threading.Lock()
        self._pid = 0
        self._sender = ""
        self._database: Database | None = None
        self._reply_queue = ""
        self._bell: Bell | None = None
        self._replies: deque[Workitem] = deque()
        self._declared: set[str] = set()  # a queue is never removed, but for those of replies

    def _opened(self) -> Database:
        """Who calls it has the lock."""
        if self._database is None or self._pid != os.getpid():
            # What a parent process had open is left alone: closing it here would drop the parent's locks.
            self._database = Database(self._path, synchronous=self._synchronous)
            self._pid = os.getpid()
            self._sender = sender()
            self._reply_queue, self._bell = "", None
            self._replies.clear()
            self._declared.clear()
        return self._database

    def send(
        self, workitems: Sequence[Workitem], *, queue: str = "", reply: bool = False, unique: bool = False
    ) -> list[str]:
        named = [workitem.named() for workitem in workitems]
        if reply:
            reply_to = self._listen()
            named = [w._replace(reply_to=reply_to, correlation_id=w.correlation_id or w.id) for w in named]
        to = [queue or worker_queue(workitem.type) for workitem in named]
        with self._using:
            database = self._opened()
            if len(named) == 1 and to[0] in self._declared and not (unique or named[0].after):
                life = queues.born(to[0], self._sender)
                database.write(*sending(to[0], named[0], life, self._clock.wall()), told=to)
            else:
                told = set(to)
                lives = {name: queues.born(name, self._sender) for name in told}
                outbox = Outbox(self._clock.wall())
                outbox.put((name, workitem, lives[name]) for name, workitem in zip(to, named, strict=True))
                with database.writing(told=outbox.told) as connection:
                    dependencies.check(connection, named, unique=unique)
                    for name in told - self._declared:
                        names.declare(connection, name)
                    outbox.store(connection)
                self._declared |= told
        return [workitem.id for workitem in named]

    def _listen(self) -> str:
        with self._using:
            database = self._opened()
            if self._bell is None:
                self._bell = Bell(places(self._path))
                self._reply_queue = f"{names.REPLIES}{uuid.uuid4().hex}"
                with database.writing() as connection:
                    names.declare(connection, self._reply_queue)
            return self._reply_queue

    def next_reply(self, *, timeout: float | None) -> Workitem | None:
        reply_to = self._listen()
        bell = self._bell
        assert bell is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._using:
                database = self._opened()
                if not self._replies:
                    with database.reading() as connection:
                        there = queues.ready(connection, reply_to, self._clock.wall())
                    if there:
                        with database.writing(durable=False) as connection:
                            self._replies.extend(queues.take(connection, reply_to, CHUNK))
                if self._replies:
                    return self._replies.popleft()
            left = LOOK_EVERY if deadline is None else min(LOOK_EVERY, deadline - time.monotonic())
            if left <= 0:
                return None
            select.select([bell.socket], [], [], left)
            bell.heard()

    def close(self) -> None:
        if self._database is None or self._pid != os.getpid():
            return
        with self._using:
            database = self._opened()
            if self._bell is not None:
                self._bell.close()
                with database.writing() as connection:
                    queues.forget(connection, self._reply_queue)
            database.close()
            self._database = None
