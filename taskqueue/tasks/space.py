"""Functions by name."""

from __future__ import annotations

import inspect
import re
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar, Unpack, overload

from taskqueue.formats import values
from taskqueue.formats.classes import hints_of
from taskqueue.tasks.calling import AsyncTaskWorker, TaskWorker
from taskqueue.tasks.options import TaskOptions, check

__all__ = ["Task", "TaskSpace", "result_classes", "task_of"]

F = TypeVar("F", bound=Callable[..., Any])
_NAME = re.compile(r"[^\s.]+(\.[^\s.]+)*")
_TASK, _METHODS = "__taskqueue_task__", "__taskqueue_methods__"  # attributes of functions
MAIN = ("__main__", "__mp_main__")  # the main program, and what it is called in its worker processes


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
    """The classes that a result of the task `name` may have; those of any task, where this program has none of it."""
    tasks = [task for space in list(_spaces) for task in space.tasks.values()]
    found: dict[str, type] = {}
    for task in [task for task in tasks if task.name == name] or tasks:
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
