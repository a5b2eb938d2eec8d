"""What is done inside one transaction.  No transaction begins or ends here."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from taskqueue.brokers.sqlite import cancelling, dependencies, history
from taskqueue.brokers.sqlite.history import Ending
from taskqueue.brokers.sqlite.names import there
from taskqueue.brokers.sqlite.outbox import Outbox
from taskqueue.brokers.sqlite.schema import (
    BLOCKED,
    FIELDS,
    LENT,
    LIFE,
    SCHEDULED,
    WAITING,
    Life,
    from_row,
    life_of,
    with_id,
)
from taskqueue.depending import Input
from taskqueue.record import is_recorded
from taskqueue.workitem import DEAD_LETTERS, DROPPED, Workitem, worker_queue

__all__ = [
    "Claimed",
    "born",
    "cancel",
    "claim",
    "count",
    "discard",
    "drop_expired",
    "end",
    "forget",
    "is_carrier",
    "is_there",
    "last",
    "next_due",
    "numbers",
    "ready",
    "register",
    "release",
    "report",
    "take",
    "waiting",
]

_LOST = """CASE running WHEN '' THEN story ELSE
    CASE story WHEN '' THEN '[' ELSE substr(story, 1, length(story) - 1) || ',' END
    || json_array(attempt, 'lost', json_extract(running, '$[0]'), '', '', unixepoch(), json_array()) || ']'
