"""Tasks that wait for the values of others, over every store."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import shop_tasks
from shop_tasks import (
    add,
    fail,
    name_of,
    num,
    plus,
    promise,
    promises,
    same,
    strict,
    until_cancelled,
    unwrap,
    wait,
)
from tasking import PATIENCE, STORES, make_url, served, until

import taskqueue
from taskqueue.errors import (
    TaskFailure,
)
from taskqueue.lifecycle import State


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[taskqueue.Queue]:
    with served(make_url(request, request.param)) as queue:
        yield queue


def test_a_task_waits_for_the_values_in_its_arguments(store: taskqueue.Queue) -> None:
    total = store.submit(add, [store.submit(num, n).argument for n in range(10)])
    nested = store.submit(same, {"a": (total, [total]), "b": {1: total}})

    assert total.result(PATIENCE) == 45
    assert nested.result(PATIENCE) == {"a": (45, [45]), "b": {1: 45}}
    assert total.then(num).result(PATIENCE) == 45


def test_of_delay_and_due_the_one_of_the_call_wins(store: taskqueue.Queue) -> None:
    delayed = taskqueue.Queue(store.broker, "default", {"delay": 60})

    deferred = delayed.options(due=time.time() + 7200).submit(num, 1)

    assert abs((store.record(deferred.id).due or 0) - time.time() - 7200) < 60
    delayed.close()


def test_what_takes_the_place_of_a_value_meanwhile_need_not_be_valid(store: taskqueue.Queue) -> None:
    inner = store.submit(wait, 5)
    outer = store.submit(strict, inner.id)

    blocked = store.submit(unwrap, outer.argument)
    until(lambda: blocked.status == State.BLOCKED and store.record(blocked.id).attempts)
    shop_tasks.gate.set()

    assert blocked.result(PATIENCE) == 5


def test_it_is_blocked_meanwhile(store: taskqueue.Queue) -> None:
    blocked = store.submit(num, store.submit(wait, 5).argument)

    assert blocked.status == State.BLOCKED and len(store) >= 1
    shop_tasks.gate.set()
    assert blocked.result(PATIENCE) == 5


def test_where_the_value_is_deferred_itself_it_is_blocked_once_more(store: taskqueue.Queue) -> None:
    inner = store.submit(wait, 5)
    outer = store.submit(promise, store.submit(promise, inner.id).id)
    blocked = store.submit(plus, outer.argument, b=store.submit(promise, inner.id).argument)

    until(lambda: blocked.status == State.BLOCKED and store.record(blocked.id).attempts)
    shop_tasks.gate.set()
    assert blocked.result(PATIENCE) == 10
    assert outer.then(num).result(PATIENCE) == 5


def test_where_the_value_is_deferred_itself_its_failure_counts(store: taskqueue.Queue) -> None:
    failing = store.submit(fail)
    outer = store.submit(promise, failing.id)

    error = store.submit(num, outer).exception(PATIENCE)
    assert isinstance(error, TaskFailure)
    assert failing.id in error.error and "ValueError: on purpose" in error.error
    told = store.submit(name_of, outer).result(PATIENCE)
    assert told == "TaskFailure of shop.fail in default: ValueError: on purpose"


def test_a_value_that_is_its_own_is_an_error(store: taskqueue.Queue) -> None:
    circle = store.options(id="circle").submit(num, store.submit(promise, "circle").argument)

    assert "has that of circle in it" in str(circle.exception(PATIENCE))


def test_values_with_deferred_ones_in_them_are_waited_for(store: taskqueue.Queue) -> None:
    ids = [store.submit(num, n).id for n in range(5)]

    assert store.submit(add, store.submit(promises, ids).argument).result(PATIENCE) == 10
    found = store.submit(promises, ids).result(PATIENCE)
    assert [(each.name, each.result(PATIENCE)) for each in found] == [("shop.num", n) for n in range(5)]


def test_the_values_in_a_value_are_kept_as_long_as_something_waits_for_that(store: taskqueue.Queue) -> None:
    brief = store.options(result_timeout=0)
    first, second = store.submit(until_cancelled), store.submit(until_cancelled)
    inner = brief.submit(name_of, first)
    outer = brief.submit(promises, [store.submit(wait, inner.id)])  # type: ignore[list-item]
    waiting = store.submit(same, [outer, store.submit(name_of, second)])

    shop_tasks.gate.set()
    until(lambda: outer.status == State.SUCCEEDED)
    first.cancel()
    until(lambda: inner.status == State.SUCCEEDED)
    second.cancel()
    assert [str(each)[:11] for each in waiting.result(PATIENCE)] == ["['TaskFailu", "TaskFailure"]


def test_it_fails_with_the_root_cause_or_is_told(store: taskqueue.Queue) -> None:
    failing = store.submit(fail)
    after = store.submit(num, store.submit(num, failing).argument)  # type: ignore[call-overload]

    error = after.exception(PATIENCE)
    assert isinstance(error, TaskFailure)
    assert failing.id in error.error and "ValueError: on purpose" in error.error
    told = store.submit(name_of, failing).result(PATIENCE)
    assert told == "TaskFailure of shop.fail in default: ValueError: on purpose"
    assert store.submit(name_of, store.submit(num, 1)).result(PATIENCE) == "int: 1"


def test_cancelled_ends_count(store: taskqueue.Queue) -> None:
    first = store.options(delay=3600).submit(num, 1)
    after = store.submit(num, first.argument)
    told = store.submit(name_of, first)

    assert first.cancel() and not first.cancel()
    assert "cancelled" in str(after.exception(PATIENCE))
    assert told.result(PATIENCE).startswith("TaskFailure")
    error = first.exception(PATIENCE)
    assert isinstance(error, TaskFailure) and error.state == "cancelled"
