"""Every fault of broker, connection and channel is waited out, and everything is built anew (promises 1, 4, 8)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import pytest
from amqp import bodies, end, eventually, item, lent, put, raw_channel, run
from servers import RabbitMQ

from taskqueue.broker import Broker, Delivery
from taskqueue.brokers.amqp import consumer as consumer_module
from taskqueue.brokers.amqp import link
from taskqueue.outcome import Done, Payload, Retry
from taskqueue.workitem import Workitem

pytestmark = [pytest.mark.timeout(240), pytest.mark.services]
RESULT = Done(Payload(b"1"))


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


def test_an_outage_is_said_in_one_line_without_the_password_and_so_is_its_end(spare: RabbitMQ) -> None:
    """Though nothing is consumed."""

    async def test(broker: Broker) -> None:
        told: asyncio.Queue[str] = asyncio.Queue()
        broker.watch(told.put_nowait)
        assert await told.get() == ""

        await asyncio.to_thread(spare.kill)

        lost = await told.get()
        refused = await told.get()
        assert "lost" in lost and "refused" in refused
        for sentence in (lost, refused):
            assert "\n" not in sentence and "sesame" not in sentence

        await asyncio.to_thread(spare.start)

        while await told.get():
            pass

    run(test, spare.url())
