"""The ways in which a worker process runs workitems: one in turn, in threads, or in an event loop (`looping`)."""

from __future__ import annotations

import inspect
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from taskqueue.errors import PluginError
from taskqueue.formats import ONLY_BUILTIN, Formats
from taskqueue.process.calling import call, caller
from taskqueue.process.desk import Desk, Item, current, items
from taskqueue.process.limits import Watch, by_alarm
from taskqueue.process.line import Line
from taskqueue.process.protocol import Kind
from taskqueue.worker import handled_here

__all__ = ["Way", "way"]

log = logging.getLogger(__name__)


class Way(Protocol):
    """How the workitems of one worker are run."""

    def call(self, function: Callable[[], Any]) -> None:
        """Call the worker's `setup` or `teardown`."""

    def run(self, line: Line, desk: Desk) -> None:
        """Handle what comes until the carrier says stop, or is gone."""

    def close(self) -> None:
        """Let go of threads and event loop, as soon as their handlers have returned: in programs that go on."""


def way(worker: Any, hello: dict[str, Any], known: Formats = ONLY_BUILTIN, *, whole: bool = True) -> Way:
    """How to run `worker`, with bodies read by the formats `known`.

    whole: in a process that is there for it alone; only there is anything done in the main thread, or by a signal.

    Raises PluginError where the group's options don't fit its `handle_task`.
    """
    threads, concurrency = hello["threads"], hello["concurrency"]
    if inspect.iscoroutinefunction(worker.handle_task):
        if threads > 1 and whole:
            raise PluginError(
                f"threads = {threads}: handle_task of this plugin is an `async def`, which runs in one thread; "
                f"expected concurrency = {threads}"
            )
        from taskqueue.process.looping import InLoop  # an import of 20 ms, which others shall not wait for

        return InLoop(worker, hello if whole else {**hello, "concurrency": max(threads, concurrency)}, known)
    if concurrency > 1:
        raise PluginError(
            f"concurrency = {concurrency}: handle_task of this plugin is no `async def`; "
            f"expected threads = {concurrency}, or an `async def handle_task`"
        )
    for name in ("setup", "teardown"):
        if inspect.iscoroutinefunction(getattr(worker, name, None)):
            raise PluginError(f"{name} of this plugin is an `async def`, and its handle_task is none")
    return InTurn(worker, hello, known) if threads == 1 and whole else InThreads(worker, hello, known)


class InTurn:
    """One workitem at a time, in the main thread."""

    def __init__(self, worker: Any, hello: dict[str, Any], known: Formats) -> None:
        self._worker = worker
        self._max_result: int = hello["max_result"]
        self._known = known
        self._handle = caller(worker, self._max_result, known)
        if hello["soft_time_limit"]:
            self._handle = by_alarm(self._handle, hello["soft_time_limit"])

    def call(self, function: Callable[[], Any]) -> None:
        function()

    def run(self, line: Line, desk: Desk) -> None:
        for kind, meta, payload in line.frames():
            if kind == Kind.STOP:
                return
            if kind == Kind.WORK:
                self._batch(desk, list(items(meta, payload)))
                desk.idle()

    def close(self) -> None:
        pass

    def _batch(self, desk: Desk, batch: list[Item]) -> None:
        for position, item in enumerate(batch):
            workitem = desk.start(0, item)
            if workitem is None:
                desk.unstarted(batch[position:])
                return
            started = time.monotonic()
            self._worker.workitem = current(workitem, item.inputs)
            desk.end(item, started, call(self._handle, workitem, self._max_result, self._known))


class InThreads:
    """As many at once as there are threads, none of them the main one, which reads the socket."""

    def __init__(self, worker: Any, hello: dict[str, Any], known: Formats) -> None:
        self._max_result: int = hello["max_result"]
        self._known = known
        self._handle = caller(worker, self._max_result, known)
        self._watch = Watch(hello["soft_time_limit"]) if hello["soft_time_limit"] else None
        if self._watch is not None:
            self._handle = self._watch.limited(self._handle)
        self._threads: int = hello["threads"]
        self._waiting: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unbegun: set[int] = set()  # hand-overs
        self._running: list[tuple[Item, float] | None] = [None] * self._threads  # with when it was started, monotonic

    def call(self, function: Callable[[], Any]) -> None:
        function()

    def run(self, line: Line, desk: Desk) -> None:
        for slot in range(self._threads):
            self._start(line, desk, slot)
        for kind, meta, payload in line.frames():
            if kind == Kind.STOP:
                return
            if kind == Kind.WORK:
                for item in items(meta, payload):
                    with self._lock:
                        self._unbegun.add(item.number)
                    self._waiting.put(item)
            if kind == Kind.LEAVE:
                for number in meta:
                    self._leave(line, desk, number)
        raise ConnectionResetError("the carrier is gone")

    def _start(self, line: Line, desk: Desk, slot: int) -> None:
        # Daemons: what still runs when the carrier is gone is done again, and not waited for.
        threading.Thread(target=self._work, args=(line, desk, slot), name=f"handler-{slot}", daemon=True).start()

    def _leave(self, line: Line, desk: Desk, number: int) -> None:
        """End what runs as `number` in place of its handler, whose thread another one replaces."""
        with self._lock:
            slot = next((slot for slot, each in enumerate(self._running) if each and each[0].number == number), None)
            if slot is not None or number in self._unbegun:  # else it has ended meanwhile
                desk.left.add(number)
            if slot is None:
                return
            left, self._running[slot] = self._running[slot], None
        assert left is not None
        desk.leave(*left)
        self._start(line, desk, slot)

    def close(self) -> None:
        for _ in range(self._threads):
            self._waiting.put(None)
        if self._watch is not None:
            self._watch.close()

    def _work(self, line: Line, desk: Desk, slot: int) -> None:
        try:
            while (item := self._waiting.get()) is not None:
                workitem, mine = desk.start(slot, item), (item, time.monotonic())
                with self._lock:
                    self._unbegun.discard(item.number)
                    late = item.number in desk.left
                    desk.left.discard(item.number)
                    if workitem is not None and not late:
                        self._running[slot] = mine
                if workitem is None:
                    desk.unstarted([item])
                    continue
                if late:
                    desk.leave(*mine)
                    continue
                handled_here.set(current(workitem, item.inputs))
                answer = call(self._handle, workitem, self._max_result, self._known)
                with self._lock:
                    desk.left.discard(item.number)
                    if self._running[slot] is not mine:
                        return  # it was left alone: another thread is in its place
                    self._running[slot] = None
                desk.end(*mine, answer)
        except OSError:
            return  # the carrier is gone, which the main thread sees as well
        except BaseException:  # a thread that ends in silence would leave its workitem lying
            log.critical("a thread of the worker process can't go on", exc_info=True)
            line.give_up()
