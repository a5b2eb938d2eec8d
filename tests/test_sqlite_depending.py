"""What depends on what, in a SQLite file: its schema, its plans, and that nothing of it is left over."""

from __future__ import annotations

import contextlib
import re
import resource
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from embedded import run

from taskqueue.broker import Broker, Ended, Options, connect
from taskqueue.brokers.sqlite import SQLiteBroker, keeper
from taskqueue.brokers.sqlite.schema import APPLICATION_ID, BLOCKED, MIGRATIONS, VERSION
from taskqueue.lifecycle import State
from taskqueue.outcome import Done, Failed, Outcome, Payload
from taskqueue.record import Run
from taskqueue.store import Store
from taskqueue.upkeep import Keep, Keeping
from taskqueue.workitem import DEAD_LETTERS, Workitem, made_at, worker_queue

PATIENCE = 30.0  # seconds
DAY = 86400.0
ONE = Done(Payload(b"1"))
RUN = Run("host", "user", 7, 1.0, 2.0, 0.5, 1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"


class Moving:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = time.time()

    monotonic = staticmethod(time.monotonic)

    def wall(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Moving:
    return Moving()


@pytest.fixture
def store(file: Path, clock: Moving, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(keeper, "REST", 0)
    with contextlib.closing(SQLiteBroker(file, Options(url="", dead_retention=DAY), clock=clock).store()) as store:
        yield store


def item(id: str, *after: str, type: str = "t", **more: Any) -> Workitem:
    return Workitem(body=b"x", id=id, type=type, after=after, **more)


def send(url: str, *workitems: Workitem) -> None:
    with contextlib.closing(connect(url).producer()) as producer:
        producer.send(workitems)


def end(url: str, outcomes: Mapping[str, Outcome], type: str = "t", clock: Moving | None = None) -> None:
    """Receive until all of these are there, and settle them."""

    async def work(broker: Broker) -> None:
        if clock is not None:
            broker = SQLiteBroker(Path(url.removeprefix("sqlite:///")), Options(url=url), clock=clock)
        consumer = broker.consumer(worker_queue(type), reserve=len(outcomes))
        lent = {}
        while not lent.keys() >= outcomes.keys():
            lent |= {delivery.workitem.id: delivery for delivery in await consumer.receive(limit=len(outcomes))}
        assert all(await consumer.settle([Ended(lent[id], outcomes[id], run=RUN) for id in outcomes]))
        await broker.close()

    run(url, work)


def asked(file: Path, sql: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        return connection.execute(sql).fetchall()


def test_a_file_of_the_schema_before_goes_on(file: Path, url: str, store: Store) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(";".join(MIGRATIONS[:2]))
        connection.execute("INSERT INTO queues (name) VALUES ('worker_t')")
        connection.execute(
            "INSERT INTO workitems VALUES (5000000, 'worker_t', 0, 0, NULL, NULL, NULL, 'waiting', 't', '', '', 1, 0, "
            "0, '', x'78', 0, 'me', '', '')"
        )
        connection.execute(
            "INSERT INTO ended VALUES (4000000, 'ended', 't', '', 0, 'succeeded', 'me', 4.5, '', '', 'text/plain', "
            "x'31', NULL)"
        )
        connection.execute("PRAGMA user_version = 2")
        connection.commit()
    assert asked(file, "PRAGMA application_id") == [(APPLICATION_ID,)]

    send(url, item("both", "waiting", "ended", type="u"))
    blocked = store.record("both").state
    end(url, {"waiting": ONE})

    assert asked(file, "PRAGMA user_version") == [(VERSION,)]
    assert (blocked, store.record("both").state) == (State.BLOCKED, State.WAITING)
    assert store.record("ended").result == Payload(b"1", "text/plain")


# Plans: each statement finds its rows by an index.


def test_no_statement_about_dependencies_reads_a_whole_table(
    file: Path, url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: set[str] = set()
    opened = sqlite3.connect

    def traced(*arguments: Any, **more: Any) -> sqlite3.Connection:
        connection = opened(*arguments, **more)
        connection.set_trace_callback(told.add)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    send(url, item("a", headers={"result_timeout": 0}), item("b"), item("g", expiration=0.0))
    send(url, item("c", "a"), item("d", "a", "b", "g", type="u", headers={"on_error": "pass"}))
    with contextlib.closing(connect(url).producer()) as producer:
        producer.send([item("f", "a", "b"), item("once")], unique=True)
    end(url, {"a": ONE})
    end(url, {"b": Failed("no")})
    end(url, {"c": Failed("no")})
    end(url, {"d": ONE}, type="u")
    store.cancel("once")
    store.ended(["a", "b", "never"])
    store.count("t")
    store.discard("t")
    store.maintain(Keeping())

    monkeypatch.undo()
    chores = r"LIMIT 1$|NULL AND NOT EXISTS|= 3 AND NOT EXISTS"
    about = [sql for sql in told if re.search(r"dependencies|json_each|id = |until|count", sql)]
    asks = [sql for sql in about if re.match(r"\s*(SELECT|UPDATE|DELETE)", sql) and not re.search(chores, sql)]
    assert len(asks) > 20
    with contextlib.closing(opened(file)) as connection:
        connection.create_function("made_at", 1, made_at, deterministic=True)
        plans = [(sql, detail) for sql in asks for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
    reads_all = r"SCAN (workitems|ended|dependencies|other)\b(?! USING INDEX scheduled)"
    assert [(sql, detail) for sql, detail in plans if re.match(reads_all, detail)] == []
    freeing = [detail for sql, detail in plans if "SET state = CASE" in sql and "dependencies" in detail]
    assert freeing
    assert all("INDEX pending" in detail for detail in freeing)  # not past all that have ended already


# Chores.


def test_what_waits_for_nothing_that_has_not_ended_is_found(file: Path, url: str, store: Store) -> None:
    """As after a carrier of an earlier version, which did not count."""
    send(url, item("a"), item("b"), item("alive"))
    send(url, *(item(id, "a", type="u") for id in ("c", "lone")), item("d", "b", type="u"))
    send(url, item("e", "d", type="u"), item("f", "a", "alive", type="u"))
    end(url, {"a": ONE, "b": Failed("no")})
    asked(
        file,
        "UPDATE dependencies SET life = NULL WHERE id IN ('a', 'b')",
    )
    restored = (
        "INSERT INTO workitems SELECT seq, 'worker_u', {}, 0, NULL, NULL, NULL, 'd', 'u', '', '', 1, 0, 0, '', x'', "
    )
    restored += "seq, '', '', '' FROM (SELECT born AS seq FROM ended WHERE id = '{}')"
    for id in ("d", "e"):
        asked(file, restored.format(BLOCKED, id).replace("'d', 'u'", f"'{id}', 'u'"))
        (born,) = asked(file, f"SELECT born FROM ended WHERE id = '{id}'")[0]
        before = {"d": "b", "e": "d"}[id]
        asked(file, f"INSERT INTO dependencies VALUES ({born}, 0, '{before}', NULL)")
        asked(file, f"DELETE FROM ended WHERE id = '{id}'")
    asked(file, f"UPDATE workitems SET state = {BLOCKED} WHERE id IN ('c', 'lone')")
    asked(file, "DELETE FROM dependencies WHERE dependent = (SELECT seq FROM workitems WHERE id = 'lone')")
    assert [store.record(id).state for id in ("c", "lone", "d", "e", "f")] == [State.BLOCKED] * 5

    done = [store.maintain(Keeping()).mended for _ in range(2)]

    assert done == [4, 0]  # of what waits for another one, too, only the count was wrong
    states = [store.record(id).state for id in ("c", "lone", "d", "e", "f")]
    assert states == [State.WAITING, State.WAITING, State.FAILED, State.FAILED, State.BLOCKED]
    assert store.record("e").attempts[0].error == "b of t: failed: no"


def test_a_record_is_kept_as_long_as_something_depends_on_it_that_has_not_ended(
    url: str, store: Store, clock: Moving
) -> None:
    send(url, item("a"), item("other"), item("b"))
    send(url, item("c", "a", "b", type="u"))
    end(url, {"a": ONE, "other": ONE}, clock=clock)

    kept = Keeping(default=Keep(DAY))
    clock.now += 3 * DAY
    first = store.maintain(kept).records
    held = store.ended(["a", "other"])
    end(url, {"b": ONE}, clock=clock)
    end(url, {"c": ONE}, type="u", clock=clock)
    clock.now += 3 * DAY
    then = store.maintain(kept).records

    assert (first, held["other"], held["a"] is not None and held["a"].result) == (1, None, Payload(b"1"))
    assert then == 3
    assert store.ended(["a", "b", "c"]) == {"a": None, "b": None, "c": None}


def test_a_record_is_kept_as_long_as_one_whose_result_promises_it(
    file: Path, url: str, store: Store, clock: Moving
) -> None:
    send(url, item("a"), item("other"), item("outer", type="u"))
    end(url, {"outer": Done(Payload(b"2"), promises=("a",))}, type="u", clock=clock)
    end(url, {"a": ONE, "other": ONE}, clock=clock)

    kept = Keeping(default=Keep(DAY), types={"u": Keep(30 * DAY)})
    clock.now += 3 * DAY
    first = store.maintain(kept).records
    held = store.ended(["a", "other"])
    clock.now += 30 * DAY
    then = [store.maintain(kept).records for _ in range(2)]

    assert (first, held["other"], held["a"] is not None and held["a"].result) == (1, None, Payload(b"1"))
    assert then == [1, 1]
    assert asked(file, "SELECT * FROM promises") == []


def test_nothing_is_left_of_promises_when_results_are_over(file: Path, url: str, store: Store, clock: Moving) -> None:
    send(url, item("a"), item("outer", headers={"result_timeout": 5.0}))
    end(url, {"outer": Done(Payload(b"2"), promises=("a", "b")), "a": ONE}, clock=clock)
    assert len(asked(file, "SELECT * FROM promises")) == 2

    clock.now += 10
    store.maintain(Keeping())

    assert asked(file, "SELECT * FROM promises") == []


def test_nothing_is_left_of_dependencies_when_all_has_ended(file: Path, url: str, store: Store, clock: Moving) -> None:
    send(url, item("a"), item("b"), *(item(f"c{n}", "a", "b", type="u") for n in range(8)))
    send(url, item("d", "c0", type="v"), item("e", "c7"), item("g", "a", expiration=0.0))
    assert len(asked(file, "SELECT * FROM dependencies")) == 19
    end(url, {"a": ONE, "b": ONE})
    store.cancel("c1")
    end(url, {"c0": Failed("no"), "c2": ONE, "c3": Failed("no")}, type="u")
    store.discard("u")
    store.maintain(Keeping())
    left = asked(file, "SELECT queue FROM workitems JOIN dependencies ON dependent = seq GROUP BY seq")
    assert sorted(left) == [(DEAD_LETTERS,), (DEAD_LETTERS,), ("taskqueue.dropped",)]

    async def dispatch(broker: Broker) -> None:
        consumer = broker.consumer("taskqueue.dropped", reserve=1)
        (dropped,) = await consumer.receive(limit=1)
        assert (dropped.workitem.after, dropped.inputs) == (("a",), ())
        await consumer.settle([Ended(dropped, Done(None))])

    run(url, dispatch)
    clock.now += 3 * DAY
    assert store.maintain(Keeping()).dead_letters == 2
    assert asked(file, "SELECT * FROM dependencies") == []


# Bells.


def test_a_bell_finds_out_by_itself_what_nobody_rang_for(file: Path, url: str, store: Store) -> None:
    send(url, item("a"))
    bell = store.bell()

    asked(file, "UPDATE workitems SET priority = 1")

    assert bell.wait(PATIENCE)
    assert not bell.wait(2.5)  # it has looked twice
    bell.close()


def test_a_bell_needs_no_low_descriptor(url: str, store: Store) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 2048:  # infinite is -1
        pytest.skip(f"a process may have {hard} files here")
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            stack.enter_context(open("/dev/null"))
        bell = store.bell()
        send(url, item("a"))
        store.cancel("a")
        assert bell.wait(PATIENCE)
        bell.close()
