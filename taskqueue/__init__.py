"""taskqueue hands work to worker processes on one or many hosts.

import taskqueue

with taskqueue.connect("sqlite:////srv/shop.db") as queue:
    id = queue.send("invoice", {"id": 7}, reference="order:4711")
    print(queue.result(id, timeout=60))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskqueue.client import Deferred, Gathered, Queue, as_completed, connect, progress
    from taskqueue.errors import (
        BrokerUnavailable,
        DuplicateTask,
        ResultTimeout,
        TaskCancelled,
        TaskExpired,
        TaskFailure,
        TaskQueueError,
        UnknownTask,
        Unsupported,
    )
    from taskqueue.inside.running import running
    from taskqueue.tasks import Task, TaskOptions, TaskSpace, current
    from taskqueue.worker import Reject, Retry

_FROM = {
    "taskqueue.client": ("Deferred", "Gathered", "Queue", "as_completed", "connect", "progress"),
    "taskqueue.errors": (
        "BrokerUnavailable",
        "DuplicateTask",
        "ResultTimeout",
        "TaskCancelled",
        "TaskExpired",
        "TaskFailure",
        "TaskQueueError",
        "UnknownTask",
        "Unsupported",
    ),
    "taskqueue.inside.running": ("running",),
    "taskqueue.tasks": ("Task", "TaskOptions", "TaskSpace", "current"),
    "taskqueue.worker": ("Reject", "Retry"),
}

__all__ = [
    "BrokerUnavailable",
    "Deferred",
    "DuplicateTask",
    "Gathered",
    "Queue",
    "Reject",
    "ResultTimeout",
    "Retry",
    "Task",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailure",
    "TaskOptions",
    "TaskQueueError",
    "TaskSpace",
    "UnknownTask",
    "Unsupported",
    "as_completed",
    "connect",
    "current",
    "progress",
    "running",
]


def __getattr__(name: str) -> Any:
    """Import what is used when it is used: daemons and worker processes are not to wait for it."""
    for module, names in _FROM.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
