"""Sends workitems to RabbitMQ: plain calls, over a connection that a thread of its own keeps alive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue as queues
import threading
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from taskqueue.broker import Options
from taskqueue.brokers.amqp.connection import Channel, Connection, Verdict
from taskqueue.brokers.amqp.link import Link, patiently
from taskqueue.brokers.amqp.message import from_wire, to_wire
from taskqueue.errors import BrokerError, BrokerUnavailable, SendFailed, Unsupported
from taskqueue.workitem import Workitem, worker_queue

__all__ = ["AMQPProducer"]

log = logging.getLogger(__name__)

SEND_TIMEOUT = 30.0
"""Seconds without any word from the broker after which `send` gives up."""
CLOSE_TIMEOUT = 10.0
"""Seconds that `close` waits for the broker."""
PRECONDITION_FAILED = 406
WINDOW = 1000
"""Messages that are under way at most without a confirm."""
REPLY_EXPIRES = 3_600_000
"""Milliseconds after which the broker removes the reply queue of a client that is gone."""


class AMQPProducer:
    """The producer contract.  Its thread starts with the first call, and anew after a fork."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._starting = threading.Lock()
        self._pid = os.getpid()
        self._thread: _Thread | None = None
        self._left_behind: list[_Thread | None] = []  # a fork's parent's, never touched: not even by its destructors
        self._replies: queues.SimpleQueue[Workitem] = queues.SimpleQueue()

    def send(
        self, workitems: Sequence[Workitem], *, queue: str = "", reply: bool = False, unique: bool = False
    ) -> list[str]:
        if unique or any(workitem.after for workitem in workitems):
            what = "unique ids" if unique else "work that depends on other work"
            raise Unsupported(f"amqp:// has no {what}: postgresql:// and sqlite:/// have")
        sending = _Sending([workitem.named() for workitem in workitems], queue, reply)
        future = self._submit(lambda line: line.send(sending))
        heard = 0
        try:
            while True:
                try:
                    future.result(SEND_TIMEOUT)
                    return [workitem.id for workitem in sending.workitems]
                except FutureTimeout:
                    if sending.heard == heard:
                        why = sending.trouble or "no word from the broker"
                        raise BrokerUnavailable(f"not confirmed within {SEND_TIMEOUT:g} s: {why}") from None
                    heard = sending.heard
        except CancelledError:
            raise BrokerError("the producer was closed") from None
        finally:
            future.cancel()

    def next_reply(self, *, timeout: float | None) -> Workitem | None:
        with contextlib.suppress(queues.Empty):
            return self._replies.get(timeout=timeout)
        return None

    def _submit(self, work: Callable[[_Line], Coroutine[Any, Any, None]]) -> Future[None]:
        if self._pid != os.getpid():  # in a forked child, where the lock may be held for ever
            self._starting = threading.Lock()
            self._pid = os.getpid()
            self._left_behind.append(self._thread)
            self._thread = None
        with self._starting:
            if self._thread is None:
                self._thread = _Thread(self._options, self._replies)
                self._thread.start()
            return self._thread.submit(work)

    def close(self) -> None:
        if self._pid == os.getpid():
            with self._starting:
                thread, self._thread = self._thread, None
            if thread is not None:
                thread.end()


