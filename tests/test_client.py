"""A program's end: `taskqueue.connect(url)`, over every broker."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from databases import PostgreSQL, with_schema
from embedded import drain, run

import taskqueue
from taskqueue.broker import Broker, Ended
from taskqueue.errors import (
    FormatError,
    ResultTimeout,
    TaskExpired,
    TaskFailure,
    UnknownTask,
    Unsupported,
)
from taskqueue.formats import payload
from taskqueue.lifecycle import State
from taskqueue.outcome import Done, Failed, Outcome, Rules
from taskqueue.record import Run
from taskqueue.workitem import Workitem

RUN = Run(host="host", user="user", pid=7, started=1.0, ended=2.0, cpu=0.5, memory=1 << 20)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/queue.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.url(server.database(with_schema))


@pytest.fixture
def queue(url: str) -> Iterator[taskqueue.Queue]:
    with taskqueue.connect(url) as queue:
        yield queue


def received(url: str, count: int = 1) -> list[Workitem]:
    found = run(url, lambda broker: drain(broker.consumer("worker_invoice", reserve=count), count))
    return [delivery.workitem for delivery in found]


def end(url: str, outcome: Outcome, rules: Rules | None = None) -> None:
    async def work(broker: Broker) -> None:
        consumer = broker.consumer("worker_invoice", reserve=1)
        (delivery,) = await consumer.receive(limit=1)
        assert await consumer.settle([Ended(delivery, outcome, rules or Rules(), RUN)]) == [True]

    run(url, work)


def test_a_workitem_arrives_with_all_that_was_said_of_it(queue: taskqueue.Queue, url: str) -> None:
    id = queue.send(
        "invoice", {"id": 7}, reference="order:4711", id="mine", priority=7, expiration=timedelta(hours=1),
        headers={"a": [1, "ü"]}, correlation_id="c", reply_to="answers",
    )  # fmt: skip

    (found,) = received(url)

    assert id == found.id == "mine"
    assert (found.type, found.body, found.content_type) == ("invoice", b'{"id":7}', "application/json")
    assert (found.reference, found.priority, found.expiration) == ("order:4711", 7, 3600)
    assert (dict(found.headers), found.correlation_id, found.reply_to) == ({"a": [1, "ü"]}, "c", "answers")
    assert abs((found.timestamp or 0) - time.time()) < 60


def test_bytes_and_text_are_sent_as_they_are(queue: taskqueue.Queue, url: str) -> None:
    queue.send("invoice", b"\0\xff")
    queue.send("invoice", "ü")
    queue.send("invoice", b"<a/>", content_type="application/xml")

    assert [(w.body, w.content_type) for w in received(url, 3)] == [
        (b"\0\xff", "application/octet-stream"), ("ü".encode(), "text/plain"), (b"<a/>", "application/xml"),
    ]  # fmt: skip


def test_many_are_sent_in_one_go_each_with_its_own_options(queue: taskqueue.Queue, url: str) -> None:
    ids = queue.send_many(queue.workitem("invoice", n, reference=f"order:{n}") for n in range(2500))

    found = received(url, 2500)
    assert [w.id for w in found] == ids
    assert [(w.body, w.reference) for w in found[::1000]] == [
        (b"0", "order:0"), (b"1000", "order:1000"), (b"2000", "order:2000"),
    ]  # fmt: skip


def test_nothing_is_sent_as_nothing(queue: taskqueue.Queue) -> None:
    assert queue.send_many([]) == []


@pytest.mark.parametrize("when", ["delay", "due"])
def test_what_is_for_later_is_scheduled(queue: taskqueue.Queue, when: str) -> None:
    if when == "delay":
        id = queue.send("invoice", 1, delay=3600)
    else:
        id = queue.send("invoice", 1, due=datetime.now(UTC) + timedelta(hours=1))

    assert queue.status(id) == State.SCHEDULED
    assert abs((queue.record(id).due or 0) - time.time() - 3600) < 60


@pytest.mark.parametrize(
    ("type", "options"),
    [
        ("no type", {}),
        ("t", {"priority": 256}),
        ("t", {"delay": 1, "due": 1.0}),
        ("t", {"delay": -1}),
        ("t", {"expiration": float("nan")}),
        ("t", {"due": datetime(2030, 1, 1)}),
        ("t", {"reference": "a\0b"}),
        ("t", {"reference": "x" * 1025}),
        ("t", {"id": "x" * 256}),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_is_sent(type: str, options: dict[str, Any]) -> None:
    with taskqueue.connect("memory://") as queue, pytest.raises(ValueError):
        queue.send(type, 1, **options)


def test_a_body_that_is_no_json_is_refused() -> None:
    with taskqueue.connect("memory://") as queue, pytest.raises(FormatError, match="a body of type set"):
        queue.send("t", {1, 2})


def test_a_result_is_what_the_handler_returned(queue: taskqueue.Queue, url: str) -> None:
    id = queue.send("invoice", 1, reference="order:4711")
    end(url, Done(payload({"paid": True})))

    assert queue.result(id, timeout=60) == {"paid": True}
    assert queue.status(id) == State.SUCCEEDED
    assert [record.id for record in queue.history(reference="order:4711")] == [id]


def test_a_failure_is_raised_with_its_error_and_traceback(queue: taskqueue.Queue, url: str) -> None:
    id = queue.send("invoice", 1)
    end(url, Failed("ValueError: no", "Traceback: ..."))

    with pytest.raises(TaskFailure, match=f"workitem {id} of invoice: failed: ValueError: no") as raised:
        queue.result(id)
    assert (raised.value.error, raised.value.traceback) == ("ValueError: no", "Traceback: ...")


def test_a_result_that_is_not_kept_has_expired(queue: taskqueue.Queue, url: str) -> None:
    id = queue.send("invoice", 1)
    end(url, Done(payload(1)), Rules(history="outcome"))

    with pytest.raises(TaskExpired):
        queue.result(id)


def test_who_waits_too_short_hears_that_it_goes_on(queue: taskqueue.Queue) -> None:
    id = queue.send("invoice", 1)

    with pytest.raises(ResultTimeout, match=r"has not ended within 0\.05 s"):
        queue.result(id, timeout=0.05)


def test_what_was_cancelled_has_no_result_and_is_cancelled_once(queue: taskqueue.Queue) -> None:
    id = queue.send("invoice", 1)

    assert queue.cancel(id)
    assert not queue.cancel(id)
    with pytest.raises(TaskFailure, match="cancelled"):
        queue.result(id, timeout=1)


def test_an_id_that_never_was_is_unknown(queue: taskqueue.Queue) -> None:
    for ask in (queue.status, queue.result, queue.cancel, queue.record):
        with pytest.raises(UnknownTask, match="never-sent"):
            ask("never-sent")


def test_it_works_after_a_fork_and_after_a_close(queue: taskqueue.Queue) -> None:
    first = queue.send("invoice", 1)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, f"{queue.send('invoice', 2)} {queue.status(first)}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    second, state = os.read(reader, 1000).decode().split()
    os.close(reader)
    os.close(writer)
    queue.close()

    assert (state, queue.status(second)) == (State.WAITING, State.WAITING)


@pytest.mark.services
def test_rabbitmq_sends_and_says_who_does_the_rest(amqp_url: str) -> None:
    with taskqueue.connect(amqp_url) as queue:
        id = queue.send("invoice", {"id": 7})
        for ask in (queue.status, queue.result, queue.cancel, queue.record, queue.using):
            with pytest.raises(Unsupported, match=r"postgresql:// and sqlite:///|postgresql://, sqlite:///"):
                ask("any")
        with pytest.raises(Unsupported):
            queue.history()

    assert [w.id for w in received(amqp_url)] == [id]


def test_the_package_is_imported_without_the_client_and_daemons_do_without_it() -> None:
    code = (
        "import sys, taskqueue; print(sorted(n for n in sys.modules if n.startswith('taskqueue'))); "
        "import taskqueue.carrier.carrier, taskqueue.process.__main__, taskqueue.workerpool.pool; "
        "print('taskqueue.client' in sys.modules); print(taskqueue.connect.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == ["['taskqueue']", "False", "taskqueue.client.queue"]


def test_there_is_no_other_name_at_the_top() -> None:
    assert {name: getattr(taskqueue, name).__name__ for name in taskqueue.__all__} == {
        name: name for name in taskqueue.__all__
    }
    with pytest.raises(AttributeError, match="no attribute 'submit'"):
        _ = taskqueue.submit
