"""Answers questions about the work in the database, live or ended."""

from __future__ import annotations

import time
from collections.abc import Sequence

from taskqueue.brokers.postgresql.history import record
from taskqueue.brokers.postgresql.line import Line
from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.rows import ENDED as HAS_ENDED
from taskqueue.brokers.postgresql.rows import clean, stored_id
from taskqueue.errors import UnknownTask
from taskqueue.lifecycle import ENDED, State
from taskqueue.record import Record

__all__ = ["PostgreSQLStore"]


class PostgreSQLStore:
    """The contract: one connection for questions, and one for those who wait."""

    def __init__(self, place: Place) -> None:
        self._asking = Line(place)
        self._place = place

    def record(self, id: str) -> Record:
        with self._asking.opened() as connection:
            row = self._asking.call(connection, "record(%s)", stored_id(id))
        if not row:
            raise UnknownTask(id)
        return record(row)

    def history(
        self, *, reference: str = "", type: str = "", states: Sequence[State] = (), limit: int = 100
    ) -> list[Record]:
        asked = stored_id(reference) or None, clean(type) or None, list(map(str, states)) or None, limit
        with self._asking.opened() as connection:
            rows = self._asking.rows(connection, "records(%s, %s, %s::text[], %s)", *asked)
        return [record(row) for row in rows]

    def wait(self, id: str, *, timeout: float | None) -> Record:
        deadline = None if timeout is None else time.monotonic() + timeout
        line = Line(self._place)  # of its own: others go on to ask meanwhile
        try:
            while True:
                with line.opened() as connection:
                    if line.fresh:
                        line.listen(connection)
                        line.fresh = False
                    found = self.record(id)
                    if found.state in ENDED or not line.hear(connection, HAS_ENDED, deadline):
                        return found
        finally:
            line.close()

    def cancel(self, id: str) -> bool:
        self.record(id)
        with self._asking.opened() as connection:
            (done,) = self._asking.call(connection, "cancel(%s)", stored_id(id))
        return bool(done)

    def close(self) -> None:
        self._asking.close()
