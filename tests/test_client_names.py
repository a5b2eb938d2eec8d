"""The name of a task, where all that is known of it is its id; over all stores."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import shop_tasks
from shop_tasks import Colour, Order, fail, name_of, num, promise, repaint, wait
from tasking import PATIENCE, STORES, make_url, served, until

import taskqueue
from taskqueue.errors import TaskExpired, TaskFailure
from taskqueue.lifecycle import State

ELSEWHERE = """\
import sys
import taskqueue
with taskqueue.connect(sys.argv[1]) as queue:
    deferred = queue.deferred(sys.argv[2])
    failure = deferred.exception(60)
    print(failure.task, failure.queue, failure.error, repr(deferred), sep="\\n")
"""


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest) -> str:
    return make_url(request, request.param)


@pytest.fixture
def store(url: str) -> Iterator[taskqueue.Queue]:
    with served(url) as queue:
        yield queue


def test_it_is_known_as_soon_as_the_store_has_been_asked(store: taskqueue.Queue) -> None:
    id = store.submit(wait, 5).id
    deferred = store.deferred(id)
    assert (deferred.name, repr(deferred)) == ("", f"<Deferred task in queue default: {id}, pending>")

    until(lambda: deferred.status == State.RUNNING)
    assert repr(deferred) == f"<Deferred shop.wait in queue default: {id}, pending>"

    shop_tasks.gate.set()
    assert deferred.result(PATIENCE) == 5
    assert repr(deferred) == f"<Deferred shop.wait in queue default: {id}, succeeded>"


@pytest.mark.parametrize("ask", ["progress", "result"])
def test_whatever_it_is_asked_for(store: taskqueue.Queue, ask: str) -> None:
    deferred = store.deferred(store.submit(num, 5).id)

    if ask == "progress":
        assert deferred.progress is None
    else:
        assert deferred.result(PATIENCE) == 5

    assert deferred.name == "shop.num"


def test_what_is_raised_has_it(store: taskqueue.Queue) -> None:
    failing, expiring = store.submit(fail).id, store.options(result_timeout=0).submit(num, 5).id
    withdrawn = store.options(delay=3600).submit(num, 5).id
    store.cancel(withdrawn)

    for id, kind, name in (
        (failing, TaskFailure, "shop.fail"), (expiring, TaskExpired, "shop.num"), (withdrawn, TaskFailure, "shop.num"),
    ):  # fmt: skip
        error = store.deferred(id).exception(PATIENCE)
        assert isinstance(error, kind)
        assert (error.task, error.queue, error.id) == (name, "default", id)  # type: ignore[attr-defined]


def test_so_has_what_is_handed_to_those_that_depend_on_it(store: taskqueue.Queue) -> None:
    failing = store.deferred(store.submit(fail).id)

    told = "TaskFailure of shop.fail in default: ValueError: on purpose"
    assert store.submit(name_of, failing).result(PATIENCE) == told
    root = store.submit(num, store.submit(num, failing.argument).argument).exception(PATIENCE)
    assert isinstance(root, TaskFailure)
    assert root.error == f"{failing.id} of shop.fail: failed: ValueError: on purpose"


def test_what_hands_its_value_on_keeps_its_own(store: taskqueue.Queue) -> None:
    inner = store.submit(wait, 5)
    outer = store.deferred(store.submit(promise, store.submit(promise, inner.id).id).id)
    failing = store.deferred(store.submit(promise, store.submit(fail).id).id)

    shop_tasks.gate.set()
    assert outer.result(PATIENCE) == 5
    assert outer.name == "shop.promise"
    error = failing.exception(PATIENCE)
    assert isinstance(error, TaskFailure)
    assert (failing.name, error.task, error.id) == ("shop.promise", "shop.promise", failing.id)


def test_a_value_that_was_handed_on_has_the_classes_of_the_task_that_made_it(store: taskqueue.Queue) -> None:
    outer = store.submit(promise, store.submit(repaint, Order(7)).id)

    assert outer.result(PATIENCE) == Order(8, (Colour.RED,))


def test_another_program_knows_it(store: taskqueue.Queue, url: str) -> None:
    if not store.broker.capabilities.several_programs:
        pytest.skip("this broker is in one program")
    id = store.submit(fail).id

    ran = subprocess.run([sys.executable, "-c", ELSEWHERE, url, id], stdout=subprocess.PIPE, text=True, check=True)

    assert ran.stdout.splitlines() == [
        "shop.fail", "default", "ValueError: on purpose", f"<Deferred shop.fail in queue default: {id}, failed>",
    ]  # fmt: skip
