"""Hours of what has ended: found, counted, and asked about.  No transaction begins or ends here."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from taskqueue.brokers.sqlite.schema import LATE
from taskqueue.lifecycle import State
from taskqueue.statistics import Finish, Tally, hour_of, tallied, times
from taskqueue.story import attempts
from taskqueue.upkeep import HOUR

__all__ = ["counted", "found", "roll", "rolled", "statistics"]

SLICE = 500  # rows at a time: what is read in one go keeps the write-ahead log from beginning anew
MINUTE = 60.0


def found(connection: sqlite3.Connection, begin: float, end: float, columns: str) -> Iterator[list[tuple[Any, ...]]]:
    """Rows of what ended from `begin` on and before `end`, slice by slice; `born` comes before the `columns`."""
    at, last = int((begin - LATE) * 1_000_000), int(end * 1_000_000)
    quick = f"""SELECT born, {columns}, ended - born / 1e6 <= {LATE} AND ended >= ? AND ended < ? FROM ended
        WHERE born >= ? AND born < ? ORDER BY born LIMIT {SLICE}"""
    while rows := connection.execute(quick, (begin, end, at, last)).fetchall():
        yield [row[:-1] for row in rows if row[-1]]
        at = rows[-1][0] + 1
    late = f"""SELECT born, {columns} FROM ended INDEXED BY ended_late
        WHERE ended - born / 1e6 > {LATE} AND ended >= ? AND ended < ?"""
    while begin < end:
        then = min(begin + MINUTE, end)
        yield connection.execute(late, (begin, then)).fetchall()
        begin = then


def counted(
    connection: sqlite3.Connection,
    begin: float,
    end: float,
    *,
    type: str = "",
    between: Callable[[], object] = lambda: None,
) -> list[Tally]:
    """What ended from `begin` on and before `end`.  type: of this one alone; between: called after each slice."""
    finishes = []
    for rows in found(connection, begin, end, "ended, type, state, story"):
        for born, ended, of, state, story in rows:
            if type in ("", of):
                finishes.append(Finish(ended, of, State(state), *times(born / 1e6, attempts(story))))
        between()
    return tallied(finishes)


def rolled(connection: sqlite3.Connection, now: float) -> float:
    """The hour, by its begin, up to which statistics are made."""
    row = connection.execute("SELECT until FROM rolled").fetchone()
    if row is None:
        row = connection.execute("SELECT min(born) / 1000000 FROM ended").fetchone()
    return hour_of(now if row[0] is None else row[0])


def roll(connection: sqlite3.Connection, hour: float, tallies: list[Tally]) -> bool:
    """Inside a transaction: store the statistics of an hour; False where somebody else was faster."""
    before = connection.execute("SELECT until FROM rolled").fetchone()
    if before is not None and before[0] != hour:
        return False
    connection.executemany(
        "INSERT INTO statistics (hour, type, counts, waited, ran) VALUES (?, ?, ?, ?, ?)",
        [(int(t.hour), t.type, *map(json.dumps, (t.counts, t.waited, t.ran))) for t in tallies],
    )
    connection.execute("DELETE FROM rolled")
    connection.execute("INSERT INTO rolled (until) VALUES (?)", (int(hour + HOUR),))
    return True


def statistics(connection: sqlite3.Connection, *, type: str, since: float, now: float) -> list[Tally]:
    """All since the hour of `since`: those that are stored, and what ended after them."""
    first = hour_of(since)
    rows = connection.execute(  # one statement, so that nothing is stored between its two questions
        """SELECT until, hour, type, counts, waited, ran FROM rolled LEFT JOIN statistics
        ON hour >= ?1 AND (?2 = '' OR type = ?2) ORDER BY hour, type""",
        (int(first), type),
    ).fetchall()
    begin = max(rows[0][0] if rows else rolled(connection, now), first)
    stored = [
        Tally(
            hour=float(hour), type=of, counts=tuple(json.loads(counts)), waited=_histogram(waited), ran=_histogram(ran)
        )
        for _, hour, of, counts, waited, ran in rows
        if hour is not None
    ]
    return stored + counted(connection, begin, now + HOUR, type=type)


def _histogram(text: str) -> Mapping[int, int]:
    return {int(number): count for number, count in json.loads(text).items()}
