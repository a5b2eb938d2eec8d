"""Workitems that are found to depend on more than they did when they were sent: sentences about every store."""

from __future__ import annotations

import pytest

from taskqueue.broker import Input
from taskqueue.lifecycle import State
from taskqueue.outcome import Dead, Done, Failed, Payload, Retry
from taskqueue.store import Store
from taskqueue.testing.bench import TYPE, Bench, item
from taskqueue.testing.dependents import LATER, ONE, blocked_on, finish, later, nothing_comes, peek, requeue

__all__ = ["BlockingContract"]

TWO = Done(Payload(b"2"))


class BlockingContract:
    """Sentences about `Retry.after`."""

    @pytest.mark.parametrize("tried", [False, True], ids=["first", "retried"])
    def test_it_is_blocked_once_more_and_has_all_inputs_in_the_end(
        self, bench: Bench, store: Store, tried: bool
    ) -> None:
        bench.send(item(id="a"), later("c", "a"))
        bench.send(item(id="b"))  # after what will wait for it
        finish(bench, {"a": ONE})
        if tried:
            finish(bench, {"c": Retry(0.0, "later")}, type=LATER, run=True)

        finish(bench, {"c": blocked_on("b")}, type=LATER, run=True)
        half = store.record("c").state, nothing_comes(bench, LATER)
        finish(bench, {"b": TWO})

        assert half == (State.BLOCKED, True)
        assert store.record("c").state == (State.RETRYING if tried else State.WAITING)
        (delivery,) = peek(bench, LATER)
        assert delivery.workitem.after == ("a", "b")
        assert delivery.inputs == (
            Input("a", TYPE, State.SUCCEEDED, Payload(b"1")),
            Input("b", TYPE, State.SUCCEEDED, Payload(b"2")),
        )
        assert delivery.workitem.attempt == 1 + tried
        assert [one.outcome for one in store.record("c").attempts] == [*["failed"] * tried, "released"]

    def test_it_may_be_so_again_and_again(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("z", "a"))
        finish(bench, {"a": ONE})
        for id in "bcd":
            bench.send(item(id=id))
            finish(bench, {"z": blocked_on(id)}, type=LATER)
            assert nothing_comes(bench, LATER)
            finish(bench, {id: ONE})

        assert [one.id for one in peek(bench, LATER)[0].inputs] == list("abcd")

    def test_what_has_ended_by_then_counts_at_once(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b"), later("c", "a"))
        finish(bench, {"a": ONE, "b": TWO})

        finish(bench, {"c": blocked_on("b")}, type=LATER)

        assert store.record("c").state == State.WAITING
        assert [one.payload for one in peek(bench, LATER)[0].inputs] == [Payload(b"1"), Payload(b"2")]

    @pytest.mark.parametrize("before", [True, False])
    def test_how_that_ends_is_passed_or_is_the_reason_of_a_failure(
        self, bench: Bench, store: Store, before: bool
    ) -> None:
        bench.send(item(id="a"), later("failing", "a"), later("passed", "a", on_error="pass"), item(id="b"))
        finish(bench, {"a": ONE})
        if before:
            finish(bench, {"b": Failed("no")})

        finish(bench, {"failing": blocked_on("b"), "passed": blocked_on("b")}, type=LATER)
        if not before:
            finish(bench, {"b": Failed("no")})

        record = store.record("failing")
        assert (record.state, record.attempts[-1].error) == (State.FAILED, f"b of {TYPE}: failed: no")
        assert peek(bench, LATER)[0].inputs[1] == Input("b", TYPE, State.FAILED, None, "no")

    def test_one_that_nobody_knows_is_as_one_whose_result_is_not_kept(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("failing", "a"), later("passed", "a", on_error="pass"))
        finish(bench, {"a": ONE})

        finish(bench, {"failing": blocked_on("never"), "passed": blocked_on("never")}, type=LATER)

        assert store.record("failing").attempts[-1].error == "never: succeeded: no result is kept"
        assert peek(bench, LATER)[0].inputs[1] == Input("never", "", State.SUCCEEDED, None)

    def test_what_is_sent_anew_under_an_old_id_changes_nothing(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b"), later("c", "a"))
        finish(bench, {"a": ONE})
        bench.send(item(id="a"))

        finish(bench, {"c": blocked_on("b")}, type=LATER)
        finish(bench, {"b": TWO})

        assert [one.payload for one in peek(bench, LATER)[0].inputs] == [Payload(b"1"), Payload(b"2")]

    def test_it_can_be_cancelled(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b"), later("c", "a"), later("d", "c"))
        finish(bench, {"a": ONE})
        finish(bench, {"c": blocked_on("b")}, type=LATER)

        assert store.cancel("c")

        assert store.record("c").state == State.CANCELLED
        assert store.record("d").state == State.FAILED
        finish(bench, {"b": ONE})
        assert nothing_comes(bench, LATER)

    def test_as_a_dead_letter_that_is_requeued_it_has_them_all(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b"), later("c", "a"))
        finish(bench, {"a": ONE})
        finish(bench, {"c": blocked_on("b")}, type=LATER)
        finish(bench, {"b": TWO})
        finish(bench, {"c": Dead("rejected", "no")}, type=LATER)

        requeue(bench)

        assert [one.payload for one in peek(bench, LATER)[0].inputs] == [Payload(b"1"), Payload(b"2")]
