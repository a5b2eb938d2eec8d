"""The worker manager: starts the carrier and the worker processes that the configuration wants, and replaces them.

It opens no payload, imports no plugin code, and has no connection.  Its look, plan, act loop: whatever happens
(a signal, a death, a new configuration) only wakes it; `taskqueue.plan.plan` decides.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import random
import signal
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taskqueue import formats
from taskqueue.clock import SYSTEM, Clock
from taskqueue.config import Config, Group, check_users, effective_user, load, service_user, user_exists
from taskqueue.errors import ConfigError, PluginError
from taskqueue.plan import Child, Deaths, Start, Stop, died, is_failing, plan, process_of, want
from taskqueue.plugins import discover
from taskqueue.process.protocol import CANNOT_BOOT, Kind
from taskqueue.process.spawn import Account, account, ended, everything_of, how_it_ended, spawn
from taskqueue.process.wire import Wire
from taskqueue.title import set_title

__all__ = ["WorkerPool"]

log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds that carrier and worker processes have for their own end after everything that ran has been settled."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Process:
    """A worker process that has not been waited for yet."""

    popen: subprocess.Popen[bytes]
    group: Group
    started: float
    stopping: bool = False
    recycling: bool = False
    up: bool = False
    worked: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class _Carrier:
    """The carrier, and what was told to it."""

    popen: subprocess.Popen[bytes]
    wire: Wire
    started: float
    settings: dict[str, Any] = field(repr=False)
    draining: bool = False


class WorkerPool:
    """One worker manager.

    path, url: where the configuration is; what goes before its url.
    set_up_log: called with each configuration before it is used.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        url: str = "",
        set_up_log: Callable[[Config], None] = lambda config: None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._path = path
        self._url = url
        self._set_up_log = set_up_log
        self._clock = clock
        self._root = os.geteuid() == 0
        self.config = Config()
        self._formats: dict[str, Any] = {}
        self._processes: dict[int, _Process] = {}
        self._carrier: _Carrier | None = None
        self._carrier_deaths: Deaths | None = None
        self._deaths: dict[Group, Deaths] = {}
        self._complaints: dict[str, str] = {}
        self._stopping = 0
        self._killing_at: float | None = None
        self._wake = asyncio.Event()

    def configure(self) -> None:
        """Read the configuration, and say what is odd about it.  Raises ConfigError; the old one stays then."""
        plugins, problems = discover()
        installed, refused = formats.discover()
        config = load(self._path, plugins, formats=(*formats.BUILTIN, *installed), url=self._url)
        self._formats = {
            "installed": installed,
            "default": config.default_workitem_type,
            "read_as": dict(config.workitem_type_map),
        }
        self._set_up_log(config)
        for warning in (*problems, *refused, *config.warnings, *check_users(config, root=self._root)):
            log.warning("%s", warning)
        self.config = config

    async def run(self) -> None:
        """Work until stopped by a signal.  Call `configure` first."""
        loop = asyncio.get_running_loop()
        for number, handler in (
            (signal.SIGCHLD, self._wake.set),
            (signal.SIGTERM, self.stop),
            (signal.SIGINT, self.stop),
            (signal.SIGHUP, self.reload),
            (signal.SIGUSR1, self.log_state),
        ):
            loop.add_signal_handler(number, handler)
        try:
            while True:
                self._wake.clear()
                self._reap()
                again = self._finish() if self._stopping else self._act()
                if self._stopping and self._carrier is None and not self._processes:
                    return
                ready = sum(process.up for process in self._processes.values())
                doing = "stopping, " if self._stopping else ""
                set_title(f"workerpool, {doing}{ready} of {len(self._processes)} worker processes ready")
                try:
                    await asyncio.wait_for(self._wake.wait(), again)
                except TimeoutError:
                    continue
        finally:
            self._kill_everything()

    def stop(self) -> None:
        """Drain: first call.  Kill what runs, and release it: second call."""
        self._stopping += 1
        hard = self._stopping > 1
        log.info("stopping%s", ": what runs is killed, and will run again" if hard else "")
        patience = 0.0 if hard else max((p.group.stop_timeout for p in self._processes.values()), default=0.0)
        self._killing_at = self._clock.monotonic() + patience + GRACE
        self._drain(hard=hard)
        self._wake.set()

    def _drain(self, *, hard: bool) -> None:
        """Have the carrier end, and all worker processes with it."""
        if self._carrier is not None:
            self._carrier.draining = True
            self._carrier.wire.send(Kind.DRAIN, {"hard": hard})
            for process in self._processes.values():
                process.stopping = True

    def reload(self) -> None:
        """Read the configuration again; an invalid one changes nothing."""
        if self._stopping:
            return
        try:
            self.configure()
        except ConfigError as error:
            for problem in error.problems:
                log.error("not reloaded: %s", problem)
            return
        log.info("configuration read again")
        self._deaths.clear()
        self._complaints.clear()
        if self._carrier is not None and self._carrier.settings != self._carrier_settings():
            log.info("the connection's settings have changed: the carrier is replaced")
            self._drain(hard=False)
        self._wake.set()

    def log_state(self) -> None:
        """Everything that is known, to the log."""
        now = self._clock.monotonic()
        carrier = self._carrier
        log.info("carrier: %s", "none" if carrier is None else f"pid {carrier.popen.pid}, draining {carrier.draining}")
        for group, count in want(self.config).items():
            here = [p for p in self._processes.values() if process_of(p.group) == process_of(group)]
            failing = is_failing(self._deaths.get(process_of(group)), now=now)
            log.info(
                "group %s: %d wanted, %d there, %d ready%s", group.name, count, len(here), sum(p.up for p in here),
                "; failing" if failing or group.name in self._complaints else "",
            )  # fmt: skip
        if carrier is not None:
            carrier.wire.send(Kind.STATE)

    # Look, plan, act.

    def _reap(self) -> None:
        now = self._clock.monotonic()
        if self._carrier is not None:
            self._carrier.wire.read()  # it says what it recycles before that ends
        for pid, process in list(self._processes.items()):
            returncode = ended(process.popen)
            if returncode is None:
                continue
            del self._processes[pid]
            how = how_it_ended(returncode)
            if self._carrier is not None:
                self._carrier.wire.send(Kind.DIED, {"pid": pid, "how": how})
            if (process.stopping or process.recycling) and returncode == 0:
                log.info("worker process %d of %s ended", pid, process.group.name)
                continue
            key = process_of(process.group)
            if not self._stopping and not process.stopping and not process.recycling:
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
        carrier = self._carrier
        if carrier is not None and ended(carrier.popen) is not None:
            self._carrier_ended(carrier, now)

    def _carrier_ended(self, carrier: _Carrier, now: float) -> None:
        how = how_it_ended(carrier.popen.returncode)
        loop = asyncio.get_running_loop()
        carrier.wire.read()
        carrier.wire.close("dead")
        self._carrier = None
        if carrier.draining and carrier.popen.returncode == 0:
            log.info("carrier %d ended", carrier.popen.pid)
        else:
            log.error(
                "carrier %d died: %s; its worker processes are replaced, what they did will be done again",
                carrier.popen.pid, how,
            )  # fmt: skip
            self._carrier_deaths = died(self._carrier_deaths, started=carrier.started, now=now, jitter=random.random())
        drained = carrier.popen.returncode == 0
        for process in self._processes.values():
            process.stopping = True
            loop.call_later(GRACE if drained else 0.0, everything_of, process.popen, signal.SIGKILL)

    def _act(self) -> float | None:
        """Do what the plan says; the seconds after which to plan again."""
        now = self._clock.monotonic()
        if self._carrier is None:
            at = self._carrier_deaths.restart if self._carrier_deaths is not None else now
            if at > now:
                return at - now
            if not self._start_carrier(now):
                return 5.0
        assert self._carrier is not None
        if self._carrier.draining:
            return None
        children = [
            Child(pid=pid, group=p.group, started=p.started, stopping=p.stopping, recycling=p.recycling)
            for pid, p in self._processes.items()
        ]
        again: float | None = None
        for action in plan(children, want=want(self.config), deaths=self._deaths, now=now):
            match action:
                case Stop(pid):
                    self._processes[pid].stopping = True
                    self._carrier.wire.send(Kind.RETIRE, {"pid": pid})
                case Start(group, at) if at <= now:
                    self._start(group, now)
                    if process_of(group) in self._deaths:  # not started after all
                        again = min(again or 1.0, 1.0)
                case Start(_, at):
                    again = min(again or at - now, at - now)
        return again

    def _start_carrier(self, now: float) -> bool:
        name = service_user(self.config, root=self._root, exists=user_exists)
        settings = self._carrier_settings()
        try:
            popen, sock = spawn("taskqueue.carrier", self._account(name), {})
        except PluginError as error:
            self._complain("carrier", f"the carrier can't be started: {error}")
            return False
        wire = Wire(sock, self._heard, lambda reason: self._mute(popen))
        carrier = _Carrier(popen=popen, wire=wire, started=now, settings=settings)
        carrier.wire.send(Kind.CONFIG, settings)
        self._carrier = carrier
        log.info("carrier %d started", popen.pid)
        return True

    def _mute(self, carrier: subprocess.Popen[bytes]) -> None:
        """The carrier is ending, or speaks nonsense."""
        asyncio.get_running_loop().call_later(GRACE, everything_of, carrier, signal.SIGKILL)
        self._wake.set()

    def _carrier_settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "broker": {
                "url": config.url,
                "heartbeat": config.heartbeat,
                "queue_type": config.queue_type,
                "results_max_length": config.results_max_length,
                "dead_retention": config.dead_retention,
            },
            "log_level": logging.getLogger().level,
            "max_result": config.max_body,
            "formats": self._formats,
            "user": service_user(config, root=self._root, exists=user_exists),
        }

    def _start(self, group: Group, now: float) -> None:
        name = effective_user(group, self.config, root=self._root, exists=user_exists)
        try:
            popen, sock = spawn("taskqueue.process", self._account(name), dict(group.environment))
        except PluginError as error:
            self._complain(group.name, f"group {group.name} can't be started: {error}")
            previous = self._deaths.get(process_of(group))
            self._deaths[process_of(group)] = died(previous, started=now, now=now, jitter=random.random())
            return
        self._processes[popen.pid] = _Process(popen=popen, group=group, started=now)
        assert self._carrier is not None
        meta = {"pid": popen.pid, "group": asdict(group)}
        self._carrier.wire.send(Kind.PROCESS, meta, files=(sock.detach(),))
        log.debug("worker process %d of %s started", popen.pid, group.name)

    def _account(self, name: str) -> Account:
        """The account `name`, or that of this process.  Raises PluginError where there is none."""
        if not name:
            name = pwd.getpwuid(os.geteuid()).pw_name
        found = account(name)
        if found is None:
            raise PluginError(f"user {name!r}: there is no such user on this host")
        return found

    def _complain(self, about: str, what: str) -> None:
        """Say it once, until it changes."""
        if self._complaints.get(about) != what:
            self._complaints[about] = what
            log.error("%s", what)

    # What the carrier says.

    def _heard(self, kind: Kind, meta: Any, payload: bytes) -> None:
        match kind:
            case Kind.UP:
                process = self._processes.get(meta["pid"])
                if process is not None:
                    process.up = True
                    self._wake.set()
                    self._complaints.pop(process.group.name, None)
                    log.info("worker process %d of %s is ready", meta["pid"], process.group.name)
            case Kind.DOWN:
                name = meta["group"]
                self._complain(name, f"plugin of group {name} does not load: {meta['error']}\n{meta['traceback']}")
            case Kind.WORKED:
                process = self._processes.get(meta["pid"])
                if process is not None:
                    process.worked = True
                else:  # it is dead already, and was taken for one that did nothing
                    self._forget_deaths(meta["group"])
            case Kind.RECYCLE:
                process = self._processes.get(meta["pid"])
                if process is not None:
                    process.recycling = True
                    self._wake.set()
            case Kind.KILL:
                process = self._processes.get(meta["pid"])
                if process is not None:
                    everything_of(process.popen, signal.SIGKILL)
            case Kind.DRAINED:
                log.debug("the carrier has settled everything")
            case Kind.LOG:
                logging.getLogger(str(meta[0])).log(int(meta[1]), "%s", meta[2])
            case _:
                raise ValueError(f"a carrier does not say {kind.name}")

    def _forget_deaths(self, name: str) -> None:
        """A process of the group `name` did some work: its next one need not wait."""
        self._deaths = {group: deaths for group, deaths in self._deaths.items() if group.name != name}
        self._wake.set()

    # The end.

    def _finish(self) -> float | None:
        """While stopping: wait for the carrier, then for what is left; the seconds after which to look again."""
        assert self._killing_at is not None
        left = self._killing_at - self._clock.monotonic()
        if left <= 0:
            log.error("what did not end is killed")
            self._kill_everything()
            return 1.0
        return left

    def _kill_everything(self) -> None:
        for process in self._processes.values():
            everything_of(process.popen, signal.SIGKILL)
        if self._carrier is not None:
            everything_of(self._carrier.popen, signal.SIGKILL)
