"""The worker that calls the functions of a space."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from taskqueue.depending import NO_RESULT
from taskqueue.errors import FormatError, TaskCancelled, TaskExpired, TaskFailure
from taskqueue.formats import values
from taskqueue.formats.classes import name_of
from taskqueue.lifecycle import State
from taskqueue.outcome import Payload
from taskqueue.tasks.promise import promise_of
from taskqueue.worker import BaseWorker, Blocked, CurrentWorkitem, Failure, Reject, Result, Retry

if TYPE_CHECKING:
    from taskqueue.tasks.space import Task, TaskSpace

__all__ = ["AsyncTaskWorker", "TaskContext", "TaskWorker", "current"]

LOOK_EVERY = 0.1  # seconds, for whether a coroutine was cancelled


_context: ContextVar[TaskContext] = ContextVar("taskqueue_task")


class TaskContext:
    """The task that is being run, for the function that it calls."""

    def __init__(self, worker: BaseWorker, workitem: CurrentWorkitem, name: str) -> None:
        self._worker = worker
        self.workitem = workitem
        self.name = name

    @property
    def id(self) -> str:
        """Its id."""
        return self.workitem.id

    @property
    def attempt(self) -> int:
        """1 at the first try."""
        return self.workitem.attempt

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far it is: `done` of `total`, in any unit, with a note for people.

        Raises TaskCancelled where somebody has cancelled it; ValueError or TypeError for what is no finite number.
        """
        self._worker.progress(done, total, note)

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled it; in threads of a program also whether its time limit is over."""
        return self._worker.cancelled

    def check(self) -> None:
        """Raises TaskCancelled where it is `cancelled`."""
        self._worker.check()


def current() -> TaskContext:
    """The task that calls this.  Raises LookupError outside of one."""
    try:
        return _context.get()
    except LookupError:
        raise LookupError("no task is being run in this thread") from None


class TaskWorker(BaseWorker):
    """Calls the tasks of a space; coroutines in an event loop of their own, one at a time."""

    def __init__(self, space: TaskSpace) -> None:
        self._space = space

    def handle_task(self, body: Any) -> Payload | Result:
        task = self._task()
        try:
            value = self._call(task)
            return _result(task, asyncio.run(self._awaited(value)) if inspect.iscoroutine(value) else value)
        except (Exception, SystemExit) as error:
            raise self._told(task, error) from error

    async def _awaited(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Its value; it is cancelled where it waits when somebody has cancelled its workitem."""
        running = asyncio.ensure_future(coroutine)
        while not (await asyncio.wait([running], timeout=LOOK_EVERY))[0]:
            if self.cancelled:
                running.cancel()
                break
        return await running

    def _task(self) -> Task:
        name = str(self.workitem.headers.get("task", ""))
        task = self._space.tasks.get(name)
        if task is None:
            there = ", ".join(sorted(self._space.tasks)) or "none"
            raise Reject(f"no task {name!r} in the space {self._space.name}: there are {there}")
        return task

    def _call(self, task: Task) -> Any:
        workitem = self.workitem
        inputs = {each.id: each for each in workitem.inputs}
        missing = dict[str, None]()
        within = [workitem.id]

        def resolve(id: str, name: str) -> object:
            """The value of a task; where that has other tasks in it, their values take their places."""
            if id in within:
                raise FormatError(f"the value of task {within[-1]} has that of {id} in it, and that has it in its own")
            if id not in inputs:
                missing[id] = None
                return None
            each = inputs[id]
            if each.payload is None:
                if each.state == State.SUCCEEDED:
                    return TaskExpired(id, each.type, str(each.state), NO_RESULT, task=name or each.task)
                return TaskFailure(id, each.type, str(each.state), each.error, each.traceback, name or each.task)
            within.append(id)
            value = values.decode(each.payload, classes=task.classes, resolve=resolve)
            within.pop()
            return value

        payload = Payload(workitem.raw, workitem.content_type)
        try:
            arguments, named = values.decode_call(payload, classes=task.classes, resolve=resolve)
        except FormatError as error:
            if missing:  # None stood in for them
                raise Blocked(*missing) from None
            raise Reject(f"the arguments of {task.name} can't be read: {error.detail}") from None
        if missing:
            raise Blocked(*missing)
        _context.set(TaskContext(self, workitem, task.name))
        return task.function(*arguments, **named)

    def _told(self, task: Task, error: Exception | SystemExit) -> BaseException:
        """What to raise for it: it is tried again as often as the task's options say, after errors that they name."""
        if isinstance(error, Retry | Reject | Blocked | TaskCancelled):
            return error
        named = self.workitem.headers.get("retry_on")  # of the call, or of the queue
        if isinstance(named, list):
            if not any(name_of(kind) in named for kind in type(error).__mro__):
                return Failure(error, 0)
        elif not isinstance(error, task.options.get("retry_on", BaseException)):
            return Failure(error, 0)
        retries = self.workitem.headers.get("retries", task.options.get("retries"))
        return Failure(error, retries) if isinstance(retries, int) else error


class AsyncTaskWorker(TaskWorker):
    """Calls coroutines, in one event loop for all of them."""

    async def handle_task(self, body: Any) -> Payload | Result:  # type: ignore[override]
        task = self._task()
        try:
            value = self._call(task)
            return _result(task, await value if inspect.isawaitable(value) else value)  # that came after it was made
        except (Exception, SystemExit) as error:
            raise self._told(task, error) from error


def _result(task: Task, value: object) -> Payload | Result:
    encoded = values.encode(value, what="the result", deferred=promise_of, classes=task.result_classes)
    return Result(*encoded) if encoded.after else encoded.payload
