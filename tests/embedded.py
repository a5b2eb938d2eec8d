"""A broker over a SQLite file, for tests that are no coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from taskqueue.broker import Broker, Consumer, Delivery, Ended, connect
from taskqueue.outcome import Done
from taskqueue.workitem import Workitem

T = TypeVar("T")


def run(url: str, work: Callable[[Broker], Awaitable[T]]) -> T:
    """Have `work` done with a broker, in an event loop, within a minute."""

    async def limited() -> T:
        broker = connect(url)
        try:
            return await asyncio.wait_for(work(broker), 60)
        finally:
            await broker.close()

    return asyncio.run(limited())


def send(url: str, *bodies: bytes, queue: str = "worker_t") -> list[str]:
    producer = connect(url).producer()
    try:
        return producer.send([Workitem(body=body) for body in bodies], queue=queue)
    finally:
        producer.close()


async def drain(consumer: Consumer, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    while len(found) < count:
        deliveries = await consumer.receive(limit=100)
        assert all(await consumer.settle([Ended(delivery, Done(None)) for delivery in deliveries]))
        found += deliveries
    return found
