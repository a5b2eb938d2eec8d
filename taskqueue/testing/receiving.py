"""How every broker lends workitems."""

from __future__ import annotations

import asyncio

import pytest

from taskqueue.errors import BrokerError
from taskqueue.outcome import Release
from taskqueue.testing.bench import QUEUE, Bench, item, items, settle, within
from taskqueue.workitem import worker_queue

__all__ = ["ReceivingContract"]


class ReceivingContract:
    """Sentences about consumers."""

    def test_receive_lends_first_what_was_sent_first_and_no_more_than_the_limit(self, bench: Bench) -> None:
        async def test() -> list[str]:
            consumer = bench.consumer(reserve=10)
            order: list[str] = []
            while len(order) < 25:
                deliveries = await consumer.receive(limit=4)
                assert 1 <= len(deliveries) <= 4
                assert all(delivery.queue == QUEUE for delivery in deliveries)
                order += [delivery.workitem.id for delivery in deliveries]
                await settle(consumer, deliveries)
            return order

        sent = bench.send(*items(25))

        assert bench.run(test) == sent

    def test_no_more_is_held_than_the_reserve_while_much_is_settled(self, bench: Bench) -> None:
        async def test() -> None:
            consumer = bench.consumer(reserve=20)
            settling: list[asyncio.Task[list[bool]]] = []
            while len(settling) < 400:
                for delivery in await consumer.receive(limit=20):
                    settling.append(asyncio.create_task(settle(consumer, [delivery])))
                    await asyncio.sleep(0.0005)  # some end while others are being settled
            await asyncio.gather(*settling)
            others = bench.another().consumer(QUEUE, reserve=1000)
            await bench.lent(others, 1000 - len(settling) - 20)

        bench.send(*items(1000))

        bench.run(test)

    def test_receive_waits_for_a_workitem(self, bench: Bench) -> None:
        async def test() -> str:
            receiving = asyncio.create_task(bench.lent(bench.consumer(), 1))
            assert await bench.is_empty(worker_queue("other"))
            assert not receiving.done()
            await asyncio.to_thread(bench.send, item(id="late"))
            (delivery,) = await receiving
            return delivery.workitem.id

        assert bench.run(test) == "late"

    def test_cancelling_receive_loses_nothing(self, bench: Bench) -> None:
        async def test() -> list[str]:
            consumer = bench.consumer(reserve=5)
            received: list[str] = []
            for turns in range(400):
                receiving = asyncio.create_task(consumer.receive(limit=2))
                for _ in range(turns % 7):
                    await asyncio.sleep(0)
                if turns % 20 == 19:
                    await asyncio.sleep(0.01)
                receiving.cancel()
                try:
                    deliveries = await receiving
                except asyncio.CancelledError:
                    continue
                received += [delivery.workitem.id for delivery in deliveries]
                await settle(consumer, deliveries)
            while len(received) < 40:
                deliveries = await consumer.receive(limit=10)
                received += [delivery.workitem.id for delivery in deliveries]
                await settle(consumer, deliveries)
            return received

        sent = bench.send(*items(40))

        assert sorted(bench.run(test)) == sorted(sent)

    def test_a_receive_that_is_cancelled_just_when_something_comes_has_ended(self, bench: Bench) -> None:
        """Else whoever stops to receive would go on without knowing it."""

        async def test() -> None:
            consumer = bench.consumer()
            for turns in range(8):
                receiving = asyncio.create_task(consumer.receive(limit=1))
                for _ in range(20):
                    await asyncio.sleep(0)
                bench.send(item())
                for _ in range(turns):
                    await asyncio.sleep(0)
                if receiving.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await receiving
                    deliveries = await bench.lent(consumer, 1)
                else:
                    deliveries = receiving.result()
                assert await settle(consumer, deliveries) == [True]

        bench.run(test)

    def test_what_is_lent_is_lent_to_nobody_else(self, bench: Bench) -> None:
        async def test() -> None:
            first, second = bench.consumer(reserve=3), bench.consumer(reserve=3)
            held = await bench.lent(first, 2)
            assert await bench.nothing_comes(second)
            assert await settle(first, held) == [True, True]

        bench.send(*items(2))
        bench.run(test)

    def test_two_consumers_share_a_queue(self, bench: Bench) -> None:
        async def test() -> None:
            hosts = [bench.broker, bench.another() if bench.broker.capabilities.several_hosts else bench.broker]
            consumers = [host.consumer(QUEUE, reserve=5) for host in hosts]
            batches = [await bench.lent(consumer, 5) for consumer in consumers]
            assert {d.workitem.id for batch in batches for d in batch} == {str(n) for n in range(10)}
            for consumer, batch in zip(consumers, batches, strict=True):
                assert await settle(consumer, batch) == [True] * 5

        bench.send(*items(10))
        bench.run(test)

    def test_the_larger_priority_is_lent_first(self, bench: Bench) -> None:
        if not bench.broker.capabilities.priorities:
            pytest.skip("this broker declares that it does not order by priority")
        bench.send(
            item(id="low", priority=1), item(id="none"), item(id="high", priority=9), item(id="low2", priority=1)
        )

        received = bench.run(lambda: bench.read(QUEUE, 4))

        assert [workitem.id for workitem in received] == ["high", "low", "low2", "none"]

    def test_resizing_keeps_what_is_lent_and_lends_more_or_less(self, bench: Bench) -> None:
        async def test() -> None:
            consumer = bench.consumer(reserve=2)
            held = await bench.lent(consumer, 2)
            consumer.resize(6)
            held += await bench.lent(consumer, 4)
            assert [delivery.workitem.id for delivery in held] == [str(n) for n in range(6)]
            consumer.resize(1)
            assert await settle(consumer, held) == [True] * 6
            rest: list[str] = []
            while len(rest) < 4:
                deliveries = await consumer.receive(limit=1)
                rest += [delivery.workitem.id for delivery in deliveries]
                assert await settle(consumer, deliveries) == [True]
            assert sorted(rest) == ["6", "7", "8", "9"]

        bench.send(*items(10))
        bench.run(test)

    def test_resizing_counts_also_while_the_first_receive_begins(self, bench: Bench) -> None:
        async def test() -> None:
            await bench.is_empty(worker_queue("other"))  # whatever is made the first time only is there
            for steps in range(12):
                consumer = bench.consumer(reserve=1)
                receiving = asyncio.create_task(bench.lent(consumer, 3))
                await asyncio.sleep(steps / 2000)
                consumer.resize(3)
                assert len(await receiving) == 3, f"resized after {steps / 2} ms"
                await consumer.close()

        bench.send(*items(3))
        bench.run(test)

    def test_pausing_gives_back_what_was_not_received(self, bench: Bench) -> None:
        async def test() -> None:
            first = bench.consumer(reserve=5)
            (held,) = await first.receive(limit=1)
            await first.pause()
            others = await bench.lent(bench.consumer(reserve=5), 4)
            assert [delivery.workitem.id for delivery in others] == ["1", "2", "3", "4"]
            assert await settle(first, [held]) == [True]

        bench.send(*items(5))
        bench.run(test)

    def test_receiving_goes_on_after_a_pause(self, bench: Bench) -> None:
        async def test() -> None:
            consumer = bench.consumer(reserve=2)
            held = await bench.lent(consumer, 1)
            await consumer.pause()
            await consumer.pause()
            held += await bench.lent(consumer, 1)
            assert [delivery.workitem.id for delivery in held] == ["0", "1"]
            assert await settle(consumer, held) == [True, True]

        bench.send(*items(2))
        bench.run(test)

    def test_a_receive_that_waits_goes_on_after_a_pause(self, bench: Bench) -> None:
        async def test() -> str:
            consumer = bench.consumer()
            receiving = asyncio.create_task(consumer.receive(limit=1))
            assert await bench.is_empty(worker_queue("other"))
            await consumer.pause()
            await asyncio.to_thread(bench.send, item(id="late"))
            (delivery,) = await receiving
            return delivery.workitem.id

        assert bench.run(test) == "late"

    def test_a_cancelled_receive_and_a_pause_hold_nothing_back(self, bench: Bench) -> None:
        async def test() -> None:
            for turns in range(6):
                consumer = bench.consumer(reserve=5)
                receiving = asyncio.create_task(consumer.receive(limit=1))
                await asyncio.sleep(turns * 0.002)
                receiving.cancel()
                await consumer.pause()
                if not receiving.cancelled():
                    await settle(consumer, (await receiving), Release())
            others = await bench.lent(bench.consumer(reserve=5), 2)
            assert {delivery.workitem.id for delivery in others} == {"0", "1"}

        bench.send(*items(2))
        bench.run(test)

    def test_closing_gives_everything_back(self, bench: Bench) -> None:
        async def test() -> list[str]:
            first = bench.consumer(reserve=5)
            await first.receive(limit=2)
            await first.close()
            await first.close()
            return [workitem.id for workitem in await bench.read(QUEUE, 5)]

        sent = bench.send(*items(5))

        assert bench.run(test) == sent

    def test_a_closed_consumer_lends_nothing(self, bench: Bench) -> None:
        async def test() -> None:
            consumer = bench.consumer()
            waiting = asyncio.create_task(consumer.receive(limit=1))
            assert await bench.is_empty(worker_queue("other"))
            await consumer.close()
            with pytest.raises(BrokerError, match="closed"):
                await waiting
            with pytest.raises(BrokerError, match="closed"):
                await consumer.receive(limit=1)

        bench.run(test)

    def test_a_broker_may_be_closed_twice(self, bench: Bench) -> None:
        async def test() -> None:
            await bench.is_empty(QUEUE)
            await bench.broker.close()

        bench.run(test)

    def test_opened_anew_it_is_the_same_place_in_another_event_loop_and_closing_that_ends_nothing_here(
        self, bench: Bench
    ) -> None:
        """As for a program in which several carriers run."""

        async def elsewhere() -> str:
            broker = bench.broker.anew()
            try:
                consumer = broker.consumer(QUEUE, reserve=1)
                deliveries = await bench.lent(consumer, 1)
                assert await settle(consumer, deliveries) == [True]
                return deliveries[0].workitem.id
            finally:
                await broker.close()

        async def test() -> list[str]:
            receiving = asyncio.create_task(bench.lent(bench.consumer(worker_queue("other")), 1))
            there = asyncio.create_task(asyncio.to_thread(lambda: within(elsewhere())))
            await asyncio.to_thread(bench.send, item(id="there"))
            found = await there
            await asyncio.to_thread(bench.send, item(id="here"), queue=worker_queue("other"))
            (delivery,) = await receiving
            return [found, delivery.workitem.id]

        assert bench.run(test) == ["there", "here"]

    def test_declaring_says_whether_the_queue_was_made(self, bench: Bench) -> None:
        async def test() -> list[bool]:
            broker, queue = bench.broker, worker_queue("new")
            return [await broker.exists(queue), await broker.declare(queue), await broker.declare(queue),
                    await broker.exists(queue)]  # fmt: skip

        assert bench.run(test) == [False, True, False, True]
