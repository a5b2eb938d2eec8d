"""What is done inside one transaction.  No transaction begins or ends here."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from taskqueue.brokers.sqlite import history
from taskqueue.brokers.sqlite.history import Ending
from taskqueue.brokers.sqlite.outbox import Outbox
from taskqueue.brokers.sqlite.schema import LENT, SCHEDULED, WAITING, Life, from_row
from taskqueue.record import is_recorded
from taskqueue.workitem import DEAD_LETTERS, DROPPED, Workitem, sent_at

__all__ = [
    "REPLIES",
    "born",
    "cancel",
    "claim",
    "declare",
    "drop_expired",
    "end",
    "exists",
    "forget",
    "is_carrier",
    "is_there",
    "next_due",
    "numbers",
    "ready",
    "register",
    "release",
    "report",
    "take",
    "waiting",
]

REPLIES = "taskqueue.reply."
"""What the names of reply queues begin with; they exist as long as their client."""

_LIFE = "CASE born WHEN 0 THEN seq ELSE born END, sender, story"
_LOST = """CASE running WHEN '' THEN story ELSE
    CASE story WHEN '' THEN '[' ELSE substr(story, 1, length(story) - 1) || ',' END
    || json_array(attempt, 'lost', json_extract(running, '$[0]'), '', '', unixepoch(), json_array()) || ']'
