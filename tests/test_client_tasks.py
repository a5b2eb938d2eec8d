"""Functions as tasks, over every broker, run by threads of the test's own program."""

from __future__ import annotations

import asyncio
import contextlib
import copy as copying
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shop_tasks
from shop_tasks import (
    Colour,
    Order,
    attempts,
    fail,
    flaky,
    later,
    name_of,
    named_oddly,
    num,
    once,
    other_error,
    plus,
    promise,
    quiet,
    repaint,
    same,
    say,
    sleep,
    slowly,
    space,
    until_cancelled,
    wait,
)
from tasking import ALL, PATIENCE, make_url, served, until

import taskqueue
from taskqueue.errors import (
    BrokerUnavailable,
    FormatError,
    ResultTimeout,
    TaskFailure,
    UnknownTask,
    Unsupported,
)
from taskqueue.lifecycle import State


@pytest.fixture(params=ALL)
def url(request: pytest.FixtureRequest) -> str:
    return make_url(request, request.param)


@pytest.fixture
def queue(url: str) -> Iterator[taskqueue.Queue]:
    with served(url) as queue:
        yield queue


@pytest.fixture
def store(queue: taskqueue.Queue) -> taskqueue.Queue:
    if not queue.broker.capabilities.store:
        pytest.skip("this broker is no store")
    return queue


