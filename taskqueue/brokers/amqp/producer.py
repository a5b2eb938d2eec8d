"""Sends workitems to RabbitMQ: plain calls, over a connection that a thread of its own keeps alive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue as queues
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from typing import Any, TypeVar

from taskqueue.broker import Options
from taskqueue.brokers.amqp.connection import Channel, Verdict
from taskqueue.brokers.amqp.link import Link
from taskqueue.brokers.amqp.message import from_wire, to_wire
from taskqueue.errors import BrokerUnavailable, SendFailed
from taskqueue.workitem import Workitem, worker_queue

__all__ = ["AMQPProducer"]

log = logging.getLogger(__name__)
T = TypeVar("T")

SEND_TIMEOUT = 30.0
"""Seconds after which `send` gives up waiting for the broker's word."""
WINDOW = 1000
"""Messages that are under way at most without a confirm."""
REPLY_EXPIRES = 3_600_000
"""Milliseconds after which the broker removes the reply queue of a client that is gone."""


class AMQPProducer:
    """The producer contract.  Its thread starts with the first call, and anew after a fork."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._replies: queues.SimpleQueue[Workitem | None] = queues.SimpleQueue()
        self._line: _Line | None = None

    def send(self, workitems: Sequence[Workitem], *, queue: str = "", reply: bool = False) -> list[str]:
        named = [workitem.named() for workitem in workitems]
        self._run(lambda line: line.send(named, queue, reply), SEND_TIMEOUT)
        return [workitem.id for workitem in named]

    def next_reply(self, *, timeout: float | None) -> Workitem | None:
        with contextlib.suppress(queues.Empty):
            return self._replies.get(timeout=timeout)
        return None

    def _run(self, work: Any, timeout: float) -> None:
        with self._starting:
            if self._pid != os.getpid():  # the first call, or the first one in a forked child
                self._pid = os.getpid()
                self._loop = asyncio.new_event_loop()
                self._line = _Line(self._options, self._replies)
                self._thread = threading.Thread(target=self._loop.run_forever, name="taskqueue-amqp", daemon=True)
                self._thread.start()
        assert self._loop is not None and self._line is not None
        future = asyncio.run_coroutine_threadsafe(work(self._line), self._loop)
        try:
            future.result(timeout)
        except FutureTimeout:
            future.cancel()
            raise BrokerUnavailable(f"no word from the broker within {timeout:g} s") from None

    def close(self) -> None:
        with self._starting:
            if self._loop is None or self._pid != os.getpid() or self._loop.is_closed():
                return
            assert self._line is not None and self._thread is not None
            with contextlib.suppress(FutureTimeout):
                asyncio.run_coroutine_threadsafe(self._line.close(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._pid = 0


class _Line:
    """What lives in the producer's thread."""

    def __init__(self, options: Options, replies: queues.SimpleQueue[Workitem | None]) -> None:
        self._options = options
        self._replies = replies
        self._link: Link | None = None
        self._channel: Channel | None = None
        self._reply_queue = ""
        self._reply_channel: Channel | None = None
        self._opening: asyncio.Lock | None = None

    async def send(self, workitems: Sequence[Workitem], queue: str, reply: bool) -> None:
        """Publish until all are confirmed.  A lost connection is replaced; the first one must come up at once."""
        if self._opening is None:
            self._opening = asyncio.Lock()
        open_: dict[int, Workitem] = dict(enumerate(workitems))
        rounds = 0
        while True:
            try:
                channel = await self._open(reply)
                if reply:
                    open_ = {
                        index: replace(item, reply_to=self._reply_queue, correlation_id=item.correlation_id or item.id)
                        for index, item in open_.items()
                    }
                verdicts = await self._publish(channel, open_, queue)
            except BrokerUnavailable:
                if not rounds:
                    raise
                verdicts = {}
            open_ = {index: item for index, item in open_.items() if verdicts.get(index) != "stored"}
            if not open_:
                return
            rounds += 1
            unroutable = {queue or worker_queue(open_[i].type) for i, v in verdicts.items() if v == "unroutable"}
            assert self._link is not None
            foreign = [name for name in unroutable if self._link.declaration(name) is None]
            if foreign:
                refused = tuple(item.id for item in open_.values())
                raise SendFailed(f"no such queue: {', '.join(sorted(foreign))}", refused)
            for name in unroutable:
                self._link.forget(name)
            await asyncio.sleep(min(1.0, 0.05 * 2**rounds))

    async def _open(self, reply: bool) -> Channel:
        assert self._opening is not None
        async with self._opening:
            if self._link is None:
                self._link = Link(self._options)
            await self._link.connect()
            connection = await self._link.connection()
            if self._channel is None or self._channel.closed:
                self._channel = await Channel.open(connection)
            if reply and (self._reply_channel is None or self._reply_channel.closed):
                await self._listen(await Channel.open(connection))
            return self._channel

    async def _listen(self, channel: Channel) -> None:
        self._reply_queue = self._reply_queue or f"taskqueue.reply.{uuid.uuid4().hex}"
        arguments = {"x-expires": REPLY_EXPIRES}
        await channel.call(
            lambda done: channel.raw.queue_declare(self._reply_queue, durable=True, arguments=arguments, callback=done)
        )

        def arrived(_: Any, method: Any, properties: Any, body: bytes) -> None:
            self._replies.put(from_wire(properties, body, self._reply_queue))
            channel.raw.basic_ack(method.delivery_tag)

        await channel.call(lambda done: channel.raw.basic_consume(self._reply_queue, arrived, callback=done))
        self._reply_channel = channel

    async def _publish(self, channel: Channel, workitems: dict[int, Workitem], queue: str) -> dict[int, Verdict]:
        assert self._link is not None
        for name in {queue or worker_queue(workitem.type) for workitem in workitems.values()}:
            if not self._link.known(name) and self._link.declaration(name) is not None:
                await self._link.declare(name)
        verdicts: dict[int, Verdict] = {}
        room = asyncio.Semaphore(WINDOW)
        all_heard = asyncio.Event()

        def listener(index: int) -> Any:
            def heard(verdict: Verdict) -> None:
                verdicts[index] = verdict
                room.release()
                if len(verdicts) == len(workitems):
                    all_heard.set()

            return heard

        for index, workitem in workitems.items():
            await room.acquire()
            channel.publish(queue or worker_queue(workitem.type), workitem.body, to_wire(workitem), listener(index))
        if workitems:
            await all_heard.wait()
        return verdicts

    async def close(self) -> None:
        if self._reply_channel is not None and not self._reply_channel.closed:
            channel = self._reply_channel
            with contextlib.suppress(BrokerUnavailable):
                await channel.call(lambda done: channel.raw.queue_delete(self._reply_queue, callback=done))
        if self._link is not None:
            await self._link.close()
