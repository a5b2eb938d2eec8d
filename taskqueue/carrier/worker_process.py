"""One worker process, as the carrier sees it: what was handed over, what it said, which workitem it runs."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from collections.abc import Sequence
from typing import Any, Protocol

from taskqueue.broker import Delivery
from taskqueue.carrier.pace import START_WITHIN
from taskqueue.clock import Clock
from taskqueue.config import Group
from taskqueue.outcome import Release, TimedOut
from taskqueue.process.protocol import START_MARK, Kind
from taskqueue.process.wire import Wire

__all__ = ["Owner", "WorkerProcess"]


class Owner(Protocol):
    """Who has worker processes; told what they say."""

    def ready(self, process: WorkerProcess) -> None:
        """Its plugin is loaded; it waits for work."""

    def broken(self, process: WorkerProcess, error: str, traceback: str) -> None:
        """Its plugin did not load; it ends."""

    def ended(self, process: WorkerProcess, delivery: Delivery, meta: Sequence[Any], payload: bytes) -> None:
        """It is through with a workitem."""

    def unstarted(self, process: WorkerProcess, deliveries: Sequence[Delivery]) -> None:
        """These were handed over and will not be started there."""

    def said(self, process: WorkerProcess, name: str, level: int, text: str) -> None:
        """It logged something."""

    def mute(self, process: WorkerProcess, reason: str) -> None:
        """Its socket ended, or it spoke nonsense."""

    def over_time(self, process: WorkerProcess) -> None:
        """Its workitem runs longer than the group's time limit."""


class WorkerProcess:
    """Hands over batches; keeps them in order until they have ended.

    current_since: monotonic seconds since when the first one handed over has been running, None if there is none.
    """

    def __init__(
        self, pid: int, group: Group, sock: socket.socket, hello: dict[str, Any], owner: Owner, clock: Clock
    ) -> None:
        self.pid = pid
        self.group = group
        self.is_ready = False
        self.retiring = False
        self.condemned: TimedOut | Release | None = None  # what becomes of its workitem once it is killed
        self.current_since: float | None = None
        self._owner = owner
        self._clock = clock
        self._numbers = 0
        self._handed: dict[int, Delivery] = {}
        self._start_by = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        file = os.memfd_create("taskqueue-start-mark", os.MFD_CLOEXEC)
        os.ftruncate(file, mmap.PAGESIZE)
        self._memory = mmap.mmap(file, mmap.PAGESIZE)
        self._wire = Wire(sock, self._heard, lambda reason: owner.mute(self, reason))
        self._wire.send(Kind.HELLO, hello, files=(file,))

    @property
    def load(self) -> int:
        """How many workitems it has."""
        return len(self._handed)

    def hand_over(self, deliveries: Sequence[Delivery]) -> None:
        """Give it work.  What does not come first must be started within START_WITHIN seconds, or not at all."""
        now = self._clock.monotonic()
        idle = not self._handed
        items: list[Any] = []
        for delivery in deliveries:
            self._numbers += 1
            self._handed[self._numbers] = delivery
            items.append((self._numbers, len(delivery.workitem.body), _properties(delivery)))
        if idle:
            self.current_since = now
        self._start_by = now + START_WITHIN
        meta = {"idle": idle, "start_by": self._start_by, "items": items}
        self._wire.send(Kind.WORK, meta, b"".join(delivery.workitem.body for delivery in deliveries))
        self._watch()

    def _watch(self) -> None:
        """Look again when the next thing can be late.  One timer at a time: short tasks cost none each."""
        if self._timer is not None or not self._handed:
            return
        times = []
        if len(self._handed) > 1:
            times.append(self._start_by)
        if self.group.time_limit and self.condemned is None and self.current_since is not None:
            times.append(self.current_since + self.group.time_limit)
        if times:
            self._timer = self._loop.call_at(min(times) + 0.001, self._look)

    def _look(self) -> None:
        self._timer = None
        late = self._overdue()
        if late:
            self._owner.unstarted(self, late)
        limit, since = self.group.time_limit, self.current_since
        if limit and since is not None and self.condemned is None and self._clock.monotonic() >= since + limit:
            self._owner.over_time(self)
        self._watch()

    def _overdue(self) -> list[Delivery]:
        """Take back what waits behind the current workitem and may not be started any more."""
        if len(self._handed) < 2 or self._clock.monotonic() < self._start_by:
            return []
        started = self.started()
        current = started if started in self._handed else next(iter(self._handed))
        late = [number for number in self._handed if number > current]
        return [self._handed.pop(number) for number in late]

    def started(self) -> int:
        """The number of the hand-over that it started last, by the mark in the shared memory."""
        return int(START_MARK.unpack_from(self._memory, 0)[0])

    def stop(self) -> None:
        """Let it end in good order after what it has."""
        self._wire.send(Kind.STOP)

    def bury(self) -> tuple[Delivery | None, list[Delivery]]:
        """It is dead: the workitem that it was running, and those that it had not started.

        Everything that it wrote is read first: what it reported has ended, and is not blamed.
        """
        self._wire.read()
        self._wire.close("dead")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        blamed = self._handed.pop(self.started(), None)
        rest = list(self._handed.values())
        self._handed.clear()
        self._memory.close()
        return blamed, rest

    def _heard(self, kind: Kind, meta: Any, payload: bytes) -> None:
        match kind:
            case Kind.ENDED:
                delivery = self._handed.pop(meta[0])
                self.current_since = self._clock.monotonic() if self._handed else None
                self._owner.ended(self, delivery, meta, payload)
            case Kind.UNSTARTED:
                # What was taken back already is not here any more.
                late = [self._handed.pop(number) for number in meta if number in self._handed]
                self.current_since = self._clock.monotonic() if self._handed else None
                self._owner.unstarted(self, late)
            case Kind.READY:
                self.is_ready = True
                self._owner.ready(self)
            case Kind.BROKEN:
                self._owner.broken(self, str(meta[0]), str(meta[1]))
            case Kind.LOG:
                self._owner.said(self, str(meta[0]), int(meta[1]), str(meta[2]))
            case _:
                raise ValueError(f"a worker process does not say {kind.name}")


def _properties(delivery: Delivery) -> dict[str, Any]:
    workitem = delivery.workitem
    properties = {
        "id": workitem.id,
        "content_type": workitem.content_type,
        "content_encoding": workitem.content_encoding,
        "headers": workitem.headers,
        "correlation_id": workitem.correlation_id,
        "reply_to": workitem.reply_to,
        "timestamp": workitem.timestamp,
        "priority": workitem.priority,
        "reference": workitem.reference,
        "attempt": workitem.attempt,
    }
    return {name: value for name, value in properties.items() if value}
