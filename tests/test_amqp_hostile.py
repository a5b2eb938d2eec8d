"""No message, whatever is in it, ends a connection, is lost, or makes copies elsewhere."""

from __future__ import annotations

import asyncio
import struct

import pika
import pytest
from amqp import bodies, end, lent, raw_channel, run

from taskqueue.broker import Broker
from taskqueue.brokers.amqp import link
from taskqueue.brokers.amqp.table import Properties
from taskqueue.outcome import Dead, Done, Forward, Payload, Send
from taskqueue.workitem import INCOMING, Workitem


@pytest.fixture(autouse=True)
def no_waiting_for_new_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "RIPE", 0.0)


def entry(kind: bytes, value: bytes, name: bytes = b"x") -> bytes:
    return bytes((len(name),)) + name + kind + value


def long(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def nested(depth: int) -> bytes:
    value = b""
    for _ in range(depth):
        value = long(entry(b"F", value or long(b"")))
    return entry(b"F", value)


HOSTILE = {
    "nested a thousand deep": nested(1000),
    "beyond the year 9999": entry(b"T", b"\x7f" + b"\xff" * 7),
    "not a number": entry(b"d", struct.pack(">d", float("nan"))),
    "infinite": entry(b"f", struct.pack(">f", float("inf"))),
    "no UTF-8": entry(b"S", long(b"\xff\xfe\x00"), name=b"\xff\xfe"),
    "unknown type": entry(b"?", b"what"),
    "longer than it is": entry(b"S", struct.pack(">I", 1 << 31) + b"x"),
    "unsigned": entry(b"B", b"\xff") + entry(b"u", b"\xff\xff", b"y") + entry(b"i", b"\xff" * 4, b"z"),
    "too large": entry(b"S", long(b"x" * 120_000)),
    "a large reference": entry(b"S", long(b"x" * 120_000), b"reference"),
    "a large worker type": entry(b"S", long(b"x" * 120_000), b"worker_type"),
    "counters that are none": entry(b"S", long(b"x"), b"taskqueue_attempt") + entry(b"V", b"", b"taskqueue_due"),
}


def publish(url: str, raw: bytes, body: bytes, **fields: object) -> bool:
    """Publish with hand-made headers; False where the broker itself refuses them."""
    properties = Properties(delivery_mode=2, **fields)
    if raw:
        properties.headers = long(raw)
    try:
        with raw_channel(url) as channel:
            channel.basic_publish("", INCOMING, body, properties, mandatory=True)
    except pika.exceptions.AMQPError:
        return False
    return True


@pytest.mark.timeout(120)
def test_hostile_messages_are_passed_on_by_one_connection(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    accepted: list[str] = []

    async def test(broker: Broker) -> None:
        await broker.declare(INCOMING)
        names = b"\xff" * 255
        for name, raw in HOSTILE.items():
            if publish(amqp_url, raw, name.encode(), message_id=name):
                accepted.append(name)
        if publish(amqp_url, b"", b"ids", user_id="taskqueue", message_id="\udcff" * 255, reply_to="\udcff" * 255):
            accepted.append("ids")
        with raw_channel(amqp_url) as channel:
            for field in ("message_id", "reply_to", "correlation_id", "content_type"):
                channel.basic_publish("", INCOMING, field.encode(), RawShort({field: names}))
                accepted.append(field)
        consumer = broker.consumer(INCOMING, reserve=50)
        deliveries = await lent(consumer, len(accepted))
        for delivery in deliveries:
            assert await end(consumer, delivery, Forward(delivery.workitem._replace(type="any")))
        again = broker.consumer("worker_any", reserve=50)
        for delivery in await lent(again, len(accepted)):
            outcome = Dead("failed") if len(delivery.workitem.body) % 2 else Done(Payload())
            assert await end(again, delivery, outcome, results_routing_key="results")

    run(test, amqp_url)

    assert len(accepted) >= 8
    assert "lost" not in caplog.text
    assert "again" not in caplog.text
    assert len(bodies(amqp_url, "results")) == len(accepted)
    assert bodies(amqp_url, INCOMING) == []


class RawShort(Properties):
    """Properties with short strings that are no UTF-8."""

    def __init__(self, fields: dict[str, bytes]) -> None:
        super().__init__(**dict.fromkeys(fields, "x"))
        self._raw = fields

    def encode(self) -> list[bytes]:
        flags, *pieces = super().encode()
        return [flags, *(bytes((len(raw),)) + raw for raw in self._raw.values())][: len(pieces) + 1]


def test_no_copies_are_routed_elsewhere(amqp_url: str) -> None:
    async def test(broker: Broker) -> None:
        for queue in (INCOMING, "worker_spy"):
            await broker.declare(queue)
        copies = {"CC": ["worker_spy"], "kept": 1}
        with raw_channel(amqp_url) as channel:
            channel.basic_publish("", INCOMING, b"work", pika.BasicProperties(message_id="1", headers=copies))
            channel.queue_purge("worker_spy")  # the copy that its producer asked for
        consumer = broker.consumer(INCOMING, reserve=5)
        (delivery,) = await lent(consumer)
        assert "CC" in delivery.workitem.headers
        hidden = {**delivery.workitem.headers, "BCC": ["worker_spy", INCOMING]}
        assert await end(consumer, delivery, Forward(delivery.workitem._replace(type="any", headers=hidden)))

    run(test, amqp_url)

    assert bodies(amqp_url, "worker_any") == [b"work"]
    assert bodies(amqp_url, "worker_spy") == []
    assert bodies(amqp_url, INCOMING) == []


def test_a_name_that_is_too_long_is_a_queue_that_does_not_exist(amqp_url: str) -> None:
    async def test(broker: Broker) -> None:
        consumer = broker.consumer("worker_any", reserve=5)
        producer = broker.producer()
        producer.send([Workitem(body=b"", type="any", id="1")])
        producer.close()
        (delivery,) = await lent(consumer)
        there = Send("x" * 300, Workitem(body=b""), required=False)
        assert await end(consumer, delivery, Done(None, (there,)))

    run(test, amqp_url)


def test_a_returned_message_is_recognised_by_the_id_that_fitted_onto_the_wire(amqp_url: str) -> None:
    async def test(broker: Broker) -> None:
        consumer = broker.consumer("worker_any", reserve=5)
        producer = broker.producer()
        producer.send([Workitem(body=b"", type="any", id="1")])
        producer.close()
        (delivery,) = await lent(consumer)
        sends = (Send("elsewhere", Workitem(body=b"kept", id="ü" * 300)),)
        task = asyncio.create_task(end(consumer, delivery, Done(None, sends)))
        await asyncio.sleep(0.3)
        assert not task.done()
        with raw_channel(amqp_url) as channel:
            channel.queue_declare("elsewhere", durable=True)
        assert await task

    run(test, amqp_url)

    assert bodies(amqp_url, "elsewhere") == [b"kept"]
