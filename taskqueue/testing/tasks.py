"""For the tests of your own tasks: they run in the test's process, and have ended when `submit` returns::

    from taskqueue.testing.tasks import at_once   # the fixture

    def test_an_order_is_paid(at_once):
        queue = at_once(space)
        assert queue.submit(pay, 4711).value == "paid"

Nothing is left out: arguments and results are sent as ever, a failing task is tried again as its options say, what
waits for others waits, over a broker in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack

import pytest

from taskqueue import broker
from taskqueue.client.queue import Queue
from taskqueue.inside.running import running
from taskqueue.lifecycle import State
from taskqueue.tasks import Task, TaskOptions, TaskSpace
from taskqueue.workitem import Workitem

__all__ = ["at_once"]

NOT_NOW = (State.SCHEDULED, State.BLOCKED)
THREADS = 8  # for tasks that submit tasks, and wait for them
LOOK_EVERY = 0.05  # seconds


class _AtOnce(Queue):
    def sent(self, calls: Sequence[tuple[Task | str, Workitem]], *, unique: bool = False) -> list[Any]:
        named = [(task, workitem.named()) for task, workitem in calls]
        found = super().sent(named, unique=unique)
        for each in [self.deferred(workitem.id) for _, workitem in named]:
            while not each.wait(LOOK_EVERY) and each.status not in NOT_NOW:
                pass
        return found


@pytest.fixture
def at_once() -> Iterator[Callable[..., Queue]]:
    """A function: of a task space, and options of all tasks, the queue that runs them.

    What has a delay, or waits for something that has one, has not ended when `submit` returns.
    """
    with contextlib.ExitStack() as stack:

        def queue(space: TaskSpace, name: str = "default", **task_options: Unpack[TaskOptions]) -> Queue:
            found = stack.enter_context(_AtOnce(broker.connect("memory://"), name, task_options))
            stack.enter_context(running(found, space, threads=THREADS, retry_delay=0.001))
            return found

        yield queue
