"""Calls of functions, as workitems."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from taskqueue.client.deferred import Deferred
from taskqueue.client.sending import workitem
from taskqueue.errors import FormatError
from taskqueue.formats import values
from taskqueue.formats.classes import name_of
from taskqueue.tasks import Task, task_of
from taskqueue.tasks.options import check, several
from taskqueue.tasks.promise import promise_of
from taskqueue.workitem import Workitem

if TYPE_CHECKING:
    from taskqueue.client.queue import Queue

__all__ = ["Named", "Submitter"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

KEPT = 3600.0  # seconds for which a result is kept, unless the task says otherwise
CHUNK = 1000  # tasks that are sent at a time by `reduce`


class Submitter:
    """Submits tasks to a queue, with options of its own over those of the tasks, and of the queue."""

    def __init__(self, queue: Queue, options: Mapping[str, Any]) -> None:
        check(options)
        self._queue = queue
        self._options = options
        self._headers: Mapping[str, Any] = MappingProxyType({})  # those that were sent last

    @overload
    def submit(
        self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Deferred[R]: ...
    @overload
    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[R]: ...
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Have a worker process call `function(*args, **kwargs)`.

        Deferreds anywhere inside the arguments are waited for, and stand for their values.  With ignore_result=True
        None is returned.

        Raises FormatError for an argument that can't be sent, naming it; TypeError for a function that is no task;
        DuplicateTask where its id is under way; UnknownTask for a deferred that is not known any more; SendFailed;
        Unsupported where that needs a store, and the broker is none; BrokerUnavailable.
        """
        task = task_of(function)
        return self._sent([(task, self._workitem(task, args, kwargs))])[0]

    @property
    def tasks(self) -> Named:
        """Tasks by name, without their code: `queue.tasks.shop.mail.send(1)` is a Deferred."""
        return Named(self, "")

    def call(self, name: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Deferred[Any]:
        """Submit a task by its full name.  As `submit`."""
        return self._sent([(name, self._workitem(name, tuple(args), kwargs))])[0]

    def map(
        self, function: Callable[..., R], *iterables: Iterable[Any], chunksize: int = 100, ahead: int = 1000,
        timeout: float | None = None,
    ) -> Iterator[R]:  # fmt: skip
        """The values of `function` for each item, or each of several iterables' items together, in order.

        Tasks are sent `chunksize` at a time, and no more than `ahead` before their values are taken; nothing is sent
        before the first value is asked for.  timeout: seconds to wait for each of them.
        """
        if chunksize < 1 or ahead < 1:
            raise ValueError("expected chunksize and ahead of 1 or more")
        self._expect_result(task_of(function), "map")
        chunksize = min(chunksize, ahead)
        return self._mapped(self._many(function, iterables, chunksize), ahead - chunksize, timeout)

    def submit_many(
        self, function: Callable[..., R], *iterables: Iterable[Any], chunksize: int = 1000
    ) -> list[Deferred[R]]:
        """Submit `function` for each item, or each of several iterables' items together; `chunksize` at a time."""
        return list(itertools.chain.from_iterable(self._many(function, iterables, chunksize)))

    def _many(
        self, function: Callable[..., Any], iterables: Sequence[Iterable[Any]], chunksize: int
    ) -> Iterator[list[Deferred[Any]]]:
        """Sends a chunk whenever it is asked for one."""
        task = task_of(function)
        calls = zip(*iterables)  # noqa: B905  (as map does it)
        while chunk := [(task, self._workitem(task, args, {})) for args in itertools.islice(calls, chunksize)]:
            yield self._sent(chunk)

    def _mapped(self, chunks: Iterator[list[Deferred[Any]]], room: int, timeout: float | None) -> Iterator[Any]:
        """The values; another chunk is sent while no more than `room` tasks are under way."""
        outstanding: deque[Deferred[Any]] = deque()
        over = False
        while outstanding or not over:
            if not over and len(outstanding) <= room:
                chunk = next(chunks, [])
                over = not chunk
                outstanding.extend(chunk)
            # A value that is there need not wait for an iterable that takes its time.
            if outstanding and (over or len(outstanding) > room or outstanding[0].done()):
                yield outstanding.popleft().result(timeout)

    def reduce(self, function: Callable[[R, T], R], iterable: Iterable[T], initial: R) -> Deferred[R]:
        """`functools.reduce`, each step a task that waits for the one before."""
        task = task_of(function)
        self._expect_result(task, "reduce")
        value: Any = initial
        sent: list[tuple[Task, Workitem]] = []
        unique = False
        for item in iterable:
            step = self._workitem(task, (value, item), {})
            unique = unique or bool(step.id)
            step = step.named()
            value = Deferred(step.id, self._queue, task)
            sent.append((task, step))
            if len(sent) == CHUNK:
                value, sent = self._queue.sent(sent, unique=unique)[-1], []
        if sent:
            value = self._queue.sent(sent, unique=unique)[-1]
        return value if isinstance(value, Deferred) else self._queue.ended_with(value, task)

    def _options_of(self, task: Task | None) -> dict[str, Any]:
        found: dict[str, Any] = {"result_timeout": KEPT}
        for options in (self._queue.task_options, {} if task is None else task.options, self._options):
            if "delay" in options or "due" in options:  # two ways to say the same: the later one wins
                found.pop("delay", None)
                found.pop("due", None)
            found.update(options)
        return found

    def _expect_result(self, task: Task, what: str) -> None:
        if self._options_of(task).get("ignore_result"):
            raise ValueError(f"{what} takes the values of its tasks, and {task.name} has ignore_result=True")

    def _workitem(self, task: Task | str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Workitem:
        name, own, classes = (task, {}, None) if isinstance(task, str) else (task.name, task.options, task.classes)
        options = self._options_of(None if isinstance(task, str) else task)
        encoded = values.encode_call(args, kwargs, deferred=promise_of, classes=classes)
        if len(encoded.payload.body) > self._queue.max_body:
            raise FormatError(
                f"the arguments of {name} have {len(encoded.payload.body)} bytes, more than {self._queue.max_body}"
            )
        headers: dict[str, Any] = {"task": name}
        for option in ("retries", "time_limit", "result_timeout"):
            if options.get(option) is not None:
                headers[option] = options[option]
        if options.get("on_error", "fail") != "fail":
            headers["on_error"] = options["on_error"]
        if options.get("ignore_result"):
            headers["ignore_result"] = True
        if "retry_on" in options and ("retry_on" in self._options or "retry_on" not in own):  # else its worker knows
            headers["retry_on"] = [name_of(kind) for kind in several(options["retry_on"])]
        id = options.get("id")
        found = workitem(
            self._queue.name,
            encoded.payload.body,
            content_type=encoded.payload.content_type,
            id=id(*args, **kwargs) if callable(id) else id,
            **{k: options[k] for k in ("priority", "reference", "delay", "due", "expiration") if k in options},
        )
        if (last := self._headers) != headers:  # else one is enough for all that are in memory
            last = self._headers = MappingProxyType(headers)
        return found._replace(after=encoded.after, headers=last)

    def _sent(self, calls: Sequence[tuple[Task | str, Workitem]]) -> list[Deferred[Any]]:
        return self._queue.sent(calls, unique=any(workitem.id for _, workitem in calls))


class Named:
    """A name, or the beginning of one, of a task."""

    def __init__(self, submitter: Submitter, name: str) -> None:
        self._submitter = submitter
        self._name = name

    def __getattr__(self, name: str) -> Named:
        if name.startswith("__") and name != "__main__":  # what copy, pickle and others look for is no task
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> Named:
        return Named(self._submitter, f"{self._name}.{name}" if self._name else name)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return self._submitter.call(self._name, args, kwargs)

    def __repr__(self) -> str:
        return f"<task {self._name}>"
