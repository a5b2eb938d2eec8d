"""Tasks in worker processes of a program, over every broker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import shop_tasks
from shop_tasks import Colour, Order, Parts, add, halfway, later, num, repaint, same, space, take, weigh
from tasking import ALL, PATIENCE, make_url, until

import taskqueue
from taskqueue.errors import TaskFailure

WAITING = """\
import sys
import taskqueue
print(taskqueue.connect(sys.argv[1]).deferred(sys.argv[2]).result(60))
"""


@pytest.fixture(params=ALL)
def url(request: pytest.FixtureRequest) -> str:
    return make_url(request, request.param)


@pytest.fixture
def queue(url: str) -> Iterator[taskqueue.Queue]:
    with taskqueue.connect(url) as queue, taskqueue.running(queue, space, processes=2):
        yield queue


def test_functions_methods_coroutines_and_classes(queue: taskqueue.Queue) -> None:
    async def both() -> list[int]:
        return [await queue.submit(num, 1), *await queue.gather(queue.submit(later, 1), queue.submit(later, 2))]

    assert queue.submit(take, 3).result(PATIENCE) == 7  # of the worker process' object
    assert shop_tasks.stock.pieces == 10
    assert queue.submit(later, 5).result(PATIENCE) == 6
    assert queue.submit(repaint, Order(7)).result(PATIENCE) == Order(8, (Colour.RED,))
    assert asyncio.run(both()) == [1, 2, 3]
    assert list(queue.map(num, range(300))) == list(range(300))
    assert isinstance(queue.submit(shop_tasks.fail).exception(PATIENCE), TaskFailure)


def test_what_needs_a_store(queue: taskqueue.Queue, url: str) -> None:
    if not queue.broker.capabilities.store:
        pytest.skip("this broker is no store")
    one, two, three = queue.submit_many(num, [1, 2, 3])

    assert queue.submit(weigh, Parts(one, {two, three})).result(PATIENCE) == 6
    assert queue.submit(weigh, Parts(one, (two, 3))).result(PATIENCE) == 6
    assert queue.submit(same, {"a": [frozenset({one}), {"b": (two,)}]}).result(PATIENCE) == {
        "a": [frozenset({1}), {"b": (2,)}]
    }
    assert queue.reduce(shop_tasks.plus, range(5), 0).result(PATIENCE) == 10

    running = queue.submit(halfway)
    until(lambda: running.progress)
    assert running.progress is not None
    assert (running.progress.done, running.progress.total, running.progress.note) == (1, 2, "halfway")
    assert running.cancel()
    assert getattr(running.exception(PATIENCE), "state", "") == "cancelled"


def test_any_number_of_programs_wait_for_the_same(queue: taskqueue.Queue, url: str, tmp_path: Path) -> None:
    if not queue.broker.capabilities.several_programs:
        pytest.skip("this broker is in one program")
    if not queue.broker.capabilities.store:
        pytest.skip("this broker is no store")
    numbers = [queue.options(delay=1).submit(num, number) for number in range(10)]
    total = queue.submit(add, [each.argument for each in numbers])
    command = [sys.executable, "-c", WAITING, url, total.id]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second,
    ):
        assert [total.result(PATIENCE), *(each.communicate()[0] for each in (first, second))] == [45, "45\n", "45\n"]
