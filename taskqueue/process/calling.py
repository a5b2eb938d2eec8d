"""Calls a handler with one workitem, and puts what became of it into words for the carrier."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from taskqueue import formats
from taskqueue.errors import FormatError, Unsupported
from taskqueue.formats import Formats
from taskqueue.outcome import MAX_ERROR, MAX_TRACEBACK, Payload
from taskqueue.worker import Blocked, Failure, Reject, Result, Retry
from taskqueue.workitem import Workitem, worker_queue

__all__ = ["LONGEST_DELAY", "Answer", "Handle", "call", "caller", "check_size", "done", "is_older", "raised"]

Handle = Callable[[Workitem], "Answer"]

LONGEST_DELAY = 10 * 365 * 86400.0  # seconds, for what a handler asks for


class Answer(NamedTuple):
    """What a worker process says of a workitem: JSON, and the bytes of its result.

    meta: one of
        "done", content type or None for no result, [[queue, content type, body as text of latin-1], ...]
        the same, and [id, ...] of those whose values belong into the result
        "failed", error, traceback, content type, how many retries it has in all or None for those of its group
        "retry", seconds, reason
        "blocked", [id, ...]
        "reject", reason
        "malformed", detail
    """

    meta: tuple[Any, ...]
    payload: bytes = b""


def caller(worker: Any, max_result: int, known: Formats = formats.ONLY_BUILTIN) -> Handle:
    """How `worker` is called: `handle_task(body)`, or the older form with four arguments.

    max_result: bytes of a result, or of what it publishes; the broker takes no more.
    known: the formats by which `body` is read.
    """
    if is_older(worker.handle_task):
        return lambda workitem: _call_older(worker.handle_task, workitem, max_result)
    return lambda workitem: _call(worker.handle_task, workitem, max_result, known)


def is_older(handle_task: Callable[..., Any]) -> bool:
    """Whether it has the older form's four arguments."""
    positional = [
        parameter
        for parameter in inspect.signature(handle_task).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    return len(positional) == 4


def _call(handle: Callable[[Any], Any], workitem: Workitem, max_result: int, known: Formats) -> Answer:
    try:
        body = formats.value(workitem.body, workitem.content_type, known)
    except FormatError as error:
        return Answer(("malformed", error.detail))
    return done(handle(body), max_result)


def call(handle: Handle, workitem: Workitem, max_result: int, known: Formats = formats.ONLY_BUILTIN) -> Answer:
    """Call it; every exception becomes an answer."""
    try:
        return handle(workitem)
    except BaseException as error:  # SystemExit and KeyboardInterrupt of a handler are its failures, too
        return raised(error, workitem, max_result, known)


def raised(error: BaseException, workitem: Workitem, max_result: int, known: Formats) -> Answer:
    """The answer for what a handler raised."""
    try:
        if isinstance(error, Retry):
            seconds = max(0.0, float(error.after))
            if not seconds <= LONGEST_DELAY:
                raise ValueError(f"Retry: {error.after!r} is no number of seconds to wait") from None
            return Answer(("retry", seconds, str(error)[:MAX_ERROR]))
        if isinstance(error, Blocked):
            return Answer(("blocked", error.ids))
        if isinstance(error, Reject):
            return Answer(("reject", str(error.reason)[:MAX_ERROR]))
    except BaseException as wrong:  # what it asks for makes no sense
        error = wrong
    retries: int | None = None
    if isinstance(error, Failure):
        retries, error = error.retries, error.error
    text = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
    summary = "".join(traceback.format_exception_only(error)).strip()[:MAX_ERROR]
    result = formats.failed_result(workitem, summary, text, known)
    if len(result.body) > max_result:
        result = Payload()
    return Answer(("failed", summary, text, result.content_type, retries), result.body)


def done(value: Any, max_result: int, sends: tuple[Any, ...] = (), *, none_is_a_result: bool = True) -> Answer:
    """The answer for what a handler returned, and published."""
    if value is None and not none_is_a_result:
        return Answer(("done", None, sends))
    promises = value.promises if isinstance(value, Result) else ()
    result: Payload = value.payload if isinstance(value, Result) else formats.payload(value)
    check_size("the result", result.body, max_result)
    meta = ("done", result.content_type, sends)
    return Answer((*meta, promises) if promises else meta, result.body)


def check_size(what: str, body: bytes, limit: int) -> None:
    """Raises ValueError for what no broker would take."""
    if len(body) > limit:
        raise ValueError(f"{what} has {len(body)} bytes, more than max_body ({limit})")


class OlderChannel:
    """What the older form of `handle_task` gets as its channel.

    It has no connection: what is published is stored together with the acknowledgement, once the handler returned.
    """

    def __init__(self, tag: int, max_body: int) -> None:
        self._tag = tag
        self._max_body = max_body
        self.ending: Answer | None = None
        self.sends: list[Any] = []

    def basic_ack(self, delivery_tag: int = 0, multiple: bool = False) -> None:
        """This workitem is done."""
        self._end(delivery_tag, Answer(("done", None, ())))

    def basic_nack(self, delivery_tag: int = 0, multiple: bool = False, requeue: bool = True) -> None:
        """Try this workitem again in a second, or give it up."""
        self._end(delivery_tag, Answer(("retry", 1.0, "requeued") if requeue else ("reject", "rejected by its worker")))

    def basic_reject(self, delivery_tag: int = 0, requeue: bool = True) -> None:
        """Try this workitem again in a second, or give it up."""
        self.basic_nack(delivery_tag, requeue=requeue)

    def basic_publish(
        self, exchange: str, routing_key: str, body: bytes | str, properties: Any = None, mandatory: bool = False
    ) -> None:
        """Publish to the queue `routing_key`, through the default exchange."""
        if exchange:
            raise Unsupported(f"exchange {exchange!r}: a worker publishes to queues, through the default exchange ''")
        raw = body.encode() if isinstance(body, str) else bytes(body)
        check_size("what is published", raw, self._max_body)
        if properties is not None:
            properties.encode()  # raises what a real channel would raise
        given = {
            name: value
            for name in ("content_type", "content_encoding", "correlation_id", "reply_to", "priority", "timestamp")
            if (value := getattr(properties, name, None)) is not None
        }
        given["headers"] = dict(getattr(properties, "headers", None) or {})
        given["id"] = getattr(properties, "message_id", None) or ""
        self.sends.append((str(routing_key), given, raw.decode("latin-1")))

    def _end(self, tag: int, ending: Answer) -> None:
        if tag not in (0, self._tag):
            raise ValueError(f"unknown delivery tag {tag}")
        self.ending = self.ending or ending


def _call_older(handle: Callable[..., Any], workitem: Workitem, max_result: int) -> Answer:
    from pika.spec import Basic, BasicProperties  # the older form is all that needs it here

    channel = OlderChannel(1, max_result)
    queue = worker_queue(workitem.type)
    method = Basic.Deliver(
        consumer_tag="taskqueue", delivery_tag=1, redelivered=workitem.attempt > 1, exchange="", routing_key=queue
    )
    properties = BasicProperties(
        content_type=workitem.content_type or None,
        content_encoding=workitem.content_encoding or None,
        headers={**workitem.headers, "worker_type": workitem.type},
        correlation_id=workitem.correlation_id or None,
        reply_to=workitem.reply_to or None,
        message_id=workitem.id,
        delivery_mode=2,
        timestamp=workitem.timestamp,
        priority=workitem.priority,
    )
    value = handle(channel, method, properties, workitem.body)
    if channel.ending is None:
        raise FormatError("handle_task returned without having acknowledged")
    if channel.ending.meta[0] != "done":
        return channel.ending
    return done(value, max_result, tuple(channel.sends), none_is_a_result=False)
