"""Going to the background, with an answer: whoever starts a daemon hears whether it runs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator

import daemon

from taskqueue.daemon import write_pid
from taskqueue.errors import ConfigError
from taskqueue.handover import release_signals

__all__ = ["Started", "background"]

Started = Callable[[str], None]
"""Called in the daemon once its start is through, with what is missing, in a sentence; empty: nothing is."""
FAILED, CONFIGURATION = 1, 6  # exit statuses


@contextlib.contextmanager
def background(name: str, descriptor: int | None, *, foreground: bool) -> Iterator[Started]:
    """Go to the background, but for `foreground`; the pid file, whose `descriptor` it is, stays held.

    The process that was started stays until `Started` is called in the daemon, and returns 0 then; where the daemon
    ends before, it returns the daemon's status.  Until then the daemon's errors go to the terminal.
    """
    if foreground:
        write_pid(descriptor)
        yield lambda missing: None
        return
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = os.pipe()
    if os.fork():
        os.close(theirs)
        release_signals()  # whoever waits here may have enough of it
        status = FAILED
        try:
            status = _answer(name, ours)
        finally:  # also when interrupted: the pid file is the daemon's
            os._exit(status)
    os.close(ours)
    terminal = os.dup(2)  # not inherited: no child of the daemon may hold the terminal, or miss its own stderr later
    kept = [theirs, terminal, *([descriptor] if descriptor is not None else [])]
    # Signals are the event loop's own business.
    with daemon.DaemonContext(files_preserve=kept, signal_map={}, umask=0o022, detach_process=True):
        for stream in range(3):
            os.set_inheritable(stream, True)  # as python-daemon leaves them, children would begin without any
        write_pid(descriptor)
        sys.stderr = open(terminal, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115  (to its end)
        answer = _Answer(theirs, terminal)
        try:
            yield answer.started
        except ConfigError:
            answer.ended(CONFIGURATION)
            raise
        except BaseException as error:
            answer.ended(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else FAILED)
            raise
        else:
            answer.ended(FAILED)  # stopped before its start was through


class _Answer:
    """The daemon's end of the pipe to the process that was started."""

    def __init__(self, pipe: int, terminal: int) -> None:
        self._pipe = pipe
        self._terminal = terminal
        self._said = False

    def started(self, missing: str) -> None:
        """The start is through: nobody looks at the terminal any more."""
        self._say({"status": 0, "missing": missing})
        os.close(self._pipe)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._terminal, inheritable=False)
        os.close(nothing)

    def ended(self, status: int) -> None:
        """The daemon ends; where its start was not through, this is how.

        The pipe stays open until it has ended, so that what it still writes to the terminal comes first.
        """
        self._say({"status": status})

    def _say(self, what: dict[str, object]) -> None:
        if not self._said:
            self._said = True
            with contextlib.suppress(OSError):  # nobody waits any more
                os.write(self._pipe, json.dumps(what).encode())


def _answer(name: str, descriptor: int) -> int:
    """In the process that was started: wait for the daemon's answer; the exit status."""
    with open(descriptor, "rb") as pipe:
        answer = pipe.read()
    try:
        said = json.loads(answer)
    except ValueError:
        os.write(2, f"{name}: it died while it started, without a word; its log may say why\n".encode())
        return FAILED
    if said.get("missing"):
        os.write(2, f"{name}: running, degraded: {said['missing']}\n".encode())
    return int(said["status"])
