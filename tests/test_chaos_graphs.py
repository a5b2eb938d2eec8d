"""Graphs of tasks under fire: SIGKILLs and cancels at random; every value comes out right, and none is stuck."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from databases import PostgreSQL
from installations import Installation
from system import System, children, until
from system_postgresql import PostgreSQLSystem
from system_store import SQLiteSystem

import taskqueue
from taskqueue.errors import TaskFailure
from taskqueue.lifecycle import ENDED, State

sys.path.insert(0, str(Path(__file__).parent / "plugins" / "graphs"))
from graphs_plugin import catch, combine, left, right, space

GRAPHS = 200
PROCESSES = 4
PATIENCE = 240.0
PAUSE = 0.4  # seconds between two kills, at most
KILLS = 20


class Graph(NamedTuple):
    parts: list[taskqueue.Deferred[int]]
    whole: taskqueue.Deferred[list[int]]


def submit(queue: taskqueue.Queue) -> dict[int, Graph]:
    def one(number: int) -> Graph:
        parts, caught = [], []
        for n in (number, number + 1, number + 2):
            both = queue.submit(left, n), queue.submit(right, n)
            caught.append(queue.submit(catch, both[0].argument, both[1].argument))
            parts += [*both, caught[-1]]
        return Graph(parts, queue.submit(combine, [each.argument for each in caught]))

    return {number: one(number) for number in range(GRAPHS)}


def fire(graphs: dict[int, Graph], kill: Callable[[random.Random], bool], *, cancel: bool = False) -> None:
    """Kill as long as not all values are there, then look at them; cancel: parts at random, too."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    gathered = taskqueue.Gathered([graph.whole for graph in graphs.values()])
    deadline = time.monotonic() + PATIENCE
    kills = cancelled = 0
    while not gathered.wait(chance.uniform(0.02, PAUSE if kills < KILLS else 2.0)):
        assert time.monotonic() < deadline, [each for each in gathered if not each.done()][:3]
        kills += kill(chance)
        if cancel:
            cancelled += sum(chance.choice(chance.choice(list(graphs.values())).parts).cancel() for _ in range(3))
    print(f"{kills} kills, {cancelled} cancelled")
    assert kills >= KILLS
    assert cancelled > KILLS if cancel else not cancelled
    for number, graph in graphs.items():
        if State.CANCELLED in [part.status for part in graph.parts]:
            error = graph.whole.exception(0)
            assert isinstance(error, TaskFailure) and "cancelled" in str(error)
            assert all(part.status in ENDED for part in graph.parts)
        else:
            assert graph.whole.result(0) == [1001 * n for n in (number, number + 1, number + 2)]


@contextlib.contextmanager
def daemons(system: System) -> Iterator[Callable[[random.Random], bool]]:
    """A worker manager with a group of processes; what kills one of them, or seldom the carrier."""
    config = system.config(f"[DEFAULT]\nworkers = 0\nmax_crashes = 100000\n[graphs]\nworkers = {PROCESSES}\n")
    pool = system.workerpool(config, ready=PROCESSES)

    yield pool.kill_one
    until(lambda: len(pool.ready()) == PROCESSES)
    pool.stop()


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.parametrize("cancel", [False, True], ids=["killed", "cancelled"])
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def test_every_graph_comes_out_right_whatever_is_killed(
    kind: str, cancel: bool, installation: Installation, request: pytest.FixtureRequest
) -> None:
    if kind == "sqlite":
        system: System = SQLiteSystem(installation)
    else:
        server: PostgreSQL = request.getfixturevalue("postgresql")
        system = PostgreSQLSystem(installation, server)
    with system, daemons(system) as kill, taskqueue.connect(system.url, "graphs") as queue:
        fire(submit(queue), kill, cancel=cancel)
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
