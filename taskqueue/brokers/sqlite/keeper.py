"""What has to be done with the file now and then: in small transactions, with pauses between them."""

from __future__ import annotations

import functools
import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from taskqueue.broker import Options
from taskqueue.brokers.sqlite import cancelling, carriers, dependencies, hours, queues
from taskqueue.brokers.sqlite.database import Database
from taskqueue.brokers.sqlite.outbox import Outbox
from taskqueue.brokers.sqlite.place import LockFile
from taskqueue.brokers.sqlite.schema import BLOCKED, NEEDED, WAITING
from taskqueue.clock import Clock
from taskqueue.errors import BrokerError
from taskqueue.upkeep import HOUR, Keep, Keeping, Round, dispensable
from taskqueue.workitem import DEAD_LETTERS, DROPPED

__all__ = ["Keeper"]

T = TypeVar("T")

BATCH = 100
"""Rows in a transaction: a millisecond or two, in which senders wait."""
REST = 9
"""So many times as long as a step took it rests after it: a tenth of the time is taken from others at most."""
GRACE = 300.0
"""Seconds after an hour until statistics are made of it: what ended in it is committed by then."""

_EMPTY = "UPDATE ended SET result = NULL, result_type = NULL, results = NULL WHERE born = ?"
_BREAK = "DELETE FROM promises WHERE life = ?"


