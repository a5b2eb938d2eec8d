"""PostgreSQL goes away, and comes back; connections are cut; notifications get lost."""

from __future__ import annotations

import asyncio

import pytest
from databases import PgBouncer
from embedded import run, send
from lending import QUEUE, Database, lent, settle
from relay import Relay
from system import until

from taskqueue.broker import Broker, connect
from taskqueue.brokers.postgresql import link
from taskqueue.outcome import Done, Payload
from taskqueue.workitem import Workitem


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


def test_a_producer_that_was_idle_finds_the_server_again(spare_database: Database) -> None:
    producer = connect(spare_database.url).producer()
    producer.send([Workitem(body=b"1", type="t")])

    spare_database.server.restart()
    producer.send([Workitem(body=b"2", type="t")])

    producer.close()
    assert spare_database.one("SELECT count(*) FROM taskqueue.workitems") == 2


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
