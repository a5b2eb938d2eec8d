"""The worker manager's loop: whatever happens (a signal, a death, a new configuration) only wakes it.

It looks, has `taskqueue.plan.plan` decide, and acts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from taskqueue import formats
from taskqueue.clock import SYSTEM, Clock
from taskqueue.config import Config, Group, check_users, effective_user, load, service_user, user_exists
from taskqueue.daemon import Startup
from taskqueue.discovery import Installed
from taskqueue.errors import ConfigError, TaskQueueError
from taskqueue.handover import become_anew, check, hold_signals, last_signals, release_signals
from taskqueue.plan import want
from taskqueue.title import set_title
from taskqueue.watch import Watch, find_installed
from taskqueue.workerpool.carrier_end import LATER, MUTE_FOR, settings
from taskqueue.workerpool.children import Children
from taskqueue.workerpool.processes import GRACE
from taskqueue.workerpool.succession import adopt, descriptors, flush, leave

__all__ = ["WorkerPool"]

log = logging.getLogger(__name__)

EXTEND_EVERY = 5.0  # seconds, while it stops


class WorkerPool:
    """One worker manager.

    mute_for: seconds without an answer after which a carrier is killed and replaced.
    """

    def __init__(self, startup: Startup, *, clock: Clock = SYSTEM, mute_for: float = MUTE_FOR) -> None:
        self._startup = startup
        self._service = startup.service
        self._clock = clock
        self._root = os.geteuid() == 0
        self.config = Config()
        self._installed = Installed()
        self._wake = asyncio.Event()
        self._children = Children(clock, self._wake.set, mute_for=mute_for)
        self._watch: Watch | None = None
        self._asked: list[str] = []  # `reload`, `upgrade`
        self._answering: asyncio.Task[None] | None = None
        self._stopping = 0
        self._killing_at: float | None = None

    def configure(self, installed: Installed) -> None:
        """Read the configuration, and say what is odd about it.  Raises ConfigError; the old one stays then."""
        known = (*formats.BUILTIN, *installed.formats)
        config = load(self._startup.path, installed.plugins, formats=known, url=self._startup.url)
        try:
            self._startup.set_up_log(config)
        except ConfigError:
            self._startup.set_up_log(self.config)
            raise
        for warning in (*installed.problems, *config.warnings, *check_users(config, root=self._root)):
            log.warning("%s", warning)
        read_as = [config.default_workitem_type, config.workitem_type_map]
        groups = [
            replace(group, installation=installed.installation(group.type, read_as)) if group.entry_point else group
            for group in config.groups
        ]
        self.config = replace(config, groups=tuple(groups))
        self._installed = installed

    async def run(self) -> None:
        """Work until stopped by a signal.  Raises ConfigError where it can't start."""
        loop = asyncio.get_running_loop()
        self.configure(await find_installed())
        if self._startup.left is not None:
            adopt(self._children, self._startup.left)
        for number, handler in (
            (signal.SIGCHLD, self._wake.set),
            (signal.SIGTERM, self.stop),
            (signal.SIGINT, self.stop),
            (signal.SIGHUP, lambda: self._ask("reload")),
            (signal.SIGUSR1, self.log_state),
            (signal.SIGUSR2, lambda: self._ask("upgrade")),
        ):
            loop.add_signal_handler(number, handler)
        release_signals()
        self._service.begin(self._alive)
        self._watch = Watch(self._installed, self._installed_anew)
        try:
            while True:
                self._wake.clear()
                self._children.reap(stopping=self._stopping > 0)
                if self._answering is not None and self._answering.done():
                    self._answering.result()
                again = self._finish() if self._stopping else self._act()
                if self._stopping and not self._children.carriers and not self._children.workers.all:
                    return
                self._show()
                try:
                    async with asyncio.timeout(again):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            self._children.kill()
            await self._watch.close()
            self._service.close()

    def _show(self) -> None:
        """Tell how it is: in its title, and through the service."""
        children, workers = self._children, self._children.workers
        doing = f"{workers.ready} of {len(workers.all)} worker processes ready"
        set_title(f"workerpool, {'stopping, ' if self._stopping else ''}{doing}")
        if self._stopping:
            self._service.show(doing)
            self._service.stopping()
            return
        wanted = want(self.config)
        failing = [group.name for group in wanted if workers.trouble(group)]
        missing = [f"group {name} is failing" for name in failing]
        if children.carrier is None:
            missing.insert(0, "there is no carrier")
        elif children.carrier.trouble:
            missing.insert(0, children.carrier.trouble)
        pending = workers.ready < sum(wanted.values())
        self._service.show(doing, missing=missing, pending=pending)

    def _alive(self) -> bool:
        """Whether the work goes on: for systemd's watchdog."""
        carrier = self._children.carrier
        if carrier is None:
            return True  # one is being started
        answered, carrier.answered = carrier.answered, False
        return answered

    # Signals.

    def stop(self) -> None:
        """Drain: first call.  Kill what runs, and release it: second call."""
        self._stopping += 1
        hard = self._stopping > 1
        log.info("stopping%s", ": what runs is killed, and will run again" if hard else "")
        processes = self._children.workers.all.values()
        patience = 0.0 if hard else max((p.group.stop_timeout for p in processes), default=0.0)
        self._killing_at = self._clock.monotonic() + patience + GRACE
        for carrier in self._children.carriers:
            self._children.drain(carrier, hard=hard)
        self._wake.set()

    def _ask(self, what: str) -> None:
        """What takes longer than a signal handler may; one thing after the other."""
        self._asked.append(what)
        if self._answering is None or self._answering.done():
            self._answering = asyncio.get_running_loop().create_task(self._answer())
            self._answering.add_done_callback(lambda _: self._wake.set())

    async def _answer(self) -> None:
        while self._asked and not self._stopping:
            # What has been asked for meanwhile is answered by the same look at everything.
            what = "upgrade" if "upgrade" in self._asked else "reload"
            self._asked.clear()
            self._service.reloading()
            problems = await (self._upgrade() if what == "upgrade" else self._reload())
            if not self._asked:
                self._service.reloaded(problems)

    async def _reload(self) -> Sequence[str]:
        """Read the configuration again; what is wrong with it, and then nothing has changed."""
        try:
            installed = await find_installed()
        except TaskQueueError as error:
            log.error("not reloaded: %s", error)
            return [str(error)]
        if self._watch is not None:
            self._watch.knows(installed)
        return self._take(installed)

    def _take(self, installed: Installed) -> Sequence[str]:
        if self._stopping:
            return ["it is stopping"]
        try:
            self.configure(installed)
        except ConfigError as error:
            for problem in error.problems:
                log.error("not reloaded: %s", problem)
            return error.problems
        log.info("configuration read again")
        children = self._children
        children.workers.forgive()
        carrier, wanted = children.carrier, self._carrier_settings()
        if carrier is not None and carrier.settings != wanted:
            if {**carrier.settings, **dict.fromkeys(LATER)} == {**wanted, **dict.fromkeys(LATER)}:
                carrier.configure(wanted)
            else:
                log.info("the connection's settings have changed: the carrier is replaced")
                children.retire_carrier()
        self._wake.set()
        return []

    def _installed_anew(self, installed: Installed) -> None:
        """Plugins or formats have come, gone, or changed."""
        log.info("what is installed has changed")
        self._service.reloaded(self._take(installed), asked=False)

    async def _upgrade(self) -> Sequence[str]:
        """Become the version that is installed now; returns only where that can't be done, with the reason."""
        problem = await check(self._startup.arguments, self._leave())
        if not problem and not self._stopping:
            if self._watch is not None:
                await self._watch.close()
            hold_signals()
            await last_signals()
            if not self._stopping:
                problem = self._become_anew()
            release_signals()
            self._watch = Watch(self._installed, self._installed_anew)
        if self._stopping:
            return ["it is stopping"]
        log.error("not upgraded: %s", problem)
        return [f"not upgraded: {line}" for line in problem.splitlines()]

    def _become_anew(self) -> str:
        if not flush(self._children):
            return "a carrier does not answer"
        left = self._leave()
        held = [] if self._startup.pid_file is None else [self._startup.pid_file]
        log.info("going on as the version that is installed now")
        try:
            become_anew(self._startup.arguments, left, [*descriptors(left), *held])
        except OSError as error:
            return f"{error.filename}: {error.strerror}"

    def _leave(self) -> dict[str, Any]:
        return {**leave(self._children), "pid_file": self._startup.pid_file, "reloads": self._service.reloads}

    def log_state(self) -> None:
        """Everything that is known, to the log."""
        self._children.log_state(want(self.config))

    # Look, plan, act.

    def _act(self) -> float | None:
        """Do what the plan says; the seconds after which to plan again."""
        now = self._clock.monotonic()
        children = self._children
        if children.carrier is None:
            at = children.carrier_deaths.restart if children.carrier_deaths is not None else now
            if at > now:
                return at - now
            if not children.start_carrier(self._user, self._carrier_settings()):
                return 5.0
        return children.workers.act(want(self.config), self._start)

    def _start(self, group: Group, now: float) -> bool:
        user = effective_user(group, self.config, root=self._root, exists=user_exists)
        return self._children.start(group, user, now)

    @property
    def _user(self) -> str:
        return service_user(self.config, root=self._root, exists=user_exists)

    def _carrier_settings(self) -> dict[str, Any]:
        return settings(self.config, self._installed.formats, user=self._user, log_level=logging.getLogger().level)

    def _finish(self) -> float:
        """While stopping: wait for carriers, then for what is left; the seconds after which to look again."""
        assert self._killing_at is not None
        left = self._killing_at - self._clock.monotonic()
        if left <= 0:
            log.error("what did not end is killed")
            self._children.kill()
            return 1.0
        return min(left, EXTEND_EVERY)
