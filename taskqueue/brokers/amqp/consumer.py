"""Lends workitems from one queue of RabbitMQ.

Results are published on the channel that the delivery came on, and the delivery is acknowledged on it after their
confirms.  So an attempt whose channel is gone can settle nothing: its result is discarded (promise 4).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from taskqueue.broker import Delivery, Ended
from taskqueue.brokers.amqp.connection import Channel
from taskqueue.brokers.amqp.link import Link, patiently
from taskqueue.brokers.amqp.message import from_wire
from taskqueue.brokers.amqp.settling import Session, Settling
from taskqueue.clock import Clock
from taskqueue.errors import BrokerUnavailable
from taskqueue.outcome import Retry

__all__ = ["AMQPConsumer"]

log = logging.getLogger(__name__)

STALL_TIMEOUT = 30.0
"""Seconds without a delivery, nothing lent and messages in the queue, after which the connection is made anew."""
EARLY = 0.02
"""Seconds by which a delayed workitem may be taken up too early rather than be sent round again."""


class AMQPConsumer:
    """The consumer contract over one channel.  Rebuilds everything after any fault."""

    def __init__(self, link: Link, queue: str, reserve: int, clock: Clock) -> None:
        self.queue = queue
        self._link = link
        self._clock = clock
        self._reserve = reserve
        self._session: Session | None = None
        self._ready: deque[Delivery] = deque()
        self._wake = asyncio.Event()
        self._subscribing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_delivery = clock.monotonic()
        self.closed = False

    async def receive(self, *, limit: int) -> list[Delivery]:
        while not self._ready:
            self._wake.clear()
            if self._session is None or not self._session.consumer_tag:
                await patiently(self._subscribe, f"queue {self.queue}")
            if not self._ready:
                await self._waited_or_stalled()
        return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]

    async def _waited_or_stalled(self) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), STALL_TIMEOUT)
        except TimeoutError:
            await self._check_stall()

    async def _check_stall(self) -> None:
        """A consumer that gets nothing while its queue is not empty is deaf (promise 8)."""
        session = self._session
        if session is None or session.lent or self._clock.monotonic() - self._last_delivery < STALL_TIMEOUT:
            return
        try:
            ready = await self._link.ready(self.queue)
        except BrokerUnavailable:
            return
        if ready is None:
            self._end(session, "the queue is gone")
        elif ready and not self._wake.is_set():
            self._link.reset(f"nothing came from queue {self.queue} for {STALL_TIMEOUT:.0f} s, where {ready} wait")

    async def _subscribe(self) -> None:
        async with self._subscribing:
            session = self._session
            if session is None:
                connection = await self._link.connection()
                await self._link.declare(self.queue)
                session = Session()
                session.channel = await Channel.open(connection, lambda reason: self._end(session, reason))
                session.channel.raw.add_on_cancel_callback(
                    lambda _: self._end(session, "the broker cancelled the consumer: the queue is gone")
                )
                self._session = session
            if not session.consumer_tag:
                await self._consume(session)

    async def _consume(self, session: Session) -> None:
        channel = session.channel
        assert channel is not None
        await channel.call(lambda done: channel.raw.basic_qos(prefetch_count=self._reserve, callback=done))

        def deliver(_: Any, method: Any, properties: Any, body: bytes) -> None:
            self._delivered(session, method, properties, body)

        def consume(done: Callable[[Any], None]) -> None:
            def consumed(frame: Any) -> None:  # in the answer's own turn: deliveries may follow in the same read
                session.consumer_tag = frame.method.consumer_tag
                done(frame)

            channel.raw.basic_consume(self.queue, deliver, callback=consumed)

        await channel.call(consume)
        self._last_delivery = self._clock.monotonic()

    def _delivered(self, session: Session, method: Any, properties: Any, body: bytes) -> None:
        if session.lease.lost:
            return
        session.lent += 1
        self._last_delivery = self._clock.monotonic()
        workitem = from_wire(properties, body, self.queue)
        delivery = Delivery(
            workitem=workitem,
            queue=self.queue,
            tag=method.delivery_tag,
            lease=session.lease,
            redelivered=method.redelivered,
        )
        if workitem.due is not None and (wait := workitem.due - self._clock.wall()) > EARLY:
            self._spawn(self.settle([Ended(delivery, Retry(wait, counts="nothing"))]))
            return
        self._ready.append(delivery)
        self._wake.set()

    def _end(self, session: Session, reason: str) -> None:
        """The session is over: its deliveries belong to somebody else now."""
        if session.lease.lost:
            return
        session.lease.lost = True
        if self._session is session:
            self._session = None
            self._ready.clear()
            if not self.closed:
                log.warning("queue %s: channel ended: %s; %d deliveries lost", self.queue, reason, session.lent)
        if session.channel is not None:
            session.channel.close()
        self._link.forget(self.queue)
        self._wake.set()

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        return await Settling(self._link, self._session, ended, self._clock, self._spawn).run()

    def resize(self, reserve: int) -> None:
        if reserve != self._reserve:
            self._reserve = reserve
            if self._session is not None and self._session.consumer_tag:
                self._spawn(self._resubscribe())

    async def _resubscribe(self) -> None:
        async with self._subscribing:
            session = self._session
            if session is not None and session.consumer_tag:
                try:
                    await self._cancel(session)
                    await self._consume(session)
                except BrokerUnavailable:
                    self._wake.set()  # receive builds it anew

    async def _cancel(self, session: Session) -> None:
        channel, tag = session.channel, session.consumer_tag
        assert channel is not None
        session.consumer_tag = ""
        await channel.call(lambda done: channel.raw.basic_cancel(tag, callback=done))

    async def pause(self) -> None:
        async with self._subscribing:
            session = self._session
            if session is not None and session.consumer_tag:
                try:
                    await self._cancel(session)
                except BrokerUnavailable:
                    return
                while self._ready:
                    session.give_back(self._ready.popleft())
                self._wake.set()  # a receive that began meanwhile subscribes anew

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        for task in list(self._tasks):
            task.cancel()
        if self._session is not None:
            self._end(self._session, "closed")

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
