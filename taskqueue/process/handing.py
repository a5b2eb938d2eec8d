"""What a worker process gets of those that its workitem depends on: beside its properties, and behind its body."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from taskqueue.depending import Input
from taskqueue.lifecycle import State
from taskqueue.outcome import Payload
from taskqueue.workitem import Workitem

__all__ = ["described", "read", "weight"]


def weight(workitem: Workitem, inputs: Sequence[Input]) -> int:
    """Bytes in a frame, or somewhat fewer than that."""
    size = len(workitem.body)
    for one in inputs:
        told = len(one.id) + len(one.type) + len(one.error) + len(one.traceback)
        size += 100 + 6 * told + (len(one.payload.body) if one.payload is not None else 0)  # 6: as \\u0000
    return size


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
        )
        for one in inputs
    ]


def read(descriptions: Sequence[Sequence[Any]], results: bytes, offset: int) -> Iterator[Input]:
    """The inputs again; `results` has their results from `offset` on."""
    for id, type, state, content_type, size, error, traceback in descriptions:
        payload = None if content_type is None else Payload(results[offset : offset + size], content_type)
        offset += size
        yield Input(id, type, State(state), payload, error, traceback)
