"""Makes and upgrades the schema: the numbered SQL files of this package, each in a transaction."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.session import SchemaError, Translated, migrations

__all__ = ["missing", "script", "set_up"]

# The newest number that programs must know to use the schema as each file leaves it; a file that is not named here
# leaves what those before it did usable: programs of the previous version go on beside it.
_NEEDS: dict[int, int] = {6: 6}


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


def missing(connection: psycopg.Connection, place: Place) -> list[int]:
    """The numbers of the files that have not been applied; all where there is no schema of ours."""
    with Translated(place):
        (there,) = connection.execute("SELECT to_regclass(%s)", (f'"{place.schema}".versions',)).fetchone() or (None,)
        rows = connection.execute(f'SELECT number FROM "{place.schema}".versions'.encode()).fetchall() if there else []
    applied = {number for (number,) in rows}
    return [number for number, _, _ in migrations() if number not in applied]


def set_up(place: Place, *, upgrade: bool, dry_run: bool, say: Callable[[str], object]) -> None:
    """Apply the files that are missing; two who do it at once take turns.

    upgrade: a schema that is there is upgraded; else it must not be older.
    dry_run: everything is done, and then undone.
    Raises SchemaError where an older schema is there and no upgrade was asked for.
    """
    with Translated(place):
        connection = psycopg.connect(place.conninfo, autocommit=True)
    with connection:
        todo = missing(connection, place)
        if not todo:
            say(f"{place.shown}: schema {place.schema} is up to date")
            return
        if len(todo) < len(migrations()) and not upgrade:
            raise SchemaError(
                f"{place.shown}: schema {place.schema} is there and older than this program: "
                "run taskqueue setup-db --upgrade"
            )
        # One transaction where all is undone again: later files need what earlier ones made.
        if dry_run:
            with Translated(place), connection.transaction(force_rollback=True):
                _apply(connection, place, todo, say, "would be applied")
        else:
            for number in todo:
                with Translated(place), connection.transaction():
                    _apply(connection, place, [number], say, "applied")


def _apply(
    connection: psycopg.Connection, place: Place, numbers: list[int], say: Callable[[str], object], word: str
) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s), hashtext('setup'))", (place.schema,))
    connection.execute("SET LOCAL lock_timeout = '10s'")  # running carriers must not be kept waiting behind us
    there = missing(connection, place)
    for number, name, text in migrations():
        if number in numbers and number in there:
            connection.execute(_filled(place, text).encode())
            connection.execute(_note(place, number, name).encode())
            say(f"{place.shown}: {name} {word}")


def _filled(place: Place, text: str) -> str:
    return text.replace("@schema@", f'"{place.schema}"').replace("@name@", place.schema)


def _note(place: Place, number: int, name: str) -> str:
    needs = max((needs for file, needs in _NEEDS.items() if file <= number), default=0)
    return f"INSERT INTO \"{place.schema}\".versions (number, name, needs) VALUES ({number}, '{name}', {needs})"
