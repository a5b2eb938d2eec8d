"""What is written down of a workitem's life, and how it is read again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

from taskqueue import depending
from taskqueue.broker import Ended
from taskqueue.brokers.sqlite.schema import BLOCKED, KEPT, SCHEDULED, Life, with_id
from taskqueue.depending import result_ends
from taskqueue.lifecycle import ENDED, State, after
from taskqueue.outcome import Effects, Payload, effects
from taskqueue.properties import from_text
from taskqueue.record import (
    DEPENDENCY,
    Attempt,
    Record,
    attempt_of,
    kept_result,
    promises_of,
    result_of,
    results_queue,
)
from taskqueue.story import attempts, more, running
from taskqueue.workitem import Workitem

__all__ = [
    "ENDED_COLUMNS",
    "Ending",
    "cancelled",
    "cause",
    "ended",
    "ending",
    "expired",
    "find",
    "has_unread",
    "live_ids",
    "records",
    "take_unread",
    "unmet",
]

ENDED_COLUMNS = (
    "born, id, type, reference, priority, state, sender, ended, story, running, result_type, result, until, task, "
    "results"
)
_ENDED = ENDED_COLUMNS.replace(" result,", f" iif({KEPT}, result, NULL),")
_LIVE = "seq, born, id, type, reference, priority, state, sender, due, attempt, story, running, properties"


class Ending(NamedTuple):
    """What one transaction does for a delivery that has ended.

    life: of what goes on of it.  record: the values of ENDED_COLUMNS, if it has ended for good; what was said while it
    ran takes the place of its `running`.  kept: whether the record is, also where nothing depends on it.
    promises: whose results are kept as long as the record's.
    """

    effects: Effects
    life: Life | None = None
    record: tuple[Any, ...] | None = None
    kept: bool = True
    promises: tuple[str, ...] = ()


def ending(item: Ended, life: Life | None, now: float) -> Ending:
    """Decide what becomes of a delivery.  No I/O: the same arguments give the same answer."""
    delivery, outcome, rules = item.delivery, item.outcome, item.rules
    workitem = delivery.workitem
    results = results_queue(workitem, outcome, rules, item.run) if life is not None else ""
    todo = effects(workitem, outcome, rules, queue=delivery.queue, now=now, recorded=bool(results))
    if life is None:
        return Ending(todo)
    state = after(workitem, outcome, rules, now)
    attempt = attempt_of(workitem, outcome, state, now=now, run=item.run, log=item.log)
    life = life if attempt is None else Life(life.born, life.sender, more(life.story, attempt))
    if state not in ENDED:
        return Ending(todo, life)
    result = kept_result(workitem, outcome, rules)
    record = _ended(workitem, life, state, now, result, story=rules.history == "full", results=results)
    return Ending(todo, None, record, rules.history != "off", promises_of(workitem, outcome, rules))


def _ended(
    workitem: Workitem,
    life: Life,
    state: State,
    now: float,
    result: Payload | None = None,
    *,
    story: bool = True,
    results: str = "",
) -> tuple[Any, ...]:
    return (
        life.born,
        workitem.id,
        workitem.type,
        workitem.reference,
        workitem.priority or 0,
        str(state),  # which needs no adapter
        life.sender,
        now,
        life.story if story else "",
        "",
        None if result is None else result.content_type,
        None if result is None else result.body,
        None if result is None else result_ends(workitem, now),
        workitem.task,
        results or None,
    )


def expired(workitem: Workitem, life: Life, now: float) -> tuple[Any, ...]:
    """The values of ENDED_COLUMNS for what expired."""
    return _ended(workitem, life, State.EXPIRED, now)


def cancelled(workitem: Workitem, life: Life, now: float) -> tuple[Any, ...]:
    """The values of ENDED_COLUMNS for what was cancelled."""
    return _ended(workitem, life, State.CANCELLED, now)


def cause(record: tuple[Any, ...]) -> tuple[str, str]:
    """Of values of ENDED_COLUMNS the id, and `depending.cause`."""
    _, id, type, _, _, state, _, _, story, _, _, result, _, task, _ = record
    state = State(state)
    told = () if state == State.SUCCEEDED else attempts(story)
    return id, depending.cause(id, task or type, state, told[-1] if told else None, has_result=result is not None)


def unmet(workitem: Workitem, life: Life, why: str, now: float) -> tuple[Any, ...]:
    """The values of ENDED_COLUMNS for what ended because of what it depends on."""
    attempt = Attempt(workitem.attempt, DEPENDENCY, error=why)
    now = max(now, (life.born or 0) / 1e6)  # of many that are sent at once, the last ones have later numbers
    return _ended(workitem, life._replace(story=more(life.story, attempt)), State.FAILED, now)


# From rows to records.


def find(connection: sqlite3.Connection, id: str, now: float) -> Record | None:
    """The record of the latest life of `id`; None where there is none."""
    live = connection.execute(
        f"SELECT {_LIVE} FROM workitems WHERE {with_id('?1')} ORDER BY seq DESC LIMIT 1", (id,)
    ).fetchone()
    if live is not None:
        return _from_live(live)
    sql = f"SELECT {_ENDED} FROM ended WHERE id = :id ORDER BY born DESC LIMIT 1"
    ended = connection.execute(sql, {"id": id, "now": now}).fetchone()
    return None if ended is None else _from_ended(ended)


def live_ids(connection: sqlite3.Connection, ids: Sequence[str]) -> set[str]:
    """Those that have not ended."""
    sql = f"SELECT workitems.id FROM json_each(?) AS one CROSS JOIN workitems ON {with_id('one.value')}"
    return {id for (id,) in connection.execute(sql, (json.dumps(ids),))}


def ended(connection: sqlite3.Connection, ids: Sequence[str], now: float) -> dict[str, Record]:
    """The latest records of those that have ended."""
    sql = f"SELECT {_ENDED} FROM ended WHERE id IN (SELECT value FROM json_each(:ids)) ORDER BY born"
    found = {row[1]: row for row in connection.execute(sql, {"ids": json.dumps(ids), "now": now})}
    return {id: _from_ended(row) for id, row in found.items()}


def records(
    connection: sqlite3.Connection, *, reference: str, type: str, states: Sequence[State], limit: int, now: float
) -> list[Record]:
    """Records, the latest first; empty: of any."""
    conditions = [f"{name} = :{name}" for name, value in (("reference", reference), ("type", type)) if value]
    values: dict[str, Any] = {"reference": reference, "type": type, "limit": limit, "now": now}
    ended_in = [state for state in states or ENDED if state in ENDED]
    found: list[Record] = []
    if not states or len(ended_in) < len(states):
        where = " AND ".join(["born IS NOT NULL", *conditions])
        rows = connection.execute(f"SELECT {_LIVE} FROM workitems WHERE {where} ORDER BY seq DESC", values)
        for row in rows:
            record = _from_live(row)
            if not states or record.state in states:
                found.append(record)
            if len(found) == limit:
                break
    if ended_in:
        where = " AND ".join([f"state IN ({','.join(repr(str(state)) for state in ended_in)})", *conditions])
        sql = f"SELECT {_ENDED} FROM ended WHERE {where} ORDER BY born DESC LIMIT :limit"
        found += [_from_ended(row) for row in connection.execute(sql, values)]
    return sorted(found, key=lambda record: record.sent, reverse=True)[:limit]


def _from_live(row: Sequence[Any]) -> Record:
    seq, born, id, type, reference, priority, number, sender, due, attempt, story, said, properties = row
    tried = attempts(story)
    run, progress = running(said)
    if number == BLOCKED:
        state = State.BLOCKED
    elif run is not None:
        state = State.RUNNING
    elif tried and tried[-1].outcome == "lost":
        state = State.LOST
    elif attempt > 1 or (tried and tried[-1].outcome != "released"):
        state = State.RETRYING
    else:
        state = State.SCHEDULED if number == SCHEDULED else State.WAITING
    return Record(
        id=id, type=type, state=state, sent=(born if born > 0 else seq) / 1e6,
        task=Workitem(b"", **from_text(properties)).task, sender=sender, reference=reference, priority=priority,
        due=due, attempts=tried, running=run, progress=progress,
    )  # fmt: skip


def _from_ended(row: Sequence[Any]) -> Record:
    born, id, type, reference, priority, state, sender, ended, story, said, result_type, result, _, task, _ = row
    return Record(
        id=id, type=type, state=State(state), sent=born / 1e6, task=task, sender=sender, reference=reference,
        priority=priority, ended=ended, attempts=attempts(story), progress=running(said)[1],
        result=None if result is None else Payload(result, result_type),
    )  # fmt: skip


# Results, which wait in the records as long as nobody reads their queue.

_UNREAD = "results = ?1 AND ended >= ifnull((SELECT since FROM queues WHERE name = ?1), 0)"


def has_unread(connection: sqlite3.Connection, queue: str) -> bool:
    """Whether results for the readers of `queue` are in records."""
    return connection.execute(f"SELECT 1 FROM ended WHERE {_UNREAD} LIMIT 1", (queue,)).fetchone() is not None


def take_unread(connection: sqlite3.Connection, queue: str, limit: int) -> list[Workitem]:
    """The first results for the readers of `queue`, who get them now, and not again."""
    rows = connection.execute(
        f"""UPDATE ended SET results = NULL WHERE born IN (
            SELECT born FROM ended WHERE {_UNREAD} ORDER BY ended, born LIMIT ?2
        ) RETURNING {ENDED_COLUMNS}""",
        (queue, limit),
    ).fetchall()
    records = list(map(_from_ended, rows))
    found = sorted(records, key=lambda record: (record.ended, record.sent))  # RETURNING has no order
    return [result_of(record) for record in found]
