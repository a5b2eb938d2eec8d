"""Results in which there are values of other tasks, which are kept with them: sentences about every store."""

from __future__ import annotations

import pytest

from taskqueue.lifecycle import State
from taskqueue.outcome import Done, Failed, Payload, Rules
from taskqueue.store import Store
from taskqueue.testing.bench import TYPE, Bench, item
from taskqueue.testing.dependents import LATER, ONE, assert_failed_by, blocked_on, finish, later, peek, requeue
from taskqueue.upkeep import Keeping
from taskqueue.workitem import Workitem

__all__ = ["PromisesContract"]


def brief(id: str) -> Workitem:
    """One whose result is kept for nobody but those who need it."""
    return item(id=id, headers={"result_timeout": 0.0})


def promising(*ids: str) -> Done:
    return Done(Payload(b"these"), promises=ids)


def dropped(store: Store) -> int:
    return store.maintain(Keeping()).results


class PromisesContract:
    """Sentences about `Done.promises`."""

    @pytest.mark.parametrize("times", [1, 2])
    def test_a_result_is_kept_as_long_as_one_that_promises_it(self, bench: Bench, store: Store, times: int) -> None:
        bench.send(brief("a"), item(id="outer"), brief("b"))
        finish(bench, {"outer": promising(*["a"] * times)})
        finish(bench, {"a": ONE, "b": ONE})

        assert dropped(store) == 1

        assert store.record("a").result == Payload(b"1")
        assert (found := store.ended(["a"])["a"]) is not None and found.result == Payload(b"1")
        assert [record.result for record in store.history() if record.id == "a"] == [Payload(b"1")]
        assert store.record("b").result is None
        bench.send(later("c", "a"))
        assert [one.payload for one in peek(bench, LATER)[0].inputs] == [Payload(b"1")]

    def test_it_goes_with_that(self, bench: Bench, store: Store) -> None:
        bench.send(brief("a"), brief("outer"))
        finish(bench, {"outer": promising("a")})
        finish(bench, {"a": ONE})

        assert dropped(store) == 2

        assert store.record("a").result is None
        bench.send(later("c", "a"))
        assert_failed_by(store.record("c"), f"a of {TYPE}: succeeded: no result is kept")

    def test_it_is_kept_through_any_number_of_levels_and_goes_with_the_first(self, bench: Bench, store: Store) -> None:
        bench.send(*map(brief, "abcd"), item(id="e"), *map(brief, "vwxyz"))
        for one, next in zip("edcbzyxw", "dcbayxwv", strict=True):
            finish(bench, {one: promising(next)})
        finish(bench, {"a": ONE, "v": ONE})

        assert dropped(store) == 5

        assert [store.record(id).result is None for id in "abcdevwxyz"] == [False] * 5 + [True] * 5

    def test_it_is_kept_for_those_that_wait_for_what_promises_it(self, bench: Bench, store: Store) -> None:
        bench.send(brief("a"), brief("outer"), item(id="slow"), later("c", "outer", "slow"))
        finish(bench, {"outer": promising("a")})
        finish(bench, {"a": ONE})

        before = dropped(store)
        finish(bench, {"slow": ONE})
        finish(bench, {"c": blocked_on("a")}, type=LATER)
        between = dropped(store)
        assert [one.payload for one in peek(bench, LATER)[0].inputs][2:] == [Payload(b"1")]
        finish(bench, {"c": ONE}, type=LATER)

        assert (before, between, dropped(store)) == (0, 0, 2)
        assert store.record("a").result is None

    def test_those_that_promise_each_other_keep_nothing(self, bench: Bench, store: Store) -> None:
        bench.send(*map(brief, "abcd"))

        finish(bench, {"a": promising("b"), "b": promising("c"), "c": promising("a"), "d": promising("d")})

        assert dropped(store) == 4

    def test_a_result_that_is_not_kept_promises_nothing(self, bench: Bench, store: Store) -> None:
        bench.send(*map(brief, "ab"), item(id="brief"), item(id="ignored", headers={"ignore_result": True}))
        finish(bench, {"brief": promising("a")}, Rules(history="outcome"))
        finish(bench, {"ignored": promising("b")})
        finish(bench, {"a": ONE, "b": ONE})

        assert dropped(store) == 2

    @pytest.mark.parametrize("history", ["full", "outcome", "off"])
    def test_those_that_depend_on_a_promise_are_told_how_that_failed(
        self, bench: Bench, store: Store, history: str
    ) -> None:
        bench.send(item(id="a"), item(id="outer"), later("c", "outer"))
        finish(bench, {"outer": promising("a")})
        finish(bench, {"a": Failed("no")}, Rules(history=history))  # type: ignore[arg-type]

        finish(bench, {"c": blocked_on("a")}, type=LATER)

        assert store.record("c").attempts[-1].error.startswith(f"a of {TYPE}: failed")

    def test_a_dead_letter_that_is_requeued_finds_what_its_input_has_promised(self, bench: Bench, store: Store) -> None:
        bench.send(brief("a"), brief("outer"), later("c", "outer"))
        finish(bench, {"outer": promising("a")})
        finish(bench, {"a": ONE})
        finish(bench, {"c": Failed("no")}, type=LATER)

        assert dropped(store) == 0
        requeue(bench)
        finish(bench, {"c": blocked_on("a")}, type=LATER)

        assert [one.payload for one in peek(bench, LATER)[0].inputs] == [Payload(b"these"), Payload(b"1")]

    def test_what_is_promised_may_be_unknown(self, bench: Bench, store: Store) -> None:
        bench.send(item(id="outer"))

        finish(bench, {"outer": promising("never")})

        assert store.record("outer").state == State.SUCCEEDED
