"""A quorum queue is relied upon only once it survives its broker's death, whoever made it (promise 1)."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest
from amqp import end, eventually, item, lent, put, raw_channel, run
from pika.exceptions import AMQPError
from servers import RabbitMQ

from taskqueue.broker import Broker, Options, connect
from taskqueue.brokers.amqp import link
from taskqueue.brokers.amqp import producer as producer_module
from taskqueue.errors import BrokerUnavailable
from taskqueue.outcome import Done, Payload, Retry

pytestmark = [pytest.mark.timeout(240), pytest.mark.services]
RESULT = Done(Payload(b"1"))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "RETRY_MAXIMUM", 0.5)


def test_nothing_is_published_to_a_new_quorum_queue_until_it_is_ripe(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 1: a queue that its broker's death destroys takes what was confirmed with it."""
    monkeypatch.setattr(link, "RIPE", 3600.0)

    async def test(broker: Broker) -> None:
        consumer = broker.consumer("worker_any", reserve=5)
        with raw_channel(amqp_url) as channel:
            channel.queue_declare("worker_any", durable=True)
            for body in (b"1", b"2", b"3"):
                channel.basic_publish("", "worker_any", body)
        first, second, third = await lent(consumer, 3)
        results = asyncio.create_task(end(consumer, first, RESULT, results_routing_key="results"))
        retry = asyncio.create_task(end(consumer, second, Retry(0.25)))
        while not await broker.exists("results") or not await broker.exists("taskqueue.delay.250"):
            await asyncio.sleep(0.02)
        assert await end(consumer, third)  # whose effects are on no new queue
        assert not results.done()
        assert not retry.done()
        assert count(amqp_url, "results") == count(amqp_url, "taskqueue.delay.250") == 0
        await consumer.close()
        assert await asyncio.gather(results, retry) == [False, False]
        again = await lent(broker.consumer("worker_any", reserve=5), 2)
        assert {delivery.workitem.body for delivery in again} == {b"1", b"2"}

    run(test, amqp_url)


def test_the_new_quorum_queue_of_somebody_else_is_not_relied_upon_either(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "RIPE", 3600.0)
    with raw_channel(amqp_url) as channel:
        for queue in ("worker_any", "results"):
            channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", "worker_any", b"1")
        channel.basic_publish("", "worker_any", b"2")

    async def test(broker: Broker) -> None:
        consumer = broker.consumer("worker_any", reserve=5)
        result, retried = await lent(consumer, 2)
        settling = asyncio.create_task(end(consumer, result, RESULT, results_routing_key="results"))
        retrying = asyncio.create_task(end(consumer, retried, Retry(0.25)))
        await asyncio.sleep(0.5)
        assert not settling.done()
        assert not retrying.done()

    run(test, amqp_url)
    assert count(amqp_url, "results") == 0
    assert count(amqp_url, "worker_any") == 2


@pytest.mark.parametrize("maker", ["us", "somebody else"])
def test_send_returns_when_a_new_quorum_queue_is_ripe(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch, maker: str
) -> None:
    monkeypatch.setattr(link, "RIPE", 0.6)
    if maker != "us":
        with raw_channel(amqp_url) as channel:
            channel.queue_declare("worker_any", durable=True, arguments={"x-queue-type": "quorum"})
    producer = connect(Options(url=amqp_url)).producer()
    begun = time.monotonic()

    producer.send([item("1")])
    waited = time.monotonic() - begun
    begun = time.monotonic()
    producer.send([item("2")])
    waited_again = time.monotonic() - begun
    producer.close()

    assert waited >= 0.6
    assert waited_again < 0.6
    assert count(amqp_url, "worker_any") == 2


def test_who_finds_a_ripe_queue_does_not_wait(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = connect(Options(url=amqp_url)).producer()
    first.send([item("1")])
    first.close()
    monkeypatch.setattr(link, "RIPE", 3600.0)
    second = connect(Options(url=amqp_url)).producer()

    second.send([item("2")])
    second.close()

    assert count(amqp_url, "worker_any") == 2


def test_what_was_sent_to_a_queue_that_another_has_just_made_survives_the_death_of_the_broker(
    spare: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 1, with a real kill in the second in which RabbitMQ loses a new queue."""
    monkeypatch.setattr(link, "PROBE_TIMEOUT", 3.0)
    url = spare.url(spare.vhost())

    async def test(maker: Broker) -> None:
        await maker.declare("worker_any")
        producer = connect(Options(url=url)).producer()
        sending = asyncio.create_task(asyncio.to_thread(producer.send, [item("1")]))
        await asyncio.sleep(0.3)  # long enough for a send to a queue that is trusted
        spare.kill()
        spare.start()
        await sending
        producer.close()
        assert {"1"} <= {delivery.workitem.id for delivery in await lent(maker.consumer("worker_any", reserve=5))}

    run(test, url)


def test_a_new_queue_that_died_with_its_broker_is_made_anew(
    spare: RabbitMQ, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PROBE_TIMEOUT", 3.0)
    url = spare.url(spare.vhost())

    async def test(broker: Broker) -> None:
        for attempt in range(5):
            queue = f"worker_{attempt}"
            await broker.declare(queue)
            spare.kill()  # RabbitMQ 3.10: the queue is dead for good
            spare.start()
            await eventually(lambda queue=queue: not broker._link.routed(queue))  # type: ignore[attr-defined]
            if not await asyncio.to_thread(answers, url, queue):
                break
        else:
            pytest.skip("this RabbitMQ keeps new queues")
        await broker.declare(queue)
        assert f"queue {queue} was made just before the broker died, and is dead" in caplog.text
        await asyncio.to_thread(put, broker, item("1", str(attempt)))
        consumer = broker.consumer(queue, reserve=5)
        (delivery,) = await lent(consumer)
        assert await end(consumer, delivery)

    run(test, url)


def test_the_dead_queue_of_somebody_else_is_named_and_left_alone(
    spare: RabbitMQ, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PROBE_TIMEOUT", 1.0)
    monkeypatch.setattr(producer_module, "SEND_TIMEOUT", 5.0)
    url = spare.url(spare.vhost())
    for attempt in range(5):
        queue = f"worker_{attempt}"
        with contextlib.suppress(AMQPError), raw_channel(url) as channel:
            channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
            spare.kill()
        spare.start()
        if not answers(url, queue):
            break
    else:
        pytest.skip("this RabbitMQ keeps new queues")

    async def test(broker: Broker) -> None:
        producer = broker.producer()
        sending = asyncio.create_task(asyncio.to_thread(producer.send, [item("1", str(attempt))]))
        await eventually(lambda: sending.done())
        with pytest.raises(
            BrokerUnavailable,
            match=f"not confirmed within 5 s.*does not answer.* rabbitmqctl delete_queue -p .* {queue}",
        ):
            await sending
        producer.close()
        assert await broker.exists(queue)

    run(test, url)


def answers(url: str, queue: str) -> bool:
    """Whether `queue` lets itself be consumed; a dead one says nothing."""
    answered = threading.Event()

    def consume() -> None:
        with contextlib.suppress(AMQPError), raw_channel(url) as channel:
            channel.basic_consume(queue, lambda *_: None)
            answered.set()

    threading.Thread(target=consume, daemon=True).start()
    return answered.wait(3)


def count(url: str, queue: str) -> int:
    with raw_channel(url) as channel:
        return int(channel.queue_declare(queue, passive=True).method.message_count)
