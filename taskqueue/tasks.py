"""Functions as tasks: a `TaskSpace` names them, and is itself the worker that calls them.

    space = TaskSpace("shop.mail")

    @space.task
    def send(order: int) -> str: ...

registered in the package's metadata as `'worker.plugins': ['default = shop.mail:space.factory']`; `default` is the name
of the queue that programs submit to.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
import weakref
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypedDict, TypeVar, Unpack, overload

from taskqueue.depending import NO_RESULT
from taskqueue.errors import FormatError, TaskCancelled, TaskExpired, TaskFailure
from taskqueue.formats import values
from taskqueue.formats.classes import hints_of, name_of
from taskqueue.lifecycle import State
from taskqueue.outcome import Payload
from taskqueue.worker import BaseWorker, Blocked, CurrentWorkitem, Failure, Reject, Result, Retry

__all__ = [
    "Promise",
    "Task",
    "TaskContext",
    "TaskOptions",
    "TaskSpace",
    "TaskWorker",
    "check",
    "current",
    "several",
    "task_of",
]

F = TypeVar("F", bound=Callable[..., Any])
_NAME = re.compile(r"[^\s.]+(\.[^\s.]+)*")
_TASK, _METHODS = "__taskqueue_task__", "__taskqueue_methods__"  # attributes of functions
LOOK_EVERY = 0.1  # seconds, for whether a coroutine was cancelled
MAIN = ("__main__", "__mp_main__")  # the main program, and what it is called in its worker processes


class Promise:
    """What stands for the value of another task: its `id` and its task's name go over in its place.

    id: empty where there is no such task, but a value: that goes over, then.
    """

    __slots__ = ()
    id: str

    @property
    def value(self) -> Any:
        """The value, where it is there."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The task's name; empty where it is not known."""
        raise NotImplementedError


class TaskOptions(TypedDict, total=False):
    """What may be said of a task: where it is made, for a whole queue, or as it is submitted, which wins.

    retries: how often it is tried again after a failure, in place of its group's.  retry_on: only after these
        exceptions, and after its time limit.
    time_limit: seconds that an attempt may take.
    priority: 0 to 255, larger first.
    result_timeout: seconds that its result is kept after its end; None: as long as its record.  An hour by default.
    ignore_result: keep and send no result.
    on_error: what becomes of it where a task failed whose value it waits for: `fail`, or `pass` the TaskFailure in.
    id: its id, or a function of its arguments that gives it; only one of an id can be under way.
    reference, delay, due, expiration: as `Queue.send` has them.
    """

    retries: int | None
    retry_on: type[Exception] | tuple[type[Exception], ...]
    time_limit: float | None
    priority: int | None
    result_timeout: float | None
    ignore_result: bool
    on_error: str
    id: str | Callable[..., str] | None
    reference: str
    delay: float | None
    due: float | None
    expiration: float | None


def check(options: Mapping[str, Any]) -> None:
    """Raises TypeError for options that there are not, ValueError for values that make no sense."""
    unknown = sorted(set(options) - set(TaskOptions.__annotations__))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r} of a task: expected {', '.join(TaskOptions.__annotations__)}")
    if options.get("on_error", "fail") not in ("fail", "pass"):
        raise ValueError(f"on_error {options['on_error']!r}: expected 'fail' or 'pass'")
    for name in ("retries", "time_limit", "result_timeout"):
        value = options.get(name)
        if value is not None and not value >= (1e-3 if name == "time_limit" else 0):
            raise ValueError(f"{name} {value!r}: expected a positive number")
    for name in ("retries", "priority"):
        if not isinstance(options.get(name), int | None):
            raise TypeError(f"{name} {options[name]!r}: expected a whole number")
    for kind in several(options.get("retry_on", ())):
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(f"retry_on {options['retry_on']!r}: expected a class of exceptions, or a tuple of them")
    if not (isinstance(options.get("id"), str | None) or callable(options["id"])):
        raise TypeError(f"id {options['id']!r}: expected text, or a function that makes it of the arguments")


def several(kinds: Any) -> tuple[Any, ...]:
    """The classes of `retry_on`, which may be one, as a tuple."""
    return kinds if isinstance(kinds, tuple) else (kinds,)


@dataclass(frozen=True, eq=False)
class Task:
    """A function with the name that it goes by."""

    name: str
    function: Callable[..., Any]
    space: TaskSpace
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return hints_of(self.function)

    @cached_property
    def classes(self) -> Mapping[str, type]:
        """The classes that its arguments may have: those that their annotations name, and those of its space."""
        named = values.classes_of(*(hint for name, hint in self._hints.items() if name != "return"))
        return {**self.space.classes, **named}

    @cached_property
    def result_classes(self) -> Mapping[str, type]:
        """The same of what it returns."""
        return {**self.space.classes, **values.classes_of(self._hints.get("return"))}


def task_of(function: Callable[..., Any]) -> Task:
    """The task that `function`, or a method of an object, is.  Raises TypeError where it is none."""
    for owner, task in getattr(getattr(function, "__func__", None), _METHODS, ()):
        if owner is getattr(function, "__self__", None):
            return task  # type: ignore[no-any-return]
    found = getattr(function, _TASK, None)
    name = getattr(function, "__qualname__", repr(function))
    if found is None:
        raise TypeError(f"{name} is no task: expected a function that @space.task was put before, or space.expose(...)")
    if found.function is getattr(function, "__func__", None):
        raise TypeError(
            f"{name} is a method of {function.__self__!r}, which @space.task knows nothing of: expected "  # type: ignore[attr-defined]
            "space.expose(...) of that method"
        )
    return found  # type: ignore[no-any-return]


