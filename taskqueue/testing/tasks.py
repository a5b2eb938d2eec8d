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
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack

import pytest

from taskqueue import broker
from taskqueue.client.queue import Queue
from taskqueue.inside.running import running
from taskqueue.lifecycle import State
from taskqueue.tasks import Task, TaskOptions, TaskSpace, current
from taskqueue.workitem import Workitem

__all__ = ["at_once"]

BUSY = (State.WAITING, State.RUNNING, State.RETRYING)
SOON = 1.0  # seconds
THREADS = 32  # for tasks that submit tasks, and wait for them
LOOK_EVERY = 0.002  # seconds


class _AtOnce(Queue):
    def sent(self, calls: Sequence[tuple[Task | str, Workitem]], *, unique: bool = False) -> list[Any]:
        found = super().sent(calls, unique=unique)
        try:
            current()
        except LookupError:  # it is the test that submits, and no task
            while any((each.due or 0.0) < time.time() + SOON for each in self.history(states=BUSY)):
                time.sleep(LOOK_EVERY)
        return found


@pytest.fixture
def at_once() -> Iterator[Callable[..., Queue]]:
    """A function: of a task space, and options of all tasks, the queue that runs them.

    What has a delay, or waits for something that has one, has not ended when `submit` returns. Tasks that a task
    submits have, too; to the task itself `submit` returns at once, as in production.
    """
    with contextlib.ExitStack() as stack:

        def queue(space: TaskSpace, name: str = "default", **task_options: Unpack[TaskOptions]) -> Queue:
            found = stack.enter_context(_AtOnce(broker.connect("memory://"), name, task_options))
            stack.enter_context(running(found, space, threads=THREADS, retry_delay=0.001))
            return found

        yield queue
