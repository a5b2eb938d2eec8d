"""The carrier's composition: its manager on one side, worker processes and lanes on the other."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from taskqueue.broker import Broker, Delivery, Ended
from taskqueue.carrier.chores import Chores
from taskqueue.carrier.dropped import Dropped
from taskqueue.carrier.lane import Lane
from taskqueue.carrier.worker_process import WorkerProcess
from taskqueue.clock import SYSTEM, Clock
from taskqueue.config import Group
from taskqueue.upkeep import Keeping

__all__ = ["Carrier", "Manager"]

log = logging.getLogger(__name__)

SHOW_EVERY = 1.0  # seconds
MUTE_FOR = 5.0  # seconds that a worker process may take to end after it has closed its socket


class Manager(Protocol):
    """Who starts and kills a carrier's worker processes, as the carrier sees it; told what becomes of them."""

    def up(self, pid: int) -> None:
        """A worker process has loaded its plugin."""

    def down(self, group: str, error: str, traceback: str) -> None:
        """The plugin of a group did not load in a worker process, which may be known to be dead already."""

    def worked(self, pid: int, group: str) -> None:
        """A worker process, which may be known to be dead already, has brought a workitem to an end."""

    def recycle(self, pid: int) -> None:
        """A worker process will end, and needs a successor."""

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """A worker process is to be killed, or sent another signal, with all of its process group."""

    def when_seen(self, then: Callable[[], None]) -> None:
        """Call `then` when the manager is seen to run: it may be a program that is held up."""

    def said(self, name: str, level: int, text: str) -> None:
        """A worker process logged something."""

    def troubled(self, trouble: str) -> None:
        """Why the broker can't be reached, in a sentence; empty: it is reached."""

    def shown(self, doing: str) -> None:
        """What the carrier does; once a second."""


