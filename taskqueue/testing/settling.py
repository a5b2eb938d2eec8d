"""What every broker does with retries, crashes, releases and answers that come late."""

from __future__ import annotations

import asyncio
import time

import pytest

from taskqueue.broker import Delivery
from taskqueue.outcome import (
    Crashed,
    Dead,
    Done,
    Forward,
    Outcome,
    Payload,
    Release,
    Retry,
    TimedOut,
)
from taskqueue.testing.bench import QUEUE, RULES, Bench, item, items, settle
from taskqueue.workitem import DEAD_LETTERS, DROPPED, INCOMING, Workitem, worker_queue

__all__ = ["SettlingContract"]


class SettlingContract:
    """Sentences about workitems that go on."""

    @pytest.mark.parametrize(
        ("counts", "attempt", "failures"), [("failure", 2, 1), ("attempt", 2, 0), ("nothing", 1, 0)]
    )
    def test_a_retry_counts_what_it_says(self, bench: Bench, counts: str, attempt: int, failures: int) -> None:
        async def test() -> Workitem:
            await bench.end_one(Retry(0, "again", counts))  # type: ignore[arg-type]
            (again,) = await bench.read(QUEUE)
            return again

        bench.send(item(b"work", id="1", reference="order:1", headers={"mine": "kept"}))
        again = bench.run(test)

        assert (again.id, again.body, again.reference, again.headers) == ("1", b"work", "order:1", {"mine": "kept"})
        assert (again.attempt, again.failures, again.crashes) == (attempt, failures, 0)

    @pytest.mark.parametrize("delay", [0.3, 0.5, 1.1])
    def test_a_delayed_retry_is_lent_when_it_is_due(self, bench: Bench, delay: float) -> None:
        async def test() -> None:
            consumer = bench.consumer(reserve=1)
            delivery = await bench.lent(consumer, 1)
            assert delivery[0].workitem.id == "late"
            before = time.time()
            assert await settle(consumer, delivery, Retry(delay)) == [True]
            (other,) = await bench.lent(consumer, 1)
            assert other.workitem.id == "other"
            assert await settle(consumer, [other]) == [True]
            (late,) = await bench.lent(consumer, 1)
            assert late.workitem.id == "late"
            assert time.time() - before >= delay - 0.05
            assert late.workitem.expiration == 60
            await settle(consumer, [late])
            assert await bench.is_empty(QUEUE)

        bench.send(item(id="late", expiration=60.0), item(id="other"))
        bench.run(test)

    def test_what_is_delayed_takes_no_room(self, bench: Bench) -> None:
        async def test() -> str:
            consumer = bench.consumer(reserve=1)
            await settle(consumer, await bench.lent(consumer, 1), Retry(20.0))
            await asyncio.to_thread(bench.send, item(id="other"))
            async with asyncio.timeout(10.0):
                (delivery,) = await bench.lent(consumer, 1)
            return delivery.workitem.id

        bench.send(item(id="late"))
        assert bench.run(test) == "other"

    def test_a_crash_is_counted_and_tried_again(self, bench: Bench) -> None:
        async def test() -> list[Workitem]:
            await bench.end_one(Crashed("SIGSEGV"))
            consumer = bench.consumer()
            (second,) = await bench.lent(consumer, 1)
            await settle(consumer, [second], Crashed("SIGSEGV"), RULES)
            (third,) = await bench.lent(consumer, 1)
            await settle(consumer, [third], Crashed("SIGSEGV"), RULES)
            await consumer.close()
            return [second.workitem, third.workitem, *await bench.read("results"), *await bench.read(DEAD_LETTERS)]

        bench.send(item(b"work", id="1"))
        second, third, result, dead = bench.run(test)

        assert [(w.id, w.crashes, w.attempt) for w in (second, third)] == [("1", 1, 2), ("1", 2, 3)]
        assert (result.headers["status"], result.headers["error"]) == ("failed", "worker process crashed: SIGSEGV")
        assert (dead.id, dead.body) == ("1", b"work")
        assert (dead.headers["reason"], dead.headers["detail"], dead.headers["crashes"]) == ("crashed", "SIGSEGV", 3)

    @pytest.mark.parametrize(
        ("outcome", "reason", "detail"),
        [
            (TimedOut(1.5), "timed out", "time limit of 1.5 s"),
            (Dead("rejected", "not like this"), "rejected", "not like this"),
            (Dead("malformed", "no type"), "malformed", "no type"),
        ],
    )
    def test_what_is_given_up_is_a_dead_letter(self, bench: Bench, outcome: Outcome, reason: str, detail: str) -> None:
        async def test() -> None:
            await bench.end_one(outcome)
            (dead,) = await bench.read(DEAD_LETTERS)
            assert (dead.id, dead.body) == ("1", b"work")
            assert (dead.headers["reason"], dead.headers["detail"]) == (reason, detail)
            (result,) = await bench.read("results")
            assert result.headers["status"] == "failed"
            assert await bench.is_empty(QUEUE)

        bench.send(item(b"work", id="1"))
        bench.run(test)

    def test_forwarding_passes_the_workitem_on_to_the_queue_of_its_type(self, bench: Bench) -> None:
        async def test() -> None:
            consumer = bench.consumer(INCOMING)
            (delivery,) = await bench.lent(consumer, 1)
            passed_on = delivery.workitem._replace(type="other", body=b"bare", reference="order:1")
            assert await settle(consumer, [delivery], Forward(passed_on)) == [True]
            await consumer.close()
            (received,) = await bench.read(worker_queue("other"))
            assert (received.id, received.type, received.body) == ("1", "other", b"bare")
            assert (received.reference, received.headers["mine"]) == ("order:1", "kept")
            assert await bench.is_empty(INCOMING)

        bench.send(Workitem(body=b"other bare", id="1", headers={"mine": "kept"}), queue=INCOMING)
        bench.run(test)

    def test_a_release_counts_as_nothing(self, bench: Bench) -> None:
        async def test() -> list[Workitem]:
            consumer = bench.consumer(reserve=3)
            held = await bench.lent(consumer, 3)
            assert await settle(consumer, held, Release()) == [True] * 3
            received: list[Workitem] = []
            while len(received) < 5:
                deliveries = await consumer.receive(limit=1)
                received += [delivery.workitem for delivery in deliveries]
                await settle(consumer, deliveries)
            return received

        bench.send(*(workitem._replace(attempt=2, crashes=1) for workitem in items(5)))
        received = bench.run(test)

        # Its place is not promised: a quorum queue puts what is given back behind all others.
        assert sorted(workitem.id for workitem in received) == ["0", "1", "2", "3", "4"]
        assert {(workitem.attempt, workitem.crashes) for workitem in received} == {(2, 1)}

    def test_a_batch_may_end_in_different_ways(self, bench: Bench) -> None:
        async def test() -> None:
            consumer = bench.consumer()
            first, second, third = await bench.lent(consumer, 3)
            counted = [
                *await settle(consumer, [third], Done(Payload(b"3")), RULES),
                *await settle(consumer, [first], Retry(0)),
                *await settle(consumer, [second], Dead("rejected"), RULES),
            ]
            assert counted == [True] * 3
            await consumer.close()
            assert [w.id for w in await bench.read(QUEUE)] == ["0"]
            assert {w.correlation_id for w in await bench.read("results", 2)} == {"1", "2"}

        bench.send(*items(3))
        bench.run(test)

    def test_settling_twice_counts_once(self, bench: Bench) -> None:
        async def test() -> None:
            consumer = bench.consumer()
            (delivery,) = await bench.lent(consumer, 1)
            at_once = await asyncio.gather(
                settle(consumer, [delivery], Done(Payload(b"1")), RULES),
                settle(consumer, [delivery], Done(Payload(b"2")), RULES),
            )
            assert sorted(at_once) == [[False], [True]]
            assert await settle(consumer, [delivery], Done(Payload(b"3")), RULES) == [False]
            await asyncio.to_thread(bench.send, item(id="next"))
            assert [d.workitem.id for d in await bench.lent(consumer, 1)] == ["next"]
            assert len(await bench.read("results")) == 1
            assert await bench.is_empty("results")

        bench.send(item(id="1"))
        bench.run(test)

    def test_a_late_answer_loses(self, bench: Bench) -> None:
        async def test() -> None:
            first = bench.consumer()
            late = await bench.lent(first, 1)
            await first.close()
            second = bench.consumer()
            now = await bench.lent(second, 1)
            assert await settle(first, late, Done(Payload(b'"late"')), RULES) == [False]
            assert await settle(second, late, Done(Payload(b'"late"')), RULES) == [False]
            assert await settle(second, now, Done(Payload(b'"now"')), RULES) == [True]
            assert [result.body for result in await bench.read("results")] == [b'"now"']
            assert await bench.is_empty("results")
            assert late[0].lease.lost

        bench.send(item(id="1"))
        bench.run(test)

    def test_it_expires_by_the_time_from_when_it_is_due(self, bench: Bench) -> None:
        async def test() -> list[Delivery]:
            return await bench.lent(bench.consumer(), 1)

        bench.send(item(id="later", due=time.time() + 2.5, expiration=2.4))
        assert [delivery.workitem.id for delivery in bench.run(test)] == ["later"]

    def test_what_expires_is_kept_for_the_dispatcher(self, bench: Bench) -> None:
        async def test() -> Workitem:
            await asyncio.sleep(0.05)
            assert await bench.is_empty(QUEUE)
            (dropped,) = await bench.read(DROPPED)
            return dropped

        bench.send(item(b"work", id="1", expiration=0.01, headers={"mine": "kept"}))
        dropped = bench.run(test)

        assert (dropped.id, dropped.body, dropped.headers["mine"]) == ("1", b"work", "kept")
        deaths = dropped.headers["x-death"]
        assert isinstance(deaths, list)
        assert (deaths[0]["reason"], deaths[0]["queue"]) == ("expired", QUEUE)
