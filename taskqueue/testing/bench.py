"""What the contract's tests work with: one broker, its ends, and an event loop that ends in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import TypeVar

import pytest

from taskqueue.broker import Broker, Consumer, DeadLetters, Delivery, Ended, Producer
from taskqueue.outcome import Done, Outcome, Rules
from taskqueue.store import Store
from taskqueue.workitem import Workitem, worker_queue

__all__ = ["LIMIT", "QUEUE", "QUIET", "RULES", "TYPE", "Bench", "Contract", "item", "items", "settle", "within"]

T = TypeVar("T")

LIMIT = 30.0
"""Seconds after which what a test waits for is taken to be never coming."""
QUIET = 0.3
"""Seconds of silence that are taken for nothing coming.  A fault that takes longer escapes; a slow machine is safe."""
TYPE = "contract"
"""The worker type that the tests send to."""
QUEUE = worker_queue(TYPE)
RULES = Rules(results_routing_key="results", max_crashes=3)


def item(body: bytes | str = b"{}", **properties: object) -> Workitem:
    """A workitem of the test's type."""
    workitem = Workitem(body=body.encode() if isinstance(body, str) else body, type=TYPE)
    return workitem._replace(**properties)  # type: ignore[arg-type]


def items(count: int) -> list[Workitem]:
    """Workitems with the ids 0, 1, ..."""
    return [item(str(n), id=str(n)) for n in range(count)]


def within(work: Coroutine[object, object, T]) -> T:
    """Run a test's asynchronous part, for LIMIT seconds at most."""

    async def limited() -> T:
        async with asyncio.timeout(LIMIT):
            return await work

    return asyncio.run(limited())


class Bench:
    """Brokers on one place, and shorthands for what every test does."""

    def __init__(self, factory: Callable[[], Broker]) -> None:
        self._factory = factory
        self._brokers: list[Broker] = []
        self._producers: list[Producer] = []
        self._views: list[DeadLetters] = []
        self.broker = self.another()

    def another(self) -> Broker:
        """One more broker object on the same place."""
        self._brokers.append(self._factory())
        return self._brokers[-1]

    def producer(self) -> Producer:
        """A producer that is closed at the end of the test."""
        self._producers.append(self.broker.producer())
        return self._producers[-1]

    def send(self, *workitems: Workitem, queue: str = "") -> list[str]:
        """Send by a producer of the test."""
        producer = self._producers[0] if self._producers else self.producer()
        return producer.send(workitems, queue=queue)

    def consumer(self, queue: str = QUEUE, *, reserve: int = 10) -> Consumer:
        """A consumer of the test's queue."""
        return self.broker.consumer(queue, reserve=reserve)

    def dead_letters(self) -> DeadLetters:
        """A view of the dead letters that is closed at the end of `run`."""
        self._views.append(self.broker.dead_letters())
        return self._views[-1]

    def run(self, test: Callable[[], Awaitable[T]]) -> T:
        """Run the asynchronous part of a test, and close the brokers in the same event loop."""

        async def all_of_it() -> T:
            try:
                return await test()
            finally:
                for view in self._views:
                    await view.close()
                for broker in self._brokers:
                    await broker.close()

        return within(all_of_it())

    def run_once(self, test: Callable[[], Awaitable[T]]) -> T:
        """Run an asynchronous part that closes what it opens; `run` may follow."""

        async def awaited() -> T:
            return await test()

        return within(awaited())

    def close(self) -> None:
        """Let go of everything that `run` does not close."""
        for producer in self._producers:
            producer.close()

    async def lent(self, consumer: Consumer, count: int) -> list[Delivery]:
        """Receive until there are `count` deliveries."""
        deliveries: list[Delivery] = []
        while len(deliveries) < count:
            deliveries += await consumer.receive(limit=count - len(deliveries))
        return deliveries

    async def read(self, queue: str, count: int = 1) -> list[Workitem]:
        """Take `count` workitems out of `queue` for good."""
        consumer = self.consumer(queue, reserve=count)
        deliveries = await self.lent(consumer, count)
        assert await settle(consumer, deliveries) == [True] * count
        await consumer.close()
        return [delivery.workitem for delivery in deliveries]

    async def end_one(self, outcome: Outcome, rules: Rules = RULES) -> None:
        """Receive one workitem and end it."""
        consumer = self.consumer()
        assert await settle(consumer, await self.lent(consumer, 1), outcome, rules) == [True]
        await consumer.close()

    async def nothing_comes(self, consumer: Consumer) -> bool:
        """Whether `consumer` gets nothing for a while."""
        try:
            async with asyncio.timeout(QUIET):
                await consumer.receive(limit=1)
        except TimeoutError:
            return True
        return False

    async def is_empty(self, queue: str) -> bool:
        """Whether nothing can be had from `queue`."""
        consumer = self.consumer(queue)
        empty = await self.nothing_comes(consumer)
        await consumer.close()
        return empty


class Contract:
    """What every suite needs; subclass it with a fixture `broker_factory`: see `taskqueue.testing`."""

    @pytest.fixture
    def broker_factory(self) -> Callable[[], Broker]:
        """A function that returns one more broker object on the same place, which is empty at first."""
        raise NotImplementedError("the subclass says which broker is tested")

    @pytest.fixture
    def bench(self, broker_factory: Callable[[], Broker]) -> Iterator[Bench]:
        bench = Bench(broker_factory)
        yield bench
        bench.close()

    @pytest.fixture
    def store(self, bench: Bench) -> Iterator[Store]:
        """Where the broker is one."""
        store = bench.broker.store()
        yield store
        store.close()


async def settle(
    consumer: Consumer, deliveries: Sequence[Delivery], outcome: Outcome | None = None, rules: Rules | None = None
) -> list[bool]:
    """End all `deliveries` alike; without an outcome as done, with no result."""
    ended = [Ended(delivery, outcome or Done(None), rules or Rules()) for delivery in deliveries]
    return await consumer.settle(ended)
