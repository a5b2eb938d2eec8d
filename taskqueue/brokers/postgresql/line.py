"""A plain connection for one thread at a time, and what can be done over it."""

from __future__ import annotations

import contextlib
import os
import random
import select
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.session import Translated, connect
from taskqueue.errors import BrokerUnavailable

__all__ = ["Line"]

LOOK_EVERY = 1.0  # seconds between looks for what nobody notified of
POLL_EVERY = 0.05  # seconds between them where nobody notifies


class Line:
    """Opened when it is needed, and anew when it broke; after a fork the child has one of its own.

    fresh: nothing was set up over it yet.
    """

    def __init__(self, place: Place) -> None:
        self.fresh = True  # until its user says that it has set it up
        self._place = place
        self._using = threading.Lock()
        self._pid = 0
        self._connection: psycopg.Connection | None = None
        self._cursor: psycopg.Cursor | None = None
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
            try:
                yield connection
            except BrokerUnavailable:
                connection.close()  # if it is not closed already; a new one may do
                raise

    def call(self, connection: psycopg.Connection, call: str, *arguments: object) -> tuple[Any, ...]:
        """The first row of what a function of the schema returns; empty where there is none."""
        found = self.rows(connection, call, *arguments)
        return found[0] if found else ()

    def rows(self, connection: psycopg.Connection, call: str, *arguments: object) -> list[tuple[Any, ...]]:
        """All that a function of the schema returns."""
        with Translated(self._place):
            text = f'SELECT * FROM "{self._place.schema}".{call}'.encode()
            return connection.execute(text, arguments, binary=True).fetchall()

    def do(self, connection: psycopg.Connection, statement: str, *arguments: object) -> None:
        """Execute a statement of which nothing is to be known; {}: the schema."""
        with Translated(self._place):
            if self._cursor is None or self._cursor.connection is not connection:
                self._cursor = connection.cursor()  # made once: it costs a quarter of what it does
            self._cursor.execute(statement.format(f'"{self._place.schema}"').encode(), arguments)

    def listen(self, connection: psycopg.Connection) -> None:
        """Have notifications come over this connection, where the place has any."""
        if self._place.notify:
            with Translated(self._place):
                connection.execute(f'LISTEN "{self._place.schema}"'.encode())

    def hear(self, connection: psycopg.Connection, what: str, deadline: float | None) -> bool:
        """Wait until somebody notifies of `what`, or for the pause between two looks for what nobody notified of.

        deadline: monotonic seconds; False once it is reached.
        """
        now = time.monotonic()
        pause = (LOOK_EVERY if self._place.notify else POLL_EVERY) * (0.75 + random.random() / 2)
        end = now + pause if deadline is None else min(now + pause, deadline)
        if end <= now:
            return False
        while (left := end - time.monotonic()) > 0:
            with Translated(self._place):
                if not select.select([connection.fileno()], [], [], left)[0]:
                    break
                connection.pgconn.consume_input()
                while notified := connection.pgconn.notifies():
                    if notified.extra.decode("utf-8", "replace") in ("", what):
                        return True
        return True

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
