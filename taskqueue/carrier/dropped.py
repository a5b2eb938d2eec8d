"""What a broker gives up by itself becomes dead letters: by a dispatcher, or where none runs by a carrier."""

from __future__ import annotations

import asyncio

from taskqueue.broker import Broker, Delivery, Ended
from taskqueue.intake import given_up
from taskqueue.loop import Loop
from taskqueue.workitem import DROPPED

__all__ = ["Dropped"]

RESERVE = 100


class Dropped:
    """Begins at once; for brokers that may be used without a dispatcher."""

    def __init__(self, broker: Broker) -> None:
        self._consumer = broker.consumer(DROPPED, reserve=RESERVE)
        self._loop = Loop(self._consumer, self._handle, reserve=RESERVE)
        self._running = asyncio.get_running_loop().create_task(self._loop.run())
        self._running.add_done_callback(lambda task: task.cancelled() or task.result())  # not in silence

    async def _handle(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._loop.end(Ended(delivery, given_up(delivery.workitem)))

    async def close(self) -> None:
        """Take nothing more, and settle what was taken."""
        self._running.cancel()
        await asyncio.wait([self._running])
        await self._consumer.pause()
        await self._loop.settled_all()
        await self._consumer.close()
