"""The dead letters of RabbitMQ: looking is to consume them all, and to give them back by closing the channel.

What one consumer had goes back in its order, to the head of the queue, when its channel ends, be it by SIGKILL; that
holds for quorum and classic queues.  basic.get and basic.nack reorder a quorum queue, and so do two who look at the
same time.  So only one does: whoever could declare the exclusive queue `taskqueue.dead.looking`, once the consumer
before it is gone, which the broker says when it has taken back what that one had.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

from taskqueue.broker import Delivery, Ended, Options
from taskqueue.brokers.amqp.connection import ANSWER_TIMEOUT, Channel, Connection
from taskqueue.brokers.amqp.link import Link
from taskqueue.brokers.amqp.message import from_wire
from taskqueue.brokers.amqp.settling import Session, Settling
from taskqueue.clock import Clock
from taskqueue.errors import BrokerError, BrokerUnavailable
from taskqueue.workitem import DEAD_LETTERS

__all__ = ["AMQPDeadLetters"]

log = logging.getLogger(__name__)

LOOKING = f"{DEAD_LETTERS}.looking"
"""The queue that is there while somebody looks, and belongs to that connection."""
AT_ONCE = 65_535
"""Letters that can be seen at a time: the largest prefetch.  (None at all means 2,000 on a quorum queue.)"""
SILENCE = 5.0
"""Seconds without a letter after which it is asked whether there are any left.  The first of many take a second."""
TURN_TIMEOUT = 60.0
"""Seconds to wait for others who look."""
TURN_EVERY = 0.5
"""Seconds between asking whether they are done."""
RESOURCE_LOCKED = 405


class _Look(Session):
    """A session that gives letters back by its end alone: basic.nack would put them behind the others."""

    def give_back(self, delivery: Delivery) -> bool:
        return not self.lease.lost


class AMQPDeadLetters:
    """Holds what it has shown until the next look.  On a connection of its own: LOOKING belongs to a connection."""

    def __init__(self, options: Options, clock: Clock) -> None:
        self._link = Link(options)
        self._clock = clock
        self._session: Session | None = None
        self._ready: deque[Delivery] = deque()
        self._coming = 0  # letters of this look that are still to come
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def look(self) -> AsyncIterator[Delivery]:
        if self._session is not None:
            self._let_go(self._session)
            await asyncio.sleep(2 * TURN_EVERY)  # so that others who wait have their turn
        connection = await self._link.connect()
        if await self._link.ready(DEAD_LETTERS) is None:
            return
        session = await self._begin(connection)
        try:
            while self._ready or self._coming:
                if not self._ready:
                    await self._waited(session)
                while self._ready:
                    yield self._ready.popleft()
        finally:
            self._coming = 0  # whoever looks no further keeps nothing in memory
            self._ready.clear()

    async def _begin(self, connection: Connection) -> Session:
        """Wait for our turn, and consume."""
        deadline = self._clock.monotonic() + TURN_TIMEOUT
        while (turn := await self._turn(connection)) is None:
            if self._clock.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"another program has had the dead letters for {TURN_TIMEOUT:g} s: one that looks at them, too,"
                    f" or a consumer of the queue {DEAD_LETTERS}; try again when it has ended"
                )
            log.warning("another program looks at the dead letters; waiting")
            await asyncio.sleep(TURN_EVERY)
        session, channel, letters = turn
        self._session = session
        self._coming = min(letters, AT_ONCE)
        await channel.call(lambda done: channel.raw.basic_qos(prefetch_count=AT_ONCE, callback=done))

        def deliver(_: Any, method: Any, properties: Any, body: bytes) -> None:
            self._delivered(session, method, properties, body)

        await channel.call(lambda done: channel.raw.basic_consume(DEAD_LETTERS, deliver, callback=done))
        return session

    async def _turn(self, connection: Connection) -> tuple[Session, Channel, int] | None:
        """A session with its channel, and how many letters there are; None where it is not our turn."""
        session = _Look()
        session.channel = channel = await Channel.open(connection, lambda _: self._end(session))
        try:
            await channel.call(lambda done: channel.raw.queue_declare(LOOKING, exclusive=True, callback=done))
            frame = await channel.call(
                lambda done: channel.raw.queue_declare(DEAD_LETTERS, passive=True, callback=done)
            )
        except BrokerUnavailable:
            if channel.code == RESOURCE_LOCKED:
                return None
            raise
        if not frame.method.consumer_count:
            return session, channel, int(frame.method.message_count)
        channel.close()
        return None

    def _delivered(self, session: Session, method: Any, properties: Any, body: bytes) -> None:
        if session.lease.lost:
            return
        session.arrived(method.delivery_tag)
        if not self._coming:  # it came later, or nobody looks any more: it goes back with the others
            return
        self._coming -= 1
        letter = from_wire(properties, body, DEAD_LETTERS)
        self._ready.append(Delivery(workitem=letter, queue=DEAD_LETTERS, tag=method.delivery_tag, lease=session.lease))
        self._wake.set()

    async def _waited(self, session: Session) -> None:
        """Wait for more letters; some may have reached the end of their retention since they were counted."""
        channel, coming = session.channel, self._coming
        assert channel is not None
        self._wake.clear()
        for _ in range(int(ANSWER_TIMEOUT / SILENCE)):
            try:
                async with asyncio.timeout(SILENCE):
                    await self._wake.wait()
            except TimeoutError:
                # What was lent is not counted either.  But on the same channel the answer comes behind it, if not the
                # first, which the broker may send before what it was just about to deliver, then the second.
                ready = [await self._ready_on(channel) for _ in range(2)]
                if self._coming == coming and not any(ready) and session.lent:
                    self._coming = 0
            if session.lease.lost:
                raise BrokerUnavailable(channel.closed)
            if self._coming != coming:
                return
        raise BrokerUnavailable(f"queue {DEAD_LETTERS}: {coming} letters are there, and do not come")

    async def _ready_on(self, channel: Channel) -> int:
        frame = await channel.call(lambda done: channel.raw.queue_declare(DEAD_LETTERS, passive=True, callback=done))
        return int(frame.method.message_count)

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        if self._session is None:
            return [False] * len(ended)
        return await Settling(self._link, self._session, ended, self._clock, self._spawn).run()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, BrokerError):
            log.error("dead letters: %r", error, exc_info=error)

    def _end(self, session: Session) -> None:
        session.end()
        self._wake.set()

    def _let_go(self, session: Session) -> None:
        """Give everything back, and let others look."""
        self._session = None
        session.end()
        channel = session.channel
        if channel is not None and channel.raw.is_open:
            channel.raw.queue_delete(LOOKING)
            channel.close()

    async def close(self) -> None:
        if self._session is not None:
            self._let_go(self._session)
        for task in list(self._tasks):
            task.cancel()
        await self._link.close()
