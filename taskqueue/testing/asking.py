"""What a program asks a store for while it waits for many: sentences about every store."""

from __future__ import annotations

import threading

import pytest

from taskqueue.broker import Ended
from taskqueue.errors import DuplicateTask
from taskqueue.lifecycle import State
from taskqueue.outcome import Done, Payload
from taskqueue.store import Store
from taskqueue.testing.bench import LIMIT, QUEUE, QUIET, RULES, TYPE, Bench, item
from taskqueue.workitem import Workitem

__all__ = ["AskingContract"]

FAR = 4_000_000_000.0  # POSIX seconds that no test lives to see


class AskingContract:
    """Sentences about ids that are used once, about bells, and about what waits."""

    # An id that is to be unique.

    @pytest.mark.parametrize(
        "there",
        [item(id="x"), item(id="x", due=FAR), item(id="x", after=("a",))],
        ids=["waiting", "scheduled", "blocked"],
    )
    def test_the_id_of_what_has_not_ended_is_a_duplicate_and_nothing_is_sent(
        self, bench: Bench, store: Store, there: Workitem
    ) -> None:
        bench.send(item(id="a"), there)

        with pytest.raises(DuplicateTask) as raised:
            bench.producer().send([item(id="y"), item(id="x")], unique=True)

        assert raised.value.id == "x"
        assert sorted(record.id for record in store.history()) == ["a", "x"]

    def test_what_is_lent_has_not_ended_and_what_has_ended_is_no_duplicate(self, bench: Bench, store: Store) -> None:
        producer = bench.producer()
        producer.send([item(id="x")], unique=True)

        async def test() -> None:
            consumer = bench.consumer()
            (delivery,) = await bench.lent(consumer, 1)
            with pytest.raises(DuplicateTask):
                producer.send([item(id="x")], unique=True)
            await consumer.settle([Ended(delivery, Done(Payload(b"1")), RULES)])
            producer.send([item(id="x")], unique=True)

        bench.run(test)
        assert store.record("x").state == State.WAITING

    def test_an_id_may_not_come_twice_in_a_call(self, bench: Bench, store: Store) -> None:
        with pytest.raises(DuplicateTask, match="workitem x was sent before, and has not ended yet"):
            bench.producer().send([item(id="x"), item(), item(), item(id="x")], unique=True)

        assert store.history() == []

    def test_of_many_who_send_the_same_id_at_once_one_succeeds(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="before"))
        sent: list[str] = []

        def send() -> None:
            producer = bench.broker.producer()
            for n in range(10):
                try:
                    sent.extend(producer.send([item(id=f"x{n}")], unique=True))
                except DuplicateTask:
                    continue
            producer.close()

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)

        assert sorted(sent) == [f"x{n}" for n in range(10)]
        assert len(store.history()) == 11

    # What has ended.

    def test_of_many_it_says_which_have_ended_and_which_are_unknown(self, bench: Bench, store: Store) -> None:
        ids = bench.send(*(item() for _ in range(5)))
        self.end_some(bench, 3)

        found = store.ended([*ids, "never-sent", ids[0]])

        assert found.keys() == {*ids[:3], "never-sent"}
        assert found["never-sent"] is None
        assert [found[id] for id in ids[:3]] == [store.record(id) for id in ids[:3]]
        assert store.ended([]) == {}

    def test_what_was_sent_again_has_not_ended(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="x"))
        self.end_some(bench, 1)
        bench.send(item(id="x"))

        assert store.ended(["x"]) == {}

    def test_many_thousands_may_be_asked_for_at_once(self, bench: Bench, store: Store) -> None:
        ids = bench.send(*(item() for _ in range(20_000)))

        found = store.ended([*ids, *(f"unknown {n}" for n in range(20_000))])

        assert len(found) == 20_000
        assert ids[0] not in found

    def test_a_bell_rings_when_something_ends_also_before_it_is_waited_at(self, bench: Bench, store: Store) -> None:
        bench.send(item(), item())
        bell = store.bell()
        quiet = bell.wait(0.0)

        self.end_some(bench, 1)

        assert not quiet
        assert bell.wait(LIMIT)
        rung: list[bool] = []
        waiting = threading.Thread(target=lambda: rung.append(bell.wait(None)))
        waiting.start()
        self.end_some(bench, 1)
        waiting.join(LIMIT)
        assert rung == [True]
        bell.close()

    def test_a_bell_does_not_ring_while_nothing_ends(self, bench: Bench, store: Store) -> None:
        bell = store.bell()

        assert not bell.wait(QUIET)
        bell.close()

    def test_closing_a_bell_ends_its_waiting(self, store: Store) -> None:
        bell = store.bell()
        rung: list[bool] = []
        waiting = threading.Thread(target=lambda: rung.append(bell.wait(None)))
        waiting.start()

        bell.close()
        waiting.join(LIMIT)
        bell.close()

        assert rung == [False]

    # What waits.

    def test_count_is_of_what_has_neither_ended_nor_is_lent(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b"), item(due=FAR), item(after=("a",)), item(type="another"))

        async def test() -> int:
            (delivery,) = await bench.lent(bench.consumer(reserve=1), 1)
            assert delivery.workitem.id == "a"
            return store.count(TYPE)

        assert store.count(TYPE) == 4
        assert bench.run(test) == 3
        assert (store.count("another"), store.count("third")) == (1, 0)

    def test_discarding_cancels_what_has_neither_ended_nor_is_lent(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="lent"), item(id="a"), item(id="due", due=FAR), item(id="b", after=("lent",)))
        bench.send(item(id="c", after=("a",)), item(id="other", type="another"), item(type="another", after=("a",)))

        async def test() -> int:
            await bench.lent(bench.consumer(reserve=1), 1)
            return store.discard(TYPE)

        assert bench.run(test) == 4
        states = {record.id: record.state for record in store.history(type=TYPE)}
        assert states == {"lent": State.WAITING, **dict.fromkeys(("a", "due", "b", "c"), State.CANCELLED)}
        assert [record.state for record in store.history(type="another")] == [State.FAILED, State.WAITING]
        assert store.discard(TYPE) == 1

    def test_thousands_are_discarded(self, bench: Bench, store: Store) -> None:
        bench.send(*(item() for _ in range(5000)))

        assert store.discard(TYPE) == 5000
        assert store.count(TYPE) == 0

    def end_some(self, bench: Bench, count: int) -> None:
        """End the first workitems that wait."""

        async def work() -> None:
            broker = bench.another()
            consumer = broker.consumer(QUEUE, reserve=count)
            ended = [Ended(one, Done(Payload(b"1")), RULES) for one in await bench.lent(consumer, count)]
            assert await consumer.settle(ended) == [True] * count
            await broker.close()

        bench.run_once(work)
