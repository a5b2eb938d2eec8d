"""Sending by plain SQL: SELECT taskqueue.send(...)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from databases import PRODUCER, PgBouncer, PostgreSQL, with_schema
from embedded import drain, run

from taskqueue.broker import Broker, connect
from taskqueue.errors import BrokerError
from taskqueue.workitem import Workitem


@pytest.fixture
def url(postgresql: PostgreSQL) -> str:
    return postgresql.url(postgresql.database(with_schema))


@pytest.fixture
def shop(postgresql: PostgreSQL, url: str) -> Iterator[psycopg.Connection]:
    """A connection of a producer, which may send only."""
    name = url.rpartition("/")[2]
    with contextlib.closing(psycopg.connect(postgresql.url(name, user=PRODUCER), autocommit=True)) as connection:
        yield connection


def received(url: str, count: int = 1, queue: str = "worker_invoice") -> list[Workitem]:
    found = run(url, lambda broker: drain(broker.consumer(queue, reserve=count), count))
    return [delivery.workitem for delivery in found]


def sent(shop: psycopg.Connection, call: str) -> str:
    return str((shop.execute(f"SELECT taskqueue.send({call})".encode()).fetchone() or ("",))[0])


def test_a_workitem_is_sent_by_plain_sql(url: str, shop: psycopg.Connection) -> None:
    id = sent(shop, "'invoice', '{\"id\": 7}', reference => 'order:4711'")

    (found,) = received(url)

    assert (found.id, found.type, found.body) == (id, "invoice", b'{"id": 7}')
    assert (found.reference, found.content_type) == ("order:4711", "application/json")
    assert abs((found.timestamp or 0) - time.time()) < 60


def test_all_options_arrive(url: str, shop: psycopg.Connection) -> None:
    id = sent(
        shop,
        "'invoice', 'null', id => 'mine', priority => 7, expiration => '1 hour', correlation_id => 'c', "
        "reply_to => 'answers', headers => '{\"a\": [1, \"ü\"]}'",
    )

    (found,) = received(url)

    assert id == found.id == "mine"
    assert (found.body, found.priority, found.expiration) == (b"null", 7, 3600)
    assert (found.correlation_id, found.reply_to, found.headers) == ("c", "answers", {"a": [1, "ü"]})


@pytest.mark.parametrize("when", ["delay => '500 ms'", "due => clock_timestamp() + '500 ms'"])
def test_what_is_due_later_is_lent_later(url: str, shop: psycopg.Connection, when: str) -> None:
    before = time.monotonic()
    sent(shop, f"'invoice', '1', {when}")

    received(url)

    assert time.monotonic() - before >= 0.4


def test_what_is_rolled_back_was_never_sent(url: str, shop: psycopg.Connection) -> None:
    with shop.transaction(force_rollback=True):
        sent(shop, "'invoice', '1'")
    with shop.transaction():
        sent(shop, "'invoice', '2'")

    assert [workitem.body for workitem in received(url)] == [b"2"]


def test_a_trigger_may_send(postgresql: PostgreSQL, url: str) -> None:
    with contextlib.closing(postgresql.admin(url.rpartition("/")[2])) as owner:
        owner.execute("CREATE TABLE orders (id int)")
        owner.execute(
            "CREATE FUNCTION invoice() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "PERFORM taskqueue.send('invoice', to_jsonb(new), reference => 'order:' || new.id); RETURN new; END $$"
        )
        owner.execute("CREATE TRIGGER send AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION invoice()")
        owner.execute("INSERT INTO orders VALUES (1), (2)")

    assert [workitem.reference for workitem in received(url, 2)] == ["order:1", "order:2"]


def test_who_sends_first_in_a_long_transaction_keeps_nobody_waiting(
    postgresql: PostgreSQL, url: str, shop: psycopg.Connection
) -> None:
    with shop.transaction():
        sent(shop, "'invoice', '\"first\"'")
        with contextlib.closing(postgresql.admin(url.rpartition("/")[2])) as other:
            other.execute("SET statement_timeout = '20s'")
            sent(other, "'invoice', '\"second\"'")
        assert [workitem.body for workitem in received(url)] == [b'"second"']


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("NULL, '1'", "type NULL: expected up to 128 letters"),
        ("'no spaces', '1'", "type 'no spaces': expected"),
        ("'invoice', NULL", "body: expected JSON"),
        ("'invoice', '1', priority => 256", "priority 256: expected 0 to 255"),
        ("'invoice', '1', delay => '1 s', due => now()", "either delay or due"),
        ("'invoice', '1', headers => '[]'", "headers: expected a JSON object"),
    ],
)
def test_what_is_wrong_is_refused_in_words(shop: psycopg.Connection, call: str, expected: str) -> None:
    with pytest.raises(psycopg.Error, match=expected):
        sent(shop, call)


def test_a_pooler_that_nobody_was_told_of_is_an_error_that_names_the_remedy(
    postgresql: PostgreSQL, pgbouncer: PgBouncer
) -> None:
    url = pgbouncer.url(postgresql.database(with_schema))
    with contextlib.ExitStack() as stack:
        producers = [stack.enter_context(contextlib.closing(connect(url).producer())) for _ in range(3)]
        with pytest.raises(BrokerError, match=r"say \?notify=off"):  # there are two connections for three
            for _ in range(5):
                for producer in producers:
                    producer.send([Workitem(body=b"x", type="t")])


def test_a_program_goes_on_when_a_function_was_replaced_that_it_has_prepared(postgresql: PostgreSQL, url: str) -> None:
    made = "SELECT pg_get_functiondef('taskqueue.put_one'::regproc)"
    with (
        contextlib.closing(connect(url).producer()) as producer,
        contextlib.closing(postgresql.admin(url.rpartition("/")[2])) as owner,
    ):
        for _ in range(5):
            producer.send([Workitem(body=b"x", type="t")])
        definition = str((owner.execute(made).fetchone() or ("",))[0])
        owner.execute("DROP FUNCTION taskqueue.put_one")
        owner.execute(definition.encode())
        owner.execute(f"GRANT EXECUTE ON FUNCTION taskqueue.put_one TO {postgresql.user}".encode())
        producer.send([Workitem(body=b"x", type="t")])
        count = owner.execute("SELECT count(*) FROM taskqueue.workitems").fetchone()
    assert count == (6,)


TRAP = "LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trapped''; END'"
TRAPS = [
    "CREATE SCHEMA trap",
    "GRANT USAGE ON SCHEMA trap TO PUBLIC",
    "CREATE TABLE trap.queues (name text, priority smallint)",
    "CREATE TABLE trap.workitems (LIKE taskqueue.workitems INCLUDING ALL)",
    f"CREATE FUNCTION trap.pg_notify(text, text) RETURNS void {TRAP}",
    f"CREATE FUNCTION trap.now() RETURNS timestamptz {TRAP}",
    f"CREATE FUNCTION trap.fall(text) RETURNS boolean {TRAP}",
    "CREATE DOMAIN trap.text AS text CHECK (trap.fall(VALUE))",
]
for operator, left, right, result in [
    ("=", "text", "text", "boolean"),
    ("=", "smallint", "smallint", "boolean"),
    ("+", "timestamptz", "interval", "timestamptz"),
    ("+", "double precision", "double precision", "double precision"),
]:
    TRAPS += [
        f"CREATE FUNCTION trap.fall({left}, {right}) RETURNS {result} {TRAP}",
        f"CREATE OPERATOR trap.{operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = trap.fall)",
    ]


def test_what_runs_with_the_owners_rights_falls_into_no_trap_of_the_callers(
    postgresql: PostgreSQL, url: str, shop: psycopg.Connection
) -> None:
    """Its search_path: one that the function sets, or none where all names are whole."""
    with contextlib.closing(postgresql.admin(url.rpartition("/")[2])) as owner:
        owner.execute(";".join(TRAPS).encode())
        without = (
            "SELECT proname FROM pg_proc WHERE pronamespace = 'taskqueue'::regnamespace AND prosecdef "
            "AND NOT coalesce(array_to_string(proconfig, ' '), '') ~ 'search_path=pg_catalog, taskqueue, pg_temp'"
        )
        assert owner.execute(without.encode()).fetchall() == [("put_one",)]
    shop.execute("SET search_path = trap, pg_catalog")
    for known in (False, True):
        put = "'worker_invoice', '1', 'invoice', '', '', '', 0::smallint, '', NULL, 'x', 0.0, 60.0"
        shop.execute(f"SELECT taskqueue.put_one({put}, {known}, true)".encode())
    assert len(received(url, 2)) == 2


@pytest.mark.parametrize(
    ("task", "kept"),
    [
        ('"shop.mail.send"', "shop.mail.send"), ("5", ""), ("true", ""), ("null", ""), ('["a"]', ""), ('"a\\nb"', ""),
        ('"a\\u001fb"', ""), (f'"{"x" * 256}"', ""), ('"half \\u00fc"', ""),
    ],
)  # fmt: skip
def test_the_name_of_a_task_is_kept_where_it_can_be_one(
    url: str, shop: psycopg.Connection, task: str, kept: str
) -> None:
    id = sent(shop, f"'invoice', '1', headers => '{{\"task\": {task}}}'")

    with contextlib.closing(connect(url).store()) as store:
        assert store.record(id).task == kept
    assert received(url)[0].task == kept


def test_many_are_sent_by_copy(url: str, shop: psycopg.Connection) -> None:
    with (
        shop.cursor() as cursor,
        cursor.copy("COPY taskqueue.outgoing (type, body, reference, priority, delay) FROM STDIN") as copy,
    ):
        for n in range(1000):
            copy.write_row(("invoice", f'{{"id": {n}}}', f"order:{n}", 1, "1 hour" if n == 999 else None))

    found = received(url, 999)
    assert [(w.body, w.reference, w.priority) for w in found[::500]] == [
        (b'{"id": 0}', "order:0", 1), (b'{"id": 500}', "order:500", 1),
    ]  # fmt: skip
    assert len({w.id for w in found}) == 999


def test_an_insert_sends_as_well_and_a_bad_one_is_refused(url: str, shop: psycopg.Connection) -> None:
    shop.execute("INSERT INTO taskqueue.outgoing (type, body, id) SELECT 'invoice', '1', 'mine'")
    for bad in ("('no type', '1')", "('invoice', NULL)"):
        with pytest.raises(psycopg.Error, match=r"taskqueue\.send: (type|body)"):
            shop.execute(f"INSERT INTO taskqueue.outgoing (type, body) VALUES {bad}".encode())

    assert [w.id for w in received(url)] == ["mine"]


def test_a_copy_that_is_rolled_back_sent_nothing(url: str, shop: psycopg.Connection) -> None:
    into = "COPY taskqueue.outgoing (type, body) FROM STDIN"
    with shop.transaction(force_rollback=True), shop.cursor() as cursor, cursor.copy(into) as copy:
        copy.write_row(("invoice", "1"))
    sent(shop, "'invoice', '2'")

    assert [w.body for w in received(url)] == [b"2"]


# Producers in Python.


def documented(section: str) -> str:
    text = (Path(__file__).parent.parent / "docs" / "sending.md").read_text()
    return text.partition(section)[2].partition("\n## ")[0]


PLAIN = ["", "plain", "a\tb", "a\nb", "a\rb", "a\\b", r"\N", r"\.", r"\x00", "ü☃", '{a,"b"}', "NULL"]
NASTY = [*PLAIN, "a\x1fb", "a\0b", "half \udc80", "x" * 700]
ALL = "queue, id, type, content_type, properties, priority, regexp_replace(sender, '.*:', ''), reference, body, state"


def items(texts: Sequence[str], **more: Any) -> list[Workitem]:
    return [
        Workitem(
            body=text.encode(errors="replace"), id=f"{n}{text}", content_type=text, reference=text,
            **{"type": "invoice", "headers": {"text": text}, "timestamp": 7, "priority": n, **more},
        )
        for n, text in enumerate(texts)
    ]  # fmt: skip


def test_however_many_are_sent_the_same_is_stored(postgresql: PostgreSQL, url: str) -> None:
    """As objects, in columns, and one by one."""
    with (
        contextlib.closing(postgresql.admin(url.rpartition("/")[2])) as admin,
        contextlib.closing(connect(url).producer()) as producer,
    ):

        def stored(workitems: Sequence[Workitem]) -> list[tuple[Any, ...]]:
            admin.execute("TRUNCATE taskqueue.workitems")
            producer.send(workitems)
            return admin.execute(f"SELECT {ALL} FROM taskqueue.workitems ORDER BY seq".encode()).fetchall()

        objects = stored(items(NASTY))
        singly = [row for workitem in items(NASTY) for row in stored([workitem])]
        few = stored(items(PLAIN))
        many = stored(items(PLAIN) * 500)

    assert [bytes(row[8]) for row in objects] == [text.encode(errors="replace") for text in NASTY]
    assert singly == objects
    assert few == objects[: len(PLAIN)]
    assert many == few * 500


@pytest.mark.parametrize(
    "more",
    [
        {"due": 1.0},
        {"due": 4e9},
        {"expiration": 60.0},
        {"expiration": -1.0},
        {"due": 4e9, "expiration": 0.25},
        {"due": 1e300, "expiration": 1e300},
        {"priority": None, "headers": {}, "timestamp": None},
        {"attempt": 2},
        {"type": ""},
    ],
)
@pytest.mark.parametrize("count", [1, 5])
def test_columns_tell_what_objects_do(postgresql: PostgreSQL, url: str, more: dict[str, Any], count: int) -> None:
    columns = f"{ALL}, attempt, round(extract(epoch FROM due), -4), expires - coalesce(due, sent)"
    workitems = items(PLAIN[:count], **more)
    with (
        contextlib.closing(postgresql.admin(url.rpartition("/")[2])) as admin,
        contextlib.closing(connect(url).producer()) as producer,
    ):

        def stored(*others: Workitem) -> list[tuple[Any, ...]]:
            admin.execute("TRUNCATE taskqueue.workitems")
            producer.send([*workitems, *others], unique=True)  # a single one is in columns, too, then
            return admin.execute(f"SELECT {columns} FROM taskqueue.workitems ORDER BY seq".encode()).fetchall()

        assert stored() == stored(Workitem(body=b"", id="which no column can have: \x1f"))[:-1]


def test_nobody_is_notified_where_that_is_off(postgresql: PostgreSQL, url: str) -> None:
    with contextlib.closing(postgresql.admin(url.rpartition("/")[2])) as admin:
        admin.execute("LISTEN taskqueue")
        for query, expected in (("", ["worker_invoice"]), ("?notify=off", [])):
            with contextlib.closing(connect(f"{url}{query}").producer()) as producer:
                for workitems in (items(["a"]), items(PLAIN), items(NASTY)):
                    producer.send(workitems)
                    admin.execute("NOTIFY taskqueue, 'over'")
                    heard: list[str] = []
                    while "over" not in heard:
                        heard += [notify.payload for notify in admin.notifies(timeout=10, stop_after=1)]
                    assert heard == [*expected, "over"]


def test_many_wake_up_who_waits(url: str) -> None:
    async def work(broker: Broker) -> int:
        waiting = asyncio.create_task(drain(broker.consumer("worker_invoice", reserve=500), 2500))
        await asyncio.sleep(0.3)
        with contextlib.closing(connect(url).producer()) as producer:
            await asyncio.to_thread(producer.send, [Workitem(body=b"1", type="invoice")] * 2500)
        return len(await waiting)

    assert run(url, work) == 2500


def test_a_trigger_sends(postgresql: PostgreSQL, url: str, shop: psycopg.Connection) -> None:
    lines = documented("## From triggers").splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    "))
    with contextlib.closing(postgresql.admin(url.rpartition("/")[2])) as admin:
        admin.execute("CREATE TABLE orders (id integer, state text)")
        admin.execute(code.encode())
        admin.execute(f'GRANT ALL ON orders TO "{PRODUCER}"'.encode())

    shop.execute("INSERT INTO orders VALUES (1, 'new'), (2, 'paid')")
    shop.execute("UPDATE orders SET state = 'paid' WHERE id = 1")

    assert [(w.body, w.reference) for w in received(url, 2)] == [
        (b'{"order": 2}', "order:2"), (b'{"order": 1}', "order:1"),
    ]  # fmt: skip
