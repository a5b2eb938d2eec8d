"""SQLite and the disk: what waits for it, in which thread, and what one transaction does."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from embedded import run, send

from taskqueue.broker import Broker, Ended, connect
from taskqueue.brokers.sqlite import SQLiteBroker, dependencies, outbox
from taskqueue.brokers.sqlite.database import Database
from taskqueue.errors import BrokerError
from taskqueue.outcome import Done, Failed, Outcome, Payload, Rules
from taskqueue.workitem import Workitem

ONE = Done(Payload(b"1"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue.db"


def test_what_is_sent_and_settled_is_synced_once_others_see_it_and_what_is_lent_need_not_be(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: dict[str, list[str]] = {}
    commit, ring, fdatasync = Database.commit, Database.ring, os.fdatasync

    def note(what: str) -> None:
        done.setdefault(threading.current_thread().name.partition("_")[0], []).append(what)

    def committing(self: Database) -> None:
        states = self._connection.execute("SELECT queue, state FROM workitems ORDER BY seq").fetchall()
        commit(self)
        note(", ".join(f"{queue} {state}" for queue, state in states))

    def ringing(self: Database, queues: Collection[str]) -> None:
        note(f"ring {sorted(queues)}")
        ring(self, queues)

    def syncing(file: int) -> None:
        fdatasync(file)
        note(Path(f"/proc/self/fd/{file}").readlink().name)

    async def test(broker: Broker) -> None:
        consumer = broker.consumer("worker_t", reserve=1)
        receiving = asyncio.create_task(consumer.receive(limit=1))
        await asyncio.sleep(0.2)
        monkeypatch.setattr(Database, "commit", committing)
        monkeypatch.setattr(Database, "ring", ringing)
        monkeypatch.setattr(os, "fdatasync", syncing)
        await asyncio.to_thread(send, url, b"one", b"two")
        assert done["asyncio"][-1] == "queue.db-wal"
        (first,) = await receiving
        results = Rules(results_routing_key="results")
        assert await consumer.settle([Ended(first, Done(Payload(b"1")), results)]) == [True]  # and the next one is lent
        assert done["taskqueue-sqlite"][-1] == "queue.db-wal"
        monkeypatch.undo()

    run(url, test)

    assert done == {
        "asyncio": ["worker_t 0, worker_t 0", "ring ['worker_t']", "queue.db-wal"],
        "MainThread": ["worker_t 2, worker_t 0", "ring []"],
        "taskqueue-sqlite": ["worker_t 2, results 0", "ring ['results', 'taskqueue.ended']", "queue.db-wal"],
    }


@pytest.mark.parametrize("commit_took", [0.0, 1.0])
@pytest.mark.parametrize("others", [0, 1])
def test_the_event_loop_waits_for_the_disk_only_where_that_is_fast_and_nothing_runs(
    url: str, monkeypatch: pytest.MonkeyPatch, commit_took: float, others: int
) -> None:
    sync, threads = Database.sync, list[str]()

    def syncing(self: Database) -> None:
        threads.append(threading.current_thread().name.partition("_")[0])
        sync(self)

    async def test(broker: SQLiteBroker) -> None:
        consumers = [broker.consumer(queue, reserve=1) for queue in ("worker_t", "worker_u")]
        (first,) = await consumers[0].receive(limit=1)
        for _ in range(others):
            await consumers[1].receive(limit=1)
        monkeypatch.setattr(Database, "sync", syncing)
        broker._engine._commit_took = commit_took
        assert await consumers[0].settle([Ended(first, ONE)]) == [True]
        monkeypatch.undo()

    send(url, b"one")
    send(url, b"two", queue="worker_u")
    run(url, test)  # type: ignore[arg-type]

    assert threads == ["taskqueue-sqlite" if commit_took or others else "MainThread"]


def test_what_is_set_free_is_lent_in_the_same_transaction(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, begun = Database.begin, list[bool]()

    def beginning(self: Database, *, wait: bool) -> bool:
        begun.append(wait)
        return begin(self, wait=wait)

    async def test(broker: Broker) -> list[str]:
        consumer = broker.consumer("worker_t", reserve=2)
        (held,) = await consumer.receive(limit=1)
        monkeypatch.setattr(Database, "begin", beginning)
        ids = [held.workitem.id]
        while held.workitem.id != "d":
            begun.clear()
            assert await consumer.settle([Ended(held, ONE)]) == [True]
            assert len(begun) == 1
            (held,) = await consumer.receive(limit=1)
            assert len(begun) == 1
            assert [one.payload for one in held.inputs] == [ONE.result]
            ids.append(held.workitem.id)
        monkeypatch.undo()
        return ids

    producer = connect(url).producer()
    producer.send([Workitem(body=b"", id="a", type="t")])
    producer.send([Workitem(body=b"", id=id, type="t", after=(before,)) for before, id in ("ab", "bc", "cd")])
    producer.close()

    assert run(url, test) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("count", "outcome", "thread"),
    [
        (outbox.FEW, ONE, "MainThread"), (outbox.FEW + 1, ONE, "taskqueue-sqlite"),
        (1, Failed("no"), "taskqueue-sqlite"), (0, ONE, "MainThread"),
    ],
)  # fmt: skip
def test_the_event_loop_stores_no_more_than_a_few_rows(
    url: str, monkeypatch: pytest.MonkeyPatch, count: int, outcome: Outcome, thread: str
) -> None:
    count_down, threads = dependencies.count, set[str]()

    def counting(connection: sqlite3.Connection, causes: Mapping[str, str]) -> dependencies.Freed:
        threads.add(threading.current_thread().name.partition("_")[0])
        return count_down(connection, causes)

    async def test(broker: SQLiteBroker) -> None:
        consumer = broker.consumer("worker_t", reserve=1)
        (held,) = await consumer.receive(limit=1)
        monkeypatch.setattr(dependencies, "count", counting)
        broker._engine._commit_took = 0.0
        assert await consumer.settle([Ended(held, outcome)]) == [True]
        monkeypatch.undo()

    producer = connect(url).producer()
    producer.send([Workitem(body=b"", id="a", type="t")])
    producer.send([Workitem(body=b"", id=f"after {n}", type="t", after=("a",)) for n in range(count)])
    producer.close()
    run(url, test)  # type: ignore[arg-type]

    assert threads == ({thread} if count else set())


def test_what_was_committed_is_synced_again_where_that_failed_and_not_done_again(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fdatasync = os.fdatasync
    failures = [OSError(errno.EIO, "Input/output error")] * 2

    def failing(file: int) -> None:
        if failures:
            raise failures.pop()
        fdatasync(file)

    async def test(broker: Broker) -> None:
        consumer = broker.consumer("worker_t", reserve=1)
        (first,) = await consumer.receive(limit=1)
        monkeypatch.setattr(os, "fdatasync", failing)
        results = Rules(results_routing_key="results")
        assert await consumer.settle([Ended(first, Done(Payload(b"1")), results)]) == [True]
        monkeypatch.undo()

    send(url, b"one")
    run(url, test)

    assert not failures
    assert "queue.db: Input/output error; trying on" in caplog.text
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    assert connection.execute("SELECT queue FROM workitems").fetchall() == [("results",)]
    connection.close()


def test_a_sender_hears_where_what_it_sent_could_not_be_made_safe(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    producer = connect(url).producer()
    producer.send([Workitem(body=b"1", type="t")])
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(BrokerError, match=r"queue\.db: Input/output error"):
        producer.send([Workitem(body=b"2", type="t")])
    producer.close()
