"""The one connection of a broker object, kept for ever, and the queues that are known to exist on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from taskqueue.broker import Options
from taskqueue.brokers.amqp.connection import Channel, Connection, describe, open_connection, parameters
from taskqueue.brokers.amqp.topology import Declaration, declaration
from taskqueue.clock import SYSTEM
from taskqueue.errors import BrokerError, BrokerUnavailable
from taskqueue.retry import backoff
from taskqueue.workitem import DROPPED

__all__ = ["Link", "patiently"]

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_BASE, RETRY_MAXIMUM = 0.1, 15.0  # seconds
RIPE = 1.0
"""Seconds after which a new quorum queue survives the sudden death of its broker.

RabbitMQ writes the names of new ones to disk half a second late: one that is younger is dead after a SIGKILL, with all
that was confirmed on it.  So an exchange leads to a queue only from then on, and whoever publishes through it needs to
know nothing about the queue's age.
"""
PROBE_TIMEOUT = 10.0
"""Seconds that a queue has to answer before it is taken for dead."""
CLOSE_TIMEOUT = 5.0
"""Seconds that the broker has for the end of a connection."""


async def patiently(attempt: Callable[[], Awaitable[T]], what: str) -> T:
    """Repeat `attempt` until it does not raise BrokerUnavailable, with growing, jittered delay."""
    failures = 0
    while True:
        try:
            return await attempt()
        except BrokerUnavailable as error:
            delay = backoff(failures, base=RETRY_BASE, maximum=RETRY_MAXIMUM, jitter=random.random())
            failures += 1
            log.log(logging.WARNING if failures < 10 else logging.ERROR, "%s: %s", what, error)
            log.debug("%s: again in %.1f s", what, delay)
            await asyncio.sleep(delay)


class Link:
    """Connects when first needed, and again whenever the connection has ended.  For one event loop."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._to = parameters(
            options.url, heartbeat=options.heartbeat, name=f"taskqueue {socket.gethostname()} {os.getpid()}"
        )
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._attempt: asyncio.Task[Connection] | None = None
        self._admin: Channel | None = None
        self._declaring = asyncio.Lock()
        self._routed: set[str] = set()  # their exchange leads to them, until it says otherwise
        self._bound: set[str] = set()  # that has been seen to
        self._doubtful: set[str] = set()  # their exchange did not lead to them, or they did not answer
        self._made: dict[str, float] = {}  # by this link, with the monotonic time
        self._suspect: set[str] = set()  # those of them that were young when the broker was last heard of
        self._ripening: dict[str, asyncio.Task[None]] = {}
        self._again: set[asyncio.Task[bool]] = set()
        self._closed = False
        self._told: Callable[[str], None] = lambda trouble: None
        self._trouble: str | None = None  # what was told last
        self._keeping: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()

    def watch(self, told: Callable[[str], None]) -> None:
        """Keep the connection from now on, used or not; `told` is called with each change of what is wrong with it."""
        self._told = told
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        with contextlib.suppress(BrokerError):  # closed by ourselves
            while True:
                self._lost.clear()
                await patiently(self.connect, "connection")
                await self._lost.wait()

    def _report(self, trouble: str) -> None:
        if trouble != self._trouble and not self._closed:
            self._trouble = trouble
            self._told(trouble)

    async def connect(self) -> Connection:
        """The open connection, made now where there is none.

        Raises BrokerUnavailable, and BrokerError once this link is closed.
        """
        async with self._connecting:
            if self._connection is not None:
                return self._connection
            if self._closed:
                raise BrokerError(f"{describe(self._to)}: closed by ourselves")
            self._attempt = asyncio.get_running_loop().create_task(open_connection(self._to, self._ended))
            try:
                connection = await self._attempt
            except asyncio.CancelledError:
                if self._attempt.done() and not self._attempt.cancelled() and self._attempt.exception() is None:
                    self._attempt.result().drop()  # it opened at that very moment
                if self._closed:
                    raise BrokerError(f"{describe(self._to)}: closed by ourselves") from None
                raise
            except BrokerUnavailable as error:
                self._report(str(error))
                raise
            if not connection.is_open:
                raise BrokerUnavailable(f"{describe(self._to)}: closed at once")
            self._connection = connection
            connection.add_on_connection_blocked_callback(self._blocked)
            connection.add_on_connection_unblocked_callback(self._unblocked)
            version = connection.server_properties.get("version", "?")
            log.info("connected to %s (RabbitMQ %s)", describe(self._to), version)
            self._report("")
            return connection

    def _ended(self, connection: Connection, reason: str) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._routed.clear()  # after an outage nothing is taken for granted
        self._doubtful |= self._ripening.keys()
        self._ripening.clear()
        self._suspect |= {queue for queue, made in self._made.items() if connection.heard < made + RIPE}
        self._made.clear()
        if not self._closed:
            log.warning("connection to %s lost: %s", describe(self._to), reason)
        self._report(f"connection to {describe(self._to)} lost: {reason}")
        self._lost.set()

    def _blocked(self, connection: Connection, frame: Any) -> None:
        connection.blocked = True
        log.warning("the broker takes no messages for now: %s; waiting", frame.method.reason)
        self._report(f"the broker takes no messages for now: {frame.method.reason}")

    def _unblocked(self, connection: Connection, _: Any) -> None:
        connection.blocked = False
        log.warning("the broker takes messages again")
        self._report("")

    def declaration(self, queue: str) -> Declaration | None:
        """How `queue` is made; None where it is not ours to make."""
        options = self.options
        return declaration(
            queue,
            queue_type=options.queue_type,
            results_queue=options.results_queue,
            results_max_length=options.results_max_length,
            dead_retention=options.dead_retention,
        )

    def routed(self, queue: str) -> bool:
        """Whether `queue` may be published to without any wait."""
        return queue in self._routed

    def forget(self, queue: str) -> None:
        """Its exchange did not lead to `queue`, or it did not answer: it is asked, or made, before it is used again.

        On a connection of its own, because RabbitMQ 3.10 ends a whole connection, a minute later, for a consumer that
        a dead queue did not answer.
        """
        self._routed.discard(queue)
        self._bound.discard(queue)
        self._doubtful.add(queue)

    def doubt(self) -> None:
        """Something turned out to be gone: take no queue for granted."""
        self._routed.clear()

    async def declare(self, queue: str) -> bool:
        """Make `queue` where it does not exist, and use it as it is where it does; True if it was made.

        It may be consumed from then; `route` is for those who publish to it.  Raises BrokerUnavailable where the
        broker or the queue can't be reached.
        """
        if queue in self._routed or queue in self._ripening:
            return False
        wanted = self._wanted(queue)
        async with self._declaring:
            return await self._declare(wanted)

    async def route(self, queue: str, *, unseen: bool = False) -> None:
        """Return when `queue` exists and may be published to through its exchange.

        Usually the exchange itself says, of each message, whether it leads to the queue.  `unseen` is for what reaches
        the queue on another way: then it has to be certain.  Raises BrokerUnavailable.
        """
        if queue in (self._bound if unseen else self._routed):
            return
        await self.declare(queue)
        if unseen and queue not in self._bound:
            self._ripen(self._wanted(queue))
        if queue in self._ripening:
            await asyncio.shield(self._ripening[queue])

    def _wanted(self, queue: str) -> Declaration:
        wanted = self.declaration(queue)
        if wanted is None:
            raise BrokerError(f"queue {queue!r} is not one that taskqueue makes")
        return wanted

    async def _declare(self, wanted: Declaration) -> bool:
        queue = wanted.queue
        if queue in self._routed or queue in self._ripening:
            return False
        channel = await self._administration()
        await channel.call(
            lambda done: channel.raw.exchange_declare(
                wanted.exchange, wanted.exchange_type, durable=True, callback=done
            )
        )
        exists = await self._ready(queue) is not None
        doubtful = queue in self._doubtful or queue in self._suspect
        if exists and doubtful:
            exists = await self._answers_or_is_deleted(queue)
        if not exists:
            if wanted.arguments.get("x-dead-letter-routing-key") == DROPPED and (drops := self.declaration(DROPPED)):
                await self._declare(drops)  # what a queue drops before there is a place for it is lost
            try:
                await self._make(wanted)
            except BrokerUnavailable:
                if await self._ready(queue) is None:  # or somebody was faster, with other arguments
                    raise
        if doubtful or not exists:
            self._ripen(wanted)
        else:
            self._routed.add(queue)
        return not exists

    def _ripen(self, wanted: Declaration) -> None:
        """Let the exchange lead to the queue when it is old enough, and nothing has happened to the broker."""
        if wanted.queue in self._ripening or self._connection is None:
            return
        task = asyncio.get_running_loop().create_task(self._ripened(wanted, self._connection))
        self._ripening[wanted.queue] = task
        task.add_done_callback(lambda task: self._ripe(wanted.queue, task))

    async def _ripened(self, wanted: Declaration, connection: Connection) -> None:
        await asyncio.sleep(RIPE)
        channel = await Channel.open(connection)  # a new connection would say nothing about this queue
        await channel.call(
            lambda done: channel.raw.queue_bind(wanted.queue, wanted.exchange, routing_key=wanted.queue, callback=done)
        )
        channel.close()
        self._bound.add(wanted.queue)
        self._routed.add(wanted.queue)
        self._doubtful.discard(wanted.queue)

    def _ripe(self, queue: str, task: asyncio.Task[None]) -> None:
        if self._ripening.get(queue) is task:
            del self._ripening[queue]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._doubtful.add(queue)
            if not self._closed:
                log.debug("queue %s: %s", queue, error)
                again = asyncio.get_running_loop().create_task(patiently(lambda: self.declare(queue), f"queue {queue}"))
                self._again.add(again)  # also where nobody here publishes to it: only its maker can heal it
                again.add_done_callback(self._declared)

    def _declared(self, again: asyncio.Task[bool]) -> None:
        self._again.discard(again)
        if not again.cancelled() and (error := again.exception()) is not None:
            log.debug("%s", error)

    async def ready(self, queue: str) -> int | None:
        """How many messages wait in `queue`; None where it does not exist.  Raises BrokerUnavailable."""
        async with self._declaring:
            return await self._ready(queue)

    async def _ready(self, queue: str) -> int | None:
        channel = await self._administration()
        try:
            frame = await channel.call(lambda done: channel.raw.queue_declare(queue, passive=True, callback=done))
        except BrokerUnavailable:
            if channel.code == 404:
                return None
            raise
        return int(frame.method.message_count)

    async def _answers_or_is_deleted(self, queue: str) -> bool:
        """Whether `queue` answers; False where it was dead and has been deleted.

        Only one is deleted that this link made less than RIPE seconds before the broker was last heard of: nothing
        that was acknowledged for it is in it.
        """
        connection = await open_connection(self._to, lambda *_: None)
        try:
            channel = await Channel.open(connection)
            await channel.call(lambda done: channel.raw.basic_qos(prefetch_count=1, callback=done))
            async with asyncio.timeout(PROBE_TIMEOUT):
                await channel.call(lambda done: channel.raw.basic_consume(queue, lambda *_: None, callback=done))
        except TimeoutError:
            if queue not in self._suspect:
                delete = f"rabbitmqctl delete_queue -p {self._to.virtual_host} {queue}"
                raise BrokerUnavailable(
                    "it does not answer: its cluster has no majority, or it broke when its broker died just after it"
                    f" was made; in that case delete it: {delete}"
                ) from None
        else:
            self._suspect.discard(queue)
            return True
        finally:
            connection.drop()  # the channel of a dead queue answers nothing
        log.error("queue %s was made just before the broker died, and is dead: making it anew", queue)
        channel = await self._administration()
        await channel.call(lambda done: channel.raw.queue_delete(queue, callback=done))
        self._suspect.discard(queue)
        return False

    async def _make(self, wanted: Declaration) -> None:
        channel = await self._administration()
        self._made[wanted.queue] = SYSTEM.monotonic()  # it may exist even if the answer is never heard
        await channel.call(
            lambda done: channel.raw.queue_declare(
                wanted.queue, durable=True, arguments=wanted.arguments, callback=done
            )
        )
        self._made[wanted.queue] = SYSTEM.monotonic()

    async def _administration(self) -> Channel:
        connection = await self.connect()
        if self._admin is None or self._admin.closed or not self._admin.raw.is_open:
            self._admin = await Channel.open(connection)
        return self._admin

    async def close(self) -> None:
        """Close the connection; what is not acknowledged goes back.  May be called twice."""
        self._closed = True
        for task in (self._keeping, self._attempt, *self._ripening.values(), *self._again):
            if task is not None:
                task.cancel()
        connection = self._connection
        if connection is not None and not connection.is_closed:
            ended = asyncio.Event()
            connection.add_on_close_callback(lambda *_: ended.set())
            if connection.is_open:
                connection.close()
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await ended.wait()
            except TimeoutError:
                log.warning("the broker did not answer the end of the connection")
                connection.drop()
                await asyncio.sleep(0)
