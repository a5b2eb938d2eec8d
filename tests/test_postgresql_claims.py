"""What a claim of PostgreSQL looks at, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import psycopg
import pytest
from embedded import drain, run, send
from lending import QUEUE, Database

from taskqueue.broker import Broker, connect
from taskqueue.brokers.postgresql.setup import FEW
from taskqueue.workitem import Workitem


def buffers(connection: psycopg.Connection, queue: str, after: str) -> int:
    """How many blocks a claim looks at that finds nothing; its plans have been made before over the connection."""
    claim = f"SELECT taskqueue.claim(1, '{queue}', 1, '{after}', false)"
    settings = FEW.replace(" SET ", "; SET ")  # as `turn` makes them
    connection.execute(f"SET search_path = pg_catalog, taskqueue, pg_temp; {settings}".encode())
    for _ in range(6):  # with the sixth use of each of its statements they are made for good
        connection.execute(claim.encode())
    ((plan,),) = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {claim}".encode()).fetchall()
    return int(plan[0]["Plan"]["Shared Hit Blocks"]) + int(plan[0]["Plan"]["Shared Read Blocks"])


def test_a_claim_does_not_go_through_what_an_old_transaction_keeps_from_being_removed(database: Database) -> None:
    with contextlib.closing(database.server.admin(database.name)) as old:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1 FROM taskqueue.workitems")
        send(database.url, *[b"x"] * 3000)
        found = run(database.url, lambda broker: drain(broker.consumer(QUEUE, reserve=100), 3000))

        with contextlib.closing(database.server.admin(database.name)) as connection:
            nothing = buffers(connection, "worker_nobody", "{}")
            everything = buffers(connection, QUEUE, "{}")
            behind = buffers(connection, QUEUE, json.dumps({0: found[-1].tag}))

    assert everything > nothing + 50
    assert behind < nothing + 20


def test_a_settle_claims_along_and_no_empty_claim_follows_it(database: Database) -> None:
    with contextlib.closing(database.server.admin(database.name)) as connection:
        connection.execute(f"ALTER DATABASE \"{database.name}\" SET track_functions = 'all'".encode())
    more = {"type": "t", "headers": {"on_error": "pass"}}
    chain = [Workitem(body=b"x", id=str(n), after=(str(n - 1),) * bool(n), **more) for n in range(100)]
    with contextlib.closing(connect(database.url).producer()) as producer:
        producer.send(chain, queue=QUEUE)

    async def work(broker: Broker) -> None:
        await drain(broker.consumer(QUEUE, reserve=4), 100)

    run(database.url, work)

    calls = "SELECT funcname, calls FROM pg_stat_user_functions"
    with contextlib.closing(database.server.admin(database.name)) as connection:
        deadline = time.monotonic() + 30
        while (made := dict(connection.execute(calls).fetchall())).get("settle", 0) < 100:  # they are told late
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert made["claim"] < 150


LOOKED_AT = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'workitems'"


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("how", ["successes", "ends", "releases"])
def test_what_a_settle_looks_at_does_not_grow_with_what_waits(database: Database, how: str, analyzed: bool) -> None:
    send(database.url, *[b"x"] * 3000)
    want = json.dumps([{"number": 0, "queue": QUEUE, "room": 50, "after": {}}])
    with contextlib.closing(database.server.admin(database.name)) as connection:
        if analyzed:
            connection.execute("ANALYZE taskqueue.workitems")
        (me,) = connection.execute("SELECT taskqueue.register(1, '', '', 1, 1, 10, 0)").fetchone() or ()
        lend = "SELECT items FROM taskqueue.turn(%s, 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, %s, NULL, NULL)"
        (items,) = connection.execute(lend.encode(), (me, want)).fetchone() or ()
        places = [(place, str(seq)) for seq, place, *_ in json.loads(items)]
        objects = [{"place": place, "seq": int(seq), "state": "succeeded"} for place, seq in places]
        columns = ["\x1f".join(column) for column in zip(*places, strict=True)]
        given: dict[str, object] = {"successes": columns, "ends": json.dumps(objects), "releases": json.dumps(objects)}

        connection.execute("BEGIN")
        settle = (
            "SELECT answer FROM taskqueue.turn(%s, 1, %b::text[], %s, %s, NULL, NULL, NULL, NULL, NULL, NULL, NULL)"
        )
        settled = [given[name] if name == how else None for name in ("successes", "ends", "releases")]
        (answer,) = connection.execute(settle.encode(), (me, *settled)).fetchone() or ()
        ((looked_at,),) = connection.execute(LOOKED_AT).fetchall()
        connection.execute("ROLLBACK")

    assert len(json.loads(answer)[0]) == 50
    assert looked_at <= 50


def test_a_settle_looks_at_no_dependencies_of_others_though_there_were_none_when_it_was_planned(
    database: Database,
) -> None:
    send(database.url, *[b"x"] * 10)
    want = json.dumps([{"number": 0, "queue": QUEUE, "room": 1, "after": {}}])
    with contextlib.closing(database.server.admin(database.name)) as connection:
        connection.execute("INSERT INTO taskqueue.dependencies (dependent, place, needed) VALUES (1, 1, 'x')")
        connection.execute("DELETE FROM taskqueue.dependencies")
        connection.execute("VACUUM ANALYZE taskqueue.dependencies")  # as when all that waited for something is over
        (me,) = connection.execute("SELECT taskqueue.register(1, '', '', 1, 1, 10, 0)").fetchone() or ()

        def step(ends: str | None) -> str:
            turn = "SELECT items FROM taskqueue.turn(%s, 1, NULL, %s, NULL, NULL, NULL, NULL, NULL, %s, NULL, NULL)"
            (items,) = connection.execute(turn.encode(), (me, ends, want)).fetchone() or ()
            ((seq, place, *_),) = json.loads(items)
            return json.dumps([{"place": place, "seq": seq, "state": "succeeded", "unbinds": True}])

        ends = step(None)
        for _ in range(8):  # with the sixth use of each of its statements they are made for good
            ends = step(ends)
        connection.execute(
            "INSERT INTO taskqueue.dependencies (dependent, place, needed) "
            "SELECT 1000000 + n, 1, 'x' || n FROM generate_series(1, 3000) n"
        )
        connection.execute("BEGIN")
        step(ends)
        ((looked_at,),) = connection.execute(LOOKED_AT.replace("workitems", "dependencies")).fetchall()
        connection.execute("ROLLBACK")

    assert looked_at <= 10


def test_what_was_sent_by_one_who_committed_late_is_found(database: Database) -> None:
    async def work(broker: Broker) -> list[bytes]:
        consumer = broker.consumer(QUEUE, reserve=10)
        with contextlib.closing(database.server.admin(database.name)) as slow:
            slow.execute("BEGIN")
            slow.execute("SELECT taskqueue.send('t', '\"late\"')")
            await asyncio.to_thread(send, database.url, *[b"x"] * 20)
            before = await drain(consumer, 20)
            slow.execute("COMMIT")
        (late,) = await drain(consumer, 1)
        assert late.tag < before[0].tag
        return [late.workitem.body]

    assert run(database.url, work) == [b'"late"']


def test_higher_priorities_go_first_whenever_they_came(database: Database) -> None:
    async def work(broker: Broker) -> list[str]:
        consumer = broker.consumer(QUEUE, reserve=1)
        found: list[str] = []
        while len(found) < 6:
            if len(found) == 2:
                urgent = [Workitem(body=b"", id=f"u{n}", priority=n) for n in (7, 9)]
                await asyncio.to_thread(producer.send, urgent, queue=QUEUE)
                await asyncio.sleep(1.2)  # the marks are looked behind once a second
            found += [delivery.workitem.id for delivery in await drain(consumer, 1)]
        return found

    producer = connect(database.url).producer()
    sent = [("none", None), ("five", 5), ("one", 1), ("five again", 5)]
    producer.send([Workitem(body=b"", id=id, priority=priority) for id, priority in sent], queue=QUEUE)

    order = run(database.url, work)
    producer.close()
    assert order[:2] == ["five", "five again"]
    assert order.index("u9") < order.index("u7") < order.index("none")
