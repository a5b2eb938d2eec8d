"""What a store is told of the workitems that one worker process runs: where and how they ran, and what they said."""

from __future__ import annotations

import contextlib
import pwd
import socket
from pathlib import Path

from taskqueue.clock import Clock
from taskqueue.process.lines import LONGEST_LINE, Lines
from taskqueue.record import Progress, Run

__all__ = ["Account"]


class Account:
    """Of the worker process `pid`; its workitems by the numbers of their hand-overs."""

    def __init__(self, pid: int, clock: Clock) -> None:
        self._pid = pid
        self._clock = clock
        self._host = socket.gethostname()
        self._user = ""
        self._lines = Lines()
        self.logged = self._lines.add
        self._progress: dict[int, Progress] = {}

    def ready(self) -> None:
        """It runs as its user by now."""
        with contextlib.suppress(OSError):  # it may be gone already
            self._user = str(Path(f"/proc/{self._pid}").stat().st_uid)
            with contextlib.suppress(KeyError):  # a user without a name
                self._user = pwd.getpwuid(int(self._user)).pw_name

    def progressed(self, number: int, done: float, total: float | None, note: str) -> None:
        """How far it says it is."""
        now = self._clock.wall()
        self._progress[number] = Progress(done=done, total=total, note=note[:LONGEST_LINE], at=now)

    def running(self, seconds: float) -> Run:
        """What has been running for `seconds`."""
        return Run(host=self._host, user=self._user, pid=self._pid, started=self._clock.wall() - seconds)

    def progress(self, number: int) -> Progress | None:
        """The latest that it said of how far it is."""
        return self._progress.get(number)

    def ran(self, seconds: float, cpu: float | None = None, memory: int | None = None) -> Run:
        """What ended just now, and ran for `seconds`."""
        now = self._clock.wall()
        return Run(self._host, self._user, self._pid, now - seconds, now, cpu, memory)

    def take(self, number: int) -> tuple[str, ...]:
        """The log of what has ended; it is forgotten here."""
        self._progress.pop(number, None)
        return self._lines.take(number)
