"""Every fault of broker, connection and channel is waited out, and everything is built anew (promises 1, 4, 8)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from amqp import bodies, end, eventually, lent, put, raw_channel, run
from conftest import missing
from pika.exceptions import AMQPError
from servers import MissingService, RabbitMQ

from taskqueue.broker import Broker, Delivery, Options, connect
from taskqueue.brokers.amqp import consumer as consumer_module
from taskqueue.brokers.amqp import link
from taskqueue.brokers.amqp import producer as producer_module
from taskqueue.errors import BrokerUnavailable
from taskqueue.outcome import Done, Payload, Retry
from taskqueue.workitem import Workitem

pytestmark = [pytest.mark.timeout(240), pytest.mark.services]
RESULT = Done(Payload(b"1"))


def item(id: str, type: str = "any") -> Workitem:
    return Workitem(body=b"{}", type=type, id=id)


@pytest.fixture(scope="module")
def spare() -> Iterator[RabbitMQ]:
    """A broker to be killed, stopped and hung: running when a test begins, and when it ends."""
    try:
        server = RabbitMQ(configuration=["consumer_timeout = 3000", "frame_max = 8192"])
    except MissingService as reason:
        missing(reason)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "RETRY_MAXIMUM", 0.5)


@pytest.fixture
def ripe_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "RIPE", 0.0)


def test_a_delivery_is_acknowledged_only_after_its_result_has_been_confirmed(amqp_url: str, ripe_at_once: None) -> None:
    """Promise 1: the results queue does not exist, so the result can't be confirmed."""

    async def test(broker: Broker) -> None:
        await asyncio.to_thread(put, broker, item("1"))
        consumer = broker.consumer("worker_any", reserve=5)
        (delivery,) = await lent(consumer)
        settling = asyncio.create_task(end(consumer, delivery, RESULT, results_routing_key="elsewhere"))
        await asyncio.sleep(0.5)
        assert not settling.done()
        await consumer.close()  # whoever dies now gives it back
        assert not await settling
        (again,) = await lent(broker.consumer("worker_any", reserve=5))
        assert again.workitem.id == "1"

    run(test, amqp_url)


def test_a_result_waits_for_its_queue_and_its_task_is_not_run_again(amqp_url: str, ripe_at_once: None) -> None:
    async def test(broker: Broker) -> None:
        await asyncio.to_thread(put, broker, item("1"))
        consumer = broker.consumer("worker_any", reserve=5)
        (delivery,) = await lent(consumer)
        settling = asyncio.create_task(end(consumer, delivery, RESULT, results_routing_key="elsewhere"))
        others = asyncio.create_task(lent(broker.consumer("worker_any", reserve=5)))
        await asyncio.sleep(0.5)
        assert not settling.done()
        assert not others.done()
        with raw_channel(amqp_url) as channel:
            channel.queue_declare("elsewhere", durable=True)
        assert await settling
        assert not others.done()
        others.cancel()

    run(test, amqp_url)
    assert bodies(amqp_url, "elsewhere") == [b"1"]


def test_an_answer_whose_channel_is_gone_is_discarded(amqp_url: str, ripe_at_once: None) -> None:
    """Promise 4: somebody else has it, and nothing of the late answer is published."""

    async def test(broker: Broker) -> None:
        await asyncio.to_thread(put, broker, item("1"))
        await broker.declare("results")
        consumer = broker.consumer("worker_any", reserve=5)
        (late,) = await lent(consumer)
        consumer._session.channel.raw.close()  # type: ignore[attr-defined]
        (now,) = await lent(consumer)
        assert now.workitem.id == late.workitem.id
        assert not await end(consumer, late, RESULT, results_routing_key="results")
        assert late.lease.lost
        assert not now.lease.lost

    run(test, amqp_url)
    assert bodies(amqp_url, "results") == []


def test_a_consumer_receives_again_after_its_connection_was_lost(amqp_url: str, ripe_at_once: None) -> None:
    """Promise 8, without a server of its own."""

    async def test(broker: Broker) -> None:
        await asyncio.to_thread(put, broker, item("1"))
        consumer = broker.consumer("worker_any", reserve=5)
        await lent(consumer)
        receiving = asyncio.create_task(lent(consumer, 2))
        broker._link._connection.drop()  # type: ignore[attr-defined]
        await asyncio.to_thread(put, broker, item("2"))
        deliveries = await receiving
        assert {delivery.workitem.id for delivery in deliveries} == {"1", "2"}
        for delivery in deliveries:
            assert await end(consumer, delivery)

    run(test, amqp_url)


