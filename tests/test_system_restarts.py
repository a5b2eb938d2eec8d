"""When a worker process that died is replaced: at once where it does some work, later and later where it does none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from installations import Installation
from system import Daemon
from system_store import SQLiteSystem

from taskqueue.broker import connect
from taskqueue.workitem import Workitem

DEATHS = 12  # in a row; the replacement of the last one would be half a minute late at least


@pytest.fixture
def system(installation: Installation) -> Iterator[SQLiteSystem]:
    with SQLiteSystem(installation) as system:
        yield system


def start(system: SQLiteSystem, bodies: list[str], *, time_limit: float = 0.0) -> Daemon:
    """Have them done in turn by one worker process at a time."""
    producer = connect(system.url).producer()
    producer.send([Workitem(body=body.encode(), content_type="text/plain") for body in bodies], queue="worker_threads")
    producer.close()
    text = "[DEFAULT]\nworkers = 0\nmax_crashes = 1\nretries = 0\ncrowd = 0\n[threads]\nworkers = 1\n"
    limit = f"time_limit = {time_limit}\n" if time_limit else ""
    return system.workerpool(system.config(f"{text}{limit}file = {system.open_directory / 'notes'}\n"))


def test_one_that_brings_a_workitem_to_its_end_before_it_dies_is_replaced_at_once(system: SQLiteSystem) -> None:
    pool = start(system, ["wait 0", "kill x"] * DEATHS)

    found = system.collect("results", 2 * DEATHS)

    assert [message.headers["status"] for message in found].count("succeeded") == DEATHS == pool.log.count("died")
    assert "failing" not in pool.log
    pool.stop()


def test_one_that_is_killed_at_a_time_limit_is_replaced_at_once(system: SQLiteSystem) -> None:
    pool = start(system, ["wait 600"] * 5, time_limit=0.1)

    system.collect("results", 5)

    assert "failing" not in pool.log
    pool.stop()


def test_one_that_dies_of_each_workitem_is_replaced_more_and_more_slowly(system: SQLiteSystem) -> None:
    pool = start(system, ["kill x"] * DEATHS)

    pool.logged("group threads is failing")

    assert (system.depth("worker_threads") or 0) > 0
