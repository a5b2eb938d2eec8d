"""What PostgreSQL adds to the store's contract: the view to join with, its plans, and who wakes up who waits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import psycopg
import pytest
from databases import PRODUCER, PostgreSQL, with_schema
from embedded import drain, run
from system import until

from taskqueue.broker import Broker, Delivery, Ended, Options, Underway, connect
from taskqueue.brokers.postgresql import line
from taskqueue.lifecycle import State
from taskqueue.outcome import Done, Payload, Rules
from taskqueue.record import Progress, Run
from taskqueue.testing.recorded import RUN
from taskqueue.upkeep import Keeping
from taskqueue.workitem import Workitem

JOIN = """
SELECT o.id, t.state FROM orders o JOIN taskqueue.tasks t ON t.reference = 'order:' || o.id
WHERE o.id = ANY (%s) ORDER BY o.id
"""
MANY = """
INSERT INTO taskqueue.history
SELECT n, now(), now(), 1, 0, 0, 'succeeded', 'past' || n, 't', 'worker_t', 'past:' || n, '', '', '', '', '', '', NULL
FROM generate_series(1, 3000) n;
INSERT INTO taskqueue.workitems (queue, id, type, reference, body)
SELECT 'worker_t', 'waiting' || n, 't', 'waiting:' || n, '' FROM generate_series(1, 3000) n;
ANALYZE;
"""


RESULTS = Rules(results_routing_key="results")


@pytest.fixture
def database(postgresql: PostgreSQL) -> str:
    return postgresql.database(with_schema)


def send(url: str, *workitems: Workitem) -> list[str]:
    with contextlib.closing(connect(url).producer()) as producer:
        return producer.send(workitems)


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """All that a plan does."""
    return [plan, *(node for child in plan.get("Plans", ()) for node in nodes(child))]


def test_business_data_is_joined_with_its_tasks_by_whoever_may_see_them(postgresql: PostgreSQL, database: str) -> None:
    url = postgresql.url(database)
    send(url, *(Workitem(body=b"x", type="t", reference=f"order:{n}") for n in (1, 2)))

    async def one(broker: Broker) -> None:
        await drain(broker.consumer("worker_t", reserve=1), 1)

    run(url, one)

    with contextlib.closing(postgresql.admin(database)) as owner:
        owner.execute("CREATE TABLE orders AS SELECT n AS id FROM generate_series(1, 3) n")
        owner.execute(f"GRANT SELECT ON orders, taskqueue.tasks TO {PRODUCER}".encode())
    with psycopg.connect(postgresql.url(database, user=PRODUCER)) as connection:
        assert connection.execute(JOIN, ([1, 2, 3],)).fetchall() == [(1, "succeeded"), (2, "waiting")]


@pytest.mark.parametrize(
    ("question", "argument"),
    [
        (JOIN, [7]),
        ("SELECT * FROM taskqueue.tasks WHERE reference = %s", "past:7"),
        ("SELECT * FROM taskqueue.tasks WHERE id = %s", "waiting7"),
    ],
)
def test_what_is_asked_of_one_business_object_or_workitem_is_found_by_indexes(
    postgresql: PostgreSQL, database: str, question: str, argument: object
) -> None:
    with contextlib.closing(postgresql.admin(database)) as owner:
        owner.execute("CREATE TABLE orders AS SELECT n AS id FROM generate_series(1, 3) n")
        owner.execute(MANY.encode())
        owner.execute("SET enable_seqscan = off")  # the partitions of the next days are empty
        ((found,),) = owner.execute(f"EXPLAIN (FORMAT json) {question}".encode(), (argument,)).fetchall()

    scanned = [
        node for node in nodes(found[0]["Plan"]) if "Relation Name" in node and node["Relation Name"] != "orders"
    ]
    assert {"workitems", "history_default"} <= {node["Relation Name"] for node in scanned}
    assert {node["Node Type"] for node in scanned} <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}


def test_who_waits_is_woken_by_a_notification(
    postgresql: PostgreSQL, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "LOOK_EVERY", 600.0)
    url = postgresql.url(database)
    ended, cancelled = send(url, *(Workitem(body=b"x", type=type) for type in ("t", "u")))
    found: list[State] = []
    store = connect(url).store()

    def wait() -> None:
        for id in (ended, cancelled):
            found.append(store.wait(id, timeout=None).state)

    async def one(broker: Broker) -> None:
        await drain(broker.consumer("worker_t", reserve=1), 1)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    listening = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND query LIKE 'LISTEN%%'"
    with contextlib.closing(postgresql.admin(database)) as owner:
        until(lambda: owner.execute(listening, (database,)).fetchone(), "somebody who waits")
        run(url, one)
        until(lambda: found, "the first that ended")
        assert store.cancel(cancelled)

    waiting.join(60)
    store.close()
    assert found == [State.SUCCEEDED, State.CANCELLED]


def test_what_runs_is_reported_though_its_row_was_moved(postgresql: PostgreSQL, database: str) -> None:
    url = postgresql.url(database)
    ids = send(url, *(Workitem(body=b"x", type="t") for _ in range(2)))
    ran = Run(host="h", user="u", pid=1, started=5.0)

    async def work(broker: Broker) -> list[float]:
        consumer = broker.consumer("worker_t", reserve=2)
        first = await consumer.receive(limit=2)
        with contextlib.closing(postgresql.admin(database)) as owner:
            for done in range(3):
                await consumer.report(
                    [Underway(one, ran, Progress(done=done, total=3, note="", at=6.0)) for one in first]
                )
                owner.execute("VACUUM FULL taskqueue.workitems")
                owner.execute("UPDATE taskqueue.workitems SET failures = 0 WHERE id = %s", (ids[0],))
        with contextlib.closing(broker.store()) as store:
            said = [store.record(id).progress for id in ids]
        assert await consumer.settle([Ended(one, Done(None)) for one in first]) == [True, True]
        return [progress.done for progress in said if progress is not None]

    assert run(url, work) == [2, 2]


def test_what_sql_sent_says_which_session_it_was(postgresql: PostgreSQL, database: str) -> None:
    with psycopg.connect(postgresql.url(database, user=PRODUCER)) as connection:
        pid = connection.info.backend_pid
        ((id,),) = connection.execute("SELECT taskqueue.send('t', '1', reference => 'order:1')").fetchall()
    store = connect(postgresql.url(database)).store()

    (record,) = store.history(reference="order:1")

    store.close()
    assert (record.id, record.sender) == (id, f"{PRODUCER}@127.0.0.1:{pid}")


def test_the_latest_are_found_without_a_look_at_all_that_ever_ended(postgresql: PostgreSQL, database: str) -> None:
    past = """
    INSERT INTO taskqueue.history
    SELECT
        n, now() - age, now() - age, 1, 0, 0, 'succeeded', age || '-' || n, 't', 'worker_t', NULL,
        '', '', '', '', '', '', NULL
    FROM generate_series(1, %s) n, CAST(%s AS interval) age
    """
    latest = "SELECT count(*), min(id) FROM taskqueue.records(NULL, NULL, NULL, 10)"
    with contextlib.closing(postgresql.admin(database)) as owner:
        owner.execute("SET TimeZone = 'UTC'")
        owner.execute(past.encode(), (30_000, "0.3 hours"))
        owner.execute("VACUUM ANALYZE taskqueue.history")
        owner.execute(past.encode(), (10, "0 s"))

        assert owner.execute(latest.encode()).fetchall() == [(10, "00:00:00-1")]
        ((plan,),) = owner.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {latest}".encode()).fetchall()
        ((blocks,),) = owner.execute(
            "SELECT sum(relpages) FROM pg_class WHERE relname ~ '^history_(2|default)' AND relkind = 'r'"
        ).fetchall()

    looked_at = plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]
    assert looked_at < blocks / 3


def test_results_that_wait_in_the_history_are_bounded_and_read_over_all_days(
    postgresql: PostgreSQL, database: str
) -> None:
    url = postgresql.url(database)
    send(url, *(Workitem(body=b"%d" % n, type="t", id=str(n)) for n in range(30)))

    async def work(broker: Broker) -> None:
        consumer = broker.consumer("worker_t", reserve=30)
        for delivery in await consumer.receive(limit=30):
            await consumer.settle([Ended(delivery, Done(Payload(delivery.workitem.body)), RESULTS, RUN)])

    async def read(broker: Broker) -> list[bytes]:
        found = await broker.consumer("results", reserve=100).receive(limit=100)
        return [delivery.workitem.body for delivery in found]

    run(url, work)
    with contextlib.closing(postgresql.admin(database)) as owner:
        owner.execute("UPDATE taskqueue.history SET ended = ended - interval '3 days' WHERE id = ANY ('{21,22}')")
        owner.execute("UPDATE taskqueue.history SET ended = ended - interval '4 days' WHERE id = ANY ('{1,2}')")
    with contextlib.closing(connect(Options(url=url, results_max_length=28)).store()) as store:
        store.maintain(Keeping())

    assert run(url, read) == [b"21", b"22", *(b"%d" % n for n in range(30) if n not in (1, 2, 21, 22))]


def test_many_readers_of_results_get_each_of_them_once(postgresql: PostgreSQL, database: str) -> None:
    url = postgresql.url(database)
    send(url, *(Workitem(body=b"%d" % n, type="t") for n in range(400)))

    async def read(found: list[bytes]) -> None:
        broker = connect(url)
        consumer = broker.consumer("results", reserve=20)
        while len(found) < 400:
            deliveries: list[Delivery] = []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    deliveries = await consumer.receive(limit=20)
            await consumer.settle([Ended(delivery, Done(None)) for delivery in deliveries])
            found += [delivery.workitem.body for delivery in deliveries]
        await broker.close()

    async def work(broker: Broker) -> list[bytes]:
        consumer = broker.consumer("worker_t", reserve=100)
        found: list[bytes] = []
        readers = [asyncio.create_task(read(found)) for _ in range(4)]
        ended = 0
        while ended < 400:
            deliveries = await consumer.receive(limit=20)
            ended += len(deliveries)
            await consumer.settle([Ended(d, Done(Payload(d.workitem.body)), RESULTS, RUN) for d in deliveries])
        await asyncio.gather(*readers)
        return found

    assert sorted(map(int, run(url, work))) == list(range(400))
