"""Dependencies on PostgreSQL beside transactions that go on: nobody waits, nothing is forgotten or dropped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from embedded import drain, run
from lending import QUEUE, RULES, Database, lent, settle
from system import until

from taskqueue.broker import Broker, Delivery, Ended, Lease, complete, connect
from taskqueue.brokers.postgresql import engine
from taskqueue.brokers.postgresql.outgoing import puts
from taskqueue.lifecycle import State
from taskqueue.outcome import Done, Failed, Outcome, Payload
from taskqueue.store import Store
from taskqueue.upkeep import HOUR, Keep, Keeping
from taskqueue.workitem import Workitem

DAY = 24 * HOUR
ONE = Done(Payload(b"1"))


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    with contextlib.closing(connect(database.url).store()) as store:
        yield store


@pytest.fixture
def other(database: Database) -> Iterator[psycopg.Connection]:
    """Somebody else, in a transaction."""
    with contextlib.closing(database.server.admin(database.name)) as connection:
        connection.execute("BEGIN")
        yield connection


def item(id: str, *after: str, type: str = "t", **headers: object) -> Workitem:
    return Workitem(body=b"", id=id, type=type, after=after, headers=headers)


def send(database: Database, *workitems: Workitem) -> None:
    with contextlib.closing(connect(database.url).producer()) as producer:
        producer.send(workitems)


def finish(database: Database, *ids: str, outcome: Outcome = ONE) -> None:
    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=len(ids))
        found = {one.workitem.id: one for one in await lent(consumer, len(ids))}
        assert await settle(consumer, [found[id] for id in ids], outcome) == [True] * len(ids)

    run(database.url, work)


# Beside transactions that go on.


def test_an_end_does_not_wait_for_who_holds_what_depends_on_it(
    database: Database, store: Store, other: psycopg.Connection
) -> None:
    send(database, item("a"), item("b"), item("good", "a"), item("bad", "b"), item("next", "bad"))
    other.execute("SELECT FROM taskqueue.workitems WHERE id IN ('good', 'bad') FOR UPDATE")

    async def work(broker: Broker) -> None:
        consumer = broker.consumer(QUEUE, reserve=3)
        a, b = await lent(consumer, 2)
        assert await settle(consumer, [a], ONE) == [True]
        assert await settle(consumer, [b], Failed("no")) == [True]
        assert [store.record(id).state for id in ("good", "bad", "next")] == [State.BLOCKED] * 3
        other.execute("COMMIT")
        (good,) = await lent(consumer, 1)
        assert [one.payload for one in good.inputs] == [Payload(b"1")]

    run(database.url, work)
    assert [store.record(id).attempts[0].error for id in ("bad", "next")] == ["b of t: failed: no"] * 2
    assert database.one("SELECT count(*) FROM taskqueue.endings") == 0


def test_a_sender_does_not_wait_for_who_holds_what_it_depends_on(
    database: Database, store: Store, other: psycopg.Connection
) -> None:
    send(database, item("a"), item("b"))
    other.execute("SELECT FROM taskqueue.workitems WHERE id = 'a' FOR UPDATE")
    other.execute("SELECT taskqueue.cancel('b')")

    send(database, item("good", "a"), item("bad", "b"))

    assert [store.record(id).state for id in ("good", "bad")] == [State.BLOCKED] * 2
    other.execute("COMMIT")
    finish(database, "a")
    finish(database, "good")
    assert store.record("bad").attempts[0].error == "b of t: cancelled"


def test_an_end_waits_for_who_is_sending_what_depends_on_it_and_counts_for_that(
    database: Database, store: Store, other: psycopg.Connection
) -> None:
    send(database, item("a"))
    (put,) = puts([(QUEUE, item("b", "a"))], "", time.time())

    async def work(broker: Broker) -> list[Delivery]:
        consumer = broker.consumer(QUEUE, reserve=1)
        held = await lent(consumer, 1)
        other.execute("SELECT taskqueue.put(%s, %s, %s, %s, %s, %s, %s)", put)
        settling = asyncio.create_task(settle(consumer, held, ONE))
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
        await asyncio.to_thread(until, lambda: database.one(waiting, database.name))
        other.execute("COMMIT")
        assert await settling == [True]
        return await lent(consumer, 1)

    (found,) = run(database.url, work)
    assert (found.workitem.id, [one.payload for one in found.inputs]) == ("b", [Payload(b"1")])


def test_a_claim_takes_what_somebody_is_about_to_depend_on(database: Database, other: psycopg.Connection) -> None:
    send(database, item("a"))
    other.execute("SELECT FROM taskqueue.workitems FOR KEY SHARE")

    (found,) = run(database.url, lambda broker: lent(broker.consumer(QUEUE, reserve=1), 1))

    assert found.workitem.id == "a"


def test_a_handlers_transaction_that_sees_the_past_counts_for_what_was_sent_since(
    database: Database, store: Store
) -> None:
    send(database, item("a"))

    async def work(broker: Broker) -> list[Delivery]:
        consumer = broker.consumer(QUEUE, reserve=2)
        (held,) = await lent(consumer, 1)
        with contextlib.closing(psycopg.connect(database.server.admin_url(database.name))) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            connection.execute("SELECT count(*) FROM taskqueue.tasks")
            await asyncio.to_thread(send, database, item("b", "a"))
            mine = Delivery(workitem=held.workitem, queue=QUEUE, tag=None, lease=Lease())
            complete(connection, consumer.ticket(held) or {}, Ended(mine, ONE, RULES), now=time.time())
            connection.commit()
        assert await consumer.settle([Ended(held, Failed("not committed"), RULES, completing=True)]) == [True]
        return await lent(consumer, 1)

    (found,) = run(database.url, work)
    assert [one.payload for one in found.inputs] == [Payload(b"1")]


def test_two_carriers_end_what_one_depends_on_at_once(database: Database) -> None:
    count = 400
    send(database, *(item(f"{n}") for n in range(count)))
    send(database, item("sum", *(f"{n}" for n in range(count)), type="sum"))

    async def work(broker: Broker) -> Delivery:
        others = connect(database.url)
        consumers = [each.consumer(QUEUE, reserve=10) for each in (broker, others)]
        left = count

        async def end(number: int) -> None:
            nonlocal left
            while left > 0:
                found = []
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        found = await consumers[number].receive(limit=3)
                counted = await settle(consumers[number], found, ONE)
                left -= sum(counted)

        await asyncio.gather(end(0), end(1))
        (found,) = await lent(broker.consumer("worker_sum", reserve=1), 1)
        await others.close()
        return found

    assert [one.id for one in run(database.url, work).inputs] == [f"{n}" for n in range(count)]
    assert database.one("SELECT count(*) FROM taskqueue.endings") == 0


def test_what_waits_for_nothing_more_is_notified_of(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LOOK_EVERY", 3600.0)
    send(database, item("a"), item("b", "a", type="later"))

    async def work(broker: Broker) -> Delivery:
        elsewhere = connect(database.url)
        receiving = asyncio.create_task(lent(elsewhere.consumer("worker_later", reserve=1), 1))
        consumer = broker.consumer(QUEUE, reserve=1)
        held = await lent(consumer, 1)
        await asyncio.sleep(1.0)  # the other one has looked for the last time
        assert await settle(consumer, held, ONE) == [True]
        async with asyncio.timeout(10):
            (found,) = await receiving
        await elsewhere.close()
        return found

    assert run(database.url, work).workitem.id == "b"


def test_a_statement_says_when_what_it_sets_free_itself_is_due(database: Database) -> None:
    send(database, item("a"), item("b", "a", on_error="pass")._replace(due=time.time() + 3600.0))
    want = json.dumps([{"number": 0, "queue": QUEUE, "room": 5, "after": {}}])
    with contextlib.closing(database.server.admin(database.name)) as connection:
        (me,) = connection.execute("SELECT taskqueue.register(1, '', '', 1, 1, 10, 0)").fetchone() or ()
        connection.execute("INSERT INTO taskqueue.unwanted SELECT id, sent FROM taskqueue.workitems WHERE id = 'a'")
        turn = "SELECT answer FROM taskqueue.turn(%s, 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, %s, NULL, NULL)"
        (answer,) = connection.execute(turn.encode(), (me, want)).fetchone() or ()

    _, _, due, _, _, _ = json.loads(answer)
    assert due is not None and 3500 < due <= 3600
    assert database.one("SELECT state FROM taskqueue.workitems WHERE id = 'b'") == 1


# Ids that are used once.


def test_tens_of_thousands_of_ids_are_unique_with_few_locks(database: Database) -> None:
    with contextlib.closing(connect(database.url).producer()) as producer:
        producer.send([Workitem(body=b"", type="t")] * 20_000, unique=True)

    assert database.one("SELECT count(*) FROM taskqueue.workitems") == 20_000


# Chores.


@pytest.mark.parametrize("damage", ["needs = 7", "needs = NULL", "lost"])
def test_what_waits_for_what_has_ended_is_mended(
    database: Database, store: Store, other: psycopg.Connection, damage: str
) -> None:
    send(database, item("a"), item("c"), item("b", "a", "c", type="later"), item("fine", "c", type="later"))
    if damage == "lost":
        other.execute("SELECT FROM taskqueue.workitems WHERE id = 'b' FOR UPDATE")
        finish(database, "a")
        other.execute("COMMIT")
        database.rows("DELETE FROM taskqueue.endings")
    else:
        finish(database, "a")
        database.rows(f"UPDATE taskqueue.workitems SET {damage} WHERE id = 'b'")

    mended = [store.maintain(Keeping()).mended for _ in range(2)]

    assert mended == [1, 0]
    assert store.record("b").state == State.BLOCKED
    finish(database, "c")
    assert [store.record(id).state for id in ("b", "fine")] == [State.WAITING] * 2


def test_a_round_of_chores_tells_those_who_wait_for_what_has_ended(
    database: Database, store: Store, other: psycopg.Connection
) -> None:
    send(database, item("a"), item("b", "a", type="later"))
    other.execute("SELECT FROM taskqueue.workitems WHERE id = 'b' FOR UPDATE")
    finish(database, "a")
    other.execute("COMMIT")

    assert store.maintain(Keeping()).mended == 0
    assert store.record("b").state == State.WAITING


def past(database: Database, days: int, *ids: str, type: str = "t") -> None:
    """These ended so many days ago."""
    database.rows(
        "INSERT INTO taskqueue.history SELECT n, d, d, 1, 0, 0, 'succeeded', id, %s, %s, NULL, '', '', '', "
        "'application/json', '', '', NULL, 'x' FROM (SELECT now() - %s * interval '1 day') AS t (d), "
        "unnest(%s::text[]) WITH ORDINALITY AS i (id, n)",
        *(type, QUEUE, days, list(ids)),
    )


def promised(database: Database, by: str, id: str) -> None:
    database.rows(
        "INSERT INTO taskqueue.promises SELECT ended, seq, id, %s FROM taskqueue.history WHERE id = %s", id, by
    )


@pytest.fixture
def partitions(database: Database) -> None:
    """Those of the last days, and nothing is in the statistics."""
    with contextlib.closing(database.server.admin(database.name)) as owner:
        owner.execute("SELECT taskqueue.make_partitions((now() AT TIME ZONE 'UTC')::date - 20, 19)")
        owner.execute("UPDATE taskqueue.rolled SET until = until - interval '20 days'")


def ids(database: Database, table: str = "history") -> list[str]:
    return [id for (id,) in database.rows(f"SELECT id FROM taskqueue.{table} ORDER BY id")]


@pytest.mark.usefixtures("partitions")
def test_a_day_stays_as_long_as_something_depends_on_a_result_of_it(database: Database, store: Store) -> None:
    past(database, 5, "a", "b")
    send(database, item("c", "a"))
    keeping = Keeping(default=Keep(DAY))

    for _ in range(2):
        store.maintain(keeping)
    assert ids(database) == ["a"]
    assert [one.payload for one in run(database.url, lambda b: drain(b.consumer(QUEUE, reserve=1), 1))[0].inputs] == [
        Payload(b"x")
    ]
    days = [store.maintain(keeping).days for _ in range(2)]

    assert sum(days) == 1
    assert ids(database) == ["c"]


@pytest.mark.usefixtures("partitions")
def test_a_day_stays_as_long_as_a_result_of_another_one_promises_one_of_it(database: Database, store: Store) -> None:
    past(database, 9, "v", "w")
    past(database, 7, "a", "b")
    past(database, 3, "outer")
    promised(database, "v", "w")  # which goes with it
    promised(database, "outer", "a")

    for _ in range(2):
        store.maintain(Keeping(default=Keep(5 * DAY)))
    assert (ids(database), ids(database, "promises")) == (["a", "outer"], ["outer"])
    for _ in range(2):
        store.maintain(Keeping(default=Keep(DAY)))

    assert (ids(database), ids(database, "promises")) == ([], [])


@pytest.mark.usefixtures("partitions")
def test_days_that_hold_each_other_go_when_nothing_else_holds_them(database: Database, store: Store) -> None:
    past(database, 5, "x", "z")
    past(database, 3, "y")
    promised(database, "x", "y")
    promised(database, "y", "z")
    send(database, item("c", "x"))
    keeping = Keeping(default=Keep(DAY))

    for _ in range(2):
        store.maintain(keeping)
    assert ids(database) == ["x", "y", "z"]
    store.cancel("c")
    for _ in range(2):
        store.maintain(keeping)

    assert (ids(database), ids(database, "promises")) == (["c"], [])


def test_two_who_end_at_once_close_no_circle_of_promises(database: Database, other: psycopg.Connection) -> None:
    def promise(connection: psycopg.Connection, id: str, *promises: str) -> None:
        ends = json.dumps([{"seq": 1, "id": id, "promises": promises}])
        connection.execute("SELECT taskqueue.promise(%s, '{1}')", (ends,))

    promise(other, "a", "b")
    with contextlib.closing(database.server.admin(database.name)) as second:
        thread = threading.Thread(target=promise, args=(second, "b", "a", "c"))
        thread.start()
        until(lambda: database.rows("SELECT pid FROM pg_locks WHERE NOT granted"))
        other.execute("COMMIT")
        thread.join()

    assert sorted(database.rows("SELECT id, needed FROM taskqueue.promises")) == [("a", "b"), ("b", "c")]


@pytest.mark.usefixtures("partitions")
def test_a_record_stays_as_long_as_one_of_another_type_whose_result_promises_it(
    database: Database, store: Store
) -> None:
    past(database, 5, "a", "b")
    past(database, 5, "outer", type="long")
    promised(database, "outer", "a")

    for _ in range(2):
        store.maintain(Keeping(default=Keep(DAY), types={"long": Keep(10 * DAY)}))
    assert ids(database) == ["a", "outer"]
    for _ in range(2):
        store.maintain(Keeping(default=Keep(DAY), types={"long": Keep(DAY)}))

    assert (ids(database), ids(database, "promises")) == ([], [])


def test_nothing_is_left_of_promises_when_results_are_over(database: Database, store: Store) -> None:
    send(database, item("a"), item("outer", result_timeout=0.0))
    finish(database, "a", "outer", outcome=Done(Payload(b"1"), promises=("a", "b")))
    assert ids(database, "promises") == ["a", "outer", "outer"]

    store.maintain(Keeping())

    assert ids(database, "promises") == ["a"]


def test_who_drops_results_does_not_come_between_those_who_have_just_seen_them(
    database: Database, store: Store, other: psycopg.Connection
) -> None:
    send(database, item("a", result_timeout=0.0))
    finish(database, "a")
    other.execute("SELECT pg_advisory_xact_lock_shared(hashtext('taskqueue'), hashtext('bind'))")

    during = store.maintain(Keeping()).results
    other.execute("COMMIT")

    assert (during, store.maintain(Keeping()).results) == (0, 1)


# What cannot be stored as it is.


def test_ids_that_postgresql_cannot_store_can_be_depended_on(database: Database, store: Store) -> None:
    odd = "\0 \ud800" + "x" * 5000
    send(database, item(odd), item("b", odd))

    finish(database, odd)

    (found,) = run(database.url, lambda broker: lent(broker.consumer(QUEUE, reserve=1), 1))
    assert found.workitem.id == "b"
    assert [one.payload for one in found.inputs] == [Payload(b"1")]
    assert store.ended([odd]).keys() == {odd}
