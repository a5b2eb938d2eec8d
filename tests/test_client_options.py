"""What is said of tasks where they are made, of a queue, or of a call; over all stores."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Iterator

import pytest
import shop_tasks
from shop_tasks import coroutines, num, particular, patient, plus, promise, wait
from tasking import PATIENCE, STORES, make_url, served, until

import taskqueue
from taskqueue.brokers.memory import MemoryBroker, records
from taskqueue.clock import SystemClock
from taskqueue.errors import BrokerUnavailable, TaskExpired, TaskFailure, UnknownTask


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[taskqueue.Queue]:
    with served(make_url(request, request.param)) as queue:
        yield queue


def test_the_options_of_a_task_hold_unless_its_queue_or_its_call_says_otherwise(store: taskqueue.Queue) -> None:
    due = time.time() + 3600
    own = store.record(store.submit(particular).id)
    with taskqueue.connect("memory://", priority=3, reference="order:3") as other:
        deferred = other.submit(num, 1)
        assert (other.record(deferred.id).priority, other.record(deferred.id).reference) == (3, "order:3")
    called = store.options(priority=9, reference="order:2", due=due, retries=3).submit(particular)
    record = store.record(called.id)
    delayed = store.options(delay=0.1).submit(particular)

    assert (own.priority, own.reference, own.due) == (7, "order:1", None)
    assert (record.priority, record.reference, record.due) == (9, "order:2", pytest.approx(due, abs=60))
    assert delayed.result(PATIENCE) == 1
    assert [one.id for one in store.history(reference="order:2")] == [called.id]


class Later(SystemClock):
    by = 0.0

    def wall(self) -> float:
        return super().wall() + self.by


@pytest.mark.parametrize(("options", "kept"), [({}, 3600.0), ({"result_timeout": 60}, 60.0)])
def test_a_result_is_kept_for_an_hour_unless_somebody_says_otherwise(
    options: taskqueue.TaskOptions, kept: float
) -> None:
    clock = Later()
    shop_tasks.gate.set()
    with taskqueue.Queue(MemoryBroker(clock)) as queue, taskqueue.running(queue, shop_tasks.space, threads=1):
        id = queue.options(**options).submit(wait, 5).id
        until(lambda: queue.record(id).ended)
        clock.by = kept - 30
        assert queue.deferred(id).result(PATIENCE) == 5
        clock.by = kept + 30
        with pytest.raises(TaskExpired):
            queue.deferred(id).result(PATIENCE)


def test_coroutines_of_a_space_of_coroutines_are_cancelled(request: pytest.FixtureRequest) -> None:
    with (
        taskqueue.connect(make_url(request, "sqlite")) as queue,
        taskqueue.running(queue, coroutines, processes=1),
    ):
        running = queue.options(time_limit=None).submit(patient)
        until(lambda: running.status == "running")

        assert running.cancel()
        error = running.exception(PATIENCE)
        assert isinstance(error, TaskFailure) and error.state == "cancelled"


def test_who_waits_no_more_leaves_nothing_behind(store: taskqueue.Queue) -> None:
    deferred = store.submit(wait, 1)

    async def impatient() -> None:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await deferred
            with contextlib.suppress(taskqueue.errors.ResultTimeout):
                list(taskqueue.as_completed([deferred], timeout=0.01))

    asyncio.run(impatient())
    assert deferred._told is None
    shop_tasks.gate.set()
    assert deferred.result(PATIENCE) == 1


def test_what_a_program_may_ask_for_stays_in_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_ENDED", 3)
    with taskqueue.connect("memory://") as queue, taskqueue.running(queue, shop_tasks.space, threads=2):
        deferreds = queue.submit_many(num, range(100))
        ids = [queue.submit(num, number).id for number in range(100)]
        until(lambda: not len(queue))

        assert [each.result(PATIENCE) for each in deferreds] == list(range(100))
        del deferreds
        assert queue.submit(num, 1).result(PATIENCE) == 1
        assert queue.deferred(ids[-1]).result(PATIENCE) == 99
        with pytest.raises(UnknownTask):
            queue.deferred(ids[0]).result(PATIENCE)


def test_what_it_may_ask_for_stays_also_where_it_was_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_ENDED", 3)
    shop_tasks.gate.clear()
    with taskqueue.connect("memory://") as queue, taskqueue.running(queue, shop_tasks.space, threads=2):
        outer = queue.submit(promise, queue.submit(wait, 5).id)
        until(lambda: outer.status == "running" and outer.awaited != outer.id)
        assert queue.gather(*queue.submit_many(num, range(100))).result(PATIENCE) == list(range(100))
        shop_tasks.gate.set()
        assert queue.gather(*queue.submit_many(num, range(100))).result(PATIENCE) == list(range(100))

        assert outer.result(PATIENCE) == 5


def test_what_is_cleaned_up_anywhere_keeps_nobody_waiting() -> None:
    with taskqueue.connect("memory://") as queue:
        deferreds = [queue.reduce(plus, [], 1), queue.submit(num, 1)]
        cycle: list[object] = [taskqueue.as_completed(deferreds)]
        assert next(cycle[0]) is deferreds[0]  # type: ignore[call-overload]
        cycle.append(cycle)
        del cycle

        def collect() -> None:
            with queue.lock:
                gc.collect()

        collecting = threading.Thread(target=collect, daemon=True)
        collecting.start()
        collecting.join(PATIENCE)
        assert not collecting.is_alive() and deferreds[1]._told is None


def test_what_a_closed_queue_has_not_heard_of_is_cancelled_all_the_same() -> None:
    with taskqueue.connect("memory://") as queue:
        deferred = queue.options(delay=3600).submit(num, 1)
        threading.Timer(0.1, queue.close).start()
        assert isinstance(deferred.exception(PATIENCE), BrokerUnavailable)

        assert deferred.status == "scheduled"
        assert deferred.cancel() and queue.status(deferred.id) == "cancelled"
        with pytest.raises(UnknownTask):
            queue.deferred("nothing").cancel()


def test_a_function_may_come_late_to_a_space_of_coroutines() -> None:
    space = taskqueue.TaskSpace("late")

    @space.task
    async def first() -> int:
        return 1

    with taskqueue.connect("memory://") as queue, taskqueue.running(queue, space, threads=1):
        assert queue.submit(first).result(PATIENCE) == 1

        @space.task
        def second() -> int:
            return 2

        assert queue.submit(second).result(PATIENCE) == 2
