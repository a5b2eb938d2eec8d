"""All that a carrier does with the database: over one connection, and whatever has come together in one statement."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from taskqueue.brokers.postgresql.link import Link
from taskqueue.brokers.postgresql.listener import Listener, stop
from taskqueue.brokers.postgresql.parcel import Parcel
from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.process import home, is_gone
from taskqueue.brokers.postgresql.rows import Row, array, unpack
from taskqueue.brokers.postgresql.teller import Teller
from taskqueue.clock import Clock
from taskqueue.store import sender

__all__ = ["Engine", "Lent", "Member", "Share"]

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds between looks for what nobody notified of: lost notifications, dead carriers
ADOPT_EVERY = 2.0  # seconds between looks for carriers of other hosts that are dead


class Lent(NamedTuple):
    """How much a claim got, and per priority the last number of it."""

    size: int = 0
    marks: Mapping[str, int] = MappingProxyType({})


class Share(Protocol):
    """What a consumer has in one statement."""

    @property
    def claim(self) -> dict[str, object] | None:
        """The claim to make, if there is one."""

    def arrived(self, lent: Lent | None, moved: Mapping[int, str]) -> None:
        """The statement is through, and the next one is about to begin.

        lent: None: no claim was made, or all is lost.
        moved: where the rows are now of which something was said.
        """

    def finish(self, counted: set[int], claimed: list[Row] | None, unwanted: Container[int]) -> None:
        """Which of its deliveries counted, and what was lent.

        unwanted: the numbers of what somebody wants no more.
        """


class Member(Protocol):
    """A consumer, as its engine sees it."""

    def begin(self, parcel: Parcel) -> Share:
        """Put what runs into `parcel`, which is complete then."""

    def held(self) -> dict[int, str]:
        """The numbers of all that it was lent and that is not settled, with the ids of the workitems."""

    def rung(self, queue: str) -> None:
        """There may be something in `queue`; empty: in any queue."""

    def lost(self) -> None:
        """Everything that was lent is lost."""


class _Answer(NamedTuple):
    """Which deliveries counted, what was lent for each claim, that as JSON (see `unpack`), the bodies, the rows that
    have moved, queues to be told of, and what somebody wants no more."""

    counted: set[int]
    lent: Mapping[int, Lent] = MappingProxyType({})
    items: str = ""
    bodies: bytes = b""
    moved: Mapping[int, str] = MappingProxyType({})
    woken: Sequence[str] = ()
    unwanted: Container[int] = ()


class Engine:
    """Makes one statement of what all consumers of a carrier settle and want, and then the next one.

    While the server is at one, the next one is put together; and where there is much to do, what the one before lent
    is handed out.
    """

    def __init__(self, place: Place, clock: Clock) -> None:
        self.clock = clock
        self.members: list[Member] = []
        self._link = Link(place, self)
        self._sender = sender()
        self._parcel: Parcel | None = None
        self._under_way: dict[int, Row] = {}
        self._working: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._due: asyncio.TimerHandle | None = None
        self._adopt_at = 0.0
        self._listener = Listener(place, self._rung, self._tell) if place.notify else None
        self._teller = Teller(self._tell) if place.notify else None

    def join(self, member: Member) -> None:
        """Work for a consumer, too.  From the first one on the dead are looked for, whether or not it receives yet."""
        self.members.append(member)
        self._start()

    def watch(self, told: Callable[[str], None]) -> None:
        """Connect now; `told` is called with each change of what is wrong with the database."""
        self._link.told = told
        self._start()

    def _start(self) -> None:
        if self._ticking is None and not self._closing.is_set():
            self._ticking = asyncio.get_running_loop().create_task(self._tick())

    # What the link asks and says.

    def held(self) -> dict[int, str]:
        found = {seq: row.stored_id for seq, row in self._under_way.items()}
        for member in self.members:
            found |= member.held()
        return found

    def back(self) -> None:
        self._rung("")

    def lost(self) -> None:
        self._parcel = None
        for member in self.members:
            member.lost()

    # One statement after the other.

    @property
    def parcel(self) -> Parcel:
        """What the next statement settles: it is made up while the server is at the one before."""
        if self._parcel is None:
            self._parcel = Parcel(self.clock.wall(), in_columns=True)
        return self._parcel

    def poke(self) -> None:
        """There is something to do."""
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._work())

    async def settled(self) -> None:
        """Wait until the statement that is under way, if there is one, is through."""
        if self._working is not None:
            await asyncio.shield(self._working)

    async def _work(self) -> None:
        finish: Callable[[], None] | None = None
        try:
            while True:
                parcel = self.parcel
                shares = [member.begin(parcel) for member in self.members]
                self._parcel = None
                claims = [{"number": n, **share.claim} for n, share in enumerate(shares) if share.claim is not None]
                if not (claims or parcel.settled or parcel.asks):
                    if finish is not None:
                        finish()
                    return
                generation = self._link.lost
                self._under_way = parcel.settled
                if finish is not None:
                    asyncio.get_running_loop().call_soon(finish)  # as soon as the statement is on its way
                answer = await self._turn(parcel, claims)
                self._under_way = {}
                finish = self._arrived(answer, shares, generation)
                if self._parcel is None:  # nothing to settle: whoever gets work has it at once
                    finish()
                    finish = None
                    await asyncio.sleep(0)  # what ends in the same turn of the event loop comes along
        finally:
            self._working = None

    def _arrived(self, answer: _Answer, shares: Sequence[Share], generation: int) -> Callable[[], None]:
        """What was lent may run only if nothing has been lost since its statement began."""
        if answer.moved and self._parcel is not None:
            self._parcel.move(answer.moved)
        for number, share in enumerate(shares):
            known = share.claim is not None and generation == self._link.lost
            share.arrived(answer.lent.get(number, Lent()) if known else None, answer.moved)

        def finish() -> None:
            rows = _share(answer)
            for number, share in enumerate(shares):
                known = share.claim is not None and generation == self._link.lost
                share.finish(answer.counted, rows.get(number, []) if known else None, answer.unwanted)
            self._woken(answer.woken)

        return finish

    async def _turn(self, parcel: Parcel, claims: list[dict[str, object]]) -> _Answer:
        """Settle, claim, and say what runs."""
        successes = parcel.successes()
        ends, releases, sends, bodies, lanes = parcel.texts()
        wanted = json.dumps(claims) if claims else None
        reports = json.dumps(parcel.reports) if parcel.reports else None
        generation = self._link.lost
        sent_in: int | None = None

        async def attempt() -> _Answer:
            nonlocal sent_in
            async with self._link.connected() as connection:
                if generation != self._link.lost:
                    return _Answer(set())
                broke = sent_in is not None and sent_in != self._link.resumed
                settled = parcel.settled.keys()
                if broke and settled and not settled & self._link.not_over:
                    return _Answer(set(settled))  # it broke behind the commit
                sent_in = self._link.resumed
                told = self._teller.now(parcel.told) if self._teller is not None else []
                row = await self._link.row(
                    connection,
                    "SELECT * FROM {}.turn(%s, %s, %b::text[], %s, %s, %s, %b, %s, %s, %s, %s, %s)",
                    self._link.carrier, self._link.term, successes, ends, releases, sends, bodies, lanes, self._sender,
                    wanted, reports, told,
                )  # fmt: skip
                answer, items, lent_bodies = row
                counted, lent, due, moved, woken, unwanted = json.loads(answer)
                self._wait_for(due)
                return _Answer(
                    set(counted or ()), {number: Lent(*rest) for number, *rest in lent}, items, lent_bodies,
                    dict(moved or ()), woken or (), set(unwanted or ()),
                )  # fmt: skip

        def lose() -> _Answer:
            self._link.lose("the database says so")
            return _Answer(set())

        found = await self._link.patiently(attempt, lose)
        for queue in parcel.told:
            for member in self.members:
                member.rung(queue)
        return found

    def ticket(self, row: Row) -> dict[str, Any]:
        """What a handler needs to end what it was lent: see `joined.complete`."""
        return {
            "broker": "postgresql",
            "schema": self._link.place.schema,
            "notify": self._link.place.notify,
            "carrier": self._link.carrier,
            "lease": self._link.term >> 32,
            "seq": row.seq,
            "story": row.story,
            "number": row.number,
        }

    async def whether_over(self, row: Row) -> str:
        """What became of what its handler may have ended: `over`, `open`, or something that is not yet known."""
        lease = self._link.carrier, self._link.term
        found, woken = await self.call("whether_over", *lease, row.seq, row.stored_id)
        self._woken(woken or ())
        if found is None and lease == (self._link.carrier, self._link.term):
            self._link.lose("the database says so")
        return found or "lost"

    async def call(self, function: str, *arguments: object) -> Any:
        """What a function of the schema returns; an outage is waited out."""
        self._start()
        return await self._link.call(function, *arguments)

    # What comes by itself.

    def _rung(self, queue: str) -> None:
        for member in self.members:
            member.rung(queue)

    def _woken(self, queues: Sequence[str]) -> None:
        """Something else came of the last statement: work that had waited for other work, replies, ends."""
        for queue in queues:
            self._rung(queue)
        if queues and self._teller is not None:
            self._teller.later(queues)

    def _wait_for(self, due: float | None) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if due is not None and due < LOOK_EVERY:
            self._due = asyncio.get_running_loop().call_later(max(0.0, due) + 0.001, self._rung, "")

    async def _tell(self, queues: list[str]) -> None:
        async with self._link.connected() as connection:
            await self._link.row(connection, "SELECT {}.put(NULL, NULL, NULL, NULL, NULL, %s)", queues)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            self._listener.start()
        while not self._closing.is_set():
            now = loop.time()
            await self._link.renew()
            await self._bury_the_dead(now)
            self._rung("")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(LOOK_EVERY * (0.75 + random.random() / 2), self._link.renew_in)):
                    await self._closing.wait()

    async def _bury_the_dead(self, now: float) -> None:
        neighbours = await self._link.call("neighbours", self._link.carrier, home())
        dead = [number for number, pid, since in neighbours if is_gone(pid, since)]
        if dead or now >= self._adopt_at:
            self._adopt_at = now + ADOPT_EVERY
            for number, host, pid in await self._link.call("adopt", self._link.carrier, array(dead)):
                log.warning("carrier %d (%s, process %d) is dead: what it had is lent again", number, host, pid)

    async def close(self) -> None:
        """Give everything back, and let go of the database.  May be called twice."""
        self._closing.set()
        if self._due is not None:
            self._due.cancel()
        if self._listener is not None:
            await self._listener.close()
        if self._teller is not None:
            await self._teller.close()
        for task in (self._ticking, self._working):
            if task is not None:
                await stop(task)
        await self._link.close()


def _share(answer: _Answer) -> dict[int, list[Row]]:
    """What each claim got, by its number."""
    rows = iter(unpack(json.loads(answer.items), answer.bodies) if answer.items else ())
    return {number: list(islice(rows, lent.size)) for number, lent in answer.lent.items()}
