"""The one connection of a broker object, kept for ever, and the queues that are known to exist on it."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable

from taskqueue.broker import Options
from taskqueue.brokers.amqp.connection import Channel, Connection, describe, open_connection, parameters
from taskqueue.brokers.amqp.topology import Declaration, declaration
from taskqueue.errors import BrokerError, BrokerUnavailable
from taskqueue.retry import backoff

__all__ = ["Link", "patiently"]

log = logging.getLogger(__name__)

RETRY_BASE, RETRY_MAXIMUM = 0.1, 15.0  # seconds


async def patiently(attempt: Callable[[], Awaitable[None]], what: str) -> None:
    """Repeat `attempt` until it does not raise BrokerUnavailable, with growing, jittered delay."""
    failures = 0
    while True:
        try:
            await attempt()
        except BrokerUnavailable as error:
            delay = backoff(failures, base=RETRY_BASE, maximum=RETRY_MAXIMUM, jitter=random.random())
            failures += 1
            log.log(logging.WARNING if failures < 10 else logging.ERROR, "%s: %s", what, error)
            log.debug("%s: again in %.1f s", what, delay)
            await asyncio.sleep(delay)
        else:
            return


class Link:
    """Connects when first needed, and again whenever the connection has ended."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._to = parameters(
            options.url, heartbeat=options.heartbeat, name=f"taskqueue {socket.gethostname()} {os.getpid()}"
        )
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._admin: Channel | None = None
        self._declaring = asyncio.Lock()
        self._known: set[str] = set()
        self._closed = False

    async def connection(self) -> Connection:
        """The open connection.  Waits through outages."""
        if self._connection is None:
            await patiently(self.connect, "cannot connect")
        assert self._connection is not None
        return self._connection

    async def connect(self) -> None:
        """Connect now, where it is not connected.  Raises BrokerUnavailable."""
        async with self._connecting:
            if self._closed:
                raise asyncio.CancelledError
            if self._connection is None:
                self._known.clear()  # after an outage nothing is taken for granted
                connection = await open_connection(self._to, self._ended)
                if not connection.is_open:
                    raise BrokerUnavailable(f"{describe(self._to)}: closed at once")
                self._connection = connection
                connection.add_on_connection_blocked_callback(self._blocked)
                connection.add_on_connection_unblocked_callback(
                    lambda *_: log.warning("the broker takes messages again")
                )
                version = connection.server_properties.get("version", "?")
                log.info("connected to %s (RabbitMQ %s)", describe(self._to), version)

    def _ended(self, reason: str) -> None:
        if self._connection is not None and not self._closed:
            log.warning("connection to %s lost: %s", describe(self._to), reason)
        self._connection = None

    def _blocked(self, _: object, frame: object) -> None:
        reason = getattr(getattr(frame, "method", None), "reason", "")
        log.warning("the broker takes no messages for now: %s; waiting", reason)

    def reset(self, reason: str) -> None:
        """End the connection, so that everything is built anew."""
        if self._connection is not None and self._connection.is_open:
            log.error("connecting anew: %s", reason)
            self._connection.close(320, "connecting anew")

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

    async def declare(self, queue: str) -> bool:
        """Make `queue` where it does not exist, and use it as it is where it does; True if it was made.

        Raises BrokerUnavailable while there is no connection.
        """
        if queue in self._known:
            return False
        wanted = self.declaration(queue)
        if wanted is None:
            raise BrokerError(f"queue {queue!r} is not one that taskqueue makes")
        async with self._declaring:
            if queue in self._known:
                return False
            made = await self._ready(queue) is None
            if made:
                try:
                    await self._make(wanted)
                except BrokerUnavailable:
                    if await self._ready(queue) is None:  # or somebody was faster, with other arguments
                        raise
            self._known.add(queue)
            return made

    async def ready(self, queue: str) -> int | None:
        """How many messages wait in `queue`; None where it does not exist.  Raises BrokerUnavailable."""
        async with self._declaring:
            return await self._ready(queue)

    async def _ready(self, queue: str) -> int | None:
        channel = await self._administration()
        try:
            frame = await channel.call(lambda done: channel.raw.queue_declare(queue, passive=True, callback=done))
        except BrokerUnavailable as error:
            if "404" in str(error):
                return None
            raise
        return int(frame.method.message_count)

    async def _make(self, wanted: Declaration) -> None:
        channel = await self._administration()
        await channel.call(
            lambda done: channel.raw.queue_declare(
                wanted.queue, durable=True, arguments=wanted.arguments, callback=done
            )
        )
        if wanted.exchange:
            await channel.call(
                lambda done: channel.raw.exchange_declare(wanted.exchange, "fanout", durable=True, callback=done)
            )
            await channel.call(lambda done: channel.raw.queue_bind(wanted.queue, wanted.exchange, callback=done))

    async def _administration(self) -> Channel:
        if self._admin is None or self._admin.closed:
            if self._connection is None:
                raise BrokerUnavailable("not connected")
            self._admin = await Channel.open(self._connection)
        return self._admin

    async def close(self) -> None:
        """Close the connection; what is not acknowledged goes back.  May be called twice."""
        self._closed = True
        connection = self._connection
        if connection is not None and connection.is_open:
            ended = asyncio.Event()
            connection.add_on_close_callback(lambda *_: ended.set())
            connection.close()
            try:
                await asyncio.wait_for(ended.wait(), 5)
            except TimeoutError:
                log.warning("the broker did not answer the end of the connection")
