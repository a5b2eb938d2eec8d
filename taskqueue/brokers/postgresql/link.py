"""The connection of a carrier, kept for ever, and its lease."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

import psycopg

from taskqueue.brokers.postgresql.listener import stop
from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.process import began, home
from taskqueue.brokers.postgresql.session import LeaseLost, Translated, connect_async
from taskqueue.errors import BrokerError, BrokerUnavailable
from taskqueue.retry import backoff

__all__ = ["Link"]

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_BASE, RETRY_MAXIMUM = 0.1, 15.0  # seconds
VALID = 1.8  # heartrates after which a lease that could not be renewed is given up; others take over after 2
HELD_UP = 0.1  # heartrates that a timer may be late; else it was this event loop that kept it from being renewed
ANSWER_WITHIN = 60.0  # seconds for a statement of milliseconds; then the connection is taken to be dead


class Owner(Protocol):
    """Whoever works over a link."""

    def held(self) -> dict[int, str]:
        """The numbers of all deliveries that may still be this carrier's, with the ids of their workitems."""

    def back(self) -> None:
        """There is a connection again."""

    def lost(self) -> None:
        """All deliveries are lost."""


class Link:
    """One statement at a time, each within the lease.

    The lease is a row that is renewed every `heartrate` seconds.  Each statement names its number and its term; a
    carrier that comes back over a new connection takes the next term, so that nothing of the old one can still happen.

    carrier: the number of the lease; 0: there is none.  lost: how many were lost.
    resumed: how often the lease was taken up over a new connection.  not_over: of what was held then.
    told: called with each change of what is wrong with the database, in one line; empty: nothing is.
    """

    def __init__(self, place: Place, owner: Owner) -> None:
        self.place = place
        self.carrier = 0
        self.term = 0
        self.lost = 0
        self.resumed = 0
        self.not_over: set[int] = set()
        self.told: Callable[[str], None] = lambda trouble: None
        self._trouble: str | None = None  # what was told last
        self._closed = False
        self._owner = owner
        self._connection: psycopg.AsyncConnection | None = None
        self._cursor: psycopg.AsyncCursor | None = None  # made once for a connection: it costs as much as its use
        self._using = asyncio.Lock()
        self._reached = asyncio.Event()
        self._former = 0
        self._renew_at = 0.0
        self._valid: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def call(self, function: str, *arguments: object) -> Any:
        """What a function of the schema returns; an outage is waited out."""

        async def attempt() -> Any:
            async with self.connected() as connection:
                return await self.called(connection, function, *arguments)

        # Whoever asks may be cancelled; a statement is not, for nobody would know what became of it.
        return await asyncio.shield(asyncio.ensure_future(self.patiently(attempt)))

    async def called(self, connection: psycopg.AsyncConnection, function: str, *arguments: object) -> Any:
        """What a function of the schema returns."""
        places = ", ".join(["%s"] * len(arguments))
        return (await self.row(connection, f"SELECT {{}}.{function}({places})", *arguments))[0]

    async def row(self, connection: psycopg.AsyncConnection, query: str, *arguments: object) -> tuple[Any, ...]:
        """The one row of a statement.  A server that does not answer is hung up on."""
        watch = asyncio.get_running_loop().call_later(ANSWER_WITHIN, _hang_up, connection)
        try:
            with Translated(self.place):
                if self._cursor is None or self._cursor.connection is not connection:
                    self._cursor = connection.cursor(binary=True)
                text = query.format(f'"{self.place.schema}"').encode()
                await self._cursor.execute(text, arguments)
                row: tuple[Any, ...] | None = await self._cursor.fetchone()
        finally:
            watch.cancel()
        assert row is not None
        return row

    async def patiently(self, attempt: Callable[[], Awaitable[T]], lost: Callable[[], T] | None = None) -> T:
        """Repeat `attempt` until it passes: a fault is waited out."""
        for failures in itertools.count():
            try:
                result = await attempt()
            except LeaseLost:
                if lost is not None:
                    return lost()
                self.lose("the database says so")
            except BrokerError as error:
                log.log(logging.WARNING if failures else logging.ERROR, "%s; trying on", error)
                self._report(str(error))
                delay = backoff(failures, base=RETRY_BASE, maximum=RETRY_MAXIMUM, jitter=random.random())
                self._reached.clear()
                with contextlib.suppress(TimeoutError):  # or until somebody else has reached the server
                    async with asyncio.timeout(delay):
                        await self._reached.wait()
            else:
                self._report("")
                return result
        raise AssertionError("unreachable")

    def _report(self, trouble: str) -> None:
        if trouble != self._trouble and not self._closed:
            self._trouble = trouble
            self.told(trouble)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[psycopg.AsyncConnection]:
        """The connection, with a lease, for one statement."""
        async with self._using:
            if self._connection is None or self._connection.closed:
                self._connection = await connect_async(self.place)
                await self._resume(self._connection)
                self._reached.set()
            if not self.carrier:
                await self._register(self._connection)
            try:
                yield self._connection
            except BrokerUnavailable:
                await self._connection.close()  # if it is not closed already; a new one may do
                raise

    async def _register(self, connection: psycopg.AsyncConnection) -> None:
        begun, pid = asyncio.get_running_loop().time(), os.getpid()
        term = random.getrandbits(31) << 32
        arguments = term, socket.gethostname(), home(), pid, began(pid), self.place.heartrate, self._former
        self.carrier = await self.called(connection, "register", *arguments)
        self.term = term
        self._renewed(begun)

    async def _resume(self, connection: psycopg.AsyncConnection) -> None:
        """Over a new connection: what is still ours is known then, and nothing of the old one can happen any more."""
        if not self.carrier:
            return
        self.term += 1
        begun = asyncio.get_running_loop().time()
        held = json.dumps([{"seq": seq, "id": id} for seq, id in self._owner.held().items()])
        found = await self.called(connection, "resume", self.carrier, self.term, held)
        if found is None:
            self.lose("another carrier has taken over")
        else:
            mine, others = found
            self.not_over = {*mine, *others}
            self.resumed += 1
            self._renewed(begun)
            self._owner.back()
            log.info("%s: connected again as carrier %d", self.place.shown, self.carrier)

    @property
    def renew_in(self) -> float:
        """Seconds until it is time to renew the lease."""
        return max(0.0, self._renew_at - asyncio.get_running_loop().time())

    async def renew(self) -> None:
        """Renew the lease, where it is time."""
        if not self.renew_in:
            await self.patiently(self._renew)

    async def _renew(self) -> None:
        async with self.connected() as connection:
            begun = asyncio.get_running_loop().time()
            if await self.called(connection, "renew", self.carrier, self.term):
                self._renewed(begun)
            else:
                self.lose("the database says so")

    def _renewed(self, begun: float) -> None:
        """The lease holds from `begun` on, which was before the database was asked."""
        loop, heartrate = asyncio.get_running_loop(), self.place.heartrate
        self._renew_at = begun + heartrate
        if self._valid is not None:
            self._valid.cancel()
        until = begun + VALID * heartrate
        self._valid = loop.call_at(until, self._overdue, until)

    def _overdue(self, until: float) -> None:
        loop, heartrate = asyncio.get_running_loop(), self.place.heartrate
        why = f"it could not be renewed for {VALID * heartrate:g} s"
        if loop.time() - until <= HELD_UP * heartrate:
            self.lose(why)
            return
        # Nobody tried to, as where this process, or the host, was stopped for a while: the database knows whether
        # somebody has taken over.
        until = loop.time() + (2.0 - VALID) * heartrate
        self._valid = loop.call_at(until, self._overdue, until)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self.patiently(self._renew))

    def lose(self, why: str) -> None:
        """From now on others may have what was lent: everything begins anew, under another number."""
        if not self.carrier:
            return
        log.error("carrier %d has lost its lease: %s; what it had is lent again", self.carrier, why)
        self._former, self.carrier = self.carrier, 0
        if self._valid is not None:
            self._valid.cancel()
        self.lost += 1
        self._owner.lost()

    async def close(self) -> None:
        """Give everything back, and let go of the database.  May be called twice."""
        self._closed = True
        if self._renewing is not None:
            await stop(self._renewing)
        if self._valid is not None:
            self._valid.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                if self.carrier and not connection.closed:
                    await self.called(connection, "leave", self.carrier, self.term)
            except BrokerError as error:
                log.warning("%s; others find what this carrier had", error)
            await connection.close()
        self.carrier = 0


def _hang_up(connection: psycopg.AsyncConnection) -> None:
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
