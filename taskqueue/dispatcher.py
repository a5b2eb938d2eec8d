"""The dispatcher: reads the queue `taskqueue`, finds out each workitem's type, and passes it on to `worker_<type>`.

Any number may run, on any hosts.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace

from taskqueue import formats
from taskqueue.broker import Broker, Consumer, Delivery, Options
from taskqueue.config import Config
from taskqueue.errors import FormatError
from taskqueue.formats import Formats
from taskqueue.formats.chartext import line
from taskqueue.loop import Loop
from taskqueue.outcome import Dead, Forward, Outcome
from taskqueue.title import set_title
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
    """One dispatcher over `broker`, which it closes in the end.  Call `run` once."""

    def __init__(self, config: Config, broker: Broker, known: Formats) -> None:
        self._config = config
        self._broker = broker
        self._formats = known
        self._types: set[str] = set()  # whose queues it has seen to exist

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT; then settle what was taken.  Raises what went wrong inside."""
        event_loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            event_loop.add_signal_handler(number, stopped.set)
        loops = [
            self._loop(INCOMING, lambda delivery: self._parsed(delivery.workitem)),
            self._loop(DROPPED, lambda delivery: given_up(delivery.workitem)),
        ]
        event_loop.add_signal_handler(signal.SIGUSR1, self._log_state, loops)
        event_loop.add_signal_handler(signal.SIGHUP, log.info, "SIGHUP: a dispatcher reads its file only at its start")
        showing = asyncio.create_task(self._show(loops))
        running = [asyncio.create_task(loop.run()) for loop, _ in loops]
        stop = asyncio.create_task(stopped.wait())
        await asyncio.wait([stop, *running], return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping")
        showing.cancel()
        for task in running:
            if task.done():
                task.result()
            task.cancel()
        try:
            await asyncio.wait_for(self._settle_all(loops), STOP_TIMEOUT)
        except TimeoutError:
            log.warning("not everything could be settled in %g s; it will be done again", STOP_TIMEOUT)
        await self._broker.close()

    async def _show(self, loops: list[tuple[Loop, Consumer]]) -> None:
        """Keep the title up to date."""
        while True:
            set_title(f"dispatcher, {sum(loop.settled for loop, _ in loops)} messages passed on")
            await asyncio.sleep(SHOW_EVERY)

    async def _settle_all(self, loops: list[tuple[Loop, Consumer]]) -> None:
        for loop, consumer in loops:
            await consumer.pause()
            await loop.settled_all()

    def _log_state(self, loops: list[tuple[Loop, Consumer]]) -> None:
        for one, _ in loops:
            log.info("held %d, settled %d, discarded %d", one.held, one.settled, one.discarded)

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

    def _parsed(self, workitem: Workitem) -> Outcome:
        try:
            return Forward(formats.parse(workitem, max_body=self._config.max_body, formats=self._formats))
        except FormatError as error:
            # The id is a producer's: it must not write lines of its own into the log.
            log.warning("workitem %s is malformed: %s", line(workitem.id) or "without an id", error.detail)
            return Dead("malformed", error.detail)

    async def _first_seen(self, forward: Forward) -> Outcome:
        """Make the queue of a type, so that nothing is lost before its first worker is installed."""
        type, most = forward.workitem.type, self._config.max_types
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
