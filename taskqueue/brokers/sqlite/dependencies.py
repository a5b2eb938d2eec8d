"""Who waits for whom, and who goes on or fails when something ends.  No transaction begins or ends here.

Statements for whole batches: one workitem may depend on a hundred thousand, or they on it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from taskqueue.brokers.sqlite.schema import (
    BLOCKED,
    FIELDS,
    KEPT,
    LIFE,
    SCHEDULED,
    WAITING,
    Life,
    from_row,
    life_of,
    with_id,
)
from taskqueue.depending import Input, cause, error_of, passes
from taskqueue.errors import DuplicateTask, UnknownTask
from taskqueue.lifecycle import State
from taskqueue.outcome import Payload
from taskqueue.properties import from_text
from taskqueue.record import Attempt
from taskqueue.story import attempts
from taskqueue.workitem import Workitem

__all__ = [
    "Failed",
    "Freed",
    "Row",
    "after",
    "check",
    "count",
    "dependents",
    "exist",
    "forget",
    "inputs",
    "is_wrong",
    "link",
    "mend",
    "promise",
    "promised",
    "waiting",
]

_NUMBERS = "(SELECT value FROM json_each(?))"
# By that index, or each time it would read past all that have ended already.
_PENDING = "SELECT 1 FROM dependencies INDEXED BY pending WHERE dependent = workitems.seq AND life IS NULL"
_ENDED = "life = ifnull((SELECT max(born) FROM ended WHERE ended.id = dependencies.id), 0)"
_IS_LIVE = f"SELECT 1 FROM workitems AS other WHERE {with_id('dependencies.id', 'other')}"


class Row(NamedTuple):
    """A workitem as it was stored.  begins: a life of it does; otherwise it is kept as a dead letter.

    known: how many of what it depends on are written down; it goes on, and waits for the others, too.
    """

    seq: int
    workitem: Workitem
    begins: bool
    known: int = 0


class Failed(NamedTuple):
    """What is over because of what it depends on; `cause`: see `depending.cause`."""

    workitem: Workitem
    life: Life
    cause: str


class Freed(NamedTuple):
    """What waits for nothing more: the queues of what goes on, and what has failed."""

    queues: set[str]
    failed: list[Failed]


def exist(connection: sqlite3.Connection) -> bool:
    """Whether anything depends on anything.  Where nothing does, this is all that it costs."""
    return connection.execute("SELECT 1 FROM dependencies LIMIT 1").fetchone() is not None


def check(connection: sqlite3.Connection, workitems: Sequence[Workitem], *, unique: bool) -> None:
    """Raise UnknownTask or DuplicateTask for what must not be sent."""
    wanted = {id for workitem in workitems for id in workitem.after}
    mine = {workitem.id for workitem in workitems} if unique else set[str]()
    if not wanted and not mine:
        return
    live = _live(connection, wanted | mine)
    known = live.keys() | _ended(connection, wanted, 0.0).keys()
    earlier: set[str] = set()
    for workitem in workitems:
        for id in workitem.after:
            if id not in known and id not in earlier:
                raise UnknownTask(id)
        if unique and (workitem.id in live or workitem.id in earlier):
            raise DuplicateTask(workitem.id)
        earlier.add(workitem.id)


def link(connection: sqlite3.Connection, rows: Sequence[Row], now: float, *, again: bool) -> Freed:
    """Write down what these depend on; what has ended before counts at once.

    again: they were dead letters, so results that are over are there still, and ids may be unknown.
    """
    wanted = {id for row in rows if row.begins for id in row.workitem.after[row.known :]}
    first = _live(connection, wanted)
    ended = _ended(connection, wanted, 0.0 if again else now)
    causes = {id: _cause(id, ended.get(id)) for id in wanted}
    links: list[tuple[int, int, str, int | None]] = []
    failing: dict[int, str] = {}
    for seq, workitem, begins, known in rows:
        for position, id in enumerate(workitem.after[known:], known):
            # What comes later, or is itself, is not meant.
            if begins and (first.get(id, seq) < seq or (known and first.get(id, seq) != seq)):
                links.append((seq, position, id, None))
                continue
            links.append((seq, position, id, ended[id][-1] if id in ended else 0))
            if begins and causes[id]:
                failing.setdefault(seq, causes[id])
    connection.executemany("INSERT INTO dependencies VALUES (?, ?, ?, ?)", links)
    return _free(connection, [row.seq for row in rows if row.begins], failing)


def count(connection: sqlite3.Connection, causes: Mapping[str, str]) -> Freed:
    """These have ended: by id, why what depends on them fails; empty: it does not."""
    rows = connection.execute(
        f"UPDATE dependencies SET {_ENDED} WHERE life IS NULL AND id IN {_NUMBERS} RETURNING dependent, id",
        (json.dumps(list(causes)),),
    ).fetchall()
    reasons: dict[str, set[int]] = {}
    for number, id in rows:
        if causes[id]:
            reasons.setdefault(id, set()).add(number)
    failing: dict[int, str] = {}
    for id in filter(reasons.__contains__, causes):  # in the order in which they ended
        for number in reasons[id]:
            failing.setdefault(number, causes[id])
    return _free(connection, {number for number, _ in rows}, failing)


def _free(connection: sqlite3.Connection, waiting: Collection[int], failing: Mapping[int, str]) -> Freed:
    failed: list[Failed] = []
    if failing:
        sql = f"SELECT seq, properties FROM workitems WHERE state = {BLOCKED} AND seq IN {_NUMBERS}"
        found = connection.execute(sql, (json.dumps(list(failing)),)).fetchall()
        over = [seq for seq, properties in found if not passes(Workitem(body=b"", **from_text(properties)))]
        sql = f"DELETE FROM workitems WHERE seq IN {_NUMBERS} RETURNING seq, {LIFE}, {FIELDS}"
        for row in sorted(connection.execute(sql, (json.dumps(over),)).fetchall()):
            life = life_of(row[1:4])
            assert life is not None
            failed.append(Failed(from_row(row[4:]), life, failing[row[0]]))
        waiting = set(waiting) - set(over)
    if not waiting:
        return Freed(set(), failed)
    sql = f"""UPDATE workitems SET state = CASE WHEN due IS NULL THEN {WAITING} ELSE {SCHEDULED} END
        WHERE state = {BLOCKED} AND seq IN {_NUMBERS} AND NOT EXISTS ({_PENDING}) RETURNING queue"""
    return Freed({queue for (queue,) in connection.execute(sql, (json.dumps(list(waiting)),)).fetchall()}, failed)


def waiting(connection: sqlite3.Connection, ids: Iterable[str], most: int) -> int:
    """How many times something waits for one of these, counted up to `most`."""
    sql = f"SELECT count(*) FROM (SELECT 1 FROM dependencies WHERE life IS NULL AND id IN {_NUMBERS} LIMIT ?)"
    count: int = connection.execute(sql, (json.dumps(list(ids)), most)).fetchone()[0]
    return count


def forget(connection: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """These lives, or dead letters, have ended: what they depended on may go."""
    connection.execute(f"DELETE FROM dependencies WHERE dependent IN {_NUMBERS}", (json.dumps(list(numbers)),))


def promise(connection: sqlite3.Connection, number: int, id: str, ids: Sequence[str]) -> None:
    """The result of a life that has ended needs those of `ids`; but those that need its own would never go.

    They can need it only where it was promised before it ended.
    """
    connection.execute(
        """WITH RECURSIVE below (first, id) AS (
            SELECT value, value FROM json_each(:ids)
            UNION SELECT first, promises.id FROM below JOIN ended USING (id) JOIN promises ON life = born
            WHERE EXISTS (SELECT 1 FROM promises WHERE id = :id)
        )
        INSERT OR IGNORE INTO promises
        SELECT :number, value FROM json_each(:ids) WHERE value NOT IN (SELECT first FROM below WHERE id = :id)""",
        {"number": number, "id": id, "ids": json.dumps(ids)},
    )


def promised(connection: sqlite3.Connection, ids: Iterable[str]) -> set[str]:
    """Those of these whose results are needed by others."""
    sql = f"SELECT id FROM promises WHERE id IN {_NUMBERS}"
    return {id for (id,) in connection.execute(sql, (json.dumps(list(ids)),)).fetchall()}


def dependents(connection: sqlite3.Connection, ids: Iterable[str]) -> tuple[set[str], set[str]]:
    """Which of these are depended on, and the queues of what depends on them."""
    sql = f"""SELECT DISTINCT dependencies.id, queue FROM dependencies LEFT JOIN workitems ON seq = dependent
        WHERE dependencies.id IN {_NUMBERS}"""
    rows = connection.execute(sql, (json.dumps(list(ids)),)).fetchall()
    return {id for id, _ in rows}, {queue for _, queue in rows if queue is not None}


def after(connection: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """What these lives, or dead letters, depend on."""
    sql = f"SELECT dependent, id FROM dependencies WHERE dependent IN {_NUMBERS} ORDER BY dependent, position"
    found: dict[int, list[str]] = {}
    for number, id in connection.execute(sql, (json.dumps(numbers),)).fetchall():
        found.setdefault(number, []).append(id)
    return {number: tuple(ids) for number, ids in found.items()}


def inputs(connection: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, tuple[Input, ...]]:
    """How those have ended that these lives depend on.  Results that are over are kept for them."""
    sql = f"""SELECT dependent, dependencies.id, type, state, result_type, result, story, task
        FROM dependencies LEFT JOIN ended ON born = life
        WHERE dependent IN {_NUMBERS} ORDER BY dependent, position"""
    found: dict[int, list[Input]] = {}
    for number, id, type, state, kind, result, story, task in connection.execute(
        sql, (json.dumps(numbers),)
    ).fetchall():
        payload = None if result is None else Payload(result, kind)
        how = State(state or State.SUCCEEDED)
        one = Input(id, type or "", how, payload, *error_of(how, _last(how, story or "")), task or "")
        found.setdefault(number, []).append(one)
    return {number: tuple(ones) for number, ones in found.items()}


def mend(connection: sqlite3.Connection) -> tuple[int, Freed]:
    """Derive again what is pending: how many waited for what had ended, or for nothing, and what becomes of them.

    Results that are over count as kept: they were when they should have been counted.
    """
    rows = connection.execute(
        f"UPDATE dependencies SET {_ENDED} WHERE life IS NULL AND NOT EXISTS ({_IS_LIVE}) RETURNING dependent, id"
    ).fetchall()
    ended = _ended(connection, {id for _, id in rows}, 0.0)
    failing: dict[int, str] = {}
    for number, id in sorted(rows):
        if why := _cause(id, ended.get(id)):
            failing.setdefault(number, why)
    idle = connection.execute(f"SELECT seq FROM workitems WHERE state = {BLOCKED} AND NOT EXISTS ({_PENDING})")
    waiting = {number for number, _ in rows} | {seq for (seq,) in idle.fetchall()}
    return len(waiting), _free(connection, waiting, failing)


def is_wrong(connection: sqlite3.Connection) -> bool:
    """Whether there is anything to `mend`.  Reads only."""
    late = f"SELECT 1 FROM dependencies WHERE life IS NULL AND NOT EXISTS ({_IS_LIVE}) LIMIT 1"
    idle = f"SELECT 1 FROM workitems WHERE state = {BLOCKED} AND NOT EXISTS ({_PENDING}) LIMIT 1"
    return any(connection.execute(sql).fetchone() is not None for sql in (late, idle))


def _live(connection: sqlite3.Connection, ids: Collection[str]) -> dict[str, int]:
    """Of those that have not ended the first numbers."""
    sql = f"""SELECT workitems.id, min(seq) FROM json_each(?) AS one CROSS JOIN workitems ON {with_id("one.value")}
        GROUP BY workitems.id"""
    return dict(connection.execute(sql, (json.dumps(list(ids)),)).fetchall())


def _ended(connection: sqlite3.Connection, ids: Collection[str], now: float) -> dict[str, tuple[Any, ...]]:
    """Of the latest lives that have ended name, state, story, whether there is a result at `now`, and number."""
    sql = f"""SELECT id, iif(task = '', type, task), state, story, result IS NOT NULL AND {KEPT}, max(born) FROM ended
        WHERE id IN (SELECT value FROM json_each(:ids)) GROUP BY id"""
    rows = connection.execute(sql, {"ids": json.dumps(list(ids)), "now": now}).fetchall()
    return {row[0]: row[1:] for row in rows}


def _cause(id: str, ended: Sequence[Any] | None) -> str:
    if ended is None:
        return cause(id, "", State.SUCCEEDED, None, has_result=False)
    name, state, story, has_result, _ = ended
    return cause(id, name, State(state), _last(state, story), has_result=bool(has_result))


def _last(state: str, story: str) -> Attempt | None:
    told = () if state == State.SUCCEEDED else attempts(story)
    return told[-1] if told else None
