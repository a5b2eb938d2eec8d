"""Worker processes as whoever starts them sees them: started, ready, ended, or failing."""

from __future__ import annotations

import logging
import random
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from taskqueue.clock import Clock
from taskqueue.config import Group
from taskqueue.errors import PluginError
from taskqueue.plan import Child, Deaths, Start, Stop, died, is_failing, plan, process_of
from taskqueue.process.protocol import CANNOT_BOOT
from taskqueue.process.spawn import Offspring, ended, everything_of, how_it_ended

__all__ = ["GRACE", "Carrier", "Process", "Processes"]

log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds that carrier and worker processes have for their own end after everything that ran has been settled."""


class Carrier(Protocol):
    """Who hands work to worker processes."""

    def add(self, pid: int, group: Group, sock: socket.socket) -> None:
        """A worker process was started for it, with the other end of `sock`."""

    def died(self, pid: int, how: str) -> None:
        """One of its worker processes is dead."""

    def retire_process(self, pid: int) -> None:
        """Let a worker process finish what it runs, and end."""


C = TypeVar("C", bound=Carrier)


@dataclass(slots=True, kw_only=True, eq=False)
class Process(Generic[C]):
    """A worker process that has not been waited for yet, and the carrier that it works for."""

    offspring: Offspring
    carrier: C
    group: Group
    started: float
    stopping: bool = False
    recycling: bool = False
    up: bool = False
    worked: bool = False


class Processes(Generic[C]):
    """Starts them, hears what their carriers say of them, and knows how they ended.

    all: by process id.
    changed: called when there is something to plan anew.
    """

    def __init__(self, clock: Clock, changed: Callable[[], None]) -> None:
        self.all: dict[int, Process[C]] = {}
        self._deaths: dict[Group, Deaths] = {}
        self._clock = clock
        self._changed = changed
        self._complaints: dict[str, str] = {}

    @property
    def ready(self) -> int:
        """How many have loaded their plugins."""
        return sum(process.up for process in self.all.values())

    def forgive(self) -> None:
        """After a new configuration: what failed is tried at once, and what goes on to be wrong is said again."""
        self._deaths.clear()
        self._complaints.clear()

    def trouble(self, group: Group) -> str:
        """Why the processes of `group` can't be started, or that they don't stay up; empty: they do."""
        if group.name in self._complaints:
            return self._complaints[group.name]
        failing = is_failing(self._deaths.get(process_of(group)), now=self._clock.monotonic())
        return f"group {group.name} is failing: its worker processes don't stay up" if failing else ""

    def log_state(self, wanted: Mapping[Group, int]) -> None:
        """Everything that is known, to the log; `wanted` is how many of each group there should be."""
        for group, count in wanted.items():
            here = [p for p in self.all.values() if process_of(p.group) == process_of(group)]
            log.info(
                "group %s: %d wanted, %d there, %d ready%s", group.name, count, len(here), sum(p.up for p in here),
                "; failing" if self.trouble(group) else "",
            )  # fmt: skip

    # Starting and stopping.

    def act(self, want: Mapping[Group, int], start: Callable[[Group, float], bool]) -> float | None:
        """Do what the plan says; the seconds after which to plan again.

        start: starts a process of a group, at monotonic seconds; False where that can't be done.
        """
        now = self._clock.monotonic()
        view = [
            Child(pid=pid, group=p.group, started=p.started, stopping=p.stopping, recycling=p.recycling)
            for pid, p in self.all.items()
        ]
        again: float | None = None
        for action in plan(view, want=want, deaths=self._deaths, now=now):
            match action:
                case Stop(pid):
                    self.all[pid].stopping = True
                    self.all[pid].carrier.retire_process(pid)
                case Start(group, at) if at <= now:
                    if not start(group, now):
                        again = min(again or 1.0, 1.0)
                case Start(_, at):
                    again = min(again or at - now, at - now)
        return again

    def start(
        self, group: Group, carrier: C, spawn: Callable[[], tuple[Offspring, socket.socket]], now: float
    ) -> Offspring | None:
        """Start one of `group`, by `spawn`, to work for `carrier`; None where that can't be done."""
        try:
            offspring, sock = spawn()
        except PluginError as error:
            self.complain(group.name, f"group {group.name} can't be started: {error}")
            previous = self._deaths.get(process_of(group))
            self._deaths[process_of(group)] = died(previous, started=now, now=now, jitter=random.random())
            return None
        self.all[offspring.pid] = Process(offspring=offspring, carrier=carrier, group=group, started=now)
        carrier.add(offspring.pid, group, sock)
        log.debug("worker process %d of %s started", offspring.pid, group.name)
        return offspring

    def kill(self) -> None:
        """End all of them at once."""
        for process in self.all.values():
            everything_of(process.offspring, signal.SIGKILL)

    # Their ends.

    def reap(self, *, stopping: bool) -> None:
        """Take note of all that have ended.  `stopping`: they are wanted to."""
        for pid, process in list(self.all.items()):
            returncode = ended(process.offspring)
            if returncode is not None:
                del self.all[pid]
                self._ended(pid, process, returncode, stopping=stopping)

    def _ended(self, pid: int, process: Process[C], returncode: int, *, stopping: bool) -> None:
        how, now = how_it_ended(returncode), self._clock.monotonic()
        process.carrier.died(pid, how)
        if (process.stopping or process.recycling) and returncode == 0:
            log.info("worker process %d of %s ended", pid, process.group.name)
            return
        key = process_of(process.group)
        if not stopping and not process.stopping and not process.recycling:
            before = self._deaths.get(key)
            worked = process.worked
            after = died(before, started=process.started, now=now, jitter=random.random(), worked=worked)
            self._deaths[key] = after
            if is_failing(after, now=now) and not is_failing(before, now=now):
                log.error("group %s is failing: its worker processes don't stay up", process.group.name)
        explained = process.stopping or (returncode == CANNOT_BOOT and not process.up)  # the carrier says why
        log.log(
            logging.INFO if explained else logging.WARNING,
            "worker process %d of %s died: %s", pid, process.group.name, how,
        )  # fmt: skip

    # What their carriers say; of those that are known no more, too.

    def is_up(self, pid: int) -> None:
        """It has loaded its plugin."""
        process = self.all.get(pid)
        if process is not None:
            process.up = True
            self._complaints.pop(process.group.name, None)
            log.info("worker process %d of %s is ready", pid, process.group.name)
            self._changed()

    def is_down(self, name: str, error: str, traceback: str) -> None:
        """One of the group `name` could not load its plugin."""
        self.complain(name, f"plugin of group {name} does not load: {error}\n{traceback}")
        self._changed()

    def has_worked(self, pid: int, name: str) -> None:
        """One of the group `name` has brought a workitem to an end."""
        process = self.all.get(pid)
        if process is not None:
            process.worked = True
        else:  # it is dead already, and was taken for one that did nothing: the next one of its group need not wait
            self._deaths = {group: deaths for group, deaths in self._deaths.items() if group.name != name}
            self._changed()

    def is_recycled(self, pid: int) -> None:
        """It will end, and needs a successor."""
        process = self.all.get(pid)
        if process is not None:
            process.recycling = True
            self._changed()

    def kill_one(self, pid: int, carrier: C, number: signal.Signals = signal.SIGKILL) -> None:
        """End one of those of `carrier`, by this signal, with all of its process group."""
        process = self.all.get(pid)
        if process is not None and process.carrier is carrier:
            everything_of(process.offspring, number)

    def complain(self, about: str, what: str) -> None:
        """Say it once, until it changes."""
        if self._complaints.get(about) != what:
            self._complaints[about] = what
            log.error("%s", what)
