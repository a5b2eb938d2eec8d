"""A workitem as an AMQP message, and back.  The wire of docs/protocol.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from taskqueue.brokers.amqp.table import Properties, as_sent, encode_table
from taskqueue.workitem import DROPPED, FORMAT_VERSION, INCOMING, Workitem, is_type

__all__ = ["from_wire", "to_wire"]

HEADERS_LIMIT = 100_000
"""Bytes of all headers of a message.  They must fit into one frame, of 128 KiB unless less was negotiated."""
MENTIONED = 20
"""Names of dropped headers that the header `headers_dropped` has at most."""

_LONGEST_EXPIRATION = (1 << 32) - 1  # ms; a broker ends the channel for more
_REPLY_PLACEHOLDER = "amq.rabbitmq.reply-to"  # as a reply_to it only means something on its client's own channel

_COUNTERS = (
    "taskqueue_attempt", "taskqueue_crashes", "taskqueue_failures", "taskqueue_due", "taskqueue_expiration"
)  # fmt: skip
_OURS = frozenset((*_COUNTERS, "taskqueue_version", "worker_type"))
# CC and BCC make a broker route copies elsewhere (a message with CC: taskqueue would go round for ever); with the
# x-death headers of an earlier life, a broker takes a retry for a routing cycle, and drops it.
_NEVER_SENT = frozenset(("CC", "BCC", "x-delivery-count", "x-death"))


def to_wire(workitem: Workitem, *, delayed: bool = False) -> Properties:
    """The properties of the message for `workitem`; the body is its body.

    delayed: it goes to a delay queue, where a property `expiration` would end the delay, and be taken away then.
    """
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
    expiration = None if workitem.expiration is None else _milliseconds(workitem.expiration)
    if delayed and expiration is not None:
        headers["taskqueue_expiration"] = expiration
    properties = Properties(
        content_type=workitem.content_type or None,
        content_encoding=workitem.content_encoding or None,
        delivery_mode=2,
        priority=None if workitem.priority is None else min(255, max(0, workitem.priority)),
        correlation_id=workitem.correlation_id or None,
        reply_to=workitem.reply_to if workitem.reply_to not in ("", _REPLY_PLACEHOLDER) else None,
        expiration=None if delayed else expiration,
        message_id=workitem.id or None,
        timestamp=workitem.timestamp if 0 <= (workitem.timestamp or 0) < 1 << 64 else None,
        type=workitem.others.get("type"),
        app_id=workitem.others.get("app_id"),
        cluster_id=workitem.others.get("cluster_id"),
    )
    if headers:
        properties.headers = _fitting(headers)
    return properties


def _milliseconds(expiration: float) -> str:
    return str(round(min(max(0.0, expiration * 1000), _LONGEST_EXPIRATION)))


def _fitting(headers: dict[str, Any]) -> bytes:
    """`headers` encoded, without the largest ones where they are too long together."""
    encoded = encode_table(headers)
    if len(encoded) <= HEADERS_LIMIT:
        return encoded
    sizes = {name: len(encode_table({name: value})) for name, value in headers.items()}
    kept, left = dict(headers), sum(sizes.values())
    dropped: list[str] = []
    for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
        if left <= HEADERS_LIMIT - MENTIONED * 300:
            break
        if name not in _OURS or sizes[name] > 300:
            del kept[name]
            left -= sizes[name]
            dropped.append(as_sent(name))
    return encode_table({**kept, "headers_dropped": dropped[:MENTIONED]})


def from_wire(properties: Any, body: bytes, queue: str) -> Workitem:
    """The workitem of a message that came from `queue`.  Takes whatever a producer can send."""
    headers: dict[str, Any] = dict(properties.headers or {})
    for name in ("x-delivery-count", "x-acquired-count"):  # the broker's own
        headers.pop(name, None)
    counters = [headers.pop(name, None) for name in _COUNTERS]
    reference = headers.pop("reference", "")
    if queue == INCOMING:
        type = ""  # the dispatcher finds it; a header worker_type is one of the ways
    else:
        claimed = headers.get("worker_type")
        type = queue.removeprefix("worker_") if queue.startswith("worker_") else ""
        if type or (isinstance(claimed, str) and is_type(claimed)):
            type = type or str(claimed)
            headers.pop("worker_type", None)
        if headers.get("taskqueue_version") == FORMAT_VERSION:
            del headers["taskqueue_version"]  # written anew with every message
    if properties.user_id is not None:  # a broker refuses a user id that is not the connection's
        headers["user_id"] = properties.user_id
    delayed = counters[4] if isinstance(counters[4], str) else None
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
        expiration=_expiration(properties.expiration or delayed),
        timestamp=properties.timestamp,
        priority=properties.priority,
        reference=reference if isinstance(reference, str) else str(reference),
        attempt=max(1, attempt),
        crashes=crashes,
        failures=failures,
        due=None if queue in (INCOMING, DROPPED) else _due(counters[3]),  # a producer's, who could hide it for ever
        others=others,
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1_000_000 else 0


def _due(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _expiration(text: str | None) -> float | None:
    return int(text) / 1000 if text and text.isascii() and text.isdigit() and len(text) < 16 else None