def test_restarts_and_cuts_lose_nothing(spare: RabbitMQ) -> None:
    server, url = spare, spare.url(spare.vhost())
    faults: list[Callable[[], object]] = [
        server.restart,
        lambda: (server.kill(), server.start()),
        lambda: server.ctl("close_all_connections", "--global", "an operator's wish"),
    ]

    async def test(broker: Broker) -> None:
        producer = broker.producer()
        await asyncio.to_thread(producer.send, [item("first")])
        await broker.declare("results")
        await asyncio.sleep(link.RIPE)
        consumer = broker.consumer("worker_any", reserve=5)
        for number, fault in enumerate(faults):
            before = await lent(consumer)
            fault()  # in the main thread: a server ends with the thread that started it
            await eventually(lambda before=before: before[0].lease.lost)
            await asyncio.to_thread(producer.send, [item(str(number))])
            after: dict[str, Delivery] = {}
            while len(after) < 2:
                for delivery in await lent(consumer):
                    if delivery.workitem.id in after:  # an interrupted send stores twice rather than never
                        assert await end(consumer, delivery)
                    else:
                        after[delivery.workitem.id] = delivery
            assert not await end(consumer, before[0], RESULT, results_routing_key="results")
            assert await end(consumer, after[str(number)], RESULT, results_routing_key="results")
            assert await end(consumer, after["first"], Retry(0.25))
        assert [d.workitem.id for d in await lent(consumer)] == ["first"]
        producer.close()

    run(test, url, heartbeat=2.0)
    assert bodies(url, "results") == [b"1"] * 3


def test_bodies_are_longer_than_the_frames_that_the_broker_allows(spare: RabbitMQ) -> None:
    body = os.urandom(100_000)

    async def test(broker: Broker) -> None:
        await asyncio.to_thread(put, broker, Workitem(body=body, type="any", id="1"))
        consumer = broker.consumer("worker_any", reserve=5)
        (delivery,) = await lent(consumer)
        assert broker._link._connection.params.frame_max == 8192  # type: ignore[attr-defined]
        assert delivery.workitem.body == body
        assert await end(consumer, delivery, Retry(0.25))
        (delivery,) = await lent(consumer)
        assert delivery.workitem.body == body

    run(test, spare.url(spare.vhost()))


def test_a_hung_broker_is_left_and_found_again(spare: RabbitMQ) -> None:
    server, url = spare, spare.url(spare.vhost())

    async def test(broker: Broker) -> None:
        await asyncio.to_thread(put, broker, item("1"))
        consumer = broker.consumer("worker_any", reserve=5)
        (before,) = await lent(consumer)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            await eventually(lambda: before.lease.lost)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        (after,) = await lent(consumer)
        assert after.workitem.id == "1"
        assert await end(consumer, after)

    run(test, url, heartbeat=2.0)


def test_a_memory_alarm_is_waited_out(spare: RabbitMQ, caplog: pytest.LogCaptureFixture) -> None:
    server, url = spare, spare.url(spare.vhost())

    async def test(broker: Broker) -> None:
        await broker.declare("results")
        await asyncio.to_thread(put, broker, item("1"), item("2"))
        await asyncio.sleep(link.RIPE)
        consumer = broker.consumer("worker_any", reserve=5)
        first, second = await lent(consumer, 2)
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "0.0000001")
        settling = [
            asyncio.create_task(end(consumer, delivery, RESULT, results_routing_key="results"))
            for delivery in (first, second)
        ]
        await eventually(lambda: "takes no messages" in caplog.text)
        assert not any(task.done() for task in settling)
        await asyncio.to_thread(server.ctl, "set_vm_memory_high_watermark", "0.6")
        assert await asyncio.gather(*settling) == [True, True]

    run(test, url)
    assert bodies(url, "results") == [b"1", b"1"]


def test_a_consumer_timeout_ends_one_channel_and_leaves_the_others_alone(spare: RabbitMQ) -> None:
    spare.eval("application:set_env(rabbit, channel_tick_interval, 500)")
    url = spare.url(spare.vhost())

    async def test(broker: Broker) -> None:
        await asyncio.to_thread(put, broker, item("slow"))
        slow, fast = broker.consumer("worker_any", reserve=5), broker.consumer("worker_other", reserve=5)
        (before,) = await lent(slow)
        receiving = asyncio.create_task(lent(slow))
        turns = 0
        while not before.lease.lost:
            await asyncio.to_thread(put, broker, item(str(turns), "other"))
            (held,) = await lent(fast)
            assert not held.lease.lost
            assert await end(fast, held)
            turns += 1
        await asyncio.to_thread(put, broker, item("last", "other"))
        (held,) = await lent(fast)
        (after,) = await receiving
        assert after.workitem.id == "slow"
        assert await end(slow, after)
        assert await end(fast, held)

    run(test, url)


