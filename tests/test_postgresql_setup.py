"""The schema: made, upgraded, refused where it does not fit, and used with the least rights."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from databases import PRODUCER, PostgreSQL, binaries, grants, with_schema

from taskqueue import cli
from taskqueue.broker import connect
from taskqueue.brokers.postgresql.place import parse
from taskqueue.brokers.postgresql.session import SchemaError, migrations
from taskqueue.brokers.postgresql.setup import FEW, script, set_up
from taskqueue.errors import BrokerError
from taskqueue.workitem import Workitem

SECRETS = ("sesame", "ouvre")


def send(url: str) -> list[str]:
    producer = connect(url).producer()
    try:
        return producer.send([Workitem(body=b"x", type="t")])
    finally:
        producer.close()


def relations(postgresql: PostgreSQL, database: str) -> list[tuple[object, ...]]:
    with contextlib.closing(postgresql.admin(database)) as connection:
        return connection.execute(
            "SELECT nspname, relname, relkind FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
            "WHERE nspname !~ '^pg_|information' UNION ALL "
            "SELECT nspname, proname, prokind FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace "
            "WHERE nspname !~ '^pg_|information' ORDER BY 1, 2, 3"
        ).fetchall()


def test_setup_db_makes_the_schema_once(postgresql: PostgreSQL, capsys: pytest.CaptureFixture[str]) -> None:
    url = postgresql.admin_url(postgresql.database())

    assert cli.main(["setup-db", "--url", url]) == 0
    assert cli.main(["setup-db", "--url", url]) == 0

    said = capsys.readouterr().out.splitlines()
    assert [line.split()[-2] for line in said[:-1]] == [name for _, name, _ in migrations()]
    assert said[-1].endswith("schema taskqueue is up to date")
    assert len(send(url)) == 1


def test_a_dry_run_leaves_nothing(postgresql: PostgreSQL, capsys: pytest.CaptureFixture[str]) -> None:
    database = postgresql.database()
    before = relations(postgresql, database)

    assert cli.main(["setup-db", "--dry-run", "--url", postgresql.admin_url(database)]) == 0

    assert capsys.readouterr().out.count("would be applied") == len(migrations())
    assert relations(postgresql, database) == before


def test_what_is_printed_does_the_same_by_psql(postgresql: PostgreSQL, capsys: pytest.CaptureFixture[str]) -> None:
    by_hand, by_us = postgresql.database(), postgresql.database()
    cli.main(["setup-db", "--url", postgresql.admin_url(by_us)])
    capsys.readouterr()

    assert cli.main(["setup-db", "--print", "--url", postgresql.admin_url(by_hand)]) == 0
    printed = capsys.readouterr().out
    done = subprocess.run(
        [binaries() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", postgresql.admin_url(by_hand)],
        input=printed, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert not [line for line in printed.splitlines() if line.startswith("\\")]
    assert relations(postgresql, by_hand) == relations(postgresql, by_us)
    cli.main(["setup-db", "--print", "--upgrade", "--url", postgresql.admin_url(by_hand)])
    assert capsys.readouterr().out == ""


def test_two_schemas_of_one_database_are_strangers(postgresql: PostgreSQL) -> None:
    database = postgresql.database()
    first = postgresql.admin_url(database)
    second = f"{first}&schema=other_one"
    for url in (first, second):
        set_up(parse(url), upgrade=False, dry_run=False, say=lambda line: None)

    (id,) = send(second)

    with contextlib.closing(postgresql.admin(database)) as connection:
        assert connection.execute("SELECT id FROM other_one.workitems").fetchall() == [(id,)]
        assert connection.execute("SELECT id FROM taskqueue.workitems").fetchall() == []


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ("DROP SCHEMA taskqueue CASCADE", "run taskqueue setup-db"),
        ("DELETE FROM taskqueue.versions WHERE number = (SELECT max(number) FROM taskqueue.versions)", "--upgrade"),
        ("INSERT INTO taskqueue.versions VALUES (9000, 'later', 9000)", "install a newer taskqueue"),
    ],
)
def test_a_schema_that_does_not_fit_says_what_to_do(postgresql: PostgreSQL, change: str, remedy: str) -> None:
    database = postgresql.database(with_schema)
    with contextlib.closing(postgresql.admin(database)) as connection:
        connection.execute(change.encode())

    with pytest.raises(SchemaError, match=remedy):
        send(postgresql.url(database))


def test_a_newer_schema_that_suffices_is_used(postgresql: PostgreSQL) -> None:
    database = postgresql.database(with_schema)
    with contextlib.closing(postgresql.admin(database)) as connection:
        connection.execute("INSERT INTO taskqueue.versions VALUES (9000, 'later', 1)")

    assert len(send(postgresql.url(database))) == 1


def test_an_older_schema_is_upgraded_only_on_request(postgresql: PostgreSQL) -> None:
    place = parse(postgresql.admin_url(postgresql.database()))
    last = f"-- {migrations()[-1][1]}"
    with psycopg.connect(place.conninfo, autocommit=True) as connection:
        connection.execute(script(place).partition(last)[0].encode())

    with pytest.raises(SchemaError, match="taskqueue setup-db --upgrade"):
        set_up(place, upgrade=False, dry_run=False, say=lambda line: None)
    said: list[str] = []
    set_up(place, upgrade=True, dry_run=False, say=said.append)

    assert [line.split()[-2] for line in said] == [migrations()[-1][1]]


def test_functions_that_forbid_plans_are_neither_compiled_nor_planned_each_time(postgresql: PostgreSQL) -> None:
    with contextlib.closing(postgresql.admin(postgresql.database(with_schema))) as connection:
        set_for = connection.execute("SELECT proname, proconfig FROM pg_proc WHERE proconfig IS NOT NULL").fetchall()

    forbidding = {str(name): config for name, config in set_for if "enable_seqscan=off" in config}
    assert "turn" in forbidding
    kept = {"jit=off", "plan_cache_mode=force_generic_plan"}
    assert [name for name, config in forbidding.items() if not kept <= set(config)] == []


def test_functions_that_set_nothing_are_called_by_those_alone_that_set_all_of_it_for_them(
    postgresql: PostgreSQL,
) -> None:
    sql = """SELECT proname, prosrc, coalesce(proconfig, '{}') FROM pg_proc
        WHERE pronamespace = 'taskqueue'::regnamespace AND prolang = (SELECT oid FROM pg_language WHERE lanname = %s)"""
    with contextlib.closing(postgresql.admin(postgresql.database(with_schema))) as connection:
        found = {str(name): (text, set(config)) for name, text, config in connection.execute(sql, ("plpgsql",))}

    bare = {name for name, (_, config) in found.items() if not config} - {"put_one"}  # its names are whole
    assert bare == {"settle", "claim", "promote", "tell", "count_down", "inputs_of"}
    needed = {"search_path=pg_catalog, taskqueue, pg_temp"}
    needed |= {setting.replace(" ", "") for setting in FEW.removeprefix("SET ").split(" SET ")}
    calls = {name: set(re.findall(r"\b(\w+)\(", text)) & bare for name, (text, _) in found.items()}
    assert {name for name, called in calls.items() if called and name not in bare} >= {"turn", "complete", "tidy"}
    wrong = [name for name, called in calls.items() if called and name not in bare and not needed <= found[name][1]]
    assert wrong == []


def test_a_carrier_and_a_producer_have_no_right_on_any_table(postgresql: PostgreSQL) -> None:
    database = postgresql.database(with_schema)
    sql = (
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'taskqueue'::regnamespace AND relkind IN ('r', 'p') "
        "AND has_table_privilege(%s, oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')"
    )
    with contextlib.closing(postgresql.admin(database)) as connection:
        for role in (postgresql.user, PRODUCER):
            assert connection.execute(sql, (role,)).fetchone() == (0,)


def test_a_producer_may_send_and_read_its_replies_and_nothing_else(postgresql: PostgreSQL) -> None:
    database = postgresql.database(with_schema)
    url = postgresql.url(database, user=PRODUCER)
    producer = connect(url).producer()
    producer.send([Workitem(body=b"x", type="t")], reply=True)
    assert producer.next_reply(timeout=0) is None
    producer.close()

    refused = [
        "INSERT INTO taskqueue.workitems (queue, id, body) VALUES ('worker_t', '1', '')",
        "SELECT * FROM taskqueue.workitems",
        "SELECT taskqueue.turn(1, 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
        "SELECT taskqueue.claim(1, 'worker_t', 1, '{}', false)",
        "SELECT taskqueue.letters()",
        "SELECT taskqueue.record('1')",
        "SELECT taskqueue.cancel('1')",
        "SELECT * FROM taskqueue.tasks",
        "SELECT taskqueue.bury(1)",
        "CREATE TABLE taskqueue.mine ()",
    ]
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in refused:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
        taken = connection.execute("SELECT items FROM taskqueue.take_replies('worker_t', 10)").fetchone()
        assert taken == (None,)
        assert connection.execute("SELECT taskqueue.send('t', '1')").fetchone() is not None


def test_a_role_without_rights_is_told_so(postgresql: PostgreSQL) -> None:
    database = postgresql.database(with_schema)
    postgresql.role("stranger")

    with pytest.raises(BrokerError, match=r"docs/postgresql\.md") as refused:
        send(postgresql.url(database, user="stranger"))

    assert not any(secret in str(refused.value) for secret in SECRETS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("?schema=Öl", "schema=Öl: expected"),
        ("?schema=pg_mine", "schema=pg_mine: expected"),
        ("?notify=perhaps", "notify=perhaps: expected on or off"),
        ("?heartrate=0", "heartrate=0: expected seconds"),
        ("?heartrate=soon", "heartrate=soon: expected seconds"),
        ("?colour=red", "no URL that libpq understands"),
    ],
)
def test_a_wrong_url_says_what_is_wrong_and_no_password(options: str, expected: str) -> None:
    with pytest.raises(BrokerError, match=expected.replace("?", r"\?")) as refused:
        connect(f"postgresql://me:sesame@host/shop{options}")

    assert not any(secret in str(refused.value) for secret in SECRETS)


def test_a_wrong_password_is_shown_nowhere(postgresql: PostgreSQL) -> None:
    database = postgresql.database(with_schema)

    with pytest.raises(BrokerError, match="password authentication failed") as refused:
        send(postgresql.url(database, password="sesame-wrong"))

    assert not any(secret in str(refused.value) for secret in SECRETS)


def test_other_brokers_need_no_setting_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["setup-db", "--url", f"sqlite:///{tmp_path}/queue.db"]) == 1

    assert "needs no setting up" in capsys.readouterr().err


def test_without_the_driver_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("psycopg", "taskqueue.brokers.postgresql"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(BrokerError, match=r"psycopg.*docs/postgresql\.md"):
        connect("postgresql:///shop")


def test_the_documented_grants_are_statements() -> None:
    text = (Path(__file__).parent.parent / "docs" / "postgresql.md").read_text()

    assert [statement.split()[0] for statement in grants(text)] == ["GRANT", "GRANT", "ALTER", "GRANT", "GRANT"]
