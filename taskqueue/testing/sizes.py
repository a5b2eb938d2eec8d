"""Many that depend on one, one that depends on many, and what is sent meanwhile: sentences about every store."""

from __future__ import annotations

import threading
from itertools import pairwise

from taskqueue.broker import Ended, Input
from taskqueue.lifecycle import State
from taskqueue.outcome import Dead, Done, Failed, Payload
from taskqueue.store import Store
from taskqueue.testing.bench import LIMIT, QUEUE, RULES, TYPE, Bench, item
from taskqueue.testing.dependents import (
    LATER,
    ONE,
    assert_failed_by,
    blocked_on,
    finish,
    later,
    peek,
    requeue,
)
from taskqueue.testing.recorded import RUN
from taskqueue.upkeep import Keeping
from taskqueue.workitem import worker_queue

__all__ = ["SizesContract"]


class SizesContract:
    """Sentences about size.  many: how many depend on one, or one on."""

    many = 10_000

    def test_one_may_depend_on_many(self, bench: Bench, store: Store) -> None:
        ids = bench.send(*(item(b"%d" % n) for n in range(self.many)))
        bench.send(later("sum", *ids))

        async def test() -> tuple[Input, ...]:
            consumer, reader = bench.consumer(reserve=1000), bench.consumer(worker_queue(LATER))
            left = self.many
            while left:
                assert store.record("sum").state == State.BLOCKED
                lent = await consumer.receive(limit=1000)
                ended = [Ended(one, Done(Payload(one.workitem.body)), RULES, RUN) for one in lent]
                left -= sum(await consumer.settle(ended))
            (delivery,) = await bench.lent(reader, 1)
            assert all(await reader.settle([Ended(delivery, ONE, RULES, RUN)]))
            return delivery.inputs

        inputs = bench.run(test)
        assert [one.id for one in inputs] == ids
        assert [int(one.payload.body) for one in inputs if one.payload is not None] == list(range(self.many))

    def test_one_may_be_found_to_depend_on_many(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="first"))
        ids = bench.send(*(item(b"%d" % n) for n in range(self.many)))
        bench.send(later("sum", "first"))

        async def test() -> tuple[Input, ...]:
            broker = bench.another()
            consumer, reader = broker.consumer(QUEUE, reserve=1000), broker.consumer(worker_queue(LATER), reserve=1)
            left = 1 + self.many
            while left:
                lent = await consumer.receive(limit=1000)
                ended = [Ended(one, Done(Payload(one.workitem.body)), RULES, RUN) for one in lent]
                left -= sum(await consumer.settle(ended))
            (delivery,) = await bench.lent(reader, 1)
            assert await reader.settle([Ended(delivery, blocked_on(*ids), RULES, RUN)]) == [True]
            (delivery,) = await bench.lent(reader, 1)
            assert await reader.settle([Ended(delivery, Dead("rejected", "no"), RULES, RUN)]) == [True]
            await broker.close()
            return delivery.inputs

        inputs = bench.run_once(test)
        requeue(bench)

        assert [one.id for one in inputs] == ["first", *ids]
        assert [int(one.payload.body) for one in inputs[1:] if one.payload is not None] == list(range(self.many))
        assert peek(bench, LATER)[0].inputs == inputs

    def test_a_result_may_promise_many_and_go_with_them(self, bench: Bench, store: Store) -> None:
        brief = {"result_timeout": 0.0}
        bench.send(item(id="outer", headers=brief))
        ids = bench.send(*(item(headers=brief) for _ in range(self.many)))
        last: dict[str, tuple[str, ...]] = {one: (next,) for one, next in pairwise(ids[-1000:])}

        async def test() -> None:
            broker = bench.another()
            consumer = broker.consumer(QUEUE, reserve=1000)
            promises, left = {"outer": tuple(ids), **last}, 1 + self.many
            while left:
                lent = await consumer.receive(limit=1000)
                ended = [Ended(one, Done(promises=promises.get(one.workitem.id, ())), RULES, RUN) for one in lent]
                left -= sum(await consumer.settle(ended))
            await broker.close()

        bench.run_once(test)

        assert store.maintain(Keeping()).results >= self.many

    def test_many_may_depend_on_one(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"))
        bench.send(*(later(f"{n}", "a") for n in range(self.many)))
        before = store.record("0").state, store.record(f"{self.many - 1}").state

        finish(bench, {"a": ONE})

        assert before == (State.BLOCKED, State.BLOCKED)
        assert store.count(LATER) == self.many
        assert {store.record(f"{n}").state for n in range(0, self.many, 997)} == {State.WAITING}
        assert [one.inputs for one in peek(bench, LATER, 3)] == [
            (Input("a", TYPE, State.SUCCEEDED, Payload(b"1")),)
        ] * 3

    def test_many_may_fail_with_one(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"))
        ids = bench.send(*(later(f"{n}", "a") for n in range(self.many)))

        finish(bench, {"a": Failed("no")})

        assert store.count(LATER) == 0
        for id in (ids[0], ids[-1]):
            assert_failed_by(store.record(id), f"a of {TYPE}: failed: no")

    def test_a_chain_of_a_thousand_fails_with_its_root(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="0"), *(later(f"{n}", f"{n - 1}") for n in range(1, 1001)))

        finish(bench, {"0": Failed("no")})

        assert_failed_by(store.record("1000"), f"0 of {TYPE}: failed: no")
        assert store.count(LATER) == 0

    def test_what_is_sent_while_the_other_ends_is_never_forgotten(self, bench: Bench, store: Store) -> None:
        rounds = 60
        ids = bench.send(*(item(id=str(n)) for n in range(rounds)))
        producer = bench.producer()

        def send() -> None:
            for id in ids:
                producer.send([later(f"after {id}", id)])

        async def test() -> list[str]:
            consumer, reader = bench.consumer(reserve=1), bench.consumer(worker_queue(LATER), reserve=rounds)
            sending = threading.Thread(target=send)
            sending.start()
            for _ in range(rounds):
                (delivery,) = await bench.lent(consumer, 1)
                assert await consumer.settle([Ended(delivery, ONE, RULES, RUN)]) == [True]
            lent = await bench.lent(reader, rounds)
            sending.join(LIMIT)
            return [delivery.inputs[0].id for delivery in lent]

        assert sorted(bench.run(test)) == sorted(ids)