class Carrier:
    """Owns the broker and all deliveries."""

    def __init__(self, manager: Manager, clock: Clock = SYSTEM) -> None:
        self._manager = manager
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._processes: dict[int, WorkerProcess] = {}
        self._broker: Broker | None = None
        self._chores: Chores | None = None
        self._dropped: Dropped | None = None
        self._hello: Mapping[str, Any] = {}
        self._keeping = Keeping()
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._draining: asyncio.Task[None] | None = None
        self._timed: set[int] = set()  # the pids of those that may not take for ever to retire
        self._reporting = False

    async def run(self) -> None:
        """Work until drained.  Raises what went wrong inside; the event loop is its own as far as faults go."""
        asyncio.get_running_loop().set_exception_handler(self._fault)
        self._show()
        await self._done

    def _show(self) -> None:
        if self._done.done():
            return
        running = sum(process.load for process in self._processes.values())
        held = sum(lane.loop.held for lane in self._lanes.values())
        for lane in self._lanes.values():
            lane.rest()
        self._manager.shown(f"{held} workitems held, {running} of them in {len(self._processes)} worker processes")
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
        """A fault in a callback must not go on in silence: whoever has this carrier hears of it."""
        error = context.get("exception")
        log.error("carrier: %s", context.get("message"), exc_info=error)
        if error is not None and not self._done.done():
            self._done.set_exception(error)

    # What its manager says.

    def configure(self, hello: Mapping[str, Any], keeping: Keeping) -> None:
        """What worker processes are told from now on beside what their groups say; and what a store is to keep."""
        self._hello = hello
        self._keeping = keeping
        if self._chores is not None:
            self._chores.keep(keeping)

    def open(self, broker: Broker, *, alone: bool = False) -> None:
        """Work with `broker`, which is the carrier's to close.  Once, after `configure`.

        alone: there may be no dispatcher to take what the broker gives up; over a store there need be none anyway.
        """
        self._broker = broker
        broker.watch(self._manager.troubled)
        if broker.capabilities.store:
            self._chores = Chores(broker.store(), self._keeping)
        if alone or broker.capabilities.store:
            self._dropped = Dropped(broker)

    def add(self, pid: int, group: Group, sock: socket.socket) -> None:
        """A worker process was started, with the other end of `sock`."""
        hello = {
            "type": group.type,
            "label": group.label,
            "slots": group.slots,
            "threads": group.threads,
            "concurrency": group.concurrency,
            "soft_time_limit": group.soft_time_limit,
            "entry_point": group.entry_point,
            "settings": group.settings,
            **self._hello,
        }
        process = WorkerProcess(pid, group, sock, hello, self, self._clock)
        self._processes[pid] = process
        if group.type not in self._lanes:
            assert self._broker is not None
            self._lanes[group.type] = Lane(group.type, self._broker, self._clock, self._recycle)
        self._lanes[group.type].add(process)

    def died(self, pid: int, how: str) -> None:
        """A worker process is dead."""
        process = self._processes.pop(pid, None)
        self._timed.discard(pid)
        if process is not None:
            self._lanes[process.group.type].died(process, how)

    def retire_process(self, pid: int) -> None:
        """Let a worker process finish what it runs, and end."""
        if pid in self._processes:
            self._retire(self._processes[pid])

    def drain(self, *, hard: bool = False, patient: bool = False) -> None:
        """Take nothing new, have everything finished, and end.

        hard: what runs is not waited for.  patient: it is, however long it takes.
        """
        for process in list(self._processes.values()):
            self._retire(process, patient=patient)
            if hard:
                self._out_of_patience(process, "is not waited for")
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drained())
            self._draining.add_done_callback(lambda task: task.result())

    def log_state(self) -> None:
        """Everything that is known, to the log."""
        for lane in self._lanes.values():
            log.info("%s", lane.state())

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
            self._manager.kill(process.pid)

    def _recycle(self, process: WorkerProcess, why: str) -> None:
        """Before it is told to stop: the manager must not take its end for a death."""
        log.info("worker process %d of %s is recycled: %s", process.pid, process.group.name, why)
        self._manager.recycle(process.pid)

    async def _drained(self) -> None:
        for lane in self._lanes.values():
            lane.stop_receiving()
        for lane in self._lanes.values():
            await lane.drained()
        await self.close()
        if not self._done.done():
            self._done.set_result(None)

    async def close(self) -> None:
        """Let go of the broker: by itself once it is drained; else what is held is given back."""
        if self._dropped is not None:
            await self._dropped.close()
        if self._chores is not None:
            await self._chores.close()
        if self._broker is not None:
            await self._broker.close()

    # What worker processes say.

    def ready(self, process: WorkerProcess) -> None:
        self._manager.up(process.pid)
        self._lanes[process.group.type].ready(process)

    def broken(self, process: WorkerProcess, error: str, traceback: str) -> None:
        self._manager.down(process.group.name, error, traceback)

    def ticket(self, process: WorkerProcess, delivery: Delivery) -> dict[str, Any] | None:
        return self._lanes[process.group.type].ticket(delivery)

    def ended(self, process: WorkerProcess, ended: Ended, seconds: float) -> None:
        self._lanes[process.group.type].ended(process, ended, seconds)

    def worked(self, process: WorkerProcess) -> None:
        self._manager.worked(process.pid, process.group.name)

    def unstarted(self, process: WorkerProcess, deliveries: Sequence[Delivery]) -> None:
        self._lanes[process.group.type].unstarted(process, deliveries)

    def stopping(self, process: WorkerProcess) -> None:
        # One that does not end would keep its successor from its place: a thread of a handler may go on for ever.
        asyncio.get_running_loop().call_later(process.group.stop_timeout, self._kill_if_there, process)

    def said(self, process: WorkerProcess, name: str, level: int, text: str) -> None:
        self._manager.said(f"worker.{process.group.name}", level, f"{process.pid} {name}: {text}")

    def mute(self, process: WorkerProcess, reason: str) -> None:
        if process.pid in self._processes:
            if reason.startswith("nonsense"):
                log.error("worker process %d of %s speaks %s", process.pid, process.group.name, reason)
                self._manager.kill(process.pid)
            else:  # it is ending: the manager says so soon, or it closed its socket and goes on, of no use
                asyncio.get_running_loop().call_later(MUTE_FOR, self._kill_if_there, process)

    def _kill_if_there(self, process: WorkerProcess) -> None:
        if self._processes.get(process.pid) is process:
            self._manager.kill(process.pid)

    def over_limit(self, process: WorkerProcess, what: str) -> None:
        log.warning("worker process %d of %s: %s: killed", process.pid, process.group.name, what)
        self._manager.kill(process.pid)

    def left_alone(self, process: WorkerProcess, what: str, seen: Callable[[], None]) -> None:
        log.warning("%s: %s: it is ended, and its handler left alone", process.group.name, what)
        self._manager.when_seen(seen)

    def unwanted(self, process: WorkerProcess, number: signal.Signals) -> None:
        log.warning(
            "worker process %d of %s goes on with what was cancelled: %s", process.pid, process.group.name, number.name
        )
        self._manager.kill(process.pid, number)
