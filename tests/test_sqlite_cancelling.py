"""Wishes in a SQLite file: none is left over, and they are few to look through."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded import run, send

from taskqueue.broker import Broker, Ended, connect
from taskqueue.brokers.sqlite import cancelling
from taskqueue.lifecycle import State
from taskqueue.outcome import Cancelled, Done, Failed, Outcome, Payload, Retry, Rules
from taskqueue.upkeep import Keeping
from taskqueue.workitem import made_at

QUEUE = "worker_t"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue.db"


@pytest.fixture
def file(tmp_path: Path, url: str) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(connect(url).store()) as store:
        store.history()  # makes the file
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as connection:
        connection.create_function("made_at", 1, made_at, deterministic=True)
        yield connection


@pytest.mark.parametrize(
    "outcome", [Done(Payload(b"1")), Failed("no"), Retry(0.0), Cancelled("SIGTERM")], ids=lambda one: type(one).__name__
)
@pytest.mark.parametrize("history", ["full", "off"])
def test_a_wish_is_gone_with_its_workitem(url: str, file: sqlite3.Connection, outcome: Outcome, history: str) -> None:
    (id,) = send(url, b"x")

    async def work(broker: Broker) -> tuple[int, int]:
        consumer, store = broker.consumer(QUEUE, reserve=1), broker.store()
        (delivery,) = await consumer.receive(limit=1)
        assert store.cancel(id) and store.cancel(id)
        before = wishes(file)
        assert await consumer.settle([Ended(delivery, outcome, Rules(history=history))]) == [True]  # type: ignore[arg-type]
        store.close()
        return before, wishes(file)

    assert run(url, work) == (1, 0)


def test_chores_forget_what_has_ended_without_a_word_and_keep_what_has_not(url: str, file: sqlite3.Connection) -> None:
    (id,) = send(url, b"x")
    file.execute("INSERT INTO unwanted VALUES (4711, 'gone'), (4712, ?)", (id,))  # another life of that id

    async def work(broker: Broker) -> tuple[int, State]:
        store = broker.store()
        await broker.consumer(QUEUE, reserve=1).receive(limit=1)
        assert store.cancel(id)
        store.maintain(Keeping())
        found = wishes(file), store.record(id).state
        store.close()
        return found

    assert run(url, work) == (1, State.WAITING)


def test_a_wish_is_looked_up_by_its_id(file: sqlite3.Connection) -> None:
    asked: list[str] = []
    file.set_trace_callback(asked.append)
    file.execute("INSERT INTO unwanted VALUES (1, 'x')")
    cancelling.lent(file, 1)
    cancelling.is_free(file)
    cancelling.take(file, 0.0)
    cancelling.sweep(file)
    file.set_trace_callback(None)

    for statement in asked:
        if "workitems" in statement:
            plan = [row[3] for row in file.execute(f"EXPLAIN QUERY PLAN {statement}")]
            assert not [step for step in plan if step.startswith("SCAN workitems")], plan
            assert [step for step in plan if "INDEX ids" in step], plan


def wishes(file: sqlite3.Connection) -> int:
    return int(file.execute("SELECT count(*) FROM unwanted").fetchone()[0])
