"""The chores of a PostgreSQL schema: what goes, what stays, what is counted, and that nobody waits for it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from databases import PostgreSQL, with_schema
from embedded import drain, run

from taskqueue.broker import Broker, connect
from taskqueue.errors import BrokerError
from taskqueue.record import Attempt, Run
from taskqueue.statistics import percentile, together
from taskqueue.store import Store
from taskqueue.story import more
from taskqueue.upkeep import HOUR, Keep, Keeping
from taskqueue.workitem import Workitem

DAY = 24 * HOUR
NOON = time.time() // DAY * DAY + DAY / 2
"""Of today (UTC): days before it are never partly in two partitions."""


@pytest.fixture
def database(postgresql: PostgreSQL) -> str:
    return postgresql.database(with_schema)


@pytest.fixture
def url(postgresql: PostgreSQL, database: str) -> str:
    return postgresql.url(database)


@pytest.fixture
def owner(postgresql: PostgreSQL, database: str) -> Iterator[psycopg.Connection]:
    """A connection as who owns the schema; with partitions of the last 20 days, and statistics from then on."""
    with contextlib.closing(postgresql.admin(database)) as connection:
        connection.execute("SELECT taskqueue.make_partitions((now() AT TIME ZONE 'UTC')::date - 20, 19)")
        connection.execute("UPDATE taskqueue.rolled SET until = until - interval '20 days'")
        yield connection


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with contextlib.closing(connect(url).store()) as store:
        yield store


def past(
    owner: psycopg.Connection, count: int, *, ended: float, type: str = "t", waited: float = 0.5, ran: float = 2.0
) -> None:
    """Records of work that ended from that time on, milliseconds apart."""
    started = ended - ran
    story = more("", Attempt(1, "succeeded", Run("h", "u", 1, started, ended, 0.0, 1)))
    owner.execute(
        "INSERT INTO taskqueue.history SELECT n, to_timestamp(%s), to_timestamp(%s) + n * interval '1 ms', 1, 0, 0, "
        "'succeeded', %s || n, %s, 'worker_t', NULL, '', '', '', '', %s, '', 'results', '' "
        "FROM generate_series(1, %s) n",
        (started - waited, ended, f"{type}-{ended}-", type, story, count),
    )


def left(owner: psycopg.Connection) -> dict[str, int]:
    return dict(owner.execute("SELECT type, count(*) FROM taskqueue.history GROUP BY type").fetchall())


def partitions(owner: psycopg.Connection) -> int:
    (count,) = owner.execute(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'taskqueue.history'::regclass"
    ).fetchone() or (0,)
    return int(count)


def counts(store: Store) -> dict[str, int]:
    return {tally.type: tally.total for tally in together(store.statistics())}


def test_whole_days_are_dropped_and_what_types_keep_longer_stays(owner: psycopg.Connection, store: Store) -> None:
    for days in (9, 8, 4):
        past(owner, 30, ended=NOON - days * DAY)
    for days in (9, 4):
        past(owner, 20, ended=NOON - days * DAY, type="long")
    before = partitions(owner)

    done = store.maintain(Keeping(default=Keep(6 * DAY), types={"long": Keep(15 * DAY)}))

    assert (done.records, left(owner)) == (60, {"t": 30, "long": 40})
    # Also those on which nothing ended, when they are older than anything is kept.
    # (One more is made when midnight passes between the set-up and here.)
    assert done.days == before + done.made - partitions(owner) >= 5
    assert counts(store) == {"t": 90, "long": 40}
    again = store.maintain(Keeping(default=Keep(6 * DAY), types={"long": Keep(15 * DAY)}))
    assert (again.records, again.days) == (0, 0)  # hours may be left, for which a transaction was waited for


def test_what_goes_in_pieces_goes_whole(owner: psycopg.Connection, store: Store) -> None:
    past(owner, 5000, ended=NOON - 4 * DAY)
    past(owner, 10, ended=NOON - 4 * DAY, type="long")

    done = store.maintain(Keeping(default=Keep(DAY), types={"long": Keep(15 * DAY)}))

    assert (done.records, left(owner)) == (5000, {"long": 10})


def test_records_go_by_number_in_whole_hours(owner: psycopg.Connection, store: Store) -> None:
    for hours in range(5):
        past(owner, 10, ended=NOON - 2 * DAY - hours * HOUR)

    done = store.maintain(Keeping(default=Keep(365 * DAY, 25)))

    assert (done.records, left(owner)) == (20, {"t": 30})


def test_what_a_carrier_said_of_its_types_holds_for_those_who_know_nothing_of_them(
    owner: psycopg.Connection, store: Store
) -> None:
    past(owner, 5, ended=NOON - 5 * DAY)
    store.maintain(Keeping(types={"t": Keep(10 * DAY)}))

    assert store.maintain(Keeping(default=Keep(DAY))).records == 0


def test_statistics_are_the_same_before_and_after_they_are_stored(owner: psycopg.Connection, store: Store) -> None:
    now = time.time()
    for hours in (0.001, 2, 30):
        past(owner, 40, ended=now - hours * HOUR, waited=hours, ran=0.1)
    before = store.statistics()

    done = store.maintain(Keeping())

    assert done.hours >= 29
    assert store.statistics() == before
    assert sum(tally.total for tally in store.statistics(since=now - 3 * HOUR)) == 80
    (all_of_it,) = together(before)
    p50, p99 = (percentile(all_of_it.waited, share) for share in (0.5, 0.99))
    assert p50 is not None and p99 is not None
    assert 1.9 < p50 < 2.1 and 28 < p99 < 32


def test_work_without_times_is_counted_all_the_same(owner: psycopg.Connection, store: Store) -> None:
    past(owner, 3, ended=NOON - 2 * DAY)
    owner.execute("UPDATE taskqueue.history SET story = '', state = 'expired'")

    store.maintain(Keeping())

    (tally,) = store.statistics()
    assert (tally.counts, tally.waited, tally.ran) == ((0, 0, 0, 0, 3), {}, {})


def test_statistics_outlive_the_records_and_go_after_their_own_time(owner: psycopg.Connection, store: Store) -> None:
    past(owner, 10, ended=NOON - 5 * DAY)
    store.maintain(Keeping(default=Keep(DAY), statistics=10 * DAY))
    assert (left(owner), counts(store)) == ({}, {"t": 10})

    store.maintain(Keeping(default=Keep(DAY), statistics=2 * DAY))

    assert counts(store) == {}


def test_what_is_committed_long_after_it_began_is_counted(
    postgresql: PostgreSQL, database: str, owner: psycopg.Connection, store: Store
) -> None:
    """`ended` is when a transaction began: one that was open at the end of an hour is waited for."""
    owner.execute("UPDATE taskqueue.rolled SET until = date_trunc('hour', now() - interval '2 hours')")
    ended = time.time() // HOUR * HOUR - 1.5 * HOUR
    with contextlib.closing(postgresql.admin(database)) as late:
        late.execute("BEGIN")
        late.execute("SELECT 1")
        assert store.maintain(Keeping()).hours == 0
        past(late, 5, ended=ended)
        assert store.maintain(Keeping()).hours == 0
        late.execute("COMMIT")

    assert store.maintain(Keeping()).hours >= 1
    assert counts(store) == {"t": 5}


@pytest.mark.parametrize("moment", range(4))
def test_a_keeper_that_is_killed_counts_and_drops_nothing_twice(
    url: str, owner: psycopg.Connection, moment: int
) -> None:
    """By SIGKILL, at several moments; the next one finishes what it began."""
    for days in (3, 4, 5):
        past(owner, 4000, ended=NOON - days * DAY)
        past(owner, 10, ended=NOON - days * DAY, type="long")
    keeping = "Keeping(default=Keep(1e5), types={'long': Keep(1e8)})"
    code = (
        "from taskqueue.broker import connect; from taskqueue.upkeep import Keep, Keeping\n"
        f"print(1, flush=True); connect({url!r}).store().maintain({keeping})"
    )
    reached = [
        "SELECT 1", "SELECT 1 FROM taskqueue.statistics", "SELECT 1 FROM taskqueue.statistics WHERE gone",
        "SELECT 1 WHERE (SELECT count(*) FROM taskqueue.history WHERE type = 't') < 12000",
    ][moment]  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline()
        while process.poll() is None and owner.execute(reached.encode()).fetchone() is None:
            pass
        process.send_signal(signal.SIGKILL)

    with contextlib.closing(connect(url).store()) as store:
        deadline = time.monotonic() + 30  # until the server has noticed that the other one is gone
        while store.maintain(Keeping(default=Keep(1e5), types={"long": Keep(1e8)})).busy or left(owner).get("t"):
            assert time.monotonic() < deadline
        assert counts(store) == {"t": 12000, "long": 30}
        assert left(owner) == {"long": 30}


def test_only_one_is_at_it(postgresql: PostgreSQL, database: str, owner: psycopg.Connection, store: Store) -> None:
    past(owner, 10, ended=NOON - 3 * DAY)
    with contextlib.closing(postgresql.admin(database)) as other:
        other.execute("SELECT pg_advisory_lock(hashtext('taskqueue'), hashtext('maintain'))")
        assert store.maintain(Keeping(default=Keep(DAY))).busy

    assert store.maintain(Keeping(default=Keep(DAY))).records == 10


def test_a_day_that_somebody_reads_is_dropped_later_and_nobody_waits_for_that(
    postgresql: PostgreSQL, database: str, url: str, owner: psycopg.Connection, store: Store
) -> None:
    past(owner, 10, ended=NOON - 5 * DAY)
    with (
        contextlib.closing(postgresql.admin(database)) as reader,
        contextlib.closing(connect(url).producer()) as sender,
    ):
        store.maintain(Keeping())
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM taskqueue.tasks").fetchone() == (10,)
        sender.send([Workitem(body=b"", type="t")])
        begun = time.monotonic()
        keeping = threading.Thread(target=store.maintain, args=[Keeping(default=Keep(DAY))])
        keeping.start()

        async def one(broker: Broker) -> None:
            await drain(broker.consumer("worker_t", reserve=1), 1)

        run(url, one)
        keeping.join()
        assert time.monotonic() - begun < 20
        assert owner.execute("SELECT count(*) FROM taskqueue.history").fetchone() == (11,)

    assert store.maintain(Keeping(default=Keep(DAY))).days >= 1
    assert owner.execute("SELECT count(*) FROM taskqueue.history").fetchone() == (1,)


def test_closing_the_store_ends_a_statement_that_is_under_way(
    postgresql: PostgreSQL, database: str, store: Store
) -> None:
    with contextlib.closing(postgresql.admin(database)) as holder:
        holder.execute("BEGIN")
        holder.execute("LOCK TABLE taskqueue.rolled")
        failed: list[BaseException] = []

        def keep() -> None:
            try:
                store.maintain(Keeping())
            except BrokerError as error:
                failed.append(error)

        keeping = threading.Thread(target=keep)
        keeping.start()
        while not holder.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
            pass
        store.close()
        keeping.join(30)

    assert not keeping.is_alive()
    assert len(failed) == 1


def test_what_a_carrier_of_this_host_had_is_lent_again_once_its_process_is_gone(url: str) -> None:
    script = f"""if True:
        import asyncio, os
        from taskqueue.broker import connect
        from taskqueue.workitem import Workitem
        async def main():
            broker = connect({url!r})
            broker.producer().send([Workitem(body=b"", type="t")])
            await broker.consumer("worker_t", reserve=1).receive(limit=1)
            os._exit(0)
        asyncio.run(main())"""
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ)

    with contextlib.closing(connect(url).store()) as store:
        assert store.maintain(Keeping()).carriers == 1
