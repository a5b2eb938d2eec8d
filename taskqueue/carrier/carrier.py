"""The carrier's composition: the manager's words on one side, worker processes and lanes on the other."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

from taskqueue.broker import Broker, Delivery, Ended, Options, connect
from taskqueue.carrier.chores import Chores
from taskqueue.carrier.dropped import Dropped
from taskqueue.carrier.lane import Lane
from taskqueue.carrier.worker_process import WorkerProcess
from taskqueue.clock import SYSTEM, Clock
from taskqueue.config import Group
from taskqueue.process.protocol import Kind
from taskqueue.process.wire import Wire
from taskqueue.title import set_title
from taskqueue.upkeep import Keep, Keeping

__all__ = ["Carrier"]

log = logging.getLogger(__name__)

SHOW_EVERY = 1.0  # seconds
MUTE_FOR = 5.0  # seconds that a worker process may take to end after it has closed its socket
LOG_BACKLOG = 1 << 22  # bytes: what worker processes log beyond what the manager takes is dropped, not piled up


class ToManager(logging.Handler):
    """Hands log records to the manager: one log for all processes."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        self._wire.send(Kind.LOG, [record.name, record.levelno, self.format(record)])


class Carrier:
    """Owns the connection and all deliveries.  Ends when it is drained, or at once when its manager is gone."""

    def __init__(self, sock: socket.socket, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._processes: dict[int, WorkerProcess] = {}
        self._broker: Broker | None = None
        self._chores: Chores | None = None
        self._dropped: Dropped | None = None
        self._options: dict[str, Any] = {}
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._draining: asyncio.Task[None] | None = None
        self._timed: set[int] = set()  # the pids of those that may not take for ever to retire
        self._unsaid = 0
        self._reporting = False
        self._manager = Wire(sock, self._told, self._orphaned, takes_files=True)

    async def run(self) -> None:
        """Work until drained.  Raises what went wrong inside."""
        logging.getLogger().addHandler(ToManager(self._manager))
        asyncio.get_running_loop().set_exception_handler(self._fault)
        self._show()
        await self._done

    def _show(self) -> None:
        """Keep the title up to date."""
        running = sum(process.load for process in self._processes.values())
        held = sum(lane.loop.held for lane in self._lanes.values())
        set_title(f"carrier, {held} workitems held, {running} of them in {len(self._processes)} worker processes")
        if self._broker is not None and self._broker.capabilities.store and not self._reporting:
            self._reporting = True
            asyncio.get_running_loop().create_task(self._report())
        asyncio.get_running_loop().call_later(SHOW_EVERY, self._show)

    async def _report(self) -> None:
        """Tell the store what runs; the next time not before it has heard this."""
        try:
            for lane in list(self._lanes.values()):
                await lane.report()
        finally:
            self._reporting = False

    def _fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A fault in a callback must not go on in silence: the manager starts another carrier."""
        error = context.get("exception")
        log.error("carrier: %s", context.get("message"), exc_info=error)
        if error is not None and not self._done.done():
            self._done.set_exception(error)

    def _orphaned(self, reason: str) -> None:
        if not self._done.done():
            os._exit(1)

    def _told(self, kind: Kind, meta: Any, payload: bytes) -> None:
        match kind:
            case Kind.CONFIG:
                self._configure(meta)
            case Kind.PROCESS:
                self._add(meta["pid"], meta["group"], socket.socket(fileno=self._manager.take_file()))
            case Kind.DIED:
                process = self._processes.pop(meta["pid"], None)
                self._timed.discard(meta["pid"])
                if process is not None:
                    self._lanes[process.group.type].died(process, meta["how"])
            case Kind.RETIRE:
                if meta["pid"] in self._processes:
                    self._retire(self._processes[meta["pid"]])
            case Kind.DRAIN:
                self._drain(hard=meta["hard"], patient=meta["patient"])
            case Kind.STATE:
                for lane in self._lanes.values():
                    log.info("%s", lane.state())
            case Kind.PING:
                self._manager.send(Kind.PONG)
            case _:
                raise ValueError(f"the manager does not say {kind.name}")

    def _configure(self, meta: dict[str, Any]) -> None:
        """The first time it names the broker as well; later only what worker processes are told, and what is kept."""
        self._options = meta
        keeping = _keeping(meta["keeping"])
        if self._chores is not None:
            self._chores.keep(keeping)
        if self._broker is None:
            logging.getLogger().setLevel(meta["log_level"])
            self._broker = connect(Options(**meta["broker"]))
            self._broker.watch(lambda trouble: self._manager.send(Kind.BROKER, {"trouble": trouble}))
            if self._broker.capabilities.store:
                self._chores = Chores(self._broker.store(), keeping)
                self._dropped = Dropped(self._broker)

    def _add(self, pid: int, meta: dict[str, Any], sock: socket.socket) -> None:
        pairs = {name: tuple((str(n), str(v)) for n, v in meta[name]) for name in ("environment", "settings")}
        group = Group(**{**meta, **pairs})
        hello = {
            "type": group.type,
            "label": group.label,
            "slots": group.slots,
            "threads": group.threads,
            "concurrency": group.concurrency,
            "soft_time_limit": group.soft_time_limit,
            "entry_point": group.entry_point,
            "settings": group.settings,
            "log_level": self._options["log_level"],
            "max_result": self._options["max_result"],
            "formats": self._options["formats"],
        }
        process = WorkerProcess(pid, group, sock, hello, self, self._clock)
        self._processes[pid] = process
        if group.type not in self._lanes:
            assert self._broker is not None
            self._lanes[group.type] = Lane(group.type, self._broker, self._clock, self._recycle)
        self._lanes[group.type].add(process)

    def _retire(self, process: WorkerProcess, *, patient: bool = False) -> None:
        """Let it finish within its group's stop timeout; then what it runs is released, and runs again elsewhere.

        patient: let it finish, however long that takes.
        """
        if not patient and process.pid not in self._timed:
            self._timed.add(process.pid)
            timeout = process.group.stop_timeout
            why = f"did not finish within stop_timeout of {timeout:g} s"
            asyncio.get_running_loop().call_later(timeout, self._out_of_patience, process, why)
        if not process.retiring:
            self._lanes[process.group.type].retire(process)

    def _out_of_patience(self, process: WorkerProcess, why: str) -> None:
        if self._processes.get(process.pid) is process:
            if process.load:
                log.warning(
                    "worker process %d of %s %s: killed; what it ran is released, and will run again",
                    process.pid, process.group.name, why,
                )  # fmt: skip
            process.condemn({})
            self._kill(process)

    def _kill(self, process: WorkerProcess) -> None:
        self._manager.send(Kind.KILL, {"pid": process.pid})

    def _recycle(self, process: WorkerProcess, why: str) -> None:
        """Before it is told to stop: the manager must not take its end for a death."""
        log.info("worker process %d of %s is recycled: %s", process.pid, process.group.name, why)
        self._manager.send(Kind.RECYCLE, {"pid": process.pid})

    def _drain(self, *, hard: bool, patient: bool = False) -> None:
        for process in list(self._processes.values()):
            self._retire(process, patient=patient)
            if hard:
                self._out_of_patience(process, "is not waited for")
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drained())
            self._draining.add_done_callback(lambda task: task.result())

    async def _drained(self) -> None:
        for lane in self._lanes.values():
            lane.stop_receiving()
        for lane in self._lanes.values():
            await lane.drained()
        if self._dropped is not None:
            await self._dropped.close()
        if self._chores is not None:
            await self._chores.close()
        if self._broker is not None:
            await self._broker.close()
        self._manager.send(Kind.DRAINED)
        if not self._done.done():
            self._done.set_result(None)

    # What worker processes say.

    def ready(self, process: WorkerProcess) -> None:
        self._manager.send(Kind.UP, {"pid": process.pid})
        self._lanes[process.group.type].ready(process)

    def broken(self, process: WorkerProcess, error: str, traceback: str) -> None:
        # With the name: the manager may know of its death before this arrives.
        self._manager.send(Kind.DOWN, {"group": process.group.name, "error": error, "traceback": traceback})

    def ticket(self, process: WorkerProcess, delivery: Delivery) -> dict[str, Any] | None:
        return self._lanes[process.group.type].ticket(delivery)

    def ended(self, process: WorkerProcess, ended: Ended, seconds: float) -> None:
        self._lanes[process.group.type].ended(process, ended, seconds)

    def worked(self, process: WorkerProcess) -> None:
        # With the name: the manager may know of its death before this arrives.
        self._manager.send(Kind.WORKED, {"pid": process.pid, "group": process.group.name})

    def unstarted(self, process: WorkerProcess, deliveries: Sequence[Delivery]) -> None:
        self._lanes[process.group.type].unstarted(process, deliveries)

    def stopping(self, process: WorkerProcess) -> None:
        # One that does not end would keep its successor from its place: a thread of a handler may go on for ever.
        asyncio.get_running_loop().call_later(process.group.stop_timeout, self._kill_if_there, process)

    def said(self, process: WorkerProcess, name: str, level: int, text: str) -> None:
        if self._manager.backlog > LOG_BACKLOG:
            self._unsaid += 1
            return
        if self._unsaid:
            log.warning("%d log records of worker processes were dropped: there were too many", self._unsaid)
            self._unsaid = 0
        self._manager.send(Kind.LOG, [f"worker.{process.group.name}", level, f"{process.pid} {name}: {text}"])

    def mute(self, process: WorkerProcess, reason: str) -> None:
        if process.pid in self._processes:
            if reason.startswith("nonsense"):
                log.error("worker process %d of %s speaks %s", process.pid, process.group.name, reason)
                self._kill(process)
            else:  # it is ending: the manager says so soon, or it closed its socket and goes on, of no use
                asyncio.get_running_loop().call_later(MUTE_FOR, self._kill_if_there, process)

    def _kill_if_there(self, process: WorkerProcess) -> None:
        if self._processes.get(process.pid) is process:
            self._kill(process)

    def over_limit(self, process: WorkerProcess, what: str) -> None:
        log.warning("worker process %d of %s: %s: killed", process.pid, process.group.name, what)
        self._kill(process)

    def unwanted(self, process: WorkerProcess, number: signal.Signals) -> None:
        log.warning(
            "worker process %d of %s goes on with what was cancelled: %s", process.pid, process.group.name, number.name
        )
        self._manager.send(Kind.KILL, {"pid": process.pid, "signal": number})


def _keeping(meta: dict[str, Any]) -> Keeping:
    types = {type: Keep(*keep) for type, keep in meta["types"].items()}
    return Keeping(default=Keep(*meta["default"]), types=types, statistics=meta["statistics"])
