"""What a program says of a piece of work, and whoever takes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, TypedDict, Unpack

from taskqueue import formats
from taskqueue.workitem import MAX_ID, Workitem, is_type

__all__ = ["Options", "Sender", "workitem"]


class Options(TypedDict, total=False):
    """What may be said of a workitem beside its type and body: see `workitem`."""

    reference: str
    id: str | None
    priority: int | None
    delay: float | timedelta | None
    due: float | datetime | None
    expiration: float | timedelta | None
    headers: Mapping[str, Any] | None
    content_type: str
    correlation_id: str
    reply_to: str


def workitem(
    type: str,
    body: Any,
    *,
    reference: str = "",
    id: str | None = None,
    priority: int | None = None,
    delay: float | timedelta | None = None,
    due: float | datetime | None = None,
    expiration: float | timedelta | None = None,
    headers: Mapping[str, Any] | None = None,
    content_type: str = "",
    correlation_id: str = "",
    reply_to: str = "",
) -> Workitem:
    """A workitem for the worker type `type`, as `send_many` takes them.

    body: bytes as they are, str as text, anything else as JSON; `content_type` says what bytes are.
    reference: the business object that it is about, such as `order:4711`.
    id: its id; made where it is missing.
    priority: 0 to 255, larger first.
    delay, due: when it may be started first: seconds from now on, or POSIX seconds; or a timedelta, a datetime with a
    time zone.  One of them.
    expiration: seconds from when it may be started first; then it is not worth doing any more: a dead letter.
    headers: what the handler finds in `self.workitem.headers`.
    correlation_id, reply_to: as docs/protocol.md has them.

    Raises ValueError, or FormatError for a body that is no JSON.
    """
    if not is_type(type):
        raise ValueError(
            f"type {type!r}: expected up to 128 letters, digits, '.', '_', '-', beginning with a letter or digit"
        )
    if priority is not None and not 0 <= priority <= 255:
        raise ValueError(f"priority {priority}: expected 0 to 255")
    if delay is not None and due is not None:
        raise ValueError("expected either delay or due")
    if not formats.is_reference(reference):
        raise ValueError(f"reference {reference[:80]!r}: expected up to {formats.MAX_REFERENCE} characters, no NUL")
    if not isinstance(id, str | None):
        raise TypeError(f"id {id!r}: expected text")
    for name, text in (("id", id or ""), ("correlation_id", correlation_id), ("reply_to", reply_to)):
        if len(text.encode()) > MAX_ID or "\0" in text:
            raise ValueError(f"{name}: expected up to {MAX_ID} bytes, no NUL")
    now = time.time()
    payload = formats.payload(body, "a body")
    return Workitem(
        body=payload.body,
        id=id or "",
        type=type,
        content_type=content_type or payload.content_type,
        headers=MappingProxyType(dict(headers or {})),
        correlation_id=correlation_id,
        reply_to=reply_to,
        expiration=_seconds("expiration", expiration),
        timestamp=int(now),
        priority=priority,
        reference=reference,
        due=_time(due) if delay is None else now + (_seconds("delay", delay) or 0.0),
    )


def _seconds(name: str, span: float | timedelta | None) -> float | None:
    seconds = span.total_seconds() if isinstance(span, timedelta) else span
    if seconds is not None and not 0 <= seconds < float("inf"):
        raise ValueError(f"{name} of {seconds} s: expected seconds from 0 on")
    return seconds


def _time(time: float | datetime | None) -> float | None:
    if not isinstance(time, datetime):
        return time
    if time.tzinfo is None:
        raise ValueError(f"due {time}: expected a time zone, such as datetime.now(timezone.utc) has one")
    return time.timestamp()


class Sender:
    """Takes workitems, by way of a broker's `send`."""

    workitem = staticmethod(workitem)

    def __init__(self, send: Callable[[Sequence[Workitem]], list[str]]) -> None:
        self._send = send

    def send(self, type: str, body: Any, **options: Unpack[Options]) -> str:
        """Send one workitem, straight to the queue of its type, and return its id.

        `options` are those of `workitem`: reference, id, priority, delay, due, expiration, headers,
        content_type, correlation_id, reply_to.

        Raises ValueError, FormatError, SendFailed; BrokerUnavailable where the broker can't be reached.
        """
        return self._send([workitem(type, body, **options)])[0]

    def send_many(self, workitems: Iterable[Workitem]) -> list[str]:
        """Send what `workitem` made, all or nothing where the broker has transactions; the ids, in order."""
        return self._send(list(workitems))
