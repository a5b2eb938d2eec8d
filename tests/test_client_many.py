"""Many tasks, tasks with an identity, and tasks with a limit, over every broker."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import pty
import struct
import sys
import termios
import time
from collections.abc import Iterator

import pytest
import shop_tasks
from shop_tasks import (
    Order,
    fail,
    invoice,
    num,
    plus,
    quiet,
    repaint,
    same,
    wait,
)
from tasking import ALL, PATIENCE, STORES, make_url, served, until

import taskqueue
from taskqueue.errors import (
    DuplicateTask,
    ResultTimeout,
    TaskExpired,
    TaskFailure,
)
from taskqueue.lifecycle import State


@pytest.fixture(params=ALL)
def url(request: pytest.FixtureRequest) -> str:
    return make_url(request, request.param)


@pytest.fixture
def queue(url: str) -> Iterator[taskqueue.Queue]:
    with served(url) as queue:
        yield queue


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[taskqueue.Queue]:
    with served(make_url(request, request.param)) as queue:
        yield queue


class TestMany:
    def test_map_is_lazy_ordered_and_keeps_no_more_under_way_than_it_may(self, queue: taskqueue.Queue) -> None:
        found: list[int] = []
        under_way: list[int] = []

        def numbers() -> Iterator[int]:
            for number in range(50):
                under_way.append(number + 1 - len(found))
                if number == 9:  # no value is there before, so as many are under way as may be
                    shop_tasks.gate.set()
                yield number

        values = queue.map(wait, numbers(), chunksize=5, ahead=10)
        assert under_way == []
        for value in values:
            found.append(value)
        assert found == list(range(50)) and max(under_way) == 10
        assert list(queue.map(plus, [1, 2], [10, 20])) == [11, 22]
        assert list(queue.map(num, [])) == []

    def test_gather_and_as_completed(self, queue: taskqueue.Queue) -> None:
        slow = queue.submit(wait, 1)
        quick = queue.submit(num, 2)

        completed = taskqueue.as_completed([slow, quick], timeout=PATIENCE)
        assert next(completed) is quick
        shop_tasks.gate.set()
        assert next(completed) is slow
        assert queue.gather(slow, quick).result(PATIENCE) == [1, 2]
        assert queue.gather(slow, quick).done()
        with pytest.raises(TaskFailure):
            queue.gather(slow, queue.submit(fail)).result(PATIENCE)

    def test_as_completed_in_vain(self, queue: taskqueue.Queue) -> None:
        with pytest.raises(ResultTimeout):
            list(taskqueue.as_completed([queue.submit(wait)], timeout=0.1))

    def test_progress_shows_nothing_where_there_is_no_terminal(
        self, queue: taskqueue.Queue, capfd: pytest.CaptureFixture[str]
    ) -> None:
        deferreds = [queue.submit(num, number) for number in range(5)]

        assert sorted(each.value for each in taskqueue.progress(deferreds)) == [0, 1, 2, 3, 4]
        assert sorted(each.value for each in taskqueue.progress(each for each in deferreds)) == [0, 1, 2, 3, 4]
        waiting = (queue.submit(wait, number) for number in (5, 6))
        shop_tasks.gate.set()
        assert all(each.has_ended for each in taskqueue.progress(waiting))
        assert list(taskqueue.progress(iter(()))) == []
        assert [each.value for each in taskqueue.progress(deferreds[0])] == [0]
        assert len(list(taskqueue.progress(queue.gather(*deferreds)))) == 5
        assert list(taskqueue.progress(queue.map(num, range(3)))) == [0, 1, 2]
        assert capfd.readouterr().err == ""

    def test_progress_passes_on_what_completes_when_it_does(self, queue: taskqueue.Queue) -> None:
        ended, waiting = queue.submit(num, 1), queue.submit(wait, 2)
        found = taskqueue.progress(taskqueue.as_completed([waiting, ended], timeout=PATIENCE))

        assert next(found) is ended
        shop_tasks.gate.set()
        assert list(found) == [waiting]

    def test_progress_shows_a_bar_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        screen, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        with served("memory://") as queue, open(terminal, "w") as stderr:
            monkeypatch.setattr(sys, "stderr", stderr)
            deferreds = [queue.submit(num, number) for number in range(5)]
            assert len(list(taskqueue.progress(deferreds, "numbers"))) == 5
        seen = ""
        with contextlib.suppress(OSError):  # it says so that nobody writes any more
            while found := os.read(screen, 1 << 16):
                seen += found.decode()
        os.close(screen)
        assert "numbers" in seen and "5/5" in seen

    def test_reduce_is_a_chain_of_tasks(self, store: taskqueue.Queue) -> None:
        assert store.reduce(plus, range(20), 100).result(PATIENCE) == 290

    def test_reduce_of_nothing_is_the_value_that_it_begins_with(self, store: taskqueue.Queue) -> None:
        nothing = store.reduce(plus, [], 100)

        assert store.deferred(pickle.loads(pickle.dumps(nothing))).result(0) == 100
        assert nothing.result(0) == 100 and nothing.done() and nothing.status == State.SUCCEEDED
        assert nothing.progress is None and not nothing.cancel()
        assert nothing.then(num).result(PATIENCE) == 100
        assert store.submit(same, [nothing, {1: nothing}]).result(PATIENCE) == [100, {1: 100}]
        assert store.reduce(repaint, [], Order(1)).result(0) == Order(1)  # type: ignore[arg-type]
        number = store.submit(num, 1)
        assert store.reduce(plus, [], number.argument) is number
        (inside,) = store.reduce(same, [], [number]).result(0)  # type: ignore[arg-type]
        assert inside is number

    def test_what_needs_values_is_refused_where_there_are_none(self, queue: taskqueue.Queue) -> None:
        with pytest.raises(ValueError, match=r"map takes the values .* shop\.quiet has ignore_result"):
            queue.map(quiet, [])
        with pytest.raises(ValueError, match=r"reduce takes the values .* shop\.plus has ignore_result"):
            queue.options(ignore_result=True).reduce(plus, [1], 0)
        for together in (queue.gather, lambda *each: list(taskqueue.as_completed(each))):
            with pytest.raises(TypeError, match="None is no Deferred"):
                together(queue.submit(quiet))

    def test_a_value_that_is_there_need_not_wait_for_the_iterable(self, queue: taskqueue.Queue) -> None:
        found: list[int] = []

        def slowly() -> Iterator[int]:
            number = 0
            while not found and number < 1000:
                yield number
                number += 1
                time.sleep(0.01)

        for value in queue.map(num, slowly(), chunksize=1, ahead=2000):
            found.append(value)
        assert found == list(range(len(found))) and len(found) < 1000


class TestIdentity:
    def test_one_id_is_under_way_once(self, store: taskqueue.Queue) -> None:
        first = store.submit(invoice, 4711)

        with pytest.raises(DuplicateTask) as found:
            store.submit(invoice, 4711)
        assert found.value.deferred is first and first.id == "invoice-4711"
        shop_tasks.gate.set()
        assert first.result(PATIENCE) == 4711
        assert store.submit(invoice, 4711).result(PATIENCE) == 4711

    def test_the_steps_of_a_reduction_have_one_each(self, store: taskqueue.Queue) -> None:
        with pytest.raises(DuplicateTask):
            store.options(id="same").reduce(plus, range(3), 0)
        assert len(store) == 0
        assert store.options(id=lambda _, item: f"step-{item}").reduce(plus, range(3), 0).id == "step-2"

    def test_waiting_tasks_are_counted_and_discarded(self, store: taskqueue.Queue) -> None:
        some = [store.options(delay=3600).submit(num, number) for number in range(3)]

        assert len(store) == 3 and bool(store)
        assert store.discard_pending() == 3
        assert len(store) == 0 and {each.status for each in some} == {State.CANCELLED}

    def test_a_value_is_kept_for_as_long_as_was_said(self, store: taskqueue.Queue) -> None:
        short = store.options(result_timeout=0.2).submit(num, 5)
        assert short.result(PATIENCE) == 5

        def expired() -> bool:
            error = store.deferred(short.id).exception(PATIENCE)
            return isinstance(error, TaskExpired)

        until(expired)
