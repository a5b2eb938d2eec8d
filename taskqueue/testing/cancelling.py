"""What somebody wants no more, wherever it is: sentences about every store."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence

import pytest

from taskqueue.broker import Delivery, Ended, Underway
from taskqueue.dead import requeued
from taskqueue.lifecycle import State
from taskqueue.outcome import Cancelled, Crashed, Done, Failed, Forward, Outcome, Payload, Release, Retry
from taskqueue.record import Record
from taskqueue.store import Store
from taskqueue.testing.bench import LIMIT, QUEUE, QUIET, RULES, TYPE, Bench, item
from taskqueue.testing.recorded import RUN
from taskqueue.upkeep import Keeping
from taskqueue.workitem import DEAD_LETTERS, INCOMING

__all__ = ["CancellingContract"]

ONE = Done(Payload(b"1"))
AGAIN = (
    (Retry(0.0, "OSError"), ["failed"]),
    (Retry(3600.0, "OSError"), ["failed"]),
    (Retry(0.0, "later", "attempt"), ["retry"]),
    (Crashed("SIGSEGV"), ["crashed"]),
    (Release(), ["released"]),
)
"""Outcomes after which it would be lent again, and the attempts that are remembered."""


class CancellingContract:
    """Sentences about `Store.cancel` of what a carrier has."""

    def test_what_a_carrier_has_is_reported_to_it_until_it_is_settled(self, bench: Bench, store: Store) -> None:
        _, wanted_no_more = bench.send(item(), item())

        async def test() -> list[Sequence[Delivery]]:
            consumer = bench.consumer()
            first, second = await bench.lent(consumer, 2)
            found = [await consumer.report([Underway(first, RUN), Underway(second, RUN)])]
            assert store.cancel(wanted_no_more)
            assert store.cancel(wanted_no_more)
            assert store.record(wanted_no_more).state == State.RUNNING
            found += [await consumer.report([Underway(first, RUN)]), await consumer.report([])]
            await consumer.settle([Ended(second, Cancelled("SIGTERM"), RULES, RUN)])
            found.append(await consumer.report([]))
            assert [list(ones) for ones in found] == [[], [second], [second], []]
            return found

        bench.run(test)
        record = store.record(wanted_no_more)
        (attempt,) = record.attempts
        assert (record.state, record.running, record.result) == (State.CANCELLED, None, None)
        assert (attempt.outcome, attempt.error, attempt.run, attempt.again) == ("cancelled", "SIGTERM", RUN, None)
        assert record.ended is not None and record.ended >= record.sent
        assert not store.cancel(wanted_no_more)

    def test_another_consumers_deliveries_are_its_own(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b", type="another"))

        async def test() -> list[list[str]]:
            one, another = bench.consumer(), bench.another().consumer("worker_another", reserve=1)
            await bench.lent(one, 1)
            await bench.lent(another, 1)
            store.cancel("a")
            return [[delivery.workitem.id for delivery in await each.report([])] for each in (one, another)]

        assert bench.run(test) == [["a"], []]

    def test_one_that_never_started_has_no_attempt_and_leaves_nothing_behind(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        async def test() -> tuple[bool, bool]:
            consumer = bench.consumer()
            (delivery,) = await bench.lent(consumer, 1)
            store.cancel(id)
            assert await consumer.settle([Ended(delivery, Cancelled(), RULES)]) == [True]
            return await bench.is_empty(DEAD_LETTERS), await bench.is_empty("results")

        assert bench.run(test) == (True, True)
        assert (store.record(id).state, store.record(id).attempts) == (State.CANCELLED, ())

    def test_whoever_waits_for_the_result_hears_of_it(self, bench: Bench) -> None:
        producer = bench.producer()
        producer.send([item(id="a")], reply=True)

        async def test() -> None:
            consumer = bench.consumer()
            ended = [Ended(one, Cancelled("SIGKILL"), RULES, RUN) for one in await bench.lent(consumer, 1)]
            assert await consumer.settle(ended) == [True]

        bench.run(test)
        reply = producer.next_reply(timeout=10.0)
        assert reply is not None
        assert (reply.correlation_id, reply.headers["status"]) == ("a", "failed")
        assert reply.headers["error"] == "cancelled: SIGKILL"

    @pytest.mark.parametrize(("outcome", "attempts"), AGAIN, ids=lambda value: str(value)[:20])
    def test_what_would_be_lent_again_is_over_instead(
        self, bench: Bench, store: Store, outcome: Outcome, attempts: list[str]
    ) -> None:
        (id,) = bench.send(item())

        async def test() -> bool:
            consumer = bench.consumer()
            (delivery,) = await bench.lent(consumer, 1)
            store.cancel(id)
            assert await consumer.settle([Ended(delivery, outcome, RULES, RUN)]) == [True]
            return await bench.nothing_comes(consumer)

        assert bench.run(test)
        record = store.record(id)
        assert (record.state, [attempt.outcome for attempt in record.attempts]) == (State.CANCELLED, attempts)
        assert not store.cancel(id)

    def test_what_a_dispatcher_has_is_not_forwarded(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item(type=""), queue=INCOMING)

        async def test() -> bool:
            consumer = bench.consumer(INCOMING)
            (delivery,) = await bench.lent(consumer, 1)
            store.cancel(id)
            await consumer.settle([Ended(delivery, Forward(item(id=id)), RULES)])
            return await bench.is_empty(QUEUE)

        assert bench.run(test)
        assert store.record(id).state == State.CANCELLED

    def test_what_a_carrier_gave_back_is_not_lent_to_another_one(self, bench: Bench, store: Store) -> None:
        ran, held = bench.send(item(), item())

        async def lose() -> None:
            broker = bench.another()
            consumer = broker.consumer(QUEUE, reserve=2)
            first, _ = await bench.lent(consumer, 2)
            await consumer.report([Underway(first, RUN)])
            assert store.cancel(ran) and store.cancel(held)
            await broker.close()

        bench.run_once(lose)

        async def test() -> bool:
            return await bench.nothing_comes(bench.consumer())

        assert bench.run(test)
        assert self.told(store, ran, held) == [(State.CANCELLED, ["lost"]), (State.CANCELLED, [])]

    def test_chores_end_it_where_nobody_works(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        async def lose() -> None:
            broker = bench.another()
            consumer = broker.consumer(QUEUE, reserve=1)
            await bench.lent(consumer, 1)
            store.cancel(id)
            await broker.close()

        bench.run_once(lose)
        store.maintain(Keeping())

        assert store.record(id).state == State.CANCELLED

    @pytest.mark.parametrize(
        ("outcome", "state"), [(ONE, State.SUCCEEDED), (Failed("no"), State.FAILED)], ids=["done", "failed"]
    )
    def test_what_has_ended_in_time_stays_so_and_its_id_may_be_used_again(
        self, bench: Bench, store: Store, outcome: Outcome, state: State
    ) -> None:
        (id,) = bench.send(item())

        async def test() -> Record:
            consumer = bench.consumer()
            (delivery,) = await bench.lent(consumer, 1)
            store.cancel(id)
            assert await consumer.settle([Ended(delivery, outcome, RULES, RUN)]) == [True]
            before = store.record(id)
            bench.send(item(id=id))
            (again,) = await bench.lent(consumer, 1)
            assert list(await consumer.report([])) == []
            assert await consumer.settle([Ended(again, Retry(0.0), RULES, RUN)]) == [True]
            await bench.lent(consumer, 1)
            return before

        assert bench.run(test).state == state

    def test_a_dead_letter_that_is_requeued_is_wanted_again(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        async def test() -> None:
            consumer = bench.consumer()
            (delivery,) = await bench.lent(consumer, 1)
            store.cancel(id)
            await consumer.settle([Ended(delivery, Failed("no"), RULES, RUN)])
            view = bench.dead_letters()
            ended = [Ended(letter, requeued(letter.workitem)) async for letter in view.look()]
            assert await view.settle(ended) == [True]
            await bench.lent(consumer, 1)

        bench.run(test)

    def test_what_depends_on_it_ends_when_it_has_ended_and_not_before(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b", after=("a",)), item(id="c", after=("a",), headers={"on_error": "pass"}))

        async def test() -> list[State]:
            consumer = bench.consumer(reserve=1)
            (delivery,) = await bench.lent(consumer, 1)
            store.cancel("a")
            before = store.record("b").state
            await consumer.settle([Ended(delivery, Cancelled("E: x"), RULES, RUN)])
            (passed,) = await bench.lent(consumer, 1)
            (found,) = passed.inputs
            assert (passed.workitem.id, found.state, found.error, found.traceback) == ("c", State.CANCELLED, "", "")
            return [before, store.record("b").state]

        assert bench.run(test) == [State.BLOCKED, State.FAILED]
        assert store.record("b").attempts[0].error == f"a of {TYPE}: cancelled"

    def test_hundreds_at_once(self, bench: Bench, store: Store) -> None:
        ids = bench.send(*(item() for _ in range(600)))

        async def test() -> tuple[int, bool]:
            consumer = bench.consumer(reserve=500)
            lent = await bench.lent(consumer, 500)
            assert all(store.cancel(id) for id in ids)
            unwanted = await consumer.report([])
            await consumer.settle([Ended(one, Retry(0.0), RULES, RUN) for one in lent])
            return len(unwanted), await bench.nothing_comes(consumer)

        assert bench.run(test) == (500, True)
        assert {record.state for record in store.history(limit=1000)} == {State.CANCELLED}

    def test_what_is_tried_again_and_again_ends_soon_after_it_is_wanted_no_more(
        self, bench: Bench, store: Store
    ) -> None:
        ids = bench.send(*(item() for _ in range(20)))
        left = set(ids)
        cancelling = threading.Thread(target=lambda: [store.cancel(id) for id in ids])

        async def test() -> None:
            consumer = bench.consumer(reserve=20)
            cancelling.start()
            while left:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(QUIET):
                        lent = await consumer.receive(limit=20)
                        await consumer.settle([Ended(one, Retry(0.0), RULES, RUN) for one in lent])
                left.difference_update(id for id in ids if store.record(id).state == State.CANCELLED)

        bench.run(test)
        cancelling.join(LIMIT)
        assert not any(store.cancel(id) for id in ids)

    def told(self, store: Store, *ids: str) -> list[tuple[State, list[str]]]:
        """Of each its state, and what became of its attempts."""
        records = [store.record(id) for id in ids]
        return [(record.state, [attempt.outcome for attempt in record.attempts]) for record in records]
