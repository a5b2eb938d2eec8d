"""The reference: all of the contract in plain Python, for tests and micro tasks inside one program."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import queue as queues
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable

from taskqueue.broker import Broker, Capabilities, Consumer, DeadLetters, Joined, Options, Producer
from taskqueue.brokers.memory.dependencies import Dependencies, Item
from taskqueue.brokers.memory.ends import MemoryConsumer, MemoryDeadLetters, MemoryProducer
from taskqueue.brokers.memory.records import MemoryStore, Records
from taskqueue.clock import SYSTEM, Clock
from taskqueue.errors import Unsupported
from taskqueue.outcome import Send
from taskqueue.record import is_recorded
from taskqueue.store import Store
from taskqueue.workitem import DROPPED, Workitem, worker_queue

__all__ = ["MemoryBroker", "open_broker"]

NEVER = float("inf")  # one for all workitems


class MemoryBroker:
    """Everything is in one dictionary of heaps, under one lock; lost with the program.

    pid: the process that it is in.
    """

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self.pid = os.getpid()
        self.capabilities = Capabilities(several_hosts=False, several_programs=False, priorities=True, store=True)
        self.clock = clock
        self.lock = threading.Lock()
        self.records = Records(self.lock, clock, self._is_wanted)
        self.dependencies = Dependencies(self.records, self.put_back, self.send)
        self._order = itertools.count()
        self._waiting: dict[str, list[Item]] = {}
        self._replies: dict[str, queues.SimpleQueue[Workitem]] = {}
        self._consumers: list[MemoryConsumer] = []
        self._producers: weakref.WeakSet[MemoryProducer] = weakref.WeakSet()

    def send(self, send: Send) -> None:
        """Store one workitem, unless its queue is the reply queue of a client that left."""
        queue, workitem = send.queue, send.workitem
        if queue.startswith("reply."):
            replies = self._replies.get(queue)
            if replies is not None:
                replies.put(workitem)
            return
        now = self.clock.wall()
        expires = NEVER if workitem.expiration is None else max(now, workitem.due or now) + workitem.expiration
        item = (-(workitem.priority or 0), next(self._order), expires, workitem)
        if not send.goes_on:
            self.records.born(queue, workitem)
            if not self.dependencies.begins(queue, item):
                return
        elif send.more:
            if not self.dependencies.begins(queue, item, again=False):
                return
            self.records.unblocked(workitem)
        self.put_back(queue, item)

    def put_back(self, queue: str, item: Item) -> None:
        """Store what was taken, in its old place."""
        heapq.heappush(self._waiting.setdefault(queue, []), item)
        for consumer in self._consumers:
            consumer.wake()

    def take(self, queue: str, limit: int) -> tuple[list[Item], float | None]:
        """Up to `limit` due workitems, and the seconds until the next one is due, if one is known."""
        now = self.clock.wall()
        later: list[Item] = []
        taken: list[Item] = []
        waiting = self._waiting.setdefault(queue, [])
        for waiter in self.dependencies.expired(now):
            self._expire(waiter.queue, waiter.item[3])
        while waiting and len(taken) < limit:
            item = heapq.heappop(waiting)
            _, _, expires, workitem = item
            if workitem.due is not None and workitem.due > now:
                later.append(item)
            elif expires <= now:
                self._expire(queue, workitem)
            else:
                taken.append(item)
        for item in later:
            heapq.heappush(waiting, item)
        soonest = min((item[3].due for item in waiting if item[3].due is not None), default=None)
        return taken, None if soonest is None else max(0.0, soonest - now)

    def _expire(self, queue: str, workitem: Workitem) -> None:
        reason = {"x-death": [{"reason": "expired", "queue": queue}]}
        self.records.expired(workitem)
        self.send(Send(DROPPED, workitem._replace(expiration=None, headers={**workitem.headers, **reason})))

    def waiting(self, queue: str) -> list[Item]:
        """All that is in `queue`, in the order in which it came."""
        return sorted(self._waiting.get(queue, ()), key=lambda item: item[1])

    def remove(self, queue: str, item: Item) -> bool:
        """Take `item` out of `queue` for good; False where it was not there any more."""
        waiting = self._waiting.get(queue, [])
        if all(item is not other for other in waiting):
            return False
        self._waiting[queue] = [other for other in waiting if other is not item]
        heapq.heapify(self._waiting[queue])
        return True

    def withdraw(self, id: str) -> bool:
        """Take a workitem out of where it waits; False where it does not."""
        if (waiter := self.dependencies.find(id)) is not None:
            self.dependencies.withdraw(waiter)
            return True
        return any(
            self.remove(queue, item)
            for queue in filter(is_recorded, self._waiting)
            for item in self._waiting[queue]
            if item[3].id == id
        )

    def drop_unwanted(self, ids: Iterable[str]) -> None:
        """These may be lent to nobody any more: what somebody wants no more of them is over."""
        for id in self.records.unwanted.intersection(ids):
            if self.withdraw(id):
                self.records.cancelled(id)

    def pending(self, type: str) -> list[Item]:
        """What waits for workers of `type`, or for others before that; the latest that was sent comes first."""
        queue = worker_queue(type)
        blocked = [waiter.item for waiter in self.dependencies.waiting(queue)]
        return sorted([*self._waiting.get(queue, ()), *blocked], key=lambda item: item[1], reverse=True)

    def discard(self, type: str) -> list[Item]:
        """Take all of it out of where it waits."""
        queue, items = worker_queue(type), self.pending(type)
        for waiter in self.dependencies.waiting(queue):
            self.dependencies.withdraw(waiter)
        self._waiting.pop(queue, None)
        return items

    def check_process(self) -> None:
        """Raise Unsupported in a child after a fork, which has a copy that nobody else looks into."""
        if os.getpid() != self.pid:
            raise Unsupported(
                "memory:// is in the program that connected to it, which this process was forked from: sqlite:/// and "
                "postgresql:// are for several processes"
            )

    def producer(self, wanted: Callable[[str], bool] | None = None) -> Producer:
        producer = MemoryProducer(self, wanted)
        if os.getpid() == self.pid:  # else its lock may have been locked in the fork
            with self.lock:
                self._producers.add(producer)
        return producer

    def _is_wanted(self, id: str) -> bool:
        return any(producer.wanted is not None and producer.wanted(id) for producer in self._producers)

    def using(self, connection: object) -> Joined:
        raise Unsupported("memory:// is in no database; postgresql:// and sqlite:/// send in a transaction of yours")

    def consumer(self, queue: str, *, reserve: int) -> Consumer:
        self.check_process()
        consumer = MemoryConsumer(self, queue)
        with self.lock:
            self._consumers = [*(c for c in self._consumers if not c.closed), consumer]
        return consumer

    def dead_letters(self) -> DeadLetters:
        return MemoryDeadLetters(self)

    def watch(self, told: Callable[[str], None]) -> None:
        asyncio.get_running_loop().call_soon(told, "")

    def store(self) -> Store:
        self.check_process()
        return MemoryStore(self.records, self)

    def anew(self) -> Broker:
        return self

    def apart(self) -> Options | None:
        return None

    async def declare(self, queue: str) -> bool:
        with self.lock:
            made = queue not in self._waiting
            self._waiting.setdefault(queue, [])
            return made

    async def exists(self, queue: str) -> bool:
        return queue in self._waiting

    async def close(self) -> None:
        """Those of this event loop: others may be at it in the same program, each in theirs (`anew`)."""
        for consumer in list(self._consumers):
            if consumer.loop is asyncio.get_running_loop() or consumer.loop.is_closed():
                await consumer.close()

    def replies(self) -> tuple[str, queues.SimpleQueue[Workitem]]:
        """A new reply queue, with its name."""
        name = f"reply.{uuid.uuid4().hex}"
        self._replies[name] = queues.SimpleQueue()
        return name, self._replies[name]

    def no_replies(self, name: str) -> None:
        """Nobody waits at the reply queue `name` any more."""
        self._replies.pop(name, None)


_named: dict[tuple[int, str], MemoryBroker] = {}  # by the process, and the name


def open_broker(options: Options) -> Broker:
    """A new, empty broker for the URL `memory://`; for `memory://name` the one of that name in this process."""
    name = options.url.partition("://")[2]
    return _named.setdefault((os.getpid(), name), MemoryBroker()) if name else MemoryBroker()
