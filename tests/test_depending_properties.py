"""Whatever depends on whatever, and however it ends: SQLite does what the reference does, and nothing is left over."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taskqueue.broker import Broker, Ended, connect
from taskqueue.dead import requeued
from taskqueue.errors import DuplicateTask, UnknownTask
from taskqueue.lifecycle import ENDED, State
from taskqueue.outcome import Crashed, Dead, Done, Failed, Outcome, Payload, Retry, Rules
from taskqueue.store import Store
from taskqueue.workitem import Workitem, worker_queue

RULES = Rules(max_crashes=2)
OUTCOMES: list[Outcome] = [
    Done(Payload(b"1")), Done(Payload(b"2")), Done(None), Failed("no"), Dead("rejected"), Retry(0.0, "again"),
    Crashed("SIGSEGV"),
]  # fmt: skip
IDS = st.integers(0, 9).map(str)


class Send(NamedTuple):
    """Workitems in one call.  strict: also with ids that are unknown, or have not ended."""

    workitems: list[Workitem]
    strict: bool


class Work(NamedTuple):
    """The first ones that wait come to these ends."""

    outcomes: list[Outcome]


class Cancel(NamedTuple):
    id: str


class Requeue(NamedTuple):
    """All dead letters."""


class Discard(NamedTuple):
    """All that waits."""


def workitem(id: str, after: list[str], on_error: str, ignore: bool) -> Workitem:
    headers = {"on_error": on_error, **({"ignore_result": True} if ignore else {})}
    return Workitem(body=b"x", id=id, type="t", after=tuple(after), headers=headers)


WORKITEMS = st.builds(
    workitem,
    IDS,
    st.lists(IDS, max_size=4),
    st.sampled_from(["fail", "fail", "pass"]),
    st.sampled_from([False] * 4 + [True]),
)
STEPS = st.lists(
    st.one_of(
        st.builds(Send, st.lists(WORKITEMS, min_size=1, max_size=5), st.sampled_from([False] * 7 + [True])),
        st.builds(Send, st.lists(WORKITEMS, min_size=1, max_size=5), st.sampled_from([False] * 7 + [True])),
        st.builds(Work, st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=4)),
        st.builds(Work, st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=4)),
        st.builds(Cancel, IDS),
        st.just(Requeue()),
        st.just(Discard()),
    ),
    max_size=14,
)


async def play(broker: Broker, steps: list[Any]) -> Iterator[Any]:
    """What can be seen after each step."""
    seen: list[Any] = []
    with contextlib.closing(broker.producer()) as producer, contextlib.closing(broker.store()) as store:
        for step in steps:
            match step:
                case Send(workitems, strict):
                    try:
                        seen.append(producer.send(workitems if strict else possible(store, workitems), unique=True))
                    except (UnknownTask, DuplicateTask) as error:
                        seen.append(repr(error))
                case Work(outcomes):
                    seen.append(await work(broker, store, outcomes))
                case Cancel(id):
                    try:
                        seen.append(store.cancel(id))
                    except UnknownTask as error:
                        seen.append(repr(error))
                case Requeue():
                    seen.append(await requeue(broker, store))
                case Discard():
                    seen.append(store.discard("t"))
            seen.append(states(store))
            seen.append(store.count("t"))
    await broker.close()
    return iter(seen)


def possible(store: Store, workitems: list[Workitem]) -> list[Workitem]:
    """Those that may be sent, each with what it may depend on."""
    known = {record.id: store.record(record.id).state in ENDED for record in store.history(limit=1000)}
    found: list[Workitem] = []
    earlier: set[str] = set()
    for one in workitems:
        if known.get(one.id, True):
            after = [id for id in one.after if id in known and id != one.id]
            # Of what ends in the same call it is not said which end is the first.
            here = [id for id in after if id in earlier][:1]
            found.append(one._replace(after=tuple(here or after)))
            known[one.id] = False
            earlier.add(one.id)
    return found


async def work(broker: Broker, store: Store, outcomes: list[Outcome]) -> list[Any]:
    if not store.history(states=[State.WAITING, State.RETRYING]):
        return []
    consumer = broker.consumer(worker_queue("t"), reserve=len(outcomes))
    lent = await consumer.receive(limit=len(outcomes))
    ended = [Ended(delivery, outcome, RULES) for delivery, outcome in zip(lent, outcomes, strict=False)]
    assert await consumer.settle(ended) == [True] * len(ended)
    await consumer.close()
    return [(one.workitem.id, one.workitem.after, one.inputs) for one in lent]


async def requeue(broker: Broker, store: Store) -> list[str]:
    """Of each id the latest, unless it was sent again."""
    view = broker.dead_letters()
    latest = {letter.workitem.id: letter async for letter in view.look()}
    letters = [letter for id, letter in latest.items() if store.record(id).state in ENDED]
    assert all(await view.settle([Ended(letter, requeued(letter.workitem)) for letter in letters]))
    await view.close()
    return [letter.workitem.id for letter in letters]


def states(store: Store) -> dict[str, Any]:
    records = {id: store.record(id) for id in {record.id for record in store.history(limit=1000)}}
    return {
        id: (record.state, record.result, [(a.number, a.outcome, a.error) for a in record.attempts])
        for id, record in records.items()
    }


# Of two that end together, the one that came first is not told to those of its dependents before the other one is.
TOGETHER = [
    Send(
        [workitem("0", [], "fail", False), workitem("3", [], "fail", False), workitem("1", ["0"], "fail", False)], False
    ),
    Send([workitem("2", ["1", "3"], "fail", False)], False),
    Work([Done(None), Done(None)]),
]


@example(TOGETHER)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_sqlite_and_memory_do_the_same(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "queue.db"
        expected = asyncio.run(play(connect("memory://"), steps))
        found = asyncio.run(play(connect(f"sqlite:///{file}"), steps))

        for step, (by_sqlite, by_memory) in enumerate(zip(found, expected, strict=True)):
            assert by_sqlite == by_memory, f"after {steps[step // 3]}"
        if steps:
            with contextlib.closing(sqlite3.connect(file)) as connection:
                left = "SELECT * FROM dependencies WHERE dependent NOT IN (SELECT seq FROM workitems) "
                left += "AND dependent NOT IN (SELECT born FROM workitems WHERE born <> 0)"
                assert connection.execute(left).fetchall() == []
                stuck = "SELECT id FROM workitems WHERE state = 3 AND NOT EXISTS (SELECT 1 FROM dependencies AS d "
                stuck += "JOIN workitems AS w ON w.id = d.id WHERE d.dependent = workitems.seq AND d.life IS NULL)"
                assert connection.execute(stuck).fetchall() == []
