"""What PostgreSQL keeps of what has ended."""

from __future__ import annotations

import pytest
from embedded import drain, run, send
from lending import QUEUE, Database, lent, settle

from taskqueue.broker import Broker, connect
from taskqueue.outcome import Crashed, Dead, Done, Failed, Outcome, Payload, Retry, TimedOut
from taskqueue.workitem import Workitem


@pytest.mark.parametrize(
    ("outcome", "state", "error", "result"),
    [
        (Done(Payload(b"[1]", "application/json")), "succeeded", "", b"[1]"),
        (Done(None), "succeeded", "", None),
        (Failed("no\0good \ud800", "traceback"), "failed", "no\N{REPLACEMENT CHARACTER}good ?", None),
        (Crashed("SIGSEGV"), "dead", "crashed: SIGSEGV", None),
        (TimedOut(1.5), "dead", "timed out: time limit of 1.5 s", None),
        (Dead("rejected", "not so"), "dead", "rejected: not so", None),
    ],
)
def test_what_ended_is_in_the_history(
    database: Database, outcome: Outcome, state: str, error: str, result: bytes | None
) -> None:
    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=1)
        await settle(consumer, await lent(consumer, 1), Retry(0.0))
        await settle(consumer, await lent(consumer, 1), outcome)

    producer = connect(database.url).producer()
    producer.send([Workitem(body=b"x", id="7", type="t", reference="order:1")])
    producer.close()
    sent = database.one("SELECT sent FROM taskqueue.workitems")
    run(database.url, work)

    columns = "id, type, queue, reference, state, attempt, crashes, worker, error, result, sent"
    assert database.rows(f"SELECT {columns} FROM taskqueue.history") == [
        ("7", "t", QUEUE, "order:1", state, 2, int(isinstance(outcome, Crashed)), "host:7", error, result, sent)
    ]
    partition = database.one("SELECT tableoid::regclass::text FROM taskqueue.history")
    assert partition == database.one("SELECT 'taskqueue.history_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')")


def test_results_and_dead_letters_have_no_history(database: Database) -> None:
    async def work(broker: Broker) -> None:
        for queue in ("results", "taskqueue.dead"):
            await drain(broker.consumer(queue, reserve=1), 1)

    for queue in ("results", "taskqueue.dead"):
        send(database.url, b"x", queue=queue)
    run(database.url, work)

    assert database.one("SELECT count(*) FROM taskqueue.history") == 0


def test_what_expired_is_in_the_history(database: Database) -> None:
    producer = connect(database.url).producer()
    producer.send([Workitem(body=b"x", id="7", type="t", expiration=0.001)])
    producer.close()

    run(database.url, lambda broker: drain(broker.consumer("taskqueue.dropped", reserve=1), 1))

    assert database.rows("SELECT id, queue, state FROM taskqueue.history") == [("7", QUEUE, "expired")]


def test_the_next_days_have_partitions_and_a_day_without_one_is_kept(database: Database) -> None:
    days = database.rows("SELECT relname FROM pg_class WHERE relname ~ '^history_2[0-9]{7}$' ORDER BY 1")
    assert len(days) == 4

    today = database.one("SELECT to_char(now() AT TIME ZONE 'UTC', '\"history_\"YYYYMMDD')")
    database.rows(f"DROP TABLE taskqueue.{today}")
    send(database.url, b"x")
    run(database.url, lambda broker: drain(broker.consumer(QUEUE, reserve=1), 1))

    assert database.one("SELECT tableoid::regclass::text FROM taskqueue.history") == "taskqueue.history_default"
