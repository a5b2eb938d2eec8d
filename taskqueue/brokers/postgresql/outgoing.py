"""What is sent, as the database's functions take it.  Pure.

Nearly always columns can tell all of it.  For what has more to say there is `Parcel`, in which a workitem is an object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, TypeAlias

from taskqueue.brokers.postgresql.parcel import Parcel
from taskqueue.brokers.postgresql.rows import (
    BETWEEN,
    clean,
    delay,
    is_exact,
    lifetime,
    priority,
    stored_id,
    usable,
)
from taskqueue.properties import to_text
from taskqueue.record import is_recorded
from taskqueue.workitem import Workitem

__all__ = ["Put", "alone", "puts"]

CHUNK = 1000  # workitems that go over in one statement
CHUNK_BYTES = 64 * 1024 * 1024

Item: TypeAlias = tuple[str, Workitem]
"""A workitem, and the queue that it goes to."""

_Row: TypeAlias = tuple[str, str, str, str, str, str, int, str, str | None, bytes, float | None, float | None]


class Put(NamedTuple):
    """The arguments of the database's function `put`, up to `asked`: either columns or objects."""

    columns: list[str] | None
    objects: str | None
    bodies: bytes | None
    lanes: str
    sender: str
    told: list[str]
    asked: list[str] | None = None


def alone(queue: str, workitem: Workitem, sender: str, now: float) -> _Row | None:
    """A workitem as the database's function `put_one` takes it, up to `lifetime`.

    None: there is more to say of it than that function knows.
    """
    _, id, type, content_type, *_ = workitem
    lived = workitem.attempt != 1 or workitem.crashes or workitem.failures
    if lived or workitem.after or not (_are_exact(queue, type, content_type) and is_exact(id)):
        return None
    if workitem.reference and not is_exact(workitem.reference):
        return None
    return (
        queue, id, type, workitem.task, content_type, to_text(workitem), priority(workitem), sender,
        workitem.reference or None, workitem.body, delay(workitem, now), lifetime(workitem),
    )  # fmt: skip


def puts(items: Sequence[Item], sender: str, now: float) -> Iterator[Put]:
    """The calls that send them."""
    depend = any(workitem.after for _, workitem in items)
    sent: set[str] = set()
    for chunk in _chunks(items):
        rows = None if depend else _rows(chunk, sender, now)
        yield (rows and _in_columns(rows, sender)) or _in_objects(chunk, sender, now, sent)


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    size = 0
    for item in items:
        _, workitem = item
        more = len(workitem.body) + (sum(map(len, workitem.after)) if workitem.after else 0)
        if len(chunk) == CHUNK or (chunk and size + more > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += more
    if chunk:
        yield chunk


def _rows(items: Iterable[Item], sender: str, now: float) -> list[_Row] | None:
    """All of them; None where there is more to say of some."""
    rows = []
    for queue, workitem in items:
        row = alone(queue, workitem, sender, now)
        if row is None:
            return None
        rows.append(row)
    return rows


def _in_columns(rows: Sequence[_Row], sender: str) -> Put | None:
    """None: there is a value that a column can't have."""
    queues, ids, types, tasks, content_types, properties, priorities, _, references, bodies, delays, lifetimes = zip(
        *rows, strict=True
    )
    sizes = [*map(len, bodies)]
    columns = [
        BETWEEN.join(values)
        for values in (
            queues, ids, types, tasks, content_types, properties, map(str, priorities), map(_text, references),
            map(_text, delays), map(_text, lifetimes), map(str, accumulate(sizes[:-1], initial=0)), map(str, sizes),
        )
    ]  # fmt: skip
    if any(column.count(BETWEEN) >= len(rows) for column in columns):
        return None
    lanes = [{"queue": queue, "priority": number} for queue, number in set(zip(queues, priorities, strict=True))]
    return Put(columns, None, b"".join(bodies), json.dumps(lanes), sender, sorted(set(queues)))


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _in_objects(chunk: Iterable[Item], sender: str, now: float, sent: set[str]) -> Put:
    """sent: the ids that came before these in the same call; they are added."""
    parcel = Parcel(now)
    for queue, workitem in chunk:
        item = parcel.send(queue, workitem)
        if workitem.after and is_recorded(queue):
            parcel.bind(item, workitem, sent)
        sent.add(stored_id(workitem.id))
    _, _, objects, bodies, _ = parcel.texts()
    asked = None if parcel.asked is None else list(parcel.asked)
    return Put(None, objects, bodies, parcel.lanes(), sender, sorted(parcel.told), asked)


@lru_cache(maxsize=1024)
def _are_exact(queue: str, type: str, content_type: str) -> bool:
    """Whether what many have in common is stored as it is."""
    return usable(queue) and clean(type) == type and clean(content_type) == content_type
