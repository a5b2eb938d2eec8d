"""The fixture for tests of one's own tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from shop_tasks import add, fail, flaky, num, same, space

import taskqueue
from taskqueue.errors import FormatError, TaskFailure
from taskqueue.lifecycle import State
from taskqueue.testing.tasks import at_once

__all__ = ["at_once"]

Make = Callable[..., taskqueue.Queue]


@pytest.fixture
def queue(at_once: Make) -> taskqueue.Queue:
    return at_once(space)


def test_a_task_has_ended_when_it_was_submitted(queue: taskqueue.Queue) -> None:
    deferred = queue.submit(num, 5)

    assert deferred.value == 5 and deferred.status == State.SUCCEEDED
    assert [each.value for each in queue.submit_many(num, range(3))] == [0, 1, 2]
    assert queue.submit(add, [queue.submit(num, 1).argument]).value == 1


def test_values_and_errors_are_those_of_production(queue: taskqueue.Queue) -> None:
    assert queue.submit(same, {1: (2,)}).value == {1: (2,)}
    with pytest.raises(FormatError):
        queue.submit(same, object())
    with pytest.raises(TaskFailure, match="ValueError: on purpose"):
        queue.submit(fail).value  # noqa: B018


def test_retries_are_made(queue: taskqueue.Queue) -> None:
    assert queue.submit(flaky, 2).value == 3
    assert len(queue.record(queue.submit(flaky, 2).id).attempts) == 3


def test_what_is_for_later_is_left_for_later(queue: taskqueue.Queue) -> None:
    later = queue.options(delay=3600).submit(num, 5)

    assert later.status == State.SCHEDULED and queue.submit(num, later.argument).status == State.BLOCKED


def test_tasks_that_a_task_submits_have_ended_too(at_once: Make) -> None:
    walking = taskqueue.TaskSpace("walking")
    seen: list[int] = []

    @walking.task
    def walk(levels: int) -> int:
        time.sleep(0.001)
        seen.append(levels)
        if levels:
            queue.submit(walk, levels - 1)
        return levels

    queue = at_once(walking)
    assert queue.submit(walk, 100).value == 100
    assert seen == list(range(100, -1, -1))


def test_coroutines_alone_run_many_at_once(at_once: Make) -> None:
    meeting = taskqueue.TaskSpace("meeting")
    there: list[int] = []

    @meeting.task
    async def meet(number: int) -> int:
        there.append(number)
        while len(there) < 5:
            await asyncio.sleep(0.001)
        return number

    assert [each.value for each in at_once(meeting).submit_many(meet, range(5))] == [0, 1, 2, 3, 4]


def test_tasks_may_submit_tasks_and_wait(at_once: Make) -> None:
    nesting = taskqueue.TaskSpace("nesting")

    @nesting.task
    def down(levels: int) -> int:
        return 1 + queue.submit(down, levels - 1).result(60) if levels else 0

    queue = at_once(nesting)
    assert queue.submit(down, 5).value == 5
