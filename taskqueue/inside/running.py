"""`with taskqueue.running(queue, worker, processes=2):`, as the program's own threads see it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue as queues
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any

from taskqueue import formats
from taskqueue.carrier.carrier import Carrier
from taskqueue.client import Queue
from taskqueue.config import Config, Group
from taskqueue.config.arguments import group
from taskqueue.config.parsers import LONGEST
from taskqueue.errors import PluginError
from taskqueue.inside import place
from taskqueue.inside.apart import CarrierApart
from taskqueue.inside.manager import Carrying, Manager, Workers
from taskqueue.inside.processes import InProcesses
from taskqueue.inside.threads import Threads
from taskqueue.upkeep import Keep, Keeping
from taskqueue.workerpool.carrier_end import kept

__all__ = ["Running", "running"]

log = logging.getLogger(__name__)

OTHERS = {"workers": "processes", "user": "no other user", "threads": "threads"}
OF_PROCESSES = ("time_limit", "memory_limit", "max_memory", "max_tasks", "max_crashes", "cancel_timeout", "environment")


def running(
    queue: Queue,
    worker: Any,
    *,
    processes: int | None = None,
    threads: int | None = None,
    settings: Mapping[str, str] | None = None,
    **options: Any,
) -> Running:
    """Run `worker` in this program while a block lasts: no daemon, no configuration, no server but the broker's own.

        with taskqueue.running(queue, Worker, processes=2):
            ...

    queue: where its workitems come from; their type is the queue's name.
    worker: a worker class, or anything else with a `factory`; a callable without parameters that makes a worker; or
    'module:attribute' of one.
    processes, threads: how many; one of them.  Worker processes are fresh interpreters, which import the module that
    the worker is in: if that is the program's main file, what it does must stand below `if __name__ == "__main__":`.
    Threads run the worker's handlers in this process; one of them is enough for as many of an `async def`.
    Tasks that submit tasks to memory:// themselves need threads.
    settings: what is the worker's own.
    options: those of a worker section in config.ini, such as `retries`, `time_limit`, `stop_timeout`; of those that
    processes are needed for, threads have none.  Results go to no results queue unless `results_routing_key` names one.

    The block begins when the first worker process, or all threads, can work.  At its end what runs is finished within
    `stop_timeout`, and the rest given back to the queue; Ctrl-C during that ends it at once.

    Raises ConfigError for options, TypeError or ValueError for arguments that make no sense, PluginError where worker
    processes could not find the worker; on entering PluginError where it can't be loaded or set up, with the traceback;
    on leaving what went wrong in between.  `async with` does the same in a coroutine.
    """
    if place.is_being_imported_again():
        raise PluginError(
            'a worker process imports the program\'s main file: put this below `if __name__ == "__main__":` there'
        )
    if (processes is None) == (threads is None):
        raise TypeError("expected either processes or threads")
    kind, count = ("processes", processes) if threads is None else ("threads", threads)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{kind} = {count!r}: expected a whole number from 1 on")
    unfit = [name for name in options if name in (OTHERS if threads is None else (*OTHERS, *OF_PROCESSES))]
    if unfit:
        raise TypeError(f"{', '.join(unfit)}: not for {kind} of a program")
    given = {"results_routing_key": "", **options, "workers" if threads is None else "threads": count}
    entry_point = place.entry_point(worker) if threads is None else ""
    wanted = group(queue.name, entry_point, given, settings=settings or {}, caller="taskqueue.running")
    if threads is None:
        return Running(queue, wanted, None)
    # Nobody can be killed for what is cancelled: it is told, and no more.
    return Running(queue, replace(wanted, cancel_timeout=float("inf")), lambda: place.factory(worker)())


class Running:
    """The block that `running` makes; for one use.

    make: makes the worker in threads of this program; None: the group's entry point does so in worker processes.
    """

    def __init__(self, queue: Queue, group: Group, make: Callable[[], Any] | None) -> None:
        self._queue = queue
        self._group = group
        self._make = make
        self._pid = 0
        # No threading.Condition: Ctrl-C inside of it leaves its lock locked for the other thread.  Nor Thread.join:
        # after Ctrl-C it takes a thread that goes on for one that has ended.
        self._ready: queues.SimpleQueue[BaseException | None] = queues.SimpleQueue()
        self._ended: queues.SimpleQueue[None] = queues.SimpleQueue()
        self._is_over = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._manager: Manager | None = None
        self._asked: bool | None = None
        self._fault: BaseException | None = None

    def __enter__(self) -> Running:
        if self._pid:
            raise RuntimeError("a block of `running` can be entered once")
        self._pid = os.getpid()
        # The kernel ends worker processes with the thread that started them.  A daemon: it does not keep a program that
        # ends without leaving the block.
        self._loop = asyncio.SelectorEventLoop()
        threading.Thread(target=self._work, name=f"taskqueue {self._group.type}", daemon=True).start()
        try:
            if (trouble := self._ready.get()) is not None:
                raise trouble
        except BaseException:
            self._leave(hard=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:  # a child that was forked in the block: it is none of its own
            return
        try:
            self._leave()
        except BaseException:  # KeyboardInterrupt
            self._leave(hard=True)
            raise
        if self._fault is not None and (error is None or isinstance(error, Exception)):
            raise self._fault

    def _leave(self, *, hard: bool = False) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # it is over already
            self._loop.call_soon_threadsafe(self._stop, hard)
        if not self._is_over:
            self._ended.get()

    def _stop(self, hard: bool) -> None:
        self._asked = hard
        if self._manager is not None:
            self._manager.stop(hard=hard)

    @property
    def keeping(self) -> Keeping:
        """What a store is to keep: of this type as its options say; what others have in the same store is theirs."""
        types = Config(groups=(self._group,)).keeping.types
        return Keeping(default=Keep(LONGEST), types=types, statistics=LONGEST)

    async def __aenter__(self) -> Running:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def _work(self) -> None:
        assert self._loop is not None
        loop = self._loop
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._manage())
        except BaseException as fault:
            log.critical("running %s: it can't go on", self._group.type, exc_info=True)
            self._fault = fault
            self._ready.put(fault)
        self._is_over = True
        self._ended.put(None)

    async def _manage(self) -> None:
        hello = {
            "log_level": logging.getLogger().level,
            "max_result": Config().max_body,
            "formats": {"installed": formats.discover()[0], "default": "", "read_as": {}},
            "is_elsewhere": not self._queue.broker.capabilities.several_programs,
            "program": None if self._make is not None else place.surroundings(self._group.entry_point),
        }
        self._manager = Manager(
            self._group, lambda manager: self._carrier(manager, hello), self._workers, self._ready.put
        )
        if self._asked is not None:
            self._manager.stop(hard=self._asked)
        await self._manager.run()

    def _carrier(self, manager: Manager, hello: Mapping[str, Any]) -> Carrying:
        broker = self._queue.broker
        if (options := broker.apart()) is not None:
            told = {**hello, "broker": asdict(options), "keeping": kept(self.keeping), "alone": True}
            return CarrierApart(manager, {**told, "own_log_level": logging.getLogger("taskqueue").getEffectiveLevel()})
        carrier = Carrier(manager)
        carrier.configure(hello, self.keeping)
        carrier.open(broker.anew(), alone=True)
        return carrier

    def _workers(self, carrier: Carrying, changed: Callable[[], None]) -> Workers:
        if self._make is None:
            return InProcesses(carrier, self._group, changed)
        return Threads(carrier, self._group, self._make, changed)
