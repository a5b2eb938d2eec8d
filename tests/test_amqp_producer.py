"""The producer on RabbitMQ: outages, queues, threads, event loops and forks."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable, Iterator

import pytest
from amqp import bodies, end, lent, raw_channel, run
from servers import RabbitMQ

from taskqueue.broker import Broker, Options, Producer, connect
from taskqueue.brokers.amqp import link
from taskqueue.errors import BrokerError, SendFailed
from taskqueue.outcome import Done, Payload
from taskqueue.workitem import Workitem

pytestmark = pytest.mark.timeout(120)


def item(id: str = "", body: bytes = b"{}") -> Workitem:
    return Workitem(body=body, type="any", id=id)


@pytest.fixture(autouse=True)
def ripe_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "RIPE", 0.0)


@pytest.fixture
def producer(amqp_url: str) -> Iterator[Producer]:
    producer = connect(Options(url=amqp_url)).producer()
    yield producer
    producer.close()


def test_it_connects_again_and_sends_what_an_outage_interrupted(start_rabbitmq: Callable[..., RabbitMQ]) -> None:
    server = start_rabbitmq()
    url = server.url(server.vhost())
    broker = connect(Options(url=url))
    producer = broker.producer()
    producer.send([item("before")], reply=True)

    server.restart()
    sent = producer.send([item(str(n)) for n in range(100)], reply=True)

    assert len(bodies(url, "worker_any")) == len(sent) + 1
    with raw_channel(url) as channel:  # the reply to what was sent before the restart
        channel.basic_publish("", producer._thread._line._reply_queue, b"late")  # type: ignore[attr-defined]
    reply = producer.next_reply(timeout=30)
    assert reply is not None
    assert reply.body == b"late"
    producer.close()


def test_replies_come_back_though_the_connection_was_lost_meanwhile(amqp_url: str) -> None:
    async def test(broker: Broker) -> None:
        producer = broker.producer()
        await asyncio.to_thread(producer.send, [item("1")], reply=True)
        line = producer._thread._line  # type: ignore[attr-defined]
        producer._thread._loop.call_soon_threadsafe(line._link._connection.drop)  # type: ignore[attr-defined]
        consumer = broker.consumer("worker_any", reserve=1)
        (delivery,) = await lent(consumer)
        assert await end(consumer, delivery, Done(Payload(b"answer")))
        reply = await asyncio.to_thread(producer.next_reply, timeout=30)
        assert reply is not None
        assert (reply.correlation_id, reply.body) == ("1", b"answer")
        await asyncio.to_thread(producer.close)

    run(test, amqp_url)


def test_a_queue_of_ours_that_is_gone_is_made_again(producer: Producer, amqp_url: str) -> None:
    producer.send([item("1")])
    with raw_channel(amqp_url) as channel:
        channel.queue_delete("worker_any")

    producer.send([item("2", b"2")])

    assert bodies(amqp_url, "worker_any") == [b"2"]


def test_a_foreign_queue_that_does_not_exist_is_refused_with_the_ids(producer: Producer) -> None:
    with pytest.raises(SendFailed, match="no such queue: elsewhere") as raised:
        producer.send([item("1"), item("2")], queue="elsewhere")

    assert raised.value.refused == ("1", "2")


def test_a_foreign_queue_that_exists_is_used(producer: Producer, amqp_url: str) -> None:
    with raw_channel(amqp_url) as channel:
        channel.queue_declare("elsewhere")

    producer.send([item("1", b"1")], queue="elsewhere")

    assert bodies(amqp_url, "elsewhere") == [b"1"]


def test_a_message_that_the_broker_finds_too_long_is_refused(start_rabbitmq: Callable[..., RabbitMQ]) -> None:
    server = start_rabbitmq(configuration=["max_message_size = 1000"])
    url = server.url(server.vhost())
    producer = connect(Options(url=url)).producer()

    with pytest.raises(SendFailed, match="406") as raised:
        producer.send([item("long", bytes(2000))])
    producer.send([item("short", b"short")])
    producer.close()

    assert raised.value.refused == ("long",)
    assert bodies(url, "worker_any") == [b"short"]


def test_it_may_be_used_inside_an_event_loop(producer: Producer, amqp_url: str) -> None:
    async def send() -> list[str]:
        return producer.send([item("1")])

    assert asyncio.run(send()) == ["1"]
    assert bodies(amqp_url, "worker_any") == [b"{}"]


def test_it_may_be_used_after_a_fork_in_parent_and_child(producer: Producer, amqp_url: str) -> None:
    producer.send([item("0")])

    def in_the_child() -> None:
        producer.send([item("1")], reply=True)
        producer.close()
        os._exit(0 if producer.next_reply(timeout=0) is None else 1)

    child = multiprocessing.get_context("fork").Process(target=in_the_child)
    child.start()
    child.join(60)
    producer.send([item("2")])

    assert child.exitcode == 0
    assert len(bodies(amqp_url, "worker_any")) == 3


def test_closing_it_ends_what_others_are_sending(producer: Producer, amqp_url: str) -> None:
    async def test() -> None:
        with raw_channel(amqp_url) as channel:
            channel.queue_declare("full", durable=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
        sending = asyncio.create_task(asyncio.to_thread(producer.send, [item("1")], queue="full"))
        await asyncio.sleep(0.3)
        assert not sending.done()  # refused again and again
        await asyncio.to_thread(producer.close)
        with pytest.raises(BrokerError, match="closed"):
            await sending

    asyncio.run(test())


def test_it_may_be_used_again_after_it_was_closed(producer: Producer, amqp_url: str) -> None:
    producer.send([item("1")])
    producer.close()
    producer.close()

    producer.send([item("2")])

    assert len(bodies(amqp_url, "worker_any")) == 2
