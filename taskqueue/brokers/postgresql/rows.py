"""Workitems as rows of the database, and what its columns can have.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from taskqueue.broker import Input
from taskqueue.brokers.postgresql.history import input_of
from taskqueue.properties import from_text
from taskqueue.workitem import Workitem

__all__ = [
    "BETWEEN",
    "ENDED",
    "MAX_INDEXED",
    "MAX_NAME",
    "MAX_SECONDS",
    "REPLIES",
    "Row",
    "array",
    "clean",
    "delay",
    "is_exact",
    "lifetime",
    "priority",
    "stored_id",
    "unpack",
    "usable",
]

REPLIES = "taskqueue.reply."
"""What the names of reply queues begin with; they exist as long as their client."""

ENDED = "taskqueue.ended"
"""What is notified of when records of workitems have ended; no queue has this name."""

MAX_NAME = 255
"""Characters in the name of a queue."""
MAX_INDEXED = 500
"""Characters of what is indexed: an entry of a btree has room for 2,700 bytes."""

MAX_SECONDS = 100 * 365 * 86400.0
"""The longest time that anything waits, lives or is kept for; a century is for ever."""

BETWEEN = "\x1f"
"""What is between the values of a column, where the database's functions take one as one text."""


class Row(NamedTuple):
    """A workitem in the database: its number, the place of its row, and what goes on from row to row while it lives.

    sent: POSIX seconds.  story: see `taskqueue.story`.  number: of its inputs; None: it depends on nothing.
    """

    seq: int
    place: str
    sent: float
    workitem: Workitem
    sender: str = ""
    story: str = ""
    number: int | None = None
    inputs: tuple[Input, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of its inputs."""
        return sum(len(each.payload.body) for each in self.inputs if each.payload is not None)

    @property
    def stored_id(self) -> str:
        """The workitem's id, as its column has it."""
        return stored_id(self.workitem.id)


def is_exact(text: str) -> bool:
    """Whether an id or reference is stored as it is."""
    return stored_id(text) == text


def stored_id(id: str) -> str:
    """An id as its column has it."""
    return clean(id)[:MAX_INDEXED]


def usable(queue: str) -> bool:
    """Whether a queue may be named so."""
    return 0 < len(queue) <= MAX_NAME and clean(queue) == queue


def priority(workitem: Workitem) -> int:
    """As the column has it."""
    return max(-32768, min(workitem.priority or 0, 32767))


def delay(workitem: Workitem, now: float) -> float | None:
    """Seconds until it is due; None: it is."""
    return min(workitem.due - now, MAX_SECONDS) if workitem.due is not None and workitem.due > now else None


def lifetime(workitem: Workitem) -> float | None:
    """Seconds from when it is due until it expires; None: it does not."""
    return None if workitem.expiration is None else max(0.0, min(workitem.expiration, MAX_SECONDS))


def array(numbers: Iterable[int]) -> str:
    """Numbers as PostgreSQL writes an array of them."""
    return f"{{{','.join(map(str, numbers))}}}"


def unpack(items: Sequence[Sequence[Any]] | None, bodies: bytes | None) -> list[Row]:
    """Workitems as the database's functions return them: what has some life behind it says more."""
    found: list[Row] = []
    at = 0
    for item in items or ():
        seq, place, sent, size, id, type, reference, content_type, sender, properties, *past = item
        body = (bodies or b"")[at : at + size]
        at += size
        if not properties and not past:  # as often, in half of the time
            workitem = Workitem(body, id, type, content_type, reference=reference or "")
            found.append(Row(seq, place, sent, workitem, sender))
            continue
        more = {"id": id, "type": type, "reference": reference or "", "content_type": content_type}
        more |= from_text(properties)
        late, attempt, crashes, failures, story, number, needed = past or ("", 1, 0, 0, "", None, None)
        if late:
            more["headers"] = {**more.get("headers", {}), "x-death": [{"reason": "expired", "queue": late}]}
            more["expiration"] = None
        inputs = []
        for each in (each for each in needed or () if len(each) > 1):
            length = each[5] or 0
            inputs.append(input_of(each, (bodies or b"")[at : at + length]))
            at += length
        after = tuple(each[0] for each in needed or ())
        workitem = Workitem(body, attempt=attempt, crashes=crashes, failures=failures, **{"after": after, **more})
        found.append(Row(seq, place, sent, workitem, sender, story, number, tuple(inputs)))
    return found


def clean(text: str) -> str:
    """`text` as PostgreSQL can store it: it knows neither NUL nor half of a character."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
