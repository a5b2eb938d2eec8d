"""Sends workitems: a statement a call, in the caller's own thread."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import deque
from collections.abc import Sequence

import psycopg

from taskqueue.brokers.postgresql.line import Line
from taskqueue.brokers.postgresql.outgoing import Put, alone, puts
from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.rows import REPLIES, stored_id, unpack, usable
from taskqueue.brokers.postgresql.session import Translated
from taskqueue.clock import Clock
from taskqueue.errors import DuplicateTask, SendFailed, UnknownTask
from taskqueue.store import sender
from taskqueue.workitem import Workitem, worker_queue

__all__ = ["PostgreSQLProducer", "addressed"]

_PUT = "SELECT {}.put(%b, %s, %b, %s, %s, %b, %b, NULL, %b)"
_PUT_ONE = "SELECT {}.put_one(%s, %s, %s, %s, %s, %s, %s, %s, %s, %b, %s, %s, %s, %s)"
REPLIES_AT_ONCE = 1000  # that are taken


class PostgreSQLProducer:
    """The producer contract.  After a fork the child has connections of its own."""

    def __init__(self, place: Place, clock: Clock) -> None:
        self._place = place
        self._clock = clock
        self._sending = Line(place)
        self._waiting = Line(place)
        self._sender = ""
        self._known: set[tuple[object, object]] = set()  # queues and priorities that are in the database
        self._reply_queue = ""
        self._replies: deque[Workitem] = deque()

    def send(
        self, workitems: Sequence[Workitem], *, queue: str = "", reply: bool = False, unique: bool = False
    ) -> list[str]:
        named = [workitem.named() for workitem in workitems]
        if reply:
            reply_to = self._listen()
            named = [w._replace(reply_to=reply_to, correlation_id=w.correlation_id or w.id) for w in named]
        items = addressed(named, queue)
        if not items:
            return []
        try:
            self._put(items, _sole(named) if unique else None)
        except (UnknownTask, DuplicateTask) as error:  # it says the id as it is stored
            ids = (id for workitem in named for id in (workitem.id, *workitem.after))
            raise type(error)(next(id for id in ids if stored_id(id) == error.id)) from None
        return [workitem.id for workitem in named]

    def _put(self, items: Sequence[tuple[str, Workitem]], sole: list[str] | None) -> None:
        with self._sending.opened() as connection:
            if self._sending.fresh:
                self._sender, self._sending.fresh = sender(), False
                self._known.clear()
            now = self._clock.wall()
            if len(items) == 1 and not sole and (one := alone(*items[0], self._sender, now)) is not None:
                self._put_one(connection, one)
                return
            first, *others = puts(items, self._sender, now)
            if others:  # all of them, or none
                with Translated(self._place), connection.transaction():
                    self._put_all(connection, first, sole)
                    for put in others:
                        self._put_all(connection, put)
            else:
                self._put_all(connection, first, sole)

    def _put_one(self, connection: psycopg.Connection, one: tuple[object, ...]) -> None:
        queue, _, _, _, _, _, priority, *_ = one
        known = (queue, priority) in self._known
        self._sending.do(connection, _PUT_ONE, *one, known, self._place.notify)
        self._known.add((queue, priority))

    def _put_all(self, connection: psycopg.Connection, put: Put, sole: list[str] | None = None) -> None:
        told = put.told if self._place.notify else []
        self._sending.do(connection, _PUT, *put._replace(told=told), sole)

    def _listen(self) -> str:
        """The name of the queue of our replies, which is there then."""
        with self._waiting.opened() as connection:
            if self._waiting.fresh or not self._reply_queue:
                self._reply_queue = self._reply_queue or f"{REPLIES}{uuid.uuid4().hex}"
                self._waiting.call(connection, "await_replies(%s)", self._reply_queue)
                self._waiting.listen(connection)
                self._waiting.fresh = False
            return self._reply_queue

    def next_reply(self, *, timeout: float | None) -> Workitem | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            reply_to = self._listen()
            with self._waiting.opened() as connection:
                if not self._replies:
                    found = self._waiting.call(connection, "take_replies(%s, %s)", reply_to, REPLIES_AT_ONCE)
                    self._replies.extend(row.workitem for row in unpack(*found))
                if self._replies:
                    return self._replies.popleft()
            if not self._waiting.hear(connection, reply_to, deadline):
                return None

    def close(self) -> None:
        with contextlib.suppress(Exception):  # the database may be away
            if self._reply_queue and self._waiting.is_open:
                with self._waiting.opened() as connection:
                    self._waiting.call(connection, "forget_replies(%s)", self._reply_queue)
        self._sending.close()
        self._waiting.close()


def addressed(workitems: Sequence[Workitem], queue: str) -> list[tuple[str, Workitem]]:
    """Each with the queue that it goes to: `queue`, or that of its type.  Raises SendFailed."""
    items = [(queue or worker_queue(workitem.type), workitem) for workitem in workitems]
    bad = {name for name in {name for name, _ in items} if not usable(name)}
    if bad:
        refused = tuple(workitem.id for name, workitem in items if name in bad)
        raise SendFailed("expected names of queues with up to 255 characters, none of them NUL", refused)
    return items


def _sole(workitems: Sequence[Workitem]) -> list[str]:
    """The ids that no other work may have.  Raises DuplicateTask where two of these have the same."""
    found: dict[str, None] = {}
    for workitem in workitems:
        id = stored_id(workitem.id)
        if id in found:
            raise DuplicateTask(id)
        found[id] = None
    return list(found)
