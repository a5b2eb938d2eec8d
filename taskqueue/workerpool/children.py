"""The processes that the manager has: worker processes, the carrier that gets new ones, and those that are retiring."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import random
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from taskqueue.clock import Clock
from taskqueue.config import Group
from taskqueue.errors import PluginError
from taskqueue.plan import Child, Deaths, died, is_failing, process_of
from taskqueue.process.protocol import CANNOT_BOOT, Kind
from taskqueue.process.spawn import Account, Offspring, account, ended, everything_of, how_it_ended, spawn
from taskqueue.workerpool.carrier_end import NO_ANSWER, CarrierEnd

__all__ = ["GRACE", "MUTE_FOR", "Children", "Process"]

log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds that carrier and worker processes have for their own end after everything that ran has been settled."""
MUTE_FOR = 30.0
"""Seconds without an answer after which a carrier is taken for hung, and killed."""


@dataclass(slots=True, kw_only=True, eq=False)
class Process:
    """A worker process that has not been waited for yet, and the carrier that it works for."""

    offspring: Offspring
    carrier: CarrierEnd
    group: Group
    started: float
    stopping: bool = False
    recycling: bool = False
    up: bool = False
    worked: bool = False


class Children:
    """Starts them, hears what carriers say of them, and knows how they ended.

    carrier: the one that gets new worker processes; None: there is none right now.
    retiring: those that only finish what their worker processes run.
    changed: called when there is something to plan anew.
    """

    def __init__(self, clock: Clock, changed: Callable[[], None], *, mute_for: float = MUTE_FOR) -> None:
        self.carrier: CarrierEnd | None = None
        self.retiring: list[CarrierEnd] = []
        self.processes: dict[int, Process] = {}
        self.deaths: dict[Group, Deaths] = {}
        self.carrier_deaths: Deaths | None = None
        self._clock = clock
        self._changed = changed
        self._mute_for = mute_for
        self._complaints: dict[str, str] = {}
        self._had_one = False

    @property
    def carriers(self) -> list[CarrierEnd]:
        """All that run."""
        return [*self.retiring, *([self.carrier] if self.carrier is not None else [])]

    @property
    def ready(self) -> int:
        """How many worker processes have loaded their plugins."""
        return sum(process.up for process in self.processes.values())

    def view(self) -> list[Child]:
        """The worker processes as a plan sees them."""
        return [
            Child(pid=pid, group=p.group, started=p.started, stopping=p.stopping, recycling=p.recycling)
            for pid, p in self.processes.items()
        ]

    def forgive(self) -> None:
        """After a new configuration: what failed is tried at once, and what goes on to be wrong is said again."""
        self.deaths.clear()
        self._complaints.clear()

    def is_failing(self, group: Group) -> bool:
        """Whether the processes of `group` can't be started, or don't stay up."""
        deaths = self.deaths.get(process_of(group))
        return group.name in self._complaints or is_failing(deaths, now=self._clock.monotonic())

    def log_state(self, wanted: Mapping[Group, int]) -> None:
        """Everything that is known, to the log; `wanted` is how many processes of each group there should be."""
        if not self.carriers:
            log.info("carrier: none")
        for carrier in self.carriers:
            doing = "retiring" if carrier.retiring else carrier.trouble or "connected"
            log.info("carrier: pid %d, %s", carrier.pid, doing)
            carrier.log_state()
        for group, count in wanted.items():
            here = [p for p in self.processes.values() if process_of(p.group) == process_of(group)]
            log.info(
                "group %s: %d wanted, %d there, %d ready%s", group.name, count, len(here), sum(p.up for p in here),
                "; failing" if self.is_failing(group) else "",
            )  # fmt: skip

    # Starting and stopping.

    def start_carrier(self, user: str, settings: Mapping[str, Any]) -> bool:
        """Start the carrier that gets new worker processes; False where that can't be done."""
        try:
            process, sock = spawn("taskqueue.carrier", _account(user), {})
        except PluginError as error:
            self._complain("carrier", f"the carrier can't be started: {error}")
            return False
        carrier = self.know_carrier(process, sock, self._clock.monotonic(), settings)
        carrier.configure(settings)
        if self._had_one:
            carrier.trouble = ""  # until it says otherwise: the broker that the one before had is there
        self.carrier, self._had_one = carrier, True
        log.info("carrier %d started", carrier.pid)
        return True

    def know_carrier(
        self, process: Offspring, sock: socket.socket, started: float, settings: Mapping[str, Any], rest: bytes = b""
    ) -> CarrierEnd:
        """The manager's end of a carrier that runs."""
        return CarrierEnd(
            process, sock, started=started, settings=settings, heard=self._heard, gone=self._mute,
            mute_for=self._mute_for, rest=rest,
        )  # fmt: skip

    def start(self, group: Group, user: str, now: float) -> bool:
        """Start a worker process of `group` as `user`; False where that can't be done."""
        assert self.carrier is not None
        try:
            process, sock = spawn("taskqueue.process", _account(user), dict(group.environment))
        except PluginError as error:
            self._complain(group.name, f"group {group.name} can't be started: {error}")
            previous = self.deaths.get(process_of(group))
            self.deaths[process_of(group)] = died(previous, started=now, now=now, jitter=random.random())
            return False
        self.processes[process.pid] = Process(offspring=process, carrier=self.carrier, group=group, started=now)
        self.carrier.add(process.pid, asdict(group), sock)
        log.debug("worker process %d of %s started", process.pid, group.name)
        return True

    def stop(self, pid: int) -> None:
        """Let a worker process finish what it runs, and end."""
        process = self.processes[pid]
        process.stopping = True
        process.carrier.retire_process(pid)

    def retire_carrier(self) -> None:
        """Let the carrier end after what its worker processes run; another one may be started beside it."""
        if self.carrier is not None:
            self.retiring.append(self.carrier)
            self.drain(self.carrier)
            self.carrier = None

    def drain(self, carrier: CarrierEnd, *, hard: bool = False, patient: bool = False) -> None:
        """Have `carrier` end, and all its worker processes with it."""
        carrier.drain(hard=hard, patient=patient)
        for process in self._of(carrier):
            process.stopping = True

    def kill(self) -> None:
        """End everything at once."""
        for offspring in (*(p.offspring for p in self.processes.values()), *(c.process for c in self.carriers)):
            everything_of(offspring, signal.SIGKILL)

    def _of(self, carrier: CarrierEnd) -> Sequence[Process]:
        return [process for process in self.processes.values() if process.carrier is carrier]

    # Their ends.

    def reap(self, *, stopping: bool) -> None:
        """Take note of all that have ended.  `stopping`: the manager wants them to."""
        for carrier in self.carriers:
            carrier.read()  # it says what it recycles before that ends
        for pid, process in list(self.processes.items()):
            returncode = ended(process.offspring)
            if returncode is not None:
                del self.processes[pid]
                self._process_ended(pid, process, returncode, stopping=stopping)
        for carrier in self.carriers:
            returncode = ended(carrier.process)
            if returncode is not None:
                self._carrier_ended(carrier, returncode)

    def _process_ended(self, pid: int, process: Process, returncode: int, *, stopping: bool) -> None:
        how, now = how_it_ended(returncode), self._clock.monotonic()
        process.carrier.died(pid, how)
        if (process.stopping or process.recycling) and returncode == 0:
            log.info("worker process %d of %s ended", pid, process.group.name)
            return
        key = process_of(process.group)
        if not stopping and not process.stopping and not process.recycling:
            before = self.deaths.get(key)
            worked = process.worked
            after = died(before, started=process.started, now=now, jitter=random.random(), worked=worked)
            self.deaths[key] = after
            if is_failing(after, now=now) and not is_failing(before, now=now):
                log.error("group %s is failing: its worker processes don't stay up", process.group.name)
        explained = process.stopping or (returncode == CANNOT_BOOT and not process.up)  # the carrier says why
        log.log(
            logging.INFO if explained else logging.WARNING,
            "worker process %d of %s died: %s", pid, process.group.name, how,
        )  # fmt: skip

    def _carrier_ended(self, carrier: CarrierEnd, returncode: int) -> None:
        carrier.close()
        drained = returncode == 0 and carrier.retiring
        if drained:
            log.info("carrier %d ended", carrier.pid)
        else:
            log.error(
                "carrier %d died: %s; its worker processes are replaced, what they did will be done again",
                carrier.pid, how_it_ended(returncode),
            )  # fmt: skip
        if carrier is self.carrier:
            self.carrier = None
            now = self._clock.monotonic()
            self.carrier_deaths = died(self.carrier_deaths, started=carrier.started, now=now, jitter=random.random())
        else:
            self.retiring.remove(carrier)
        for process in self._of(carrier):
            process.stopping = True
            asyncio.get_running_loop().call_later(
                GRACE if drained else 0.0, everything_of, process.offspring, signal.SIGKILL
            )

    def _mute(self, carrier: CarrierEnd, reason: str) -> None:
        """The carrier is ending; or it speaks nonsense, or nothing at all."""
        grace = GRACE
        if reason.startswith(("nonsense", NO_ANSWER)):
            log.error("carrier %d is killed: %s", carrier.pid, reason)
            grace = 0.0
        asyncio.get_running_loop().call_later(grace, everything_of, carrier.process, signal.SIGKILL)
        self._changed()

    # What carriers say.

    def _heard(self, carrier: CarrierEnd, kind: Kind, meta: Any) -> None:
        match kind:
            case Kind.BROKER:
                self._changed()
            case Kind.UP:
                process = self.processes.get(meta["pid"])
                if process is not None:
                    process.up = True
                    self._complaints.pop(process.group.name, None)
                    log.info("worker process %d of %s is ready", meta["pid"], process.group.name)
                    self._changed()
            case Kind.DOWN:
                name = meta["group"]
                self._complain(name, f"plugin of group {name} does not load: {meta['error']}\n{meta['traceback']}")
                self._changed()
            case Kind.WORKED:
                process = self.processes.get(meta["pid"])
                if process is not None:
                    process.worked = True
                else:  # it is dead already, and was taken for one that did nothing
                    self._forget_deaths(meta["group"])
            case Kind.RECYCLE:
                process = self.processes.get(meta["pid"])
                if process is not None:
                    process.recycling = True
                    self._changed()
            case Kind.KILL:
                process = self.processes.get(meta["pid"])
                if process is not None and process.carrier is carrier:
                    everything_of(process.offspring, signal.Signals(meta.get("signal", signal.SIGKILL)))
            case Kind.DRAINED:
                log.debug("carrier %d has settled everything", carrier.pid)
            case Kind.LOG:
                logging.getLogger(str(meta[0])).log(int(meta[1]), "%s", meta[2])
            case _:
                raise ValueError(f"a carrier does not say {kind.name}")

    def _forget_deaths(self, name: str) -> None:
        """A process of the group `name` did some work: its next one need not wait."""
        self.deaths = {group: deaths for group, deaths in self.deaths.items() if group.name != name}
        self._changed()

    def _complain(self, about: str, what: str) -> None:
        """Say it once, until it changes."""
        if self._complaints.get(about) != what:
            self._complaints[about] = what
            log.error("%s", what)


def _account(name: str) -> Account:
    """The account `name`, or that of this process.  Raises PluginError where there is none."""
    if not name:
        name = pwd.getpwuid(os.geteuid()).pw_name
    found = account(name)
    if found is None:
        raise PluginError(f"user {name!r}: there is no such user on this host")
    return found