class TestSubmitting:
    def test_a_function_is_called_elsewhere_and_its_value_comes_back(self, queue: taskqueue.Queue) -> None:
        deferred = queue.submit(plus, 5, b=2)

        assert deferred.result(PATIENCE) == 7
        assert deferred.done() and deferred and deferred.value == 7 and deferred.exception() is None
        assert deferred.status == State.SUCCEEDED
        assert queue.tasks.shop.plus(1).result(PATIENCE) == 2
        assert queue.tasks["shop"]["plus"](1, b=3).result(PATIENCE) == 4

    def test_coroutines_and_classes_that_annotations_name(self, queue: taskqueue.Queue) -> None:
        assert queue.submit(later, 5).result(PATIENCE) == 6
        assert queue.submit(repaint, Order(7)).result(PATIENCE) == Order(8, (Colour.RED,))

    def test_values_come_back_as_they_were_sent(self, queue: taskqueue.Queue) -> None:
        for value in [(1, (2, 3)), {1: {"a"}}, b"\xff", float("inf"), 10**400, None, [Path("/x")], "\ud800"]:
            assert queue.submit(same, value).result(PATIENCE) == value

    def test_progress_of_what_is_no_number_is_an_error_of_its_task_alone(self, queue: taskqueue.Queue) -> None:
        waiting = queue.submit(once, 7)
        for wrong in (10**400, "x", float("nan"), None):
            assert isinstance(queue.submit(say, wrong).exception(PATIENCE), TaskFailure)
        shop_tasks.gate.set()

        assert waiting.result(PATIENCE) == 7 and shop_tasks.called == [7]
        assert queue.submit(say, 3, "odd \0 \ud800 note").result(PATIENCE) is None

    def test_parameters_may_have_any_name(self, queue: taskqueue.Queue) -> None:
        assert queue.submit(named_oddly, self=1, function=2).result(PATIENCE) == [1, 2]
        assert queue.tasks.shop.named_oddly(self=1, function=2).result(PATIENCE) == [1, 2]
        if queue.broker.capabilities.store:
            assert queue.submit(num, 1).then(named_oddly, function=2).result(PATIENCE) == [1, 2]

    def test_a_failure_has_the_error_and_the_remote_traceback(self, queue: taskqueue.Queue) -> None:
        deferred = queue.submit(fail)

        with pytest.raises(TaskFailure) as found:
            deferred.result(PATIENCE)
        failure = found.value
        assert (failure.task, failure.queue, failure.id) == ("shop.fail", "default", deferred.id)
        assert failure.error == "ValueError: on purpose" and "in fail" in failure.traceback
        assert str(deferred.exception()) == str(failure) and "shop.fail" in str(failure)
        assert pickle.loads(pickle.dumps(failure)).traceback == failure.traceback

    def test_a_task_that_there_is_not_fails_and_names_those_that_there_are(self, queue: taskqueue.Queue) -> None:
        error = queue.tasks.shop.nothing().exception(PATIENCE)

        assert isinstance(error, TaskFailure) and "no task 'shop.nothing' in the space shop" in error.error
        assert "shop.num" in error.error

    def test_what_cannot_be_sent_is_an_error_where_it_is_submitted(self, queue: taskqueue.Queue) -> None:
        with pytest.raises(FormatError, match="argument 1"):
            queue.submit(same, threading.Lock())
        with pytest.raises(FormatError, match=r"shop\.same have \d+ bytes, more than"):
            queue.submit(same, os.urandom(queue.max_body))
        with pytest.raises(TypeError, match="is no task"):
            queue.submit(print, 1)
        if queue.broker.capabilities.store:
            with pytest.raises(ValueError, match="no NUL"):
                queue.options(id="a\0b").submit(num, 1)

    def test_retries_are_those_of_the_task_after_errors_that_it_names(self, queue: taskqueue.Queue) -> None:
        assert queue.submit(flaky, 2).result(PATIENCE) == 3
        assert isinstance(queue.submit(flaky, 3).exception(PATIENCE), TaskFailure)
        assert queue.options(retries=3).submit(flaky, 3).result(PATIENCE) == 4
        assert "attempt 1" in str(queue.submit(other_error).exception(PATIENCE))

    @pytest.mark.parametrize(("kinds", "tried"), [(ValueError, 3), ((OSError, Exception), 3), (OSError, 1), ((), 1)])
    def test_a_call_or_a_queue_may_name_the_errors_too(self, queue: taskqueue.Queue, kinds: Any, tried: int) -> None:
        options: Any = {"retries": 2, "retry_on": kinds}
        lent = taskqueue.Queue(queue.broker, "default", options)

        assert f"attempt {tried}" in str(queue.options(**options).submit(attempts).exception(PATIENCE))
        assert f"attempt {tried}" in str(lent.submit(attempts).exception(PATIENCE))
        assert lent.submit(flaky, 2).result(PATIENCE) == 3  # it names them itself
        lent.close()

    def test_who_ignores_the_result_gets_nothing(self, queue: taskqueue.Queue) -> None:
        assert queue.submit(quiet) is None  # type: ignore[comparison-overlap]
        assert queue.options(ignore_result=False).submit(quiet).result(PATIENCE) == 7

    def test_options_are_said_of_all_tasks_of_a_queue_or_of_a_single_call(self) -> None:
        with taskqueue.connect("memory://", ignore_result=True) as queue:
            assert queue.submit(num, 5) is None
            assert queue.options(ignore_result=False).submit(num, 5) is not None

    def test_queues_of_one_broker_are_independent(self, url: str, queue: taskqueue.Queue) -> None:
        with taskqueue.connect(url, "other") as other, taskqueue.running(other, space, threads=1):
            assert other.submit(num, 1).result(PATIENCE) == 1
            assert queue.submit(num, 2).result(PATIENCE) == 2


