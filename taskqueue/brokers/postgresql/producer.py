"""Sends workitems: a statement a call, in the caller's own thread."""

from __future__ import annotations

import contextlib
import os
import random
import select
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.rows import REPLIES, Parcel, unpack, usable
from taskqueue.brokers.postgresql.session import Translated, connect
from taskqueue.clock import Clock
from taskqueue.errors import SendFailed
from taskqueue.workitem import Workitem, worker_queue

__all__ = ["PostgreSQLProducer"]

CHUNK = 1000  # workitems that go over in one statement, and replies that are taken at a time
CHUNK_BYTES = 64 * 1024 * 1024
LOOK_EVERY = 1.0  # seconds between looks for replies that nobody notified of
POLL_EVERY = 0.05  # seconds between them where nobody notifies


class PostgreSQLProducer:
    """The producer contract.  After a fork the child has connections of its own."""

    def __init__(self, place: Place, clock: Clock) -> None:
        self._place = place
        self._clock = clock
        self._sending = _Line(place)
        self._waiting = _Line(place)
        self._reply_queue = ""
        self._replies: deque[Workitem] = deque()

    def send(self, workitems: Sequence[Workitem], *, queue: str = "", reply: bool = False) -> list[str]:
        named = [workitem.named() for workitem in workitems]
        if reply:
            reply_to = self._listen()
            named = [w._replace(reply_to=reply_to, correlation_id=w.correlation_id or w.id) for w in named]
        items = [(queue or worker_queue(workitem.type), workitem) for workitem in named]
        refused = tuple(workitem.id for name, workitem in items if not usable(name))
        if refused:
            raise SendFailed("expected names of queues with up to 255 characters, none of them NUL", refused)
        if items:
            self._put(items)
        return [workitem.id for workitem in named]

    def _put(self, items: Sequence[tuple[str, Workitem]]) -> None:
        with self._sending.opened() as connection:
            parcels = _parcels(items, self._clock.wall())
            if len(parcels) > 1:  # all of them, or none
                with Translated(self._place), connection.transaction():
                    for parcel in parcels:
                        self._put_all(connection, parcel)
            elif len(items) > 1:
                self._put_all(connection, parcels[0])
            else:
                item, body = parcels[0].only()
                _call(self._place, connection, "put_one(%s, %b, %s)", item, body, self._place.notify)

    def _put_all(self, connection: psycopg.Connection, parcel: Parcel) -> None:
        _, _, sends, bodies, lanes = parcel.texts()
        told = sorted(parcel.told) if self._place.notify else []
        _call(self._place, connection, "put(%s, %b, %s, %s)", sends, bodies, lanes, told)

    def _listen(self) -> str:
        """The name of the queue of our replies, which is there then."""
        with self._waiting.opened() as connection:
            if self._waiting.fresh or not self._reply_queue:
                self._reply_queue = self._reply_queue or f"{REPLIES}{uuid.uuid4().hex}"
                _call(self._place, connection, "await_replies(%s)", self._reply_queue)
                if self._place.notify:
                    with Translated(self._place):
                        connection.execute(f'LISTEN "{self._place.schema}"'.encode())
                self._waiting.fresh = False
            return self._reply_queue

    def next_reply(self, *, timeout: float | None) -> Workitem | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            reply_to = self._listen()
            with self._waiting.opened() as connection:
                if not self._replies:
                    found = _call(self._place, connection, "take_replies(%s, %s)", reply_to, CHUNK)
                    self._replies.extend(row.workitem for row in unpack(*found))
                if self._replies:
                    return self._replies.popleft()
            pause = LOOK_EVERY if self._place.notify else POLL_EVERY
            pause *= 0.75 + random.random() / 2
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if left <= 0:
                return None
            self._hear(connection, reply_to, left)

    def _hear(self, connection: psycopg.Connection, reply_to: str, seconds: float) -> None:
        """Wait until somebody notifies of a reply, for some time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with Translated(self._place):
                if not select.select([connection.fileno()], [], [], left)[0]:
                    return
                connection.pgconn.consume_input()
                while notified := connection.pgconn.notifies():
                    if notified.extra.decode("utf-8", "replace") in ("", reply_to):
                        return

    def close(self) -> None:
        with contextlib.suppress(Exception):  # the database may be away
            if self._reply_queue and self._waiting.is_open:
                with self._waiting.opened() as connection:
                    _call(self._place, connection, "forget_replies(%s)", self._reply_queue)
        self._sending.close()
        self._waiting.close()


class _Line:
    """A connection for one thread at a time, opened when it is needed, and anew when it broke."""

    def __init__(self, place: Place) -> None:
        self.fresh = True  # until its user says that it has set it up
        self._place = place
        self._using = threading.Lock()
        self._pid = 0
        self._connection: psycopg.Connection | None = None
        self._parents: list[psycopg.Connection] = []

    @property
    def is_open(self) -> bool:
        return self._connection is not None and self._pid == os.getpid()

    @contextlib.contextmanager
    def opened(self) -> Iterator[psycopg.Connection]:
        with self._using:
            connection = self._connection
            if connection is not None and self._pid != os.getpid():
                self._parents.append(connection)  # and left alone: closing it here would end the parent's session
                connection = self._connection = None
            if connection is not None and _hung_up(connection):
                connection.close()
            if connection is None or connection.closed:
                connection = connect(self._place)
                self._connection, self._pid, self.fresh = connection, os.getpid(), True
            yield connection

    def close(self) -> None:
        if self.is_open and self._connection is not None:
            self._connection.close()
        self._connection = None


def _hung_up(connection: psycopg.Connection) -> bool:
    """Whether the server has ended the connection while nobody used it."""
    try:
        while select.select([connection.fileno()], [], [], 0)[0]:
            connection.pgconn.consume_input()
            if not connection.pgconn.notifies():
                return True  # nothing else comes by itself but its last words
            while connection.pgconn.notifies():
                pass
    except (psycopg.Error, OSError):
        return True
    return False


def _call(place: Place, connection: psycopg.Connection, call: str, *arguments: object) -> tuple[Any, ...]:
    with Translated(place):
        text = f'SELECT * FROM "{place.schema}".{call}'.encode()
        found = connection.execute(text, arguments, binary=True).fetchone()
    return found or ()


def _parcels(items: Sequence[tuple[str, Workitem]], now: float) -> list[Parcel]:
    parcels = [Parcel(now)]
    size = 0
    for queue, workitem in items:
        if len(parcels[-1].sends) >= CHUNK or (size and size + len(workitem.body) > CHUNK_BYTES):
            parcels.append(Parcel(now))
            size = 0
        parcels[-1].send(queue, workitem)
        size += len(workitem.body)
    return parcels
