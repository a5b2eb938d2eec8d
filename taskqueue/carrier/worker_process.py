"""One worker process, as the carrier sees it: what was handed over, what it said, which workitem it runs."""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from taskqueue import formats
from taskqueue.broker import Delivery
from taskqueue.carrier.pace import START_WITHIN
from taskqueue.carrier.verdicts import after_answer
from taskqueue.clock import Clock
from taskqueue.config import Group
from taskqueue.outcome import Outcome, Release, TimedOut
from taskqueue.process.protocol import START_MARK, Kind
from taskqueue.process.wire import Wire

__all__ = ["Owner", "WorkerProcess"]


class Owner(Protocol):
    """Who has worker processes; told what they say."""

    def ready(self, process: WorkerProcess) -> None:
        """Its plugin is loaded; it waits for work."""

    def broken(self, process: WorkerProcess, error: str, traceback: str) -> None:
        """Its plugin did not load; it ends."""

    def ended(self, process: WorkerProcess, delivery: Delivery, outcome: Outcome, seconds: float) -> None:
        """It is through with a workitem, which ran for `seconds`."""

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
    last: monotonic seconds of the last hand-over.
    """

    def __init__(
        self, pid: int, group: Group, sock: socket.socket, hello: dict[str, Any], owner: Owner, clock: Clock
    ) -> None:
        self.pid = pid
        self.group = group
        self.rules = replace(group.rules, worker=f"{socket.gethostname()}:{pid}")
        self.is_ready = False
        self.retiring = False
        self.current_since: float | None = None
        self.last = 0.0
        self._condemned: tuple[int, TimedOut | Release] | None = None
        self._max_result: int = hello["max_result"]
        self.formats = formats.known(**{**hello["formats"], "installed": {}})  # no plugin code runs here
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

    @property
    def usable(self) -> bool:
        """Whether it may get work at all."""
        return self.is_ready and not self.retiring and self._condemned is None and not self._wire.ended

    @property
    def is_long(self) -> bool:
        """Whether what it runs takes so long that nothing should wait behind it."""
        return self.current_since is not None and self._clock.monotonic() - self.current_since >= START_WITHIN

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
        self.last = now
        self._start_by = now + START_WITHIN
        meta = {"idle": idle, "start_by": self._start_by, "items": items}
        self._wire.send(Kind.WORK, meta, b"".join(delivery.workitem.body for delivery in deliveries))
        self._watch()

    def _watch(self) -> None:
        """Look again when the next thing can be late.  One timer at a time: short tasks cost none each."""
        times = []
        if len(self._handed) > 1:
            times.append(self._start_by + 0.001)  # not to the instant: it reads its clock after it has set its mark
        if self.group.time_limit and self._condemned is None and self.current_since is not None:
            times.append(self.current_since + self.group.time_limit)
        if times and (self._timer is None or min(times) < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(min(times), self._look)

    def _look(self) -> None:
        self._timer = None
        late = self._overdue()
        if late:
            self._owner.unstarted(self, late)
        limit, since = self.group.time_limit, self.current_since
        if limit and since is not None and self._condemned is None and self._clock.monotonic() >= since + limit:
            self.condemn(TimedOut(limit))
            self._owner.over_time(self)
        self._watch()

    def condemn(self, outcome: TimedOut | Release) -> None:
        """It is going to be killed: what becomes of the workitem that it runs now.

        Where it has started another one by then, that one is innocent and released.
        """
        if self._condemned is None:
            self._condemned = next(iter(self._handed), 0), outcome

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

    def bury(self) -> tuple[Delivery | None, TimedOut | Release | None, list[Delivery]]:
        """It is dead: the workitem that it was running, what it was killed for if it was, and those not started.

        Everything that it wrote is read first: what it reported has ended, and is not blamed.
        """
        self._wire.read()
        self._wire.close("dead")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        started = self.started()
        blamed = self._handed.pop(started, None)
        rest = list(self._handed.values())
        self._handed.clear()
        self._memory.close()
        number, verdict = self._condemned or (started, None)
        return blamed, verdict if number == started else Release(), rest

    def _heard(self, kind: Kind, meta: Any, payload: bytes) -> None:
        match kind:
            case Kind.ENDED:
                number, seconds, *answer = meta
                delivery = self._handed[number]
                outcome = self._judged(delivery, float(seconds), answer, payload)
                del self._handed[number]  # only now: with an answer that is none, it still counts as running
                self.current_since = self._clock.monotonic() if self._handed else None
                self._owner.ended(self, delivery, outcome, float(seconds))
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

    def _judged(self, delivery: Delivery, seconds: float, answer: Sequence[Any], payload: bytes) -> Outcome:
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a run time of {seconds} s")
        if len(payload) > self._max_result:
            raise ValueError(f"a result of {len(payload)} bytes")
        return after_answer(delivery.workitem, self.group, answer, payload, jitter=random.random(), known=self.formats)


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
