"""The value of a task, which may not be there yet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from taskqueue.client.ends import End
from taskqueue.errors import ResultTimeout, TaskExpired, TaskFailure, Unsupported
from taskqueue.lifecycle import State
from taskqueue.record import Progress, Record
from taskqueue.tasks import Promise, Task

if TYPE_CHECKING:
    from taskqueue.client.queue import Queue

__all__ = ["Deferred"]

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class Deferred(Promise, Generic[T]):
    """What a task will return.  Reads like a concurrent.futures.Future, and can be awaited.

    id: the task's id, by which any program finds it again: `queue.deferred(id)`.
    name: the task's name; empty where it was made from an id, and the store has not been asked about it yet.
    awaited: the id of the task whose value is to be its own: mostly this one.

    Given to another task as an argument, or anywhere inside of one, it stands for its value.  Pickled, it is its id and
    name; whoever loads it says `queue.deferred(it)` before asking it anything.
    """

    __slots__ = ("__weakref__", "_end", "_queue", "_task", "_told", "awaited", "id")

    def __init__(self, id: str, queue: Queue | None, task: Task | str = "") -> None:
        self.id = self.awaited = id
        self._queue = queue
        self._task = task
        self._end: End | Exception | None = None
        self._told: list[Callable[[], object]] | None = None  # a list for each would be a seventh of the memory

    @property
    def name(self) -> str:
        return self._task if isinstance(self._task, str) else self._task.name

    @property
    def queue(self) -> Queue:
        """The queue in which it is.  Raises Unsupported for one that was pickled, and is in none yet."""
        if self._queue is None:
            raise Unsupported(
                f"task {self.id} came out of a pickle: expected queue.deferred(...) to be told of it first"
            )
        return self._queue

    @property
    def argument(self) -> T:
        """Itself, as an argument of another task; type checkers take it for the value that it stands for."""
        return cast("T", self)

    def _called(self, task: str) -> None:
        """What it waits for is called `task`."""
        if not self._task and self.awaited == self.id:
            self._task = task

    def follow(self, id: str, task: str) -> None:
        """What it waited for, called `task`, has handed its value on to the task `id`: it waits for that one now."""
        self._called(task)
        self.awaited = id

    def settle(self, end: End | Exception) -> None:
        """It has ended, or nobody will ever know; the first time that somebody says so holds."""
        if isinstance(end, End):
            self._called(end.task)
        told: list[Callable[[], object]] = []
        # Ctrl-C may come with a call, and not between other steps: who is taken out of the list is called once.
        try:
            with self.queue.lock:
                if self._end is None:
                    self._end, told, self._told = end, (self._told or [])[::-1], None
            while told:
                each = told[-1]
                del told[-1]
                each()
        finally:
            while told:
                each = told[-1]
                del told[-1]
                each()

    def within(self, queue: Queue) -> Deferred[T]:
        """The same of a queue; for what has ended."""
        found: Deferred[T] = Deferred(self.id, queue, self._task)
        found._end = self._end
        return found

    @property
    def has_ended(self) -> bool:
        """Whether its end has been heard of here; nobody is asked."""
        return self._end is not None

    def tell(self, told: Callable[[], object]) -> None:
        """Call `told`, which raises nothing, in any thread, once its end is heard of; now, if it was."""
        with self.queue.lock:
            if self._end is None:
                self._told = [*(self._told or ()), told]
                return
        told()

    def untell(self, told: Callable[[], object]) -> None:
        """Don't call `told` any more, where that was not done yet."""
        with self.queue.lock:
            self._told = [each for each in self._told or () if each != told] or None

    def when_done(self, told: Callable[[], object]) -> None:
        """The same, and have somebody listen."""
        self.tell(told)
        if self._end is None:
            self.queue.ends.want([self])

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, up to `timeout` seconds (None: for ever); whether it has."""
        if self._end is not None:
            return True
        over = threading.Lock()  # no Event: Ctrl-C inside of it leaves its lock locked for who tells
        over.acquire()
        self.when_done(over.release)
        if over.acquire(timeout=-1 if timeout is None else max(0.0, min(timeout, threading.TIMEOUT_MAX))):
            return True
        self.untell(over.release)
        return self._end is not None

    def result(self, timeout: float | None = None) -> T:
        """Wait up to `timeout` seconds (None: for ever) for its value.

        Raises TaskFailure with the error and the remote traceback; TaskExpired where the value is not kept any more;
        ResultTimeout; UnknownTask; BrokerUnavailable.
        """
        if not self.wait(timeout):
            raise ResultTimeout(self.id, timeout or 0.0)
        end = self._end
        if isinstance(end, Exception):
            raise end
        assert end is not None
        failure = self._failure(end)
        if failure is not None:
            raise failure
        assert end.payload is not None
        tasks = (self._task,) if self.awaited == self.id else (self._task, end.task)
        return cast("T", self.queue.value_of(end.payload, *tasks))

    def _failure(self, end: End) -> TaskFailure | None:
        if end.state != State.SUCCEEDED:
            return TaskFailure(self.id, end.type, str(end.state), end.error, end.traceback, task=self.name)
        if end.payload is None:
            return TaskExpired(self.id, end.type, str(end.state), "no result is kept", task=self.name)
        return None

    @property
    def value(self) -> T:
        """Its value, without waiting.  Raises ResultTimeout where it has not ended yet; else as `result`."""
        if not self.done():
            raise ResultTimeout(self.id, 0.0)
        return self.result(0.0)

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Wait as `result` does; what that would raise, or None.  Raises ResultTimeout."""
        if not self.wait(timeout):
            raise ResultTimeout(self.id, timeout or 0.0)
        end = self._end
        return self._failure(end) if isinstance(end, End) else end

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        if self._end is None:
            self.queue.ends.look(self)
        return self._end is not None

    __bool__ = done

    @property
    def status(self) -> State:
        """Where it stands; where its value is that of another task, where that one does.

        Raises UnknownTask; Unsupported over RabbitMQ, as long as it is under way.
        """
        if not self.done() or not isinstance(self._end, End):
            return self._record().state
        return self._end.state

    def _record(self) -> Record:
        """Of what it waits for."""
        found = self.queue.record(self.awaited)
        self._called(found.task)
        return found

    @property
    def progress(self) -> Progress | None:
        """How far it says it is; where its value is that of another task, that one.

        Raises UnknownTask; Unsupported over RabbitMQ.
        """
        return self._record().progress if self.id else None

    def cancel(self) -> bool:
        """Have it end `cancelled`, whether it waits or runs; False where it has ended.  As `Queue.cancel`.

        Where its value is that of another task, it is that one.
        """
        if self.done() and isinstance(self._end, End):
            return False
        return self.queue.cancel(self.awaited)

    def add_done_callback(self, function: Callable[[Deferred[T]], object]) -> None:
        """Call `function` with this once it has ended, in a thread for callbacks alone; now, if it has.

        What it raises is logged.  One that waits for other tasks keeps other callbacks waiting, and nobody else.
        """
        if self._end is not None:
            _call(function, self)
            return
        self.when_done(lambda: self.queue.callbacks.call(lambda: _call(function, self)))

    def then(self, function: Callable[..., R], /, *args: Any, **kwargs: Any) -> Deferred[R]:
        """Submit `function(value, *args, **kwargs)`, which waits for this value."""
        return self.queue.submit(function, self, *args, **kwargs)

    def __await__(self) -> Generator[Any, None, T]:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def told() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits in it any more
                loop.call_soon_threadsafe(_set, over)

        if self._end is None:
            try:
                yield from loop.run_in_executor(None, self.when_done, told).__await__()
                yield from over.__await__()
            finally:
                self.untell(told)  # where this was cancelled, and its task goes on
        return self.result(0.0)

    def __repr__(self) -> str:
        end = self._end
        state = str(end.state) if isinstance(end, End) else "pending" if end is None else type(end).__name__
        where = "no queue" if self._queue is None else f"queue {self._queue.name}"
        return f"<Deferred {self.name or 'task'} in {where}: {self.id}, {state}>"

    def __copy__(self) -> Deferred[T]:
        return self

    def __deepcopy__(self, memo: object) -> Deferred[T]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.id:  # there is no such task: the value is all
            return _ended, (self.name, self._end)
        return Deferred, (self.id, None, self.name)


def _ended(name: str, end: End) -> Deferred[Any]:
    found: Deferred[Any] = Deferred("", None, name)
    found._end = end
    return found


def _set(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)


def _call(function: Callable[[Deferred[T]], object], deferred: Deferred[T]) -> None:
    try:
        function(deferred)
    except KeyboardInterrupt:
        raise
    except BaseException:  # the others are told all the same
        log.exception("a callback of %r failed", deferred)
