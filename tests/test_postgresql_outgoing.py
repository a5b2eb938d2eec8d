"""What is sent, as the database's functions take it."""

from __future__ import annotations

from typing import Any

import pytest

from taskqueue.brokers.postgresql.outgoing import CHUNK, CHUNK_BYTES, alone, puts
from taskqueue.brokers.postgresql.parcel import Parcel
from taskqueue.workitem import Workitem

NOW = 1e9
USUAL = Workitem(body=b"x", id="an id", type="t")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"body": b"", "type": "", "content_type": "\x1f", "id": "ü" * 500, "reference": "order:1"},
        *({"priority": priority} for priority in (0, 5, -40_000, 99_999)),
        *({"due": due} for due in (NOW - 1, NOW, NOW + 2, 1e300)),
        *({"expiration": seconds} for seconds in (-1.0, 0.0, 5.0, 1e300)),
        {"headers": {"a": "b"}, "reply_to": "a queue", "timestamp": 7},
        {"headers": {"task": "shop.mail.send"}},
    ],
)
def test_what_is_sent_alone_is_told_as_all_else_is(more: dict[str, Any]) -> None:
    workitem = USUAL._replace(**more)
    item = Parcel(NOW).send("worker_t", workitem)

    names = ("queue", "id", "type", "task", "content_type", "properties", "priority", "reference", "delay", "lifetime")
    usual: dict[str, object] = {"properties": "", "priority": 0, "delay": None, "lifetime": None}
    queue, id, type, task, content_type, properties, priority, sender, reference, body, *rest = (
        alone("worker_t", workitem, "me", NOW) or ()
    )
    told = (queue, id, type, task, content_type, properties, priority, reference or "", *rest)
    assert told == tuple((usual | item)[name] for name in names)
    assert (sender, body) == ("me", workitem.body)
    assert reference != ""  # which a column does not have


@pytest.mark.parametrize(
    "more",
    [
        *({name: text} for name in ("id", "reference", "type", "content_type") for text in ("a\0", "half \udc80")),
        *({name: "x" * 501} for name in ("id", "reference")),
        *({name: 2} for name in ("attempt", "crashes", "failures")),
        {"after": ("1",)},
        {"queue": "a\0"},
        {"queue": "x" * 256},
    ],
)
def test_what_has_more_to_say_is_not_sent_alone(more: dict[str, Any]) -> None:
    queue = more.get("queue", "worker_t")
    workitem = USUAL._replace(**{name: value for name, value in more.items() if name != "queue"})

    assert alone(queue, workitem, "me", NOW) is None


def test_those_that_are_sent_together_are_told_in_columns() -> None:
    workitems = [
        ("worker_t", USUAL),
        ("worker_u", USUAL._replace(body=b"", headers={"task": "a.b"}, reference="o", priority=5)),
    ]

    (put,) = puts(workitems, "me", NOW)

    assert [column.split("\x1f") for column in put.columns or ()] == [
        ["worker_t", "worker_u"], ["an id", "an id"], ["t", "t"], ["", "a.b"], ["", ""],
        ["", '{"headers":{"task":"a.b"},"priority":5}'], ["0", "5"], ["", "o"], ["", ""], ["", ""],
        ["0", "1"], ["1", "0"],
    ]  # fmt: skip
    assert (put.objects, put.bodies, put.told, put.sender) == (None, b"x", ["worker_t", "worker_u"], "me")


@pytest.mark.parametrize("name", ["id", "type", "content_type", "reference"])
def test_what_columns_cannot_tell_is_told_as_objects(name: str) -> None:
    workitems = [("worker_t", USUAL), ("worker_t", USUAL._replace(**{name: "a\x1fb"}))]

    (put,) = puts(workitems, "me", NOW)

    assert put.columns is None
    assert put.objects is not None
    assert r"a\u001fb" in put.objects


def test_those_that_depend_on_others_of_the_same_call_ask_for_nothing() -> None:
    items = [USUAL._replace(id=str(n), after=(str(n - 1),) if n else ("before",)) for n in range(CHUNK + 5)]

    found = list(puts([("worker_t", item) for item in items], "me", NOW))
    plain = [item._replace(after=()) for item in items[:CHUNK]]
    behind = list(puts([("worker_t", item) for item in [*plain, *items[CHUNK:]]], "me", NOW))

    assert [put.asked for put in found] == [["before"], []]
    assert [put.asked for put in behind] == [None, []]
    assert all(put.columns is None for put in (*found, *behind))


def test_no_statement_has_more_than_it_should() -> None:
    many = list(puts([("worker_t", USUAL)] * (2 * CHUNK + 1), "me", NOW))
    large = USUAL._replace(body=bytes(CHUNK_BYTES // 2 + 1))
    larger = list(puts([("worker_t", item) for item in (USUAL, large, large, USUAL)], "me", NOW))
    needy = USUAL._replace(after=("x" * (CHUNK_BYTES // 2),) * 2)
    neediest = list(puts([("worker_t", needy)] * 2, "me", NOW))

    assert [len((put.columns or [""])[0].split("\x1f")) for put in many] == [CHUNK, CHUNK, 1]
    assert [len((put.columns or [""])[0].split("\x1f")) for put in larger] == [2, 2]
    assert len(neediest) == 2
