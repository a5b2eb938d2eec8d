"""All that a carrier does for one worker type: what it holds, and which worker process gets it."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from taskqueue.broker import Broker, Delivery, Ended
from taskqueue.carrier.pace import batch_size, depth, is_soon, mean_run_time, reserve
from taskqueue.carrier.verdicts import after_death
from taskqueue.carrier.worker_process import WorkerProcess
from taskqueue.clock import Clock
from taskqueue.loop import Loop
from taskqueue.outcome import Cancelled, Failed, Release
from taskqueue.process.handing import weight
from taskqueue.process.protocol import MAX_FRAME
from taskqueue.workitem import worker_queue

__all__ = ["Lane"]

log = logging.getLogger(__name__)

RESIZE_EVERY = 0.25  # seconds
LONG = 0.5  # seconds; a store hears of what runs for a shorter time when it ends
MAX_HANDED_OVER = MAX_FRAME - (1 << 20)  # bytes, of a workitem with what it depends on
TOO_MUCH = f"the results that it depends on have {{}} MiB together: a worker process takes {MAX_HANDED_OVER >> 20} MiB"
REST_AFTER = 1.0  # seconds in which nothing moves while something waits: elsewhere there may be somebody for it
PAUSE_AFTER = 2.0  # seconds without a worker process: time to replace one, not to keep work from others


class Lane:
    """Receives from the queue of `type` while there is a worker process for it, and gives it all back when not."""

    def __init__(self, type: str, broker: Broker, clock: Clock, recycle: Callable[[WorkerProcess, str], None]) -> None:
        """`recycle` is called for a worker process that needs a successor, with the reason."""
        self.type = type
        self.processes: list[WorkerProcess] = []
        self._recycle = recycle
        self.run_time: float | None = None
        self._clock = clock
        self._waiting: deque[Delivery] = deque()
        self._suspects: deque[Delivery] = deque()  # those that were running when a worker process died
        self._reserve = 1
        self._most = 0  # that was wanted since then
        self._resized = self._moved = clock.monotonic()
        self._resting = False
        self._consumer = broker.consumer(worker_queue(type), reserve=self._reserve)
        self.loop = Loop(self._consumer, self._take, reserve=self._reserve)
        self._going_on = False
        self._receiving: asyncio.Task[None] | None = None
        self._pausing: asyncio.Task[None] | None = None
        self._pause: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> list[WorkerProcess]:
        """The worker processes that may get work."""
        return [process for process in self.processes if process.usable]

    def _take(self, deliveries: list[Delivery]) -> None:
        if self._receiving is None:  # it was stopped while these were on their way
            self._give_to_others(deliveries)
        else:
            for delivery in deliveries:
                (self._suspects if delivery.workitem.crashes else self._waiting).append(delivery)
            self.feed()

    def feed(self) -> None:
        """Hand over what waits, a few milliseconds' worth at a time: to whom has least (see `_burden`).

        What was running when a worker process died runs alone in one: where several ran, the next death tells which.
        """
        deep = depth(self.run_time)
        while self._suspects:
            idle = [p for p in self.usable if not p.load and p.room(1)]
            if not idle:
                break
            self._hand_over(min(idle, key=_burden), [self._suspects.popleft()], alone=True)
        while self._waiting:
            usable = self.usable
            if self._suspects and usable:
                usable.remove(min(usable, key=_burden))  # it gets nothing more, to be idle soon
            free = [p for p in usable if p.room(deep) > 0]
            if not free:
                return
            process = min(free, key=_burden)
            room = min(process.room(deep), -(-len(self._waiting) // len(free)))
            sizes = [weight(delivery.workitem, delivery.inputs) for delivery in islice(self._waiting, room)]
            self._hand_over(process, [self._waiting.popleft() for _ in range(batch_size(sizes, room))])

    def _hand_over(self, process: WorkerProcess, batch: Sequence[Delivery], *, alone: bool = False) -> None:
        held = []
        for delivery in batch:
            if delivery.lease.lost:  # somebody else has it; not run twice by us
                self.loop.end(Ended(delivery, Release()))
            elif delivery.inputs and (size := weight(delivery.workitem, delivery.inputs)) > MAX_HANDED_OVER:
                self.loop.end(Ended(delivery, Failed(TOO_MUCH.format(size >> 20)), process.rules))
            else:
                held.append(delivery)
        if held:
            self._moved = self._clock.monotonic()
            process.hand_over(held, alone=alone)
            self._replace_if_worn(process)

    def _replace_if_worn(self, process: WorkerProcess) -> None:
        """Have a successor started for one that gets no more work; if it soon gets no more, so that it is ready then.

        One that runs workitems in turn holds its place until it has ended: its successor has nothing to do before.
        """
        if process.worn:
            self._give_places()
        if process.recycling or process.retiring:
            return
        soon = process.left < sys.maxsize and is_soon(process.left + process.load, process.slots, self.run_time)
        if soon or (process.worn and (process.slots > 1 or not process.load)):
            process.recycling = True
            self._recycle(process, process.worn or f"max_tasks = {process.group.max_tasks}")

    def ended(self, process: WorkerProcess, ended: Ended, seconds: float) -> None:
        """A worker process is through with a delivery, which ran for `seconds`."""
        self._move()
        first = self.run_time is None
        self.run_time = mean_run_time(self.run_time, seconds)
        self.loop.end(ended)
        if process.ends or process.retiring:
            self._stop_if_through(process)
        if first:
            self.adjust(at_once=True)
        if not self._going_on:  # once for all that end in one turn of the event loop
            self._going_on = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        self.feed()
        self.adjust()

    def ticket(self, delivery: Delivery) -> dict[str, Any] | None:
        """What a worker process needs to end a delivery by itself."""
        return self._consumer.ticket(delivery)

    def unstarted(self, process: WorkerProcess, deliveries: Sequence[Delivery]) -> None:
        """These go to others, in their old order, before all that wait."""
        self._give_to_others(deliveries)
        self._stop_if_through(process)
        if not process.is_stuck:
            self._move()
        self.feed()

    def _give_to_others(self, deliveries: Sequence[Delivery]) -> None:
        """In their old order, before all that wait; or back to the broker, once this lane receives no more."""
        if self._receiving is not None:
            self._suspects.extendleft(d for d in reversed(deliveries) if d.workitem.crashes)
            self._waiting.extendleft(d for d in reversed(deliveries) if not d.workitem.crashes)
        else:
            for delivery in deliveries:
                self.loop.end(Ended(delivery, Release()))

    def add(self, process: WorkerProcess) -> None:
        """A worker process was started."""
        self.processes.append(process)
        self._give_places()

    def _give_places(self) -> None:
        """Who may work: of each group as many as it wants, the oldest first; a successor waits for its turn."""
        places = {process.group.name: process.group.workers for process in self.processes}  # the latest one knows
        for process in self.processes:
            name = process.group.name
            process.standby = places[name] <= 0
            if not (process.slots > 1 and process.worn):  # such a one lets its successor begin while it finishes
                places[name] -= 1

    def ready(self, process: WorkerProcess) -> None:
        """A worker process has loaded its plugin."""
        self.adjust(at_once=True)
        self._pause_or_go_on()
        self.feed()

    def retire(self, process: WorkerProcess) -> None:
        """Let a worker process finish what it runs, and end."""
        process.retiring = True
        self._stop_if_through(process)
        self.adjust(at_once=True)
        self._pause_or_go_on()

    def _stop_if_through(self, process: WorkerProcess) -> None:
        self._replace_if_worn(process)
        if process.worn:
            self._pause_or_go_on()
        if (process.retiring or process.worn) and not process.load:
            process.stop()

    def died(self, process: WorkerProcess, how: str) -> None:
        """A worker process is dead: the workitems that ran are blamed, the rest goes to others."""
        self.processes.remove(process)
        self._give_places()
        running, rest = process.bury()
        self._give_to_others(rest)
        for delivery, verdict, run, lines, completing in running:
            workitem = delivery.workitem
            outcome = after_death(workitem, process.group, how, verdict, jitter=random.random(), known=process.formats)
            log.warning(
                "worker process %d of %s ended (%s) while it ran workitem %s (attempt %d): %s",
                process.pid, process.group.name, how, workitem.id, workitem.attempt, type(outcome).__name__,
            )  # fmt: skip
            self.loop.end(Ended(delivery, outcome, process.rules, run, lines, completing))
        self.adjust(at_once=True)
        self._pause_or_go_on()
        self.feed()

    def adjust(self, *, at_once: bool = False) -> None:
        """Hold as much as fits the worker processes and their measured run time, or did a moment ago.

        One handler that had to wait for a processor says nothing about the next ones.
        """
        usable = self.usable
        if not usable:
            return
        prefetch = sum({p.group.name: p.group.prefetch for p in usable}.values())
        finishing = sum(p.load for p in self.processes if not p.usable)
        wanted = reserve(sum(p.slots for p in usable), self.run_time, prefetch) + finishing
        self._most = max(self._most, wanted)
        now = self._clock.monotonic()
        if not at_once:
            if now - self._resized < RESIZE_EVERY:
                return
            wanted = self._most
        self._resized, self._most = now, 0
        if at_once or not self._reserve * 2 / 3 <= wanted <= self._reserve * 3 / 2:
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

    def rest(self) -> None:
        """Where nothing has moved for a while, give back what waits, and receive nothing until something does.

        So it is where all worker processes have long tasks, or threads of a program are held up with it.
        """
        usable = self.usable  # without one, PAUSE_AFTER counts
        if self._receiving is None or not usable or any(process.group.prefetch for process in usable):
            return
        if (self._waiting or self._suspects) and self._clock.monotonic() - self._moved >= REST_AFTER:
            self._resting = True
            self.stop_receiving()

    def _move(self) -> None:
        self._moved = self._clock.monotonic()
        if self._resting:
            self._resting = False
            self._pause_or_go_on()

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
        for waiting in (self._suspects, self._waiting):
            while waiting:
                self.loop.end(Ended(waiting.popleft(), Release()))

    async def drained(self) -> None:
        """Wait until everything that was taken is settled."""
        if self._pausing is not None:
            await self._pausing
        await self.loop.settled_all()

    async def report(self) -> None:
        """Tell a store what has been running for a while, and hear what somebody wants no more."""
        if not self.loop.held:
            return
        underway = [one for process in self.processes for one in process.underway(LONG)]
        unwanted = set(await self._consumer.report(underway))
        for waiting in (self._suspects, self._waiting):
            for delivery in unwanted.intersection(waiting):
                waiting.remove(delivery)
                self.loop.end(Ended(delivery, Cancelled()))
        for delivery in unwanted:
            for process in self.processes:
                process.cancel(delivery)

    def state(self) -> str:
        """One line for the log."""
        running = ", ".join(f"{p.pid} {p.state} load {p.load}" for p in self.processes)
        waiting = len(self._waiting) + len(self._suspects)
        mean = "unknown" if self.run_time is None else f"{self.run_time:.6f} s"
        return (
            f"type {self.type}: {'receiving' if self._receiving else 'paused'}, held {self.loop.held} of "
            f"{self._reserve}, waiting {waiting}, run time {mean}, settled {self.loop.settled}, "
            f"discarded {self.loop.discarded}, processes: {running or 'none'}"
        )


def _burden(process: WorkerProcess) -> tuple[float, float, float]:
    """Who has most of all comes last, and of those who have as much whoever had some last.

    But of idle ones the one that succeeded last comes first: what it needs is in the processor's caches.  One whose
    last workitem failed comes behind them: what is broken in it would draw all work to itself, for it fails at once.
    """
    return process.load / process.slots, 0.0 if process.load else -process.succeeded, process.last
