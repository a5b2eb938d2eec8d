"""Runs the workitems of an `async def handle_task`: many at once, in one event loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from taskqueue import formats
from taskqueue.errors import FormatError, PluginError, SoftTimeLimitExceeded
from taskqueue.formats import Formats
from taskqueue.process.calling import Answer, done, is_older, raised
from taskqueue.process.desk import Desk, Item, current, items
from taskqueue.process.line import Line
from taskqueue.process.protocol import Kind
from taskqueue.worker import handled_here
from taskqueue.workitem import Workitem

__all__ = ["InLoop", "call_async", "caller_async"]

HandleAsync = Callable[[Workitem], Awaitable[Answer]]


class InLoop:
    """An `async def handle_task`: as many at once as `concurrency` says, in one event loop."""

    def __init__(self, worker: Any, hello: dict[str, Any], known: Formats) -> None:
        self._max_result: int = hello["max_result"]
        self._known = known
        self._handle = caller_async(worker, self._max_result, known)
        self._soft_time_limit: float | None = hello["soft_time_limit"] or None
        self._runner = asyncio.Runner()
        self._waiting: deque[Item] = deque()
        self._unbegun: set[int] = set()  # hand-overs
        self._free = list(range(hello["concurrency"]))
        self._tasks: set[asyncio.Task[None]] = set()
        self._handling: dict[int, asyncio.Task[Any] | None] = {}  # by hand-over
        self._over: asyncio.Future[None]

    def call(self, function: Callable[[], Any]) -> None:
        async def called() -> None:
            result = function()
            if inspect.isawaitable(result):
                await result

        self._runner.run(called())

    def run(self, line: Line, desk: Desk) -> None:
        self._runner.run(self._serve(line, desk))

    def close(self) -> None:
        self._runner.close()

    async def _serve(self, line: Line, desk: Desk) -> None:
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        loop.add_reader(line.fileno(), self._read, line, desk)
        try:
            await self._over
        finally:
            loop.remove_reader(line.fileno())

    def _read(self, line: Line, desk: Desk) -> None:
        frames = line.arrived()
        if frames is None:
            self._end(ConnectionResetError("the carrier is gone"))
            return
        for kind, meta, payload in frames:
            if kind == Kind.STOP:
                self._end(None)
            elif kind == Kind.WORK:
                arrived = list(items(meta, payload))
                self._unbegun.update(item.number for item in arrived)
                self._waiting.extend(arrived)
            elif kind in (Kind.CANCEL, Kind.LEAVE):
                if kind == Kind.LEAVE:
                    desk.left.update(self._unbegun.union(self._handling).intersection(meta))
                for handling in filter(None, map(self._handling.get, meta)):
                    handling.cancel()
        self._fill(desk)

    def _fill(self, desk: Desk) -> None:
        while self._waiting and self._free:
            task = asyncio.get_running_loop().create_task(self._work(desk, self._free.pop(), self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    async def _work(self, desk: Desk, slot: int, item: Item) -> None:
        # Started here, and not where the task is made: another handler may keep the loop from getting here in time.
        workitem = desk.start(slot, item)
        self._unbegun.discard(item.number)
        if workitem is None:
            desk.left.discard(item.number)
            desk.unstarted([item])
        elif item.number in desk.left:
            desk.left.discard(item.number)
            desk.leave(item, time.monotonic())
        else:
            started = time.monotonic()
            handled_here.set(current(workitem, item.inputs))
            self._handling[item.number] = asyncio.current_task()
            answer = await call_async(self._handle, workitem, self._max_result, self._soft_time_limit, self._known)
            del self._handling[item.number]
            desk.left.discard(item.number)
            desk.end(item, started, answer)
        self._free.append(slot)
        self._fill(desk)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._end(task.exception())

    def _end(self, error: BaseException | None) -> None:
        if not self._over.done():
            if error is None:
                self._over.set_result(None)
            else:
                self._over.set_exception(error)


def caller_async(worker: Any, max_result: int, known: Formats = formats.ONLY_BUILTIN) -> HandleAsync:
    """The same for an `async def handle_task(body)`.  Raises PluginError where it has the older form's arguments."""
    if is_older(worker.handle_task):
        raise PluginError("handle_task(channel, method, header, body), the older form, can't be an `async def`")
    return lambda workitem: _call_async(worker.handle_task, workitem, max_result, known)


async def _call_async(
    handle: Callable[[Any], Awaitable[Any]], workitem: Workitem, max_result: int, known: Formats
) -> Answer:
    try:
        body = formats.value(workitem.body, workitem.content_type, known)
    except FormatError as error:
        return Answer(("malformed", error.detail))
    return done(await handle(body), max_result)


async def call_async(
    handle: HandleAsync,
    workitem: Workitem,
    max_result: int,
    soft_time_limit: float | None,
    known: Formats = formats.ONLY_BUILTIN,
) -> Answer:
    """The same; after `soft_time_limit` seconds the handler is cancelled, which is a SoftTimeLimitExceeded then."""
    limit = asyncio.timeout(soft_time_limit)
    try:
        try:
            async with limit:
                return await handle(workitem)
        except TimeoutError as error:
            if limit.expired() and soft_time_limit:
                raise SoftTimeLimitExceeded(soft_time_limit) from error
            raise
    except BaseException as error:
        return raised(error, workitem, max_result, known)