_spaces: weakref.WeakSet[TaskSpace] = weakref.WeakSet()


def result_classes(name: str) -> Mapping[str, type]:
    """The classes that a result of the task `name` may have, as far as it is in this program; empty: of any task."""
    found: dict[str, type] = {}
    for space in list(_spaces):
        for task in space.tasks.values():
            if name in ("", task.name):
                found.update(task.result_classes)
    return found


class TaskSpace:
    """Tasks by name.  Names nest like those of packages: the task `send` of the space `shop.mail` is `shop.mail.send`.

    classes: Enums and dataclasses that arguments and results may have although no annotation names them.
    """

    def __init__(self, name: str, *, classes: tuple[type, ...] = ()) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"name {name!r}: expected words with dots between them")
        first, dot, rest = name.partition(".")
        self.name = f"{MAIN[0]}{dot}{rest}" if first in MAIN else name
        self.module: str = sys._getframe(1).f_globals.get("__name__", "")
        self.classes: Mapping[str, type] = values.classes_of(*classes)
        self._tasks: dict[str, Task] = {}
        _spaces.add(self)

    @property
    def tasks(self) -> Mapping[str, Task]:
        """All of them, by their full names."""
        return MappingProxyType(self._tasks)

    @overload
    def task(self, function: F, /) -> F: ...
    @overload
    def task(self, *, name: str = "", replace: bool = False, **options: Unpack[TaskOptions]) -> Callable[[F], F]: ...
    def task(self, *functions: F, **options: Any) -> F | Callable[[F], F]:
        """Make a function a task; it stays what it is, and can be called as before.

        name: within the space; that of the function, if it is left out.  replace: in place of one of the same name.
        options: see TaskOptions.

        Raises ValueError for a name that is taken, TypeError and ValueError for options that make no sense, or for
        what is no function, such as a classmethod.
        """
        name, replace = options.pop("name", ""), options.pop("replace", False)
        check(options)

        def make(function: F) -> F:
            plain = function.__func__ if isinstance(function, staticmethod) else function
            if any((not callable(plain), hasattr(plain, "__self__"))):
                raise TypeError(f"{function!r} is no function: space.expose(...) makes tasks of methods")
            task = self._task(plain, name, replace, options)
            setattr(plain, _TASK, task)
            self._tasks[task.name] = task
            return function

        if len(functions) > 1:
            raise TypeError("expected one function")
        return make(functions[0]) if functions else make

    def expose(self, method: F, *, name: str = "", replace: bool = False, **options: Unpack[TaskOptions]) -> F:
        """Make a method of an object a task.  In the worker process, the space must expose the object there."""
        check(options)
        function = getattr(method, "__func__", None)
        if function is None:
            raise TypeError(f"{method!r} is no method of an object that is written in Python")
        known = [(owner, task) for owner, task in getattr(function, _METHODS, ()) if owner is not method.__self__]  # type: ignore[attr-defined]
        task = self._task(method, name, replace, options)
        setattr(function, _METHODS, [*known, (method.__self__, task)])  # type: ignore[attr-defined]
        self._tasks[task.name] = task
        return method

    def _task(self, function: Callable[..., Any], name: str, replace: bool, options: Mapping[str, Any]) -> Task:
        own = name or getattr(function, "__name__", "")
        if not _NAME.fullmatch(own):
            raise ValueError(f"name {own!r} of {function!r}: expected words with dots between them, as name=...")
        task = Task(f"{self.name}.{own}", function, self, MappingProxyType(dict(options)))
        if task.name in self._tasks and not replace:
            raise ValueError(f"there is a task {task.name} already; replace=True puts this one in its place")
        return task

    def include(self, *spaces: TaskSpace) -> None:
        """Call the tasks of other spaces, too, as they are now.  Raises ValueError for names that are taken."""
        tasks = dict(self._tasks)
        for space in spaces:
            for task in space.tasks.values():
                if tasks.setdefault(task.name, task) is not task:
                    raise ValueError(f"there is a task {task.name} already")
        self._tasks = tasks

    def factory(self) -> TaskWorker:
        """The worker that calls these tasks: what the entry point names."""
        functions = [task.function for task in self._tasks.values()]
        if functions and all(map(inspect.iscoroutinefunction, functions)):
            return AsyncTaskWorker(self)
        return TaskWorker(self)


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

        Raises TaskCancelled where somebody has cancelled it.
        """
        self._worker.progress(done, total, note)

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled it."""
        return self._worker.cancelled

    def check(self) -> None:
        """Raises TaskCancelled where somebody has cancelled it."""
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
                    return TaskExpired(id, each.type, str(each.state), NO_RESULT, task=name)
                return TaskFailure(id, each.type, str(each.state), each.error, each.traceback, name)
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
            return _result(task, await self._call(task))
        except (Exception, SystemExit) as error:
            raise self._told(task, error) from error


def _result(task: Task, value: object) -> Payload | Result:
    encoded = values.encode(value, what="the result", deferred=promise_of, classes=task.result_classes)
    return Result(*encoded) if encoded.after else encoded.payload


def promise_of(value: object) -> tuple[str, Any] | None:
    """The id and the name of the task that `value` stands for, or an empty id and its value; None: for none."""
    if not isinstance(value, Promise):
        return None
    return (value.id, value.name) if value.id else ("", value.value)
