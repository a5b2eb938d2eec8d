"""Ending a delivery in the caller's own transaction: the fence, and that nobody waits for that transaction."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from databases import PRODUCER, PostgreSQL, with_schema
from embedded import run
from system import PATIENCE

from taskqueue.broker import Broker, Consumer, Delivery, Ended, Lease, Underway, complete, connect
from taskqueue.brokers.sqlite import queues
from taskqueue.errors import BrokerError, DeliveryLost, Unsupported
from taskqueue.lifecycle import State
from taskqueue.outcome import Done, Failed, Payload, Rules
from taskqueue.record import Record, Run
from taskqueue.worker import BaseWorker
from taskqueue.workitem import Workitem

QUEUE = "worker_t"
RULES = Rules(results_routing_key="results", worker="host:7")
RUN = Run(host="host", user="user", pid=7, started=1.0, ended=2.0, cpu=0.5, memory=1 << 20)
FAILED = Failed("not committed")


class Place:
    """Where workitems and the caller's data are."""

    def __init__(self, url: str, open: Callable[[], Any], forget: Callable[[], None]) -> None:
        self.url = url
        self.open = open
        self.forget_carriers = forget

    def send(self, count: int = 1) -> list[str]:
        producer = connect(self.url).producer()
        try:
            return producer.send([Workitem(body=b"x", type="t") for _ in range(count)])
        finally:
            producer.close()

    def send_dependent(self, id: str) -> None:
        with contextlib.closing(connect(self.url).producer()) as producer:
            producer.send([Workitem(body=b"x", type="t", id="dependent", after=(id,))])

    def record(self, id: str) -> Record:
        store = connect(self.url).store()
        try:
            return store.record(id)
        finally:
            store.close()


@pytest.fixture
def database(postgresql: PostgreSQL) -> str:
    name = postgresql.database(with_schema)
    with contextlib.closing(postgresql.admin(name)) as admin:
        admin.execute(f'GRANT EXECUTE ON FUNCTION taskqueue.complete TO "{PRODUCER}"'.encode())
    return name


@pytest.fixture
def postgresql_place(postgresql: PostgreSQL, database: str) -> Place:
    def forget() -> None:
        with contextlib.closing(postgresql.admin(database)) as admin:
            admin.execute("SELECT taskqueue.bury(id) FROM taskqueue.carriers")

    return Place(postgresql.url(database), lambda: psycopg.connect(postgresql.url(database, user=PRODUCER)), forget)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "postgresql":
        found: Place = request.getfixturevalue("postgresql_place")
        return found
    file = tmp_path / "queue.db"

    def forget() -> None:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            for (number,) in connection.execute("SELECT id FROM carriers").fetchall():
                queues.release(connection, number)
            connection.commit()

    return Place(f"sqlite:///{file}", lambda: sqlite3.connect(file, timeout=30), forget)


@pytest.fixture
def connection(place: Place) -> Iterator[Any]:
    place.send(0)
    with contextlib.closing(place.open()) as connection:
        yield connection


async def lent(consumer: Consumer, count: int = 1) -> list[Delivery]:
    found: list[Delivery] = []
    while len(found) < count:
        found += await consumer.receive(limit=count - len(found))
    return found


def completed(connection: Any, consumer: Consumer, delivery: Delivery, ticket: Any = None) -> None:
    """As a worker process does it, which has no more of the delivery than its workitem."""
    again = Delivery(workitem=delivery.workitem, queue=QUEUE, tag=None, lease=Lease())
    ended = Ended(again, Done(Payload(b"1")), RULES, RUN)
    complete(connection, ticket or consumer.ticket(delivery) or {}, ended, now=time.time())


def ended(delivery: Delivery) -> Ended:
    return Ended(delivery, FAILED, RULES, RUN, completing=True)


