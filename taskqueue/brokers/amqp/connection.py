"""One connection to RabbitMQ, inside an asyncio loop, and its channels.

Stock pika but for two hooks, both on names that pika 1.2 to 1.4 share: all frames of one turn of the loop leave in
one write (pika writes each frame by itself, three for a message), and message properties are decoded by
`taskqueue.brokers.amqp.table`.  The place for further shortcuts of encoding and parsing is here.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Callable
from typing import Any, Literal

import pika
import pika.exceptions
from pika import frame, spec
from pika.adapters.asyncio_connection import AsyncioConnection

from taskqueue.brokers.amqp.table import Properties
from taskqueue.errors import BrokerUnavailable

__all__ = ["Channel", "Connection", "Verdict", "describe", "open_connection", "parameters"]

Verdict = Literal["stored", "unroutable", "refused", "lost"]
"""The broker's word on a message: safe; no such queue; nacked, try again; the channel is gone, nobody knows."""

JOIN_LIMIT = 1 << 18  # bytes that are joined at most before they are written


class Connection(AsyncioConnection):  # type: ignore[misc, unused-ignore]
    """pika's asyncio connection, with joined writes and a decoder that takes everything."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
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


async def open_connection(to: pika.URLParameters, on_close: Callable[[str], None]) -> Connection:
    """An open connection.  `on_close` is called once, with the reason, when it ends.

    Raises BrokerUnavailable, with one line that names the place and the cause.
    """
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    def on_open(connection: Any) -> None:
        if opened.cancelled():
            connection.close()
        else:
            opened.set_result(connection)

    def on_error(_: Any, error: BaseException) -> None:
        if not opened.done():
            opened.set_exception(BrokerUnavailable(f"{describe(to)}: {_cause(error)}"))

    connection = Connection(
        parameters=to,
        on_open_callback=on_open,
        on_open_error_callback=on_error,
        on_close_callback=lambda _, error: on_close(_cause(error)),
        custom_ioloop=asyncio.get_running_loop(),
    )
    connection.add_on_connection_blocked_callback(lambda *_: None)
    return await opened


def _cause(error: BaseException) -> str:
    """The innermost cause of a connection's failure, in words that say what to look at."""
    for _ in range(10):
        inner = [e for e in (*getattr(error, "exceptions", ()), *error.args) if isinstance(e, BaseException)]
        inner += [e for e in (error.__cause__,) if e is not None]
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
        case pika.exceptions.AMQPHeartbeatTimeout():
            return "no heartbeat from the broker"
        case pika.exceptions.StreamLostError():
            return "the broker closed the connection without a word"
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
    """One channel in confirm mode.  `closed` is the reason once it has ended; `on_close` is told it."""

    def __init__(self, raw: Any, on_close: Callable[[str], None]) -> None:
        self.raw = raw
        self.closed = ""
        self._on_close = on_close
        self._sent = 0
        self._pending: dict[int, _Pending] = {}
        self._waiting: set[asyncio.Future[Any]] = set()
        raw.add_on_close_callback(lambda _, reason: self._ended(_cause(reason)))
        raw.add_on_return_callback(self._returned)

    @staticmethod
    async def open(connection: Connection, on_close: Callable[[str], None] = lambda _: None) -> Channel:
        """A new channel.  Raises BrokerUnavailable where the connection ends meanwhile."""
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not connection.is_open:
            raise BrokerUnavailable("the connection is closed")
        raw = connection.channel(on_open_callback=lambda raw: None if opened.done() else opened.set_result(raw))
        channel = Channel(raw, on_close)
        await channel._answer(opened)
        await channel.call(lambda done: raw.confirm_delivery(channel._confirmed, callback=done))
        return channel

    async def call(self, request: Callable[[Callable[[Any], None]], Any]) -> Any:
        """Make a request of pika's that answers through a callback, and wait for the answer.

        Raises BrokerUnavailable, with the reason, where the channel ends instead.
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
            return await answered
        finally:
            self._waiting.discard(answered)

    def publish(
        self, queue: str, body: bytes, properties: Properties, done: Callable[[Verdict], None], *, exchange: str = ""
    ) -> None:
        """Publish, mandatory; `done` is called once with the broker's word (basic.ack, basic.return, basic.nack)."""
        if self.closed or not self.raw.is_open:
            done("lost")
            return
        self._sent += 1
        self._pending[self._sent] = _Pending(queue, properties.message_id, done)
        self.raw.basic_publish(exchange, queue, body, properties, mandatory=True)

    def _returned(self, _: Any, method: Any, properties: Any, __: bytes) -> None:
        # A message without a queue is returned first and acknowledged then, so the return has to be remembered.
        for pending in self._pending.values():
            if (
                not pending.returned
                and pending.queue == method.routing_key
                and pending.message_id == properties.message_id
            ):
                pending.returned = True
                return

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        tags = [method.delivery_tag]
        if method.multiple:
            tags = [tag for tag in self._pending if tag <= method.delivery_tag]
        verdict: Verdict = "stored" if isinstance(method, spec.Basic.Ack) else "refused"
        for tag in tags:
            pending = self._pending.pop(tag, None)
            if pending is not None:
                pending.done("unroutable" if pending.returned else verdict)

    def _ended(self, reason: str) -> None:
        self.closed = reason or "closed"
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
