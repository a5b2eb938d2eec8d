"""What a transaction stores at its end."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Any

from taskqueue.brokers.sqlite import cancelling, dependencies, history
from taskqueue.brokers.sqlite.dependencies import Failed, Freed, Row
from taskqueue.brokers.sqlite.history import ENDED_COLUMNS
from taskqueue.brokers.sqlite.names import there
from taskqueue.brokers.sqlite.schema import COLUMNS, TOLD, Life, to_row
from taskqueue.outcome import unmet
from taskqueue.workitem import Workitem, made_at

__all__ = ["ENDED", "Outbox", "putting", "sending"]

ENDED = "taskqueue.ended"
"""What is rung for when records of workitems have ended; no queue has this name."""

_NAMES = COLUMNS.split(", ")
_PLACES = ",".join("?" * len(_NAMES))
# The first number is the time, but beyond all that are there; each of the others, whose own is NULL, gets the next.
_FIRST = f"""INSERT INTO workitems (seq, {COLUMNS})
    VALUES (max(?, (SELECT ifnull(max(seq), 0) + 1 FROM workitems)), {_PLACES})"""
_BORN = _NAMES.index("born")
_TOLD = f"""INSERT INTO workitems (seq, {COLUMNS})
    SELECT max(?1, free), {"?," * _BORN} iif(?1 >= free, {TOLD}, 0) {",?" * (len(_NAMES) - _BORN - 1)}
    FROM (SELECT ifnull(max(seq), 0) + 1 AS free FROM workitems)"""
FEW = 16  # rows, or workitems, that it takes next to no time to store
OLD = 1_000_000  # microseconds; an id that was made before that is somebody else's matter
_BACK = f"INSERT INTO workitems (seq, {COLUMNS}) VALUES ({_PLACES},?)"
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


def sending(queue: str, workitem: Workitem, life: Life | None, now: float) -> tuple[str, tuple[Any, ...]]:
    """The same for what is sent now, so that its id may tell its number."""
    number = made_at(workitem.id)
    if life is None or not 0 <= now * 1_000_000 - number < OLD:
        return putting(queue, workitem, life, now)
    row = to_row(queue, workitem, life, now)
    return _TOLD, (number, *row[:_BORN], *row[_BORN + 1 :])


class Outbox:
    """Rows are collected in one thread, and may be stored in another: many in one statement, because each step of one
    gives up the interpreter, and has to get it back again.

    now: POSIX seconds.  again: what is put here was a dead letter.
    told: the queues that got something.
    """

    def __init__(self, now: float, *, again: bool = False) -> None:
        self.told: set[str] = set()
        self.now = now
        self._again = again
        self._first: tuple[Any, ...] | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._linked: list[tuple[int, Workitem, bool]] = []  # what depends on others, and how many rows before it
        self._back: list[tuple[Row, tuple[Any, ...]]] = []
        self._records: list[tuple[Any, ...]] = []
        self._unkept: list[tuple[Any, ...]] = []
        self._promises: list[tuple[int, str, Sequence[str]]] = []
        self._gone: list[int] = []
        self._freed = Freed(set(), [])

    def put(self, items: Iterable[tuple[str, Workitem, Life | None]]) -> None:
        """Store workitems in queues, in order."""
        now = self.now
        for queue, workitem, life in items:
            self.told.add(queue)
            blocked = False
            if workitem.after and (life is None or not life.born):
                blocked = life is not None
                self._linked.append((len(self._rows) + (self._first is not None), workitem, blocked))
            row = to_row(queue, workitem, life, now, blocked=blocked)
            if self._first is None:
                self._first = (int(now * 1_000_000), *row)
            else:
                self._rows.append(row)

    def block(self, queue: str, workitem: Workitem, life: Life, more: int) -> None:
        """It goes on, and depends on `more` others: the last ones of its `after`.

        It gets the number back that it had at first, by which it is known what it depends on.
        """
        assert life.born is not None
        self.told.add(queue)
        row = to_row(queue, workitem, life, self.now, blocked=True)
        linked = Row(life.born, workitem, begins=True, known=len(workitem.after) - more)
        self._back.append((linked, (life.born, *row)))

    def record(self, records: Sequence[tuple[Any, ...]], *, kept: bool = True) -> None:
        """These have ended: the values of ENDED_COLUMNS.  kept: also where nothing depends on them."""
        if records:
            (self._records if kept else self._unkept).extend(records)
            self.told.add(ENDED)
            self.told.update({record[-1] for record in records} - {None})

    def promise(self, number: int, id: str, ids: Sequence[str]) -> None:
        """The result of the life with this number, which is recorded, needs those of `ids`."""
        self._promises.append((number, id, ids))

    def forget(self, numbers: Iterable[int]) -> None:
        """Dead letters have ended: the rows with these numbers."""
        self._gone.extend(numbers)

    def mend(self, connection: sqlite3.Connection) -> int:
        """Inside the transaction, before `store`: see `dependencies.mend`.  How many were mended."""
        count, self._freed = dependencies.mend(connection)
        return count

    def is_brief(self, connection: sqlite3.Connection) -> bool:
        """Whether `store` takes next to no time: few rows, and nothing may depend on what has ended."""
        over = len(self._records) + len(self._unkept) + len(self._gone)
        if over + len(self._rows) > FEW or self._linked or self._back or self._promises or any(self._freed):
            return False
        return not over or not dependencies.exist(connection)

    def store(self, connection: sqlite3.Connection) -> None:
        """Inside the transaction, once."""
        self._store(connection)
        for promise in self._promises:
            dependencies.promise(connection, *promise)

    def _store(self, connection: sqlite3.Connection) -> None:
        if self._unkept:
            promised = dependencies.promised(connection, [record[1] for record in self._unkept])
            self._records += [record for record in self._unkept if record[1] in promised]
            self._unkept = [record for record in self._unkept if record[1] not in promised]
        before = 0
        if self._first is not None:
            before = connection.execute(_FIRST, self._first).lastrowid or 0
        _store(connection, _MORE, self._rows)
        if self._records or self._unkept:
            cancelling.forget(connection, [record[0] for record in (*self._records, *self._unkept)])
        freed = self._freed
        if self._back:
            connection.executemany(_BACK, [row for _, row in self._back])
        if self._linked or self._back:
            rows = [Row(before + count, workitem, begins) for count, workitem, begins in self._linked]
            rows += [row for row, _ in self._back]
            freed = dependencies.link(connection, rows, self.now, again=self._again)
        elif not freed.queues and not dependencies.exist(connection):
            _store(connection, _RECORDS, self._records)
            return
        self.told |= freed.queues
        dependencies.forget(connection, self._gone)
        ended, unkept = self._records, self._unkept
        while ended or unkept or freed.failed:  # what fails ends as well, and others depend on it
            needed: Collection[str] = ()
            if unkept:
                needed, _ = dependencies.dependents(connection, [record[1] for record in unkept])
            ended = [*ended, *(record for record in unkept if record[1] in needed)]
            ended += [history.unmet(*one, self.now) for one in freed.failed]
            _store(connection, _RECORDS, ended)
            self._answer(connection, freed.failed)
            over = [*ended, *unkept]
            dependencies.forget(connection, [record[0] for record in over])
            freed = dependencies.count(connection, dict(map(history.cause, over)))
            self.told |= freed.queues
            ended, unkept = [], []

    def _answer(self, connection: sqlite3.Connection, failed: Sequence[Failed]) -> None:
        for workitem, _, why in failed:
            self.told.add(ENDED)
            for send in unmet(workitem, why).sends:
                if there(connection, send.queue):
                    self.told.add(send.queue)
                    connection.execute(*putting(send.queue, send.workitem, None, self.now))


def _store(
    connection: sqlite3.Connection, statements: Sequence[tuple[int, str]], rows: Sequence[tuple[Any, ...]]
) -> None:
    begin = 0
    for count, statement in statements:
        while len(rows) - begin >= count:
            connection.execute(statement, tuple(chain.from_iterable(rows[begin : begin + count])))
            begin += count
