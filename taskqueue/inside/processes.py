"""Worker processes of a program: of one group, seen to end without any signal."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from taskqueue.clock import SYSTEM
from taskqueue.config import Group
from taskqueue.process.spawn import spawn_inside
from taskqueue.workerpool.processes import Carrier, Processes

__all__ = ["InProcesses"]


class InProcesses:
    """As many as the group wants.  changed: called when there is something to do."""

    def __init__(self, carrier: Carrier, group: Group, changed: Callable[[], None]) -> None:
        self._carrier = carrier
        self._group = group
        self._changed = changed
        self._processes: Processes[Carrier] = Processes(SYSTEM, changed)
        self._files: set[int] = set()
        self.is_up = self._processes.is_up
        self.is_down = self._processes.is_down
        self.has_worked = self._processes.has_worked
        self.is_recycled = self._processes.is_recycled

    @property
    def there(self) -> bool:
        """Whether there is one that has not ended."""
        return bool(self._processes.all)

    @property
    def trouble(self) -> str:
        """Why they don't start, or stay up; empty: they do."""
        return self._processes.trouble(self._group)

    def act(self) -> float | None:
        """Start what is missing; the seconds after which to look again."""
        return self._processes.act({self._group: self._group.workers}, self._start)

    def _start(self, group: Group, now: float) -> bool:
        environment = dict(group.environment)
        start = self._processes.start(group, self._carrier, lambda: spawn_inside("taskqueue.process", environment), now)
        if start is None:
            return False
        try:
            file = os.pidfd_open(start.pid)
        except ProcessLookupError:  # the program does not want to know how its children end
            self._changed()
            return True
        self._files.add(file)
        asyncio.get_running_loop().add_reader(file, self._ended, file)
        return True

    def _ended(self, file: int) -> None:
        self._forget(file)
        self._changed()

    def _forget(self, file: int) -> None:
        self._files.discard(file)
        asyncio.get_running_loop().remove_reader(file)
        os.close(file)

    def reap(self, *, stopping: bool) -> None:
        """Take note of those that have ended.  `stopping`: they are wanted to."""
        self._processes.reap(stopping=stopping)

    def retire(self) -> None:
        """The carrier tells all to end."""
        for process in self._processes.all.values():
            process.stopping = True

    def kill(self) -> None:
        """End all at once."""
        self._processes.kill()

    def kill_one(self, pid: int, number: signal.Signals) -> None:
        """End one, by this signal."""
        self._processes.kill_one(pid, self._carrier, number)

    def close(self) -> None:
        """All have ended."""
        for file in list(self._files):
            self._forget(file)
