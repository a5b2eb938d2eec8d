"""The contract suite: sentences about every broker."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from taskqueue.broker import Broker
from taskqueue.errors import BrokerError
from taskqueue.outcome import (
    Crashed,
    Dead,
    Done,
    Failed,
    Forward,
    Outcome,
    Payload,
    Release,
    Retry,
    Rules,
    Send,
    TimedOut,
)
from taskqueue.testing.bench import LIMIT, TYPE, Bench, settle
from taskqueue.workitem import DEAD_LETTERS, DROPPED, INCOMING, Workitem, worker_queue

__all__ = ["BrokerContract"]

QUEUE = worker_queue(TYPE)
RULES = Rules(results_routing_key="results", max_crashes=3)
HEADERS: dict[str, object] = {
    "text": "Grüße ☃",
    "empty": "",
    "yes": True,
    "no": False,
    "small": -7,
    "large": 1 << 40,
    "float": 0.1,
    "bytes": b"\x00\xff",
    "none": None,
    "decimal": Decimal("12.34"),
    "time": datetime(2026, 11, 21, 12, 0, tzinfo=UTC),
    "list": [1, "two", [3.5, None]],
    "table": {"a": {"b": [True, {"c": "d"}]}},
}


def item(body: bytes | str = b"{}", **properties: object) -> Workitem:
    """A workitem of the test's type."""
    workitem = Workitem(body=body.encode() if isinstance(body, str) else body, type=TYPE)
    return replace(workitem, **properties)  # type: ignore[arg-type]


def items(count: int) -> list[Workitem]:
    """Workitems with the ids 0, 1, ..."""
    return [item(str(n), id=str(n)) for n in range(count)]


