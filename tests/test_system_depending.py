"""Workitems that depend on others, with real worker processes: what these get, and that nothing is stuck under fire."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator

import pytest
from installations import Installation
from system import PATIENCE, Daemon, System
from system_postgresql import PostgreSQLSystem
from system_store import SQLiteSystem

from taskqueue.broker import connect
from taskqueue.lifecycle import ENDED, State
from taskqueue.outcome import Payload
from taskqueue.record import Record
from taskqueue.store import Store
from taskqueue.workitem import Workitem

JSON = "application/json"
KILLS = 20


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def system(installation: Installation, request: pytest.FixtureRequest) -> Iterator[System]:
    if request.param == "sqlite":
        made: System = SQLiteSystem(installation)
    else:
        made = PostgreSQLSystem(installation, request.getfixturevalue("postgresql"))
    with made as system:
        yield system


@pytest.fixture
def store(system: System) -> Iterator[Store]:
    with contextlib.closing(connect(system.url).store()) as store:
        yield store


def send(system: System, *workitems: Workitem) -> None:
    with contextlib.closing(connect(system.url).producer()) as producer:
        producer.send(workitems)


def item(id: str, type: str, body: str, *after: str, **headers: object) -> Workitem:
    return Workitem(body=body.encode(), id=id, type=type, content_type="text/plain", after=after, headers=headers)


def ended(store: Store, ids: list[str], seconds: float = PATIENCE) -> dict[str, Record]:
    """Wait until all have ended."""
    deadline = time.monotonic() + seconds
    with contextlib.closing(store.bell()) as bell:
        while True:
            found = store.ended(ids)
            assert None not in found.values()
            if found.keys() >= set(ids):
                return {id: record for id, record in found.items() if record is not None}
            left = deadline - time.monotonic()
            assert left > 0, f"not ended: {[store.record(id) for id in ids if id not in found][:5]}"
            bell.wait(left)


def test_a_handler_gets_how_those_have_ended_that_its_workitem_depends_on(system: System, store: Store) -> None:
    pool = "[DEFAULT]\nworkers = 0\nretries = 0\n[echo]\nworkers = 1\n[fail]\nworkers = 1\n[unruly]\nworkers = 1\n"
    send(system, item("a", "echo", "first"), item("b", "fail", "no"), item("c", "echo", "x" * 300_000))
    send(system, item("all", "unruly", "ends", "c", "a", "b", "a", on_error="pass"))
    send(system, item("some", "unruly", "ends", "a", "b"))
    system.workerpool(system.config(pool), ready=3)

    records = ended(store, ["all", "some"])

    assert records["all"].result is not None
    assert json.loads(records["all"].result.body) == [
        ["c", "echo", "succeeded", "x" * 300_000, ""],
        ["a", "echo", "succeeded", "first", ""],
        ["b", "fail", "failed", None, "ValueError: no"],
        ["a", "echo", "succeeded", "first", ""],
    ]
    assert records["some"].attempts[0].error == "b of fail: failed: ValueError: no"


@pytest.mark.parametrize(("type", "option"), [("threads", "threads"), ("loop", "concurrency")])
def test_each_of_several_handlers_at_once_gets_its_own(system: System, store: Store, type: str, option: str) -> None:
    config = f"[DEFAULT]\nworkers = 0\n[echo]\nworkers = 1\n[{type}]\nworkers = 1\n{option} = 5\n"
    config += f"file = {system.open_directory / 'notes'}\n"
    send(system, *(item(f"a{n}", "echo", "1") for n in range(20)))
    send(system, *(item(f"b{n}", type, "wait 0.05", f"a{n}", f"a{(n + 1) % 20}") for n in range(20)))
    system.workerpool(system.config(config), ready=2)

    records = ended(store, [f"b{n}" for n in range(20)])

    results = {id: json.loads(record.result.body) for id, record in records.items() if record.result is not None}
    assert {id: result["inputs"] for id, result in results.items()} == {
        f"b{n}": [f"a{n}", f"a{(n + 1) % 20}"] for n in range(20)
    }


@pytest.mark.chaos
def test_graphs_come_to_their_end_whatever_is_killed(system: System, store: Store) -> None:
    """Each is two numbers, the sums of both with a third, and the sum of all of that: sent while others run."""
    graphs, config = 150, "[DEFAULT]\nworkers = 0\n[unruly]\nworkers = 3\nmax_crashes = 1000\n"
    pool = system.workerpool(system.config(config), ready=3)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    over, kills = threading.Event(), [0]
    killing = threading.Thread(target=lambda: kill(pool, random.Random(seed), over, kills))
    killing.start()
    try:
        for n in range(graphs):
            send(system, item(f"left{n}", "unruly", "sum 1"), item(f"right{n}", "unruly", f"sum {n}"))
            send(
                system,
                item(f"up{n}", "unruly", "sum 10", f"left{n}", f"right{n}"),
                item(f"down{n}", "unruly", "sum 100", f"right{n}"),
                item(f"all{n}", "unruly", "sum 1000", f"up{n}", f"down{n}", f"left{n}"),
            )
        records = ended(store, [f"all{n}" for n in range(graphs)], 4 * PATIENCE)
    finally:
        over.set()
        killing.join()

    assert {record.state for record in records.values()} == {State.SUCCEEDED}
    wanted = {f"all{n}": Payload(b"%d" % (1000 + 10 + 1 + n + 100 + n + 1), JSON) for n in range(graphs)}
    assert {id: record.result for id, record in records.items()} == wanted
    assert {record.state for record in store.history(states=[s for s in State if s not in ENDED])} == set()
    print(f"{kills[0]} kills")
    assert kills[0] > 5


def kill(pool: Daemon, chance: random.Random, over: threading.Event, kills: list[int]) -> None:
    """Kill worker processes and carriers at random until it is over; seldom in the end, for slow machines."""
    while not over.wait(chance.uniform(0.05, 0.6 if kills[0] < KILLS else 6.0)):
        kills[0] += pool.kill_one(chance)
