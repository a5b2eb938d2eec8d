"""Raises SoftTimeLimitExceeded in handlers that run too long: by a signal in the main thread, else from a thread."""

from __future__ import annotations

import ctypes
import signal
import threading
import time

from taskqueue.errors import SoftTimeLimitExceeded
from taskqueue.process.calling import Answer, Handle
from taskqueue.workitem import Workitem

__all__ = ["Watch", "by_alarm"]


def by_alarm(handle: Handle, seconds: float) -> Handle:
    """`handle`, for the main thread, with the exception in it after `seconds`; a sleep is interrupted, too."""
    running = False

    def expired(*_: object) -> None:
        if running:  # not where the handler has just returned
            raise SoftTimeLimitExceeded(seconds)

    def limited(workitem: Workitem) -> Answer:
        nonlocal running
        signal.signal(signal.SIGALRM, expired)  # each time: the handler may have set one of its own
        running = True
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return handle(workitem)
        finally:
            running = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    return limited


class Watch:
    """For handlers in threads: one more thread, which raises the exception in those that run for `seconds`.

    It comes up where the handler executes Python code next: a call that blocks is not interrupted.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[int, float] = {}  # by thread, monotonic seconds; the first is the next
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._watch, name="soft-time-limit", daemon=True).start()

    def limited(self, handle: Handle) -> Handle:
        """`handle`, watched."""

        def run(workitem: Workitem) -> Answer:
            thread = threading.get_ident()
            try:
                self._remember(thread)
                return handle(workitem)
            except SoftTimeLimitExceeded as error:
                error.args = error.args or SoftTimeLimitExceeded(self._seconds).args  # a bare class was raised
                raise
            finally:
                try:
                    self._forget(thread)
                except SoftTimeLimitExceeded:  # it came up in there: nothing else can come any more
                    self._forget(thread)

        return run

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _remember(self, thread: int) -> None:
        with self._changed:
            self._due[thread] = time.monotonic() + self._seconds
            if len(self._due) == 1:
                self._changed.notify()

    def _forget(self, thread: int) -> None:
        with self._changed:
            self._due.pop(thread, None)
            _raise_in(thread, None)  # what was raised and has not come up yet

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                thread, due = next(iter(self._due.items()), (0, None))
                now = time.monotonic()
                if due is None:
                    self._changed.wait()
                elif due > now:
                    self._changed.wait(due - now)
                else:
                    del self._due[thread]
                    _raise_in(thread, SoftTimeLimitExceeded)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Have `error` come up in a thread; None: what has not come up there yet is forgotten."""
    value = ctypes.py_object() if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), value)