@pytest.mark.timeout(4 * LIMIT)
class BrokerContract:
    """Subclass it with a fixture `broker_factory`: see `taskqueue.testing`."""

    @pytest.fixture
    def broker_factory(self) -> Callable[[], Broker]:
        """A function that returns one more broker object on the same place, which is empty at first."""
        raise NotImplementedError("the subclass says which broker is tested")

    @pytest.fixture
    def bench(self, broker_factory: Callable[[], Broker]) -> Iterator[Bench]:
        bench = Bench(broker_factory)
        yield bench
        bench.close()

    # Sending

    def test_send_stores_all_and_returns_their_ids_in_order(self, bench: Bench) -> None:
        sent = bench.send(*items(250))

        received = bench.run(lambda: bench.read(QUEUE, 250))

        assert sent == [str(n) for n in range(250)]
        assert [workitem.id for workitem in received] == sent

    def test_send_makes_ids_where_they_are_missing(self, bench: Bench) -> None:
        first, named, second = bench.send(item(), item(id="mine"), item())

        received = bench.run(lambda: bench.read(QUEUE, 3))

        assert [workitem.id for workitem in received] == [first, "mine", second]
        assert len({first, second, ""}) == 3
        assert named == "mine"

    def test_nothing_is_sent_when_there_is_nothing_to_send(self, bench: Bench) -> None:
        assert bench.send() == []

    def test_a_workitem_without_a_type_goes_to_the_queue_that_is_named(self, bench: Bench) -> None:
        bench.send(Workitem(body=b"x", content_type="text/plain"), queue=INCOMING)

        (received,) = bench.run(lambda: bench.read(INCOMING))

        assert (received.body, received.type, received.content_type) == (b"x", "", "text/plain")

    def test_all_properties_survive(self, bench: Bench) -> None:
        sent = item(
            b"body",
            id="id",
            content_type="application/json",
            content_encoding="utf-8",
            headers=HEADERS,
            correlation_id="correlated",
            reply_to="somewhere",
            expiration=3600.5,
            timestamp=1_700_000_000,
            priority=3,
            reference="order:4711",
            attempt=4,
            crashes=2,
            failures=1,
            others={"type": "t", "app_id": "a", "cluster_id": "c"},
        )
        bench.send(sent)

        (received,) = bench.run(lambda: bench.read(QUEUE))

        assert received == sent

    @pytest.mark.parametrize("body", [b"", b"\x00\xff" * 1000, bytes(1 << 20)], ids=["empty", "binary", "large"])
    def test_a_body_arrives_as_it_was(self, bench: Bench, body: bytes) -> None:
        bench.send(item(body))

        (received,) = bench.run(lambda: bench.read(QUEUE))

        assert received.body == body

    def test_threads_may_share_a_producer(self, bench: Bench) -> None:
        producer = bench.producer()
        threads = [
            threading.Thread(target=lambda n=n: producer.send([item(id=f"{n}.{m}") for m in range(20)]))
            for n in range(5)
        ]

        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        received = bench.run(lambda: bench.read(QUEUE, 100))

        assert {workitem.id for workitem in received} == {f"{n}.{m}" for n in range(5) for m in range(20)}

    def test_a_producer_may_be_closed_twice(self, bench: Bench) -> None:
        producer = bench.producer()
        producer.send([item()])

        producer.close()
        producer.close()

    # Receiving

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

    def test_declaring_says_whether_the_queue_was_made(self, bench: Bench) -> None:
        async def test() -> list[bool]:
            broker, queue = bench.broker, worker_queue("new")
            return [await broker.exists(queue), await broker.declare(queue), await broker.declare(queue),
                    await broker.exists(queue)]  # fmt: skip

        assert bench.run(test) == [False, True, False, True]

    # Settling

    async def ended(self, bench: Bench, outcome: Outcome, rules: Rules = RULES) -> None:
        """Receive one workitem and end it."""
        consumer = bench.consumer()
        assert await settle(consumer, await bench.lent(consumer, 1), outcome, rules) == [True]
        await consumer.close()

    def test_a_result_goes_to_the_results_key_and_to_whoever_waits_for_it(self, bench: Bench) -> None:
        async def test() -> None:
            await self.ended(bench, Done(Payload(b"[1]", "application/json")))
            (result,) = await bench.read("results")
            assert (result.body, result.content_type, result.correlation_id) == (b"[1]", "application/json", "1")
            assert result.headers["status"] == "succeeded"
            told = {"worker_type": result.type, "reference": result.reference, **result.headers}
            assert (told["worker_type"], told["reference"], told["attempt"]) == (TYPE, "order:1", 2)
            (reply,) = await bench.read(worker_queue("client"))
            assert (reply.body, reply.correlation_id) == (b"[1]", "question")
            assert await bench.is_empty(QUEUE)

        bench.send(
            item(id="1", correlation_id="question", reply_to=worker_queue("client"), reference="order:1", attempt=2)
        )
        bench.run(test)

    def test_a_result_of_none_is_not_sent(self, bench: Bench) -> None:
        async def test() -> None:
            await self.ended(bench, Done(None))
            assert await bench.is_empty("results")
            assert await bench.is_empty(QUEUE)

        bench.send(item(id="1", reply_to="results"))
        bench.run(test)

    def test_what_a_handler_published_is_stored_with_its_result(self, bench: Bench) -> None:
        async def test() -> None:
            sends = (Send(worker_queue("a"), item("1", id="x")), Send(worker_queue("b"), item("2", id="y")))
            await self.ended(bench, Done(Payload(b"3"), sends))
            bodies = [(await bench.read(queue))[0].body for queue in (worker_queue("a"), worker_queue("b"), "results")]
            assert bodies == [b"1", b"2", b"3"]

        bench.send(item(id="1"))
        bench.run(test)

    def test_a_missing_reply_queue_harms_nobody(self, bench: Bench) -> None:
        async def test() -> None:
            await self.ended(bench, Done(Payload(b"1")))
            assert (await bench.read("results"))[0].correlation_id == "1"
            assert await bench.is_empty(QUEUE)

        bench.send(item(id="1", reply_to="reply.of.a.client.that.left"))
        bench.run(test)

    def test_a_failure_is_a_result_and_a_dead_letter(self, bench: Bench) -> None:
        async def test() -> None:
            await self.ended(bench, Failed("KeyError: 'x'", "Traceback ...", Payload(b"null")))
            (result,) = await bench.read("results")
            assert result.correlation_id == "1"
            assert (result.headers["status"], result.headers["error"]) == ("failed", "KeyError: 'x'")
            assert result.headers["traceback"] == "Traceback ..."
            (dead,) = await bench.read(DEAD_LETTERS)
            assert (dead.id, dead.body, dead.type, dead.reference) == ("1", b"work", TYPE, "order:1")
            told = {name: dead.headers[name] for name in ("reason", "detail", "attempts", "crashes", "from", "mine")}
            assert told == {"reason": "failed", "detail": "KeyError: 'x'", "attempts": 3, "crashes": 1, "from": QUEUE,
                            "mine": "kept"}  # fmt: skip
            assert await bench.is_empty(QUEUE)

        bench.send(item(b"work", id="1", reference="order:1", attempt=3, crashes=1, headers={"mine": "kept"}))
        bench.run(test)

    def test_without_dead_letters_there_is_only_the_result(self, bench: Bench) -> None:
        async def test() -> None:
            await self.ended(bench, Failed("no"), replace(RULES, dead_letters=False))
            assert (await bench.read("results"))[0].headers["error"] == "no"
            assert await bench.is_empty(DEAD_LETTERS)

        bench.send(item(id="1"))
        bench.run(test)

    @pytest.mark.parametrize(
        ("counts", "attempt", "failures"), [("failure", 2, 1), ("attempt", 2, 0), ("nothing", 1, 0)]
    )
    def test_a_retry_counts_what_it_says(self, bench: Bench, counts: str, attempt: int, failures: int) -> None:
        async def test() -> Workitem:
            await self.ended(bench, Retry(0, "again", counts))  # type: ignore[arg-type]
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
            (delivery,) = await asyncio.wait_for(bench.lent(consumer, 1), 10.0)
            return delivery.workitem.id

        bench.send(item(id="late"))
        assert bench.run(test) == "other"

    def test_a_crash_is_counted_and_tried_again(self, bench: Bench) -> None:
        async def test() -> list[Workitem]:
            await self.ended(bench, Crashed("SIGSEGV"))
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
            await self.ended(bench, outcome)
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
            passed_on = replace(delivery.workitem, type="other", body=b"bare", reference="order:1")
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

        bench.send(*(replace(workitem, attempt=2, crashes=1) for workitem in items(5)))
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

    # Replies

    def test_a_reply_comes_back_to_its_producer(self, bench: Bench) -> None:
        producer, other = bench.producer(), bench.producer()
        other.send([item(id="others")], queue=worker_queue("other"), reply=True)

        sent = producer.send([item(id="1"), item(id="2", correlation_id="mine")], reply=True)

        async def test() -> None:
            consumer = bench.consumer()
            deliveries = await bench.lent(consumer, 2)
            for delivery in deliveries:
                answer = Payload(delivery.workitem.id.encode())
                assert await settle(consumer, [delivery], Done(answer), RULES) == [True]

        bench.run(test)
        replies = [producer.next_reply(timeout=LIMIT) for _ in sent]

        assert {(r.correlation_id, r.body) for r in replies if r is not None} == {("1", b"1"), ("mine", b"2")}
        assert producer.next_reply(timeout=0.05) is None
        assert other.next_reply(timeout=0) is None