class TestWaiting:
    def test_a_result_that_does_not_come_is_a_timeout(self, queue: taskqueue.Queue) -> None:
        deferred = queue.submit(wait, 3)

        with pytest.raises(ResultTimeout):
            deferred.result(0.05)
        assert not deferred.wait(0.01) and not deferred.done() and not deferred
        with pytest.raises(ResultTimeout):
            deferred.value  # noqa: B018
        shop_tasks.gate.set()
        assert deferred.result(PATIENCE) == 3

    def test_callbacks_are_called_once_whatever_others_raise(self, queue: taskqueue.Queue) -> None:
        called: list[object] = []
        deferred = queue.submit(wait, 3)
        deferred.add_done_callback(lambda _: called.append(1 / 0))
        deferred.add_done_callback(called.append)
        shop_tasks.gate.set()

        assert deferred.result(PATIENCE) == 3
        deferred.add_done_callback(called.append)
        until(lambda: len(called) == 2)
        assert called == [deferred, deferred]

    def test_a_callback_may_wait_for_others_and_keeps_nobody_waiting(self, queue: taskqueue.Queue) -> None:
        found: list[int] = []
        first = queue.submit(wait, 1)
        first.add_done_callback(lambda _: found.append(queue.submit(slowly, 2).result(PATIENCE)))
        others = [queue.submit(wait, number) for number in range(3)]
        shop_tasks.gate.set()

        assert [each.result(PATIENCE) for each in others] == [0, 1, 2]
        until(lambda: found)
        assert found == [2]

    def test_it_can_be_awaited(self, queue: taskqueue.Queue) -> None:
        async def main() -> list[int]:
            shop_tasks.gate.set()
            first = await queue.submit(wait, 1)
            return [first, *await queue.gather(queue.submit(num, 2), queue.submit(num, 3))]

        assert asyncio.run(main()) == [1, 2, 3]

    def test_many_threads_wait_for_the_same_and_for_others(self, queue: taskqueue.Queue) -> None:
        deferreds = [queue.submit(wait, number) for number in range(4)]
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda each=each: found.append(each.result(PATIENCE)))  # type: ignore[misc]
            for each in deferreds * 3
        ]
        for thread in threads:
            thread.start()
        shop_tasks.gate.set()
        for thread in threads:
            thread.join()

        assert sorted(found) == sorted([0, 1, 2, 3] * 3)

    def test_a_child_after_a_fork_is_told_that_memory_is_elsewhere(self) -> None:
        with taskqueue.connect("memory://here") as queue:
            deferred = queue.submit(num, 1)
            child = os.fork()
            if not child:
                refused = 0
                for ask in (lambda: queue.submit(num, 1), deferred.done, deferred.result, lambda: len(queue)):
                    with contextlib.suppress(Unsupported):
                        ask()
                        continue
                    refused += 1
                with pytest.raises(Unsupported), taskqueue.running(queue, space, threads=1):
                    refused -= 1
                queue.close()
                os._exit(refused)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4

    def test_a_child_after_a_fork_submits_and_waits_as_well(self, queue: taskqueue.Queue, url: str) -> None:
        if url.startswith("memory://"):
            pytest.skip("memory:// is in one program")
        assert queue.submit(num, 1).result(PATIENCE) == 1
        child = os.fork()
        if not child:
            try:
                os._exit(queue.submit(num, 41).result(PATIENCE))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 41
        assert queue.submit(num, 2).result(PATIENCE) == 2

    def test_a_child_after_a_fork_hears_of_its_parents_tasks_or_is_told_that_it_can_not(
        self, queue: taskqueue.Queue, url: str
    ) -> None:
        if url.startswith("memory://"):
            pytest.skip("memory:// is in one program")
        deferred = queue.submit(wait, 41)
        child = os.fork()
        if not child:
            try:
                error = deferred.exception(PATIENCE)
                os._exit(42 if isinstance(error, Unsupported) else deferred.result(0))
            finally:
                os._exit(1)
        shop_tasks.gate.set()
        expected = 41 if queue.broker.capabilities.store else 42
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == expected
        assert deferred.result(PATIENCE) == 41

    def test_threads_of_a_child_agree_on_what_they_wait_with(self, queue: taskqueue.Queue) -> None:
        child = os.fork()
        if not child:
            try:
                sys.setswitchinterval(1e-6)
                together, found = threading.Barrier(8), []

                def look() -> None:
                    together.wait()
                    found.append(queue.ends)

                threads = [threading.Thread(target=look) for _ in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                os._exit(len(set(map(id, found))))
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

    def test_a_value_that_is_itself_deferred_is_waited_for(self, store: taskqueue.Queue) -> None:
        inner = store.submit(wait, 5)
        outer = store.submit(promise, inner.id)

        assert not outer.wait(0.2), outer.exception()
        shop_tasks.gate.set()
        assert outer.result(PATIENCE) == 5

    def test_a_value_that_is_itself_deferred_stands_where_that_one_does(self, store: taskqueue.Queue) -> None:
        inner = store.submit(until_cancelled)
        outer = store.submit(promise, store.submit(promise, inner.id).id)
        until(lambda: outer.status == inner.status == State.RUNNING)

        assert outer.cancel()

        assert isinstance(outer.exception(PATIENCE), TaskFailure)
        assert outer.status == inner.status == State.CANCELLED
        assert store.deferred(outer.id).status == State.CANCELLED and not outer.cancel()


class TestFindingAgain:
    def test_by_its_id_or_out_of_a_pickle(self, store: taskqueue.Queue) -> None:
        deferred = store.submit(num, 5)

        assert copying.copy(deferred) is copying.deepcopy(deferred) is deferred
        copy = pickle.loads(pickle.dumps(deferred))
        assert copy.id == deferred.id and copy.name == "shop.num"
        with pytest.raises(Unsupported, match=r"queue\.deferred"):
            copy.result(PATIENCE)
        assert store.deferred(copy).result(PATIENCE) == 5
        assert store.deferred(deferred.id).result(PATIENCE) == 5
        assert store.result(deferred.id) == 5
        assert repr(deferred) == f"<Deferred shop.num in queue default: {deferred.id}, succeeded>"

    def test_its_value_has_the_classes_that_its_annotation_names(self, store: taskqueue.Queue) -> None:
        deferred = store.submit(repaint, Order(7))
        there = Order(8, (Colour.RED,))
        id, copy = deferred.id, pickle.dumps(deferred)
        del deferred
        until(lambda: store.record(id).ended)

        assert store.deferred(id).result(PATIENCE) == there
        assert store.deferred(pickle.loads(copy)).result(PATIENCE) == there
        assert store.tasks.shop.repaint(Order(7)).result(PATIENCE) == there

    def test_an_id_that_never_was(self, store: taskqueue.Queue) -> None:
        with pytest.raises(UnknownTask):
            store.deferred("nothing").result(PATIENCE)
        with pytest.raises(UnknownTask):
            store.deferred("nothing").status  # noqa: B018

    def test_without_a_store_only_ones_own(self, queue: taskqueue.Queue) -> None:
        if queue.broker.capabilities.store:
            pytest.skip("this broker is a store")
        for refused in (
            lambda: queue.deferred("x"),
            lambda: queue.deferred(pickle.loads(pickle.dumps(queue.submit(num, 1)))),
            lambda: len(queue),
            queue.discard_pending,
            lambda: queue.submit(num, queue.submit(num, 1).argument),
            lambda: queue.options(id="x").submit(num, 1),
        ):
            with pytest.raises(Unsupported, match="postgresql://"):
                refused()


@pytest.mark.services
def test_without_a_store_what_a_program_has_is_found_again_by_its_id(request: pytest.FixtureRequest) -> None:
    with served(make_url(request, "amqp")) as queue:
        deferred, waiting = queue.submit(num, 1), queue.submit(wait, 2)

        assert queue.deferred(deferred.id) is deferred
        assert deferred.result(PATIENCE) == 1
        assert queue.deferred(deferred.id) is queue.deferred(pickle.loads(pickle.dumps(deferred))) is deferred
        queue.close()
        error = waiting.exception(PATIENCE)
        assert isinstance(error, BrokerUnavailable) and "its reply is lost: postgresql://" in str(error)


@pytest.mark.services
def test_replies_do_not_pile_up_where_nobody_waits(request: pytest.FixtureRequest) -> None:
    with served(make_url(request, "amqp")) as queue:
        first = queue.submit(num, 1)

        until(lambda: [queue.submit(num, 2)] and first.has_ended)  # nobody asks a Deferred


class TestCancelling:
    def test_a_coroutine_is_cancelled_where_it_waits(self, store: taskqueue.Queue) -> None:
        running = store.submit(sleep)
        until(lambda: running.status == State.RUNNING)

        assert running.cancel()
        error = running.exception(PATIENCE)
        assert isinstance(error, TaskFailure) and error.state == "cancelled"

    def test_what_runs_is_told_and_never_tried_again(self, store: taskqueue.Queue) -> None:
        running = store.options(retries=5).submit(until_cancelled)
        after = store.submit(name_of, running)
        until(lambda: running.status == State.RUNNING)

        assert running.cancel()
        error = running.exception(PATIENCE)
        assert isinstance(error, TaskFailure) and error.state == "cancelled"
        assert [attempt.outcome for attempt in store.record(running.id).attempts] == ["cancelled"]
        assert after.result(PATIENCE).startswith("TaskFailure")
        assert not running.cancel()
