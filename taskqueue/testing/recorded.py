"""What a store does with results that it has in records: whoever reads the results queue sees no difference."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from taskqueue.broker import Ended
from taskqueue.outcome import Done, Failed, Payload, Rules, effects
from taskqueue.record import Run
from taskqueue.store import Store
from taskqueue.testing.bench import QUEUE, RULES, Bench, item
from taskqueue.workitem import Workitem, worker_queue

__all__ = ["RUN", "RecordedResultsContract"]

RUN = Run(host="host", user="user", pid=4711, started=1000.0, ended=1002.5, cpu=1.5, memory=1 << 20)
BY_RUN = replace(RULES, worker="host:4711")


class RecordedResultsContract:
    """Sentences about the results queue of work that ran and is recorded."""

    def test_a_result_is_read_as_it_would_have_been_sent(self, bench: Bench) -> None:
        bench.send(item(id="1", reference="order:1", attempt=2, headers={"mine": "not in the result"}))

        async def test() -> tuple[Workitem, Workitem, bool]:
            done = Done(Payload(b"[1]", "application/json"))
            consumer = bench.consumer()
            (delivery,) = await bench.lent(consumer, 1)
            await consumer.settle([Ended(delivery, done, BY_RUN, RUN)])
            (send,) = effects(delivery.workitem, done, BY_RUN, queue=QUEUE, now=0.0).sends
            (result,) = await bench.read("results")
            return result, send.workitem, await bench.is_empty("results")

        read, sent, empty = bench.run(test)
        assert read._replace(headers=dict(read.headers)) == sent
        assert empty

    def test_it_is_still_in_the_record_when_it_was_read(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        async def test() -> None:
            await self.succeed(bench, BY_RUN)
            await bench.read("results")

        bench.run(test)
        assert store.record(id).result == Payload(b"1")

    def test_results_come_in_the_order_in_which_they_ended_those_of_failures_too(self, bench: Bench) -> None:
        bench.send(*[item(id=str(n)) for n in range(4)])

        async def test() -> list[str]:
            consumer = bench.consumer()
            lent = await bench.lent(consumer, 4)
            for n in (2, 0, 3):
                await consumer.settle([Ended(lent[n], Done(Payload(b"%d" % n)), BY_RUN, RUN)])
            await consumer.settle([Ended(lent[1], Failed("no", "", Payload(b"no")), BY_RUN, RUN)])
            return [result.correlation_id for result in await bench.read("results", 4)]

        found = bench.run(test)
        assert [id for id in found if id != "1"] == ["2", "0", "3"]
        assert sorted(found) == ["0", "1", "2", "3"]

    def test_whoever_waits_for_results_gets_them(self, bench: Bench) -> None:
        bench.send(item(id="1"))

        async def test() -> str:
            reading = asyncio.create_task(bench.read("results"))
            await asyncio.sleep(0.2)
            await self.succeed(bench, BY_RUN)
            return (await reading)[0].correlation_id

        assert bench.run(test) == "1"

    def test_a_result_that_was_given_back_is_read_again(self, bench: Bench) -> None:
        bench.send(item(id="1"))

        async def test() -> list[Workitem]:
            await self.succeed(bench, BY_RUN)
            reader = bench.consumer("results")
            await bench.lent(reader, 1)
            await reader.close()
            return await bench.read("results")

        assert len(bench.run(test)) == 1

    def test_each_group_has_its_own_queue_and_another_worker_may_get_results_as_work(self, bench: Bench) -> None:
        bench.send(*[item(id=str(n)) for n in range(3)])

        async def test() -> list[str]:
            keys = ("results", "results.more", worker_queue("next"))
            await self.succeed(bench, *[replace(BY_RUN, results_routing_key=key) for key in keys])
            return [(await bench.read(key))[0].correlation_id for key in reversed(keys)]

        assert bench.run(test) == ["2", "1", "0"]

    def test_what_is_not_kept_is_sent(self, bench: Bench) -> None:
        bench.send(*[item(id=str(n)) for n in range(2)])

        async def test() -> list[bytes]:
            await self.succeed(bench, replace(BY_RUN, history="outcome"), replace(BY_RUN, history="off"))
            return [result.body for result in await bench.read("results", 2)]

        assert bench.run(test) == [b"1", b"1"]

    async def succeed(self, bench: Bench, *rules: Rules) -> None:
        """Receive as many workitems as there are rules, and let each succeed by its own."""
        consumer = bench.consumer()
        lent = await bench.lent(consumer, len(rules))
        ended = [Ended(delivery, Done(Payload(b"1")), rule, RUN) for delivery, rule in zip(lent, rules, strict=True)]
        assert await consumer.settle(ended) == [True] * len(rules)
        await consumer.close()
