"""RabbitMQ 3.10 to 4.x through pika: many hosts, any language, high rates."""

from __future__ import annotations

from collections.abc import Callable

from taskqueue.broker import Broker, Capabilities, Consumer, DeadLetters, Joined, Options, Producer
from taskqueue.brokers.amqp.consumer import AMQPConsumer
from taskqueue.brokers.amqp.dead import AMQPDeadLetters
from taskqueue.brokers.amqp.link import Link, patiently
from taskqueue.brokers.amqp.producer import AMQPProducer
from taskqueue.clock import SYSTEM
from taskqueue.errors import Unsupported
from taskqueue.store import Store

__all__ = ["AMQPBroker", "open_broker"]


class AMQPBroker:
    """One connection for all consumers; each has a channel of its own, so one's fault is not another's."""

    def __init__(self, options: Options) -> None:
        self.capabilities = Capabilities(several_hosts=True, priorities=options.queue_type == "classic")
        self._options = options
        self._link = Link(options)
        self._consumers: list[AMQPConsumer] = []

    def producer(self, wanted: Callable[[str], bool] | None = None) -> Producer:
        return AMQPProducer(self._options)

    def using(self, connection: object) -> Joined:
        raise Unsupported("RabbitMQ is in no database; postgresql:// and sqlite:/// send in a transaction of yours")

    def consumer(self, queue: str, *, reserve: int) -> Consumer:
        consumer = AMQPConsumer(self._link, queue, reserve, SYSTEM)
        self._consumers = [*(c for c in self._consumers if not c.closed), consumer]
        return consumer

    def dead_letters(self) -> DeadLetters:
        return AMQPDeadLetters(self._options, SYSTEM)

    def watch(self, told: Callable[[str], None]) -> None:
        self._link.watch(told)

    def store(self) -> Store:
        raise Unsupported("RabbitMQ keeps no record of workitems; postgresql://, sqlite:/// and memory:// do")

    def anew(self) -> Broker:
        return AMQPBroker(self._options)

    def apart(self) -> Options | None:
        return self._options

    async def declare(self, queue: str) -> bool:
        return await patiently(lambda: self._link.declare(queue), f"queue {queue}")

    async def exists(self, queue: str) -> bool:
        return await patiently(lambda: self._link.ready(queue), f"queue {queue}") is not None

    async def close(self) -> None:
        for consumer in self._consumers:
            await consumer.close()
        await self._link.close()


def open_broker(options: Options) -> Broker:
    """The broker for an `amqp://` or `amqps://` URL.  Nothing is connected yet."""
    return AMQPBroker(options)
