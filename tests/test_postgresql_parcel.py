"""What one statement settles, as the database's functions take it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from lending import RULES

from taskqueue.broker import Delivery, Ended, Lease
from taskqueue.brokers.postgresql.parcel import Parcel
from taskqueue.brokers.postgresql.rows import Row
from taskqueue.outcome import Done, Failed, Outcome, Payload, Release, Rules, Send
from taskqueue.record import Run
from taskqueue.workitem import Workitem

NOW = 1e9


def ended(seq: int, outcome: Outcome) -> tuple[Row, Ended]:
    workitem = Workitem(body=b"x", id=str(seq), type="t")
    delivery = Delivery(workitem=workitem, queue="worker_t", tag=seq, lease=Lease())
    return Row(seq, f"(0,{seq})", NOW, workitem), Ended(delivery, outcome, RULES)


@pytest.mark.parametrize("in_columns", [False, True])
def test_what_has_moved_meanwhile_is_looked_for_where_it_is(in_columns: bool) -> None:
    parcel = Parcel(NOW, in_columns=in_columns)
    for seq, outcome in enumerate([Done(Payload(b"1")), Done(Payload(b"2")), Failed("no"), Release()], 1):
        parcel.end(*ended(seq, outcome))

    parcel.move({2: "(9,2)", 3: "(9,3)", 4: "(9,4)"})

    places, numbers, *_ = parcel.successes() or ("", "")
    found = dict(zip(numbers.split("\x1f"), places.split("\x1f"), strict=True))
    for text in parcel.texts()[:2]:
        found |= {str(end["seq"]): end["place"] for end in json.loads(text or "[]")}
    found.pop("", None)
    assert found == {"1": "(0,1)", "2": "(9,2)", "3": "(9,3)", "4": "(9,4)"}
    assert (parcel.successes() is not None) == in_columns


def test_what_columns_cannot_tell_is_told_as_an_object() -> None:
    parcel = Parcel(NOW, in_columns=True)
    for seq, content_type in enumerate(["text/plain", "text/\x1f", "text/plain"], 1):
        parcel.end(*ended(seq, Done(Payload(b"1", content_type))))

    _, numbers, _, types, *_ = parcel.successes() or ()
    (told,) = parcel.ends
    assert (numbers, types) == ("1\x1f3", "text/plain\x1ftext/plain")
    assert (told["seq"], told["result_type"]) == (2, "text/\x1f")


RUN = Run("host", "user", 7, NOW - 2, NOW - 1, 0.5, 1 << 20)
DONE = Done()
USUAL = Workitem(body=b"x", id="an id", type="t")
AT_ONCE = Rules(worker="host:7", results_routing_key="results")
TEXTS = ["", "plain", "\x1f", "\0", "half \ud800", "x" * 501]
HEADERS: list[dict[str, object]] = [{"result_timeout": 5}, {"ignore_result": True}, {"other": 1}]


def case(
    outcome: Outcome = DONE, *, workitem: Workitem = USUAL, rules: Rules = AT_ONCE, run: Run | None = RUN,
    log: tuple[str, ...] = (), queue: str = "worker_t", **of_row: Any,
) -> tuple[Row, Ended]:  # fmt: skip
    """What nearly always happens, but for what is said."""
    delivery = Delivery(workitem=workitem, queue=queue, tag=1, lease=Lease())
    return Row(1, "(0,1)", NOW, workitem, "me", **of_row), Ended(delivery, outcome, rules, run, log)


CASES = [
    case(),
    *(case(outcome) for outcome in (Done(None), Failed("no"), Release(), Done(sends=(Send("elsewhere", USUAL),)))),
    *(case(Done(Payload(b"1", text))) for text in TEXTS),
    *(case(workitem=USUAL._replace(id=text)) for text in TEXTS),
    *(case(workitem=USUAL._replace(reference=text)) for text in TEXTS),
    *(case(workitem=USUAL._replace(headers=headers)) for headers in HEADERS),
    case(workitem=USUAL._replace(reply_to="a queue")),
    case(workitem=USUAL._replace(attempt=3, failures=2)),
    *(case(rules=replace(AT_ONCE, worker=text)) for text in TEXTS),
    *(case(rules=replace(AT_ONCE, results_routing_key=key)) for key in [*TEXTS, "worker_t", "taskqueue.dead"]),
    case(rules=replace(AT_ONCE, history="outcome")),
    case(rules=replace(AT_ONCE, history="off")),
    *(case(run=RUN._replace(**{name: None})) for name in ("ended", "cpu", "memory")),
    case(run=None),
    case(log=("a line",)),
    case(queue="results"),
    case(story="[[1]]"),
    case(number=5),
]


@pytest.mark.parametrize("one", CASES)
def test_what_nearly_always_happens_is_told_as_all_else_is(one: tuple[Row, Ended]) -> None:
    quick, thorough = Parcel(NOW, in_columns=True), Parcel(NOW, in_columns=True)
    quick.end(*one)
    thorough._end(*one)

    assert (quick.successes(), quick.texts(), quick.told) == (thorough.successes(), thorough.texts(), thorough.told)
