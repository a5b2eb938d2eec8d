"""Whatever a producer can put into a message on RabbitMQ: the message is found again in exactly one place."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable

import pika
import pytest
from amqp import run
from hostile import SENT, Sent, received
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from installations import Installation
from servers import RabbitMQ
from system import System

from taskqueue.broker import Broker
from taskqueue.errors import FormatError
from taskqueue.formats import parse
from taskqueue.workitem import INCOMING, Workitem

MESSAGES = 500
BATCH = 10
QUIET = 8.0  # seconds in which all that lies in the queues is read, and some more
ENOUGH = 60  # messages that the broker itself must take: chance makes it 100 to 250


class Producer:
    """Publishes whatever it is told to, on new connections where the broker ends the old one for that."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: pika.BlockingConnection | None = None
        self._channel: pika.adapters.blocking_connection.BlockingChannel | None = None

    def taken(self, sent: Sent) -> bool:
        """Whether the broker takes it."""
        try:
            if self._connection is None or not self._connection.is_open:
                self._connection, self._channel = pika.BlockingConnection(pika.URLParameters(self._url)), None
            if self._channel is None or not self._channel.is_open:
                self._channel = self._connection.channel()
                self._channel.confirm_delivery()
            self._channel.basic_publish("", sent.queue, sent.body, sent.properties, mandatory=True)
        except pika.exceptions.AMQPError:
            return False
        return True

    def close(self) -> None:
        if self._connection is not None and self._connection.is_open:
            self._connection.close()


@pytest.mark.timeout(240)
def test_no_message_that_rabbitmq_takes_stops_a_dispatcher_or_is_lost_or_multiplied(
    installation: Installation, start_rabbitmq: Callable[..., RabbitMQ]
) -> None:
    rabbitmq = start_rabbitmq()  # its own: a broker has internal errors for some of this
    with System(installation, rabbitmq.url()) as system:
        found, accepted, tried = dispatched(system, rabbitmq)

        assert tried >= MESSAGES and len(accepted) >= ENOUGH
        places = Counter(workitem.others["app_id"] for _, workitem in found if "app_id" in workitem.others)
        assert places == Counter(accepted.keys())
        for queue, workitem in found:
            if "app_id" in workitem.others:
                assert workitem.body in possible_bodies(accepted[workitem.others["app_id"]], queue)
            else:
                assert workitem.headers["status"] == "failed"  # what a reply_to asked for
        print(f"{len(accepted)} of {tried} messages were taken; {Counter(queue for queue, _ in found)}")


def dispatched(system: System, rabbitmq: RabbitMQ) -> tuple[list[tuple[str, Workitem]], dict[str, Sent], int]:
    """Have a dispatcher handle messages: what lies in all queues then, what the broker took, how many were tried."""
    dispatcher = system.dispatcher(system.config(max_types=50))
    for queue in ("taskqueue", "taskqueue.dropped", "taskqueue.dead"):
        system.wait_queue(queue)
    producer = Producer(system.url)
    accepted: dict[str, Sent] = {}
    tried = 0

    @settings(
        max_examples=MESSAGES // BATCH, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(SENT, min_size=BATCH, max_size=BATCH))
    def publish(batch: list[Sent]) -> None:
        nonlocal tried
        for sent in batch:
            tried += 1
            sent.properties.app_id = f"m{tried}"
            if producer.taken(sent):
                accepted[f"m{tried}"] = sent

    publish()
    producer.close()
    for queue in ("taskqueue", "taskqueue.dropped"):
        system.wait_queue(queue, 0)
    dispatcher.stop()  # it settles what it has, or does not end with status 0
    queues = json.loads(rabbitmq.ctl("list_queues", "--formatter", "json", "name"))
    found: list[tuple[str, Workitem]] = []

    async def collect(broker: Broker) -> None:
        async def all_in(queue: str) -> None:
            consumer = broker.consumer(queue, reserve=MESSAGES)
            while True:
                found.extend((queue, delivery.workitem) for delivery in await consumer.receive(limit=MESSAGES))

        # At once: what is found expired in one queue is moved to another by whoever finds it.
        tasks = [asyncio.create_task(all_in(listed["name"])) for listed in queues]
        await asyncio.wait(tasks, timeout=QUIET)
        for task in tasks:
            task.cancel()

    run(collect, system.url)

    assert "Traceback" not in dispatcher.log
    return found, accepted, tried


def possible_bodies(sent: Sent, queue: str) -> set[bytes]:
    """What may be in `queue` of a message: bare for workers, and where it expired on its way to them."""
    if sent.queue != INCOMING:
        return {sent.body}
    try:
        bare = parse(received(sent), max_body=1 << 24).body
    except FormatError:
        return {sent.body} if queue == "taskqueue.dead" else set()
    return {bare, sent.body} if queue.startswith("taskqueue.") else {bare}
