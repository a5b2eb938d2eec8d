"""What is done inside one transaction.  No transaction begins or ends here."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from taskqueue.brokers.sqlite.schema import COLUMNS, LENT, SCHEDULED, WAITING, from_row, to_row
from taskqueue.outcome import Effects
from taskqueue.workitem import DEAD_LETTERS, DROPPED, Workitem

__all__ = [
    "REPLIES",
    "claim",
    "declare",
    "end",
    "exists",
    "forget",
    "next_due",
    "numbers",
    "put",
    "putting",
    "ready",
    "register",
    "release",
    "take",
    "trim",
    "waiting",
]

REPLIES = "taskqueue.reply."
"""What the names of reply queues begin with; they exist as long as their client."""

_PLACES = ",".join("?" * len(COLUMNS.split(",")))
# The first number is the time, but beyond all that are there; each of the others, whose own is NULL, gets the next.
_FIRST = f"""INSERT INTO workitems (seq, {COLUMNS})
    VALUES (max(?, (SELECT ifnull(max(seq), 0) + 1 FROM workitems)), {_PLACES})"""
_NEXT = f"INSERT INTO workitems ({COLUMNS}) VALUES ({_PLACES})"
# Many rows in one step of one statement: each step lets other threads of this process in, and has to get back again.
_MORE = [(count, _NEXT + f",({_PLACES})" * (count - 1)) for count in (64, 16, 4, 1)]
_FIELDS = "id, type, reference, content_type, attempt, crashes, failures, properties, body"


def putting(queue: str, workitem: Workitem, now: float) -> tuple[str, tuple[Any, ...]]:
    """The statement that stores `workitem` in `queue`, and its values."""
    return _FIRST, (int(now * 1_000_000), *to_row(queue, workitem, now))


def put(connection: sqlite3.Connection, items: Sequence[tuple[str, Workitem]], now: float) -> None:
    """Store workitems in queues, in order."""
    if not items:
        return
    connection.execute(*putting(*items[0], now))
    begin = 1
    for count, statement in _MORE:
        while len(items) - begin >= count:
            rows = [value for queue, item in items[begin : begin + count] for value in to_row(queue, item, now)]
            connection.execute(statement, rows)
            begin += count


def declare(connection: sqlite3.Connection, queue: str) -> bool:
    """Make `queue`; False where it was there."""
    return connection.execute("INSERT OR IGNORE INTO queues VALUES (?)", (queue,)).rowcount == 1


def exists(connection: sqlite3.Connection, queue: str) -> bool:
    """Whether there is such a queue."""
    return connection.execute("SELECT 1 FROM queues WHERE name = ?", (queue,)).fetchone() is not None


def forget(connection: sqlite3.Connection, queue: str) -> None:
    """Remove `queue` with all that is in it."""
    connection.execute("DELETE FROM queues WHERE name = ?", (queue,))
    connection.execute("DELETE FROM workitems WHERE queue = ?", (queue,))


def register(connection: sqlite3.Connection, pid: int, now: float) -> int:
    """The number of a new carrier."""
    number = connection.execute("INSERT INTO carriers (pid, since) VALUES (?, ?)", (pid, now)).lastrowid
    assert number is not None
    return number


def ready(connection: sqlite3.Connection, queue: str, now: float) -> bool:
    """Whether a claim from `queue` may find anything.  Reads only."""
    sql = f"SELECT 1 FROM workitems WHERE state = {WAITING} AND queue = ? LIMIT 1"
    due = f"SELECT 1 FROM workitems WHERE state = {SCHEDULED} AND due <= ? LIMIT 1"
    return bool(connection.execute(sql, (queue,)).fetchone() or connection.execute(due, (now,)).fetchone())


def next_due(connection: sqlite3.Connection) -> float | None:
    """When the next workitem becomes due, POSIX seconds; None: none is scheduled."""
    due: float | None = connection.execute(f"SELECT min(due) FROM workitems WHERE state = {SCHEDULED}").fetchone()[0]
    return due


def claim(
    connection: sqlite3.Connection, queue: str, limit: int, carrier: int, now: float
) -> list[tuple[int, Workitem]]:
    """Lend up to `limit` workitems to `carrier`: sequence number and workitem, first to last."""
    connection.execute(
        f"UPDATE workitems SET state = {WAITING}, due = NULL WHERE state = {SCHEDULED} AND due <= ?", (now,)
    )
    _drop_expired(connection, queue, now)
    rows = connection.execute(
        f"""UPDATE workitems SET state = {LENT}, carrier = ? WHERE seq IN (
            SELECT seq FROM workitems WHERE state = {WAITING} AND queue = ? ORDER BY priority DESC, seq LIMIT ?
        ) RETURNING -priority, seq, {_FIELDS}""",
        (carrier, queue, limit),
    ).fetchall()
    rows.sort()  # RETURNING has no order
    return [(row[1], from_row(row[2:])) for row in rows]


def take(connection: sqlite3.Connection, queue: str, limit: int) -> list[Workitem]:
    """Take the first workitems out of `queue` for good."""
    rows = connection.execute(
        f"""DELETE FROM workitems WHERE seq IN (
            SELECT seq FROM workitems WHERE state = {WAITING} AND queue = ? ORDER BY seq LIMIT ?
        ) RETURNING {_FIELDS}, seq""",
        (queue, limit),
    ).fetchall()
    return [from_row(row[:-1]) for row in sorted(rows, key=lambda row: row[-1])]


def _drop_expired(connection: sqlite3.Connection, queue: str, now: float) -> None:
    # By that index, or every claim would read the whole queue.
    expired = connection.execute(
        f"""DELETE FROM workitems INDEXED BY expiring
        WHERE queue = ? AND expires <= ? AND state = {WAITING} RETURNING {_FIELDS}""",
        (queue, now),
    ).fetchall()
    if expired and queue not in (DROPPED, DEAD_LETTERS):
        death = {"x-death": [{"reason": "expired", "queue": queue}]}
        items = [from_row(row) for row in expired]
        put(connection, [(DROPPED, i._replace(expiration=None, headers={**i.headers, **death})) for i in items], now)


def end(
    connection: sqlite3.Connection, todo: Mapping[int, Effects], carrier: int | None, now: float
) -> tuple[set[int], set[str]]:
    """End deliveries, by their numbers, with their effects: those that counted, and the queues that got something.

    One that is not `carrier`'s any more does not count, and nothing is done for it.  carrier: None for what is lent to
    nobody.  A statement for all of them, not one for each: a batch is what makes this fast.
    """
    held = (
        f"carrier IS ? AND state = {WAITING if carrier is None else LENT} AND seq IN (SELECT value FROM json_each(?))"
    )
    statements = {
        True: f"DELETE FROM workitems WHERE {held} RETURNING seq",
        False: f"UPDATE workitems SET state = {WAITING}, carrier = NULL WHERE {held} RETURNING seq",
    }
    counted: set[int] = set()
    for ends, statement in statements.items():
        numbers = [number for number, effects in todo.items() if effects.ends is ends]
        if numbers:
            counted.update(number for (number,) in connection.execute(statement, (carrier, json.dumps(numbers))))
    sends = [send for number, effects in todo.items() if number in counted for send in effects.sends]
    there = {queue: _there(connection, queue) for queue in {send.queue for send in sends}}
    put(connection, [(send.queue, send.workitem) for send in sends if there[send.queue]], now)
    return counted, {queue for queue, is_there in there.items() if is_there}


def _there(connection: sqlite3.Connection, queue: str) -> bool:
    """Make `queue` where it does not exist; not if it is a client's: that has gone then."""
    if queue.startswith(REPLIES):
        return exists(connection, queue)
    declare(connection, queue)
    return True


