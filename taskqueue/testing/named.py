"""What a store knows of calls of tasks: the name, in every state that they can be in."""

from __future__ import annotations

from typing import Any

import pytest

from taskqueue.broker import Ended, Underway
from taskqueue.depending import Input
from taskqueue.lifecycle import State
from taskqueue.outcome import Crashed, Dead, Done, Failed, Forward, Outcome, Retry
from taskqueue.record import Record
from taskqueue.store import Store
from taskqueue.testing.bench import RULES, TYPE, Bench, item
from taskqueue.testing.dependents import LATER, ONE, assert_failed_by, finish, later, nothing_comes, peek, requeue
from taskqueue.testing.recorded import RUN
from taskqueue.upkeep import Keeping
from taskqueue.workitem import INCOMING, Workitem

__all__ = ["NamedContract"]

NAME = "shop.mail.send"
FAR = 4_000_000_000.0  # POSIX seconds that no test lives to see


def call(id: str = "a", **properties: Any) -> Workitem:
    """A call of the task NAME."""
    return item(id=id, headers={"task": NAME, "retries": 5}, **properties)


def depending(id: str, *after: str) -> Workitem:
    """One that depends on others."""
    return later(id, *after)._replace(headers={"task": NAME})


def assert_named(store: Store, id: str, state: State) -> None:
    """That its record says so, whichever way it is asked for."""
    found = store.record(id)
    assert (found.state, found.task) == (state, NAME)
    (listed,) = (record for record in store.history(states=[state]) if record.id == id)
    assert listed.task == NAME
    if found.ended is not None:
        ended = store.ended([id])[id]
        assert ended is not None and ended.task == NAME


class NamedContract:
    """Sentences about the names of tasks."""

    def test_what_has_not_ended_has_its_name(self, bench: Bench, store: Store) -> None:
        bench.send(call("waiting"), call("scheduled", due=FAR), depending("blocked", "scheduled"))

        for state in (State.WAITING, State.SCHEDULED, State.BLOCKED):
            assert_named(store, str(state), state)

    def test_what_runs_has_its_name(self, bench: Bench, store: Store) -> None:
        bench.send(call())

        async def test() -> Record:
            consumer = bench.consumer()
            (delivery,) = await bench.lent(consumer, 1)
            await consumer.report([Underway(delivery, RUN)])
            return store.record("a")

        found = bench.run(test)
        assert (found.state, found.task) == (State.RUNNING, NAME)

    @pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
    @pytest.mark.parametrize(
        ("outcome", "state"),
        [
            (ONE, State.SUCCEEDED),
            (Done(None), State.SUCCEEDED),
            (Failed("no"), State.FAILED),
            (Dead("rejected"), State.DEAD),
            (Retry(0.0), State.RETRYING),
            (Crashed("SIGKILL"), State.RETRYING),
        ],
        ids=["result", "done", "failed", "dead", "retry", "crash"],
    )
    def test_what_has_been_settled_has_its_name(
        self, bench: Bench, store: Store, outcome: Outcome, state: State, several: bool
    ) -> None:
        ids = ["a", "b", "c"] if several else ["a"]
        bench.send(*map(call, ids))

        finish(bench, dict.fromkeys(ids, outcome), run=True)

        for id in ids:
            assert_named(store, id, state)

    def test_what_was_cancelled_or_discarded_has_its_name(self, bench: Bench, store: Store) -> None:
        bench.send(call(), call("b"), depending("c", "b"))

        assert store.cancel("a")
        assert store.discard(LATER) == 1
        assert store.discard(TYPE) == 1

        for id in "abc":
            assert_named(store, id, State.CANCELLED)

    def test_what_expired_has_its_name(self, bench: Bench, store: Store) -> None:
        bench.send(call(expiration=0.0))

        assert nothing_comes(bench, TYPE)
        store.maintain(Keeping())

        assert_named(store, "a", State.EXPIRED)

    def test_what_failed_with_others_has_its_name(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), depending("b", "a"))
        finish(bench, {"a": Failed("no")})
        bench.send(depending("c", "a"))

        assert_named(store, "b", State.FAILED)
        assert_named(store, "c", State.FAILED)

    @pytest.mark.parametrize(
        ("outcome", "state", "error"),
        [(Failed("ValueError: x"), State.FAILED, "ValueError: x"), (None, State.CANCELLED, "")],
        ids=["failed", "cancelled"],
    )
    def test_those_that_depend_on_it_are_told_its_name(
        self, bench: Bench, store: Store, outcome: Outcome | None, state: State, error: str
    ) -> None:
        bench.send(call(), later("b", "a"), depending("c", "b"), later("d", "a", on_error="pass"))
        if outcome is None:
            store.cancel("a")
        else:
            finish(bench, {"a": outcome})
        bench.send(later("e", "a"), later("f", "c"), later("g", "c", on_error="pass"))

        reason = f"a of {NAME}: {state}{error and f': {error}'}"
        for id in "bcef":
            assert_failed_by(store.record(id), reason)
        assert [found.inputs for found in peek(bench, LATER, 2)] == [
            (Input("a", TYPE, state, None, error, "", NAME),),
            (Input("c", LATER, State.FAILED, None, reason, "", NAME),),
        ]

    def test_a_dead_letter_that_is_requeued_has_its_name(self, bench: Bench, store: Store) -> None:
        bench.send(call())
        finish(bench, {"a": Failed("no")})

        requeue(bench)

        assert_named(store, "a", State.WAITING)

    def test_what_a_dispatcher_has_forwarded_has_its_name(self, bench: Bench, store: Store) -> None:
        bench.send(call(), queue=INCOMING)

        async def test() -> None:
            consumer = bench.consumer(INCOMING)
            (delivery,) = await bench.lent(consumer, 1)
            forwarded = Forward(delivery.workitem._replace(type=TYPE), f"worker_{TYPE}")
            (counted,) = await consumer.settle([Ended(delivery, forwarded, RULES)])
            assert counted

        bench.run(test)
        assert_named(store, "a", State.WAITING)

    @pytest.mark.parametrize("name", [None, 5, ["x"], "a\0b", "half a character: \ud83d", "a\x1fb", "a\nb"])
    def test_what_can_be_no_name_is_none_and_does_no_harm(self, bench: Bench, store: Store, name: object) -> None:
        bench.send(item(id="a", headers={"task": name}), item(id="b", headers={}))

        assert (store.record("a").task, store.record("b").task) == ("", "")
        finish(bench, {"a": ONE, "b": ONE})
        assert (store.record("a").task, store.record("b").task) == ("", "")
