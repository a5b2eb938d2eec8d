"""Tasks that take too long, come too late, or are not wanted any more: over every broker."""

from __future__ import annotations

import time

import pytest
import shop_tasks
from shop_tasks import (
    blocking,
    coroutines,
    leave,
    limited,
    look_late,
    num,
    once,
    once_more,
    patient,
    slowly,
    space,
    stubborn,
)
from tasking import ALL, PATIENCE, STORES, make_url, until

import taskqueue
from taskqueue.errors import TaskFailure
from taskqueue.lifecycle import State


@pytest.fixture(params=ALL)
def url(request: pytest.FixtureRequest) -> str:
    shop_tasks.gate.clear()
    shop_tasks.called.clear()
    return make_url(request, request.param)


@pytest.mark.parametrize("how", [{"threads": 2}, {"processes": 2}])
def test_a_task_that_takes_longer_than_it_says_has_failed(url: str, how: dict[str, int]) -> None:
    with taskqueue.connect(url) as queue, taskqueue.running(queue, space, retry_delay="0", **how):
        with pytest.raises(TaskFailure, match=r"timed out: time limit of 0\.3 s"):
            queue.submit(limited).result(PATIENCE)
        shop_tasks.gate.set()
        assert queue.submit(num, 7).result(PATIENCE) == 7


def test_threads_that_are_left_alone_disturb_no_others(url: str) -> None:
    with taskqueue.connect(url) as queue, taskqueue.running(queue, space, threads=2):
        neighbour = queue.submit(once, 1)
        until(lambda: shop_tasks.called)
        late = [queue.submit(limited) for _ in range(3)]  # more than there are threads, so their places are open again

        assert ["time limit" in str(each.exception(PATIENCE)) for each in late] == [True] * 3
        assert queue.submit(num, 7).result(PATIENCE) == 7
        shop_tasks.gate.set()
        assert neighbour.result(PATIENCE) == 1
        assert queue.submit(num, 8).result(PATIENCE) == 8
    assert shop_tasks.called == [1]


def test_threads_that_are_left_alone_are_told_whenever_they_look(url: str) -> None:
    with taskqueue.connect(url) as queue, taskqueue.running(queue, space, threads=1):
        for number in range(3):
            assert "time limit" in str(queue.submit(look_late, number).exception(PATIENCE))
        shop_tasks.gate.set()
        until(lambda: len(shop_tasks.called) == 3)
    assert sorted(shop_tasks.called) == [0, 1, 2]


def test_what_has_hardly_begun_when_its_time_is_over_disturbs_no_others(url: str) -> None:
    with taskqueue.connect(url) as queue, taskqueue.running(queue, space, threads=2):
        neighbour = queue.submit(once, 1)
        brief = [queue.options(time_limit=0.001).submit(slowly, number) for number in range(20)]

        assert all("time limit" in str(each.exception(PATIENCE)) for each in brief)
        shop_tasks.gate.set()
        assert neighbour.result(PATIENCE) == 1
    assert shop_tasks.called == [1]


def test_coroutines_that_take_too_long_disturb_no_others(url: str) -> None:
    with taskqueue.connect(url) as queue, taskqueue.running(queue, coroutines, threads=2):
        neighbour = queue.submit(once_more, 1)

        assert "time limit" in str(queue.submit(patient).exception(PATIENCE))
        assert neighbour.result(PATIENCE) == 1
    assert shop_tasks.called == [1]


def test_an_event_loop_that_a_coroutine_blocks_is_replaced(url: str) -> None:
    with taskqueue.connect(url) as queue, taskqueue.running(queue, coroutines, threads=2):
        begun = time.monotonic()
        assert "time limit" in str(queue.submit(blocking).exception(PATIENCE))
        assert queue.submit(once_more, 1).result(PATIENCE) == 1
        assert shop_tasks.called == [1] and time.monotonic() - begun < PATIENCE


def test_what_comes_too_late_has_failed_and_says_so(url: str) -> None:
    with taskqueue.connect(url) as queue:
        late = queue.options(expiration=0.1).submit(num, 1)
        later = queue.options(expiration=0.1, delay=0.1).submit(num, 1)
        time.sleep(0.3)
        with taskqueue.running(queue, space, threads=1):
            assert queue.options(expiration=3600).submit(num, 2).result(PATIENCE) == 2
            for each in (late, later):
                error = each.exception(PATIENCE)
                assert isinstance(error, TaskFailure) and "expired" in str(error)


def test_a_task_that_exits_is_tried_again_as_often_as_it_says(url: str) -> None:
    with taskqueue.connect(url) as queue, taskqueue.running(queue, space, threads=1, retries=5, retry_delay="0"):
        assert "SystemExit: 3" in str(queue.options(retries=2).submit(leave).exception(PATIENCE))
        assert "SystemExit: 1" in str(queue.options(retries=2, retry_on=OSError).submit(leave).exception(PATIENCE))


@pytest.mark.parametrize("kind", STORES[1:])
def test_one_that_hears_nothing_is_killed_and_not_tried_again(request: pytest.FixtureRequest, kind: str) -> None:
    with (
        taskqueue.connect(make_url(request, kind)) as queue,
        taskqueue.running(queue, space, processes=1, cancel_timeout="1s"),
    ):
        running = queue.submit(stubborn)
        until(lambda: running.progress)

        assert running.cancel()

        error = running.exception(PATIENCE)
        assert isinstance(error, TaskFailure) and error.state == "cancelled"
        assert [(one.outcome, one.error) for one in queue.record(running.id).attempts] == [("cancelled", "SIGKILL")]
        assert queue.submit(num, 7).result(PATIENCE) == 7
        assert running.status == State.CANCELLED
