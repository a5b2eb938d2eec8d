"""Lends workitems from one queue of the file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from taskqueue.broker import Delivery, Ended, Lease, Underway
from taskqueue.brokers.sqlite import cancelling, dependencies, history, names, queues
from taskqueue.brokers.sqlite.engine import Engine
from taskqueue.brokers.sqlite.history import Ending, ending
from taskqueue.brokers.sqlite.outbox import ENDED, FEW, Outbox
from taskqueue.brokers.sqlite.queues import Claimed
from taskqueue.brokers.sqlite.schema import Life
from taskqueue.errors import BrokerError
from taskqueue.story import told

__all__ = ["SQLiteConsumer"]


@dataclass(eq=False)
class _Step:
    """What one transaction does for a consumer; more may be added until it begins."""

    todo: dict[int, Ending] = field(default_factory=dict)
    room: int = 0
    done: asyncio.Task[set[int]] | None = None


class SQLiteConsumer:
    """Each transaction that settles claims as well, up to the reserve: a busy queue costs one commit a batch."""

    def __init__(self, engine: Engine, queue: str, reserve: int) -> None:
        self.closed = False
        self._engine = engine
        self._queue = queue
        self._reserve = reserve
        self._lease = Lease()
        self._lent: dict[int, Delivery] = {}
        self._lives: dict[int, Life] = {}
        self._asked = 0  # what transactions under way may still lend
        self._ready: deque[Delivery] = deque()
        self._paused = True
        self._wake = asyncio.Event()
        self._next: _Step | None = None
        self._next_due: float | None = None
        engine.members.append(self)

    @property
    def held(self) -> int:
        return len(self._lent)

    def rung(self, queues: set[str]) -> None:
        if not queues or self._queue in queues:
            self._wake.set()

    async def receive(self, *, limit: int) -> list[Delivery]:
        while not self._ready:
            if self.closed:
                raise BrokerError(f"the consumer of {self._queue} is closed")
            self._paused = False
            self._wake.clear()
            if await self._engine.read(self._worthwhile):
                await self._write_and_claim({})
            if not self._ready:
                await self._wait()
        return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]

    def _worthwhile(self, connection: sqlite3.Connection) -> bool:
        """A look that takes no lock, so that carriers that wake up together don't queue up for nothing."""
        now = self._engine.clock.wall()
        self._next_due = queues.next_due(connection)
        return queues.ready(connection, self._queue, now) or not names.exists(connection, self._queue)

    async def _wait(self) -> None:
        wait = None if self._next_due is None else max(0.0, self._next_due - self._engine.clock.wall())
        try:
            async with asyncio.timeout(wait):
                await self._wake.wait()
        except TimeoutError:
            return

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        now = self._engine.clock.wall()
        todo: dict[int, Ending] = {}
        mine = []
        for item in ended:
            delivery = item.delivery
            held = not delivery.lease.lost and self._lent.get(delivery.tag) is delivery and delivery.tag not in todo
            mine.append(held)
            if held:
                todo[delivery.tag] = ending(item, self._lives.get(delivery.tag), now)
        if not todo:
            return mine
        completing = {item.delivery.tag: item for item in ended if item.completing and item.delivery.tag in todo}
        counted = await self._write_and_claim(todo)
        if completing:
            counted |= await self._over(completing.keys() - counted, ended)
        return [held and item.delivery.tag in counted for held, item in zip(mine, ended, strict=True)]

    async def _over(self, tags: Set[int], ended: Sequence[Ended]) -> set[int]:
        """Those that are over: their handlers' own transactions have ended them.  Now those who wait can be told."""

        def work(connection: sqlite3.Connection, outbox: Outbox) -> set[int]:
            if not queues.is_carrier(connection, self._engine.carrier):
                return set()
            over = {tag for tag in tags if not queues.is_there(connection, tag)}
            if over:
                _, freed = dependencies.dependents(connection, [item.delivery.workitem.id for item in ended])
                outbox.told.update({ENDED, *freed, *(item.rules.results_routing_key for item in ended)} - {""})
                outbox.told.update({item.delivery.workitem.reply_to for item in ended} - {""})
            return over

        return await self._engine.write(work, begin=lambda: (1, False)) if tags else set()

    def ticket(self, delivery: Delivery) -> dict[str, Any] | None:
        life = self._lives.get(delivery.tag)
        if life is None:
            return None
        return {
            "broker": "sqlite",
            "file": str(self._engine.path),
            "carrier": self._engine.carrier,
            "seq": delivery.tag,
            "life": life,
        }

    async def _write_and_claim(self, todo: dict[int, Ending]) -> set[int]:
        """End deliveries, and lend as many as there is room for then; the tags that counted."""
        for tag in todo:
            del self._lent[tag]
            self._lives.pop(tag, None)
        self._engine.ending += len(todo)
        step = self._next
        if step is None or len(step.todo) + len(todo) > self._engine.large:
            step = self._next = _Step()
            step.todo |= todo
            step.done = asyncio.get_running_loop().create_task(self._do(step))
        else:
            step.todo |= todo
        assert step.done is not None
        return await asyncio.shield(step.done)

    async def _do(self, step: _Step) -> set[int]:
        engine = self._engine

        def begin() -> tuple[int, bool]:
            if self._next is step:
                self._next = None
            room = 0 if self._paused else self._reserve - self._asked - len(self._lent)
            step.room = max(0, min(room, engine.large))
            self._asked += step.room
            engine.ending -= len(step.todo)
            return len(step.todo) + step.room, bool(step.todo)  # with the host, what was lent is gone anyway

        def work(connection: sqlite3.Connection, outbox: Outbox) -> tuple[set[int], list[Claimed]]:
            now = engine.clock.wall()
            names.declare(connection, self._queue)
            # What a few set free is lent at once.  The rows of many are stored in the other thread, beside this one.
            early = step.room > 0 and _sets_few_free(connection, step.todo)
            ends = Outbox(outbox.now) if early else outbox
            counted = queues.end(connection, ends, step.todo, engine.carrier, engine.sender)
            if early:
                ends.store(connection)
                outbox.told |= ends.told
            if not all(ending.effects.ends for ending in step.todo.values()):
                outbox.told.add(self._queue)
            if not step.room:
                return counted, []
            return counted, queues.claim(connection, outbox, self._queue, step.room, engine.carrier, now)

        def then(result: tuple[set[int], list[Claimed]]) -> None:
            self._asked -= step.room
            self._lend(result[1])

        counted, _ = await engine.write(work, then, begin)
        return counted

    def _lend(self, claimed: list[Claimed]) -> None:
        for tag, workitem, life, inputs in claimed:
            if life is not None:
                self._lives[tag] = life
            delivery = Delivery(workitem=workitem, queue=self._queue, tag=tag, lease=self._lease, inputs=inputs)
            self._lent[tag] = delivery
            self._ready.append(delivery)
        if claimed:
            self._wake.set()

    async def report(self, underway: Sequence[Underway]) -> Sequence[Delivery]:
        running = [
            (told(one.run, one.progress), one.delivery.tag) for one in underway if one.delivery.tag in self._lives
        ]

        def work(connection: sqlite3.Connection, _: Outbox) -> None:
            queues.report(connection, self._engine.carrier, running)

        if running:
            await self._engine.write(work, begin=lambda: (len(running), False))
        unwanted = await self._engine.read(lambda connection: cancelling.lent(connection, self._engine.carrier))
        return [self._lent[tag] for tag in unwanted if tag in self._lent]

    def resize(self, reserve: int) -> None:
        if reserve > self._reserve:
            self._wake.set()
        self._reserve = reserve

    async def pause(self) -> None:
        self._paused = True
        await self._engine.write(_nothing)  # what a transaction under way still lends has come then
        ready = list(self._ready)
        self._ready.clear()
        await self._give_back(ready)
        self._wake.set()  # a receive that is waiting goes on

    async def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        tags = [delivery.tag for delivery in deliveries]
        for tag in tags:
            self._lent.pop(tag, None)
            self._lives.pop(tag, None)

        def work(connection: sqlite3.Connection, outbox: Outbox) -> None:
            queues.release(connection, self._engine.carrier, tags)
            outbox.told.add(self._queue)

        if tags:
            await self._engine.write(work)

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = self._paused = self._lease.lost = True
        self._ready.clear()
        self._engine.members.remove(self)
        self._wake.set()
        await self._engine.write(_nothing)
        await self._give_back(list(self._lent.values()))


def _sets_few_free(connection: sqlite3.Connection, todo: Mapping[int, Ending]) -> bool:
    """Whether something goes on when these have ended, and it takes no time to see to that: nothing fails with them."""
    if not 0 < len(todo) <= FEW or not dependencies.exist(connection):
        return False
    causes = dict(history.cause(one.record) for one in todo.values() if one.record is not None)
    return not any(causes.values()) and 0 < dependencies.waiting(connection, causes, FEW + 1) <= FEW


def _nothing(connection: sqlite3.Connection, outbox: Outbox) -> None:
    """A transaction that only comes after those before it."""
