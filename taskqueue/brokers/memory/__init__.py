"""The reference: all of the contract in plain Python, for tests and micro tasks inside one program."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import queue as queues
import threading
import uuid
from collections.abc import Callable

from taskqueue.broker import Broker, Capabilities, Consumer, DeadLetters, Joined, Options, Producer
from taskqueue.brokers.memory.ends import Item, MemoryConsumer, MemoryDeadLetters, MemoryProducer
from taskqueue.brokers.memory.records import MemoryStore, Records
from taskqueue.clock import SYSTEM, Clock
from taskqueue.errors import Unsupported
from taskqueue.record import is_recorded
from taskqueue.store import Store
from taskqueue.workitem import DROPPED, Workitem

__all__ = ["MemoryBroker", "open_broker"]


class MemoryBroker:
    """Everything is in one dictionary of heaps, under one lock; lost with the program."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self.capabilities = Capabilities(several_hosts=False, priorities=True, store=True)
        self.clock = clock
        self.lock = threading.Lock()
        self.records = Records(self.lock, clock)
        self._order = itertools.count()
        self._waiting: dict[str, list[Item]] = {}
        self._replies: dict[str, queues.SimpleQueue[Workitem]] = {}
        self._consumers: list[MemoryConsumer] = []

    def put(self, queue: str, workitem: Workitem) -> None:
        """Store one workitem, unless `queue` is the reply queue of a client that left."""
        if queue.startswith("reply."):
            replies = self._replies.get(queue)
            if replies is not None:
                replies.put(workitem)
            return
        now = self.clock.wall()
        expires = float("inf") if workitem.expiration is None else max(now, workitem.due or now) + workitem.expiration
        self.put_back(queue, (-(workitem.priority or 0), next(self._order), expires, workitem))

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
        while waiting and len(taken) < limit:
            item = heapq.heappop(waiting)
            _, _, expires, workitem = item
            if workitem.due is not None and workitem.due > now:
                later.append(item)
            elif expires <= now:
                reason = {"x-death": [{"reason": "expired", "queue": queue}]}
                self.records.expired(workitem)
                self.put(DROPPED, workitem._replace(expiration=None, headers={**workitem.headers, **reason}))
            else:
                taken.append(item)
        for item in later:
            heapq.heappush(waiting, item)
        soonest = min((item[3].due for item in waiting if item[3].due is not None), default=None)
        return taken, None if soonest is None else max(0.0, soonest - now)

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
        return any(
            self.remove(queue, item)
            for queue in filter(is_recorded, self._waiting)
            for item in self._waiting[queue]
            if item[3].id == id
        )

    def producer(self) -> Producer:
        return MemoryProducer(self)

    def using(self, connection: object) -> Joined:
        raise Unsupported("memory:// is in no database; postgresql:// and sqlite:/// send in a transaction of yours")

    def consumer(self, queue: str, *, reserve: int) -> Consumer:
        consumer = MemoryConsumer(self, queue)
        with self.lock:
            self._consumers = [*(c for c in self._consumers if not c.closed), consumer]
        return consumer

    def dead_letters(self) -> DeadLetters:
        return MemoryDeadLetters(self)

    def watch(self, told: Callable[[str], None]) -> None:
        asyncio.get_running_loop().call_soon(told, "")

    def store(self) -> Store:
        return MemoryStore(self.records, self.withdraw)

    def anew(self) -> Broker:
        return self

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


def open_broker(options: Options) -> Broker:
    """A new, empty broker for the URL `memory://`."""
    return MemoryBroker()
