"""Every error that taskqueue raises, by what the caller can do about it.

::

    TaskQueueError
    ├── ConfigError              config.ini is wrong: file, line, section, option, value, what would be right
    ├── PluginError              an entry point did not load, or a worker process of its group can't start
    ├── FormatError              bytes are not a workitem; never retried
    ├── SoftTimeLimitExceeded    raised in a handler that ran longer than its group's soft_time_limit
    ├── TaskCancelled            raised in a handler whose workitem somebody wants no more
    ├── UnknownTask              no workitem has this id, or it is not kept any more
    ├── DuplicateTask            a workitem with this id has not ended yet
    ├── TaskFailure              it ran and failed, or was given up; has the error and the remote traceback
    │   └── TaskExpired          it succeeded, and its result is not kept
    ├── ResultTimeout            it has not ended in the time that was given
    └── BrokerError
        ├── BrokerUnavailable    try again later; the same call is safe
        ├── SendFailed           the broker is there and did not take a workitem
        ├── DeliveryLost         a handler can't end its workitem any more: somebody else may have it
        └── Unsupported          this backend does not do that; says which does
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BrokerError",
    "BrokerUnavailable",
    "ConfigError",
    "DeliveryLost",
    "DuplicateTask",
    "FormatError",
    "PluginError",
    "ResultTimeout",
    "SendFailed",
    "SoftTimeLimitExceeded",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailure",
    "TaskQueueError",
    "UnknownTask",
    "Unsupported",
]


class TaskQueueError(Exception):
    """The root of all errors of taskqueue."""


class ConfigError(TaskQueueError):
    """A configuration can't be used.

    `problems` are complete sentences, one per problem, each naming file, line, section, option and value where
    they are known, and what would be right.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class PluginError(TaskQueueError):
    """An entry point did not load, or a worker process of its group can't start."""


class FormatError(TaskQueueError):
    """Bytes are not a workitem.  `detail` says why; the workitem becomes a dead letter."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(detail)


class SoftTimeLimitExceeded(TaskQueueError):
    """Raised in a handler that ran longer than its group's `soft_time_limit`, once, so that it can clean up.

    One that lets it pass has failed, and is tried again as after any failure.
    """

    def __init__(self, *seconds: float) -> None:
        super().__init__(*(f"ran longer than soft_time_limit of {limit:g} s" for limit in seconds))


class TaskCancelled(TaskQueueError):
    """Raised in a handler, by its next `check` or `progress`: somebody wants its workitem no more.

    One that lets it pass has ended `cancelled`, and is not tried again.
    """

    def __init__(self) -> None:
        super().__init__("somebody wants this workitem no more")


class UnknownTask(TaskQueueError):
    """No workitem has this id: it never was sent, or it is not kept any more."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(f"no workitem {id}: it was never sent here, or it is not kept any more")


class DuplicateTask(TaskQueueError):
    """A workitem with the id `id` has not ended yet; nothing was sent.

    deferred: of that one, where it was a task that was submitted; else None.
    """

    def __init__(self, id: str, deferred: Any = None) -> None:
        self.id = id
        self.deferred = deferred
        super().__init__(id, deferred)

    def __str__(self) -> str:
        return f"workitem {self.id} was sent before, and has not ended yet; nothing was sent"


class TaskFailure(TaskQueueError):
    """There is no result: the workitem `id` of worker type `type` ended otherwise.

    state: how: `failed`, `dead`, `cancelled` or `expired`.
    error, traceback: of its last attempt, as text; empty where there was none.
    task: the name of the task that it is; empty for what is none, or is not known here to be one.
    """

    def __init__(self, id: str, type: str, state: str, error: str = "", traceback: str = "", task: str = "") -> None:
        self.id = id
        self.type = type
        self.state = state
        self.error = error
        self.traceback = traceback
        self.task = task
        super().__init__(id, type, state, error, traceback, task)

    @property
    def queue(self) -> str:
        """The name of its queue, which is its worker type."""
        return self.type

    def __str__(self) -> str:
        what = f"task {self.task} ({self.id}) in {self.type}" if self.task else f"workitem {self.id} of {self.type}"
        return f"{what}: {self.state}{f': {self.error}' if self.error else ''}"


class TaskExpired(TaskFailure):
    """The workitem succeeded, and its result is not kept: its group's `history` says so, or it wanted none."""


class ResultTimeout(TaskQueueError):
    """The workitem `id` has not ended within `timeout` seconds; it goes on."""

    def __init__(self, id: str, timeout: float) -> None:
        self.id = id
        self.timeout = timeout
        super().__init__(id, timeout)

    def __str__(self) -> str:
        return f"workitem {self.id} has not ended within {self.timeout:g} s"


class BrokerError(TaskQueueError):
    """The broker did not do what was asked."""


class BrokerUnavailable(BrokerError):
    """The broker can't be reached, or went away; the same call may be made again."""


class SendFailed(BrokerError):
    """The broker answered, and did not take every workitem.

    `refused` has the ids of the workitems that it did not take.  The others are stored.
    """

    def __init__(self, message: str, refused: tuple[str, ...]) -> None:
        self.refused = refused
        super().__init__(message)


class DeliveryLost(BrokerError):
    """The workitem is not this worker process' any more; whoever has it now ends it.  Roll back."""


class Unsupported(BrokerError):
    """This backend does not do that; the message says which does."""
