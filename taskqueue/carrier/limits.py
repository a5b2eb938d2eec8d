"""What a worker process runs too long, or with too much memory: decides, and kills nobody."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from taskqueue.carrier.memory import Memory, mebibytes
from taskqueue.carrier.verdicts import own_limit
from taskqueue.config import Group
from taskqueue.outcome import TimedOut
from taskqueue.workitem import Workitem

__all__ = ["Limits"]

WEIGH_EVERY = 0.25  # seconds, while something runs and there is a memory limit
LEAVE_WITHIN = 2.0  # seconds, in which threads of a program let go of what runs too long


class Limits:
    """Of the worker process `pid`; its workitems by the numbers of their hand-overs.

    weighs: whether there is a limit of its memory.  worn: why it is too heavy for more work; empty: it is not.
    """

    def __init__(self, group: Group, pid: int) -> None:
        self.worn = ""
        self._group = group
        self._times: dict[int, float] = {}  # seconds, of those that have a limit
        # What runs too long where nobody can be killed for it: until when it may be ended without its handler.
        self._leaving: dict[int, float] = {}
        self._memory = Memory(pid) if group.max_memory or group.memory_limit else None
        self.weighs = self._memory is not None
        self._weighed = 0.0

    def add(self, number: int, workitem: Workitem) -> None:
        """It is handed over.  A task says itself how long it may take, or its group does."""
        if limit := own_limit(workitem) or self._group.time_limit:
            self._times[number] = limit

    def forget(self, number: int) -> None:
        """It is not there any more."""
        self._times.pop(number, None)
        self._leaving.pop(number, None)

    def begin(self, now: float) -> None:
        """The first one begins; monotonic seconds."""
        self._weighed = now

    def look_at(self, since: Mapping[int, float]) -> Iterator[float]:
        """When to look again, monotonic seconds; since: when those that have a slot got it."""
        yield from self._deadlines(since).values()
        if since and self._group.memory_limit:
            yield self._weighed + WEIGH_EVERY

    def _deadlines(self, since: Mapping[int, float]) -> dict[int, float]:
        return {
            number: self._leaving.get(number, begun + self._times[number])
            for number, begun in since.items()
            if number in self._times
        }

    def late(self, since: Mapping[int, float], now: float) -> dict[int, TimedOut]:
        """Those that have taken too long."""
        return {number: self.time(number) for number, at in self._deadlines(since).items() if now >= at}

    def time(self, number: int) -> TimedOut:
        """What becomes of one that has."""
        return TimedOut(self._times[number])

    def leave(self, numbers: Iterable[int]) -> None:
        """Their handlers are told, and others take their slots."""
        self._leaving.update(dict.fromkeys(numbers, math.inf))

    def leave_soon(self, numbers: Iterable[int], now: float) -> None:
        """The program could have let go of these by now, if it is to do so at all."""
        self._leaving.update((number, now + LEAVE_WITHIN) for number in numbers if number in self._leaving)

    def are_left(self, numbers: Iterable[int]) -> bool:
        """Whether any of these has been told before."""
        return not self._leaving.keys().isdisjoint(numbers)

    def too_heavy(self, now: float) -> str:
        """While something runs, now and then: why its memory is beyond what a workitem may use; empty: it is not."""
        most = self._group.memory_limit
        if self._memory is None or not most or now < self._weighed + WEIGH_EVERY:
            return ""
        self._weighed = now
        size = self._memory.resident()
        return f"memory limit of {mebibytes(most)} exceeded: {mebibytes(size)}" if size > most else ""

    def weigh(self) -> None:
        """Between two workitems: one that begins in a process that is too heavy would be blamed for those before it."""
        if self._memory is None:
            return
        group, size = self._group, self._memory.resident()
        limit = min(filter(None, (group.max_memory, group.memory_limit)))
        if size > limit:
            name = "max_memory" if limit == group.max_memory else "memory_limit"
            self.worn = f"its memory of {mebibytes(size)} exceeds {name} ({mebibytes(limit)})"

    def close(self) -> None:
        """It is dead."""
        if self._memory is not None:
            self._memory.close()
