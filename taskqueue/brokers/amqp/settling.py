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
    """One life of the channel of a consumer; its lease holds the deliveries that came on it.

    lent: the tags of deliveries that nobody has begun to settle.
    unacknowledged: how many deliveries the broker counts as lent.
    settlings: the calls of `settle` that are under way.
    """

    def __init__(self) -> None:
        self.lease = Lease()
        self.channel: Channel | None = None
        self.consumer_tag = ""
        self.prefetch = 0
        self.lent: set[int] = set()
        self.unacknowledged = 0
        self.settlings: set[Settling] = set()

    def arrived(self, tag: int) -> None:
        """One more delivery is lent."""
        self.lent.add(tag)
        self.unacknowledged += 1

    def claim(self, delivery: Delivery) -> bool:
        """Begin to settle; False where the delivery is lost, or somebody has begun already."""
        if self.lease.lost or delivery.lease is not self.lease or delivery.tag not in self.lent:
            return False
        self.lent.discard(delivery.tag)
        return True

    def acknowledge(self, delivery: Delivery) -> bool:
        """basic.ack; False where the channel is gone, and the delivery with it."""
        if self.lease.lost or self.channel is None or not self.channel.raw.is_open:
            return False
        self.unacknowledged -= 1
        self.channel.raw.basic_ack(delivery.tag)
        return True

    def give_back(self, delivery: Delivery) -> bool:
        """basic.nack with requeue; False where the channel is gone, which gives it back as well."""
        if self.lease.lost or self.channel is None or not self.channel.raw.is_open:
            return False
        self.unacknowledged -= 1
        self.channel.raw.basic_nack(delivery.tag, requeue=True)
        return True

    def end(self) -> None:
        """All deliveries belong to somebody else now, and what is being settled is not counted."""
        self.lease.lost = True
        self.lent.clear()
        for settling in list(self.settlings):
            settling.give_up()


class Settling:
    """One call of `settle`: counts confirms, acknowledges each delivery after its last one."""

    def __init__(
        self,
        link: Link,
        session: Session,
        ended: Sequence[Ended],
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
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
        self._session.settlings.add(self)
        try:
            await self._run()
        finally:
            self._session.settlings.discard(self)
        return [counted is True for counted in self._counted]

    async def _run(self) -> None:
        work: list[tuple[int, Delivery, list[_Target]]] = []
        now = self._clock.wall()
        for index, item in enumerate(self._ended):
            delivery = item.delivery
            if not self._session.claim(delivery):
                self._decide(index, False)
                continue
            todo = effects(delivery.workitem, item.outcome, item.rules, queue=delivery.queue, now=now)
            if todo.ends:
                work.append((index, delivery, [_Target(send, now) for send in todo.sends]))
            else:
                self._decide(index, self._session.give_back(delivery))
        for queue in {target.queue for _, _, targets in work for target in targets}:
            await self._declare(queue)
        for index, delivery, targets in work:
            self._publish(index, delivery, targets)
        if self._open:
            await self._all

    def give_up(self) -> None:
        """The deliveries are lost: whatever is not decided yet does not count."""
        for index in range(len(self._ended)):
            self._decide(index, False)

    async def _declare(self, queue: str) -> None:
        if not self._link.known(queue) and self._link.declaration(queue) is not None:
            try:
                await self._link.declare(queue)
            except BrokerUnavailable as error:
                log.debug("queue %s: %s", queue, error)  # the publish says what became of it

    def _publish(self, index: int, delivery: Delivery, targets: Sequence[_Target]) -> None:
        waiting = len(targets)

        def stored() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                self._acknowledge_when_ripe(index, delivery, targets)

        if not targets:
            self._acknowledge(index, delivery)
        for target in targets:
            self._send(index, target, stored, 0)

    def _send(self, index: int, target: _Target, stored: Callable[[], None], failures: int) -> None:
        if self._counted[index] is not None or self._session.channel is None:
            return

        def heard(verdict: Verdict) -> None:
            if verdict == "stored" or (verdict == "unroutable" and not target.send.required):
                stored()
            elif verdict == "lost":
                self._decide(index, False)
            else:
                self._try_again(index, target, stored, failures, verdict)

        workitem = target.send.workitem
        properties = to_wire(workitem, delayed=bool(target.exchange))
        self._session.channel.publish(target.send.queue, workitem.body, properties, heard, exchange=target.exchange)

    def _try_again(
        self, index: int, target: _Target, stored: Callable[[], None], failures: int, verdict: Verdict
    ) -> None:
        """The result is kept and sent again; the task is not run again for it."""
        self._link.forget(target.queue)
        if failures in (0, 5) or failures % 20 == 0:
            why = "it does not exist" if verdict == "unroutable" else "the broker refused it"
            log.warning("cannot send to queue %s: %s; trying on", target.queue, why)
        delay = backoff(failures, base=RETRY_BASE, maximum=RETRY_MAXIMUM, jitter=random.random())

        async def again() -> None:
            await asyncio.sleep(delay)
            await self._declare(target.queue)
            self._send(index, target, stored, failures + 1)

        self._spawn(again())

    def _acknowledge_when_ripe(self, index: int, delivery: Delivery, targets: Sequence[_Target]) -> None:
        names = {name for target in targets for name in (target.queue, target.send.queue)}
        wait = max(map(self._link.ripens_in, names))
        if wait:
            asyncio.get_running_loop().call_later(wait, self._acknowledge, index, delivery)
        else:
            self._acknowledge(index, delivery)

    def _acknowledge(self, index: int, delivery: Delivery) -> None:
        if self._counted[index] is None:
            self._decide(index, self._session.acknowledge(delivery))

    def _decide(self, index: int, counted: bool) -> None:
        if self._counted[index] is None:
            self._counted[index] = counted
            self._open -= 1
            if not self._open and not self._all.done():
                self._all.set_result(None)


class _Target:
    """A send, the queue that must exist for it, and the exchange to publish to, with the send's queue as routing key.

    Decided once: a moment later, the same delay may be of another level, whose queue does not exist yet.
    """

    __slots__ = ("exchange", "queue", "send")

    def __init__(self, send: Send, now: float) -> None:
        due = send.workitem.due
        self.send = send
        self.exchange = delay_exchange(delay_level(due - now)) if due is not None and due > now else ""
        self.queue = self.exchange or send.queue