class _Thread(threading.Thread):
    """Runs the event loop that keeps the connection alive."""

    def __init__(self, options: Options, replies: queues.SimpleQueue[Workitem]) -> None:
        super().__init__(name="taskqueue-amqp", daemon=True)
        self._loop = asyncio.new_event_loop()
        self._line = _Line(options, replies)

    def submit(self, work: Callable[[_Line], Coroutine[Any, Any, None]]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work(self._line), self._loop)

    def run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_all())
        self._loop.close()

    def end(self) -> None:
        with contextlib.suppress(FutureTimeout):
            self.submit(lambda line: line.close()).result(CLOSE_TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Sending:
    """One call of `send`.

    heard: how many of its messages the broker has confirmed.
    trouble: why they are being sent again.
    """

    def __init__(self, workitems: list[Workitem], queue: str, reply: bool) -> None:
        self.workitems = workitems
        self.queue = queue
        self.reply = reply
        self.heard = 0
        self.trouble = ""

    def target(self, index: int) -> str:
        return self.queue or worker_queue(self.workitems[index].type)


class _Line:
    """What lives in the producer's thread."""

    def __init__(self, options: Options, replies: queues.SimpleQueue[Workitem]) -> None:
        self._options = options
        self._link: Link | None = None
        self._replies = replies
        self._closing = False
        self._reply_queue = f"taskqueue.reply.{uuid.uuid4().hex}"
        self._reply_channel: Channel | None = None
        self._channel: Channel | None = None
        self._opening: asyncio.Lock | None = None
        self._listening: set[asyncio.Task[None]] = set()

    async def send(self, sending: _Sending) -> None:
        """Publish until all are confirmed.  A lost connection is replaced; the first one must come up at once."""
        link, opening = self._started()
        open_ = list(range(len(sending.workitems)))
        rounds = 0
        while open_:
            try:
                connection = await link.connect()
                channel = await self._open(connection, opening, reply=sending.reply)
                verdicts = await self._publish(link, channel, sending, open_)
                if rounds and channel.code == PRECONDITION_FAILED:  # a message that is too long is so every time
                    refused = tuple(sending.workitems[index].id for index in open_ if verdicts[index] != "stored")
                    raise SendFailed(channel.closed, refused)
            except BrokerUnavailable as error:
                if not rounds:
                    raise
                log.debug("sending again: %s", error)
                sending.trouble = str(error)
                verdicts = {}
            open_ = [index for index in open_ if verdicts.get(index) != "stored"]
            self._refuse(link, sending, open_, verdicts)
            rounds += 1
            if open_:
                await asyncio.sleep(min(1.0, 0.05 * 2**rounds))

    def _started(self) -> tuple[Link, asyncio.Lock]:
        if self._link is None or self._opening is None:  # not sooner: they belong to the thread's event loop
            self._link, self._opening = Link(self._options), asyncio.Lock()
        return self._link, self._opening

    def _refuse(self, link: Link, sending: _Sending, open_: list[int], verdicts: dict[int, Verdict]) -> None:
        """Raise SendFailed for queues that are not ours to make; make the others anew."""
        unroutable = {sending.target(index) for index in open_ if verdicts.get(index) == "unroutable"}
        foreign = sorted(name for name in unroutable if link.declaration(name) is None)
        if foreign:
            refused = tuple(sending.workitems[index].id for index in open_)
            raise SendFailed(f"no such queue: {', '.join(foreign)}", refused)
        for name in unroutable:
            link.forget(name)

    async def _open(self, connection: Connection, opening: asyncio.Lock, *, reply: bool) -> Channel:
        async with opening:
            if self._channel is None or self._channel.closed:
                self._channel = await Channel.open(connection)
            if reply and (self._reply_channel is None or self._reply_channel.closed):
                await self._listen(connection)
            return self._channel

    async def _listen(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        channel = await Channel.open(connection, self._deaf)
        arguments = {"x-queue-type": "classic", "x-expires": REPLY_EXPIRES}
        await channel.call(
            lambda done: channel.raw.queue_declare(self._reply_queue, durable=True, arguments=arguments, callback=done)
        )

        unacknowledged: list[int] = []

        def arrived(_: Any, method: Any, properties: Any, body: bytes) -> None:
            self._replies.put(from_wire(properties, body, self._reply_queue))
            if not unacknowledged:
                loop.call_soon(acknowledge)  # all that came along, at once
            unacknowledged.append(method.delivery_tag)

        def acknowledge() -> None:
            if not channel.closed:
                channel.raw.basic_ack(unacknowledged[-1], multiple=True)
            unacknowledged.clear()

        await channel.call(lambda done: channel.raw.basic_consume(self._reply_queue, arrived, callback=done))
        self._reply_channel = channel

    def _deaf(self, _: str) -> None:
        """Replies may come while nobody sends: listen again, without waiting for the next `send`."""
        if self._closing:
            return
        task = asyncio.get_running_loop().create_task(patiently(self._listen_again, "replies"))
        self._listening.add(task)
        task.add_done_callback(self._listens)

    async def _listen_again(self) -> None:
        link, opening = self._started()
        await self._open(await link.connect(), opening, reply=True)

    def _listens(self, task: asyncio.Task[None]) -> None:
        self._listening.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("replies: %s", error)

    async def _publish(self, link: Link, channel: Channel, sending: _Sending, open_: list[int]) -> dict[int, Verdict]:
        declarations = {name: link.declaration(name) for name in {sending.target(index) for index in open_}}
        await asyncio.gather(*(link.route(name) for name, declared in declarations.items() if declared is not None))
        exchanges = {name: declared.exchange if declared else "" for name, declared in declarations.items()}
        verdicts: dict[int, Verdict] = {}
        room = asyncio.Semaphore(WINDOW)
        all_heard = asyncio.Event()

        def listener(index: int) -> Callable[[Verdict], None]:
            def heard(verdict: Verdict) -> None:
                verdicts[index] = verdict
                sending.heard += verdict == "stored"
                room.release()
                if len(verdicts) == len(open_):
                    all_heard.set()

            return heard

        for index in open_:
            await room.acquire()
            workitem = sending.workitems[index]
            if sending.reply:
                workitem = workitem._replace(
                    reply_to=self._reply_queue, correlation_id=workitem.correlation_id or workitem.id
                )
            target = sending.target(index)
            channel.publish(target, workitem.body, to_wire(workitem), listener(index), exchange=exchanges[target])
        await all_heard.wait()
        return verdicts

    async def close(self) -> None:
        self._closing = True
        for task in self._listening:
            task.cancel()
        if self._reply_channel is not None and not self._reply_channel.closed:
            channel = self._reply_channel
            with contextlib.suppress(BrokerUnavailable):
                await channel.call(lambda done: channel.raw.queue_delete(self._reply_queue, callback=done))
        if self._link is not None:
            await self._link.close()