END"""


Claimed = tuple[int, Workitem, Life | None, tuple[Input, ...]]
"""What was lent: its sequence number, its life, and how those have ended that it depends on."""


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
    """Whether a claim from `queue` may find anything, or anything that is over.  Reads only."""
    sql = f"SELECT 1 FROM workitems WHERE state = {WAITING} AND queue = ? LIMIT 1"
    due = f"SELECT 1 FROM workitems WHERE state = {SCHEDULED} AND due <= ? LIMIT 1"
    over = f"""SELECT 1 FROM workitems INDEXED BY expiring
        WHERE queue = ? AND expires <= ? AND state = {BLOCKED} LIMIT 1"""
    return bool(
        connection.execute(sql, (queue,)).fetchone()
        or connection.execute(due, (now,)).fetchone()
        or connection.execute(over, (queue, now)).fetchone()
        or (not is_recorded(queue) and history.has_unread(connection, queue))
        or cancelling.is_free(connection)
    )


def next_due(connection: sqlite3.Connection) -> float | None:
    """When the next workitem becomes due, POSIX seconds; None: none is scheduled."""
    due: float | None = connection.execute(f"SELECT min(due) FROM workitems WHERE state = {SCHEDULED}").fetchone()[0]
    return due


def claim(
    connection: sqlite3.Connection, outbox: Outbox, queue: str, limit: int, carrier: int, now: float
) -> list[Claimed]:
    """Lend up to `limit` workitems to `carrier`, first to last."""
    connection.execute(
        f"UPDATE workitems SET state = {WAITING}, due = NULL WHERE state = {SCHEDULED} AND due <= ?", (now,)
    )
    drop_expired(connection, outbox, queue, now)
    outbox.record(cancelling.take(connection, now))
    _bring(connection, queue, limit, now)
    rows = connection.execute(
        f"""UPDATE workitems SET state = {LENT}, carrier = ? WHERE seq IN (
            SELECT seq FROM workitems WHERE state = {WAITING} AND queue = ? ORDER BY priority DESC, seq LIMIT ?
        ) RETURNING -priority, seq, {LIFE}, {FIELDS}""",
        (carrier, queue, limit),
    ).fetchall()
    rows.sort()  # RETURNING has no order
    claimed: list[Claimed] = [(row[1], from_row(row[5:]), life_of(row[2:5]), ()) for row in rows]
    return _with_inputs(connection, queue, claimed) if claimed and dependencies.exist(connection) else claimed


def _with_inputs(connection: sqlite3.Connection, queue: str, claimed: Sequence[Claimed]) -> list[Claimed]:
    numbers = [_number(seq, life) for seq, _, life, _ in claimed]
    after = dependencies.after(connection, numbers)
    inputs = dependencies.inputs(connection, list(after)) if after and is_recorded(queue) else {}
    return [
        (seq, item._replace(after=after.get(number, ())), life, inputs.get(number, ()))
        for number, (seq, item, life, _) in zip(numbers, claimed, strict=True)
    ]


def _number(seq: int, life: Life | None) -> int:
    """By what it is known what a row depends on."""
    return life.born if life is not None and life.born else seq


def take(connection: sqlite3.Connection, queue: str, limit: int) -> list[Workitem]:
    """Take the first workitems out of the reply queue `queue` for good."""
    rows = connection.execute(
        f"""DELETE FROM workitems WHERE seq IN (
            SELECT seq FROM workitems WHERE state = {WAITING} AND queue = ? ORDER BY seq LIMIT ?
        ) RETURNING {FIELDS}, seq""",
        (queue, limit),
    ).fetchall()
    return [from_row(row[:-1]) for row in sorted(rows, key=lambda row: row[-1])]


def _bring(connection: sqlite3.Connection, queue: str, limit: int, now: float) -> None:
    """Results wait in the records until somebody reads `queue`."""
    if is_recorded(queue):
        return
    found = history.take_unread(connection, queue, limit)
    outbox = Outbox(now)
    outbox.put([(queue, result, None) for result in found])
    outbox.store(connection)


def drop_expired(connection: sqlite3.Connection, outbox: Outbox, queue: str, now: float, most: int = -1) -> int:
    """Take out of `queue` whose time is over, up to `most`; -1: all.  How many there were."""
    # By that index, or every claim would read the whole queue.
    expired = connection.execute(
        f"""DELETE FROM workitems WHERE seq IN (
            SELECT seq FROM workitems INDEXED BY expiring
            WHERE queue = ? AND expires <= ? AND state IN ({WAITING}, {BLOCKED}) LIMIT ?
        ) RETURNING seq, {LIFE}, {FIELDS}""",
        (queue, now, most),
    ).fetchall()
    outbox.forget(row[0] for row in expired if row[1] is None)
    if expired and queue not in (DROPPED, DEAD_LETTERS):
        death = {"x-death": [{"reason": "expired", "queue": queue}]}
        rows = [(row[0], from_row(row[4:]), life_of(row[1:4])) for row in expired]
        after = dependencies.after(connection, [_number(seq, life) for seq, _, life in rows])
        items = [(item._replace(after=after.get(_number(seq, life), ())), life) for seq, item, life in rows]
        outbox.record([history.expired(item, life, now) for item, life in items if life is not None])
        dropped = [item._replace(expiration=None, headers={**item.headers, **death}) for item, _ in items]
        outbox.put([(DROPPED, item, None) for item in dropped])
    return len(expired)


def end(
    connection: sqlite3.Connection,
    outbox: Outbox,
    todo: Mapping[int, Ending],
    carrier: int | None,
    sender: str,
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
    outbox.record([_ran(e.record, running) for e, _, running in endings if e.record is not None and e.kept])
    outbox.record([e.record for e, _, _ in endings if e.record is not None and not e.kept], kept=False)
    for e, _, _ in endings:
        if e.record is not None and e.promises:
            outbox.promise(e.record[0], e.record[1], e.promises)
    outbox.forget(n for e, n, _ in endings if e.record is None and e.life is None and e.effects.ends)
    connection.executemany(
        "UPDATE workitems SET story = ? WHERE seq = ?",
        [(e.life.story, n) for e, n, _ in endings if not e.effects.ends and e.life is not None and e.life.story],
    )
    outbox.record(cancelling.take(connection, outbox.now))
    over = _unwanted(connection, outbox, endings)
    sends = [
        (send, (todo[number].life if send.goes_on else None) or born(send.queue, sender))
        for number in todo
        if number in counted and number not in over
        for send in todo[number].effects.sends
    ]
    are_there = {queue: there(connection, queue) for queue in {send.queue for send, _ in sends}}
    going = [(send, life) for send, life in sends if are_there[send.queue]]
    outbox.put([(send.queue, send.workitem, life) for send, life in going if not send.more])
    for send, life in going:
        if send.more and life is not None:
            outbox.block(send.queue, send.workitem, life, len(send.more))
    return set(counted)


def _unwanted(connection: sqlite3.Connection, outbox: Outbox, endings: Sequence[tuple[Ending, int, str]]) -> set[int]:
    """The numbers of what would go on, and somebody wants no more: it has ended instead."""
    going_on = [
        (number, send.workitem, ending.life, running)
        for ending, number, running in endings
        if ending.life is not None
        for send in ending.effects.sends
    ]
    lives = cancelling.those_of(connection, [life.born or 0 for _, _, life, _ in going_on])
    over = [one for one in going_on if one[2].born in lives]
    outbox.record([_ran(history.cancelled(item, life, outbox.now), running) for _, item, life, running in over])
    return {number for number, *_ in over}


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
    """Take a live workitem out of its queue for good, or wish that for one that is lent; False: it has ended."""
    rows = connection.execute(
        f"""DELETE FROM workitems WHERE {with_id("?1")} AND state <> {LENT}
        RETURNING {LIFE}, {FIELDS}""",
        (id,),
    ).fetchall()
    _cancelled(outbox, rows, now)
    return cancelling.wish(connection, id) or bool(rows)


def _cancelled(outbox: Outbox, rows: Sequence[tuple[Any, ...]], now: float) -> None:
    lives = [(from_row(row[3:]), life_of(row[:3])) for row in rows]
    outbox.record([history.cancelled(workitem, life, now) for workitem, life in lives if life is not None])


def count(connection: sqlite3.Connection, type: str) -> int:
    """How many workitems of `type` wait, for whatever."""
    sql = " UNION ALL ".join(
        f"SELECT count(*) AS n FROM workitems WHERE queue = ?1 AND state = {state}"
        for state in (BLOCKED, WAITING, SCHEDULED)
    )
    total: int = connection.execute(f"SELECT sum(n) FROM ({sql})", (worker_queue(type),)).fetchone()[0]
    return total


def last(connection: sqlite3.Connection) -> int:
    """The latest number."""
    return int(connection.execute("SELECT ifnull(max(seq), 0) FROM workitems").fetchone()[0])


def discard(connection: sqlite3.Connection, outbox: Outbox, type: str, until: int, most: int, now: float) -> int:
    """Cancel up to `most` of these, up to the number `until`; how many.  What depends on others of them goes first."""
    for state, order in ((BLOCKED, "ORDER BY seq DESC"), (WAITING, ""), (SCHEDULED, "")):
        rows = connection.execute(
            f"""DELETE FROM workitems WHERE seq IN (
                SELECT seq FROM workitems WHERE queue = ? AND state = {state} AND seq <= ? {order} LIMIT ?
            ) RETURNING {LIFE}, {FIELDS}""",
            (worker_queue(type), until, most),
        ).fetchall()
        if rows:
            _cancelled(outbox, rows, now)
            return len(rows)
    return 0


def numbers(connection: sqlite3.Connection, queue: str) -> list[int]:
    """The sequence numbers of what waits in `queue`, in the order in which it came."""
    sql = f"SELECT seq FROM workitems WHERE state = {WAITING} AND queue = ? ORDER BY seq"
    return [number for (number,) in connection.execute(sql, (queue,))]


def waiting(connection: sqlite3.Connection, chosen: Sequence[int]) -> list[tuple[int, Workitem]]:
    """Those of the `chosen` sequence numbers, a few hundred, that still wait."""
    places = ",".join("?" * len(chosen))
    sql = f"SELECT seq, {FIELDS} FROM workitems WHERE state = {WAITING} AND seq IN ({places}) ORDER BY seq"
    after = dependencies.after(connection, chosen)
    return [
        (row[0], from_row(row[1:])._replace(after=after.get(row[0], ()))) for row in connection.execute(sql, chosen)
    ]


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
