"""Lends workitems from one queue of RabbitMQ.

Results are published on the channel that the delivery came on, and the delivery is acknowledged on it after their
confirms.  So an attempt whose channel is gone can settle nothing: its result is discarded (promise 4).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from taskqueue.broker import Delivery, Ended, Underway
from taskqueue.brokers.amqp.connection import Channel
from taskqueue.brokers.amqp.link import Link, patiently
from taskqueue.brokers.amqp.message import from_wire
from taskqueue.brokers.amqp.settling import Session, Settling
from taskqueue.clock import Clock
from taskqueue.errors import BrokerError, BrokerUnavailable
from taskqueue.outcome import Dead, Outcome, Retry
from taskqueue.workitem import DEAD_LETTERS

__all__ = ["AMQPConsumer"]

log = logging.getLogger(__name__)

STALL_TIMEOUT = 30.0
"""Seconds without a delivery, with room for one and messages in the queue, after which a consumer is taken for deaf."""
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
        self._wanted = False  # by a receive that no pause came after
        self._ready: deque[Delivery] = deque()
        self._wake = asyncio.Event()
        self._subscribing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_delivery = clock.monotonic()
        self.closed = False

    async def receive(self, *, limit: int) -> list[Delivery]:
        while not self._ready:
            if self.closed:
                raise BrokerError(f"queue {self.queue}: the consumer is closed")
            self._wanted = True
            self._wake.clear()
            if self._session is None or not self._session.consumer_tag:
                await patiently(self._subscribe, f"queue {self.queue}")
            elif not self._ready:
                await self._waited_or_stalled()
        return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]

    async def _waited_or_stalled(self) -> None:
        try:
            async with asyncio.timeout(STALL_TIMEOUT):
                await self._wake.wait()
        except TimeoutError:
            await self._check_stall()

    async def _check_stall(self) -> None:
        """A consumer that gets nothing while its queue is not empty is deaf (promise 8).

        Its channel keeps what is lent, so that nothing runs twice for it.
        """
        session = self._session
        if session is None or session.unacknowledged >= session.prefetch:
            return
        try:
            ready = await self._link.ready(self.queue)
        except BrokerUnavailable as error:
            log.warning("queue %s: %s", self.queue, error)
            return
        if session is not self._session or self._clock.monotonic() - self._last_delivery < STALL_TIMEOUT:
            return
        if ready is None:
            self._end(session, "the queue is gone")
        elif ready:
            log.error("queue %s: nothing came for %g s, and %d wait", self.queue, STALL_TIMEOUT, ready)
            if session.unacknowledged:
                await self._uninterrupted(self._resubscribe(session))
            else:
                self._end(session, "subscribing anew")

    async def _subscribe(self) -> None:
        connection = await self._link.connect()
        # What its workitems end in, too: a queue that has just been made keeps the first ones waiting.
        for queue in (self.queue, self._link.options.results_queue, DEAD_LETTERS):
            await self._link.declare(queue)
        await self._uninterrupted(self._begin(lambda reason: Channel.open(connection, reason)))

    async def _uninterrupted(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` to its end, also when whoever waits for it is cancelled: half a subscription is a leak."""
        task = self._spawn(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():  # only close cancels it
                raise

    async def _begin(self, open_channel: Callable[[Callable[[str], None]], Coroutine[Any, Any, Channel]]) -> None:
        async with self._subscribing:
            if not self._wanted or self.closed:
                return
            session = self._session
            if session is None:
                session = Session()
                ended = session
                session.channel = await open_channel(lambda reason: self._end(ended, reason))
                if session.lease.lost or self.closed:
                    session.channel.close()
                    raise BrokerUnavailable("the channel was closed at once")
                session.channel.raw.add_on_cancel_callback(
                    lambda _: self._end(ended, "the broker cancelled the consumer: the queue is gone")
                )
                self._session = session
            if not session.consumer_tag:
                await self._consume(session)

    async def _consume(self, session: Session) -> None:
        channel = session.channel
        assert channel is not None
        prefetch = self._reserve
        await channel.call(lambda done: channel.raw.basic_qos(prefetch_count=prefetch, callback=done))
        session.prefetch = prefetch

        def deliver(_: Any, method: Any, properties: Any, body: bytes) -> None:
            self._delivered(session, method, properties, body)

        def consume(done: Callable[[Any], None]) -> None:
            def consumed(frame: Any) -> None:  # in the answer's own turn: deliveries may follow in the same read
                session.consumer_tag = frame.method.consumer_tag
                done(frame)

            channel.raw.basic_consume(self.queue, deliver, callback=consumed)

        try:
            await channel.call(consume)
        except BrokerUnavailable as error:
            if not session.lease.lost:  # it is the queue that does not answer
                self._link.forget(self.queue)
                self._end(session, str(error))
            raise
        self._last_delivery = self._clock.monotonic()
        self.resize(self._reserve)  # in case it was meanwhile

    def _delivered(self, session: Session, method: Any, properties: Any, body: bytes) -> None:
        if session.lease.lost:
            return
        session.arrived(method.delivery_tag)
        self._last_delivery = self._clock.monotonic()
        workitem = from_wire(properties, body, self.queue)
        delivery = Delivery(
            workitem=workitem,
            queue=self.queue,
            tag=method.delivery_tag,
            lease=session.lease,
            redelivered=method.redelivered,
        )
        if workitem.due is not None:
            wait = workitem.due - self._clock.wall()
            if wait > EARLY:
                self._spawn(self._decided(delivery, Retry(wait, counts="nothing")))
                return
            if workitem.expiration is not None and wait + workitem.expiration < 0:  # the broker does not know after
                self._spawn(self._decided(delivery, Dead("expired", f"in queue {self.queue}")))  # a delay queue
                return
        self._ready.append(delivery)
        self._wake.set()

    async def _decided(self, delivery: Delivery, outcome: Outcome) -> None:
        await self.settle([Ended(delivery, outcome)])

    def _end(self, session: Session, reason: str) -> None:
        """The session is over: its deliveries belong to somebody else now."""
        if session.lease.lost:
            return
        lost = session.unacknowledged
        session.end()
        if self._session is session:
            self._session = None
            self._ready.clear()
            if not self.closed:
                log.warning("queue %s: channel ended: %s; %d deliveries lost", self.queue, reason, lost)
        if session.channel is not None:
            session.channel.close()
        self._link.doubt()
        self._wake.set()

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        if self._session is None:
            return [False] * len(ended)
        return await Settling(self._link, self._session, ended, self._clock, self._spawn).run()

    async def report(self, underway: Sequence[Underway]) -> Sequence[Delivery]:
        """It is no store."""
        return ()

    def ticket(self, delivery: Delivery) -> None:
        return None

    def resize(self, reserve: int) -> None:
        self._reserve = reserve
        session = self._session
        if session is not None and session.consumer_tag and session.prefetch != reserve:
            self._spawn(self._resized(session))

    async def _resized(self, session: Session) -> None:
        if session.prefetch != self._reserve:
            await self._resubscribe(session)

    async def _resubscribe(self, session: Session) -> None:
        """Cancel and consume anew on the same channel: what is lent stays lent."""
        async with self._subscribing:
            if session is self._session and session.consumer_tag:
                try:
                    await self._cancel(session)
                    await self._consume(session)
                except BrokerUnavailable as error:
                    self._end(session, str(error))

    async def _cancel(self, session: Session) -> None:
        channel, tag = session.channel, session.consumer_tag
        assert channel is not None
        session.consumer_tag = ""
        if tag in channel.raw.consumer_tags:  # pika does not answer for others
            await channel.call(lambda done: channel.raw.basic_cancel(tag, callback=done))

    async def pause(self) -> None:
        self._wanted = False
        await self._uninterrupted(self._paused())

    async def _paused(self) -> None:
        async with self._subscribing:
            session = self._session
            if session is None or self._wanted:
                return
            try:
                if session.consumer_tag:
                    await self._cancel(session)
            except BrokerUnavailable as error:
                self._end(session, str(error))
                return
            while self._ready:
                delivery = self._ready.popleft()
                session.claim(delivery)
                session.give_back(delivery)
            self._wake.set()  # a receive that waits subscribes anew

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._session is not None:
            self._end(self._session, "closed")
        for task in list(self._tasks):
            task.cancel()
        self._wake.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, BrokerError):
            log.error("queue %s: %r", self.queue, error, exc_info=error)
