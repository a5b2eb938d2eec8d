"""Sending in the caller's own transaction, with the libraries that callers have."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import django.db
import psycopg
import psycopg2
import pytest
import sqlalchemy
from databases import PRODUCER, PostgreSQL, with_schema
from django.conf import settings
from django.db import transaction
from django.db.utils import ConnectionHandler
from embedded import drain, run
from sqlalchemy.orm import Session

import taskqueue
from taskqueue.errors import BrokerError, Unsupported
from taskqueue.workitem import Workitem

Steps = Callable[[Any], None]


class PostgreSQLPlace:
    """A database with a table of the shop's, and its producer's rights only."""

    def __init__(self, server: PostgreSQL) -> None:
        self.server = server
        self.name = server.database(with_schema)
        self.url = server.url(self.name)
        self.conninfo = server.url(self.name, user=PRODUCER)
        self.sqlalchemy = self.conninfo.replace("postgresql:", "postgresql+psycopg:")
        self.begin = "BEGIN"
        with contextlib.closing(server.admin(self.name)) as connection:
            connection.execute("CREATE TABLE orders (id integer)")
            connection.execute(f'GRANT ALL ON orders TO "{PRODUCER}"'.encode())

    @property
    def django(self) -> dict[str, Any]:
        return {
            "ENGINE": "django.db.backends.postgresql", "NAME": self.name, "USER": PRODUCER,
            "PASSWORD": self.server.password, "HOST": "127.0.0.1", "PORT": self.server.port,
        }  # fmt: skip

    def connect(self) -> Any:
        return psycopg.connect(self.conninfo)

    def orders(self) -> list[int]:
        with contextlib.closing(self.server.admin(self.name)) as connection:
            return [n for (n,) in connection.execute("SELECT id FROM orders ORDER BY id")]


class SQLitePlace:
    """A file that taskqueue set up, and that has a table of the shop's, too."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "shop.db"
        self.url = f"sqlite:///{self.file}"
        self.sqlalchemy = f"sqlite:///{self.file}"
        self.django = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(self.file)}
        with taskqueue.connect(self.url) as queue, contextlib.closing(self.connect()) as connection:
            queue.using(connection)
            connection.execute("CREATE TABLE orders (id integer)")
            connection.commit()

    def connect(self) -> Any:
        return sqlite3.connect(self.file)

    def orders(self) -> list[int]:
        with contextlib.closing(self.connect()) as connection:
            return [n for (n,) in connection.execute("SELECT id FROM orders ORDER BY id")]


Place = PostgreSQLPlace | SQLitePlace


