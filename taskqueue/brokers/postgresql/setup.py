"""Makes and upgrades the schema: the numbered SQL files of this package, each in a transaction."""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import psycopg

from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.session import SchemaError, Translated, migrations
from taskqueue.retry import backoff

__all__ = ["missing", "script", "set_up"]

# The newest number that programs must know to use the schema as each file leaves it; a file that is not named here
# leaves what those before it did usable: programs of the previous version go on beside it.
NEEDS: Mapping[int, int] = MappingProxyType({6: 6, 7: 7, 8: 8})

# For functions that find their few rows by an index.  The planner is kept from reading whole tables: statistics of a
# table that is empty now and full then mislead it.  What that forbids costs so much on paper that PostgreSQL would
# compile it each time, for 10 ms, and plan it each time, for hundreds of microseconds.
_BY_INDEX = "SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan"
# The same for those that take rows by the places or keys that others found, in turns of a few.  They hold for whatever
# such a function calls: to set and reset them in each of these, too, costs as much as a statement.
FEW = f"{_BY_INDEX} SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off"

PATIENCE = 30.0  # seconds
File = tuple[int, str, str]  # as of `migrations`
_OWNER = """SELECT pg_get_userbyid(c.relowner), pg_has_role(c.relowner, 'USAGE')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = 'versions'"""


def script(place: Place, *, upgrade: bool = False) -> str:
    """Plain SQL that makes the schema, for whoever may; without psql's commands.

    upgrade: only what is missing, for which the database is asked.
    """
    numbers = [number for number, _, _ in migrations()]
    if upgrade:
        with Translated(place), psycopg.connect(place.conninfo, autocommit=True) as connection:
            numbers = missing(connection, place)
    return "\n".join(
        f"-- {name}\nBEGIN;\n{_filled(place, text).rstrip()}\n\n{_note(place, number, name)};\nCOMMIT;\n"
        for number, name, text in migrations()
        if number in numbers
    )


def missing(connection: psycopg.Connection, place: Place, files: Sequence[File] | None = None) -> list[int]:
    """The numbers of the files that have not been applied; all where there is no schema of ours.

    Raises SchemaError where this role may not do anything about it.
    """
    with Translated(place):
        owner = connection.execute(_OWNER, (place.schema,)).fetchone()
        if owner is not None and not owner[1]:
            raise SchemaError(
                f"{place.shown}: schema {place.schema} belongs to the role {owner[0]}, of which this one is no member: "
                f"run taskqueue setup-db as {owner[0]}"
            )
        rows = connection.execute(f'SELECT number FROM "{place.schema}".versions'.encode()).fetchall() if owner else []
    applied = {number for (number,) in rows}
    return [number for number, _, _ in files or migrations() if number not in applied]


def set_up(
    place: Place,
    *,
    upgrade: bool,
    dry_run: bool,
    say: Callable[[str], object],
    files: Sequence[File] | None = None,
    needs: Mapping[int, int] = NEEDS,
    patience: float = PATIENCE,
) -> None:
    """Apply the files that are missing; two who do it at once take turns.

    upgrade: a schema that is there is upgraded; else it must not be older.
    dry_run: everything is done, and then undone.
    files, needs: what makes the schema; None: what this program has.
    patience: seconds to wait for those who use the schema.  Nobody who works with it is kept waiting for more than half
    a second at a time.

    Raises SchemaError where an older schema is there and no upgrade was asked for, where carriers run that could not
    use it afterwards, where others don't let go of it, and where this role may not do it.
    """
    known = list(files or migrations())
    with Translated(place):
        connection = psycopg.connect(place.conninfo, autocommit=True)
    with connection:
        todo = missing(connection, place, known)
        if not todo:
            say(f"{place.shown}: schema {place.schema} is up to date")
            return
        if len(todo) < len(known):
            if not upgrade:
                raise SchemaError(
                    f"{place.shown}: schema {place.schema} is there and older than this program: "
                    "run taskqueue setup-db --upgrade"
                )
            _refuse_carriers(connection, place, sorted(needs.keys() & set(todo)))
        chosen = [file for file in known if file[0] in todo]
        # One transaction where all is undone again: later files need what earlier ones made.
        for part in [chosen] if dry_run else [[file] for file in chosen]:
            word = "would be applied" if dry_run else "applied"
            for name in _patiently(connection, place, part, needs, dry_run=dry_run, patience=patience):
                say(f"{place.shown}: {name} {word}")


def _refuse_carriers(connection: psycopg.Connection, place: Place, numbers: Sequence[int]) -> None:
    """Where one of these files is for new programs alone, no carrier may be at work: it would fail from then on."""
    if not numbers:
        return
    sql = (
        f'SELECT host, pid FROM "{place.schema}".carriers WHERE renewed > now() - make_interval(secs => 2 * heartrate)'
    )
    with Translated(place):
        running = connection.execute(f"{sql} ORDER BY host, pid".encode()).fetchall()
    if running:
        processes = ", ".join(f"process {pid} on {host}" for host, pid in running)
        raise SchemaError(
            f"{place.shown}: programs of the present version can't use schema {place.schema} after this upgrade, and "
            f"there are {processes}: stop all daemons, then upgrade"
        )


def _patiently(
    connection: psycopg.Connection,
    place: Place,
    files: Sequence[File],
    needs: Mapping[int, int],
    *,
    dry_run: bool,
    patience: float,
) -> list[str]:
    """Apply `files` in a transaction, again and again until nobody is in the way: the names of those applied."""
    deadline = time.monotonic() + patience
    for failures in itertools.count():
        with Translated(place):
            try:
                with connection.transaction(force_rollback=dry_run):
                    return _apply(connection, place, files, needs)
            except psycopg.errors.InsufficientPrivilege as error:
                raise SchemaError(
                    f"{place.shown}: {error.diag.message_primary}: run taskqueue setup-db as a role that may create a "
                    f"schema in this database, or as the owner of schema {place.schema}"
                ) from None
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                pass
        if time.monotonic() >= deadline:
            raise SchemaError(
                f"{place.shown}: {files[0][1]} was not applied: for {patience:g} s others used what it changes without "
                "a pause, and it keeps nobody waiting. End long transactions (SELECT pid, xact_start, query FROM "
                "pg_stat_activity ORDER BY xact_start), or stop the daemons, and run it again"
            )
        time.sleep(backoff(failures, base=0.1, maximum=2.0, jitter=random.random()))
    raise AssertionError("unreachable")


def _apply(connection: psycopg.Connection, place: Place, files: Sequence[File], needs: Mapping[int, int]) -> list[str]:
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s), hashtext('setup'))", (place.schema,))
    connection.execute("SET LOCAL lock_timeout = '500ms'")  # running carriers must not be kept waiting behind us
    there = missing(connection, place, files)
    applied = [file for file in files if file[0] in there]
    for number, name, text in applied:
        connection.execute(_filled(place, text).encode())
        connection.execute(_note(place, number, name, needs).encode())
    return [name for _, name, _ in applied]


def _filled(place: Place, text: str) -> str:
    words = {"@schema@": f'"{place.schema}"', "@name@": place.schema, "@by_index@": _BY_INDEX, "@few@": FEW}
    return functools.reduce(lambda filled, word: filled.replace(word, words[word]), words, text)


def _note(place: Place, number: int, name: str, needs: Mapping[int, int] = NEEDS) -> str:
    newest = max((needs[file] for file in needs if file <= number), default=0)
    return f"INSERT INTO \"{place.schema}\".versions (number, name, needs) VALUES ({number}, '{name}', {newest})"
