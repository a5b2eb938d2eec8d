"""Handlers that end their workitems in their own transactions: exactly once, wherever somebody is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from databases import PRODUCER, PostgreSQL
from installations import Installation
from system import System, children, until
from system_postgresql import PostgreSQLSystem
from system_store import SQLiteSystem

import taskqueue
from taskqueue.lifecycle import ENDED, State
from taskqueue.record import Record

CONFIG = """\
[DEFAULT]
workers = 0
retry_delay = 0
[shop]
workers = 1
{user}
"""
POINTS = ("connected", "written", "completed", "committed", "closed")


class Shop:
    """A table of the shop's beside the tasks, and a queue to send by."""

    def __init__(self, system: System, database: str, notes: Path) -> None:
        self.system = system
        self.database = database
        self.notes = notes
        self.queue = taskqueue.connect(system.url)

    def send(self, *, type: str = "shop", stop: str = "", how: str = "", **options: Any) -> str:
        body = {
            "database": self.database, "notes": str(self.notes), "stop": stop, "how": how, "result": {"paid": stop},
        }  # fmt: skip
        return self.queue.send(type, body, **options)

    def done(self, id: str) -> int:
        """How many rows a workitem has written."""
        text = f"SELECT count(*) FROM done WHERE id = '{id}'"
        if isinstance(self.system, PostgreSQLSystem):
            ((count,),) = self.system.rows(text)
        else:
            with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as connection:
                ((count,),) = connection.execute(text).fetchall()
        return int(str(count))

    def runs(self, id: str) -> int:
        return len((self.notes / f"{id}.runs").read_text().splitlines())

    def ends(self, id: str) -> Record:
        return until(lambda: record if (record := self.queue.record(id)).state in ENDED else None, f"{id} has ended")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def shop(installation: Installation, request: pytest.FixtureRequest) -> Iterator[Shop]:
    if request.param == "sqlite":
        with SQLiteSystem(installation) as system:
            shop = Shop(system, str(system.file), system.open_directory)
            with contextlib.closing(sqlite3.connect(system.file)) as connection:
                shop.queue.using(connection)  # which sets the file up
                connection.execute("CREATE TABLE done (id text)")
                connection.commit()
            yield shop
            shop.queue.close()
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    with PostgreSQLSystem(installation, server) as system:
        with system.admin() as admin:
            admin.execute("CREATE TABLE done (id text)")
            admin.execute(f'GRANT INSERT ON done TO "{PRODUCER}"'.encode())
            admin.execute(f'GRANT EXECUTE ON FUNCTION taskqueue.complete TO "{PRODUCER}"'.encode())
        shop = Shop(system, server.url(system.database, user=PRODUCER), system.open_directory)
        yield shop
        shop.queue.close()


def start(shop: Shop, more: str = "", *, ready: int = 1) -> Any:
    root = "user = root" if os.geteuid() == 0 and isinstance(shop.system, SQLiteSystem) else ""
    return shop.system.workerpool(shop.system.config(CONFIG.format(user=root) + more), ready=ready)


def results(shop: Shop, count: int) -> list[tuple[str, bytes]]:
    found = shop.system.collect("results", count)
    assert shop.system.depth("results") == 0
    return [(message.properties.correlation_id, message.body) for message in found]


def test_what_was_completed_is_as_what_has_ended(shop: Shop) -> None:
    pool = start(shop)

    id = shop.send(reference="order:1")

    assert shop.queue.result(id, timeout=60) == {"paid": ""}
    record = shop.queue.record(id)
    (attempt,) = record.attempts
    assert (record.state, record.reference, attempt.outcome, record.running) == (
        State.SUCCEEDED, "order:1", "succeeded", None,
    )  # fmt: skip
    assert attempt.run is not None and attempt.run.ended is not None and attempt.run.cpu is not None
    assert attempt.run.started <= attempt.run.ended
    assert (attempt.run.memory or 0) > 1 << 20
    assert results(shop, 1) == [(id, b'{"paid":""}')]
    assert (shop.done(id), shop.runs(id)) == (1, 1)
    pool.stop()
    assert "its delivery was lost" not in pool.log


@pytest.mark.parametrize("who", ["worker-process", "carrier"])
def test_wherever_somebody_is_killed_it_has_happened_once(shop: Shop, who: str) -> None:
    pool = start(shop)
    sent = {}

    for point in POINTS:
        id = sent[point] = shop.send(stop=point, how="kill" if who == "worker-process" else "wait")
        if who == "carrier":
            until((shop.notes / f"{id}.stopped").exists, f"stopped when {point}")
            os.kill(children(pool.pid, "taskqueue.carrier")[0], signal.SIGKILL)
        assert shop.ends(id).state == State.SUCCEEDED
        assert shop.queue.result(id) == {"paid": point}

    assert {point: shop.done(id) for point, id in sent.items()} == dict.fromkeys(POINTS, 1)
    assert {point: shop.runs(id) for point, id in sent.items()} == {
        "connected": 2, "written": 2, "completed": 2, "committed": 1, "closed": 1,
    }  # fmt: skip
    assert "its delivery was lost" not in pool.log
    assert sorted(results(shop, 5)) == sorted((id, b'{"paid":"%s"}' % point.encode()) for point, id in sent.items())


def test_what_a_handler_raises_counts_only_before_its_commit(shop: Shop) -> None:
    start(shop, "retries = 1\nresults_routing_key = results\n")

    ids = {point: shop.send(stop=point, how="raise") for point in POINTS}
    found = {point: [attempt.outcome for attempt in shop.ends(id).attempts] for point, id in ids.items()}

    again, once = ["failed", "succeeded"], ["succeeded"]
    assert found == {"connected": again, "written": again, "completed": again, "committed": once, "closed": once}
    assert {shop.done(id) for id in ids.values()} == {1}


def test_what_is_not_committed_has_failed(shop: Shop) -> None:
    start(shop, "retries = 0\n")

    id = shop.send(how="forget")

    record = shop.ends(id)
    assert (record.state, shop.done(id)) == (State.FAILED, 0)
    assert "was not committed" in record.attempts[-1].error


@pytest.mark.parametrize("kind", ["threads", "loop"])
def test_threads_and_an_event_loop_complete_as_well(shop: Shop, kind: str) -> None:
    option = "threads = 4" if kind == "threads" else "concurrency = 4"
    start(shop, f"[shop-{kind}]\nworkers = 1\n{option}\n" + ("user = root\n" if os.geteuid() == 0 else ""), ready=2)

    ids = [shop.send(type=f"shop-{kind}") for _ in range(20)]

    assert [shop.queue.result(id, timeout=60) for id in ids] == [{"paid": ""}] * 20
    assert [shop.done(id) for id in ids] == [1] * 20
    assert len(results(shop, 20)) == 20


def test_a_group_without_history_sends_the_result_and_so_does_a_client_that_waits(shop: Shop) -> None:
    start(shop, "history = off\n")
    id = shop.send()
    assert results(shop, 1) == [(id, b'{"paid":""}')]

    shop.send(reply_to="answers")
    assert [message.body for message in shop.system.collect("answers", 1)] == [b'{"paid":""}']
