"""Ends deliveries on AMQP: what an outcome implies is published, confirmed, and acknowledged then."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from taskqueue.broker import Delivery, Ended, Lease
from taskqueue.brokers.amqp.connection import Channel, Verdict
from taskqueue.brokers.amqp.link import RETRY_BASE, RETRY_MAXIMUM, Link
from taskqueue.brokers.amqp.message import to_wire
from taskqueue.brokers.amqp.topology import delay_exchange, delay_level
from taskqueue.clock import Clock
from taskqueue.errors import BrokerUnavailable
from taskqueue.outcome import Send, effects
from taskqueue.retry import backoff

__all__ = ["Session", "Settling"]

log = logging.getLogger(__name__)


class Session:
    """One life of the channel of a consumer; its lease holds the deliveries that came on it."""

    def __init__(self) -> None:
        self.lease = Lease()
        self.channel: Channel | None = None
        self.consumer_tag = ""
        self.lent = 0  # deliveries that are neither acknowledged nor given back

    def acknowledge(self, delivery: Delivery) -> bool:
        """basic.ack; False where the channel is gone, and the delivery with it."""
        if self.lease.lost or self.channel is None or not self.channel.raw.is_open:
            return False
        self.lent -= 1
        self.channel.raw.basic_ack(delivery.tag)
        return True

    def give_back(self, delivery: Delivery) -> bool:
        """basic.nack with requeue; False where the channel is gone, which gives it back as well."""
        if self.lease.lost or self.channel is None or not self.channel.raw.is_open:
            return False
        self.lent -= 1
        self.channel.raw.basic_nack(delivery.tag, requeue=True)
        return True


class Settling:
    """One call of `settle`: counts confirms, acknowledges each delivery after its last one."""

    def __init__(
        self,
        link: Link,
        session: Session | None,
        ended: Sequence[Ended],
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._link = link
        self._session = session
        self._ended = ended
        self._clock = clock
        self._spawn = spawn
        self._counted: list[bool | None] = [None] * len(ended)
        self._open = len(ended)
        self._all = asyncio.get_running_loop().create_future()

    async def run(self) -> list[bool]:
        work: list[tuple[int, Delivery, Sequence[Send]]] = []
        now = self._clock.wall()
        for index, item in enumerate(self._ended):
            delivery = item.delivery
            session = self._session
            if session is None or delivery.lease is not session.lease or session.lease.lost:
                self._decide(index, False)
                continue
            todo = effects(delivery.workitem, item.outcome, item.rules, queue=delivery.queue, now=now)
            if not todo.ends:
                session.give_back(delivery)
                self._decide(index, True)
            else:
                work.append((index, delivery, todo.sends))
        for queue in {self._target(send, now)[0] for _, _, sends in work for send in sends}:
            await self._declare(queue)
        for index, delivery, sends in work:
            self._publish(index, delivery, sends)
        if self._open:
            await self._all
        return [counted is True for counted in self._counted]

    async def _declare(self, queue: str) -> None:
        if not self._link.known(queue) and self._link.declaration(queue) is not None:
            try:
                await self._link.declare(queue)
            except BrokerUnavailable as error:
                log.debug("queue %s: %s", queue, error)  # the publish says what became of it

    def _target(self, send: Send, now: float) -> tuple[str, str]:
        """The queue that must exist, and the exchange to publish to, with the workitem's queue as routing key."""
        due = send.workitem.due
        if due is None or due <= now:
            return send.queue, ""
        exchange = delay_exchange(delay_level(due - now))
        return exchange, exchange

    def _publish(self, index: int, delivery: Delivery, sends: Sequence[Send]) -> None:
        waiting = len(sends)

        def stored() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                self._acknowledge(index, delivery)

        if not sends:
            self._acknowledge(index, delivery)
        for send in sends:
            self._send(index, send, stored, 0)

    def _send(self, index: int, send: Send, stored: Any, failures: int) -> None:
        session = self._session
        if session is None or session.channel is None or session.lease.lost:
            self._decide(index, False)
            return

        def heard(verdict: Verdict) -> None:
            if verdict == "stored" or (verdict == "unroutable" and not send.required):
                stored()
            elif verdict == "lost":
                self._decide(index, False)
            else:
                self._try_again(index, send, stored, failures, verdict)

        workitem = send.workitem
        _, exchange = self._target(send, self._clock.wall())
        session.channel.publish(send.queue, workitem.body, to_wire(workitem), heard, exchange=exchange)

    def _try_again(self, index: int, send: Send, stored: Any, failures: int, verdict: Verdict) -> None:
        """The result is kept and sent again; the task is not run again for it."""
        target, _ = self._target(send, self._clock.wall())
        self._link.forget(target)
        if failures in (0, 5) or failures % 20 == 0:
            why = "it does not exist" if verdict == "unroutable" else "the broker refused it"
            log.warning("cannot send to queue %s: %s; trying on", send.queue, why)
        delay = backoff(failures, base=RETRY_BASE, maximum=RETRY_MAXIMUM, jitter=random.random())

        async def again() -> None:
            try:
                await asyncio.sleep(delay)
                await self._declare(target)
            except asyncio.CancelledError:
                self._decide(index, False)
                raise
            self._send(index, send, stored, failures + 1)

        self._spawn(again())

    def _acknowledge(self, index: int, delivery: Delivery) -> None:
        assert self._session is not None
        self._decide(index, self._session.acknowledge(delivery))

    def _decide(self, index: int, counted: bool) -> None:
        if self._counted[index] is None:
            self._counted[index] = counted
            self._open -= 1
            if not self._open and not self._all.done():
                self._all.set_result(None)
