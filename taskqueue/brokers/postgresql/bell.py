"""Rings when workitems end, over a connection of its own."""

from __future__ import annotations

import os
import random
import select
import threading
import time
from datetime import datetime

import psycopg

from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.rows import ENDED
from taskqueue.brokers.postgresql.session import Translated, connect
from taskqueue.errors import BrokerUnavailable

__all__ = ["PostgreSQLBell"]

LOOK_EVERY = 1.0  # seconds after which it rings all the same: for ends that nobody notified of
POLL_EVERY = 0.05  # seconds between looks for ends where nobody notifies


class PostgreSQLBell:
    """The contract: by notifications, or else by looking for new records of ends."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._closed = False
        self._waiting = threading.Lock()
        self._latest: datetime | None = None
        self._connection = self._connect()
        self._closing, self._close = os.pipe()

    def _connect(self) -> psycopg.Connection:
        connection = connect(self._place)
        with Translated(self._place):
            if self._place.notify:
                connection.execute(f'LISTEN "{self._place.schema}"'.encode())
            else:
                self._latest = (connection.execute("SELECT now()").fetchone() or (None,))[0]
        return connection

    def wait(self, timeout: float | None) -> bool:
        with self._waiting:
            return self._wait(timeout)

    def _wait(self, timeout: float | None) -> bool:
        now = time.monotonic()
        deadline = None if timeout is None else now + timeout
        rings_at = now + LOOK_EVERY * (0.75 + random.random() / 2)
        while not self._closed:
            if self._connection.closed:
                self._connection = self._connect()
                return True
            if self._rung():
                return True
            now = time.monotonic()
            if now >= rings_at:
                return True
            if deadline is not None and now >= deadline:
                return False
            pause = rings_at - now if self._place.notify else POLL_EVERY
            left = pause if deadline is None else min(pause, deadline - now)
            select.select([self._connection.fileno(), self._closing], [], [], left)
        return False

    def _rung(self) -> bool:
        """Whether something ended since the last time."""
        try:
            with Translated(self._place):
                return self._heard() if self._place.notify else self._found()
        except BrokerUnavailable:
            self._connection.close()
            raise

    def _heard(self) -> bool:
        self._connection.pgconn.consume_input()
        heard = False
        while notified := self._connection.pgconn.notifies():
            heard = heard or notified.extra.decode("utf-8", "replace") in ("", ENDED)
        return heard

    def _found(self) -> bool:
        query = f'SELECT "{self._place.schema}".latest(%s)'.encode()
        latest = (self._connection.execute(query, (self._latest,)).fetchone() or (None,))[0]
        self._latest = latest or self._latest
        return latest is not None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        os.write(self._close, b"x")
        with self._waiting:
            self._connection.close()
            os.close(self._closing)
            os.close(self._close)
