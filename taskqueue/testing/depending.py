"""Workitems that wait for others: sentences about every store."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from taskqueue.broker import Delivery, Ended, Input
from taskqueue.dead import requeued
from taskqueue.errors import UnknownTask
from taskqueue.lifecycle import State
from taskqueue.outcome import Crashed, Dead, Done, Failed, Outcome, Payload, Release, Retry, Rules, TimedOut
from taskqueue.record import DEPENDENCY, Record
from taskqueue.store import Store
from taskqueue.testing.bench import LIMIT, RULES, TYPE, Bench, item
from taskqueue.testing.recorded import RUN
from taskqueue.upkeep import Keeping
from taskqueue.workitem import DEAD_LETTERS, Workitem, worker_queue

__all__ = ["DependingContract"]

FAR = 4_000_000_000.0  # POSIX seconds that no test lives to see
LATER = "contract.later"
"""The type of what depends on others, where they are to be told apart."""
ONE = Done(Payload(b"1"))


def later(id: str, *after: str, on_error: str = "", **properties: Any) -> Workitem:
    """A workitem of another type that depends on others."""
    headers = {"on_error": on_error} if on_error else {}
    return item(id=id, type=LATER, after=after, headers=headers, **properties)


class DependingContract:
    """Sentences about dependencies.  many: how many depend, or are depended on, where it is about size."""

    many = 10_000

    def test_it_is_blocked_until_all_have_ended_and_gets_their_results_in_order(
        self, bench: Bench, store: Store
    ) -> None:
        bench.send(item(id="a"), item(id="b"))
        bench.send(later("c", "b", "a"))

        self.finish(bench, {"a": Done(Payload(b"A", "text/plain"))})
        half = store.record("c").state, self.nothing_comes(bench, LATER)
        self.finish(bench, {"b": Done(Payload(b"[2]"))})

        assert half == (State.BLOCKED, True)
        assert store.record("c").state == State.WAITING
        (delivery,) = self.peek(bench, LATER)
        assert delivery.workitem.after == ("b", "a")
        assert delivery.inputs == (
            Input("b", TYPE, State.SUCCEEDED, Payload(b"[2]")),
            Input("a", TYPE, State.SUCCEEDED, Payload(b"A", "text/plain")),
        )

    def test_what_has_ended_before_counts_at_once(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b"))
        self.finish(bench, {"a": ONE, "b": ONE})

        bench.send(later("c", "a", "b", "a"))

        assert store.record("c").state == State.WAITING
        assert [found.id for found in self.peek(bench, LATER)[0].inputs] == ["a", "b", "a"]

    def test_what_depends_on_nothing_has_no_inputs(self, bench: Bench) -> None:
        bench.send(item(id="a"))

        (delivery,) = self.peek(bench, TYPE)

        assert (delivery.inputs, delivery.workitem.after) == ((), ())

    def test_what_is_sent_for_later_is_scheduled_when_all_have_ended(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("c", "a", due=FAR))

        before = store.record("c").state
        self.finish(bench, {"a": ONE})

        assert (before, store.record("c").state) == (State.BLOCKED, State.SCHEDULED)

    def test_ids_that_come_earlier_in_the_same_call_are_known(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("b", "a"), later("c", "b", "a"))

        assert [store.record(id).state for id in "abc"] == [State.WAITING, State.BLOCKED, State.BLOCKED]

    @pytest.mark.parametrize(
        "sent",
        [
            [item(id="a"), later("b", "a", "never-sent")],
            [later("b", "never-sent"), item(id="never-sent")],
            [later("never-sent", "never-sent")],
        ],
        ids=["never", "later", "itself"],
    )
    def test_to_depend_on_an_id_that_never_was_is_an_error_and_nothing_is_sent(
        self, bench: Bench, store: Store, sent: list[Workitem]
    ) -> None:
        with pytest.raises(UnknownTask, match="never-sent"):
            bench.send(*sent)

        assert store.history() == []

    # Every end counts.

    @pytest.mark.parametrize(
        ("outcome", "state", "error"),
        [
            (Failed("ValueError: x", "Traceback ..."), State.FAILED, "ValueError: x"),
            (TimedOut(5.0), State.DEAD, "timed out: time limit of 5 s"),
            (Dead("rejected", "not mine"), State.DEAD, "rejected: not mine"),
            (Done(None), State.SUCCEEDED, "no result is kept"),
            (None, State.CANCELLED, ""),
        ],
        ids=lambda value: str(value) if isinstance(value, State) else "",
    )
    def test_whatever_is_no_success_with_a_result_is_passed_or_is_the_reason_of_a_failure(
        self, bench: Bench, store: Store, outcome: Outcome | None, state: State, error: str
    ) -> None:
        bench.send(item(id="a"), later("passed", "a", on_error="pass"), later("failing", "a"))

        if outcome is None:
            store.cancel("a")
        else:
            self.finish(bench, {"a": outcome})

        traceback = "Traceback ..." if state == State.FAILED else ""
        told = "" if state == State.SUCCEEDED else error
        assert self.peek(bench, LATER)[0].inputs == (Input("a", TYPE, state, None, told, traceback),)
        self.assert_failed_by(store.record("failing"), f"a of {TYPE}: {state}{error and f': {error}'}")

    def test_what_expired_has_ended(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a", expiration=0.0), later("passed", "a", on_error="pass"), later("failing", "a"))

        assert self.nothing_comes(bench, TYPE)

        assert self.peek(bench, LATER)[0].inputs == (Input("a", TYPE, State.EXPIRED, None),)
        self.assert_failed_by(store.record("failing"), f"a of {TYPE}: expired")

    def test_one_crash_too_many_has_ended_and_those_before_have_not(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("c", "a"))

        for _ in range(RULES.max_crashes - 1):
            self.finish(bench, {"a": Crashed("SIGSEGV")})
        before = store.record("c").state
        self.finish(bench, {"a": Crashed("SIGSEGV")})

        assert before == State.BLOCKED
        self.assert_failed_by(store.record("c"), f"a of {TYPE}: dead: crashed: SIGSEGV")

    def test_what_failed_before_counts_at_once(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b"))
        self.finish(bench, {"a": Failed("no")})

        bench.send(later("failing", "b", "a"), later("blocked", "b", "a", on_error="pass"), later("next", "failing"))

        self.assert_failed_by(store.record("failing"), f"a of {TYPE}: failed: no")
        self.assert_failed_by(store.record("next"), f"a of {TYPE}: failed: no")
        assert store.record("blocked").state == State.BLOCKED

    def test_the_root_is_named_through_any_number_of_levels(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("b", "a"), later("c", "b"), later("d", "c", on_error="pass"))

        self.finish(bench, {"a": Failed("ValueError: x", "Traceback ...")})
        bench.send(later("e", "c"))

        root = f"a of {TYPE}: failed: ValueError: x"
        for id in "bce":
            self.assert_failed_by(store.record(id), root)
        assert self.peek(bench, LATER)[0].inputs == (Input("c", LATER, State.FAILED, None, root),)

    def test_what_fails_with_others_is_no_dead_letter_and_tells_only_who_waits_for_it(self, bench: Bench) -> None:
        producer = bench.producer()
        bench.send(item(id="a"))
        producer.send([later("c", "a", correlation_id="mine")], reply=True)
        self.finish(bench, {"a": Failed("no")}, Rules(dead_letters=False))

        reply = producer.next_reply(timeout=LIMIT)

        assert reply is not None
        assert (reply.correlation_id, reply.headers["status"]) == ("mine", "failed")
        assert reply.headers["error"] == f"a of {TYPE}: failed: no"
        assert self.nothing_in(bench, DEAD_LETTERS)
        assert self.nothing_in(bench, "results")

    def test_one_that_is_cancelled_while_it_is_blocked_counts_for_others_and_is_never_lent(
        self, bench: Bench, store: Store
    ) -> None:
        bench.send(item(id="a"), later("b", "a"), later("c", "b"))

        assert store.cancel("b")
        self.finish(bench, {"a": ONE})

        assert store.record("b").state == State.CANCELLED
        self.assert_failed_by(store.record("c"), f"b of {LATER}: cancelled")
        assert self.nothing_comes(bench, LATER)

    def test_time_goes_on_for_what_is_blocked(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("b", "a", expiration=0.0), later("c", "b"))

        assert self.nothing_comes(bench, LATER)
        store.maintain(Keeping())

        assert store.record("b").state == State.EXPIRED
        self.assert_failed_by(store.record("c"), f"b of {LATER}: expired")

    # Inputs stay as long as they are needed.

    @pytest.mark.parametrize("outcome", [Retry(0.0, "again"), Crashed("SIGKILL"), None], ids=["retry", "crash", "lost"])
    def test_every_attempt_has_the_inputs(self, bench: Bench, store: Store, outcome: Outcome | None) -> None:
        bench.send(item(id="a"), later("c", "a"))
        self.finish(bench, {"a": ONE})

        if outcome is None:
            self.peek(bench, LATER)
        else:
            self.finish(bench, {"c": outcome}, type=LATER)

        assert [found.payload for found in self.peek(bench, LATER)[0].inputs] == [Payload(b"1")]

    def test_a_dead_letter_that_is_requeued_has_the_inputs(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a", headers={"result_timeout": 0.0}), later("c", "a"))
        self.finish(bench, {"a": ONE})
        self.finish(bench, {"c": Failed("no")}, type=LATER)
        store.maintain(Keeping())

        self.requeue(bench)

        assert store.record("c").state == State.WAITING
        (delivery,) = self.peek(bench, LATER)
        assert delivery.workitem.after == ("a",)
        assert [found.payload for found in delivery.inputs] == [Payload(b"1")]

    def test_a_dead_letter_that_is_requeued_waits_for_what_was_requeued(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("c", "a", on_error="pass"))
        self.finish(bench, {"a": Failed("no")})
        self.finish(bench, {"c": Failed("no")}, type=LATER)

        self.requeue(bench)
        between = store.record("c").state
        self.finish(bench, {"a": ONE})

        assert between == State.BLOCKED
        assert [found.payload for found in self.peek(bench, LATER)[0].inputs] == [Payload(b"1")]

    def test_an_end_of_a_second_life_does_not_count_again(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b"), later("c", "a", "b", on_error="pass"))
        self.finish(bench, {"a": Failed("no")})

        self.requeue(bench)
        self.finish(bench, {"b": None, "a": ONE})

        assert store.record("c").state == State.BLOCKED

    # Results that are not kept.

    @pytest.mark.parametrize("timeout", [0, 0.0])
    def test_a_result_is_gone_after_its_timeout_and_the_record_stays(
        self, bench: Bench, store: Store, timeout: float
    ) -> None:
        headers = {"result_timeout": timeout}
        bench.send(item(id="a", headers=headers), item(id="b", headers={"result_timeout": 3600.0}))
        self.finish(bench, {"a": ONE, "b": ONE})

        before, dropped, then = store.record("a"), store.maintain(Keeping()).results, store.record("a")

        assert (before.state, before.result, dropped) == (State.SUCCEEDED, None, 1)
        assert (then.state, then.result, len(then.attempts)) == (State.SUCCEEDED, None, 1)
        assert store.record("b").result == Payload(b"1")
        bench.send(later("c", "a"))
        self.assert_failed_by(store.record("c"), f"a of {TYPE}: succeeded: no result is kept")

    def test_a_result_stays_for_those_that_were_sent_before_it_ended(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a", headers={"result_timeout": 0.0}), item(id="b"), later("c", "a", "b"))
        self.finish(bench, {"a": ONE})

        dropped = [store.maintain(Keeping()).results]
        self.finish(bench, {"b": ONE})
        assert [found.payload for found in self.peek(bench, LATER)[0].inputs] == [Payload(b"1")] * 2
        self.finish(bench, {"c": ONE}, type=LATER)
        dropped.append(store.maintain(Keeping()).results)

        assert dropped in ([0, 1], [1, 0])  # it may be kept beside the record
        assert store.record("a").result is None

    def test_a_result_that_nobody_wants_is_neither_kept_nor_sent(self, bench: Bench, store: Store) -> None:
        headers = {"ignore_result": True}
        bench.send(item(id="a", headers=headers), item(id="b", headers=headers, reply_to="results"), later("c", "a"))

        self.finish(bench, {"a": ONE, "b": Failed("no")}, run=True)

        assert (store.record("a").state, store.record("a").result) == (State.SUCCEEDED, None)
        self.assert_failed_by(store.record("c"), f"a of {TYPE}: succeeded: no result is kept")
        assert self.nothing_in(bench, "results")

    @pytest.mark.parametrize("history", ["outcome", "off"])
    def test_what_a_group_does_not_keep_can_be_waited_for(self, bench: Bench, store: Store, history: str) -> None:
        rules = Rules(history=history)  # type: ignore[arg-type]
        bench.send(item(id="a"), item(id="b"), later("failing", "a"), later("passed", "a", "b", on_error="pass"))

        self.finish(bench, {"a": ONE, "b": Failed("no")}, rules)

        self.assert_failed_by(store.record("failing"), f"a of {TYPE}: succeeded: no result is kept")
        found = self.peek(bench, LATER)[0].inputs
        assert [(one.type, one.state, one.payload) for one in found] == [
            (TYPE, State.SUCCEEDED, None), (TYPE, State.FAILED, None),
        ]  # fmt: skip

    # Size, and many at once.

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

    def test_many_may_depend_on_one(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"))
        bench.send(*(later(f"{n}", "a") for n in range(self.many)))
        before = store.record("0").state, store.record(f"{self.many - 1}").state

        self.finish(bench, {"a": ONE})

        assert before == (State.BLOCKED, State.BLOCKED)
        assert store.count(LATER) == self.many
        assert {store.record(f"{n}").state for n in range(0, self.many, 997)} == {State.WAITING}
        assert [one.inputs for one in self.peek(bench, LATER, 3)] == [
            (Input("a", TYPE, State.SUCCEEDED, Payload(b"1")),)
        ] * 3

    def test_many_may_fail_with_one(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"))
        ids = bench.send(*(later(f"{n}", "a") for n in range(self.many)))

        self.finish(bench, {"a": Failed("no")})

        assert store.count(LATER) == 0
        for id in (ids[0], ids[-1]):
            self.assert_failed_by(store.record(id), f"a of {TYPE}: failed: no")

    def test_a_chain_of_a_thousand_fails_with_its_root(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="0"), *(later(f"{n}", f"{n - 1}") for n in range(1, 1001)))

        self.finish(bench, {"0": Failed("no")})

        self.assert_failed_by(store.record("1000"), f"0 of {TYPE}: failed: no")
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

    # What these tests do again and again.

    def assert_failed_by(self, record: Record, error: str) -> None:
        """That it ended without having run, for this reason."""
        (attempt,) = record.attempts
        assert (record.state, attempt.outcome, attempt.error) == (State.FAILED, DEPENDENCY, error)
        assert (attempt.number, attempt.run, attempt.again, record.result) == (1, None, None, None)
        assert record.ended is not None and record.ended >= record.sent

    def finish(
        self,
        bench: Bench,
        outcomes: Mapping[str, Outcome | None],
        rules: Rules = RULES,
        *,
        type: str = TYPE,
        run: bool = False,
    ) -> None:
        """Receive until all of these are there, and settle them, in that order; what has no outcome is given back."""

        async def work() -> None:
            broker = bench.another()
            consumer = broker.consumer(worker_queue(type), reserve=10)
            lent: dict[str, Delivery] = {}
            while not lent.keys() >= outcomes.keys():
                lent |= {delivery.workitem.id: delivery for delivery in await consumer.receive(limit=10)}
            ended = [
                Ended(lent[id], outcome, rules, RUN if run else None) for id, outcome in outcomes.items() if outcome
            ]
            assert await consumer.settle(ended) == [True] * len(ended)
            await broker.close()

        bench.run_once(work)

    def peek(self, bench: Bench, type: str, count: int = 1) -> Sequence[Delivery]:
        """Be lent the first ones, and give them back."""

        async def work() -> list[Delivery]:
            broker = bench.another()
            found = await bench.lent(broker.consumer(worker_queue(type), reserve=count), count)
            await broker.close()
            return found

        return bench.run_once(work)

    def nothing_comes(self, bench: Bench, type: str) -> bool:
        """Whether nothing is lent to workers of `type`."""
        return self.nothing_in(bench, worker_queue(type))

    def nothing_in(self, bench: Bench, queue: str) -> bool:
        """Whether nothing can be had from `queue`."""

        async def work() -> bool:
            broker = bench.another()
            nothing = await bench.nothing_comes(broker.consumer(queue, reserve=1))
            await broker.close()
            return nothing

        return bench.run_once(work)

    def requeue(self, bench: Bench) -> None:
        """Requeue all dead letters."""

        async def work() -> None:
            broker = bench.another()
            view = broker.dead_letters()
            letters: list[Delivery] = []
            for _ in range(2):  # what is looked at and left stays as it was
                letters = [delivery async for delivery in view.look()]
                assert await view.settle([Ended(letter, Release()) for letter in letters]) == [True] * len(letters)
            assert letters
            ended = [Ended(letter, requeued(letter.workitem)) for letter in letters]
            assert await view.settle(ended) == [True] * len(letters)
            await view.close()
            await broker.close()

        bench.run_once(work)
