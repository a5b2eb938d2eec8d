"""What PostgreSQL adds to the contract: leases, outages, notifications, marks and the history."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import psycopg
import pytest
from databases import PgBouncer, PostgreSQL, with_schema
from embedded import drain, run, send
from lender import lender
from relay import Relay

from taskqueue.broker import Broker, Consumer, Delivery, Ended, connect
from taskqueue.brokers.postgresql import link
from taskqueue.outcome import Crashed, Dead, Done, Failed, Outcome, Payload, Release, Retry, Rules, TimedOut
from taskqueue.workitem import Workitem

QUEUE = "worker_t"
RULES = Rules(results_routing_key="results", max_crashes=1, worker="host:7")


class Database:
    """One database, its owner's connection beside the URL."""

    def __init__(self, server: PostgreSQL) -> None:
        self.server = server
        self.name = server.database(with_schema)
        self.url = server.url(self.name)

    def rows(self, query: str, *arguments: object) -> list[tuple[object, ...]]:
        with contextlib.closing(self.server.admin(self.name)) as connection:
            cursor = connection.execute(query.encode(), arguments or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *arguments: object) -> object:
        ((value,),) = self.rows(query, *arguments)
        return value


@pytest.fixture
def database(postgresql: PostgreSQL) -> Database:
    return Database(postgresql)


@pytest.fixture
def spare_database(start_postgresql: Callable[..., PostgreSQL]) -> Iterator[Database]:
    """One of a server that may be killed."""
    yield Database(start_postgresql(fsync=True))


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.05)


async def lent(consumer: Consumer, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    while len(found) < count:
        found += await consumer.receive(limit=count - len(found))
    return found


async def settle(consumer: Consumer, deliveries: Sequence[Delivery], outcome: Outcome) -> list[bool]:
    return await consumer.settle([Ended(delivery, outcome, RULES) for delivery in deliveries])


# Leases.


def test_a_carrier_that_was_taken_for_dead_settles_nothing(database: Database) -> None:
    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=1)
        late = await lent(consumer, 1)
        await asyncio.to_thread(database.rows, "SELECT taskqueue.bury(id) FROM taskqueue.carriers")
        assert await settle(consumer, late, Done(Payload(b"late"))) == [False]
        assert late[0].lease.lost
        again = await lent(consumer, 1)
        assert await settle(consumer, again, Done(Payload(b"now"))) == [True]

    send(database.url, b"x")
    run(database.url, work)

    assert database.rows("SELECT body FROM taskqueue.workitems WHERE queue = 'results'") == [(b"now",)]
    assert database.one("SELECT count(*) FROM taskqueue.history") == 1


def test_what_somebody_else_has_meanwhile_is_not_settled(database: Database) -> None:
    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=2)
        first, second = await lent(consumer, 2)
        database.rows("UPDATE taskqueue.workitems SET carrier = 4711 WHERE seq = %s", first.tag)
        assert await settle(consumer, [first, second], Done(Payload(b"r"))) == [False, True]

    send(database.url, b"1", b"2")
    run(database.url, work)

    assert database.one("SELECT count(*) FROM taskqueue.workitems WHERE queue = 'results'") == 1
    assert database.one("SELECT count(*) FROM taskqueue.workitems WHERE carrier = 4711") == 1


def test_what_a_killed_process_had_is_lent_again_at_once_on_the_same_host(database: Database) -> None:
    send(database.url, b"1", b"2")
    with lender(f"{database.url}?heartrate=3600", QUEUE, 2) as process:
        process.kill()
        process.wait()
        found = run(database.url, lambda broker: lent(broker.consumer(QUEUE, reserve=2), 2))

    assert len(found) == 2


