"""Upgrades of the schema beside those who work with it: a migration that does not exist, real carriers."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest
from databases import PRODUCER, PostgreSQL, with_schema
from embedded import drain
from installations import Installation
from system_postgresql import PostgreSQLSystem

from taskqueue import cli
from taskqueue.broker import Broker, connect
from taskqueue.brokers.postgresql.place import parse
from taskqueue.brokers.postgresql.session import SchemaError, migrations
from taskqueue.brokers.postgresql.setup import NEEDS, set_up
from taskqueue.lifecycle import State
from taskqueue.testing.bench import within
from taskqueue.workitem import Workitem

MORE = (
    9000,
    "9000_more.sql",
    """
    ALTER TABLE @schema@.workitems ADD COLUMN more text NOT NULL DEFAULT 'new';
    CREATE INDEX workitems_more ON @schema@.workitems (more) WHERE more <> 'new';
    CREATE OR REPLACE FUNCTION @schema@.has(queue text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, @schema@, pg_temp AS
    $$ SELECT EXISTS (SELECT FROM queues q WHERE q.name = queue) $$;
    """,
)
FILES = [*migrations(), MORE]


def upgrade(postgresql: PostgreSQL, database: str, **more: Any) -> list[str]:
    said: list[str] = []
    options = {"files": FILES, "dry_run": False, **more}
    set_up(parse(postgresql.admin_url(database)), upgrade=True, say=said.append, **options)
    return said


def columns(postgresql: PostgreSQL, database: str) -> int:
    with contextlib.closing(postgresql.admin(database)) as owner:
        sql = "SELECT FROM information_schema.columns WHERE table_name = 'workitems' AND column_name = 'more'"
        return len(owner.execute(sql.encode()).fetchall())


@pytest.mark.services
def test_an_upgrade_beside_running_daemons_loses_nothing(installation: Installation, postgresql: PostgreSQL) -> None:
    with PostgreSQLSystem(installation, postgresql) as system, contextlib.closing(connect(system.url).store()) as store:
        config = f"[DEFAULT]\nworkers = 0\n[unruly]\nworkers = 1\nfile = {system.open_directory / 'notes'}\n"
        daemon = system.workerpool(system.config(config), ready=1)
        with contextlib.closing(connect(system.url).producer()) as producer:
            ids: list[str] = []
            stop = threading.Event()

            def send() -> None:
                while not stop.is_set():
                    item = Workitem(body=b"echo hello", content_type="text/plain", type="unruly")
                    ids.extend(producer.send([item] * 5))

            sending = threading.Thread(target=send)
            sending.start()
            try:
                assert "would be applied" in upgrade(postgresql, system.database, dry_run=True)[0]
                assert columns(postgresql, system.database) == 0
                assert "9000_more.sql applied" in upgrade(postgresql, system.database)[0]
                after = len(ids)
                while len(ids) < after + 50:
                    time.sleep(0.01)
            finally:
                stop.set()
                sending.join()
        assert {store.wait(id, timeout=60).state for id in ids} == {State.SUCCEEDED}
        assert columns(postgresql, system.database) == 1
        assert "Traceback" not in daemon.log and "lost its lease" not in daemon.log


def test_whoever_is_in_the_way_is_not_waited_for_and_nobody_waits_behind_the_upgrade(postgresql: PostgreSQL) -> None:
    database = postgresql.database(with_schema)
    longest = 0.0
    refused: list[SchemaError] = []

    def try_it() -> None:
        with pytest.raises(SchemaError, match=r"9000_more\.sql was not applied.*long transactions") as error:
            upgrade(postgresql, database, patience=3.0)
        refused.append(error.value)

    with (
        contextlib.closing(postgresql.admin(database)) as reader,
        contextlib.closing(connect(postgresql.url(database)).producer()) as producer,
    ):
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM taskqueue.tasks")
        trying = threading.Thread(target=try_it)
        trying.start()
        while trying.is_alive():
            begun = time.monotonic()
            producer.send([Workitem(body=b"", type="t")])
            longest = max(longest, time.monotonic() - begun)
        trying.join()
        assert len(refused) == 1
        assert longest < 2.5  # half a second at a time, on a busy machine
        reader.execute("COMMIT")

    assert "applied" in upgrade(postgresql, database)[0]
    assert columns(postgresql, database) == 1


def test_an_upgrade_waits_for_those_who_are_in_the_way_for_a_while(postgresql: PostgreSQL) -> None:
    database = postgresql.database(with_schema)
    with contextlib.closing(postgresql.admin(database)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM taskqueue.tasks")
        ending = threading.Timer(2.0, lambda: reader.execute("COMMIT"))
        ending.start()

        assert "applied" in upgrade(postgresql, database)[0]

        ending.join()


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_upgrade_that_running_carriers_could_not_use_is_refused(postgresql: PostgreSQL, dry_run: bool) -> None:
    database = postgresql.database(with_schema)

    async def work() -> None:
        broker: Broker = connect(postgresql.url(database))
        producer = broker.producer()
        consumer = broker.consumer("worker_t", reserve=1)
        producer.send([Workitem(body=b"", type="t")])
        await drain(consumer, 1)
        with pytest.raises(SchemaError, match=r"process \d+ on .*: stop all daemons"):
            upgrade(postgresql, database, needs={**NEEDS, 9000: 9000}, dry_run=dry_run)
        producer.send([Workitem(body=b"", type="t")])
        await drain(consumer, 1)
        producer.close()
        await broker.close()

    within(work())
    assert columns(postgresql, database) == 0
    assert "applied" in upgrade(postgresql, database, needs={**NEEDS, 9000: 9000})[0]


def test_a_migration_that_fails_leaves_the_schema_as_it_was(postgresql: PostgreSQL) -> None:
    database = postgresql.database(with_schema)
    wrong = (9001, "9001_wrong.sql", "ALTER TABLE @schema@.workitems ADD COLUMN less text; SELECT 1 / 0;")

    for dry_run in (True, False):
        with pytest.raises(Exception, match="division by zero"):
            upgrade(postgresql, database, files=[*FILES, wrong], dry_run=dry_run)

    with contextlib.closing(postgresql.admin(database)) as owner:
        rows = owner.execute("SELECT number FROM taskqueue.versions WHERE number >= 9000").fetchall()
    assert rows == [(9000,)]  # each file is a transaction; the dry run left nothing
    assert columns(postgresql, database) == 1


def test_a_role_without_the_rights_hears_whose_it_is(
    postgresql: PostgreSQL, capsys: pytest.CaptureFixture[str]
) -> None:
    database, empty = postgresql.database(with_schema), postgresql.database()
    with contextlib.closing(postgresql.admin(empty)) as owner:
        postgresql.role(PRODUCER)
        owner.execute("SELECT 1")

    assert cli.main(["setup-db", "--upgrade", "--url", postgresql.url(database, user=PRODUCER)]) == 1
    assert "belongs to the role postgres, of which this one is no member" in capsys.readouterr().err
    assert cli.main(["setup-db", "--url", postgresql.url(empty, user=PRODUCER)]) == 1
    assert "permission denied for database" in (said := capsys.readouterr().err)
    assert "as a role that may create a schema" in said


def test_a_database_that_can_not_be_reached_is_said_to_be_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["setup-db", "--url", "postgresql://127.0.0.1:1/nothing"]) == 1
    assert "127.0.0.1" in capsys.readouterr().err
