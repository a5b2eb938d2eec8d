"""Workitems that their handlers end themselves, in transactions of their own: `self.complete(connection, result)`."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import socket
import threading
import time
from typing import Any, NamedTuple

from taskqueue import broker, formats
from taskqueue.broker import Delivery, Ended, Lease
from taskqueue.errors import Unsupported
from taskqueue.formats import Formats
from taskqueue.outcome import Done, Rules
from taskqueue.process.calling import Answer, check_size
from taskqueue.process.line import Line
from taskqueue.process.lines import Lines
from taskqueue.process.protocol import Kind
from taskqueue.record import Run
from taskqueue.workitem import Workitem, worker_queue

__all__ = ["Completing"]

UNCOMMITTED = "self.complete() was called, and its transaction was not committed before handle_task ended"


class _Started(NamedTuple):
    workitem: Workitem
    ticket: dict[str, Any] | None
    at: float  # POSIX seconds


class Completing:
    """What a worker process that says `completes = True` knows of the workitems that run.

    The carrier is told before the transaction hears of it, so it never takes what ended so for something else.
    """

    def __init__(self, line: Line, hello: dict[str, Any], known: Formats) -> None:
        self.lines = Lines()
        self._line = line
        self._rules = Rules(**hello["rules"])
        self._max_result: int = hello["max_result"]
        self._known = known
        self._user = str(os.getuid())
        with contextlib.suppress(KeyError):  # a user without a name
            self._user = pwd.getpwuid(os.getuid()).pw_name
        self._lock = threading.Lock()  # what is ended by others may be ended by its handler just then
        self._running: dict[int, _Started] = {}
        self._tried: set[int] = set()

    def start(self, number: int, workitem: Workitem, ticket: dict[str, Any] | None) -> None:
        """A workitem is started; ticket: as its consumer gave it."""
        self._running[number] = _Started(workitem, ticket, time.time())

    def complete(self, number: int, connection: object, result: Any, cpu: float | None) -> None:
        """End the workitem that was handed over as `number`.  cpu: seconds that it has taken."""
        started = self._running.get(number)
        if started is None or os.getpid() != self._line.pid:
            raise Unsupported("self.complete: no workitem is handled in this thread, or process")
        if started.ticket is None:
            raise Unsupported(
                "self.complete: this broker has no transactions to take part in; postgresql:// and sqlite:/// have"
            )
        payload = formats.payload(result)
        check_size("the result", payload.body, self._max_result)
        now = time.time()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        run = Run(socket.gethostname(), self._user, os.getpid(), started.at, now, cpu, memory)
        workitem = started.workitem
        delivery = Delivery(workitem=workitem, queue=worker_queue(workitem.type), tag=None, lease=Lease())
        with self._lock:
            if number not in self._running:
                raise Unsupported("self.complete: its time limit is over, and it has ended without its handler")
            self._tried.add(number)
            self._line.send(Kind.COMPLETING, [number])
        ended = Ended(delivery, Done(payload), self._rules, run, self.lines.so_far(number))
        broker.complete(connection, started.ticket, ended, now=now)

    def end(self, number: int, answer: Answer) -> Answer:
        """What to say of a workitem whose handler gave `answer`; it counts only where nothing was committed."""
        with self._lock:
            started = self._running.pop(number)
            self.lines.take(number)
            if number not in self._tried:
                return answer
            self._tried.discard(number)
        if answer.meta[0] != "done":
            return answer
        result = formats.failed_result(started.workitem, UNCOMMITTED, "", self._known)
        return Answer(("failed", UNCOMMITTED, "", result.content_type, None), result.body)