@pytest.fixture(params=[pytest.param("postgresql", marks=pytest.mark.services), "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return SQLitePlace(tmp_path)
    return PostgreSQLPlace(request.getfixturevalue("postgresql"))


@pytest.fixture
def queue(place: Place) -> Iterator[taskqueue.Queue]:
    with taskqueue.connect(place.url) as queue:
        yield queue


@contextlib.contextmanager
def by_driver(place: Place) -> Iterator[tuple[Any, Any, Steps, Steps]]:
    """A connection to send by; and how to execute a statement, commit and roll back there."""
    with contextlib.closing(place.connect()) as connection:
        yield connection, connection.execute, lambda c: c.commit(), lambda c: c.rollback()


@contextlib.contextmanager
def by_sqlalchemy(place: Place) -> Iterator[tuple[Any, Any, Steps, Steps]]:
    engine = sqlalchemy.create_engine(place.sqlalchemy)
    with engine.connect() as connection:
        yield connection, connection.exec_driver_sql, lambda c: c.commit(), lambda c: c.rollback()
    engine.dispose()


@contextlib.contextmanager
def by_session(place: Place) -> Iterator[tuple[Any, Any, Steps, Steps]]:
    engine = sqlalchemy.create_engine(place.sqlalchemy)
    with Session(engine) as session:
        yield (
            session, lambda text: session.execute(sqlalchemy.text(text)), lambda s: s.commit(), lambda s: s.rollback(),
        )  # fmt: skip
    engine.dispose()


@contextlib.contextmanager
def by_django(place: Place) -> Iterator[tuple[Any, Any, Steps, Steps]]:
    if not settings.configured:
        settings.configure()
        django.setup()
    connection = ConnectionHandler({"default": place.django})["default"]
    connection.set_autocommit(False)

    def execute(text: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(text)

    yield connection, execute, lambda c: c.commit(), lambda c: c.rollback()
    connection.rollback()
    connection.set_autocommit(True)
    connection.close()


@contextlib.contextmanager
def connections(connection: Any) -> Iterator[None]:
    """Have `transaction.atomic()` mean this connection."""
    django.db.connections["default"] = connection
    try:
        yield
    finally:
        del django.db.connections["default"]


WAYS = (by_driver, by_sqlalchemy, by_session, by_django)
Way = Callable[[Place], contextlib.AbstractContextManager[tuple[Any, Any, Steps, Steps]]]


def received(url: str, count: int) -> list[Workitem]:
    found = run(url, lambda broker: drain(broker.consumer("worker_invoice", reserve=count), count))
    return [delivery.workitem for delivery in found]


@pytest.mark.parametrize("way", WAYS)
def test_it_is_sent_with_the_commit_and_not_with_a_rollback(queue: taskqueue.Queue, place: Place, way: Way) -> None:
    with way(place) as (connection, execute, commit, roll_back):
        execute("INSERT INTO orders VALUES (1)")
        rolled_back = queue.using(connection).send("invoice", 1, reference="order:1")
        roll_back(connection)
        execute("INSERT INTO orders VALUES (2)")
        committed = queue.using(connection).send("invoice", 2, reference="order:2")
        commit(connection)
        left_open = queue.using(connection).send("invoice", 3, reference="order:3")
        roll_back(connection)

    assert [(record.id, record.reference) for record in queue.history()] == [(committed, "order:2")]
    assert committed not in (rolled_back, left_open)
    assert place.orders() == [2]
    assert [w.body for w in received(place.url, 1)] == [b"2"]


@pytest.mark.parametrize("way", WAYS)
def test_a_send_that_is_the_first_statement_is_committed_as_well(
    queue: taskqueue.Queue, place: Place, way: Way
) -> None:
    with way(place) as (connection, _, commit, _):
        sender = queue.using(connection)
        ids = sender.send_many(sender.workitem("invoice", n) for n in range(1500))
        commit(connection)

    assert [w.id for w in received(place.url, 1500)] == ids


@pytest.mark.parametrize("way", WAYS)
def test_nobody_sees_it_before_the_commit(queue: taskqueue.Queue, place: Place, way: Way) -> None:
    with way(place) as (connection, _, commit, _):
        queue.using(connection).send("invoice", 1)

        assert queue.history() == []
        commit(connection)
    assert len(queue.history()) == 1


def test_what_a_savepoint_undoes_was_not_sent(queue: taskqueue.Queue, place: Place) -> None:
    with by_driver(place) as (connection, execute, commit, _):
        first = queue.using(connection).send("invoice", 1)
        execute("SAVEPOINT here")
        queue.using(connection).send("invoice", 2)
        execute("ROLLBACK TO SAVEPOINT here")
        last = queue.using(connection).send("invoice", 3)
        commit(connection)

    assert [w.id for w in received(place.url, 2)] == [first, last]


def test_in_an_atomic_block_of_django_and_nowhere_else(queue: taskqueue.Queue, place: Place) -> None:
    with by_django(place) as (connection, _, _, _):
        connection.rollback()
        connection.set_autocommit(True)
        with pytest.raises(BrokerError, match="autocommit"):
            queue.using(connection)
        with connections(connection), transaction.atomic():
            id = queue.using(connection).send("invoice", 1)
            assert queue.history() == []
        with pytest.raises(ZeroDivisionError), connections(connection), transaction.atomic():
            queue.using(connection).send("invoice", 2)
            raise ZeroDivisionError
    assert [record.id for record in queue.history()] == [id]


@pytest.mark.parametrize("kind", ["driver", "sqlalchemy"])
def test_a_connection_in_autocommit_is_refused_outside_of_a_transaction(
    queue: taskqueue.Queue, place: Place, kind: str
) -> None:
    with contextlib.ExitStack() as stack:
        if kind == "driver":
            connection = stack.enter_context(contextlib.closing(place.connect()))
            if isinstance(place, SQLitePlace):
                connection.isolation_level = None
            else:
                connection.autocommit = True
            begin, commit = (lambda: connection.execute("BEGIN")), (lambda: connection.execute("COMMIT"))
        else:
            engine = sqlalchemy.create_engine(place.sqlalchemy, isolation_level="AUTOCOMMIT")
            stack.callback(engine.dispose)
            connection = stack.enter_context(engine.connect())
            begin = lambda: connection.exec_driver_sql("BEGIN")  # noqa: E731
            commit = lambda: connection.exec_driver_sql("COMMIT")  # noqa: E731

        with pytest.raises(BrokerError, match="autocommit"):
            queue.using(connection)
        begin()
        queue.using(connection).send("invoice", 1)
        assert queue.history() == []
        commit()

    assert len(queue.history()) == 1


def test_rows_of_other_shapes_do_not_matter(queue: taskqueue.Queue, place: Place) -> None:
    with contextlib.closing(place.connect()) as connection:
        if isinstance(place, SQLitePlace):
            connection.row_factory = lambda cursor, row: dict(enumerate(row))
        else:
            connection.row_factory = psycopg.rows.dict_row
        id = queue.using(connection).send("invoice", 1)
        connection.commit()

    assert queue.status(id) == "waiting"


@pytest.mark.parametrize("wrong", [object(), "postgresql://", None])
def test_what_is_no_connection_is_refused(queue: taskqueue.Queue, wrong: object) -> None:
    with pytest.raises(Unsupported, match="expected a connection of psycopg or sqlite3"):
        queue.using(wrong)


@pytest.mark.services
def test_psycopg2_is_as_good(postgresql: PostgreSQL) -> None:
    place = PostgreSQLPlace(postgresql)
    with taskqueue.connect(place.url) as queue, contextlib.closing(psycopg2.connect(place.conninfo)) as connection:
        sender = queue.using(connection)
        ids = sender.send_many(sender.workitem("invoice", bytes([n]), reference="50% \\'") for n in range(256))
        connection.commit()
        sender.send("invoice", 0)
        connection.rollback()
        connection.autocommit = True
        with pytest.raises(BrokerError, match="autocommit"):
            queue.using(connection)
        connect_elsewhere = contextlib.closing(psycopg2.connect(postgresql.admin_url()))
        with connect_elsewhere as other, pytest.raises(BrokerError, match="without a usable schema taskqueue"):
            queue.using(other).send("invoice", 1)

    assert [(w.id, w.body) for w in received(place.url, 256)] == [(id, bytes([n])) for n, id in enumerate(ids)]


@pytest.mark.services
def test_another_database_is_noticed(postgresql: PostgreSQL) -> None:
    place, other = PostgreSQLPlace(postgresql), PostgreSQLPlace(postgresql)
    with taskqueue.connect(place.url) as queue, contextlib.closing(other.connect()) as connection:
        with pytest.raises(BrokerError, match=f"database {other.name} is not the one that the URL names"):
            queue.using(connection).send("invoice", 1)
        connection.rollback()
    with taskqueue.connect(place.url) as queue, psycopg.connect(postgresql.admin_url()) as connection:
        with pytest.raises(BrokerError, match="leads to a database without a usable schema taskqueue"):
            queue.using(connection).send("invoice", 1)
        connection.rollback()


def test_another_file_is_noticed(tmp_path: Path) -> None:
    place = SQLitePlace(tmp_path)
    other = sqlite3.connect(tmp_path / "other.db")
    for connection in (other, sqlite3.connect(":memory:")):
        with (
            taskqueue.connect(place.url) as queue,
            contextlib.closing(connection),
            pytest.raises(BrokerError, match="expected one to"),
        ):
            queue.using(connection)


def test_a_file_is_set_up_before_the_first_transaction_and_not_in_it(tmp_path: Path) -> None:
    with (
        taskqueue.connect(f"sqlite:///{tmp_path}/new.db") as queue,
        contextlib.closing(sqlite3.connect(tmp_path / "new.db", isolation_level=None)) as connection,
    ):
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(BrokerError, match="not set up yet"):
            queue.using(connection)
        connection.execute("ROLLBACK")
        connection.isolation_level = ""
        queue.using(connection).send("invoice", 1)
        connection.commit()
        assert len(queue.history()) == 1


@pytest.mark.services
def test_who_may_send_by_sql_only_hears_what_is_lacking(postgresql: PostgreSQL) -> None:
    place = PostgreSQLPlace(postgresql)
    with contextlib.closing(postgresql.admin(place.name)) as admin:
        postgresql.role("clerk")
        admin.execute("GRANT USAGE ON SCHEMA taskqueue TO clerk")
        clerk = psycopg.connect(postgresql.url(place.name, user="clerk"))
    with (
        taskqueue.connect(place.url) as queue,
        clerk,
        pytest.raises(BrokerError, match=r"permission denied .* docs/sending\.md"),
    ):
        queue.using(clerk).send("invoice", 1)


@pytest.mark.services
def test_an_error_of_the_callers_own_statements_stays_what_it_is(postgresql: PostgreSQL) -> None:
    place = PostgreSQLPlace(postgresql)
    with taskqueue.connect(place.url) as queue, contextlib.closing(place.connect()) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1 / 0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            queue.using(connection).send("invoice", 1)


def test_what_depends_on_others_is_refused_saying_when_it_can_be_sent(queue: taskqueue.Queue, place: Place) -> None:
    first = queue.send("invoice", 1)
    with by_driver(place) as (connection, _, commit, _):
        dependent = queue.workitem("invoice", 2)._replace(id="2", after=(first,))

        with pytest.raises(Unsupported, match=r"workitem 2 depends on others.*: send it after the commit"):
            queue.using(connection).send_many([queue.workitem("invoice", 3), dependent])

        commit(connection)
    assert [record.id for record in queue.history()] == [first]


def test_who_waits_finds_it_after_the_commit(queue: taskqueue.Queue, place: Place) -> None:
    found: list[Workitem] = []
    waiting = threading.Thread(target=lambda: found.extend(received(place.url, 1)))
    with by_driver(place) as (connection, _, commit, _):
        queue.using(connection).send("invoice", 1)
        waiting.start()
        time.sleep(0.5)  # nothing is found meanwhile
        before = list(found)
        commit(connection)
        waiting.join(60)

    assert (before, [w.body for w in found]) == ([], [b"1"])
