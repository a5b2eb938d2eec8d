"""What plugin authors write against.

    from taskqueue.worker import BaseWorker

    class Worker(BaseWorker):
        def handle_task(self, body):
            return do_something_heavy(body)

registered in the package's metadata as `'worker.plugins': ['workerext = extpackage.workerext:Worker.factory']`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple

from taskqueue.depending import Input
from taskqueue.errors import TaskCancelled, Unsupported
from taskqueue.outcome import Payload
from taskqueue.record import finite

__all__ = ["BaseWorker", "Blocked", "CurrentWorkitem", "Failure", "Reject", "Result", "Retry"]


class Retry(Exception):
    """Raised by a handler: try this workitem again in `after` seconds.  Does not use up its `retries`."""

    def __init__(self, after: float = 0.0, reason: str = "") -> None:
        self.after = after
        self.reason = reason
        super().__init__(reason or f"again in {after:g} s")


class Reject(Exception):
    """Raised by a handler: this workitem will never work; give it up at once, without retries."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason)


class Failure(Exception):
    """Raised by a handler in place of `error`: this workitem failed, and is tried again up to `retries` times in all.

    For those that know better than their group's `retries`.
    """

    def __init__(self, error: BaseException, retries: int) -> None:
        self.error = error
        self.retries = retries
        super().__init__(error, retries)


class Result(NamedTuple):
    """Returned by a handler in whose result there are to be values of other tasks.

    promises: the ids of those, whose results are kept as long as this one.
    """

    payload: Payload
    promises: tuple[str, ...]


class CurrentWorkitem(NamedTuple):
    """The workitem that is being handled.

    raw: its body as it lay in the queue.
    id: the same over retries.
    attempt: 1 at the first try.
    reference: the business object that it is about, or empty.
    inputs: how those have ended that it depends on, with their results, in the order in which it names them.
    """

    raw: bytes
    id: str
    type: str
    content_type: str
    headers: Mapping[str, Any]
    attempt: int
    reference: str
    inputs: tuple[Input, ...] = ()


handled_here: ContextVar[CurrentWorkitem | None] = ContextVar("handled_here", default=None)
"""Where several handlers run at once: the workitem of this thread or task."""


class Blocked(Exception):
    """Raised for a workitem that depends on something already: call the handler once these have ended, too."""

    def __init__(self, *ids: str) -> None:
        super().__init__(f"it waits for the end of {', '.join(ids)}, too")
        self.ids = ids


class BaseWorker:
    """One worker; a worker process makes one through `factory` and keeps it.

    settings: the options of the group's section of config.ini that taskqueue does not know; names in lower case.
    completes: whether it calls `complete`; a class that does so says `completes = True`.
    """

    settings: Mapping[str, str] = MappingProxyType({})
    say_progress: Callable[[float, float | None, str], None] | None = None  # set where there is somebody to tell
    is_unwanted: Callable[[], bool] | None = None  # the same
    completes: bool = False
    end_by: Callable[[object, Any], None] | None = None  # set where it is true, and a workitem can be ended so
    _workitem: CurrentWorkitem | None = None

    @property
    def workitem(self) -> CurrentWorkitem:
        """The one that is being handled: with `threads` or `concurrency`, by the thread or task that asks."""
        found = handled_here.get() or self._workitem
        if found is None:
            raise AttributeError("workitem: no workitem is being handled in this thread")
        return found

    @workitem.setter
    def workitem(self, workitem: CurrentWorkitem) -> None:
        """Set where one workitem is handled at a time; then all threads of the process see it."""
        self._workitem = workitem

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the handler is: `done` of `total`, in any unit, with a note for people.

        Whoever looks at the workitem sees the latest, within about a second.  Costs next to nothing if called often.
        Only brokers that are stores keep it; with RabbitMQ nobody sees it.  Raises what `check` does, and ValueError or
        TypeError for what is no finite number.
        """
        done, total = finite(done), None if total is None else finite(total)
        if self.say_progress is not None:
            self.say_progress(done, total, note)
        self.check()

    @property
    def cancelled(self) -> bool:
        """Whether somebody wants the workitem no more that is handled: what it returns still counts, if it is quick.

        In threads of a program also whether its time limit is over, for which nobody can be killed there.
        Half of its group's `cancel_timeout` later its process is terminated.  With RabbitMQ nothing is cancelled.
        """
        return self.is_unwanted is not None and self.is_unwanted()

    def check(self) -> None:
        """Raise TaskCancelled where somebody wants the workitem no more that is handled.

        A handler that lets it pass has ended; the workitem is not tried again.  Costs next to nothing if called often.
        """
        if self.cancelled:
            raise TaskCancelled

    def complete(self, connection: object, result: Any = None) -> None:
        """End the workitem that is handled in the transaction of `connection`, together with what was written there.

        connection: one to the database, or SQLite file, in which the workitem is, as for `Queue.using`.
        result: what `handle_task` would return otherwise; once the transaction is committed, what that returns or
        raises changes nothing.  Commit it before `handle_task` ends: else the workitem has failed.

        Raises DeliveryLost where the workitem is somebody else's by now: roll back then; PostgreSQL does so in any
        case.  Unsupported where the broker has no transactions.
        """
        if self.end_by is None:
            raise Unsupported(f"{type(self).__name__} does not say `completes = True`, or no workitem is handled")
        self.end_by(connection, result)

    @classmethod
    def factory(cls) -> BaseWorker:
        """Make the worker.  The entry point names this, or any other callable without parameters."""
        return cls()

    def setup(self) -> None:
        """Called once in each worker process, before the first workitem; settings are there.

        With an `async def handle_task`, this and `teardown` may be `async def`, too.
        """

    def handle_task(self, body: Any) -> Any:
        """Handle one workitem; what it returns is its result.

        `body` is the JSON value, the str or the bytes, by the workitem's content type.  It may be handed the same
        workitem more than once (after a crash, a lost connection, a retry), so its effects should bear that.

        As `async def handle_task(self, body)` it runs in an event loop, with up to `concurrency` others.

        The older form `handle_task(self, channel, method, header, body)` is called with bytes and must acknowledge
        by `channel.basic_ack(method.delivery_tag)`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no handle_task")

    def teardown(self) -> None:
        """Called once before the worker process ends in good order."""