def test_a_queue_that_is_deleted_under_its_consumer_is_made_again(amqp_url: str, ripe_at_once: None) -> None:
    async def test(broker: Broker) -> None:
        consumer, other = broker.consumer("worker_any", reserve=5), broker.consumer("worker_other", reserve=5)
        await asyncio.to_thread(put, broker, item("1"), item("held", "other"))
        (first,) = await lent(consumer)
        (held,) = await lent(other)
        receiving = asyncio.create_task(lent(consumer))
        with raw_channel(amqp_url) as channel:
            channel.queue_delete("worker_any")
        await eventually(lambda: first.lease.lost)
        await asyncio.to_thread(put, broker, item("2"))
        (second,) = await receiving
        assert second.workitem.id == "2"
        assert await end(consumer, second)
        assert await end(other, held)

    run(test, amqp_url)


@pytest.mark.parametrize("delay", [0.25, 0.3])
def test_a_delay_whose_exchange_is_gone_is_made_again(amqp_url: str, ripe_at_once: None, delay: float) -> None:
    async def test(broker: Broker) -> None:
        consumer = broker.consumer("worker_any", reserve=5)
        await asyncio.to_thread(put, broker, item("1"))
        (delivery,) = await lent(consumer)
        assert await end(consumer, delivery, Retry(delay))
        (delivery,) = await lent(consumer)
        with raw_channel(amqp_url) as channel:
            channel.exchange_delete("taskqueue.delay.250")
        assert not await end(consumer, delivery, Retry(delay))  # the channel ends with 404
        (delivery,) = await lent(consumer)
        assert await end(consumer, delivery, Retry(delay))
        (delivery,) = await lent(consumer)
        assert delivery.workitem.attempt == 3

    run(test, amqp_url)


def test_a_queue_with_other_arguments_is_used_as_it_is(amqp_url: str, ripe_at_once: None) -> None:
    with raw_channel(amqp_url) as channel:
        channel.queue_declare("worker_any", durable=True, arguments={"x-max-length": 1000})

    async def test(broker: Broker) -> None:
        assert not await broker.declare("worker_any")
        await asyncio.to_thread(put, broker, item("1"))
        consumer = broker.consumer("worker_any", reserve=5)
        assert await end(consumer, (await lent(consumer))[0])

    run(test, amqp_url)


@pytest.mark.parametrize("held", [0, 1])
def test_a_deaf_consumer_is_noticed(
    amqp_url: str, ripe_at_once: None, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr(consumer_module, "STALL_TIMEOUT", 0.5)

    async def test(broker: Broker) -> None:
        consumer = broker.consumer("worker_any", reserve=5)
        await asyncio.to_thread(put, broker, *[item(f"held{n}") for n in range(held)])
        receiving = asyncio.create_task(lent(consumer, held + 1))
        session = None
        while session is None or not session.consumer_tag or session.unacknowledged < held:
            session = consumer._session  # type: ignore[attr-defined]
            await asyncio.sleep(0.02)
        session.channel.raw.basic_cancel(session.consumer_tag)  # behind its back
        await asyncio.to_thread(put, broker, item("late"))
        deliveries = await receiving
        assert [delivery.workitem.id for delivery in deliveries] == [*["held0"][:held], "late"]
        for delivery in deliveries:
            assert await end(consumer, delivery)

    run(test, amqp_url)


def test_a_consumer_with_an_empty_queue_is_not_taken_for_deaf(
    amqp_url: str, ripe_at_once: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consumer_module, "STALL_TIMEOUT", 0.1)

    async def test(broker: Broker) -> None:
        consumer = broker.consumer("worker_any", reserve=5)
        receiving = asyncio.create_task(lent(consumer))
        await asyncio.sleep(0.6)
        await asyncio.to_thread(put, broker, item("1"))
        (delivery,) = await receiving
        assert await end(consumer, delivery)

    run(test, amqp_url)
    assert "channel ended" not in caplog.text


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