def with_consumer(place: Place, work: Callable[[Consumer], Awaitable[None]], reserve: int = 10) -> None:
    run(place.url, lambda broker: work(broker.consumer(QUEUE, reserve=reserve)))


def test_with_the_commit_it_has_ended_and_counts(place: Place) -> None:
    (id,) = place.send()

    async def work(consumer: Consumer) -> None:
        (delivery,) = await lent(consumer)
        with contextlib.closing(place.open()) as connection:
            completed(connection, consumer, delivery)
            connection.commit()
        assert await consumer.settle([ended(delivery)]) == [True]
        assert await consumer.settle([ended(delivery)]) == [False]

    with_consumer(place, work)
    record = place.record(id)
    assert (record.state, record.result, [a.outcome for a in record.attempts]) == (
        State.SUCCEEDED, Payload(b"1"), ["succeeded"],
    )  # fmt: skip


def test_with_the_commit_it_counts_for_what_depends_on_it_and_with_a_rollback_it_does_not(place: Place) -> None:
    (id,) = place.send()
    place.send_dependent(id)
    states = []

    async def work(consumer: Consumer) -> None:
        (delivery,) = await lent(consumer)
        with contextlib.closing(place.open()) as connection:
            completed(connection, consumer, delivery)
            connection.rollback()
            states.append(place.record("dependent").state)
            completed(connection, consumer, delivery)
            connection.commit()
        assert await consumer.settle([ended(delivery)]) == [True]
        states.append(place.record("dependent").state)
        (dependent,) = await lent(consumer)
        assert [one.payload for one in dependent.inputs] == [Payload(b"1")]

    with_consumer(place, work)
    assert states == [State.BLOCKED, State.WAITING]


def test_after_a_rollback_it_ends_as_its_handler_did(place: Place) -> None:
    (id,) = place.send()

    async def work(consumer: Consumer) -> None:
        (delivery,) = await lent(consumer)
        with contextlib.closing(place.open()) as connection:
            completed(connection, consumer, delivery)
            connection.rollback()
        assert await consumer.settle([ended(delivery)]) == [True]

    with_consumer(place, work)
    assert place.record(id).state == State.FAILED


def test_after_a_rollback_it_may_be_completed_again_and_twice_it_may_not(place: Place) -> None:
    (id,) = place.send()

    async def work(consumer: Consumer) -> None:
        (delivery,) = await lent(consumer)
        with contextlib.closing(place.open()) as connection:
            completed(connection, consumer, delivery)
            connection.rollback()
            completed(connection, consumer, delivery)
            connection.commit()
            with pytest.raises(DeliveryLost, match=f"workitem {id} is not this worker process' any more"):
                completed(connection, consumer, delivery)
            connection.rollback()

    with_consumer(place, work)
    assert place.record(id).state == State.SUCCEEDED


def test_what_was_given_to_somebody_else_is_not_completed_by_its_former_holder(place: Place) -> None:
    (id,) = place.send()

    async def work(consumer: Consumer) -> None:
        (late,) = await lent(consumer)
        ticket = consumer.ticket(late)
        await consumer.pause()
        await asyncio.to_thread(place.forget_carriers)
        async with another(place) as other:
            (delivery,) = await lent(other)
            with contextlib.closing(place.open()) as connection:
                with pytest.raises(DeliveryLost):
                    completed(connection, consumer, late, ticket)
                connection.rollback()
                completed(connection, other, delivery)
                connection.commit()
            assert await other.settle([ended(delivery)]) == [True]
        assert await consumer.settle([ended(late)]) == [False]

    with_consumer(place, work)
    assert len(place.record(id).attempts) == 1


@contextlib.asynccontextmanager
async def another(place: Place) -> Any:
    broker = connect(place.url)
    try:
        yield broker.consumer(QUEUE, reserve=10)
    finally:
        await broker.close()


def test_a_broker_has_tickets_if_it_has_transactions() -> None:
    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=1)
        broker.producer().send([Workitem(body=b"x", type="t")])
        (delivery,) = await lent(consumer)
        assert consumer.ticket(delivery) is None

    run("memory://", work)


