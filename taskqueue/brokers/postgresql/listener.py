"""Hears notifications, over a connection of its own, and makes sure that it does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import Callable, Coroutine

import psycopg

from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.session import Translated, connect_async
from taskqueue.errors import BrokerError, BrokerUnavailable
from taskqueue.retry import backoff

__all__ = ["Listener", "stop"]

log = logging.getLogger(__name__)

PROBE_EVERY = 15.0  # seconds between two notifications to itself
PROBE_WITHIN = 5.0  # seconds in which such a one must come
RETRY_BASE, RETRY_MAXIMUM = 0.5, 60.0  # seconds; meanwhile polling finds everything


class Listener:
    """Calls `heard` with the name of each queue that is notified of; with an empty one for any queue.

    tell: notifies of queues, over another connection.
    """

    def __init__(
        self, place: Place, heard: Callable[[str], None], tell: Callable[[list[str]], Coroutine[object, object, None]]
    ) -> None:
        self._place = place
        self._heard = heard
        self._tell = tell
        self._task: asyncio.Task[None] | None = None
        self._probe = ""
        self._probed = asyncio.Event()
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Listen from now on."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                async with await connect_async(self._place) as connection:
                    with Translated(self._place):
                        await connection.execute(f'LISTEN "{self._place.schema}"'.encode())
                    self._heard("")  # what came before
                    while True:
                        await self._check(connection)
                        failures = 0
                        await self._listen(connection, PROBE_EVERY * (0.75 + random.random() / 2))
            except BrokerError as error:
                log.log(logging.DEBUG if failures else logging.WARNING, "%s; work is found by polling meanwhile", error)
            await asyncio.sleep(backoff(failures, base=RETRY_BASE, maximum=RETRY_MAXIMUM, jitter=random.random()))
            failures += 1

    async def _check(self, connection: psycopg.AsyncConnection) -> None:
        """Have itself notified.  Raises BrokerUnavailable where that is not heard."""
        self._probe = f"taskqueue.probe.{uuid.uuid4().hex}"
        self._probed.clear()
        telling = asyncio.create_task(self._tell([self._probe]))
        try:
            await self._listen(connection, PROBE_WITHIN, until=self._probed)
        finally:
            await asyncio.shield(telling)
        if not self._probed.is_set():
            raise BrokerUnavailable(
                f"{self._place.shown}: no notification comes through; "
                "behind pgbouncer in transaction mode none can: say ?notify=off"
            )

    async def _listen(
        self, connection: psycopg.AsyncConnection, seconds: float, until: asyncio.Event | None = None
    ) -> None:
        """Hear what comes in `seconds`.  Raises BrokerUnavailable where the connection ends."""
        loop, fd = asyncio.get_running_loop(), connection.fileno()
        self._ended = until or asyncio.Event()
        broken: list[psycopg.Error] = []

        def readable() -> None:
            try:
                connection.pgconn.consume_input()
                while notified := connection.pgconn.notifies():
                    self._said(notified.extra.decode("utf-8", "replace"))
            except psycopg.Error as error:
                loop.remove_reader(fd)  # now, for the next connection may get the same number
                broken.append(error)
                self._ended.set()

        loop.add_reader(fd, readable)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ended.wait()
        finally:
            if not broken:
                loop.remove_reader(fd)
        with Translated(self._place):
            if broken:
                raise broken[0]

    def _said(self, text: str) -> None:
        if text == self._probe:
            self._probed.set()
        else:
            self._heard(text)

    async def close(self) -> None:
        """May be called twice."""
        if self._task is not None:
            await stop(self._task)
            self._task = None


async def stop(task: asyncio.Task[object]) -> None:
    """Cancel a task until it has ended: drivers may lose a cancellation that comes together with what they wait for."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
