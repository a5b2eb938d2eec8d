"""Ends deliveries on AMQP: what an outcome implies is published, confirmed, and acknowledged then."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
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
                work.append((index, delivery, [self._target(send, now) for send in todo.sends]))
            else:
                self._decide(index, self._session.give_back(delivery))
        for index, delivery, targets in work:
            self._publish(index, delivery, targets)
        if self._open:
            await self._all

    def give_up(self) -> None:
        """The deliveries are lost: whatever is not decided yet does not count."""
        for index in range(len(self._ended)):
            self._decide(index, False)

    def _target(self, send: Send, now: float) -> _Target:
        due = send.workitem.due
        delay = delay_exchange(delay_level(due - now)) if due is not None and due > now else ""
        declaration = self._link.declaration(delay or send.queue)
        return _Target(send, delay or send.queue, declaration.exchange if declaration else "", bool(delay))

    def _publish(self, index: int, delivery: Delivery, targets: Sequence[_Target]) -> None:
        waiting = len(targets)

        def stored() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                self._acknowledge(index, delivery)

        if not targets:
            self._acknowledge(index, delivery)
        for target in targets:
            if target.exchange and (target.delayed or not self._link.routed(target.queue)):
                self._spawn(self._route(index, target, stored, 0))
            else:
                self._send(index, target, stored, 0)

    async def _route(self, index: int, target: _Target, stored: Callable[[], None], failures: int) -> None:
        if self._counted[index] is not None:
            return
        try:
            if target.exchange:
                await self._link.route(target.queue)
            if target.delayed and self._link.declaration(target.send.queue) is not None:
                await self._link.route(target.send.queue, unseen=True)
        except BrokerUnavailable as error:
            self._try_again(index, target, stored, failures, str(error))
        else:
            self._send(index, target, stored, failures)

    def _send(self, index: int, target: _Target, stored: Callable[[], None], failures: int) -> None:
        if self._counted[index] is not None or self._session.channel is None:
            return

        def heard(verdict: Verdict) -> None:
            if verdict == "stored" or (verdict == "unroutable" and not target.send.required and not target.exchange):
                stored()
            elif verdict == "lost":
                self._decide(index, False)
            else:
                self._link.forget(target.queue)
                why = "it does not exist" if verdict == "unroutable" else "the broker refused it"
                self._try_again(index, target, stored, failures, why)

        workitem = target.send.workitem
        properties = to_wire(workitem, delayed=target.delayed)
        self._session.channel.publish(target.send.queue, workitem.body, properties, heard, exchange=target.exchange)

    def _try_again(self, index: int, target: _Target, stored: Callable[[], None], failures: int, why: str) -> None:
        """The result is kept and sent again; the task is not run again for it."""
        if failures in (1, 5) or (failures and failures % 20 == 0):  # a queue may be too new at first
            log.warning("cannot send to queue %s: %s; trying on", target.queue, why)
        delay = backoff(failures, base=RETRY_BASE, maximum=RETRY_MAXIMUM, jitter=random.random())

        async def again() -> None:
            await asyncio.sleep(delay)
            await self._route(index, target, stored, failures + 1)

        self._spawn(again())

    def _acknowledge(self, index: int, delivery: Delivery) -> None:
        if self._counted[index] is None:
            self._decide(index, self._session.acknowledge(delivery))

    def _decide(self, index: int, counted: bool) -> None:
        if self._counted[index] is None:
            self._counted[index] = counted
            self._open -= 1
            if not self._open and not self._all.done():
                self._all.set_result(None)


@dataclass(frozen=True, slots=True)
class _Target:
    """A send, the queue that gets it first, and the exchange to publish to, with the send's queue as routing key.

    Decided once: a moment later, the same delay may be of another level, whose queue does not exist yet.
    """

    send: Send
    queue: str
    exchange: str
    delayed: bool
