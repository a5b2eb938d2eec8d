"""The ends of the memory: sending, receiving, dead letters."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue as queues
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Protocol

from taskqueue.broker import Delivery, Ended, Lease, Underway
from taskqueue.brokers.memory.dependencies import Dependencies, Item
from taskqueue.brokers.memory.records import Records
from taskqueue.clock import Clock
from taskqueue.errors import BrokerError, DuplicateTask, UnknownTask, Unsupported
from taskqueue.lifecycle import ENDED
from taskqueue.outcome import Send, effects
from taskqueue.record import is_recorded
from taskqueue.workitem import DEAD_LETTERS, Workitem, worker_queue

__all__ = ["MemoryConsumer", "MemoryDeadLetters", "MemoryProducer", "Place"]


class Place(Protocol):
    """Where it all is; everything is called with its lock held, but for `replies` and `no_replies`."""

    lock: threading.Lock
    clock: Clock
    records: Records
    dependencies: Dependencies

    def check_process(self) -> None: ...
    def send(self, send: Send) -> None: ...
    def put_back(self, queue: str, item: Item) -> None: ...
    def take(self, queue: str, limit: int) -> tuple[list[Item], float | None]: ...
    def waiting(self, queue: str) -> list[Item]: ...
    def remove(self, queue: str, item: Item) -> bool: ...
    def drop_unwanted(self, ids: Iterable[str]) -> None: ...
    def replies(self) -> tuple[str, queues.SimpleQueue[Workitem]]: ...
    def no_replies(self, name: str) -> None: ...


class MemoryProducer:
    is_elsewhere = False  # in worker processes of a program that has all in its own memory

    def __init__(self, broker: Place, wanted: Callable[[str], bool] | None = None) -> None:
        self.wanted = wanted
        self._broker = broker
        self._reply_to, self._replies = broker.replies()

    def send(
        self, workitems: Sequence[Workitem], *, queue: str = "", reply: bool = False, unique: bool = False
    ) -> list[str]:
        if self.is_elsewhere:
            raise Unsupported(
                "memory:// is in the program that runs this worker process, which can't send to it: take threads, or "
                "sqlite:/// for processes whose tasks submit tasks"
            )
        self._broker.check_process()
        named = [workitem.named() for workitem in workitems]
        if reply:
            named = [w._replace(reply_to=self._reply_to, correlation_id=w.correlation_id or w.id) for w in named]
        with self._broker.lock:
            self._check(named, unique=unique)
            for workitem in named:
                self._broker.send(Send(queue or worker_queue(workitem.type), workitem))
        return [workitem.id for workitem in named]

    def _check(self, workitems: Sequence[Workitem], *, unique: bool) -> None:
        """Raise what keeps all of them from being sent."""
        earlier: set[str] = set()
        for workitem in workitems:
            for id in workitem.after:
                if id not in earlier and self._broker.records.find(id) is None:
                    raise UnknownTask(id)
            there = self._broker.records.find(workitem.id) if unique else None
            if unique and (workitem.id in earlier or (there is not None and there.state not in ENDED)):
                raise DuplicateTask(workitem.id)
            earlier.add(workitem.id)

    def next_reply(self, *, timeout: float | None) -> Workitem | None:
        try:
            return self._replies.get(timeout=timeout)
        except queues.Empty:
            return None

    def close(self) -> None:
        self._broker.no_replies(self._reply_to)


class MemoryConsumer:
    def __init__(self, broker: Place, queue: str) -> None:
        self.closed = False
        self._broker = broker
        self._queue = queue
        self._lease = Lease()
        self._lent: dict[int, tuple[Delivery, Item]] = {}
        self._tags = itertools.count(1)
        self.loop = asyncio.get_running_loop()
        self._awake = asyncio.Event()

    def wake(self) -> None:
        """With the lock of the broker, under which it closes: a loop whose consumers are closed may end any time."""
        if not (self.closed or self.loop.is_closed()):
            self.loop.call_soon_threadsafe(self._awake.set)

    async def receive(self, *, limit: int) -> list[Delivery]:
        while True:
            if self.closed:
                raise BrokerError(f"queue {self._queue}: the consumer is closed")
            self._awake.clear()
            with self._broker.lock:
                taken, wait = self._broker.take(self._queue, limit)
                lent = [self._lend(item) for item in taken]
            if lent:
                return lent
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._awake.wait()

    def _lend(self, item: Item) -> Delivery:
        tag = next(self._tags)
        inputs = self._broker.dependencies.inputs(item[3]) if is_recorded(self._queue) else ()
        delivery = Delivery(workitem=item[3], queue=self._queue, tag=tag, lease=self._lease, inputs=inputs)
        self._lent[tag] = delivery, item
        return delivery

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        with self._broker.lock:
            with self._broker.dependencies.together():
                counted = [self._settle(item) for item in ended]
            self._broker.drop_unwanted(item.delivery.workitem.id for item in ended)
            return counted

    def _settle(self, ended: Ended) -> bool:
        delivery = ended.delivery
        if delivery.lease is not self._lease or (lent := self._lent.pop(delivery.tag, None)) is None:
            return False
        workitem, now = delivery.workitem, self._broker.clock.wall()
        todo = effects(workitem, ended.outcome, ended.rules, queue=delivery.queue, now=now)
        self._broker.records.settled(ended)
        for send in todo.sends:
            self._broker.send(send)
        if not todo.ends:
            self._broker.put_back(delivery.queue, lent[1])
        elif not any(send.goes_on or send.queue == DEAD_LETTERS for send in todo.sends):
            self._broker.dependencies.forget(workitem.id)
        return True

    async def report(self, underway: Sequence[Underway]) -> Sequence[Delivery]:
        with self._broker.lock:
            for one in underway:
                if one.delivery.tag in self._lent:
                    self._broker.records.started(one)
            unwanted = self._broker.records.unwanted if is_recorded(self._queue) else ()
            return [one for one, _ in self._lent.values() if one.workitem.id in unwanted] if unwanted else ()

    def ticket(self, delivery: Delivery) -> None:
        return None

    def resize(self, reserve: int) -> None:
        pass

    async def pause(self) -> None:
        pass

    async def close(self) -> None:
        with self._broker.lock:
            self.wake()
            self.closed = True
            self._lease.lost = True
            lent, self._lent = self._lent, {}
            for _, item in lent.values():
                self._broker.put_back(self._queue, item)
                self._broker.records.released(item[3])
            self._broker.drop_unwanted(item[3].id for _, item in lent.values())


class MemoryDeadLetters:
    def __init__(self, broker: Place) -> None:
        self._broker = broker
        self._lease = Lease()

    async def look(self) -> AsyncIterator[Delivery]:
        with self._broker.lock:
            letters = self._broker.waiting(DEAD_LETTERS)
        for item in letters:
            yield Delivery(workitem=item[3], queue=DEAD_LETTERS, tag=item, lease=self._lease)

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        with self._broker.lock:
            return [self._settle(item) for item in ended]

    def _settle(self, ended: Ended) -> bool:
        delivery, now = ended.delivery, self._broker.clock.wall()
        todo = effects(delivery.workitem, ended.outcome, ended.rules, queue=DEAD_LETTERS, now=now)
        if self._lease.lost or (todo.ends and not self._broker.remove(DEAD_LETTERS, delivery.tag)):
            return False
        for send in todo.sends:
            self._broker.send(send._replace(goes_on=False))
        if todo.ends and not todo.sends:
            self._broker.dependencies.forget(delivery.workitem.id)
        return True

    async def close(self) -> None:
        self._lease.lost = True
