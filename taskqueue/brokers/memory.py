"""The reference: all of the contract in plain Python, for tests and micro tasks inside one program."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import queue as queues
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Sequence

from taskqueue.broker import Broker, Capabilities, Consumer, DeadLetters, Delivery, Ended, Lease, Options, Producer
from taskqueue.clock import SYSTEM, Clock
from taskqueue.errors import BrokerError
from taskqueue.outcome import effects
from taskqueue.workitem import DEAD_LETTERS, DROPPED, Workitem, worker_queue

__all__ = ["MemoryBroker", "open_broker"]

_Item = tuple[int, int, float, Workitem]
"""Place by priority, place by order, POSIX seconds at which it expires, and what it is."""


class MemoryBroker:
    """Everything is in one dictionary of heaps, under one lock; lost with the program."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self.capabilities = Capabilities(several_hosts=False, priorities=True)
        self.clock = clock
        self.lock = threading.Lock()
        self._order = itertools.count()
        self._waiting: dict[str, list[_Item]] = {}
        self._replies: dict[str, queues.SimpleQueue[Workitem]] = {}
        self._consumers: list[_MemoryConsumer] = []

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

    def put_back(self, queue: str, item: _Item) -> None:
        """Store what was taken, in its old place."""
        heapq.heappush(self._waiting.setdefault(queue, []), item)
        for consumer in self._consumers:
            consumer.wake()

    def take(self, queue: str, limit: int) -> tuple[list[_Item], float | None]:
        """Up to `limit` due workitems, and the seconds until the next one is due, if one is known."""
        now = self.clock.wall()
        later: list[_Item] = []
        taken: list[_Item] = []
        waiting = self._waiting.setdefault(queue, [])
        while waiting and len(taken) < limit:
            item = heapq.heappop(waiting)
            _, _, expires, workitem = item
            if workitem.due is not None and workitem.due > now:
                later.append(item)
            elif expires <= now:
                reason = {"x-death": [{"reason": "expired", "queue": queue}]}
                self.put(DROPPED, workitem._replace(expiration=None, headers={**workitem.headers, **reason}))
            else:
                taken.append(item)
        for item in later:
            heapq.heappush(waiting, item)
        soonest = min((item[3].due for item in waiting if item[3].due is not None), default=None)
        return taken, None if soonest is None else max(0.0, soonest - now)

    def waiting(self, queue: str) -> list[_Item]:
        """All that is in `queue`, in the order in which it came."""
        return sorted(self._waiting.get(queue, ()), key=lambda item: item[1])

    def remove(self, queue: str, item: _Item) -> bool:
        """Take `item` out of `queue` for good; False where it was not there any more."""
        waiting = self._waiting.get(queue, [])
        if all(item is not other for other in waiting):
            return False
        self._waiting[queue] = [other for other in waiting if other is not item]
        heapq.heapify(self._waiting[queue])
        return True

    def producer(self) -> Producer:
        return _MemoryProducer(self)

    def consumer(self, queue: str, *, reserve: int) -> Consumer:
        consumer = _MemoryConsumer(self, queue)
        with self.lock:
            self._consumers = [*(c for c in self._consumers if not c.closed), consumer]
        return consumer

    def dead_letters(self) -> DeadLetters:
        return _MemoryDeadLetters(self)

    def watch(self, told: Callable[[str], None]) -> None:
        asyncio.get_running_loop().call_soon(told, "")

    async def declare(self, queue: str) -> bool:
        with self.lock:
            made = queue not in self._waiting
            self._waiting.setdefault(queue, [])
            return made

    async def exists(self, queue: str) -> bool:
        return queue in self._waiting

    async def close(self) -> None:
        for consumer in list(self._consumers):
            await consumer.close()

    def replies(self) -> tuple[str, queues.SimpleQueue[Workitem]]:
        """A new reply queue, with its name."""
        name = f"reply.{uuid.uuid4().hex}"
        self._replies[name] = queues.SimpleQueue()
        return name, self._replies[name]

    def no_replies(self, name: str) -> None:
        """Nobody waits at the reply queue `name` any more."""
        self._replies.pop(name, None)


class _MemoryProducer:
    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._reply_to, self._replies = broker.replies()

    def send(self, workitems: Sequence[Workitem], *, queue: str = "", reply: bool = False) -> list[str]:
        named = [workitem.named() for workitem in workitems]
        if reply:
            named = [w._replace(reply_to=self._reply_to, correlation_id=w.correlation_id or w.id) for w in named]
        with self._broker.lock:
            for workitem in named:
                self._broker.put(queue or worker_queue(workitem.type), workitem)
        return [workitem.id for workitem in named]

    def next_reply(self, *, timeout: float | None) -> Workitem | None:
        try:
            return self._replies.get(timeout=timeout)
        except queues.Empty:
            return None

    def close(self) -> None:
        self._broker.no_replies(self._reply_to)


class _MemoryConsumer:
    def __init__(self, broker: MemoryBroker, queue: str) -> None:
        self.closed = False
        self._broker = broker
        self._queue = queue
        self._lease = Lease()
        self._lent: dict[int, _Item] = {}
        self._tags = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._awake = asyncio.Event()

    def wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._awake.set)

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

    def _lend(self, item: _Item) -> Delivery:
        tag = next(self._tags)
        self._lent[tag] = item
        return Delivery(workitem=item[3], queue=self._queue, tag=tag, lease=self._lease)

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        with self._broker.lock:
            return [self._settle(item) for item in ended]

    def _settle(self, ended: Ended) -> bool:
        delivery = ended.delivery
        if delivery.lease is not self._lease or (item := self._lent.pop(delivery.tag, None)) is None:
            return False
        todo = effects(
            delivery.workitem, ended.outcome, ended.rules, queue=delivery.queue, now=self._broker.clock.wall()
        )
        for send in todo.sends:
            self._broker.put(send.queue, send.workitem)
        if not todo.ends:
            self._broker.put_back(delivery.queue, item)
        return True

    def resize(self, reserve: int) -> None:
        pass

    async def pause(self) -> None:
        pass

    async def close(self) -> None:
        with self._broker.lock:
            self.closed = True
            self._lease.lost = True
            lent, self._lent = self._lent, {}
            for item in lent.values():
                self._broker.put_back(self._queue, item)
        self.wake()


class _MemoryDeadLetters:
    def __init__(self, broker: MemoryBroker) -> None:
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
            self._broker.put(send.queue, send.workitem)
        return True

    async def close(self) -> None:
        self._lease.lost = True


def open_broker(options: Options) -> Broker:
    """A new, empty broker for the URL `memory://`."""
    return MemoryBroker()
