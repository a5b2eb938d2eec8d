"""A program's end of taskqueue."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Unpack

from taskqueue import broker, formats
from taskqueue.client.callbacks import Callbacks
from taskqueue.client.deferred import Deferred
from taskqueue.client.ends import End, Ends
from taskqueue.client.here import Here
from taskqueue.client.sending import Sender
from taskqueue.client.submitting import Submitter
from taskqueue.client.together import Gathered
from taskqueue.config import Config
from taskqueue.errors import DuplicateTask
from taskqueue.formats import values
from taskqueue.lifecycle import State
from taskqueue.outcome import Payload
from taskqueue.record import Record
from taskqueue.store import Store
from taskqueue.tasks import Task, TaskOptions
from taskqueue.tasks.options import check
from taskqueue.tasks.promise import promise_of
from taskqueue.tasks.space import result_classes
from taskqueue.workitem import Workitem, is_type

__all__ = ["Queue", "connect"]


def connect(url: str, name: str = "default", **task_options: Unpack[TaskOptions]) -> Queue:
    """What a program sends by and asks, over the broker that `url` names.  Nothing is connected yet.

    name: the worker type whose workers run the tasks that are submitted.
    task_options: what holds for tasks that don't say otherwise themselves; see `TaskOptions`.

    Raises BrokerError for a URL that there is no backend, or no driver, for; ValueError, TypeError for the rest.
    """
    if not is_type(name):
        raise ValueError(f"name {name!r}: expected a worker type: letters, digits, '.', '_', '-'")
    check(task_options)
    return Queue(broker.connect(url), name, task_options)


class Queue(Submitter, Sender):
    """Submits tasks, sends workitems, and says what became of them; safe from several threads, and after a fork.

    name: the worker type that its tasks are for.  broker: where they wait.

    Any method may raise BrokerUnavailable.  RabbitMQ keeps no record: there, a task's value comes to the program that
    submitted it, and what needs a store is Unsupported.
    """

    def __init__(self, broker: broker.Broker, name: str = "default", task_options: TaskOptions | None = None) -> None:
        self.broker = broker
        self.name = name
        self.task_options = task_options or TaskOptions()
        self.max_body = Config().max_body
        self._there = Here(broker)
        self._children: dict[int, Here] = {}
        Sender.__init__(self, lambda workitems: self._here.producer.send(workitems))
        Submitter.__init__(self, self, {})

    @property
    def _here(self) -> Here:
        here, pid = self._there, os.getpid()
        if here.pid != pid:  # by setdefault several threads agree on one; a lock might have been locked in the fork
            here = self._there = self._children.setdefault(pid, Here(self.broker, here))
        return here

    @property
    def lock(self) -> threading.RLock:
        """Held while a Deferred of this queue changes."""
        return self._here.lock

    @property
    def callbacks(self) -> Callbacks:
        """Who calls what is to be called when a Deferred of this queue has ended."""
        return self._here.callbacks

    @property
    def ends(self) -> Ends:
        """Who hears of the ends of tasks."""
        return self._here.ends

    # Tasks.

    def options(self, **options: Unpack[TaskOptions]) -> Submitter:
        """The same queue with options for what is submitted by it: `queue.options(id="4711").submit(...)`."""
        return Submitter(self, options)

    def deferred(self, task: str | Deferred[Any]) -> Deferred[Any]:
        """The Deferred of a task's id, or of one that came out of a pickle.  Nobody is asked yet.

        Raises Unsupported over RabbitMQ, for what this program has not submitted itself.
        """
        id, name = (task, "") if isinstance(task, str) else (task.id, task.name)
        if not id and isinstance(task, Deferred):  # no task, but a value
            return task.within(self)
        known = self.ends.known(id)
        if known is None:
            assert self._store is not None
            known = self.ends.known(id, lambda: Deferred(id, self, name))
        assert isinstance(known, Deferred)
        return known

    def gather(self, *deferreds: Deferred[Any]) -> Gathered[Any]:
        """The values of all of these, in order."""
        return Gathered(deferreds)

    def sent(self, calls: Sequence[tuple[Task | str, Workitem]], *, unique: bool = False) -> list[Any]:
        """Send these calls of tasks; for each its Deferred, or None where it ignores its result."""
        workitems = [workitem.named() for _, workitem in calls]
        store = self.broker.capabilities.store
        found: list[Deferred[Any] | None] = [
            None if "ignore_result" in workitem.headers else Deferred(workitem.id, self, task)
            for (task, _), workitem in zip(calls, workitems, strict=True)
        ]
        waiting = [each for each in found if each is not None]
        if not store:  # a reply may be here before `send` returns
            self.ends.sent(waiting)
        elif unique:  # those who had these ids before, and have ended: they are told of their own ends
            self.ends.ask([workitem.id for workitem in workitems if self.ends.known(workitem.id)])
        try:
            self._here.producer.send(workitems, reply=not store and bool(waiting), unique=unique)
        except DuplicateTask as error:
            raise DuplicateTask(error.id, self.deferred(error.id)) from None
        if store:
            self.ends.sent(waiting)
        return found

    def ended_with(self, value: object, task: Task) -> Deferred[Any]:
        """A Deferred that has `value` as if `task` had returned it, and no id."""
        found: Deferred[Any] = Deferred("", self, task)
        encoded = values.encode(value, what="the value", deferred=promise_of, classes=task.result_classes)
        found.settle(End(self.name, State.SUCCEEDED, encoded.payload))
        return found

    def value_of(self, payload: Payload, *tasks: Task | str) -> Any:
        """What a result is as a value, with the classes that the annotations of tasks name; empty: of any."""
        if not values.is_ours(payload):
            return formats.value(payload.body, payload.content_type)
        classes: dict[str, type] = {}
        for task in tasks:
            classes |= result_classes(task) if isinstance(task, str) else task.result_classes
        return values.decode(payload, classes=classes, resolve=lambda id, name: self.deferred(Deferred(id, None, name)))

    def __len__(self) -> int:
        """How many tasks wait, are scheduled or blocked.  Raises Unsupported over RabbitMQ."""
        return self._store.count(self.name)

    def __bool__(self) -> bool:
        return True  # empty or not

    def discard_pending(self) -> int:
        """Cancel all tasks that no worker process has yet; how many there were.  Raises Unsupported over RabbitMQ."""
        return self._store.discard(self.name)

    # Workitems.

    def using(self, connection: object) -> Sender:
        """What sends in the transaction of `connection`: with it, or not at all.

        connection: one to the same database, or SQLite file: of psycopg or sqlite3, SQLAlchemy's Connection or Session,
        Django's connection.

        Raises Unsupported where the broker is in no database; BrokerError where the connection leads elsewhere, or
        each of its statements is a transaction of its own.  What its driver raises goes through as it is.
        """
        return Sender(self.broker.using(connection).send)

    def record(self, id: str) -> Record:
        """All that is known of a workitem.  Raises UnknownTask for an id that never was, or is not kept any more."""
        return self._store.record(id)

    def status(self, id: str) -> State:
        """Where a workitem stands.  Raises UnknownTask."""
        return self.record(id).state

    def result(self, id: str, *, timeout: float | None = None) -> Any:
        """Wait until a workitem has ended, up to `timeout` seconds (None: for ever), and return what its handler did.

        Raises ResultTimeout; TaskFailure where it ended otherwise; TaskExpired where no result is kept; UnknownTask.
        """
        return self.deferred(id).result(timeout)

    def history(
        self, *, reference: str = "", type: str = "", states: Sequence[State] = (), limit: int = 100
    ) -> list[Record]:
        """Workitems, the latest that was sent first: those of a reference, a type, in one of some states.

        Empty: of any.
        """
        return self._store.history(reference=reference, type=type, states=states, limit=limit)

    def cancel(self, id: str) -> bool:
        """Have a workitem end for good, also while it runs; False where it has ended.

        What runs goes on for a moment: `status` says when it has ended, mostly `cancelled`.  Raises UnknownTask.
        """
        return self._store.cancel(id)

    @property
    def _store(self) -> Store:
        return self._here.store

    def close(self) -> None:
        """Let go of the broker.  May be called twice; what is used again is connected again."""
        self._here.close()

    def __enter__(self) -> Queue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
