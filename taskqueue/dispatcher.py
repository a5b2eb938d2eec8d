"""The dispatcher: reads the queue `taskqueue`, finds out each workitem's type, and passes it on to `worker_<type>`.

Any number may run, on any hosts.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from taskqueue import formats
from taskqueue.broker import Broker, Consumer, Delivery, Options, connect
from taskqueue.config import Config, load
from taskqueue.discovery import Installed
from taskqueue.errors import ConfigError, FormatError, TaskQueueError
from taskqueue.formats.chartext import line
from taskqueue.handover import become_anew, check, hold_signals, last_signals, release_signals
from taskqueue.loop import Loop
from taskqueue.outcome import Dead, Forward, Outcome
from taskqueue.service import Service
from taskqueue.title import set_title
from taskqueue.watch import Watch, find_installed
from taskqueue.workitem import DROPPED, INCOMING, Workitem, is_type, worker_queue

__all__ = ["Dispatcher", "broker_options"]

log = logging.getLogger(__name__)

RESERVE = 300
SHOW_EVERY = 1.0  # seconds
STOP_TIMEOUT = 10.0  # seconds


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
    """One dispatcher.  Call `configure` and `run` once.

    path, url: where the configuration is; what goes before its url.
    set_up_log: called with each configuration before it is used.
    service: told how it is.
    arguments: of the command `taskqueue` that it goes on as when it is upgraded.
    pid_file: the descriptor of the pid file that it holds.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        url: str = "",
        set_up_log: Callable[[Config], None] = lambda config: None,
        service: Service | None = None,
        arguments: Sequence[str] = ("dispatcher", "-f"),
        pid_file: int | None = None,
    ) -> None:
        self._path = path
        self._url = url
        self._set_up_log = set_up_log
        self._service = service or Service()
        self.config = Config()
        self._formats = formats.known({}, default="", read_as={})
        self._intake: _Intake | None = None
        self._passed_on = 0  # over connections before the present one
        self._trouble = "not connected to the broker yet"
        self._wake = asyncio.Event()
        self._stopping = False
        self._arguments = arguments
        self._pid_file = pid_file
        self._installed = Installed()
        self._asked: set[str] = set()  # `reload`, `upgrade`, `formats`

    def configure(self, installed: Installed) -> None:
        """Read the configuration, and say what is odd about it.  Raises ConfigError; the old one stays then."""
        config = load(self._path, {}, formats=(*formats.BUILTIN, *installed.formats), url=self._url)
        try:
            self._set_up_log(config)
        except ConfigError:
            self._set_up_log(self.config)
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
                if self._asked and not self._stopping:
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

    def _open(self) -> _Intake:
        self._trouble = "not connected to the broker yet"
        broker = connect(broker_options(self.config))
        broker.watch(self._told)
        return _Intake(broker, self)

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

    async def _leave(self, intake: _Intake) -> None:
        await intake.drain()
        self._passed_on += intake.settled

    async def _upgrade(self) -> Sequence[str]:
        """Settle what was taken, and become the version that is installed now, with its formats.

        Returns only where that can't be done, with the reason; then all goes on as it was.
        """
        left = {"pid_file": self._pid_file, "reloads": self._service.reloads}
        problem = await check(self._arguments, left)
        if not problem and not self._stopping and self._intake is not None:
            log.info("going on with the versions that are installed now")
            await self._leave(self._intake)
            await self._watch.close()
            hold_signals()
            await last_signals()
            if not self._stopping:
                try:
                    become_anew(self._arguments, left, list(filter(None, [self._pid_file])))
                except OSError as error:
                    problem = f"{error.filename}: {error.strerror}"
            release_signals()
            self._watch = Watch(self._installed, lambda installed: self._ask("formats"))
            self._intake = self._open()
        if problem:
            log.error("not upgraded: %s", problem)
        return [f"not upgraded: {line}" for line in problem.splitlines()]

    # What the intake asks.

    def parsed(self, workitem: Workitem) -> Outcome:
        """Where a message goes, by its content."""
        try:
            return Forward(formats.parse(workitem, max_body=self.config.max_body, formats=self._formats))
        except FormatError as error:
            # The id is a producer's: it must not write lines of its own into the log.
            log.warning("workitem %s is malformed: %s", line(workitem.id) or "without an id", error.detail)
            return Dead("malformed", error.detail)


class _Intake:
    """What a dispatcher does over one broker, which is closed in the end."""

    def __init__(self, broker: Broker, dispatcher: Dispatcher) -> None:
        self._broker = broker
        self._dispatcher = dispatcher
        self._types: set[str] = set()  # whose queues it has seen to exist
        self._loops = [
            self._loop(INCOMING, lambda delivery: dispatcher.parsed(delivery.workitem)),
            self._loop(DROPPED, lambda delivery: given_up(delivery.workitem)),
        ]
        self._running = [asyncio.create_task(loop.run()) for loop, _ in self._loops]

    @property
    def settled(self) -> int:
        """How many messages are through."""
        return sum(loop.settled for loop, _ in self._loops)

    def log_state(self) -> None:
        """Everything that is known, to the log."""
        for one, _ in self._loops:
            log.info("held %d, settled %d, discarded %d", one.held, one.settled, one.discarded)

    async def wait(self, event: asyncio.Event) -> None:
        """Wait for `event`.  Raises what went wrong inside meanwhile."""
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait([waiting, *self._running], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        for task in self._running:
            if task.done():
                task.result()

    async def drain(self) -> None:
        """Take nothing more, settle what was taken, and let go of the broker."""
        for task in self._running:
            task.cancel()
        try:
            await asyncio.wait_for(self._settle_all(), STOP_TIMEOUT)
        except TimeoutError:
            log.warning("not everything could be settled in %g s; it will be done again", STOP_TIMEOUT)
        await self._broker.close()

    async def _settle_all(self) -> None:
        for loop, consumer in self._loops:
            await consumer.pause()
            await loop.settled_all()

    def _loop(self, queue: str, decide: Callable[[Delivery], Outcome]) -> tuple[Loop, Consumer]:
        consumer = self._broker.consumer(queue, reserve=RESERVE)

        async def handle(deliveries: list[Delivery]) -> None:
            for delivery in deliveries:
                outcome = decide(delivery)
                if isinstance(outcome, Forward) and outcome.workitem.type not in self._types:
                    outcome = await self._first_seen(outcome)
                loop.end(delivery, outcome)

        loop = Loop(consumer, handle, reserve=RESERVE)
        return loop, consumer

    async def _first_seen(self, forward: Forward) -> Outcome:
        """Make the queue of a type, so that nothing is lost before its first worker is installed."""
        type, most = forward.workitem.type, self._dispatcher.config.max_types
        if len(self._types) < most:
            await self._broker.declare(worker_queue(type))
        elif not await self._broker.exists(worker_queue(type)):
            return Dead("too many types", f"max_types ({most}) allows no queue for one more type")
        self._types.add(type)
        return forward


def given_up(workitem: Workitem) -> Outcome:
    """What becomes of a workitem that the broker gave up by itself, by its header x-death.

    One that was handed out too often for the broker goes back to its workers: crashes are counted by ourselves.
    """
    deaths = workitem.headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping) else {}
    queue, reason = str(first.get("queue", "")), str(first.get("reason", ""))
    type = queue.removeprefix("worker_")
    workitem = replace(workitem, type=type if queue != type else workitem.type)
    if reason == "delivery_limit" and queue != type and is_type(type):
        return Forward(workitem)
    return Dead("expired" if reason == "expired" else "delivery limit", f"in queue {queue}")