def test_a_new_carrier_gives_back_what_a_dead_one_had_before_any_worker_process_is_ready(database: Database) -> None:
    waiting = "SELECT count(*) FROM taskqueue.workitems WHERE state = 0"

    async def work(broker: Broker) -> None:
        broker.consumer(QUEUE, reserve=1)
        await asyncio.to_thread(until, lambda: database.one(waiting) == 2)

    send(database.url, b"1", b"2")
    with lender(f"{database.url}?heartrate=3600", QUEUE, 2) as process:
        process.kill()
        process.wait()
        assert database.one(waiting) == 0
        run(database.url, work)


def test_a_carrier_that_hangs_loses_its_lease_to_another_host_and_knows(database: Database) -> None:
    heartrate = 1.0
    url = f"{database.url}?heartrate={heartrate}"
    send(database.url, b"1")
    with lender(url, QUEUE, 1) as process:
        database.rows("UPDATE taskqueue.carriers SET home = 'elsewhere'")
        process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()

        async def work(broker: Broker) -> list[bool]:
            consumer = broker.consumer(QUEUE, reserve=1)
            return await settle(consumer, await lent(consumer, 1), Done(Payload(b"now")))

        assert run(url, work) == [True]
        assert heartrate <= time.monotonic() - begun <= 2 * heartrate + 5.0
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate("go on\n", timeout=60)

    assert said == "settled 0 lost\n"
    assert database.rows("SELECT body FROM taskqueue.workitems WHERE queue = 'results'") == [(b"now",)]


def test_a_carrier_gives_its_lease_up_before_others_may_take_over(spare_database: Database) -> None:
    heartrate = 1.0

    async def work(broker: Broker) -> float:
        consumer = broker.consumer(QUEUE, reserve=1)
        (held,) = await lent(consumer, 1)
        renewed = spare_database.one("SELECT extract(epoch FROM renewed) FROM taskqueue.carriers")
        spare_database.server.kill()
        while not held.lease.lost:
            await asyncio.sleep(0.01)
        lost = time.time()
        spare_database.server.start()
        (again,) = await lent(consumer, 1)
        assert await settle(consumer, [held], Done(None)) == [False]
        assert await settle(consumer, [again], Done(None)) == [True]
        return lost - float(str(renewed))

    send(spare_database.url, b"1")
    assert run(f"{spare_database.url}?heartrate={heartrate}", work) < 2 * heartrate + heartrate  # it may have renewed


# Outages.


def test_deliveries_survive_a_restart_of_the_server(spare_database: Database) -> None:
    async def work(broker: Broker) -> list[bool]:
        consumer = broker.consumer(QUEUE, reserve=10)
        held = await lent(consumer, 10)
        spare_database.server.kill()
        settling = asyncio.create_task(settle(consumer, held, Done(Payload(b"r"))))
        await asyncio.sleep(0.2)
        spare_database.server.start()
        return await settling

    send(spare_database.url, *[b"x"] * 10)
    assert run(spare_database.url, work) == [True] * 10
    assert spare_database.one("SELECT count(*) FROM taskqueue.history") == 10
    assert spare_database.one("SELECT count(*) FROM taskqueue.workitems WHERE queue = 'results'") == 10


def test_whoever_reaches_the_server_again_first_wakes_all_others(
    spare_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(broker: Broker) -> list[bool]:
        consumer = broker.consumer(QUEUE, reserve=1)
        held = await lent(consumer, 1)
        spare_database.server.kill()
        settling = asyncio.create_task(settle(consumer, held, Done(None)))
        while "trying on" not in caplog.text:
            await asyncio.sleep(0.01)
        spare_database.server.start()
        await broker.declare("other")
        return await settling

    for name in ("RETRY_BASE", "RETRY_MAXIMUM"):
        monkeypatch.setattr(link, name, 3600.0)
    send(spare_database.url, b"x")
    assert run(spare_database.url, work) == [True]


HANG_UP = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'taskqueue' AND datname = %s"


def test_a_number_that_the_server_gives_again_is_not_taken_for_what_had_it_before(database: Database) -> None:
    """As after a crash or a failover that lost the last numbers, or after a backup was restored."""

    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=2)
        first, second = await lent(consumer, 2)
        another = "UPDATE taskqueue.workitems SET id = 'another', state = 0, carrier = NULL WHERE seq = %s"
        database.rows(another, first.tag)
        database.rows(HANG_UP, database.name)
        assert await settle(consumer, [first, second], Done(None)) == [False, True]
        (again,) = await lent(consumer, 1)
        assert again.workitem.id == "another"
        assert await settle(consumer, [again], Done(None)) == [True]

    send(database.url, b"1", b"2")
    run(database.url, work)


