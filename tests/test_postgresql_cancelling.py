"""What PostgreSQL adds to cancelling: what is locked just now, and what a wish costs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import psycopg
import pytest
from databases import PostgreSQL, with_schema
from embedded import run

from taskqueue.broker import Broker, Ended, connect
from taskqueue.lifecycle import State
from taskqueue.outcome import Release
from taskqueue.store import Store
from taskqueue.testing.bench import QUIET
from taskqueue.upkeep import Keeping
from taskqueue.workitem import Workitem

QUEUE = "worker_t"


@pytest.fixture
def database(postgresql: PostgreSQL) -> str:
    return postgresql.database(with_schema)


@pytest.fixture
def url(postgresql: PostgreSQL, database: str) -> str:
    return postgresql.url(database)


@pytest.fixture
def owner(postgresql: PostgreSQL, database: str) -> Iterator[psycopg.Connection]:
    with contextlib.closing(postgresql.admin(database)) as connection:
        yield connection


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with contextlib.closing(connect(url).store()) as store:
        yield store


def send(url: str, count: int) -> list[str]:
    with contextlib.closing(connect(url).producer()) as producer:
        return producer.send([Workitem(body=b"x", type="t") for _ in range(count)])


@pytest.mark.parametrize("lock", ["FOR KEY SHARE", "FOR UPDATE"], ids=["a sender", "a handler's own transaction"])
def test_nobody_waits_for_whoever_has_it_locked(url: str, store: Store, owner: psycopg.Connection, lock: str) -> None:
    (id,) = send(url, 1)

    async def work(broker: Broker) -> bool:
        await broker.consumer(QUEUE, reserve=1).receive(limit=1)
        owner.execute("BEGIN")
        owner.execute(f"SELECT FROM taskqueue.workitems WHERE id = %s {lock}".encode(), (id,))
        done = await asyncio.wait_for(asyncio.to_thread(store.cancel, id), 20)
        owner.execute("COMMIT")
        return done

    assert run(url, work)


def test_what_a_sender_has_locked_is_not_lent_again_meanwhile_and_is_over_then(
    url: str, store: Store, owner: psycopg.Connection
) -> None:
    (id,) = send(url, 1)

    async def work(broker: Broker) -> State:
        consumer = broker.consumer(QUEUE, reserve=1)
        (delivery,) = await consumer.receive(limit=1)
        assert store.cancel(id)
        owner.execute("BEGIN")
        owner.execute("SELECT FROM taskqueue.workitems WHERE id = %s FOR KEY SHARE", (id,))
        assert await consumer.settle([Ended(delivery, Release())]) == [True]
        other = connect(url)  # which looks at the whole queue at once
        receiving = asyncio.create_task(other.consumer(QUEUE, reserve=1).receive(limit=1))
        try:
            done, _ = await asyncio.wait([receiving], timeout=3 * QUIET)
            state = store.record(id).state
            owner.execute("COMMIT")
            assert not done
            assert (await asyncio.to_thread(store.wait, id, timeout=30)).state == State.CANCELLED
        finally:
            receiving.cancel()
            await other.close()
        return state

    assert run(url, work) == State.WAITING
    store.maintain(Keeping())
    assert owner.execute("SELECT count(*) FROM taskqueue.unwanted").fetchall() == [(0,)]


def test_a_wish_is_looked_up_by_its_id_however_much_waits(url: str, store: Store, owner: psycopg.Connection) -> None:
    (id,) = send(url, 1)

    async def work(broker: Broker) -> int:
        await broker.consumer(QUEUE, reserve=1).receive(limit=1)
        await asyncio.to_thread(send, url, 5000)
        assert await asyncio.to_thread(store.cancel, id)
        look = "SELECT taskqueue.unwant(1)"
        assert owner.execute(look).fetchone() != (None,)
        ((plan,),) = owner.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {look}".encode()).fetchall()
        return int(plan[0]["Plan"]["Shared Hit Blocks"]) + int(plan[0]["Plan"]["Shared Read Blocks"])

    assert run(url, work) < 50
