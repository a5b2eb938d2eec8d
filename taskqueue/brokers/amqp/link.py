"""The one connection of a broker object, kept for ever, and the queues that are known to exist on it."""

from __future__ import annotations

import asyncio
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
that was confirmed on it.
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
        self._known: set[str] = set()
        self._made: dict[str, float] = {}  # quorum queues that this link has made, with the monotonic time
        self._suspect: set[str] = set()  # those of them that were young when the broker was last heard of
        self._silent: set[str] = set()  # queues that did not answer
        self._closed = False

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
                if self._closed:
                    raise BrokerError(f"{describe(self._to)}: closed by ourselves") from None
                raise
            if not connection.is_open:
                raise BrokerUnavailable(f"{describe(self._to)}: closed at once")
            self._connection = connection
            connection.add_on_connection_blocked_callback(self._blocked)
            connection.add_on_connection_unblocked_callback(self._unblocked)
            version = connection.server_properties.get("version", "?")
            log.info("connected to %s (RabbitMQ %s)", describe(self._to), version)
            return connection

    def _ended(self, connection: Connection, reason: str) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._known.clear()  # after an outage nothing is taken for granted
        self._suspect |= {queue for queue, made in self._made.items() if connection.heard < made + RIPE}
        self._made.clear()
        if not self._closed:
            log.warning("connection to %s lost: %s", describe(self._to), reason)

    def _blocked(self, connection: Connection, frame: Any) -> None:
        connection.blocked = True
        log.warning("the broker takes no messages for now: %s; waiting", frame.method.reason)

    def _unblocked(self, connection: Connection, _: Any) -> None:
        connection.blocked = False
        log.warning("the broker takes messages again")

    def ripens_in(self, queue: str) -> float:
        """Seconds until a confirm on `queue` may be relied upon: 0 unless this link has only just made it."""
        if queue in self._suspect:
            return RIPE
        made = self._made.get(queue)
        return 0.0 if made is None else max(0.0, made + RIPE - SYSTEM.monotonic())

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

    def known(self, queue: str) -> bool:
        """Whether nothing has to be declared before publishing to `queue`."""
        return queue in self._known

    def forget(self, queue: str) -> None:
        """`queue` turned out to be gone."""
        self._known.discard(queue)

    def doubt(self) -> None:
        """Something turned out to be gone: take no queue for granted."""
        self._known.clear()

    def silent(self, queue: str) -> None:
        """`queue` did not answer: ask it on a connection of its own before it is used again.

        RabbitMQ 3.10 ends a whole connection, a minute later, for a consumer that a dead queue did not answer.
        """
        self._silent.add(queue)
        self.forget(queue)

    async def declare(self, queue: str) -> bool:
        """Make `queue` where it does not exist, and use it as it is where it does; True if it was made.

        Raises BrokerUnavailable where the broker or the queue can't be reached.
        """
        if queue in self._known:
            return False
        wanted = self.declaration(queue)
        if wanted is None:
            raise BrokerError(f"queue {queue!r} is not one that taskqueue makes")
        async with self._declaring:
            return await self._declare(wanted)

    async def _declare(self, wanted: Declaration) -> bool:
        queue = wanted.queue
        if queue in self._known:
            return False
        exists = await self._ready(queue) is not None
        if exists and (queue in self._suspect or queue in self._silent):
            exists = await self._answers_or_is_deleted(queue)
        if not exists:
            if wanted.arguments.get("x-dead-letter-routing-key") == DROPPED and (drops := self.declaration(DROPPED)):
                await self._declare(drops)  # what a queue drops before there is a place for it is lost
            try:
                await self._make(wanted)
            except BrokerUnavailable:
                if await self._ready(queue) is None:  # or somebody was faster, with other arguments
                    raise
        if wanted.exchange:
            await self._bind(wanted)
        self._known.add(queue)
        return not exists

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
            consume = channel.call(lambda done: channel.raw.basic_consume(queue, lambda *_: None, callback=done))
            await asyncio.wait_for(consume, PROBE_TIMEOUT)
        except TimeoutError:
            if queue not in self._suspect:
                raise BrokerUnavailable("it does not answer (broken when the broker died? no majority?)") from None
        else:
            self._suspect.discard(queue)
            self._silent.discard(queue)
            return True
        finally:
            connection.drop()  # the channel of a dead queue answers nothing
        log.error("queue %s was made just before the broker died, and is dead: making it anew", queue)
        channel = await self._administration()
        await channel.call(lambda done: channel.raw.queue_delete(queue, callback=done))
        self._suspect.discard(queue)
        self._silent.discard(queue)
        return False

    async def _make(self, wanted: Declaration) -> None:
        channel = await self._administration()
        quorum = wanted.arguments.get("x-queue-type") == "quorum"
        if quorum:
            self._made[wanted.queue] = SYSTEM.monotonic()  # it may exist even if the answer is never heard
        await channel.call(
            lambda done: channel.raw.queue_declare(
                wanted.queue, durable=True, arguments=wanted.arguments, callback=done
            )
        )
        if quorum:
            self._made[wanted.queue] = SYSTEM.monotonic()

    async def _bind(self, wanted: Declaration) -> None:
        channel = await self._administration()
        await channel.call(
            lambda done: channel.raw.exchange_declare(wanted.exchange, "fanout", durable=True, callback=done)
        )
        await channel.call(lambda done: channel.raw.queue_bind(wanted.queue, wanted.exchange, callback=done))

    async def _administration(self) -> Channel:
        connection = await self.connect()
        if self._admin is None or self._admin.closed or not self._admin.raw.is_open:
            self._admin = await Channel.open(connection)
        return self._admin

    async def close(self) -> None:
        """Close the connection; what is not acknowledged goes back.  May be called twice."""
        self._closed = True
        if self._attempt is not None:
            self._attempt.cancel()
        connection = self._connection
        if connection is not None and not connection.is_closed:
            ended = asyncio.Event()
            connection.add_on_close_callback(lambda *_: ended.set())
            if connection.is_open:
                connection.close()
            try:
                await asyncio.wait_for(ended.wait(), CLOSE_TIMEOUT)
            except TimeoutError:
                log.warning("the broker did not answer the end of the connection")
                connection.drop()
                await asyncio.sleep(0)
