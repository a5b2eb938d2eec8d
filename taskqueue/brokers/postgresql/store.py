"""Answers questions about the work in the database, live or ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from taskqueue.broker import Options
from taskqueue.brokers.postgresql.history import record
from taskqueue.brokers.postgresql.keeper import Keeper
from taskqueue.brokers.postgresql.line import Line
from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.rows import ENDED as HAS_ENDED
from taskqueue.brokers.postgresql.rows import clean, stored_id
from taskqueue.errors import UnknownTask
from taskqueue.lifecycle import ENDED, State
from taskqueue.record import Record
from taskqueue.statistics import Tally
from taskqueue.upkeep import Keeping, Round

__all__ = ["PostgreSQLStore"]


class PostgreSQLStore:
    """The contract: one connection for questions, and one for those who wait."""

    def __init__(self, place: Place, options: Options) -> None:
        self._asking = Line(place)
        self._keeper = Keeper(place, options)
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

    def statistics(self, *, type: str = "", since: float = 0.0) -> list[Tally]:
        with self._asking.opened() as connection:
            rows = self._asking.rows(connection, "stats(%s, to_timestamp(%s::float8))", clean(type) or None, since)
        return [
            Tally(hour=hour.timestamp(), type=of, counts=tuple(counts), waited=_histogram(waited), ran=_histogram(ran))
            for hour, of, *counts, waited, ran in rows
        ]

    def maintain(self, keeping: Keeping) -> Round:
        return self._keeper.round(keeping)

    def close(self) -> None:
        self._keeper.close()
        self._asking.close()


def _histogram(found: Mapping[str, int]) -> dict[int, int]:
    return {int(number): count for number, count in found.items()}
