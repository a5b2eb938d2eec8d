"""All that a carrier does for one worker type: what it holds, and which worker process gets it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Sequence
from itertools import islice

from taskqueue.broker import Broker, Delivery
from taskqueue.carrier.pace import batch_size, depth, mean_run_time, reserve
from taskqueue.carrier.verdicts import after_death
from taskqueue.carrier.worker_process import WorkerProcess
from taskqueue.clock import Clock
from taskqueue.loop import Loop
from taskqueue.outcome import Outcome, Release
from taskqueue.workitem import worker_queue

__all__ = ["Lane"]

log = logging.getLogger(__name__)

RESIZE_EVERY = 1.0  # seconds
PAUSE_AFTER = 2.0  # seconds without a worker process: time to replace one, not to keep work from others


class Lane:
    """Receives from the queue of `type` while there is a worker process for it, and gives it all back when not."""

    def __init__(self, type: str, broker: Broker, clock: Clock) -> None:
        self.type = type
        self.processes: list[WorkerProcess] = []
        self.run_time: float | None = None
        self._clock = clock
        self._waiting: deque[Delivery] = deque()
        self._reserve = 1
        self._resized = clock.monotonic()
        self._consumer = broker.consumer(worker_queue(type), reserve=self._reserve)
        self.loop = Loop(self._consumer, self._take, reserve=self._reserve)
        self._receiving: asyncio.Task[None] | None = None
        self._pausing: asyncio.Task[None] | None = None
        self._pause: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> list[WorkerProcess]:
        """The worker processes that may get work."""
        return [process for process in self.processes if process.usable]

    async def _take(self, deliveries: list[Delivery]) -> None:
        if self._receiving is None:  # it was stopped while these were on their way
            self._give_to_others(deliveries)
        else:
            self._waiting.extend(deliveries)
            self.feed()

    def feed(self) -> None:
        """Hand over what waits, a few milliseconds' worth at a time: to whom has least, and had none for longest."""
        deep = depth(self.run_time)
        while self._waiting:
            free = [p for p in self.usable if p.load <= deep // 2 and not p.is_long]
            if not free:
                return
            process = min(free, key=lambda p: (p.load, p.last))
            room = min(deep - process.load, -(-len(self._waiting) // len(free)))
            sizes = [len(delivery.workitem.body) for delivery in islice(self._waiting, room)]
            batch = [self._waiting.popleft() for _ in range(batch_size(sizes, room))]
            held = [delivery for delivery in batch if not delivery.lease.lost]
            for delivery in batch:
                if delivery.lease.lost:  # somebody else has it; not run twice by us
                    self.loop.end(delivery, Release())
            if held:
                process.hand_over(held)

    def ended(self, process: WorkerProcess, delivery: Delivery, outcome: Outcome, seconds: float) -> None:
        """A worker process is through with `delivery`, which ran for `seconds`."""
        first = self.run_time is None
        self.run_time = mean_run_time(self.run_time, seconds)
        self.loop.end(delivery, outcome, process.rules)
        self._stop_if_retired(process)
        self.feed()
        self.adjust(at_once=first)

    def unstarted(self, process: WorkerProcess, deliveries: Sequence[Delivery]) -> None:
        """These go to others, in their old order, before all that wait."""
        self._give_to_others(deliveries)
        self._stop_if_retired(process)
        self.feed()

    def _give_to_others(self, deliveries: Sequence[Delivery]) -> None:
        """In their old order, before all that wait; or back to the broker, once this lane receives no more."""
        if self._receiving is not None:
            self._waiting.extendleft(reversed(deliveries))
        else:
            for delivery in deliveries:
                self.loop.end(delivery, Release())

    def ready(self, process: WorkerProcess) -> None:
        """A worker process has loaded its plugin."""
        self.adjust(at_once=True)
        self._pause_or_go_on()
        self.feed()

    def retire(self, process: WorkerProcess) -> None:
        """Let a worker process finish what it runs, and end."""
        process.retiring = True
        self._stop_if_retired(process)
        self.adjust(at_once=True)
        self._pause_or_go_on()

    def _stop_if_retired(self, process: WorkerProcess) -> None:
        if process.retiring and not process.load:
            process.stop()

    def died(self, process: WorkerProcess, how: str) -> None:
        """A worker process is dead: the one workitem that ran is blamed, the rest goes to others."""
        self.processes.remove(process)
        blamed, condemned, rest = process.bury()
        self._give_to_others(rest)
        if blamed is not None:
            workitem = blamed.workitem
            outcome = after_death(
                workitem, process.group, how, condemned, jitter=random.random(), known=process.formats
            )
            log.warning(
                "worker process %d of %s ended (%s) while it ran workitem %s (attempt %d): %s",
                process.pid, process.group.name, how, workitem.id, workitem.attempt, type(outcome).__name__,
            )  # fmt: skip
            self.loop.end(blamed, outcome, process.rules)
        self.adjust(at_once=True)
        self._pause_or_go_on()
        self.feed()

    def adjust(self, *, at_once: bool = False) -> None:
        """Hold as much as fits the worker processes and their measured run time."""
        now = self._clock.monotonic()
        if not at_once and now - self._resized < RESIZE_EVERY:
            return
        usable = self.usable
        if not usable:
            return
        prefetch = sum({p.group.name: p.group.prefetch for p in usable}.values())
        wanted = reserve(len(usable), self.run_time, prefetch)
        if at_once or not self._reserve * 2 / 3 <= wanted <= self._reserve * 3 / 2:
            self._resized = now
            self._reserve = wanted
            self.loop.resize(wanted)

    def _pause_or_go_on(self) -> None:
        if not self.usable:
            if self._pause is None:
                self._pause = asyncio.get_running_loop().call_later(PAUSE_AFTER, self.stop_receiving)
            return
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._receiving is None:
            self._receiving = asyncio.get_running_loop().create_task(self.loop.run(), name=f"receive {self.type}")
            self._receiving.add_done_callback(self._fault)

    def _fault(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": f"receiving for {self.type}", "exception": task.exception()})

    def stop_receiving(self) -> None:
        """Take nothing new, and give back what has not been handed over."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None
            self._pausing = asyncio.get_running_loop().create_task(self._consumer.pause())
        while self._waiting:
            self.loop.end(self._waiting.popleft(), Release())

    async def drained(self) -> None:
        """Wait until everything that was taken is settled."""
        if self._pausing is not None:
            await self._pausing
        await self.loop.settled_all()

    def state(self) -> str:
        """One line for the log."""
        running = ", ".join(
            f"{p.pid} {'retiring' if p.retiring else 'ready' if p.is_ready else 'starting'} load {p.load}"
            for p in self.processes
        )
        mean = "unknown" if self.run_time is None else f"{self.run_time:.6f} s"
        return (
            f"type {self.type}: {'receiving' if self._receiving else 'paused'}, held {self.loop.held} of "
            f"{self._reserve}, waiting {len(self._waiting)}, run time {mean}, settled {self.loop.settled}, "
            f"discarded {self.loop.discarded}, processes: {running or 'none'}"
        )
