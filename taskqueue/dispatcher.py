"""The dispatcher: reads the queue `taskqueue`, finds out each workitem's type, and passes it on to `worker_<type>`.

Any number may run, on any hosts.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence

from taskqueue import formats
from taskqueue.broker import Options, connect
from taskqueue.config import Config, load
from taskqueue.daemon import Startup
from taskqueue.discovery import Installed
from taskqueue.errors import ConfigError, TaskQueueError
from taskqueue.handover import become_anew, check, hold_signals, last_signals, release_signals
from taskqueue.intake import Intake, parsed
from taskqueue.title import set_title
from taskqueue.watch import Watch, find_installed

__all__ = ["Dispatcher", "broker_options"]

log = logging.getLogger(__name__)

SHOW_EVERY = 1.0  # seconds


def broker_options(config: Config) -> Options:
    """How to reach the broker that `config` names."""
    return Options(
        url=config.url,
        heartbeat=config.heartbeat,
        queue_type=config.queue_type,
        results_max_length=config.results_max_length,
        dead_retention=config.dead_retention,
    )


class Dispatcher:
    """One dispatcher.  Call `configure` and `run` once."""

    def __init__(self, startup: Startup) -> None:
        self._startup = startup
        self._service = startup.service
        self.config = Config()
        self._formats = formats.known({}, default="", read_as={})
        self._intake: Intake | None = None
        self._passed_on = 0  # over connections before the present one
        self._trouble = "not connected to the broker yet"
        self._wake = asyncio.Event()
        self._stopping = False
        self._installed = Installed()
        self._asked: set[str] = set()  # `reload`, `upgrade`, `formats`

    def configure(self, installed: Installed) -> None:
        """Read the configuration, and say what is odd about it.  Raises ConfigError; the old one stays then."""
        config = load(self._startup.path, {}, formats=(*formats.BUILTIN, *installed.formats), url=self._startup.url)
        try:
            self._startup.set_up_log(config)
        except ConfigError:
            self._startup.set_up_log(self.config)
            raise
        for warning in installed.problems:
            log.warning("%s", warning)
        self.config = config
        self._installed = installed
        read_as = dict(config.workitem_type_map)
        self._formats = formats.known(installed.formats, default=config.default_workitem_type, read_as=read_as)

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT; then settle what was taken.  Raises what went wrong inside."""
        loop = asyncio.get_running_loop()
        for number, handler in (
            (signal.SIGTERM, self._stop),
            (signal.SIGINT, self._stop),
            (signal.SIGHUP, lambda: self._ask("reload")),
            (signal.SIGUSR1, self._log_state),
            (signal.SIGUSR2, lambda: self._ask("upgrade")),
        ):
            loop.add_signal_handler(number, handler)
        release_signals()
        self._load_formats()
        self._service.begin()
        self._watch = Watch(self._installed, lambda installed: self._ask("formats"))
        showing = asyncio.create_task(self._show())
        try:
            self._intake = self._open()
            while not self._stopping:
                self._wake.clear()
                await self._intake.wait(self._wake)
                while self._asked and not self._stopping:  # also for what was asked for meanwhile
                    await self._answer()
            log.info("stopping")
            self._service.stopping()
            await self._intake.drain()
        finally:
            showing.cancel()
            await self._watch.close()
            self._service.close()

    def _load_formats(self) -> None:
        """Import those of third parties now, so that what is wrong with them is said now."""
        for format in self._formats.known.values():
            if isinstance(format, formats.Installed):
                format.load()

    def _open(self) -> Intake:
        broker = connect(broker_options(self.config))
        broker.watch(self._told)
        return Intake(
            broker,
            lambda workitem: parsed(workitem, max_body=self.config.max_body, known=self._formats),
            lambda: self.config.max_types,
        )

    def _told(self, trouble: str) -> None:
        self._trouble = trouble
        self._tell()

    def _tell(self) -> None:
        doing = f"{self._settled} messages passed on"
        set_title(f"dispatcher, {doing}")
        self._service.show(doing, missing=[self._trouble] if self._trouble else [])

    @property
    def _settled(self) -> int:
        return self._passed_on + (self._intake.settled if self._intake is not None else 0)

    async def _show(self) -> None:
        """Keep title and status up to date."""
        while True:
            self._tell()
            await asyncio.sleep(SHOW_EVERY)

    # Signals.

    def _stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def _ask(self, what: str) -> None:
        self._asked.add(what)
        self._wake.set()

    def _log_state(self) -> None:
        if self._intake is not None:
            self._intake.log_state()

    async def _answer(self) -> None:
        """Do what was asked for, once for all."""
        asked = set(self._asked)
        self._asked.clear()
        try:
            installed = await find_installed()
        except TaskQueueError as error:
            log.error("not reloaded: %s", error)
            self._service.reloaded([str(error)], asked=asked != {"formats"})
            return
        self._watch.knows(installed)
        anew = (installed.formats, installed.format_marks) != (self._installed.formats, self._installed.format_marks)
        if asked == {"formats"} and not anew:
            self._installed = installed
            return
        self._service.reloading()
        # Code that was imported once stays as it was: only another program sees another version of a format.
        problems = await (self._upgrade() if anew or "upgrade" in asked else self._reload(installed))
        if not self._asked & {"reload", "upgrade"}:
            self._service.reloaded(problems, asked=asked != {"formats"})

    async def _reload(self, installed: Installed) -> Sequence[str]:
        """Read the configuration again; what is wrong with it, and then nothing has changed.

        With another broker, what was taken is settled with the old one before anything is taken from the new one.
        """
        before = broker_options(self.config)
        try:
            self.configure(installed)
        except ConfigError as error:
            for problem in error.problems:
                log.error("not reloaded: %s", problem)
            return error.problems
        self._load_formats()
        log.info("configuration read again")
        if broker_options(self.config) != before and self._intake is not None:
            log.info("the connection's settings have changed: connecting anew")
            await self._leave(self._intake)
            self._intake = self._open()
        return []

    async def _leave(self, intake: Intake) -> None:
        await intake.drain()
        self._passed_on += intake.settled

    async def _upgrade(self) -> Sequence[str]:
        """Settle what was taken, and become the version that is installed now, with its formats.

        Returns only where that can't be done, with the reason; then all goes on as it was.
        """
        arguments, held = self._startup.arguments, self._startup.pid_file
        left = {"pid_file": held, "reloads": self._service.reloads}
        problem = await check(arguments, left)
        if not problem and not self._stopping and self._intake is not None:
            log.info("going on with the versions that are installed now")
            await self._leave(self._intake)
            await self._watch.close()
            hold_signals()
            await last_signals()
            if not self._stopping:
                try:
                    become_anew(arguments, left, [] if held is None else [held])
                except OSError as error:
                    problem = f"{error.filename}: {error.strerror}"
            release_signals()
            self._watch = Watch(self._installed, lambda installed: self._ask("formats"))
            self._intake = self._open()
        if problem:
            log.error("not upgraded: %s", problem)
        return [f"not upgraded: {line}" for line in problem.splitlines()]
