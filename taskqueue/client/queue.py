"""A program's end of taskqueue."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from taskqueue import broker, formats
from taskqueue.client.sending import Sender
from taskqueue.errors import ResultTimeout, TaskExpired, TaskFailure, Unsupported
from taskqueue.lifecycle import ENDED, State
from taskqueue.record import Record
from taskqueue.store import Store

__all__ = ["Queue", "connect"]


def connect(url: str) -> Queue:
    """What a program sends by and asks, over the broker that `url` names.  Nothing is connected yet.

    Raises BrokerError for a URL that there is no backend, or no driver, for.
    """
    return Queue(broker.connect(url))


class Queue(Sender):
    """Sends workitems, and says what became of them; safe from several threads, and after a fork.

    Any method may raise BrokerUnavailable.  On RabbitMQ, which keeps no record, all but sending is Unsupported.
    """

    def __init__(self, broker: broker.Broker) -> None:
        self._broker = broker
        self._producer = broker.producer()
        self._opening = threading.Lock()
        self._opened: Store | None = None
        super().__init__(self._producer.send)

    def using(self, connection: object) -> Sender:
        """What sends in the transaction of `connection`: with it, or not at all.

        connection: one to the same database, or SQLite file: of psycopg or sqlite3, SQLAlchemy's Connection or Session,
        Django's connection.

        Raises Unsupported where the broker is in no database; BrokerError where the connection leads elsewhere, or
        each of its statements is a transaction of its own.  What its driver raises goes through as it is.
        """
        return Sender(self._broker.using(connection).send)

    def record(self, id: str) -> Record:
        """All that is known of a workitem.  Raises UnknownTask for an id that never was, or is not kept any more."""
        return self._store.record(id)

    def status(self, id: str) -> State:
        """Where a workitem stands.  Raises UnknownTask."""
        return self.record(id).state

    def result(self, id: str, *, timeout: float | None = None) -> Any:
        """Wait until a workitem has ended, up to `timeout` seconds (None: for ever), and return what its handler did.

        Raises ResultTimeout; TaskFailure where it ended otherwise; TaskExpired where no result is kept; UnknownTask.
        """
        record = self._store.wait(id, timeout=timeout)
        if record.state not in ENDED:
            raise ResultTimeout(id, timeout or 0.0)
        if record.state != State.SUCCEEDED:
            last = record.attempts[-1] if record.attempts else None
            error, traceback = (last.error, last.traceback) if last is not None else ("", "")
            if last is not None and last.outcome != "failed":
                error = f"{last.outcome}: {error}" if error else last.outcome
            raise TaskFailure(id, record.type, str(record.state), error, traceback)
        if record.result is None:
            raise TaskExpired(id, record.type, str(record.state), "no result is kept")
        return formats.value(record.result.body, record.result.content_type)

    def history(
        self, *, reference: str = "", type: str = "", states: Sequence[State] = (), limit: int = 100
    ) -> list[Record]:
        """Workitems, the latest that was sent first: those of a reference, a type, in one of some states.

        Empty: of any.
        """
        return self._store.history(reference=reference, type=type, states=states, limit=limit)

    def cancel(self, id: str) -> bool:
        """Have a workitem end for good, also while it runs; False where it has ended.

        What runs goes on for a moment: `status` says when it has ended, mostly `cancelled`.  Raises UnknownTask.
        """
        return self._store.cancel(id)

    @property
    def _store(self) -> Store:
        with self._opening:
            if self._opened is None:
                try:
                    self._opened = self._broker.store()
                except Unsupported as reason:
                    raise Unsupported(f"sending is all that this broker does: {reason}") from None
            return self._opened

    def close(self) -> None:
        """Let go of the broker.  May be called twice; what is used again is connected again."""
        self._producer.close()
        with self._opening:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def __enter__(self) -> Queue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
