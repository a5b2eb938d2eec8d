"""A workitem as an AMQP message, and back.  The wire of docs/protocol.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from taskqueue.brokers.amqp.table import Properties, encode_table
from taskqueue.workitem import FORMAT_VERSION, INCOMING, Workitem

__all__ = ["from_wire", "to_wire"]

HEADERS_LIMIT = 100_000
"""Bytes of all headers of a message.  They must fit into one frame, of 128 KiB unless less was negotiated."""

_COUNTERS = ("taskqueue_attempt", "taskqueue_crashes", "taskqueue_failures", "taskqueue_due")
_OURS = frozenset((*_COUNTERS, "taskqueue_version", "worker_type", "reference"))
# CC and BCC make a broker route copies elsewhere (a message with CC: taskqueue would go round for ever); with the
# x-death headers of an earlier life, a broker takes a retry for a routing cycle, and drops it.
_NEVER_SENT = frozenset(("CC", "BCC", "x-delivery-count", "x-death"))


def to_wire(workitem: Workitem) -> Properties:
    """The properties of the message for `workitem`; the body is its body."""
    headers: dict[str, Any] = {
        name: value
        for name, value in workitem.headers.items()
        if name not in _NEVER_SENT and not name.startswith(("x-first-death-", "x-last-death-"))
    }
    if workitem.type:
        headers["worker_type"] = workitem.type
        headers["taskqueue_version"] = FORMAT_VERSION
    if workitem.reference:
        headers["reference"] = workitem.reference
    if workitem.attempt != 1:
        headers["taskqueue_attempt"] = workitem.attempt
    if workitem.crashes:
        headers["taskqueue_crashes"] = workitem.crashes
    if workitem.failures:
        headers["taskqueue_failures"] = workitem.failures
    if workitem.due is not None:
        headers["taskqueue_due"] = workitem.due
    properties = Properties(
        content_type=workitem.content_type or None,
        content_encoding=workitem.content_encoding or None,
        delivery_mode=2,
        priority=workitem.priority,
        correlation_id=workitem.correlation_id or None,
        reply_to=workitem.reply_to or None,
        expiration=None if workitem.expiration is None else str(max(0, int(workitem.expiration * 1000))),
        message_id=workitem.id or None,
        timestamp=workitem.timestamp,
        type=workitem.others.get("type"),
        app_id=workitem.others.get("app_id"),
        cluster_id=workitem.others.get("cluster_id"),
    )
    if headers:
        properties.headers = _fitting(headers)
    return properties


def _fitting(headers: dict[str, Any]) -> bytes:
    encoded = encode_table(headers)
    dropped: list[str] = []
    while len(encoded) > HEADERS_LIMIT:
        largest = max(
            headers.keys() - _OURS - {"headers_dropped"}, key=lambda name: len(encode_table({"": headers[name]}))
        )
        del headers[largest]
        dropped = [*dropped, largest][:20]
        headers["headers_dropped"] = dropped
        encoded = encode_table(headers)
    return encoded


def from_wire(properties: Any, body: bytes, queue: str) -> Workitem:
    """The workitem of a message that came from `queue`.  Takes whatever a producer can send."""
    headers: dict[str, Any] = dict(properties.headers or {})
    counters = [headers.pop(name, None) for name in _COUNTERS]
    reference = headers.pop("reference", "")
    if queue == INCOMING:
        type = ""  # the dispatcher finds it; a header worker_type is one of the ways
    else:
        claimed = headers.pop("worker_type", "")
        type = queue.removeprefix("worker_") if queue.startswith("worker_") else str(claimed)
    if properties.user_id is not None:  # a broker refuses a user id that is not the connection's
        headers["user_id"] = properties.user_id
    others: Mapping[str, str] = {
        name: value for name in ("type", "app_id", "cluster_id") if (value := getattr(properties, name)) is not None
    }
    attempt, crashes, failures = (_count(value) for value in counters[:3])
    return Workitem(
        body=body,
        id=properties.message_id or "",
        type=type,
        content_type=properties.content_type or "",
        content_encoding=properties.content_encoding or "",
        headers=headers,
        correlation_id=properties.correlation_id or "",
        reply_to=properties.reply_to or "",
        expiration=_expiration(properties.expiration),
        timestamp=properties.timestamp,
        priority=properties.priority,
        reference=reference if isinstance(reference, str) else str(reference),
        attempt=max(1, attempt),
        crashes=crashes,
        failures=failures,
        due=_due(counters[3]),
        others=others,
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1_000_000 else 0


def _due(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _expiration(text: str | None) -> float | None:
    return int(text) / 1000 if text and text.isascii() and text.isdigit() else None
