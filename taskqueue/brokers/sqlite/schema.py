"""What is in the file, and how a workitem is written down there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from taskqueue.properties import from_text, to_text
from taskqueue.workitem import Workitem

__all__ = [
    "APPLICATION_ID",
    "BLOCKED",
    "COLUMNS",
    "FIELDS",
    "KEPT",
    "LATE",
    "LENT",
    "LIFE",
    "MIGRATIONS",
    "NEEDED",
    "SCHEDULED",
    "TOLD",
    "VERSION",
    "WAITING",
    "Life",
    "from_row",
    "life_of",
    "to_row",
    "with_id",
]

APPLICATION_ID = 0x74617371  # "tasq": says in the file's header whose file it is
VERSION = 6

WAITING, SCHEDULED, LENT, BLOCKED = 0, 1, 2, 3
LATE = 7200
TOLD = -1

# seq is the order in which workitems came, and the time in microseconds: so a row that was deleted gives its number to
# no other one (but for a clock that is set back to that very microsecond; the fence is the carrier's number as well).
# AUTOINCREMENT would promise it without that, at the price of one more page in each transaction.
# The indexes are partial, so that each holds only the rows that its question is about.  What is lent has none: only the
# death of a carrier asks for it.
_FIRST = f"""
CREATE TABLE workitems (
    seq INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    state INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    due REAL,
    expires REAL,
    carrier INTEGER,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    reference TEXT NOT NULL,
    content_type TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    properties TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX waiting ON workitems (queue, priority DESC, seq) WHERE state = {WAITING};
CREATE INDEX scheduled ON workitems (due) WHERE state = {SCHEDULED};
CREATE INDEX expiring ON workitems (expires) WHERE expires IS NOT NULL;
CREATE TABLE queues (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE carriers (id INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL, since REAL NOT NULL) STRICT;
PRAGMA application_id = {APPLICATION_ID};
"""

# born: the first seq of this life, by which its record is known; 0: seq itself; TOLD: that, and the id tells it.  NULL:
# it is a result or a dead letter.
# story: its attempts so far.  running: the one under way.  (All of them JSON; see `history`.)
# results: the queue whose readers have still to get the result; it is moved there when somebody reads that queue.
# since: from when on a queue has such results; older ones were too many.
# What ended in an hour is found by when it was sent, in whose order the rows are; so only what took longer than LATE
# seconds needs an index, and what is quick pays for none.
# statistics: of an hour (POSIX seconds of its begin) and a type, JSON (see `taskqueue.statistics`).  gone: its records
# are.  rolled: they are made up to this hour.  keeping: what carriers said of how long which type's records are kept.
_SECOND = f"""
ALTER TABLE workitems ADD COLUMN born INTEGER;
ALTER TABLE workitems ADD COLUMN sender TEXT NOT NULL DEFAULT '';
ALTER TABLE workitems ADD COLUMN story TEXT NOT NULL DEFAULT '';
ALTER TABLE workitems ADD COLUMN running TEXT NOT NULL DEFAULT '';
CREATE INDEX referring ON workitems (reference) WHERE reference <> '' AND born IS NOT NULL;
CREATE TABLE ended (
    born INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    reference TEXT NOT NULL,
    priority INTEGER NOT NULL,
    state TEXT NOT NULL,
    sender TEXT NOT NULL,
    ended REAL NOT NULL,
    story TEXT NOT NULL,
    running TEXT NOT NULL,
    result_type TEXT,
    result BLOB,
    results TEXT
) STRICT;
CREATE INDEX ended_ids ON ended (id);
CREATE INDEX ended_referring ON ended (reference) WHERE reference <> '';
CREATE INDEX unread ON ended (results, ended) WHERE results IS NOT NULL;
ALTER TABLE queues ADD COLUMN since REAL NOT NULL DEFAULT 0;
CREATE INDEX ended_late ON ended (ended) WHERE ended - born / 1e6 > {LATE};
CREATE TABLE statistics (
    hour INTEGER NOT NULL,
    type TEXT NOT NULL,
    counts TEXT NOT NULL,
    waited TEXT NOT NULL,
    ran TEXT NOT NULL,
    gone INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (hour, type)
) STRICT, WITHOUT ROWID;
CREATE TABLE rolled (until INTEGER NOT NULL) STRICT;
CREATE TABLE keeping (type TEXT PRIMARY KEY, age REAL NOT NULL, most INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""

# dependencies: what a life depends on, by its number (`born`), from its begin to its end; of a dead letter by its seq.
# life: which life of that has ended, by its number; 0: nothing is known of it; NULL: it is pending.  What waits for
# others has no counter: it is blocked while one is pending.
# until: from when on a result is not kept any longer, POSIX seconds.
# unwanted: lives that are lent, and that somebody wants no more, by their numbers; nearly always empty.
_THIRD = f"""
CREATE INDEX ids ON workitems (id) WHERE born IS NOT NULL;
CREATE INDEX blocked ON workitems (queue) WHERE state = {BLOCKED};
CREATE TABLE dependencies (
    dependent INTEGER NOT NULL,
    position INTEGER NOT NULL,
    id TEXT NOT NULL,
    life INTEGER,
    PRIMARY KEY (dependent, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX dependents ON dependencies (id);
CREATE INDEX pending ON dependencies (dependent) WHERE life IS NULL;
ALTER TABLE ended ADD COLUMN until REAL;
CREATE INDEX ended_until ON ended (until) WHERE until IS NOT NULL AND result IS NOT NULL;
CREATE TABLE unwanted (born INTEGER PRIMARY KEY, id TEXT NOT NULL) STRICT;
"""

# Most ids tell when they were made.  Where that is the number as well, the row is found without an index (`with_id`): a
# page less in each transaction that sends one workitem.
_FOURTH = """
DROP INDEX ids;
CREATE INDEX ids ON workitems (id) WHERE born >= 0;
"""

# promises: what the results of lives that have ended need, by their numbers: the results of these ids are kept as long.
_FIFTH = """
CREATE TABLE promises (life INTEGER NOT NULL, id TEXT NOT NULL, PRIMARY KEY (life, id)) STRICT, WITHOUT ROWID;
CREATE INDEX promised ON promises (id);
"""

# task: the name of the task that a client called; of what has not ended it is among the properties.
_SIXTH = "ALTER TABLE ended ADD COLUMN task TEXT NOT NULL DEFAULT ''"

MIGRATIONS = (_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH)
"""The scripts that lead from one version of the schema to the next; the version is how many were applied."""

COLUMNS = (
    "queue, state, priority, due, expires, "
    "id, type, reference, content_type, attempt, crashes, failures, properties, body, born, sender, story"
)


FIELDS = "id, type, reference, content_type, attempt, crashes, failures, properties, body"
"""What `from_row` takes."""
LIFE = "CASE WHEN born <= 0 THEN seq ELSE born END, sender, story"
"""What `life_of` takes."""
NEEDED = """(EXISTS (SELECT 1 FROM dependencies WHERE dependencies.id = ended.id)
    OR EXISTS (SELECT 1 FROM promises WHERE promises.id = ended.id))"""
"""Whether something needs the result of a record: it, and the record, stay."""
KEPT = f"(until IS NULL OR until > :now OR {NEEDED})"
"""Whether that result is there, if there was one."""


def with_id(value: str, rows: str = "workitems") -> str:
    """The condition that lives among `rows` have the id `value`, an expression; for connections that know made_at."""
    return f"""({rows}.born >= 0 AND {rows}.id = {value}
        OR {rows}.born = {TOLD} AND {rows}.seq = made_at({value}) AND {rows}.id = {value})"""


class Life(NamedTuple):
    """What goes on from row to row while it is one life; the columns of these names."""

    born: int | None
    sender: str
    story: str


_NO_LIFE = Life(None, "", "")


def life_of(columns: Sequence[Any]) -> Life | None:
    """From LIFE; None where there is none."""
    return None if columns[0] is None else Life(*columns)


def to_row(queue: str, workitem: Workitem, life: Life | None, now: float, *, blocked: bool = False) -> tuple[Any, ...]:
    """The values of COLUMNS for `workitem` in `queue`.  blocked: it may have to wait for others."""
    scheduled = workitem.due is not None and workitem.due > now
    return (
        queue,
        BLOCKED if blocked else SCHEDULED if scheduled else WAITING,
        workitem.priority or 0,
        workitem.due if scheduled else None,
        None if workitem.expiration is None else max(now, workitem.due or now) + workitem.expiration,
        workitem.id,
        workitem.type,
        workitem.reference,
        workitem.content_type,
        workitem.attempt,
        workitem.crashes,
        workitem.failures,
        to_text(workitem),
        workitem.body,
        *(life or _NO_LIFE),
    )


def from_row(row: tuple[Any, ...]) -> Workitem:
    """The workitem of a row's FIELDS; what it depends on is elsewhere."""
    id, type, reference, content_type, attempt, crashes, failures, properties, body = row
    return Workitem(
        id=id,
        type=type,
        reference=reference,
        content_type=content_type,
        attempt=attempt,
        crashes=crashes,
        failures=failures,
        body=body,
        **from_text(properties),
    )