def test_what_the_server_forgot_to_have_lent_is_still_who_holds_it(database: Database) -> None:
    async def work(broker: Broker) -> list[bool]:
        consumer = broker.consumer(QUEUE, reserve=2)
        held = await lent(consumer, 2)
        database.rows("UPDATE taskqueue.workitems SET state = 0, carrier = NULL")
        database.rows(HANG_UP, database.name)
        return await settle(consumer, held, Done(None))

    producer = connect(database.url).producer()
    producer.send([Workitem(body=b"1", id="\0 \ud800" + "x" * 5000), Workitem(body=b"2")], queue=QUEUE)
    producer.close()
    assert run(database.url, work) == [True, True]


def test_a_lease_of_the_same_number_is_not_taken_for_ones_own(database: Database) -> None:
    """As after a backup was restored, and another carrier has registered first."""

    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=1)
        held = await lent(consumer, 1)
        database.rows("UPDATE taskqueue.carriers SET term = 1, home = 'elsewhere'")
        database.rows(HANG_UP, database.name)
        assert await settle(consumer, held, Done(None)) == [False]
        assert await settle(consumer, await lent(consumer, 1), Done(None)) == [True]

    send(database.url, b"x")
    run(database.url, work)


def test_an_answer_that_got_lost_behind_the_commit_is_not_given_twice(database: Database) -> None:
    relay = Relay(database.server.port)

    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=1)
        held = await lent(consumer, 1)
        relay.keep_back(b".turn(")
        settling = asyncio.create_task(settle(consumer, held, Done(Payload(b"r"))))
        await asyncio.to_thread(until, lambda: database.one("SELECT count(*) FROM taskqueue.history"))
        assert not settling.done()
        relay.cut()
        assert await settling == [True]
        # What the same statement had claimed, unseen, comes all the same.
        assert await settle(consumer, await lent(consumer, 1), Done(None)) == [True]

    send(database.url, b"1", b"2")
    run(database.url.replace(str(database.server.port), str(relay.port)), work)
    relay.close()

    assert database.one("SELECT count(*) FROM taskqueue.workitems WHERE queue = 'results'") == 1
    assert database.one("SELECT count(*) FROM taskqueue.history") == 2


def test_a_statement_that_the_server_undoes_is_made_again(database: Database) -> None:
    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=1)
        receiving = asyncio.create_task(consumer.receive(limit=1))
        await asyncio.to_thread(until, lambda: database.one("SELECT count(*) FROM taskqueue.carriers"))
        database.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'taskqueue'")
        await asyncio.to_thread(send, database.url, b"x")
        assert await settle(consumer, await receiving, Done(Payload(b"r"))) == [True]

    database.rows("CREATE SEQUENCE public.tries")
    database.rows(
        "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN "
        "IF nextval('public.tries') = 1 THEN RAISE serialization_failure; END IF; RETURN new; END $$"
    )
    database.rows("CREATE TRIGGER fail BEFORE INSERT ON taskqueue.history FOR EACH ROW EXECUTE FUNCTION public.fail()")
    run(database.url, work)

    assert database.one("SELECT last_value FROM public.tries") == 2
    assert database.one("SELECT count(*) FROM taskqueue.workitems WHERE queue = 'results'") == 1


