"""What a transaction stores at its end."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from taskqueue.brokers.sqlite.history import ENDED_COLUMNS
from taskqueue.brokers.sqlite.schema import COLUMNS, Life, to_row
from taskqueue.workitem import Workitem

__all__ = ["ENDED", "Outbox", "putting"]

ENDED = "taskqueue.ended"
"""What is rung for when records of workitems have ended; no queue has this name."""

_PLACES = ",".join("?" * len(COLUMNS.split(",")))
# The first number is the time, but beyond all that are there; each of the others, whose own is NULL, gets the next.
_FIRST = f"""INSERT INTO workitems (seq, {COLUMNS})
    VALUES (max(?, (SELECT ifnull(max(seq), 0) + 1 FROM workitems)), {_PLACES})"""
_NEXT = f"INSERT INTO workitems ({COLUMNS}) VALUES ({_PLACES})"
_RECORD_PLACES = ",".join("?" * len(ENDED_COLUMNS.split(",")))
# OR REPLACE: should a clock that was set back ever give a number twice, no transaction may hang on it.
_RECORD = f"INSERT OR REPLACE INTO ended ({ENDED_COLUMNS}) VALUES ({_RECORD_PLACES})"


def _by_size(one: str, places: str) -> list[tuple[int, str]]:
    return [(count, one + f",({places})" * (count - 1)) for count in (64, 16, 4, 1)]


_MORE = _by_size(_NEXT, _PLACES)
_RECORDS = _by_size(_RECORD, _RECORD_PLACES)


def putting(queue: str, workitem: Workitem, life: Life | None, now: float) -> tuple[str, tuple[Any, ...]]:
    """The statement that stores `workitem` in `queue`, and its values."""
    return _FIRST, (int(now * 1_000_000), *to_row(queue, workitem, life, now))


class Outbox:
    """Rows are collected in one thread, and may be stored in another: many in one statement, because each step of one
    gives up the interpreter, and has to get it back again.

    told: the queues that got something.
    """

    def __init__(self) -> None:
        self.told: set[str] = set()
        self._first: tuple[Any, ...] | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._records: list[tuple[Any, ...]] = []

    def put(self, items: Iterable[tuple[str, Workitem, Life | None]], now: float) -> None:
        """Store workitems in queues, in order."""
        for queue, workitem, life in items:
            self.told.add(queue)
            row = to_row(queue, workitem, life, now)
            if self._first is None:
                self._first = (int(now * 1_000_000), *row)
            else:
                self._rows.append(row)

    def record(self, records: Iterable[tuple[Any, ...]]) -> None:
        """Keep records of what has ended: the values of ENDED_COLUMNS."""
        before = len(self._records)
        self._records += records
        if len(self._records) > before:
            self.told.add(ENDED)
            self.told.update({record[-1] for record in self._records[before:]} - {None})

    def store(self, connection: sqlite3.Connection) -> None:
        """Inside the transaction, once."""
        if self._first is not None:
            connection.execute(_FIRST, self._first)
        _store(connection, _MORE, self._rows)
        _store(connection, _RECORDS, self._records)


def _store(
    connection: sqlite3.Connection, statements: Sequence[tuple[int, str]], rows: Sequence[tuple[Any, ...]]
) -> None:
    begin = 0
    for count, statement in statements:
        while len(rows) - begin >= count:
            connection.execute(statement, tuple(chain.from_iterable(rows[begin : begin + count])))
            begin += count
