"""One connection to RabbitMQ, inside an asyncio loop, and its channels.

Stock pika but for two hooks, both on names that pika 1.2 to 1.4 share: all frames of one turn of the loop leave in
one write (pika writes each frame by itself, three for a message), and message properties are decoded by
`taskqueue.brokers.amqp.table`.  The place for further shortcuts of encoding and parsing is here.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Literal

import pika
import pika.exceptions
from pika import frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection

from taskqueue.brokers.amqp.table import Properties, as_sent
from taskqueue.clock import SYSTEM
from taskqueue.errors import BrokerUnavailable

__all__ = ["Channel", "Connection", "Verdict", "describe", "open_connection", "parameters"]

Verdict = Literal["stored", "unroutable", "refused", "lost"]
"""The broker's word on a message: safe; no such queue; nacked, try again; the channel is gone, nobody knows."""

JOIN_LIMIT = 1 << 18  # bytes that are joined at most before they are written
ANSWER_TIMEOUT = 30.0
"""Seconds that the broker has for the answer to a request, such as a declaration, while it is not blocked."""
LONGEST_NAME = 255
"""Bytes of the longest name that a queue can have."""


class Connection(AsyncioConnection):  # type: ignore[misc, unused-ignore]
    """pika's asyncio connection, with joined writes and a decoder that takes everything.

    heard: monotonic seconds of the last sign of life from the broker.
    blocked: the broker has said that it takes no messages for now.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.heard = SYSTEM.monotonic()
        self.blocked = False
        self._joined: list[bytes] = []
        self._joined_size = 0
        self._loop = asyncio.get_running_loop()
        super().__init__(*arguments, **keywords)

    def _output_marshaled_frames(self, marshaled_frames: list[bytes]) -> None:
        if not self._joined:
            self._loop.call_soon(self._write_joined)
        self._joined += marshaled_frames
        self._joined_size += sum(map(len, marshaled_frames))
        if self._joined_size > JOIN_LIMIT:
            self._write_joined()

    def _write_joined(self) -> None:
        if not self._joined:
            return
        joined = b"".join(self._joined)
        self.frames_sent += len(self._joined)
        self.bytes_sent += len(joined)
        self._joined.clear()
        self._joined_size = 0
        if self._transport is not None:  # gone when the stream ended in this very turn
            self._adapter_emit_data(joined)

    def drop(self) -> None:
        """End it without a word to the broker."""
        if self.is_closed:
            return
        if self._transport is None:  # not even connected
            self._terminate_stream(pika.exceptions.StreamLostError("dropped"))
        else:  # not as pika does it, which fails in the middle of the handshake
            self._error = pika.exceptions.StreamLostError("dropped")
            self._remove_heartbeat()
            self._transport.abort()

    def _on_data_available(self, data_in: bytes) -> None:
        self.heard = SYSTEM.monotonic()
        super()._on_data_available(data_in)

    def _read_frame(self) -> tuple[int, Any]:
        buffered = self._frame_buffer
        if buffered[:1] != _HEADER_FRAME or len(buffered) < spec.FRAME_HEADER_SIZE:
            return frame.decode_frame(buffered)  # type: ignore[no-any-return, unused-ignore]
        channel, size = struct.unpack_from(">HL", buffered, 1)
        end = spec.FRAME_HEADER_SIZE + size + spec.FRAME_END_SIZE
        if len(buffered) < end:
            return 0, None
        (body_size,) = struct.unpack_from(">Q", buffered, spec.FRAME_HEADER_SIZE + 4)
        properties = Properties().decode(buffered[spec.FRAME_HEADER_SIZE + 12 : end - 1])
        return end, frame.Header(channel, body_size, properties)


_HEADER_FRAME = bytes((spec.FRAME_HEADER,))


def parameters(url: str, *, heartbeat: float, name: str) -> pika.URLParameters:
    """pika's connection parameters for `url`; `name` shows in the broker's lists.  Raises BrokerUnavailable."""
    try:
        result = pika.URLParameters(url)
    except (ValueError, TypeError) as error:
        raise BrokerUnavailable(f"not a usable AMQP URL: {type(error).__name__}") from None
    result.heartbeat = int(heartbeat)
    result.client_properties = {"connection_name": name}
    return result


def describe(to: pika.URLParameters) -> str:
    """Where a connection goes to, for people; never the password."""
    return f"{to.credentials.username}@{to.host}:{to.port}, vhost {to.virtual_host!r}"


async def open_connection(to: pika.URLParameters, on_close: Callable[[Connection, str], None]) -> Connection:
    """An open connection.  `on_close` is called once, with the reason, when it ends.

    Raises BrokerUnavailable, with one line that names the place and the cause.
    """
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    def on_error(_: Any, error: BaseException) -> None:
        if not opened.done():
            opened.set_exception(BrokerUnavailable(f"{describe(to)}: {_cause(error)}"))

    connection = Connection(
        parameters=to,
        on_open_callback=opened.set_result,
        on_open_error_callback=on_error,
        on_close_callback=lambda connection, error: on_close(connection, _cause(error)),
        custom_ioloop=asyncio.get_running_loop(),
    )
    try:
        return await opened
    except asyncio.CancelledError:
        connection.drop()
        raise


def _cause(error: BaseException) -> str:
    """The innermost cause of a connection's failure, in words that say what to look at."""
    for _ in range(10):
        inner = [e for e in (*getattr(error, "exceptions", ()), *error.args) if isinstance(e, BaseException)]
        inner += [e for e in (error.__cause__, getattr(error, "exception", None)) if e is not None]
        if not inner:
            break
        error = inner[-1]
    match error:
        case pika.exceptions.ProbableAuthenticationError() | pika.exceptions.AuthenticationError():
            return "the broker refused user or password (ACCESS_REFUSED)"
        case pika.exceptions.ProbableAccessDeniedError():
            return "the broker refused access to the vhost: it does not exist, or the user has no permission there"
        case pika.exceptions.IncompatibleProtocolError():
            return "that is not AMQP 0-9-1 (wrong port, or TLS on one side only?)"
        case pika.exceptions.ConnectionClosed():
            if error.reply_code == 530:
                return f"the broker refused access to the vhost ({error.reply_text})"
            if error.reply_code == 403:
                return f"the broker refused user or password ({error.reply_text})"
            return f"closed with {error.reply_code} {error.reply_text}"
        case pika.exceptions.ChannelClosed():
            return f"closed with {error.reply_code} {error.reply_text}"
        case pika.exceptions.AMQPHeartbeatTimeout():
            return "no heartbeat from the broker"
        case pika.exceptions.StreamLostError():
            return "the broker closed the connection without a word"
        case socket.gaierror():
            return f"can't find that host: {error.strerror}"
        case OSError() if error.errno is not None:
            return f"{os.strerror(error.errno)} ({errno.errorcode.get(error.errno, error.errno)})"
        case _:
            text = str(error).splitlines()
            return text[0] if text and text[0] else type(error).__name__


