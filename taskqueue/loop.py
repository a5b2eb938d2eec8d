"""The one loop: receive a batch, have each workitem handled, settle what has ended.

The dispatcher is this loop with a parsing function; the carrier is it with worker processes.  The loop knows no
backend, a backend knows no handler.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from taskqueue.broker import Consumer, Delivery, Ended
from taskqueue.formats.chartext import line
from taskqueue.outcome import Release

__all__ = ["Loop"]

log = logging.getLogger(__name__)


class Loop:
    """Moves deliveries of one queue from its consumer to a handler, and outcomes back.

    handle: takes deliveries, at once or by what it returns; whoever has one calls `end` for it, once.
    reserve: how many deliveries may be held at a time.
    """

    def __init__(
        self, consumer: Consumer, handle: Callable[[list[Delivery]], Awaitable[None] | None], *, reserve: int
    ) -> None:
        self.held = 0
        self._consumer = consumer
        self._handle = handle
        self._reserve = reserve
        self._ended: list[Ended] = []
        self._settling: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._fault: BaseException | None = None
        self.settled = 0
        self.discarded = 0

    async def run(self) -> None:
        """Receive for ever.  Cancel it to receive no more; what is held can still be ended."""
        while True:
            while (room := self._reserve - self.held) <= 0 or self._fault is not None:
                if self._fault is not None:
                    raise self._fault
                self._changed.clear()
                await self._changed.wait()
            deliveries = await self._consumer.receive(limit=room)
            self.held += len(deliveries)
            handling = self._handle(deliveries)
            if handling is not None:
                await asyncio.shield(handling)  # what was taken is handled, also when stopped

    def end(self, ended: Ended) -> None:
        """A delivery is over.  All that end in one turn of the event loop are settled together.

        But for one that its handler may have ended itself: what became of that may be known only after a while.
        """
        if ended.completing:
            self._start(self._settle([ended]))
            return
        if not self._ended:
            self._start(self._settle_ended())
        self._ended.append(ended)

    async def _settle_ended(self) -> None:
        """A task begins in the next turn of the event loop."""
        batch, self._ended = self._ended, []
        await self._settle(batch)

    def _start(self, settling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(settling)
        self._settling.add(task)
        task.add_done_callback(self._settled)

    async def _settle(self, batch: Sequence[Ended]) -> None:
        counted = await self._consumer.settle(batch)
        self.held -= len(batch)
        self.settled += sum(counted)
        for ended, counts in zip(batch, counted, strict=True):
            if not counts and not isinstance(ended.outcome, Release):
                self.discarded += 1
                log.warning(
                    "workitem %s of %s: its delivery was lost, somebody else has it now; %s discarded",
                    line(ended.delivery.workitem.id) or "without an id",
                    ended.delivery.queue,
                    type(ended.outcome).__name__,
                )

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fault = task.exception()  # run raises it: a daemon that can't settle must not go on in silence
        self._changed.set()

    def resize(self, reserve: int) -> None:
        """Hold up to `reserve` deliveries from now on."""
        if reserve != self._reserve:
            self._reserve = reserve
            self._consumer.resize(reserve)
            self._changed.set()

    async def settled_all(self) -> None:
        """Wait until nothing is held any more.  Raises what settling raised."""
        while self.held or self._ended or self._settling:
            if self._fault is not None:
                raise self._fault
            self._changed.clear()
            await self._changed.wait()
