"""What a worker process gets of a workitem, and of those that it depends on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from taskqueue.depending import Input
from taskqueue.lifecycle import State
from taskqueue.outcome import Payload
from taskqueue.workitem import Workitem

if TYPE_CHECKING:
    from taskqueue.broker import Delivery

__all__ = ["bodies", "described", "properties", "read", "weight"]


def weight(workitem: Workitem, inputs: Sequence[Input]) -> int:
    """Bytes in a frame, or somewhat fewer than that."""
    size = len(workitem.body)
    for one in inputs:
        told = len(one.id) + len(one.type) + len(one.error) + len(one.traceback) + len(one.task)
        size += 100 + 6 * told + (len(one.payload.body) if one.payload is not None else 0)  # 6: as \\u0000
    return size


def bodies(deliveries: Sequence[Delivery]) -> Iterator[bytes]:
    """What follows a frame of work: the bodies, each with the results of its inputs behind it."""
    for delivery in deliveries:
        yield delivery.workitem.body
        for one in delivery.inputs:
            if one.payload is not None:
                yield one.payload.body


def properties(delivery: Delivery) -> dict[str, Any]:
    """What the frame says of a workitem, but for the size of its body: what is not the usual."""
    workitem = delivery.workitem
    found: dict[str, Any] = {"id": workitem.id, "content_type": workitem.content_type}
    if workitem.attempt != 1:
        found["attempt"] = workitem.attempt
    if workitem.reference:
        found["reference"] = workitem.reference
    if workitem.headers:
        found["headers"] = workitem.headers
    if workitem.reply_to:
        found["reply_to"] = workitem.reply_to
    if workitem.correlation_id:
        found["correlation_id"] = workitem.correlation_id
    if workitem.content_encoding:
        found["content_encoding"] = workitem.content_encoding
    if workitem.timestamp:
        found["timestamp"] = workitem.timestamp
    if workitem.priority:
        found["priority"] = workitem.priority
    if delivery.inputs:
        found["inputs"] = described(delivery.inputs)
    return found


def described(inputs: Sequence[Input]) -> list[tuple[Any, ...]]:
    """For JSON: each with the content type and size of its result, which lies behind that of the one before it."""
    return [
        (
            one.id,
            one.type,
            one.state,
            None if one.payload is None else one.payload.content_type,
            0 if one.payload is None else len(one.payload.body),
            one.error,
            one.traceback,
            one.task,
        )
        for one in inputs
    ]


def read(descriptions: Sequence[Sequence[Any]], results: bytes, offset: int) -> Iterator[Input]:
    """The inputs again; `results` has their results from `offset` on."""
    for id, type, state, content_type, size, error, traceback, task in descriptions:
        payload = None if content_type is None else Payload(results[offset : offset + size], content_type)
        offset += size
        yield Input(id, type, State(state), payload, error, traceback, task)
