"""The unit of work, as a value."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = [
    "DEAD_LETTERS",
    "DROPPED",
    "FORMAT_VERSION",
    "INCOMING",
    "MAX_ID",
    "Workitem",
    "is_type",
    "made_at",
    "worker_queue",
]

INCOMING = "taskqueue"
"""The queue that producers publish to and the dispatcher reads."""
DEAD_LETTERS = "taskqueue.dead"
"""The queue of workitems that were given up."""
DROPPED = "taskqueue.dropped"
"""Where a broker puts what it gives up by itself; the dispatcher makes dead letters of it."""
FORMAT_VERSION = 1
"""The version of the wire format that this release writes and the newest that it reads."""
MAX_ID = 255
"""Bytes of an id at most: AMQP has one for the length."""

_TASK = re.compile(r"[\w.]{1,255}")
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_type(name: str) -> bool:
    """Whether `name` may be a worker type: one that is safe in queue, file and section names."""
    return _TYPE.fullmatch(name) is not None


def worker_queue(type: str) -> str:
    """The queue in which workitems for workers of `type` wait."""
    return f"worker_{type}"


_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Workitem(NamedTuple):
    """One piece of work, with the properties that travel with it.

    Results and dead letters are workitems as well: whoever reads their queue takes them up.

    id: stays the same over retries, crashes, delays and requeues.
    type: the worker type that it needs; empty until a dispatcher has parsed it.
    body: as it lies in the queue, never opened outside `taskqueue.formats`.
    headers: what the producer and the dispatcher set; names are str.
    expiration: seconds after which it is not worth doing any more, counted anew in every queue.
    timestamp: POSIX seconds, as the producer set it.
    priority: 0 to 255, larger first, where the queue orders by priority.
    reference: the business object that it is about.
    attempt: 1 at first; one more after every attempt that counted (failed, crashed, timed out).
    crashes: how often it took its worker process down.
    failures: how many of its retries are used up.
    due: POSIX seconds before which it must not be started.
    after: ids of the workitems whose ends it waits for; only stores know such work, and no message of AMQP has any.
    others: further AMQP properties (`type`, `app_id`, `user_id`, `cluster_id`), kept as they came.
    """

    body: bytes
    id: str = ""
    type: str = ""
    content_type: str = ""
    content_encoding: str = ""
    headers: Mapping[str, object] = _NOTHING
    correlation_id: str = ""
    reply_to: str = ""
    expiration: float | None = None
    timestamp: int | None = None
    priority: int | None = None
    reference: str = ""
    attempt: int = 1
    crashes: int = 0
    failures: int = 0
    due: float | None = None
    after: tuple[str, ...] = ()
    others: Mapping[str, str] = _NOTHING

    @property
    def task(self) -> str:
        """The full name of the task that a client calls, for every store to keep; empty: it calls none."""
        name = self.headers.get("task", "")
        return name if isinstance(name, str) and _TASK.fullmatch(name) else ""

    def named(self) -> Workitem:
        """This workitem with an id: its own, or a new one where it has none."""
        return self if self.id else self._replace(id=_new_id())


def _new_id() -> str:
    """A UUID of version 7 (RFC 9562): those that are made one after the other lie side by side in an index."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    random = int.from_bytes(os.urandom(8))
    fraction = (nanoseconds << 12) // 1_000_000
    return f"{milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random >> 2:032x}"


def made_at(id: str) -> int:
    """POSIX microseconds, about, in which `Workitem.named` made this id, always the same for one; 0: it did not."""
    if len(id) != 32 or id[12] != "7":
        return 0
    try:
        return int(id[:12], 16) * 1000 + (int(id[13:16], 16) * 1000 >> 12)
    except ValueError:
        return 0