class Keeper:
    """Over a connection of its own, in the thread that calls it; a lock file keeps it to one at a time.

    closing: set by whoever wants it to end; it raises BrokerError then.
    """

    def __init__(self, path: Path, synchronous: str, clock: Clock, options: Options, closing: threading.Event) -> None:
        self._path = path
        self._synchronous = synchronous
        self._clock = clock
        self._options = options
        self._closing = closing

    def round(self, keeping: Keeping) -> Round:
        """All that is to be done, until nothing is left of it."""
        database = Database(self._path, synchronous=self._synchronous)
        lock = LockFile(self._path, "chores")
        try:
            return self._round(database, keeping) if lock.take(wait=False) else Round(busy=True)
        finally:
            lock.close()
            database.close()

    def _round(self, database: Database, keeping: Keeping) -> Round:
        known = self._known(database, keeping)
        self._drop_expired(database)
        adopted = self._adopt(database)
        self._end_unwanted(database)
        return Round(
            carriers=adopted,
            results=self._bound_results(database) + self._expire_results(database),
            dead_letters=self._expire_letters(database),
            hours=self._make_statistics(database),
            records=self._drop_records(database, known),
            mended=self._mend(database),
        )

    def _rest(self, since: float) -> None:
        if self._closing.wait(REST * (time.monotonic() - since)):
            raise BrokerError(f"{self._path}: closed in the middle of its chores")

    def _read(self, database: Database, question: str, *values: object) -> list[tuple[Any, ...]]:
        with database.reading() as connection:
            return connection.execute(question, values).fetchall()

    def _write(self, database: Database, work: Callable[[sqlite3.Connection], T]) -> T:
        """A transaction, and a rest."""
        begun = time.monotonic()
        with database.writing(durable=False) as connection:
            begun = time.monotonic()
            result = work(connection)
        self._rest(begun)
        return result

    def _execute(self, database: Database, statement: str, *values: object) -> int:
        """A statement as a transaction: how many rows it changed."""
        return self._write(database, _changing(statement, *values))

    def _execute_all(self, database: Database, statement: str, rows: Sequence[Any]) -> int:
        """A statement for each of `rows`, BATCH of them in a transaction: how many rows they changed."""
        return self._write_all(database, functools.partial(_execute_many, statement=statement), rows)

    def _write_all(self, database: Database, work: Callable[..., int], rows: Sequence[Any]) -> int:
        """What is done with `rows`, BATCH of them in a transaction: how many rows that changed."""
        parts = (rows[n : n + BATCH] for n in range(0, len(rows), BATCH))
        return sum(self._write(database, functools.partial(work, rows=part)) for part in parts)

    def _repeat(self, database: Database, work: Callable[[sqlite3.Connection], int]) -> int:
        """What changes up to BATCH rows, until there are no more of them; how many there were."""
        count = 0
        while True:
            changed = self._write(database, work)
            count += changed
            if changed < BATCH:
                return count

    def _known(self, database: Database, keeping: Keeping) -> Keeping:
        """With what others said of types that this one does not know."""
        kept = {type: Keep(age, most) for type, age, most in self._read(database, "SELECT * FROM keeping")}
        news = [(type, *keep) for type, keep in keeping.types.items() if kept.get(type) != keep]
        self._execute_all(database, "INSERT OR REPLACE INTO keeping (type, age, most) VALUES (?, ?, ?)", news)
        return Keeping(default=keeping.default, types={**kept, **keeping.types}, statistics=keeping.statistics)

    def _adopt(self, database: Database) -> int:
        with database.reading() as connection:
            dead = carriers.orphans(connection, self._path)
        return self._write(database, lambda connection: carriers.adopt(connection, self._path)) if dead else 0

    def _end_unwanted(self, database: Database) -> None:
        """What nobody has is over, whether anybody would claim it or not."""
        with database.reading() as connection:
            if not cancelling.exist(connection):
                return
        outbox = Outbox(self._clock.wall())
        with database.writing(durable=False, told=outbox.told) as connection:
            outbox.record(cancelling.take(connection, outbox.now))
            cancelling.sweep(connection)
            outbox.store(connection)

    def _bound_results(self, database: Database) -> int:
        """The oldest results beyond the number that is kept; of those in records, readers are to see no more."""
        queue, most = self._options.results_queue, self._options.results_max_length
        sql = f"SELECT seq FROM workitems WHERE queue = ? AND state = {WAITING} ORDER BY priority DESC, seq DESC "
        beyond = self._read(database, f"{sql} LIMIT 1 OFFSET ?", queue, most)
        unread = "SELECT ended FROM ended WHERE results = ? ORDER BY ended DESC LIMIT 1 OFFSET ?"
        for (since,) in self._read(database, unread, queue, max(0, most - 1)):
            if self._read(database, "SELECT 1 FROM queues WHERE name = ? AND since >= ?", queue, since):
                continue
            self._execute(database, "INSERT OR REPLACE INTO queues (name, since) VALUES (?, ?)", queue, since)
        if not beyond:
            return 0
        old = f"""DELETE FROM workitems WHERE seq IN (
            SELECT seq FROM workitems WHERE queue = ? AND seq <= ? ORDER BY seq LIMIT {BATCH})"""
        return self._repeat(database, _changing(old, queue, beyond[0][0]))

    def _drop_expired(self, database: Database) -> None:
        """Of queues that nobody claims from; a dispatcher or a carrier makes dead letters of it."""
        now = self._clock.wall()
        sql = "SELECT DISTINCT queue FROM workitems INDEXED BY expiring "
        sql += f"WHERE expires <= ? AND state IN ({WAITING}, {BLOCKED})"
        for (queue,) in self._read(database, sql, now):
            while queue not in (DEAD_LETTERS, DROPPED):
                begun, outbox = time.monotonic(), Outbox(now)
                with database.writing(durable=False, told=outbox.told) as connection:
                    count = queues.drop_expired(connection, outbox, queue, now, BATCH)
                    outbox.store(connection)
                self._rest(begun)
                if count < BATCH:
                    break

    def _expire_letters(self, database: Database) -> int:
        now = self._clock.wall()
        new = f"SELECT seq FROM workitems WHERE queue = ? AND state = {WAITING} AND expires IS NULL"
        expires = now + self._options.dead_retention
        letters = [(expires, number, DEAD_LETTERS) for (number,) in self._read(database, new, DEAD_LETTERS)]
        self._execute_all(database, "UPDATE workitems SET expires = ? WHERE seq = ? AND queue = ?", letters)
        old = f"""DELETE FROM workitems WHERE seq IN (SELECT seq FROM workitems INDEXED BY expiring
            WHERE expires <= ? AND queue = ? AND state = {WAITING} LIMIT {BATCH}) RETURNING seq"""

        def drop(connection: sqlite3.Connection) -> int:
            numbers = [number for (number,) in connection.execute(old, (now, DEAD_LETTERS)).fetchall()]
            dependencies.forget(connection, numbers)
            return len(numbers)

        return self._repeat(database, drop)

    def _expire_results(self, database: Database) -> int:
        """Those whose time is over, in records that stay; but for what something needs."""
        over = f"until <= ? AND result IS NOT NULL AND NOT {NEEDED}"
        first = f"SELECT born FROM ended INDEXED BY ended_until WHERE {over} LIMIT {BATCH}"
        among = f"SELECT born FROM ended WHERE {over} AND id IN (SELECT value FROM json_each(?)) LIMIT {BATCH}"
        now = self._clock.wall()

        def drop(connection: sqlite3.Connection) -> int:
            numbers = connection.execute(first, (now,)).fetchall()
            dropped = 0
            while numbers and dropped < BATCH:  # those that are dropped may have promised others, and so on
                connection.executemany(_EMPTY, numbers)
                dropped += len(numbers)
                promised = [id for number in numbers for (id,) in connection.execute(f"{_BREAK} RETURNING id", number)]
                numbers = connection.execute(among, (now, json.dumps(promised))).fetchall()
            return dropped

        return self._repeat(database, drop)

    def _mend(self, database: Database) -> int:
        with database.reading() as connection:
            if not dependencies.is_wrong(connection):
                return 0
        outbox = Outbox(self._clock.wall())
        with database.writing(durable=False, told=outbox.told) as connection:
            count = outbox.mend(connection)
            outbox.store(connection)
        return count

    def _make_statistics(self, database: Database) -> int:
        """Hour by hour; the transaction that stores one says so, too, so that none is counted twice."""
        now = self._clock.wall()
        with database.reading() as connection:
            begin = hours.rolled(connection, now)
        for count in itertools.count():
            hour = begin + count * HOUR
            if hour + HOUR + GRACE > now:
                return count
            with database.reading() as connection:
                resting = _Resting(self._rest)
                tallies = hours.counted(connection, hour, hour + HOUR, between=resting)
            if not self._write(database, functools.partial(hours.roll, hour=hour, tallies=tallies)):
                return count
        raise AssertionError("unreachable")

    def _drop_records(self, database: Database, keeping: Keeping) -> int:
        """All of a type's in an hour or none, once they are in the statistics."""
        now = self._clock.wall()
        kept = self._read(
            database, "SELECT hour, type, (SELECT sum(value) FROM json_each(counts)) FROM statistics WHERE NOT gone"
        )
        todo: dict[float, set[str]] = {}
        for hour, type in sorted(dispensable(kept, keeping, now)):
            todo.setdefault(hour, set()).add(type)
        dropped = 0
        for hour, types in todo.items():
            resting = _Resting(self._rest)
            born: list[tuple[int]] = []
            with database.reading() as connection:
                for rows in hours.found(connection, hour, hour + HOUR, "type"):
                    born += [(number,) for number, type in rows if type in types]
                    resting()
            count = self._write_all(database, _drop_unneeded, born)
            dropped += count
            if count < len(born):  # something needs the others
                continue
            gone = [(hour, type) for type in sorted(types)]
            self._execute_all(database, "UPDATE statistics SET gone = 1 WHERE hour = ? AND type = ?", gone)
        old = "SELECT 1 FROM statistics WHERE gone AND hour < ? LIMIT 1"
        if self._read(database, old, int(now - keeping.statistics)):
            sql = f"""DELETE FROM statistics WHERE (hour, type) IN (
                SELECT hour, type FROM statistics WHERE gone AND hour < ? LIMIT {BATCH})"""
            self._repeat(database, _changing(sql, int(now - keeping.statistics)))
        return dropped


class _Resting:
    """A rest after each step, as long as that took."""

    def __init__(self, rest: Callable[[float], None]) -> None:
        self._rest = rest
        self._since = time.monotonic()

    def __call__(self) -> None:
        self._rest(self._since)
        self._since = time.monotonic()


def _changing(statement: str, *values: object) -> Callable[[sqlite3.Connection], int]:
    """A statement, as what is done in a transaction: how many rows it changed."""
    return lambda connection: int(connection.execute(statement, values).rowcount)


def _drop_unneeded(connection: sqlite3.Connection, *, rows: Sequence[tuple[int]]) -> int:
    """Drop these records, and what they have promised."""
    count = connection.executemany(f"DELETE FROM ended WHERE born = ? AND NOT {NEEDED}", rows).rowcount
    connection.executemany(f"{_BREAK} AND NOT EXISTS (SELECT 1 FROM ended WHERE born = life)", rows)
    return count


def _execute_many(connection: sqlite3.Connection, *, statement: str, rows: Sequence[Any]) -> int:
    return connection.executemany(statement, rows).rowcount
