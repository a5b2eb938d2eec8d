"""What carriers of PostgreSQL hold, by which number and lease, and when somebody else may have it."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from embedded import run, send
from lender import lender
from lending import QUEUE, Database, lent, settle
from system import until

from taskqueue.broker import Broker, connect
from taskqueue.outcome import Done, Payload, Release
from taskqueue.workitem import Workitem


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
    waiting = "SELECT count(*) FROM taskqueue.workitems WHERE state = 0 AND carrier IS NULL"

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


def test_a_carrier_whose_program_was_held_up_keeps_its_lease_where_nobody_has_taken_over(database: Database) -> None:
    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=1)
        held = await lent(consumer, 1)
        for seconds in (4.0, 0.4, 0.4, 0.4):
            time.sleep(seconds)  # as handlers in a thread of the program do, that hold the interpreter lock
            await asyncio.sleep(0)
        await asyncio.sleep(1.0)  # until it has noticed
        assert not held[0].lease.lost
        assert await settle(consumer, held, Done(Payload(b"now"))) == [True]

    send(database.url, b"1")
    run(f"{database.url}?heartrate=1", work)


def test_a_carrier_renews_its_lease_in_time_however_short_it_is(database: Database) -> None:
    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=1)
        held = await lent(consumer, 1)
        await asyncio.sleep(5.0)
        assert not held[0].lease.lost
        assert await settle(consumer, held, Done(None)) == [True]

    send(database.url, b"1")
    run(f"{database.url}?heartrate=0.5", work)


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


HANG_UP = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'taskqueue' AND datname = %s"


def test_a_number_that_the_server_gives_again_is_not_taken_for_what_had_it_before(database: Database) -> None:
    """As after a crash or a failover that lost the last numbers, or after a backup was restored."""

    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=2)
        first, second = await lent(consumer, 2)
        another = "UPDATE taskqueue.workitems SET id = 'another', carrier = NULL WHERE seq = %s"
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
        database.rows("UPDATE taskqueue.workitems SET carrier = NULL")
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


@pytest.mark.parametrize("outcome", [Done(None), Done(Payload(b"1"))])
def test_what_was_settled_is_over_though_its_row_has_moved(database: Database, outcome: Done) -> None:
    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=3)
        first, second, third = await lent(consumer, 3)
        assert await settle(consumer, [first], outcome) == [True]
        database.rows("VACUUM FULL taskqueue.workitems")
        database.rows("UPDATE taskqueue.workitems SET failures = 0")
        assert await settle(consumer, [second], outcome) == [True]
        assert await settle(consumer, [third], Release()) == [True]
        assert await settle(consumer, await lent(consumer, 1), outcome) == [True]

    send(database.url, b"1", b"2", b"3")
    run(database.url, work)

    assert database.one("SELECT count(*) FROM taskqueue.history") == 3