END"""
_FIELDS = "id, type, reference, content_type, attempt, crashes, failures, properties, body"


def declare(connection: sqlite3.Connection, queue: str) -> bool:
    """Make `queue`; False where it was there."""
    return connection.execute("INSERT OR IGNORE INTO queues (name) VALUES (?)", (queue,)).rowcount == 1


def exists(connection: sqlite3.Connection, queue: str) -> bool:
    """Whether there is such a queue."""
    return connection.execute("SELECT 1 FROM queues WHERE name = ?", (queue,)).fetchone() is not None


def is_carrier(connection: sqlite3.Connection, carrier: int) -> bool:
    """Whether `carrier` has not been taken for dead."""
    return connection.execute("SELECT 1 FROM carriers WHERE id = ?", (carrier,)).fetchone() is not None


def is_there(connection: sqlite3.Connection, number: int) -> bool:
    """Whether a workitem still has this number."""
    return connection.execute("SELECT 1 FROM workitems WHERE seq = ?", (number,)).fetchone() is not None


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
    return bool(
        connection.execute(sql, (queue,)).fetchone()
        or connection.execute(due, (now,)).fetchone()
        or (not is_recorded(queue) and history.has_unread(connection, queue))
    )


def next_due(connection: sqlite3.Connection) -> float | None:
    """When the next workitem becomes due, POSIX seconds; None: none is scheduled."""
    due: float | None = connection.execute(f"SELECT min(due) FROM workitems WHERE state = {SCHEDULED}").fetchone()[0]
    return due


def claim(
    connection: sqlite3.Connection, outbox: Outbox, queue: str, limit: int, carrier: int, now: float
) -> list[tuple[int, Workitem, Life | None]]:
    """Lend up to `limit` workitems to `carrier`: sequence number, workitem and its life, first to last."""
    connection.execute(
        f"UPDATE workitems SET state = {WAITING}, due = NULL WHERE state = {SCHEDULED} AND due <= ?", (now,)
    )
    drop_expired(connection, outbox, queue, now)
    _bring(connection, queue, limit, now)
    rows = connection.execute(
        f"""UPDATE workitems SET state = {LENT}, carrier = ? WHERE seq IN (
            SELECT seq FROM workitems WHERE state = {WAITING} AND queue = ? ORDER BY priority DESC, seq LIMIT ?
        ) RETURNING -priority, seq, {_LIFE}, {_FIELDS}""",
        (carrier, queue, limit),
    ).fetchall()
    rows.sort()  # RETURNING has no order
    return [(row[1], from_row(row[5:]), _life(row[2:5])) for row in rows]


def take(connection: sqlite3.Connection, queue: str, limit: int) -> list[Workitem]:
    """Take the first workitems out of the reply queue `queue` for good."""
    rows = connection.execute(
        f"""DELETE FROM workitems WHERE seq IN (
            SELECT seq FROM workitems WHERE state = {WAITING} AND queue = ? ORDER BY seq LIMIT ?
        ) RETURNING {_FIELDS}, seq""",
        (queue, limit),
    ).fetchall()
    return [from_row(row[:-1]) for row in sorted(rows, key=lambda row: row[-1])]


def _bring(connection: sqlite3.Connection, queue: str, limit: int, now: float) -> None:
    """Results wait in the records until somebody reads `queue`."""
    if is_recorded(queue):
        return
    found = history.take_unread(connection, queue, limit)
    outbox = Outbox()
    outbox.put([(queue, result, None) for result in found], now)
    outbox.store(connection)


def drop_expired(connection: sqlite3.Connection, outbox: Outbox, queue: str, now: float, most: int = -1) -> int:
    """Take out of `queue` whose time is over, up to `most`; -1: all.  How many there were."""
    # By that index, or every claim would read the whole queue.
    expired = connection.execute(
        f"""DELETE FROM workitems WHERE seq IN (
            SELECT seq FROM workitems INDEXED BY expiring WHERE queue = ? AND expires <= ? AND state = {WAITING} LIMIT ?
        ) RETURNING {_LIFE}, {_FIELDS}""",
        (queue, now, most),
    ).fetchall()
    if expired and queue not in (DROPPED, DEAD_LETTERS):
        death = {"x-death": [{"reason": "expired", "queue": queue}]}
        items = [(from_row(row[3:]), _life(row[:3])) for row in expired]
        outbox.record(history.expired(item, life, now) for item, life in items if life is not None)
        dropped = [item._replace(expiration=None, headers={**item.headers, **death}) for item, _ in items]
        outbox.put([(DROPPED, item, None) for item in dropped], now)
    return len(expired)


def end(
    connection: sqlite3.Connection,
    outbox: Outbox,
    todo: Mapping[int, Ending],
    carrier: int | None,
    sender: str,
    now: float,
) -> set[int]:
    """End deliveries, by their numbers, with their effects: those that counted.

    One that is not `carrier`'s any more does not count, and nothing is done for it.  carrier: None for what is lent to
    nobody.  A statement for all of them, not one for each: a batch is what makes this fast.
    """
    held = (
        f"carrier IS ? AND state = {WAITING if carrier is None else LENT} AND seq IN (SELECT value FROM json_each(?))"
    )
    statements = {
        True: f"DELETE FROM workitems WHERE {held} RETURNING seq, running",
        False: f"UPDATE workitems SET state = {WAITING}, carrier = NULL, running = '' WHERE {held} RETURNING seq, ''",
    }
    counted: dict[int, str] = {}
    for ends, statement in statements.items():
        numbers = [number for number, ending in todo.items() if ending.effects.ends is ends]
        if numbers:
            counted.update(connection.execute(statement, (carrier, json.dumps(numbers))))
    endings = [(todo[number], number, running) for number, running in counted.items()]
    outbox.record(_ran(ending.record, running) for ending, _, running in endings if ending.record is not None)
    connection.executemany(
        "UPDATE workitems SET story = ? WHERE seq = ?",
        [(e.life.story, n) for e, n, _ in endings if not e.effects.ends and e.life is not None and e.life.story],
    )
    sends = [
        (send, (todo[number].life if send.goes_on else None) or born(send.queue, sender))
        for number in todo
        if number in counted
        for send in todo[number].effects.sends
    ]
    there = {queue: _there(connection, queue) for queue in {send.queue for send, _ in sends}}
    outbox.put([(send.queue, send.workitem, life) for send, life in sends if there[send.queue]], now)
    return set(counted)


def _ran(values: tuple[Any, ...], running: str) -> tuple[Any, ...]:
    return (*values[:9], running, *values[10:]) if running else values


def born(queue: str, sender: str) -> Life | None:
    """The life of what is sent to `queue`; None where there is no record of it."""
    return Life(0, sender, "") if is_recorded(queue) else None


def report(connection: sqlite3.Connection, carrier: int, running: Sequence[tuple[str, int]]) -> None:
    """Write down what runs: what is said of it, and its number."""
    sql = f"UPDATE workitems SET running = ? WHERE seq = ? AND carrier = {carrier} AND state = {LENT}"
    connection.executemany(sql, running)


def cancel(connection: sqlite3.Connection, outbox: Outbox, id: str, now: float) -> bool:
    """Take a live workitem out of its queue for good; False where that is too late."""
    rows = connection.execute(
        f"""DELETE FROM workitems WHERE born IS NOT NULL AND seq >= ? AND id = ? AND state IN ({WAITING}, {SCHEDULED})
        RETURNING {_LIFE}, {_FIELDS}""",
        (int(sent_at(id) * 1_000_000), id),
    ).fetchall()
    lives = [(from_row(row[3:]), _life(row[:3])) for row in rows]
    outbox.record(history.cancelled(workitem, life, now) for workitem, life in lives if life is not None)
    return bool(rows)


def _life(columns: Sequence[Any]) -> Life | None:
    return None if columns[0] is None else Life(*columns)


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
    """Give back what `carrier` was lent: these, or all, and then it is forgotten.

    An attempt that was said to run is lost.
    """
    sql = f"""UPDATE workitems SET state = {WAITING}, carrier = NULL, running = '', story = {_LOST}
        WHERE state = {LENT} AND carrier = ?"""
    if numbers is None:
        connection.execute(sql, (carrier,))
        connection.execute("DELETE FROM carriers WHERE id = ?", (carrier,))
    else:
        connection.executemany(f"{sql} AND seq = ?", [(carrier, number) for number in numbers])