def test_what_was_settled_or_sent_survives_the_servers_death_at_once(spare_database: Database) -> None:
    server = spare_database.server

    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=1)
        for turn in range(3):
            await asyncio.to_thread(send, spare_database.url, b"x")
            server.kill()
            server.start()
            assert await settle(consumer, await lent(consumer, 1), Done(Payload(b"r"))) == [True]
            server.kill()
            server.start()
            assert spare_database.one("SELECT count(*) FROM taskqueue.history") == turn + 1

    run(spare_database.url, work)
    assert spare_database.one("SELECT count(*) FROM taskqueue.workitems WHERE queue = 'results'") == 3


def test_what_was_settled_is_over_though_its_row_has_moved(database: Database) -> None:
    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=3)
        first, second, third = await lent(consumer, 3)
        assert await settle(consumer, [first], Done(None)) == [True]
        database.rows("VACUUM FULL taskqueue.workitems")
        database.rows("UPDATE taskqueue.workitems SET failures = 0")
        assert await settle(consumer, [second], Done(None)) == [True]
        assert await settle(consumer, [third], Release()) == [True]
        assert await settle(consumer, await lent(consumer, 1), Done(None)) == [True]

    send(database.url, b"1", b"2", b"3")
    run(database.url, work)

    assert database.one("SELECT count(*) FROM taskqueue.history") == 3


def test_a_producer_that_was_idle_finds_the_server_again(spare_database: Database) -> None:
    producer = connect(spare_database.url).producer()
    producer.send([Workitem(body=b"1", type="t")])

    spare_database.server.restart()
    producer.send([Workitem(body=b"2", type="t")])

    producer.close()
    assert spare_database.one("SELECT count(*) FROM taskqueue.workitems") == 2


# Notifications.


def test_a_listener_whose_connection_is_cut_listens_again(database: Database) -> None:
    listening = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND query LIKE 'LISTEN%%'"

    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=1)
        receiving = asyncio.create_task(consumer.receive(limit=1))
        pids = lambda: {pid for (pid,) in database.rows(listening, database.name)}  # noqa: E731
        await asyncio.to_thread(until, pids)
        before = pids()
        database.rows("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", list(before))
        await asyncio.to_thread(until, lambda: pids() - before)
        await asyncio.to_thread(send, database.url, b"x")
        assert len(await receiving) == 1

    run(database.url, work)


def test_behind_pgbouncer_a_listener_says_that_it_hears_nothing(
    database: Database, pgbouncer: PgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=1)
        receiving = asyncio.create_task(consumer.receive(limit=1))
        while "say ?notify=off" not in caplog.text:
            await asyncio.sleep(0.1)
        await asyncio.to_thread(send, database.url, b"x")
        assert len(await receiving) == 1

    with caplog.at_level("WARNING"):
        run(pgbouncer.url(database.name), work)


# Order and marks.


def buffers(connection: psycopg.Connection, queue: str, after: str) -> int:
    """How many blocks a claim looks at that finds nothing; its plans have been made before over the connection."""
    claim = f"SELECT taskqueue.claim(1, '{queue}', 1, '{after}')"
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


# The history.


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


# What nobody should send.


def test_text_that_postgresql_cannot_store_survives(database: Database) -> None:
    sent = Workitem(
        body=b"\0\xff",
        id="id\0 \ud800" + "x" * 5000,
        type="t",
        reference="o\0" + "\N{SNOWMAN}" * 3000,
        headers={"h\0": "\ud800", "n": 1 << 70},
        expiration=1e300,
        priority=1 << 40,
        attempt=1 << 40,
    )
    producer = connect(database.url).producer()
    producer.send([sent], queue=QUEUE)
    producer.close()

    (found,) = run(database.url, lambda broker: drain(broker.consumer(QUEUE, reserve=1), 1))

    kept = found.workitem
    assert (kept.id, kept.reference, kept.headers, kept.body) == (sent.id, sent.reference, sent.headers, sent.body)
    assert (kept.expiration, kept.priority) == (sent.expiration, sent.priority)
