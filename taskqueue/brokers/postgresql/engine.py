"""All that a carrier does with the database: over one connection, and whatever has come together in one statement."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import psycopg

from taskqueue.brokers.postgresql.listener import Listener
from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.process import began, home
from taskqueue.brokers.postgresql.rows import Parcel, Row, array, unpack
from taskqueue.brokers.postgresql.session import LeaseLost, Translated, connect_async
from taskqueue.brokers.postgresql.teller import Teller
from taskqueue.clock import Clock
from taskqueue.errors import BrokerError
from taskqueue.retry import backoff

__all__ = ["Engine", "Member"]

log = logging.getLogger(__name__)
T = TypeVar("T")
RETRY_BASE, RETRY_MAXIMUM = 0.1, 15.0  # seconds
LOOK_EVERY = 1.0  # seconds between looks for what nobody notified of: lost notifications, dead carriers
ADOPT_EVERY = 2.0  # seconds between looks for carriers of other hosts that are dead
CHORES_EVERY = 60.0
VALID = 1.8  # heartrates after which a lease that could not be renewed is given up; others take over after 2
ANSWER_WITHIN = 60.0  # seconds for a statement of milliseconds; then the connection is taken to be dead


class Member(Protocol):
    """A consumer, as its engine sees it."""

    def begin(self, parcel: Parcel) -> dict[str, object] | None:
        """Put what has ended into `parcel`; the claim to make, if there is one."""

    def finish(self, counted: set[int], claimed: list[Row] | None) -> None:
        """The statement is through: which of its deliveries counted, and what was lent; None: no claim was made."""

    def held(self) -> list[int]:
        """The numbers of all that it was lent and that is not settled."""

    def rung(self, queue: str) -> None:
        """There may be something in `queue`; empty: in any queue."""

    def lost(self) -> None:
        """Everything that was lent is lost."""


class Engine:
    """Owns the connection, and the lease of this carrier.

    The lease is a row that is renewed every `heartrate` seconds.  Each statement names its number and its term; a
    carrier that comes back over a new connection takes the next term, so that nothing of the old one can still happen.
    """

    def __init__(self, place: Place, clock: Clock, chores: Sequence[object]) -> None:
        self.place = place
        self.clock = clock
        self.members: list[Member] = []
        self._chores = chores
        self._connection: psycopg.AsyncConnection | None = None
        self._using = asyncio.Lock()
        self._carrier = 0
        self._term = 0
        self._generation = 0  # how many leases were lost
        self._former = 0
        self._not_over: set[int] = set()  # of what was held when the connection was lost
        self._under_way: set[int] = set()
        self._working: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._valid: asyncio.TimerHandle | None = None
        self._due: asyncio.TimerHandle | None = None
        self._renew_at = self._adopt_at = self._chores_at = 0.0
        self._listener = Listener(place, self._rung, self._tell) if place.notify else None
        self._teller = Teller(self._tell) if place.notify else None

    # One statement after the other.

    def poke(self) -> None:
        """There is something to do."""
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._work())

    async def settled(self) -> None:
        """Wait until the statement that is under way, if there is one, is through."""
        if self._working is not None:
            await asyncio.shield(self._working)

    async def _work(self) -> None:
        try:
            while True:
                await asyncio.sleep(0)  # what ends in the same turn of the event loop comes along
                parcel = Parcel(self.clock.wall())
                wants = [(member, member.begin(parcel)) for member in self.members]
                claims = [{"number": n, **want} for n, (_, want) in enumerate(wants) if want is not None]
                if not claims and not parcel.ends and not parcel.releases:
                    return
                generation = self._generation
                self._under_way = parcel.seqs
                counted, lent = await self._turn(parcel, claims)
                self._under_way = set()
                for number, (member, want) in enumerate(wants):
                    claimed = lent.get(number, []) if want is not None and generation == self._generation else None
                    member.finish(counted, claimed)
        finally:
            self._working = None

    async def _turn(self, parcel: Parcel, claims: list[dict[str, object]]) -> tuple[set[int], dict[int, list[Row]]]:
        """Settle and claim: which deliveries counted, and what was lent for each claim."""
        ends, releases, sends, bodies, lanes = parcel.texts()
        wanted = json.dumps(claims) if claims else None
        generation, sent_as = self._generation, 0

        async def attempt() -> tuple[set[int], dict[int, list[Row]]]:
            nonlocal sent_as
            async with self._connected() as connection:
                if generation != self._generation:
                    return set(), {}
                if sent_as and parcel.seqs and not parcel.seqs & self._not_over:
                    return parcel.seqs, {}  # the connection broke behind the commit
                sent_as = self._carrier
                told = self._teller.now(parcel.told) if self._teller is not None and parcel.told else []
                row = await self._row(
                    connection,
                    "SELECT * FROM {}.turn(%s, %s, %s, %s, %s, %b, %s, %s, %s)",
                    self._carrier, self._term, ends, releases, sends, bodies, lanes, wanted, told,
                )  # fmt: skip
                counted, lent, lent_bodies, due = row
                self._wait_for(due)
                return set(counted or ()), _share(lent, lent_bodies)

        def lose() -> tuple[set[int], dict[int, list[Row]]]:
            self._lose("the database says so")
            return set(), {}

        found = await self._patiently(attempt, lose)
        for queue in parcel.told:
            for member in self.members:
                member.rung(queue)
        return found

    async def call(self, function: str, *arguments: object) -> Any:
        """What a function of the schema returns; an outage is waited out."""

        async def attempt() -> Any:
            async with self._connected() as connection:
                return await self._called(connection, function, *arguments)

        # Whoever asks may be cancelled; a statement is not, for nobody would know what became of it.
        return await asyncio.shield(asyncio.ensure_future(self._patiently(attempt)))

    async def _called(self, connection: psycopg.AsyncConnection, function: str, *arguments: object) -> Any:
        places = ", ".join(["%s"] * len(arguments))
        return (await self._row(connection, f"SELECT {{}}.{function}({places})", *arguments))[0]

    async def _row(self, connection: psycopg.AsyncConnection, query: str, *arguments: object) -> tuple[Any, ...]:
        """The one row of a statement.  A server that does not answer is hung up on."""
        watch = asyncio.get_running_loop().call_later(ANSWER_WITHIN, _hang_up, connection)
        try:
            with Translated(self.place):
                text = query.format(f'"{self.place.schema}"').encode()
                cursor = await connection.execute(text, arguments, binary=True)
                row: tuple[Any, ...] | None = await cursor.fetchone()
        finally:
            watch.cancel()
        assert row is not None
        return row

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], lost: Callable[[], T] | None = None) -> T:
        """Repeat `attempt` until it passes: a fault is waited out."""
        for failures in itertools.count():
            try:
                return await attempt()
            except LeaseLost:
                if lost is not None:
                    return lost()
                self._lose("the database says so")
            except BrokerError as error:
                log.log(logging.WARNING if failures else logging.ERROR, "%s; trying on", error)
                await asyncio.sleep(backoff(failures, base=RETRY_BASE, maximum=RETRY_MAXIMUM, jitter=random.random()))
        raise AssertionError("unreachable")

    # The connection, and the lease.

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[psycopg.AsyncConnection]:
        async with self._using:
            if self._connection is None or self._connection.closed:
                self._connection = await connect_async(self.place)
                await self._resume(self._connection)
            if not self._carrier:
                await self._register(self._connection)
            if self._ticking is None and not self._closing.is_set():
                self._ticking = asyncio.get_running_loop().create_task(self._tick())
            yield self._connection

    async def _register(self, connection: psycopg.AsyncConnection) -> None:
        begun, pid = asyncio.get_running_loop().time(), os.getpid()
        arguments = socket.gethostname(), home(), pid, began(pid), self.place.heartrate, self._former
        self._carrier = await self._called(connection, "register", *arguments)
        self._term = 1
        self._renewed(begun)

    async def _resume(self, connection: psycopg.AsyncConnection) -> None:
        """Over a new connection: what is still ours is known then, and nothing of the old one can happen any more."""
        if not self._carrier:
            return
        self._term += 1
        begun = asyncio.get_running_loop().time()
        held = [seq for member in self.members for seq in member.held()]
        arguments = self._carrier, self._term, array([*held, *self._under_way])
        found = await self._called(connection, "resume", *arguments)
        if found is None:
            self._lose("another carrier has taken over")
        else:
            mine, others = found
            self._not_over = {*mine, *others}
            self._renewed(begun)
            self._rung("")
            log.info("%s: connected again as carrier %d", self.place.shown, self._carrier)

    async def _renew(self) -> None:
        async with self._connected() as connection:
            begun = asyncio.get_running_loop().time()
            if await self._called(connection, "renew", self._carrier, self._term):
                self._renewed(begun)
            else:
                self._lose("the database says so")

    def _renewed(self, begun: float) -> None:
        """The lease holds from `begun` on, which was before the database was asked."""
        loop, heartrate = asyncio.get_running_loop(), self.place.heartrate
        self._renew_at = begun + heartrate
        if self._valid is not None:
            self._valid.cancel()
        why = f"it could not be renewed for {VALID * heartrate:g} s"
        self._valid = loop.call_at(begun + VALID * heartrate, self._lose, why)

    def _lose(self, why: str) -> None:
        """From now on others may have what was lent: everything begins anew, under another number."""
        if not self._carrier:
            return
        log.error("carrier %d has lost its lease: %s; what it had is lent again", self._carrier, why)
        self._former, self._carrier = self._carrier, 0
        if self._valid is not None:
            self._valid.cancel()
        self._generation += 1
        for member in self.members:
            member.lost()

    # What comes by itself.

    def _rung(self, queue: str) -> None:
        for member in self.members:
            member.rung(queue)

    def _wait_for(self, due: float | None) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if due is not None and due < LOOK_EVERY:
            self._due = asyncio.get_running_loop().call_later(max(0.0, due) + 0.001, self._rung, "")

    async def _tell(self, queues: list[str]) -> None:
        async with self._connected() as connection:
            await self._row(connection, "SELECT {}.put(NULL, NULL, NULL, %s)", queues)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            self._listener.start()
        while not self._closing.is_set():
            now = loop.time()
            if now >= self._renew_at:
                await self._patiently(self._renew)
            await self._bury_the_dead(now)
            if now >= self._chores_at:
                self._chores_at = now + CHORES_EVERY
                await self.call("maintain", *self._chores)
            self._rung("")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), LOOK_EVERY * (0.75 + random.random() / 2))

    async def _bury_the_dead(self, now: float) -> None:
        neighbours = await self.call("neighbours", self._carrier, home())
        dead = [number for number, pid, since in neighbours if began(pid) != since]
        if dead or now >= self._adopt_at:
            self._adopt_at = now + ADOPT_EVERY
            for number, host, pid in await self.call("adopt", self._carrier, array(dead)):
                log.warning("carrier %d (%s, process %d) is dead: what it had is lent again", number, host, pid)

    async def close(self) -> None:
        """Give everything back, and let go of the database.  May be called twice."""
        self._closing.set()
        for handle in (self._valid, self._due):
            if handle is not None:
                handle.cancel()
        if self._listener is not None:
            await self._listener.close()
        if self._teller is not None:
            await self._teller.close()
        for task in (self._ticking, self._working):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, BrokerError):
                    await task
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                if self._carrier and not connection.closed:
                    await self._called(connection, "leave", self._carrier, self._term)
            except BrokerError as error:
                log.warning("%s; others find what this carrier had", error)
            await connection.close()
        self._carrier = 0


def _share(lent: list[Any] | None, bodies: bytes) -> dict[int, list[Row]]:
    """What each claim got, by its number."""
    found: dict[int, list[Row]] = {}
    at = 0
    for number, items in lent or ():
        claimed = unpack(items, bodies[at:] if at else bodies)
        at += sum(len(row.workitem.body) for row in claimed)
        found[number] = claimed
    return found


def _hang_up(connection: psycopg.AsyncConnection) -> None:
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
