"""The one place that tells how a daemon is: to its status file, to who started it, to systemd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import sdnotify

from taskqueue.clock import SYSTEM, Clock
from taskqueue.status import READY_WITHIN, Status, judge

__all__ = ["Service"]

log = logging.getLogger(__name__)

QUIET = 1.0  # seconds between changes that are in what it does alone
EXTENSION = 15.0  # seconds that systemd waits on from each time that it hears that the stop goes on
EXTEND_EVERY = 5.0  # seconds


class Service:
    """A daemon's status, told whenever it changes.  Call `begin` first, inside the event loop.

    file: where it is kept; None: nowhere.
    started: called once, when the start is through, with what is missing, in a sentence; empty: nothing is.
    reloads: how many there were before this process took over from an older version.
    """

    def __init__(
        self,
        file: Path | None = None,
        *,
        started: Callable[[str], None] = lambda missing: None,
        reloads: int = 0,
        ready: bool = False,
        clock: Clock = SYSTEM,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._file = file
        self._started = started
        self._clock = clock
        self._systemd = sdnotify.SystemdNotifier() if environment.get("NOTIFY_SOCKET") else None
        self._watchdog = _watchdog(environment)
        self._version = metadata.version("taskqueue")  # now: later another one may be installed
        self._begun = 0.0
        self._ready = ready
        self._stopping = False
        self._missing: tuple[str, ...] = ()
        self._pending = True
        self._doing = "starting"
        self._reloads = reloads
        self._problems: tuple[str, ...] = ()
        self._told: Status | None = None
        self._when = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._extended = 0.0

    def begin(self, alive: Callable[[], bool] = lambda: True) -> None:
        """The event loop runs.

        alive: asked at half of the time that systemd's watchdog allows, where there is one: whether the work goes on.
        """
        self._begun = self._clock.monotonic()
        self._tell()
        # A moment later than the time that `judge` asks for, as a timer may come a little early.
        self._timers.append(asyncio.get_running_loop().call_later(READY_WITHIN + 0.01, self._tell))
        if self._watchdog:
            self._watch(alive)

    def _watch(self, alive: Callable[[], bool]) -> None:
        if alive():
            self._notify("WATCHDOG=1")
        self._timers[1:] = [asyncio.get_running_loop().call_later(self._watchdog, self._watch, alive)]

    def show(self, doing: str, *, missing: Sequence[str] = (), pending: bool = False) -> None:
        """What the daemon does, in a few words; what it lacks for that; whether its start is still under way."""
        self._doing, self._missing, self._pending = doing, tuple(missing), pending
        self._tell()

    def reloading(self) -> None:
        """A new configuration is being read."""
        now = int(self._clock.monotonic() * 1_000_000)
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def reloaded(self, problems: Sequence[str] = (), *, asked: bool = True) -> None:
        """It has been taken, or was refused for its problems.

        asked: somebody waits for it, and counts.
        """
        self._reloads += asked
        self._problems = tuple(problems)
        self._tell()
        self._notify("READY=1")

    @property
    def reloads(self) -> int:
        """How many have finished."""
        return self._reloads

    def stopping(self) -> None:
        """The daemon is about to end.  To be called again and again while that goes on."""
        now = self._clock.monotonic()
        if not self._stopping:
            self._stopping = True
            self._notify("STOPPING=1")
        elif now < self._extended + EXTEND_EVERY:
            return
        self._extended = now
        self._notify(f"EXTEND_TIMEOUT_USEC={int(EXTENSION * 1_000_000)}")
        self._tell()

    def close(self) -> None:
        """The daemon has ended."""
        for timer in (*self._timers, *([self._later] if self._later else [])):
            timer.cancel()
        if self._systemd is not None:
            self._systemd.socket.close()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()

    def _tell(self) -> None:
        now = self._clock.monotonic()
        state = judge(
            self._missing,
            pending=self._pending,
            late=now >= self._begun + READY_WITHIN,
            was_ready=self._ready,
            stopping=self._stopping,
        )
        lacking = "; ".join(self._missing)
        sentence = " ".join(f"{f'{lacking}; ' if lacking else ''}{self._doing}".split())
        status = Status(
            pid=os.getpid(),
            state=state,
            status=sentence,
            reloads=self._reloads,
            problems=self._problems,
            version=self._version,
        )
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._told == status:
            return
        only_doing = self._told is not None and replace(self._told, status=sentence) == status
        if only_doing and now < self._when + QUIET:
            self._later = asyncio.get_running_loop().call_later(self._when + QUIET - now, self._tell)
            return
        if self._told is not None and state != self._told.state:
            log.log(logging.WARNING if state == "degraded" else logging.INFO, "%s: %s", state, sentence)
        self._told, self._when = status, now
        self._write(status)
        ready = state in ("running", "degraded") and not self._ready
        self._notify(f"{'READY=1' if ready else ''}\nSTATUS={state}: {sentence}".strip())
        if ready:
            self._ready = True
            self._started(lacking)

    def _notify(self, state: str) -> None:
        if self._systemd is not None:
            self._systemd.notify(state.encode().decode("latin-1"))  # which the library encodes as that

    def _write(self, status: Status) -> None:
        if self._file is None:
            return
        new = self._file.with_name(f"{self._file.name}.new")
        try:
            with open(new, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(status.to_json())
            new.replace(self._file)
        except OSError as error:
            log.warning("the status can't be kept in %s: %s", self._file, error.strerror)
            self._file = None


def _watchdog(environment: Mapping[str, str]) -> float:
    """Seconds between signs of life for systemd; 0: it wants none of this process (sd_watchdog_enabled(3))."""
    period, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not period.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(period) / 2_000_000