def test_who_does_not_say_that_it_completes_can_not() -> None:
    with pytest.raises(Unsupported, match="does not say `completes = True`"):
        BaseWorker().complete(None)


# Of PostgreSQL, where a transaction keeps nobody from going on.


@pytest.mark.services
def test_a_transaction_that_goes_on_keeps_the_carrier_from_nothing(postgresql_place: Place) -> None:
    place = postgresql_place
    ids = place.send(3)

    async def work(consumer: Consumer) -> None:
        first, second, third = await lent(consumer, 3)
        with contextlib.closing(place.open()) as connection:
            completed(connection, consumer, first)
            async with asyncio.timeout(PATIENCE):
                # The carrier has not heard of it yet, and says that it runs.
                await consumer.report([Underway(first, RUN), Underway(second, RUN)])
                assert place.record(ids[1]).state == State.RUNNING
                settling = asyncio.create_task(consumer.settle([ended(first)]))
                assert await consumer.settle([Ended(third, Done(), RULES, RUN)]) == [True]
                await consumer.report([Underway(second, RUN)])
            assert not settling.done()
            connection.commit()
        assert await settling == [True]

    with_consumer(place, work)
    assert place.record(ids[0]).state == State.SUCCEEDED


@pytest.mark.services
@pytest.mark.parametrize("commits", [True, False])
def test_who_takes_over_from_a_dead_carrier_waits_for_no_transaction(postgresql_place: Place, commits: bool) -> None:
    place = postgresql_place
    ids = place.send(2)

    async def work(consumer: Consumer) -> None:
        first, _ = await lent(consumer, 2)
        await consumer.pause()
        with contextlib.closing(place.open()) as connection:
            completed(connection, consumer, first)
            async with asyncio.timeout(PATIENCE):
                await asyncio.to_thread(place.forget_carriers)
                async with another(place) as other:
                    (delivery,) = await lent(other)
                    assert delivery.workitem.id == ids[1]
                    assert await other.settle([Ended(delivery, Done(), RULES, RUN)]) == [True]
                    if commits:
                        connection.commit()
                    else:
                        connection.rollback()
                        (delivery,) = await lent(other)
                        assert delivery.workitem.id == ids[0]
        assert await consumer.settle([ended(first)]) == [False]

    with_consumer(place, work, reserve=2)
    assert place.record(ids[0]).state == (State.SUCCEEDED if commits else State.WAITING)


@pytest.mark.services
def test_a_lost_lease_undoes_the_callers_transaction_whatever_it_does(postgresql_place: Place) -> None:
    place = postgresql_place
    place.send()

    async def work(consumer: Consumer) -> None:
        (late,) = await lent(consumer)
        ticket = consumer.ticket(late)
        place.forget_carriers()
        with contextlib.closing(place.open()) as connection:
            connection.execute("CREATE TEMPORARY TABLE mine (id integer)")
            connection.commit()
            connection.execute("INSERT INTO mine VALUES (1)")
            with contextlib.suppress(DeliveryLost):
                completed(connection, consumer, late, ticket)
            connection.commit()
            assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)

    with_consumer(place, work)


@pytest.mark.services
def test_who_lacks_the_right_hears_so(postgresql: PostgreSQL) -> None:
    database = postgresql.database(with_schema)
    producer = connect(postgresql.url(database)).producer()
    producer.send([Workitem(body=b"x", type="t")])
    producer.close()

    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=1)
        (delivery,) = await lent(consumer)
        with (
            contextlib.closing(psycopg.connect(postgresql.url(database, user=PRODUCER))) as connection,
            pytest.raises(BrokerError, match=r"permission denied for function complete.* docs/sending\.md"),
        ):
            completed(connection, consumer, delivery)

    run(postgresql.url(database), work)
