"""Connections: opened, checked, and with errors of ours.

Each statement is one call of a function.  Statements are prepared, which is worth a third of a `send`, only where
LISTEN is used, too; without (`notify=off`), everything works through a pgbouncer in transaction mode.
"""

from __future__ import annotations

import json
from importlib import resources

import psycopg

from taskqueue.brokers.postgresql.place import Place
from taskqueue.errors import BrokerError, BrokerUnavailable, DuplicateTask, TaskQueueError, UnknownTask

__all__ = [
    "DENIED",
    "DUPLICATE",
    "LEASE",
    "MISSING",
    "UNKNOWN",
    "LeaseLost",
    "SchemaError",
    "Translated",
    "connect",
    "connect_async",
    "migrations",
    "newest",
]

MISSING = ("3F000", "42P01", "42883")
"""The SQLSTATEs of: no such schema, table, function."""
DENIED = "42501"
"""The SQLSTATE of a right that is lacking."""
LEASE = "TQ001"
"""The SQLSTATE of a lease that is lost."""
UNKNOWN, DUPLICATE = "TQ004", "TQ005"
"""The SQLSTATEs of an id that is not known, and of one that something has which is not over; the detail is the id."""
_POOLED = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)
_PASSING = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.FeatureNotSupported,  # a statement was prepared before an upgrade of the schema
)
_PATIENCE = b"SELECT set_config(key, value, false) FROM json_each_text(%s)"


class LeaseLost(BrokerError):
    """The carrier has no lease any more: somebody else may have what it was lent."""


class SchemaError(BrokerError):
    """The schema is not there, or not of a version that this program can use; the message says what to do."""


def migrations() -> list[tuple[int, str, str]]:
    """The files that make the schema: number, name and text, in order."""
    found = [file for file in resources.files(__package__).iterdir() if file.name.endswith(".sql")]
    return [
        (int(file.name[:4]), file.name, file.read_text(encoding="utf-8"))
        for file in sorted(found, key=lambda file: file.name)
    ]


def newest() -> int:
    """The number of the newest file that this program knows."""
    return migrations()[-1][0]


async def connect_async(place: Place) -> psycopg.AsyncConnection:
    """A connection for an event loop, in autocommit, to a schema that can be used."""
    with Translated(place):
        connection = await psycopg.AsyncConnection.connect(
            place.conninfo, autocommit=True, prepare_threshold=_prepare(place)
        )
    try:
        with Translated(place):
            found = await (await connection.execute(_version(place))).fetchone()
            await connection.execute(_PATIENCE, [json.dumps(_patience(place))])
        _check(place, found)
    except BaseException:
        await connection.close()
        raise
    return connection


def connect(place: Place) -> psycopg.Connection:
    """A plain connection, in autocommit, to a schema that can be used."""
    with Translated(place):
        connection = psycopg.connect(place.conninfo, autocommit=True, prepare_threshold=_prepare(place))
    try:
        with Translated(place):
            found = connection.execute(_version(place)).fetchone()
        _check(place, found)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(place: Place) -> int | None:
    """Uses after which a statement is prepared."""
    return 2 if place.notify else None


def _version(place: Place) -> bytes:
    return f'SELECT newest, needs FROM "{place.schema}".version()'.encode()


def _patience(place: Place) -> dict[str, int]:
    """Settings of the server: how long it waits for a host that is gone, which by default is a quarter of an hour.

    A host may vanish while it is sent a large claim, and until that transaction ends its lease is locked: no other one
    can take over.
    """
    seconds = max(1, round(place.heartrate))
    return {
        "tcp_user_timeout": 1000 * seconds,
        "tcp_keepalives_idle": seconds,
        "tcp_keepalives_interval": max(1, seconds // 4),
    }


def _check(place: Place, found: tuple[int, int] | None) -> None:
    ours = newest()
    there, needs = found or (0, 0)
    if there < ours:
        raise SchemaError(
            f"{place.shown}: schema {place.schema} is of version {there}, this program needs {ours}: "
            "run taskqueue setup-db --upgrade"
        )
    if needs > ours:
        raise SchemaError(
            f"{place.shown}: schema {place.schema} is of version {there}, which programs of version {needs} or later "
            f"can use, and this one is of {ours}: install a newer taskqueue"
        )


class Translated:
    """Raises our errors instead of psycopg's, in words that say what to do."""

    __slots__ = ("_place",)

    def __init__(self, place: Place) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, psycopg.Error):
            raise _translate(self._place, error) from None
        if isinstance(error, OSError):  # from the event loop
            raise BrokerUnavailable(f"{self._place.shown}: {error}") from None


def _translate(place: Place, error: psycopg.Error) -> TaskQueueError:
    text = " ".join((error.diag.message_primary or str(error)).split()) or type(error).__name__
    where, schema, state = place.shown, place.schema, error.sqlstate
    if state == LEASE:
        return LeaseLost(f"{where}: {text}")
    if state in (UNKNOWN, DUPLICATE):
        return (UnknownTask if state == UNKNOWN else DuplicateTask)(error.diag.message_detail or "")
    if state in MISSING and schema in text:
        return SchemaError(
            f"{where}: there is no usable schema {schema} ({text}): "
            "run taskqueue setup-db, or taskqueue setup-db --upgrade where an older one is there"
        )
    if state == DENIED:
        return BrokerError(f"{where}: {text}: this role lacks the rights that docs/postgresql.md grants")
    if isinstance(error, _POOLED):
        return BrokerUnavailable(f"{where}: {text}: behind a pooler in transaction mode, say ?notify=off")
    if isinstance(error, _PASSING):
        return BrokerUnavailable(f"{where}: {text}")
    return BrokerError(f"{where}: {text}")
