"""Who waits for a task is told, whatever others do meanwhile: over every broker, by threads of the test."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import shop_tasks
from shop_tasks import num, promise, wait
from tasking import ALL, PATIENCE, STORES, make_url, served, until

import taskqueue
from taskqueue.errors import BrokerUnavailable, FormatError, ResultTimeout, Unsupported


@pytest.fixture(params=ALL)
def queue(request: pytest.FixtureRequest) -> Iterator[taskqueue.Queue]:
    with served(make_url(request, request.param)) as queue:
        yield queue


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[taskqueue.Queue]:
    with served(make_url(request, request.param)) as queue:
        yield queue


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """What they return, or raise."""
    found: list[Any] = [None] * len(functions)

    def call(at: int) -> None:
        try:
            found[at] = functions[at]()
        except Exception as error:
            found[at] = error

    threads = [threading.Thread(target=call, args=(at,), daemon=True) for at in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    return found


class TestOneId:
    def test_there_is_one_deferred_of_an_id_as_long_as_somebody_has_it(self, store: taskqueue.Queue) -> None:
        id = store.submit(wait, 5).id
        first = store.deferred(id)

        assert store.deferred(id) is first is copy.deepcopy(first)

    def test_all_that_were_made_of_one_id_are_told(self, store: taskqueue.Queue) -> None:
        id = store.submit(wait, 5).id
        several = [taskqueue.Deferred[int](id, store) for _ in range(3)]

        assert not several[0].wait(0.01) and not several[1].done()
        assert not several[0].wait(0.01)  # once more
        threading.Timer(0.1, shop_tasks.gate.set).start()
        assert in_threads(*(lambda each=each: each.result(PATIENCE) for each in several)) == [5, 5, 5]  # type: ignore[misc]

    def test_who_had_an_id_before_is_told_of_his_own_end(self, store: taskqueue.Queue) -> None:
        first = store.options(id="again").submit(num, 1)
        until(lambda: store.record("again").ended)
        second = store.options(id="again").submit(num, 2)

        assert (first.result(PATIENCE), second.result(PATIENCE)) == (1, 2)


class TestOthers:
    """What one does is nothing to the others."""

    def test_an_event_loop_that_is_closed_while_it_is_waited_for(self, queue: taskqueue.Queue) -> None:
        deferred = queue.submit(wait, 5)

        async def in_vain() -> None:
            await asyncio.wait_for(deferred, 0.01)

        with pytest.raises(TimeoutError):
            asyncio.run(in_vain())
        other = queue.submit(wait, 6)
        threading.Timer(0.2, shop_tasks.gate.set).start()
        assert in_threads(lambda: other.result(PATIENCE), lambda: deferred.result(PATIENCE)) == [6, 5]

    @pytest.mark.parametrize("error", [ValueError, SystemExit])
    def test_callbacks_that_raise(self, queue: taskqueue.Queue, error: type[BaseException]) -> None:
        def call(_: object) -> None:
            raise error

        deferred = queue.submit(wait, 5)
        deferred.add_done_callback(call)
        other = queue.submit(wait, 6)
        shop_tasks.gate.set()
        assert in_threads(lambda: other.result(PATIENCE), lambda: deferred.result(PATIENCE)) == [6, 5]

    def test_they_are_told_when_the_queue_is_closed(self, queue: taskqueue.Queue) -> None:
        waited_for, other = queue.submit(wait, 5), queue.submit(wait, 6)
        waited_for.add_done_callback(lambda _: called.set())
        called = threading.Event()

        threading.Timer(0.1, queue.close).start()
        (error,) = in_threads(lambda: waited_for.result(PATIENCE))

        assert isinstance(error, BrokerUnavailable) and waited_for.id in str(error)
        assert called.wait(PATIENCE)
        shop_tasks.gate.set()
        if queue.broker.capabilities.store:
            assert queue.deferred(waited_for.id).result(PATIENCE) == 5
            assert other.result(PATIENCE) == 6
        else:
            with pytest.raises(BrokerUnavailable, match=other.id):
                other.result(PATIENCE)


INTERRUPTED = """
import os, random, signal, threading, time
import taskqueue

space = taskqueue.TaskSpace("shop")

@space.task
def num(value):
    return value

def interrupt(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

def others():
    while not over:
        assert queue.submit(num, 1).result() == 1

over = armed = False
errors = []
threading.excepthook = lambda raised: errors.append(repr(raised.exc_value))
signal.signal(signal.SIGALRM, interrupt)
queue = taskqueue.connect("memory://")
with taskqueue.running(queue, space, threads=2):
    threads = [threading.Thread(target=others, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 4
    while time.monotonic() < until:
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.003))
            while armed:  # Python loses what is raised while it cleans up after weak references
                task = queue.submit(num, 1)
                task.done()
                task.result()
        except KeyboardInterrupt:
            pass
    over = True
    for thread in threads:
        thread.join(30)
    print([thread.is_alive() for thread in threads], errors, flush=True)
    os._exit(0)
"""


def test_ctrl_c_again_and_again_keeps_no_other_thread_waiting() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False)

    assert done.stdout == "[False, False] []\n", done.stdout + done.stderr


class TestValuesOfOthers:
    """A task whose value is that of another one."""

    @pytest.mark.parametrize("wanted", ["at once", "afterwards"])
    def test_a_long_chain_of_them(self, store: taskqueue.Queue, wanted: str) -> None:
        last = store.options(id="c300").submit(wait, 5)
        chain = [store.options(id=f"c{number}").submit(promise, f"c{number + 1}") for number in reversed(range(300))]
        if wanted == "afterwards":
            shop_tasks.gate.set()
            taskqueue.Deferred(last.id, store).result(PATIENCE)
            until(lambda: len(store) == 0)
        assert not chain[-1].wait(0.1) or wanted == "afterwards"
        shop_tasks.gate.set()
        assert chain[-1].result(PATIENCE) == 5
        assert all(each.done() for each in chain)

    @pytest.mark.parametrize("ids", [["a"], ["a", "b", "c"]])
    def test_a_circle_is_an_error_and_others_are_told(self, store: taskqueue.Queue, ids: list[str]) -> None:
        circle = [
            store.options(id=id).submit(promise, after) for id, after in zip(ids, [*ids[1:], ids[0]], strict=True)
        ]

        for each in circle:
            with pytest.raises(FormatError, match="depends on it"):
                each.result(PATIENCE)
        assert store.submit(num, 1).result(PATIENCE) == 1

    def test_where_there_is_no_store_it_is_refused_and_others_are_told(self, queue: taskqueue.Queue) -> None:
        if queue.broker.capabilities.store:
            pytest.skip("this broker is a store")
        other, refused = queue.submit(wait, 5), queue.submit(promise, "other")

        with pytest.raises(Unsupported, match="postgresql://"):
            refused.result(PATIENCE)
        with pytest.raises(ResultTimeout):
            other.result(0.1)
        shop_tasks.gate.set()
        assert other.result(PATIENCE) == 5
