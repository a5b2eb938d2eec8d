"""Graphs of tasks under fire: SIGKILL of worker processes and carriers at random, and every value comes out right."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from databases import PostgreSQL
from installations import Installation
from system import System, children, until
from system_postgresql import PostgreSQLSystem
from system_store import SQLiteSystem

import taskqueue

sys.path.insert(0, str(Path(__file__).parent / "plugins" / "graphs"))
from graphs_plugin import catch, combine, left, right, space

GRAPHS = 200
PROCESSES = 4
PATIENCE = 240.0
PAUSE = 0.4  # seconds between two kills, at most
KILLS = 30


def submit(queue: taskqueue.Queue) -> dict[int, taskqueue.Deferred[list[int]]]:
    def one(number: int) -> taskqueue.Deferred[list[int]]:
        caught = [
            queue.submit(catch, queue.submit(left, n).argument, queue.submit(right, n).argument)
            for n in (number, number + 1, number + 2)
        ]
        return queue.submit(combine, [each.argument for each in caught])

    return {number: one(number) for number in range(GRAPHS)}


def fire(graphs: dict[int, taskqueue.Deferred[list[int]]], kill: Callable[[random.Random], bool]) -> None:
    """Kill as long as not all values are there, then look at them."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    gathered = taskqueue.Gathered(list(graphs.values()))
    deadline = time.monotonic() + PATIENCE
    kills = 0
    while not gathered.wait(chance.uniform(0.02, PAUSE if kills < KILLS else 2.0)):
        assert time.monotonic() < deadline, [each for each in gathered if not each.done()][:3]
        kills += kill(chance)
    print(f"{kills} kills")
    assert kills >= KILLS
    found = {number: each.result(0) for number, each in graphs.items()}
    assert found == {number: [1001 * n for n in (number, number + 1, number + 2)] for number in graphs}


@contextlib.contextmanager
def daemons(system: System) -> Iterator[Callable[[random.Random], bool]]:
    """A worker manager with a group of processes; what kills one of them, or seldom the carrier."""
    config = system.config(f"[DEFAULT]\nworkers = 0\nmax_crashes = 100000\n[graphs]\nworkers = {PROCESSES}\n")
    pool = system.workerpool(config, ready=PROCESSES)

    def kill(chance: random.Random) -> bool:
        victims = pool.carriers if chance.random() < 0.15 else pool.ready()
        if not victims:
            return False
        os.kill(chance.choice(victims), signal.SIGKILL)
        return True

    yield kill
    until(lambda: len(pool.ready()) == PROCESSES)
    pool.stop()


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def test_every_graph_comes_out_right_whatever_is_killed(
    kind: str, installation: Installation, request: pytest.FixtureRequest
) -> None:
    if kind == "sqlite":
        system: System = SQLiteSystem(installation)
    else:
        server: PostgreSQL = request.getfixturevalue("postgresql")
        system = PostgreSQLSystem(installation, server)
    with system, daemons(system) as kill, taskqueue.connect(system.url, "graphs") as queue:
        fire(submit(queue), kill)
        assert len(queue) == 0


@pytest.mark.chaos
@pytest.mark.timeout(400)
def test_in_memory_every_graph_comes_out_right_whatever_worker_process_is_killed() -> None:
    def kill(chance: random.Random) -> bool:
        victims = children(os.getpid(), "taskqueue.process")
        if victims:
            os.kill(chance.choice(victims), signal.SIGKILL)
        return bool(victims)

    with (
        taskqueue.connect("memory://", "graphs") as queue,
        taskqueue.running(queue, space, processes=PROCESSES, max_crashes=100_000),
    ):
        fire(submit(queue), kill)
