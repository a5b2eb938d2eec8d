"""The chores of a SQLite file: what goes, what stays, what is counted, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded import drain

from taskqueue.broker import Options, connect
from taskqueue.brokers.sqlite import SQLiteBroker, keeper
from taskqueue.brokers.sqlite.database import Database
from taskqueue.errors import BrokerError
from taskqueue.outcome import Done
from taskqueue.record import Attempt, Run
from taskqueue.statistics import percentile, together
from taskqueue.store import Store
from taskqueue.story import more
from taskqueue.upkeep import HOUR, Keep, Keeping
from taskqueue.workitem import Workitem

NOW = 500_000 * HOUR
DAY = 24 * HOUR


class Moving:
    """A clock that moves when told."""

    now = NOW
    monotonic = staticmethod(time.monotonic)

    def wall(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def clock() -> Moving:
    return Moving()


@pytest.fixture
def store(file: Path, clock: Moving, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(keeper, "REST", 0)
    with contextlib.closing(SQLiteBroker(file, Options(url=""), clock=clock).store()) as store:
        yield store


def past(file: Path, count: int, *, ended: float, type: str = "t", waited: float = 0.5, ran: float = 2.0) -> None:
    """Records of work that has ended at that time, microseconds apart."""
    Database(file).close()
    rows = []
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        (others,) = connection.execute("SELECT count(*) FROM ended").fetchone()
        for n in range(others, others + count):
            born = int((ended - waited - ran) * 1e6) + n
            started = born / 1e6 + waited
            story = more("", Attempt(1, "succeeded", Run("h", "u", 1, started, started + ran, 0.0, 1)))
            rows.append((born, f"{type}-{n}", type, "", 0, "succeeded", "", ended, story, "", None))
        connection.executemany(
            "INSERT INTO ended (born, id, type, reference, priority, state, sender, ended, story, running, result) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )


def left(file: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return dict(connection.execute("SELECT type, count(*) FROM ended GROUP BY type"))


def counts(store: Store) -> dict[str, int]:
    return {tally.type: tally.total for tally in together(store.statistics())}


def test_records_go_by_age_and_each_type_by_its_own(file: Path, store: Store) -> None:
    for days in (3, 1.5, 0.5):
        for type in ("t", "long"):
            past(file, 250, ended=NOW - days * DAY, type=type)

    done = store.maintain(Keeping(default=Keep(DAY), types={"long": Keep(2 * DAY)}))

    assert (done.records, left(file)) == (750, {"t": 250, "long": 500})
    assert counts(store) == {"t": 750, "long": 750}
    assert store.maintain(Keeping(default=Keep(DAY), types={"long": Keep(2 * DAY)})).idle


def test_records_go_by_number_in_whole_hours(file: Path, store: Store) -> None:
    for hours in range(2, 7):
        past(file, 10, ended=NOW - hours * HOUR)

    done = store.maintain(Keeping(default=Keep(365 * DAY, 25)))

    assert (done.records, left(file)) == (20, {"t": 30})


def test_what_waited_for_long_is_counted_and_dropped_with_the_hour_in_which_it_ended(file: Path, store: Store) -> None:
    past(file, 1, ended=NOW - 3 * DAY)  # with which statistics begin
    past(file, 30, ended=NOW - 2 * DAY, waited=5 * HOUR)
    past(file, 20, ended=NOW - 2 * HOUR, waited=3 * DAY)

    done = store.maintain(Keeping(default=Keep(DAY)))

    assert (done.records, left(file), counts(store)) == (31, {"t": 20}, {"t": 51})


def test_what_a_carrier_said_of_its_types_holds_for_those_who_know_nothing_of_them(file: Path, store: Store) -> None:
    past(file, 5, ended=NOW - 5 * DAY)
    store.maintain(Keeping(types={"t": Keep(10 * DAY)}))

    assert store.maintain(Keeping(default=Keep(DAY))).records == 0


def test_statistics_are_the_same_before_and_after_they_are_stored(file: Path, store: Store, clock: Moving) -> None:
    for hours in (0.5, 1.5, 30):
        past(file, 40, ended=NOW - hours * HOUR, waited=hours, ran=0.1)
    before = store.statistics()

    done = store.maintain(Keeping())

    assert done.hours >= 29
    assert store.statistics() == before
    assert [tally.total for tally in store.statistics(since=NOW - 2 * HOUR)] == [40, 40]
    (all_of_it,) = together(before)
    p50, p99 = (percentile(all_of_it.waited, share) for share in (0.5, 0.99))
    assert p50 is not None and p99 is not None
    assert 1.4 < p50 < 1.6 and 28 < p99 < 32


def test_an_hour_is_stored_only_when_all_of_it_is_safely_over(file: Path, store: Store, clock: Moving) -> None:
    past(file, 10, ended=NOW - 60)
    assert store.maintain(Keeping()).hours == 0

    clock.now = NOW + keeper.GRACE
    assert store.maintain(Keeping()).hours == 1
    assert counts(store) == {"t": 10}


def test_statistics_outlive_the_records_and_go_after_their_own_time(file: Path, store: Store, clock: Moving) -> None:
    past(file, 10, ended=NOW - 3 * DAY)
    keeping = Keeping(default=Keep(DAY), statistics=10 * DAY)
    assert store.maintain(keeping).records == 10
    assert counts(store) == {"t": 10}

    clock.now = NOW + 8 * DAY
    store.maintain(keeping)

    assert counts(store) == {}


@pytest.mark.parametrize("moment", range(4))
def test_a_keeper_that_is_killed_counts_and_drops_nothing_twice(file: Path, tmp_path: Path, moment: int) -> None:
    """By SIGKILL, at several moments; the next one finishes what it began."""
    now = time.time()
    for hours in range(2, 12):
        past(file, 300, ended=now - hours * HOUR)
    code = (
        "import sys; from taskqueue.broker import connect; from taskqueue.upkeep import Keep, Keeping\n"
        "print('ready', flush=True)\n"
        f"connect('sqlite:///{file}').store().maintain(Keeping(default=Keep({5 * HOUR})))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        done = ["SELECT 1", "SELECT 1 FROM rolled", "SELECT 1 FROM statistics WHERE gone"]
        done.append("SELECT 1 WHERE (SELECT count(*) FROM ended) BETWEEN 1 AND 2500")
        while process.poll() is None and connection.execute(done[moment]).fetchone() is None:
            pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    with contextlib.closing(connect(f"sqlite:///{file}").store()) as store:
        store.maintain(Keeping(default=Keep(5 * HOUR)))
        assert counts(store) == {"t": 3000}
        assert left(file)["t"] in (1200, 1500)  # by where in its hour this runs


def test_only_one_is_at_it(file: Path, store: Store) -> None:
    past(file, 10, ended=NOW - 3 * DAY)
    script = f"import fcntl; f = open('{file}.d/chores', 'w'); fcntl.flock(f, 2); print('has it', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline()

        assert store.maintain(Keeping(default=Keep(DAY))).busy

        other.stdin.write("\n")
    assert store.maintain(Keeping(default=Keep(DAY))).records == 10


def test_closing_the_store_ends_its_chores(file: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "REST", 10_000)
    past(file, 1000, ended=NOW - 3 * DAY)

    async def test() -> None:
        doing = asyncio.create_task(asyncio.to_thread(store.maintain, Keeping(default=Keep(DAY))))
        await asyncio.sleep(0.2)
        assert not doing.done()
        store.close()
        with pytest.raises(BrokerError, match="chores"):
            await doing

    asyncio.run(asyncio.wait_for(test(), 30))


def test_what_a_dead_carrier_had_is_lent_again(file: Path) -> None:
    url = f"sqlite:///{file}"
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
    subprocess.run([sys.executable, "-c", script], check=True)

    with contextlib.closing(connect(url).store()) as store:
        assert store.maintain(Keeping()).carriers == 1

    async def test() -> None:
        broker = connect(url)
        await drain(broker.consumer("worker_t", reserve=1), 1)
        await broker.close()

    asyncio.run(asyncio.wait_for(test(), 30))


def test_no_sender_waits_for_long_while_many_records_are_dropped(file: Path) -> None:
    now = time.time()
    past(file, 20_000, ended=now - 3 * HOUR)
    code = f"import sys; from taskqueue import cli; sys.exit(cli.main(['maintain', '--url', 'sqlite:///{file}']))"
    environment = {**os.environ, "TASKQUEUE_CONFIG": str(file.with_name("config.ini"))}
    file.with_name("config.ini").write_text("[taskqueue]\nhistory_retention = 1h\n")
    waits = []
    with contextlib.closing(connect(f"sqlite:///{file}").producer()) as producer:
        process = subprocess.Popen([sys.executable, "-c", code, "--json"], env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            begun = time.monotonic()
            producer.send([Workitem(body=b"", type="other")])
            waits.append(time.monotonic() - begun)
            time.sleep(0.002)
    assert process.returncode == 0
    assert left(file) == {}
    print(json.dumps({"sends": len(waits), "p99": sorted(waits)[int(len(waits) * 0.99)], "longest": max(waits)}))
    assert sorted(waits)[len(waits) // 2] < 0.1


def test_dead_letters_go_after_their_retention(file: Path, clock: Moving) -> None:
    broker = SQLiteBroker(file, Options(url="", dead_retention=3600.0), clock=clock)
    with contextlib.closing(broker.producer()) as producer, contextlib.closing(broker.store()) as store:
        producer.send([Workitem(body=b"", id="old")], queue="taskqueue.dead")
        producer.send([Workitem(body=b"", id="other", type="t")])
        assert store.maintain(Keeping()).dead_letters == 0
        clock.now += 1800
        producer.send([Workitem(body=b"", id="young")], queue="taskqueue.dead")
        store.maintain(Keeping())
        clock.now += 1799
        assert store.maintain(Keeping()).dead_letters == 0
        clock.now += 2
        assert store.maintain(Keeping()).dead_letters == 1
        assert ids(file) == ["other", "young"]
        clock.now += 1800
        assert store.maintain(Keeping()).dead_letters == 1
    assert ids(file) == ["other"]


def ids(file: Path) -> list[str]:
    """Of all that is in the file and not over."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return sorted(id for (id,) in connection.execute("SELECT id FROM workitems"))


def test_a_result_goes_with_its_record(file: Path, clock: Moving, store: Store) -> None:
    assert Done(None).result is None
    past(file, 5, ended=NOW - 3 * DAY)
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE ended SET results = 'results', result = X'01', result_type = ''")

    store.maintain(Keeping(default=Keep(DAY)))

    assert left(file) == {}
