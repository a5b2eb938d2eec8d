"""What settling must store, by outcome: a pure function."""

from __future__ import annotations

import pytest

from taskqueue.outcome import (
    MAX_ERROR,
    MAX_TRACEBACK,
    Cancelled,
    Crashed,
    Dead,
    Done,
    Effects,
    Failed,
    Forward,
    Outcome,
    Payload,
    Release,
    Retry,
    Rules,
    Send,
    TimedOut,
    effects,
)
from taskqueue.workitem import DEAD_LETTERS, Workitem

NOW = 1000.0
ITEM = Workitem(id="1", type="t", body=b"work", reference="order:1", headers={"mine": 1}, attempt=2, failures=1)
RULES = Rules(results_routing_key="results", max_crashes=3)


def of(outcome: Outcome, workitem: Workitem = ITEM, rules: Rules = RULES) -> Effects:
    return effects(workitem, outcome, rules, queue="worker_t", now=NOW)


def queues(found: Effects) -> list[str]:
    return [send.queue for send in found.sends]


def test_a_result_names_its_workitem() -> None:
    (send,) = of(Done(Payload(b"7", "application/json"))).sends

    result = send.workitem
    assert (send.queue, send.required) == ("results", True)
    assert (result.correlation_id, result.id, result.type, result.reference) == ("1", "1.2", "t", "order:1")
    assert (result.body, result.content_type) == (b"7", "application/json")
    assert result.headers == {"status": "succeeded", "attempt": 2}
    assert result.reply_to == ""  # an answer asks for none: no two queues can keep a message going round


def test_a_client_that_left_is_no_reason_to_wait() -> None:
    asked = Workitem(id="1", type="t", body=b"", reply_to="client", correlation_id="question")

    result, reply = of(Done(), asked).sends

    assert (result.workitem.correlation_id, reply.workitem.correlation_id) == ("1", "question")
    assert (reply.queue, reply.required) == ("client", False)


def test_a_reply_to_the_results_key_is_sent_once() -> None:
    assert queues(of(Done(), Workitem(id="1", type="t", body=b"", reply_to="results"))) == ["results"]


def test_what_a_handler_published_is_stored_with_its_end() -> None:
    own = Send("elsewhere", Workitem(body=b"own"))

    assert of(Done(None, (own,))).sends == (own,)
    assert of(Done(None)) == Effects()


@pytest.mark.parametrize(("counts", "attempt", "failures"), [("failure", 3, 2), ("attempt", 3, 1), ("nothing", 2, 1)])
@pytest.mark.parametrize(("delay", "due"), [(5.0, NOW + 5), (0.0, None)])
def test_a_retry_counts_what_it_should(counts: str, attempt: int, failures: int, delay: float, due: object) -> None:
    (send,) = of(Retry(delay, counts=counts)).sends  # type: ignore[arg-type]

    again = send.workitem
    assert send.queue == "worker_t"
    assert (again.attempt, again.failures, again.crashes, again.due) == (attempt, failures, 0, due)
    assert (again.id, again.body, again.headers) == (ITEM.id, ITEM.body, ITEM.headers)


def test_crashes_are_counted_until_there_are_too_many() -> None:
    (second,) = of(Crashed("SIGSEGV")).sends
    (third,) = of(Crashed("SIGSEGV"), second.workitem).sends
    result, dead = of(Crashed("SIGSEGV"), third.workitem).sends

    assert [second.workitem.crashes, third.workitem.crashes] == [1, 2]
    assert dead.queue == DEAD_LETTERS
    assert {name: dead.workitem.headers[name] for name in ("reason", "detail", "attempts", "crashes")} == {
        "reason": "crashed",
        "detail": "SIGSEGV",
        "attempts": 4,
        "crashes": 3,
    }
    assert result.workitem.headers["error"] == "worker process crashed: SIGSEGV"


@pytest.mark.parametrize(
    ("outcome", "reason", "detail"),
    [
        (Failed("ValueError: no", "Traceback ..."), "failed", "ValueError: no"),
        (TimedOut(5), "timed out", "time limit of 5 s"),
        (Dead("rejected", "never"), "rejected", "never"),
        (Dead("malformed", "no JSON"), "malformed", "no JSON"),
    ],
)
def test_what_is_given_up_is_kept_whole_and_said(outcome: Outcome, reason: str, detail: str) -> None:
    result, dead = of(outcome).sends

    letter = dead.workitem
    assert (letter.id, letter.body, letter.reference, letter.headers["mine"]) == ("1", b"work", "order:1", 1)
    assert (letter.headers["reason"], letter.headers["detail"]) == (reason, detail)
    assert (letter.headers["from"], letter.headers["died"]) == ("worker_t", 1000)
    assert (letter.attempt, letter.failures, letter.crashes, letter.due) == (1, 0, 0, None)
    assert result.workitem.headers["status"] == "failed" and detail in str(result.workitem.headers["error"])


def test_without_dead_letters_and_results_nothing_is_left_of_it() -> None:
    assert of(Failed("no"), rules=Rules(dead_letters=False)) == Effects()


def test_what_was_cancelled_is_said_to_whoever_waits_for_it_and_to_nobody_else() -> None:
    asked = Workitem(id="1", type="t", body=b"", reply_to="client")

    (reply,) = of(Cancelled("SIGTERM"), asked).sends

    assert (reply.queue, reply.workitem.headers["status"]) == ("client", "failed")
    assert reply.workitem.headers["error"] == "cancelled: SIGTERM"
    assert of(Cancelled("SIGTERM")) == Effects()


def test_long_errors_fit_into_a_frame() -> None:
    result, dead = of(Failed("e" * 10**6, "t" * 10**6)).sends

    assert len(str(result.workitem.headers["error"])) == MAX_ERROR
    assert len(str(dead.workitem.headers["traceback"])) == MAX_TRACEBACK


def test_a_forward_goes_to_the_queue_of_its_type_and_a_release_nowhere() -> None:
    bare = Workitem(id="1", type="other", body=b"bare")

    assert of(Forward(bare)) == Effects((Send("worker_other", bare, goes_on=True),))
    assert of(Release()) == Effects(ends=False)
