"""Statements inside a transaction of the caller's own, whatever the caller has it by.

Connections of psycopg and other drivers (DB-API 2.0), of sqlite3, SQLAlchemy's Connection and Session, and Django's
connection are known by what they offer: nothing of theirs is imported.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from taskqueue.errors import BrokerError, Unsupported
from taskqueue.workitem import Workitem

__all__ = ["Connection", "check_independent", "join", "sqlstate"]


class Connection:
    """The caller's connection, in whose transaction each statement is.

    driver: the driver's own connection behind it.
    execute: executes a statement, with %s where a value belongs, and reads nothing.
    """

    def __init__(self, driver: Any, execute: Callable[[str, tuple[object, ...]], object]) -> None:
        self.driver = driver
        self.execute = execute


def check_independent(workitems: Iterable[Workitem]) -> None:
    """Raise Unsupported for what depends on others: whoever ends these can't see it before the caller's commit."""
    for workitem in workitems:
        if workitem.after:
            raise Unsupported(
                f"workitem {workitem.id or 'without an id'} depends on others, so it can't be sent in a transaction of "
                "yours: send it after the commit, without `using`"
            )


def join(connection: Any) -> Connection:
    """The caller's connection as it is used here.

    Raises Unsupported for what is none, BrokerError where every statement would be a transaction of its own.
    """
    if hasattr(connection, "run_sync") or inspect.iscoroutinefunction(getattr(connection, "commit", None)):
        raise Unsupported(
            f"{_kind(connection)} is asynchronous: expected a plain connection; with SQLAlchemy, "
            "await connection.run_sync(lambda plain: queue.using(plain).send(...))"
        )
    if hasattr(connection, "get_bind") and callable(getattr(connection, "connection", None)):  # SQLAlchemy's Session
        connection = connection.connection()
    if hasattr(connection, "exec_driver_sql"):
        joined = _of_sqlalchemy(connection)
    elif hasattr(connection, "ensure_connection"):
        joined = _of_django(connection)
    elif hasattr(connection, "cursor") and hasattr(connection, "commit"):
        joined = Connection(connection, lambda sql, values: _execute(connection, sql, values))
    else:
        raise Unsupported(
            f"{_kind(connection)}: expected a connection of psycopg or sqlite3, SQLAlchemy's Connection or Session, "
            "or Django's connection"
        )
    if _commits_at_once(joined.driver):
        raise BrokerError(
            "the connection is in autocommit and no transaction has begun, so there is none to be part of: "
            "begin one first, or send without `using`"
        )
    return joined


def _kind(connection: object) -> str:
    return f"{type(connection).__module__}.{type(connection).__qualname__}"


def _of_sqlalchemy(connection: Any) -> Connection:
    connection.exec_driver_sql("SELECT 1")  # from here on it knows that there is something to commit
    pooled = connection.connection
    style = connection.dialect.paramstyle

    def execute(sql: str, values: tuple[object, ...]) -> None:
        if style == "numeric_dollar":
            sql = sql.replace("%s", "${}").format(*range(1, len(values) + 1))
        connection.exec_driver_sql(sql, values).close()

    return Connection(getattr(pooled, "driver_connection", pooled), execute)


def _of_django(connection: Any) -> Connection:
    connection.ensure_connection()
    return Connection(connection.connection, lambda sql, values: _execute(connection, sql, values))


def _execute(connection: Any, sql: str, values: tuple[object, ...]) -> None:
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(sql, values)


def _commits_at_once(driver: Any) -> bool:
    """Whether the next statement would be a transaction of its own, as far as the driver lets that be seen."""
    if hasattr(driver, "in_transaction"):  # sqlite3: in its older ways of working it begins one by itself
        by_itself = getattr(driver, "autocommit", None) is not True and driver.isolation_level is not None
        return not (driver.in_transaction or by_itself)
    status = getattr(getattr(driver, "info", None), "transaction_status", 0)
    return getattr(driver, "autocommit", False) is True and not status


def sqlstate(error: BaseException | None) -> str:
    """The SQLSTATE that a server gave for an error, whatever it is wrapped in; empty where there is none."""
    while error is not None:
        for name in ("sqlstate", "pgcode"):
            if isinstance(found := getattr(error, name, None), str):
                return found
        error = getattr(error, "orig", None) or error.__cause__
    return ""
