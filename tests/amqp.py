"""What the tests of the AMQP backend share: a raw client beside it, and deliveries to watch."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pika

from taskqueue.broker import Broker, Consumer, Delivery, Ended, Options, connect
from taskqueue.outcome import Done, Outcome, Rules
from taskqueue.workitem import Workitem

LIMIT = float(os.environ.get("TASKQUEUE_TEST_PATIENCE", "100"))
"""Seconds after which what a test waits for is taken to be never coming."""


@contextlib.contextmanager
def raw_channel(url: str) -> Iterator[Any]:
    """A channel of stock pika, in confirm mode."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        if connection.is_open:
            connection.close()


def bodies(url: str, queue: str) -> list[bytes]:
    """Take all that is ready in `queue`."""
    with raw_channel(url) as channel:
        found = []
        while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
            found.append(got[2])
        return found


def put(broker: Broker, *workitems: Workitem, queue: str = "") -> None:
    """Send from a producer of its own."""
    producer = broker.producer()
    try:
        producer.send(workitems, queue=queue)
    finally:
        producer.close()


async def lent(consumer: Consumer, count: int = 1) -> list[Delivery]:
    """Receive until there are `count` deliveries."""
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        deliveries += await consumer.receive(limit=count - len(deliveries))
    return deliveries


async def end(consumer: Consumer, delivery: Delivery, outcome: Outcome | None = None, **rules: Any) -> bool:
    """Settle one delivery; without an outcome as done, with no result."""
    return (await consumer.settle([Ended(delivery, outcome or Done(None), Rules(**rules))]))[0]


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; the test's time limit ends it."""
    while not condition():
        await asyncio.sleep(0.02)


def run(test: Callable[[Broker], Awaitable[None]], url: str, **options: Any) -> None:
    """Run `test` with a broker, and close it in the same event loop."""

    async def all_of_it() -> None:
        broker = connect(Options(url=url, **options))
        try:
            await asyncio.wait_for(test(broker), LIMIT)
        finally:
            await broker.close()

    asyncio.run(all_of_it())


def item(id: str, type: str = "any") -> Workitem:
    return Workitem(body=b"{}", type=type, id=id)