class _Pending:
    __slots__ = ("done", "message_id", "queue", "returned")

    def __init__(self, queue: str, message_id: str | None, done: Callable[[Verdict], None]) -> None:
        self.queue = queue
        self.message_id = message_id
        self.done = done
        self.returned = False


class Channel:
    """One channel in confirm mode.

    closed: the reason, once it has ended; `on_close` is told it.
    code: AMQP's number for the reason; 0 where the connection has ended.
    """

    def __init__(self, connection: Connection, on_close: Callable[[str], None]) -> None:
        self.closed = ""
        self.code = 0
        self._connection = connection
        self._on_close = on_close
        self._sent = 0
        self._pending: dict[int, _Pending] = {}
        self._waiting: set[asyncio.Future[Any]] = set()
        self._opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not connection.is_open:
            raise BrokerUnavailable("the connection is closed")
        try:
            self.raw = connection.channel(on_open_callback=self._open)
        except pika.exceptions.AMQPError as error:  # no channel is free
            raise BrokerUnavailable(_cause(error)) from None
        self.raw.add_on_close_callback(lambda _, reason: self._ended(reason))
        self.raw.add_on_return_callback(self._returned)

    @staticmethod
    async def open(connection: Connection, on_close: Callable[[str], None] = lambda _: None) -> Channel:
        """A new channel.  Raises BrokerUnavailable where the connection ends meanwhile."""
        channel = Channel(connection, on_close)
        try:
            await channel._answer(channel._opened)
            await channel.call(lambda done: channel.raw.confirm_delivery(channel._confirmed, callback=done))
        except BaseException:
            channel.close()
            raise
        return channel

    def _open(self, raw: Any) -> None:
        if self._opened.done():  # nobody waits for it any more
            raw.close()
        else:
            self._opened.set_result(raw)

    async def call(self, request: Callable[[Callable[[Any], None]], Any]) -> Any:
        """Make a request of pika's that answers through a callback, and wait for the answer.

        Raises BrokerUnavailable, with the reason, where the channel ends instead.  A request that is not answered
        ends the channel.
        """
        if self.closed:
            raise BrokerUnavailable(self.closed)
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            request(lambda frame: None if answered.done() else answered.set_result(frame))
        except pika.exceptions.AMQPError as error:  # closing, and not told yet
            raise BrokerUnavailable(_cause(error)) from None
        return await self._answer(answered)

    async def _answer(self, answered: asyncio.Future[Any]) -> Any:
        self._waiting.add(answered)
        try:
            while not (await asyncio.wait([answered], timeout=ANSWER_TIMEOUT))[0]:
                if not self._connection.blocked:
                    self.close()
                    raise BrokerUnavailable(f"no answer from the broker within {ANSWER_TIMEOUT:g} s")
            return answered.result()
        finally:
            self._waiting.discard(answered)
            answered.cancel()

    def publish(
        self, queue: str, body: bytes, properties: Properties, done: Callable[[Verdict], None], *, exchange: str = ""
    ) -> None:
        """Publish, mandatory; `done` is called once with the broker's word (basic.ack, basic.return, basic.nack)."""
        if self.closed or not self.raw.is_open:
            done("lost")
            return
        if len(queue.encode(errors="replace")) > LONGEST_NAME:
            done("unroutable")
            return
        self._sent += 1
        message_id = None if properties.message_id is None else as_sent(properties.message_id)
        self._pending[self._sent] = _Pending(queue, message_id, done)
        self.raw.basic_publish(exchange, queue, body, properties, mandatory=True)

    def _returned(self, _: Any, method: Any, properties: Any, __: bytes) -> None:
        # A message without a queue is returned first and acknowledged then, so the return has to be remembered.
        # Where several look alike, all are taken for returned: twice is better than never.
        for pending in self._pending.values():
            if pending.queue == method.routing_key and pending.message_id == properties.message_id:
                pending.returned = True

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        tags = [method.delivery_tag]
        if method.multiple:
            tags = list(itertools.takewhile(lambda tag: tag <= method.delivery_tag, self._pending))
        verdict: Verdict = "stored" if isinstance(method, spec.Basic.Ack) else "refused"
        for tag in tags:
            pending = self._pending.pop(tag, None)
            if pending is not None:
                pending.done("unroutable" if pending.returned else verdict)

    def _ended(self, reason: BaseException) -> None:
        self.closed = _cause(reason) or "closed"
        self.code = reason.reply_code if isinstance(reason, pika.exceptions.ChannelClosed) else 0
        for answered in list(self._waiting):
            if not answered.done():
                answered.set_exception(BrokerUnavailable(self.closed))
        pending, self._pending = self._pending, {}
        self._on_close(self.closed)
        for publish in pending.values():
            publish.done("lost")

    def close(self) -> None:
        """Close it; deliveries that are not acknowledged go back to their queue."""
        if not self.closed and self.raw.is_open:
            self.raw.close()
