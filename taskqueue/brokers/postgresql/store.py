"""Answers questions about the work in the database, live or ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from taskqueue.broker import Options
from taskqueue.brokers.postgresql.bell import PostgreSQLBell
from taskqueue.brokers.postgresql.history import record
from taskqueue.brokers.postgresql.keeper import Keeper
from taskqueue.brokers.postgresql.line import Line
from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.rows import clean, stored_id
from taskqueue.errors import UnknownTask
from taskqueue.lifecycle import ENDED, State
from taskqueue.record import Record
from taskqueue.statistics import Tally
from taskqueue.upkeep import Keeping, Round

__all__ = ["PostgreSQLStore"]

BATCH = 1000  # workitems that are discarded in a transaction


class PostgreSQLStore:
    """The contract: one connection for questions, and one for each who waits."""

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
        bell: PostgreSQLBell | None = None
        try:
            while True:
                found = self.record(id)
                left = None if deadline is None else deadline - time.monotonic()
                if found.state in ENDED or (left is not None and left <= 0):
                    return found
                if bell is None:
                    bell = self.bell()
                else:
                    bell.wait(left)
        finally:
            if bell is not None:
                bell.close()

    def ended(self, ids: Sequence[str]) -> dict[str, Record | None]:
        stored = {id: stored_id(id) for id in ids}
        with self._asking.opened() as connection:
            alive = set(self._asking.call(connection, "alive(%s)", list(set(stored.values())))[0])
            rest = list({known for known in stored.values() if known not in alive})
            rows = self._asking.rows(connection, "ended(%s)", rest) if rest else []
        found = {row[0]: record(row) for row in rows}
        return {id: found.get(known) for id, known in stored.items() if known not in alive}

    def bell(self) -> PostgreSQLBell:
        return PostgreSQLBell(self._place)

    def count(self, type: str) -> int:
        with self._asking.opened() as connection:
            (found,) = self._asking.call(connection, "pending(%s)", clean(type))
        return int(found)

    def discard(self, type: str) -> int:
        found = 0
        while True:
            with self._asking.opened() as connection:
                (gone,) = self._asking.call(connection, "discard(%s, %s)", clean(type), BATCH)
            if not gone:
                return found
            found += gone

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
