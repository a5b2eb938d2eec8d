"""What the manager has: the carrier that gets new worker processes, those that retire, and the processes of all."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import random
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskqueue.clock import Clock
from taskqueue.config import Group
from taskqueue.errors import PluginError
from taskqueue.plan import Deaths, died
from taskqueue.process.protocol import Kind
from taskqueue.process.spawn import Account, Offspring, account, ended, everything_of, how_it_ended, spawn
from taskqueue.workerpool.carrier_end import MUTE_FOR, NO_ANSWER, CarrierEnd
from taskqueue.workerpool.processes import GRACE, Process, Processes

__all__ = ["Children"]

log = logging.getLogger(__name__)


class Children:
    """Starts them, hears what carriers say, and knows how they ended.

    carrier: the one that gets new worker processes; None: there is none right now.
    retiring: those that only finish what their worker processes run.
    workers: the worker processes of all carriers.
    changed: called when there is something to plan anew.
    """

    def __init__(self, clock: Clock, changed: Callable[[], None], *, mute_for: float = MUTE_FOR) -> None:
        self.carrier: CarrierEnd | None = None
        self.retiring: list[CarrierEnd] = []
        self.workers: Processes[CarrierEnd] = Processes(clock, changed)
        self.carrier_deaths: Deaths | None = None
        self._clock = clock
        self._changed = changed
        self._mute_for = mute_for
        self._had_one = False

    @property
    def carriers(self) -> list[CarrierEnd]:
        """All that run."""
        return [*self.retiring, *([self.carrier] if self.carrier is not None else [])]

    def log_state(self, wanted: Mapping[Group, int]) -> None:
        """Everything that is known, to the log; `wanted` is how many processes of each group there should be."""
        if not self.carriers:
            log.info("carrier: none")
        for carrier in self.carriers:
            doing = "retiring" if carrier.retiring else carrier.trouble or "connected"
            log.info("carrier: pid %d, %s", carrier.pid, doing)
            carrier.log_state()
        self.workers.log_state(wanted)

    # Starting and stopping.

    def start_carrier(self, user: str, settings: Mapping[str, Any]) -> bool:
        """Start the carrier that gets new worker processes; False where that can't be done."""
        try:
            process, sock = spawn("taskqueue.carrier", _account(user), {})
        except PluginError as error:
            self.workers.complain("carrier", f"the carrier can't be started: {error}")
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
        environment = dict(group.environment)
        started = self.workers.start(
            group, self.carrier, lambda: spawn("taskqueue.process", _account(user), environment), now
        )
        return started is not None

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
        self.workers.kill()
        for carrier in self.carriers:
            everything_of(carrier.process, signal.SIGKILL)

    def _of(self, carrier: CarrierEnd) -> Sequence[Process[CarrierEnd]]:
        return [process for process in self.workers.all.values() if process.carrier is carrier]

    # Their ends.

    def reap(self, *, stopping: bool) -> None:
        """Take note of all that have ended.  `stopping`: the manager wants them to."""
        for carrier in self.carriers:
            carrier.read()  # it says what it recycles before that ends
        self.workers.reap(stopping=stopping)
        for carrier in self.carriers:
            returncode = ended(carrier.process)
            if returncode is not None:
                self._carrier_ended(carrier, returncode)

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
                self.workers.is_up(meta["pid"])
            case Kind.DOWN:
                self.workers.is_down(meta["group"], meta["error"], meta["traceback"])
            case Kind.WORKED:
                self.workers.has_worked(meta["pid"], meta["group"])
            case Kind.RECYCLE:
                self.workers.is_recycled(meta["pid"])
            case Kind.KILL:
                number = signal.Signals(meta.get("signal", signal.SIGKILL))
                self.workers.kill_one(meta["pid"], carrier, number)
            case Kind.DRAINED:
                log.debug("carrier %d has settled everything", carrier.pid)
            case Kind.LOG:
                logging.getLogger(str(meta[0])).log(int(meta[1]), "%s", meta[2])
            case _:
                raise ValueError(f"a carrier does not say {kind.name}")


def _account(name: str) -> Account:
    """The account `name`, or that of this process.  Raises PluginError where there is none."""
    if not name:
        name = pwd.getpwuid(os.geteuid()).pw_name
    found = account(name)
    if found is None:
        raise PluginError(f"user {name!r}: there is no such user on this host")
    return found
