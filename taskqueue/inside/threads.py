"""Workers in threads of the program, over the same socket and by the same code as in a worker process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from taskqueue.clock import SYSTEM
from taskqueue.config import Group
from taskqueue.plan import Deaths, died
from taskqueue.process.line import Line
from taskqueue.process.serving import serve
from taskqueue.workerpool.processes import Carrier

__all__ = ["Threads"]

log = logging.getLogger(__name__)


class Threads:
    """What a worker process would be to the carrier: `group.threads` at a time run workitems.

    They can't be killed: one that does not end in time is left alone, and what it still says is heard by nobody.

    changed: called when there is something to do.
    """

    def __init__(self, carrier: Carrier, group: Group, make: Callable[[], Any], changed: Callable[[], None]) -> None:
        self._carrier = carrier
        self._group = group
        self._make = make
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._line: Line | None = None
        self._started = 0.0
        self._deaths: Deaths | None = None
        self.trouble = ""

    @property
    def there(self) -> bool:
        """Whether they run."""
        return self._line is not None

    def act(self) -> float | None:
        """Start what is missing; the seconds after which to look again."""
        now = SYSTEM.monotonic()
        if self._line is not None:
            return None
        if self._deaths is not None and self._deaths.restart > now:
            return self._deaths.restart - now
        self._started = now
        ours, theirs = socket.socketpair()
        self._line = Line(theirs, whole=False)
        self._carrier.add(os.getpid(), self._group, ours)
        # A daemon, for a program that ends without leaving the block does not wait.
        name = f"worker {self._group.type}"
        threading.Thread(target=self._serve, args=(self._line,), name=name, daemon=True).start()
        return None

    def _serve(self, line: Line) -> None:
        try:
            hello, marks = line.hello()
            serve(line, hello, marks, self._make)
        except (BrokenPipeError, ConnectionResetError):
            log.debug("threads of %s: the carrier is gone", self._group.type)
        except BaseException:
            log.exception("threads of %s", self._group.type)
        line.close()
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits for them any more
            self._loop.call_soon_threadsafe(self._ended, line, "its threads ended")

    def _ended(self, line: Line, how: str) -> None:
        if line is self._line:
            self._line = None
            now = SYSTEM.monotonic()
            self._deaths = died(self._deaths, started=self._started, now=now, jitter=random.random())
            self._carrier.died(os.getpid(), how)
            self._changed()

    def reap(self, *, stopping: bool) -> None:
        """Nothing to do: they say that they end."""

    def retire(self) -> None:
        """The carrier tells them to end."""

    def kill(self) -> None:
        """Leave them alone: they end when their handlers have returned."""
        if self._line is not None:
            self._loop.call_soon(self._ended, self._line, "its threads were left alone")

    def kill_one(self, pid: int, number: signal.Signals) -> None:
        """The same."""
        self.kill()

    def close(self) -> None:
        """Nothing to do: the carrier has let go of their socket."""

    def is_up(self, pid: int) -> None:
        """They wait for work."""
        self.trouble = ""

    def is_down(self, name: str, error: str, traceback: str) -> None:
        """The worker could not be made, or set up."""
        self.trouble = f"the worker of {name} does not load: {error}\n{traceback}"
        log.error("%s", self.trouble)
        self._changed()

    def has_worked(self, pid: int, name: str) -> None:
        """One workitem has come to its end: if they end now, the next ones need not wait."""
        self._deaths = None

    def is_recycled(self, pid: int) -> None:
        """Never: they have no memory of their own, and no number of workitems."""
