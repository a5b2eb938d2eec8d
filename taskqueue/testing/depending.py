"""Workitems that wait for others, and end with them: sentences about every store."""

from __future__ import annotations

import pytest

from taskqueue.broker import Input
from taskqueue.errors import UnknownTask
from taskqueue.lifecycle import State
from taskqueue.outcome import Crashed, Dead, Done, Failed, Outcome, Payload, Rules, TimedOut
from taskqueue.store import Store
from taskqueue.testing.bench import LIMIT, RULES, TYPE, Bench, item
from taskqueue.testing.dependents import (
    LATER,
    ONE,
    assert_failed_by,
    finish,
    later,
    nothing_comes,
    nothing_in,
    peek,
)
from taskqueue.upkeep import Keeping
from taskqueue.workitem import DEAD_LETTERS, Workitem, worker_queue

__all__ = ["DependingContract"]


FAR = 4_000_000_000.0  # POSIX seconds that no test lives to see


class DependingContract:
    """Sentences about dependencies."""

    def test_it_is_blocked_until_all_have_ended_and_gets_their_results_in_order(
        self, bench: Bench, store: Store
    ) -> None:
        bench.send(item(id="a"), item(id="b"))
        bench.send(later("c", "b", "a"))

        finish(bench, {"a": Done(Payload(b"A", "text/plain"))})
        half = store.record("c").state, nothing_comes(bench, LATER)
        finish(bench, {"b": Done(Payload(b"[2]"))})

        assert half == (State.BLOCKED, True)
        assert store.record("c").state == State.WAITING
        (delivery,) = peek(bench, LATER)
        assert delivery.workitem.after == ("b", "a")
        assert delivery.inputs == (
            Input("b", TYPE, State.SUCCEEDED, Payload(b"[2]")),
            Input("a", TYPE, State.SUCCEEDED, Payload(b"A", "text/plain")),
        )

    def test_what_has_ended_before_counts_at_once(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b"))
        finish(bench, {"a": ONE, "b": ONE})

        bench.send(later("c", "a", "b", "a"))

        assert store.record("c").state == State.WAITING
        assert [found.id for found in peek(bench, LATER)[0].inputs] == ["a", "b", "a"]

    def test_what_depends_on_nothing_has_no_inputs(self, bench: Bench) -> None:
        bench.send(item(id="a"))

        (delivery,) = peek(bench, TYPE)

        assert (delivery.inputs, delivery.workitem.after) == ((), ())

    def test_what_is_sent_for_later_is_scheduled_when_all_have_ended(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("c", "a", due=FAR))

        before = store.record("c").state
        finish(bench, {"a": ONE})

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

    def test_those_of_several_types_that_end_together_are_told_apart(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b")._replace(type="other"), item(id="c"), queue=worker_queue(TYPE))
        bench.send(later("d", "a"), later("e", "b"), later("f", "b", "a"), later("g", "c"), later("h", "b", "c"))

        finish(bench, {"a": ONE, "b": Done(Payload(b"2")), "c": Failed("no")})

        one, two = Input("a", TYPE, State.SUCCEEDED, Payload(b"1")), Input("b", "other", State.SUCCEEDED, Payload(b"2"))
        found = {delivery.workitem.id: delivery.inputs for delivery in peek(bench, LATER, 3)}
        assert found == {"d": (one,), "e": (two,), "f": (two, one)}
        for id in "gh":
            assert_failed_by(store.record(id), f"c of {TYPE}: failed: no")

    def test_two_with_one_id_wait_each_for_itself(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b"))
        bench.send(*[later("c", "a")] * 2, *[later("d", "b")] * 2, later("e", "b"))

        finish(bench, {"a": ONE, "b": Failed("no")})

        assert [found.workitem.id for found in peek(bench, LATER, 2)] == ["c", "c"]
        assert (store.record("d").state, store.count(LATER)) == (State.FAILED, 2)
        assert_failed_by(store.record("e"), f"b of {TYPE}: failed: no")

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
            finish(bench, {"a": outcome})

        traceback = "Traceback ..." if state == State.FAILED else ""
        told = "" if state == State.SUCCEEDED else error
        assert peek(bench, LATER)[0].inputs == (Input("a", TYPE, state, None, told, traceback),)
        assert_failed_by(store.record("failing"), f"a of {TYPE}: {state}{error and f': {error}'}")

    def test_what_expired_has_ended(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a", expiration=0.0), later("passed", "a", on_error="pass"), later("failing", "a"))

        assert nothing_comes(bench, TYPE)

        assert peek(bench, LATER)[0].inputs == (Input("a", TYPE, State.EXPIRED, None),)
        assert_failed_by(store.record("failing"), f"a of {TYPE}: expired")

    def test_one_crash_too_many_has_ended_and_those_before_have_not(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("c", "a"))

        for _ in range(RULES.max_crashes - 1):
            finish(bench, {"a": Crashed("SIGSEGV")})
        before = store.record("c").state
        finish(bench, {"a": Crashed("SIGSEGV")})

        assert before == State.BLOCKED
        assert_failed_by(store.record("c"), f"a of {TYPE}: dead: crashed: SIGSEGV")

    def test_what_failed_before_counts_at_once(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b"))
        finish(bench, {"a": Failed("no")})

        bench.send(later("failing", "b", "a"), later("blocked", "b", "a", on_error="pass"), later("next", "failing"))

        assert_failed_by(store.record("failing"), f"a of {TYPE}: failed: no")
        assert_failed_by(store.record("next"), f"a of {TYPE}: failed: no")
        assert store.record("blocked").state == State.BLOCKED

    def test_the_root_is_named_through_any_number_of_levels(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("b", "a"), later("c", "b"), later("d", "c", on_error="pass"))

        finish(bench, {"a": Failed("ValueError: x", "Traceback ...")})
        bench.send(later("e", "c"))

        root = f"a of {TYPE}: failed: ValueError: x"
        for id in "bce":
            assert_failed_by(store.record(id), root)
        assert peek(bench, LATER)[0].inputs == (Input("c", LATER, State.FAILED, None, root),)

    def test_what_fails_with_others_is_no_dead_letter_and_tells_only_who_waits_for_it(self, bench: Bench) -> None:
        producer = bench.producer()
        bench.send(item(id="a"))
        producer.send([later("c", "a", correlation_id="mine")], reply=True)
        finish(bench, {"a": Failed("no")}, Rules(dead_letters=False))

        reply = producer.next_reply(timeout=LIMIT)

        assert reply is not None
        assert (reply.correlation_id, reply.headers["status"]) == ("mine", "failed")
        assert reply.headers["error"] == f"a of {TYPE}: failed: no"
        assert nothing_in(bench, DEAD_LETTERS)
        assert nothing_in(bench, "results")

    def test_one_that_is_cancelled_while_it_is_blocked_counts_for_others_and_is_never_lent(
        self, bench: Bench, store: Store
    ) -> None:
        bench.send(item(id="a"), later("b", "a"), later("c", "b"))

        assert store.cancel("b")
        finish(bench, {"a": ONE})

        assert store.record("b").state == State.CANCELLED
        assert_failed_by(store.record("c"), f"b of {LATER}: cancelled")
        assert nothing_comes(bench, LATER)

    def test_time_goes_on_for_what_is_blocked(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("b", "a", expiration=0.0), later("c", "b"))

        assert nothing_comes(bench, LATER)
        store.maintain(Keeping())

        assert store.record("b").state == State.EXPIRED
        assert_failed_by(store.record("c"), f"b of {LATER}: expired")
