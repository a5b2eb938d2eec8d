"""How long what a workitem depends on is kept for it, and what is not kept: sentences about every store."""

from __future__ import annotations

import pytest

from taskqueue.depending import Input
from taskqueue.lifecycle import State
from taskqueue.outcome import Crashed, Failed, Outcome, Payload, Retry, Rules
from taskqueue.store import Store
from taskqueue.testing.bench import TYPE, Bench, item
from taskqueue.testing.dependents import (
    LATER,
    ONE,
    assert_failed_by,
    finish,
    later,
    nothing_in,
    peek,
    requeue,
)
from taskqueue.upkeep import Keeping

__all__ = ["InputsContract"]


class InputsContract:
    """Sentences about results that others need."""

    # Inputs stay as long as they are needed.

    @pytest.mark.parametrize("outcome", [Retry(0.0, "again"), Crashed("SIGKILL"), None], ids=["retry", "crash", "lost"])
    def test_every_attempt_has_the_inputs(self, bench: Bench, store: Store, outcome: Outcome | None) -> None:
        bench.send(item(id="a"), later("c", "a"))
        finish(bench, {"a": ONE})

        if outcome is None:
            peek(bench, LATER)
        else:
            finish(bench, {"c": outcome}, type=LATER)

        assert [found.payload for found in peek(bench, LATER)[0].inputs] == [Payload(b"1")]

    def test_a_dead_letter_that_is_requeued_has_the_inputs(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a", headers={"result_timeout": 0.0}), later("c", "a"))
        finish(bench, {"a": ONE})
        finish(bench, {"c": Failed("no")}, type=LATER)
        store.maintain(Keeping())

        requeue(bench)

        assert store.record("c").state == State.WAITING
        (delivery,) = peek(bench, LATER)
        assert delivery.workitem.after == ("a",)
        assert [found.payload for found in delivery.inputs] == [Payload(b"1")]

    def test_a_dead_letter_that_is_requeued_waits_for_what_was_requeued(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), later("c", "a", on_error="pass"))
        finish(bench, {"a": Failed("no")})
        finish(bench, {"c": Failed("no")}, type=LATER)

        requeue(bench)
        between = store.record("c").state
        finish(bench, {"a": ONE})

        assert between == State.BLOCKED
        assert [found.payload for found in peek(bench, LATER)[0].inputs] == [Payload(b"1")]

    def test_an_end_of_a_second_life_does_not_count_again(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a"), item(id="b"), later("c", "a", "b", on_error="pass"))
        finish(bench, {"a": Failed("no")})

        requeue(bench)
        finish(bench, {"b": None, "a": ONE})

        assert store.record("c").state == State.BLOCKED

    @pytest.mark.parametrize("blocked", [True, False])
    def test_an_id_that_is_used_again_changes_nothing_for_what_depends_on_its_first_life(
        self, bench: Bench, store: Store, blocked: bool
    ) -> None:
        if blocked:
            bench.send(item(id="a"), later("c", "a"))
        else:
            bench.send(item(id="a"))
        finish(bench, {"a": ONE})
        if not blocked:
            bench.send(later("c", "a"))

        bench.send(item(id="a"))
        finish(bench, {"a": Failed("no")})

        assert peek(bench, LATER)[0].inputs == (Input("a", TYPE, State.SUCCEEDED, Payload(b"1")),)

    # Results that are not kept.

    @pytest.mark.parametrize("timeout", [0, 0.0])
    def test_a_result_is_gone_after_its_timeout_and_the_record_stays(
        self, bench: Bench, store: Store, timeout: float
    ) -> None:
        headers = {"result_timeout": timeout}
        bench.send(item(id="a", headers=headers), item(id="b", headers={"result_timeout": 3600.0}))
        finish(bench, {"a": ONE, "b": ONE})

        before, dropped, then = store.record("a"), store.maintain(Keeping()).results, store.record("a")

        assert (before.state, before.result, dropped) == (State.SUCCEEDED, None, 1)
        assert (then.state, then.result, len(then.attempts)) == (State.SUCCEEDED, None, 1)
        assert store.record("b").result == Payload(b"1")
        bench.send(later("c", "a"))
        assert_failed_by(store.record("c"), f"a of {TYPE}: succeeded: no result is kept")

    def test_a_result_stays_for_those_that_were_sent_before_it_ended(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="a", headers={"result_timeout": 0.0}), item(id="b"), later("c", "a", "b"))
        finish(bench, {"a": ONE})

        dropped = [store.maintain(Keeping()).results]
        finish(bench, {"b": ONE})
        assert [found.payload for found in peek(bench, LATER)[0].inputs] == [Payload(b"1")] * 2
        finish(bench, {"c": ONE}, type=LATER)
        dropped.append(store.maintain(Keeping()).results)

        assert dropped in ([0, 1], [1, 0])  # it may be kept beside the record
        assert store.record("a").result is None

    def test_a_result_that_nobody_wants_is_neither_kept_nor_sent(self, bench: Bench, store: Store) -> None:
        headers = {"ignore_result": True}
        bench.send(item(id="a", headers=headers), item(id="b", headers=headers, reply_to="results"), later("c", "a"))

        finish(bench, {"a": ONE, "b": Failed("no")}, run=True)

        assert (store.record("a").state, store.record("a").result) == (State.SUCCEEDED, None)
        assert_failed_by(store.record("c"), f"a of {TYPE}: succeeded: no result is kept")
        assert nothing_in(bench, "results")

    @pytest.mark.parametrize("history", ["outcome", "off"])
    def test_what_a_group_does_not_keep_can_be_waited_for(self, bench: Bench, store: Store, history: str) -> None:
        rules = Rules(history=history)  # type: ignore[arg-type]
        bench.send(item(id="a"), item(id="b"), later("failing", "a"), later("passed", "a", "b", on_error="pass"))

        finish(bench, {"a": ONE, "b": Failed("no")}, rules)

        assert_failed_by(store.record("failing"), f"a of {TYPE}: succeeded: no result is kept")
        found = peek(bench, LATER)[0].inputs
        assert [(one.type, one.state, one.payload) for one in found] == [
            (TYPE, State.SUCCEEDED, None), (TYPE, State.FAILED, None),
        ]  # fmt: skip