def numbers(connection: sqlite3.Connection, queue: str) -> list[int]:
    """The sequence numbers of what waits in `queue`, in the order in which it came."""
    sql = f"SELECT seq FROM workitems WHERE state = {WAITING} AND queue = ? ORDER BY seq"
    return [number for (number,) in connection.execute(sql, (queue,))]


def waiting(connection: sqlite3.Connection, chosen: Sequence[int]) -> list[tuple[int, Workitem]]:
    """Those of the `chosen` sequence numbers, a few hundred, that still wait."""
    places = ",".join("?" * len(chosen))
    sql = f"SELECT seq, {_FIELDS} FROM workitems WHERE state = {WAITING} AND seq IN ({places}) ORDER BY seq"
    return [(row[0], from_row(row[1:])) for row in connection.execute(sql, chosen)]


def release(connection: sqlite3.Connection, carrier: int, numbers: Sequence[int] | None = None) -> None:
    """Give back what `carrier` was lent: these, or all, and then it is forgotten."""
    sql = f"UPDATE workitems SET state = {WAITING}, carrier = NULL WHERE state = {LENT} AND carrier = ?"
    if numbers is None:
        connection.execute(sql, (carrier,))
        connection.execute("DELETE FROM carriers WHERE id = ?", (carrier,))
    else:
        connection.executemany(f"{sql} AND seq = ?", [(carrier, number) for number in numbers])


def trim(
    connection: sqlite3.Connection, results: str, results_max_length: int, dead_retention: float, now: float
) -> None:
    """Drop the oldest results beyond `results_max_length`, and dead letters that have been seen for longer."""
    beyond = connection.execute(
        f"SELECT seq FROM workitems WHERE queue = ? AND state = {WAITING} "
        "ORDER BY priority DESC, seq DESC LIMIT 1 OFFSET ?",
        (results, results_max_length),
    ).fetchone()
    if beyond:
        connection.execute("DELETE FROM workitems WHERE queue = ? AND seq <= ?", (results, beyond[0]))
    connection.execute(
        "DELETE FROM workitems INDEXED BY expiring WHERE expires <= ? AND queue = ?", (now, DEAD_LETTERS)
    )
    connection.execute(
        f"UPDATE workitems SET expires = ? WHERE queue = ? AND state = {WAITING} AND expires IS NULL",
        (now + dead_retention, DEAD_LETTERS),
    )
