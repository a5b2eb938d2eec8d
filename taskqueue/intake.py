"""What a dispatcher does over one broker: the loop over what comes in, and over what the broker gave up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from taskqueue import formats
from taskqueue.broker import Broker, Consumer, Delivery, Ended
from taskqueue.errors import FormatError
from taskqueue.formats import Formats
from taskqueue.formats.chartext import line
from taskqueue.loop import Loop
from taskqueue.outcome import Dead, Forward, Outcome
from taskqueue.workitem import DROPPED, INCOMING, Workitem, is_type, worker_queue

__all__ = ["Intake", "given_up", "parsed"]

log = logging.getLogger(__name__)

RESERVE = 300
STOP_TIMEOUT = 10.0  # seconds


class Intake:
    """Moves messages of one broker, which is closed in the end.

    parsed: where a message goes, by its content.
    max_types: how many types queues are made for.
    """

    def __init__(self, broker: Broker, parsed: Callable[[Workitem], Outcome], max_types: Callable[[], int]) -> None:
        self._broker = broker
        self._max_types = max_types
        self._types: set[str] = set()  # whose queues it has seen to exist
        self._loops = [
            self._loop(INCOMING, lambda delivery: parsed(delivery.workitem)),
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
            async with asyncio.timeout(STOP_TIMEOUT):
                await self._settle_all()
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
                loop.end(Ended(delivery, outcome))

        loop = Loop(consumer, handle, reserve=RESERVE)
        return loop, consumer

    async def _first_seen(self, forward: Forward) -> Outcome:
        """Make the queue of a type, so that nothing is lost before its first worker is installed."""
        type, most = forward.workitem.type, self._max_types()
        if len(self._types) < most:
            await self._broker.declare(worker_queue(type))
        elif not await self._broker.exists(worker_queue(type)):
            return Dead("too many types", f"max_types ({most}) allows no queue for one more type")
        self._types.add(type)
        return forward


def parsed(workitem: Workitem, *, max_body: int, known: Formats) -> Outcome:
    """Where a message goes, by its content."""
    try:
        return Forward(formats.parse(workitem, max_body=max_body, formats=known))
    except FormatError as error:
        # The id is a producer's: it must not write lines of its own into the log.
        log.warning("workitem %s is malformed: %s", line(workitem.id) or "without an id", error.detail)
        return Dead("malformed", error.detail)


def given_up(workitem: Workitem) -> Outcome:
    """What becomes of a workitem that the broker gave up by itself, by its header x-death.

    One that was handed out too often for the broker goes back to its workers: crashes are counted by ourselves.
    """
    deaths = workitem.headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping) else {}
    queue, reason = str(first.get("queue", "")), str(first.get("reason", ""))
    type = queue.removeprefix("worker_")
    workitem = workitem._replace(type=type if queue != type else workitem.type)
    if reason == "delivery_limit" and queue != type and is_type(type):
        return Forward(workitem)
    return Dead("expired" if reason == "expired" else "delivery limit", f"in queue {queue}")
