"""What follows from the end of a workitem for those that depend on it: the pure part."""

from __future__ import annotations

import math

import pytest

from taskqueue.depending import Input, cause, input_of, passes, result_ends
from taskqueue.lifecycle import MOVES, State, at_first
from taskqueue.outcome import Done, Failed, Payload, Rules, effects, unmet
from taskqueue.process.desk import items
from taskqueue.process.handing import described, weight
from taskqueue.record import DEPENDENCY, Attempt, Record, Run, born, kept_result, results_queue
from taskqueue.record import unmet as unmet_record
from taskqueue.workitem import Workitem

ITEM = Workitem(body=b"", type="t", id="1", attempt=1, reply_to="mine", correlation_id="c")
RUN = Run("host", "user", 7, 1.0)


def item(**headers: object) -> Workitem:
    return ITEM._replace(headers=headers)


@pytest.mark.parametrize(
    ("state", "last", "why"),
    [
        (State.FAILED, Attempt(3, "failed", RUN, "ValueError: x", "Traceback"), "1 of t: failed: ValueError: x"),
        (State.DEAD, Attempt(3, "crashed", RUN, "SIGSEGV"), "1 of t: dead: crashed: SIGSEGV"),
        (State.DEAD, Attempt(1, "rejected", RUN), "1 of t: dead: rejected"),
        (State.FAILED, None, "1 of t: failed"),  # its group keeps no more than that
        (State.CANCELLED, Attempt(1, "failed", RUN, "then it was cancelled"), "1 of t: cancelled"),
        (State.EXPIRED, None, "1 of t: expired"),
        (
            State.FAILED,
            Attempt(1, DEPENDENCY, error="0 of u: dead: crashed: SIGSEGV"),
            "0 of u: dead: crashed: SIGSEGV",
        ),
    ],
)
def test_the_cause_is_the_root(state: State, last: Attempt | None, why: str) -> None:
    assert cause("1", "t", state, last, has_result=False) == why


def test_a_result_that_is_not_kept_is_a_cause_and_one_that_is_is_none() -> None:
    assert cause("1", "t", State.SUCCEEDED, None, has_result=True) == ""
    assert cause("1", "t", State.SUCCEEDED, None, has_result=False) == "1 of t: succeeded: no result is kept"
    assert cause("1", "", State.SUCCEEDED, None, has_result=False) == "1: succeeded: no result is kept"


def test_an_input_has_the_error_of_the_last_attempt() -> None:
    attempts = (Attempt(1, "failed", RUN, "first"), Attempt(2, "timed out", RUN, "time limit of 5 s", "Traceback"))
    record = Record(id="1", type="t", state=State.DEAD, sent=1.0, ended=2.0, attempts=attempts)

    assert input_of(record) == Input("1", "t", State.DEAD, None, "timed out: time limit of 5 s", "Traceback")


@pytest.mark.parametrize(("header", "does"), [("pass", True), ("fail", False), ("PASS", False), (1, False)])
def test_only_who_says_so_runs_in_any_case(header: object, does: bool) -> None:
    assert passes(item(on_error=header)) is does
    assert not passes(ITEM)


@pytest.mark.parametrize("header", [None, "5", True, -1, math.inf, math.nan, [5]])
def test_a_result_timeout_that_is_no_number_of_seconds_is_none(header: object) -> None:
    assert result_ends(item(result_timeout=header), 100.0) is None


@pytest.mark.parametrize("header", [0, 5, 0.5])
def test_a_result_ends_so_many_seconds_after_its_workitem(header: float) -> None:
    assert result_ends(item(result_timeout=header), 100.0) == 100.0 + header


def test_a_result_that_nobody_wants_is_neither_sent_nor_kept_nor_waited_for() -> None:
    rules = Rules(results_routing_key="results")
    for headers, there in (({}, True), ({"ignore_result": False}, True), ({"ignore_result": True}, False)):
        work = item(**headers)
        for outcome in (Done(Payload(b"5")), Failed("no")):
            sends = effects(work, outcome, rules, queue="worker_t", now=0.0).sends
            assert bool({send.queue for send in sends} & {"results", "mine"}) is there
        assert (kept_result(work, Done(Payload(b"5")), rules) is not None) is there
        assert (results_queue(work, Done(Payload(b"5")), rules, RUN) == "results") is there


def test_what_fails_with_others_tells_only_who_waits_for_it() -> None:
    (send,) = unmet(ITEM, "why").sends

    assert (send.queue, send.required, send.workitem.correlation_id) == ("mine", False, "c")
    assert (send.workitem.headers["status"], send.workitem.headers["error"]) == ("failed", "why")
    assert unmet(ITEM._replace(reply_to=""), "why").sends == ()


def test_what_fails_with_others_has_an_attempt_that_never_ran() -> None:
    record = born(ITEM, sender="", now=1.0, blocked=True)
    assert record.state == State.BLOCKED

    ended = unmet_record(record, ITEM, "why", now=2.0)

    assert (ended.state, ended.ended, ended.attempts) == (State.FAILED, 2.0, (Attempt(1, DEPENDENCY, error="why"),))


def test_what_is_blocked_goes_on_as_if_it_were_sent_then() -> None:
    later = ITEM._replace(due=10.0)

    assert at_first(later, 5.0, blocked=True) == State.BLOCKED
    assert {at_first(later, now) for now in (5.0, 15.0)} | {State.FAILED, State.CANCELLED, State.EXPIRED} == MOVES[
        State.BLOCKED
    ]


INPUTS = (
    Input("a", "t", State.SUCCEEDED, Payload(b"\x00first", "application/octet-stream")),
    Input("b", "", State.CANCELLED, None),
    Input("c", "t", State.SUCCEEDED, Payload(b"", "text/plain")),
    Input("d", "t", State.FAILED, None, "Grüße", "Traceback"),
    Input("e", "t", State.SUCCEEDED, Payload(b"last")),
)


def test_inputs_are_handed_over_behind_the_body_of_their_workitem() -> None:
    batch = [(b"one", INPUTS), (b"two", ()), (b"", INPUTS[:1])]
    described_items = [
        [n, len(body), {"id": str(n), **({"inputs": described(inputs)} if inputs else {})}]
        for n, (body, inputs) in enumerate(batch)
    ]
    bodies = b"".join(
        body + b"".join(one.payload.body for one in inputs if one.payload is not None) for body, inputs in batch
    )

    found = list(items({"idle": True, "start_by": 5.0, "items": described_items}, bodies))

    assert [(one.body, one.inputs) for one in found] == batch
    assert [one.properties for one in found] == [{"id": "0"}, {"id": "1"}, {"id": "2"}]


def test_the_weight_of_inputs_is_that_of_their_results_and_texts() -> None:
    alone = weight(ITEM._replace(body=b"x" * 10), ())

    assert alone == 10
    assert weight(ITEM, (Input("a", "t", State.SUCCEEDED, Payload(b"x" * 1000)),)) > 1000
    assert weight(ITEM, (Input("a", "t", State.FAILED, None, "x" * 1000, "y" * 1000),)) > 2000
