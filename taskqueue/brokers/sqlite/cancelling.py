"""What somebody wants no more while a carrier has it: wishes that come true.  No transaction begins or ends here.

A wish names a life by its number (`born`), so it is none for what is sent under the same id later.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from typing import Any

from taskqueue.brokers.sqlite import history
from taskqueue.brokers.sqlite.schema import FIELDS, LENT, LIFE, from_row, life_of, with_id

__all__ = ["exist", "forget", "is_free", "lent", "sweep", "take", "those_of", "wish"]

_NUMBERS = "(SELECT value FROM json_each(?))"
_NUMBER = "CASE WHEN workitems.born <= 0 THEN seq ELSE workitems.born END"
# From the wishes, which are few, to the rows: never the other way round.
_LIVE = f"unwanted CROSS JOIN workitems ON {with_id('unwanted.id')} AND {_NUMBER} = unwanted.born"


def exist(connection: sqlite3.Connection) -> bool:
    """Whether there are any.  Where there are none, this is all that it costs."""
    return connection.execute("SELECT 1 FROM unwanted LIMIT 1").fetchone() is not None


def wish(connection: sqlite3.Connection, id: str) -> bool:
    """What is lent and has this id is wanted no more; False where nothing is."""
    sql = f"""INSERT OR REPLACE INTO unwanted (born, id) SELECT {_NUMBER}, id FROM workitems
        WHERE {with_id("?1")} AND state = {LENT}"""
    return connection.execute(sql, (id,)).rowcount > 0


def lent(connection: sqlite3.Connection, carrier: int) -> list[int]:
    """The sequence numbers of what `carrier` has, and nobody wants."""
    sql = f"SELECT seq FROM {_LIVE} WHERE state = {LENT} AND carrier = ?"
    return [seq for (seq,) in connection.execute(sql, (carrier,)).fetchall()]


def those_of(connection: sqlite3.Connection, lives: Iterable[int]) -> set[int]:
    """Which of these lives nobody wants."""
    if not exist(connection):
        return set()
    sql = f"SELECT born FROM unwanted WHERE born IN {_NUMBERS}"
    return {born for (born,) in connection.execute(sql, (json.dumps(list(lives)),)).fetchall()}


def is_free(connection: sqlite3.Connection) -> bool:
    """Whether anything is there to `take`.  Reads only."""
    return connection.execute(f"SELECT 1 FROM {_LIVE} WHERE state <> {LENT} LIMIT 1").fetchone() is not None


def take(connection: sqlite3.Connection, now: float) -> list[tuple[Any, ...]]:
    """Take out of their queues what nobody wants and nobody has; the values of ENDED_COLUMNS for it."""
    if not exist(connection):
        return []
    sql = f"""DELETE FROM workitems WHERE seq IN (SELECT seq FROM {_LIVE} WHERE state <> {LENT})
        RETURNING {LIFE}, {FIELDS}"""
    lives = [(from_row(row[3:]), life_of(row[:3])) for row in connection.execute(sql).fetchall()]
    return [history.cancelled(workitem, life, now) for workitem, life in lives if life is not None]


def forget(connection: sqlite3.Connection, lives: Iterable[int]) -> None:
    """These have ended."""
    if not exist(connection):
        return
    connection.execute(f"DELETE FROM unwanted WHERE born IN {_NUMBERS}", (json.dumps(list(lives)),))


def sweep(connection: sqlite3.Connection) -> None:
    """Forget what has ended without a word."""
    connection.execute(f"DELETE FROM unwanted WHERE born NOT IN (SELECT unwanted.born FROM {_LIVE})")
