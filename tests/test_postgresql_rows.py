"""What one statement settles, as the database's functions take it."""

from __future__ import annotations

import json

import pytest
from lending import RULES

from taskqueue.broker import Delivery, Ended, Lease
from taskqueue.brokers.postgresql.rows import Parcel, Row
from taskqueue.outcome import Done, Failed, Outcome, Payload, Release
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
