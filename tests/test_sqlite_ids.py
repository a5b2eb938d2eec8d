"""A workitem whose id tells its number is found by that in a SQLite file, any other one by an index."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded import run

from taskqueue.broker import Broker, Ended, connect
from taskqueue.brokers.sqlite.schema import TOLD
from taskqueue.errors import DuplicateTask
from taskqueue.lifecycle import State
from taskqueue.outcome import Retry
from taskqueue.store import Store
from taskqueue.upkeep import Keeping
from taskqueue.workitem import Workitem, made_at

WORKITEM = Workitem(body=b"x", type="t")


def made(seconds_ago: float) -> str:
    """An id like those that `Workitem.named` makes, made that long ago."""
    return f"{int((time.time() - seconds_ago) * 1000):012x}7{WORKITEM.named().id[13:]}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with contextlib.closing(connect(url).store()) as store:
        yield store


def send(url: str, *sends: list[Workitem], unique: bool = False) -> list[str]:
    """All by one producer; the first of its sends to a queue is another statement."""
    with contextlib.closing(connect(url).producer()) as producer:
        producer.send([Workitem(body=b"first", type="t")])
        return [id for workitems in sends for id in producer.send(workitems, unique=unique)]


def numbers(file: Path) -> dict[str, tuple[int, int]]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT id, seq, born FROM workitems").fetchall()
    return {id: (seq, born) for id, seq, born in rows}


def test_what_is_sent_alone_has_the_number_that_its_id_tells(file: Path, url: str) -> None:
    (id,) = send(url, [WORKITEM])

    assert numbers(file)[id] == (made_at(id), TOLD)
    assert abs(made_at(id) / 1e6 - time.time()) < 60


@pytest.mark.parametrize(
    "sends",
    [
        pytest.param([[WORKITEM]], id="alone"),
        pytest.param([[WORKITEM, WORKITEM, WORKITEM]], id="together"),
        pytest.param([[WORKITEM._replace(id="order 7")]], id="an id of its sender's"),
        pytest.param([[WORKITEM._replace(id="0" * 12 + "7" + "_" * 19)]], id="an id that only looks like ours"),
        pytest.param([[WORKITEM._replace(id=made(3600))]], id="an id that was made an hour ago"),
        pytest.param([[WORKITEM._replace(id=made(-3600))]], id="an id of another host, whose clock is ahead"),
        pytest.param([[WORKITEM._replace(id=id)] for id in (made(-0.0), made(0.5))], id="the earlier id comes later"),
    ],
)
def test_everything_is_found_by_its_id(url: str, store: Store, sends: list[list[Workitem]]) -> None:
    ids = send(url, *sends)

    found = [store.record(id) for id in ids]
    assert [(record.id, record.state) for record in found] == [(id, State.WAITING) for id in ids]
    assert all(abs(record.sent - time.time()) < 60 for record in found)
    assert store.ended(ids) == {}
    for id in ids:
        with pytest.raises(DuplicateTask):
            send(url, [WORKITEM._replace(id=id)], unique=True)
    send(url, [Workitem(body=b"", id="dependent", type="u", after=tuple(ids))])
    assert store.record("dependent").state == State.BLOCKED
    assert all(store.cancel(id) for id in ids)
    assert {store.record(id).state for id in ids} == {State.CANCELLED}
    assert store.record("dependent").state == State.FAILED


def test_two_lives_of_one_id_are_both_found(file: Path, url: str, store: Store) -> None:
    id = WORKITEM.named().id
    send(url, [WORKITEM._replace(id=id)], [WORKITEM._replace(id=id, body=b"again")])
    assert [born for _, born in numbers(file).values()].count(TOLD) <= 1

    assert store.cancel(id)

    assert id not in numbers(file)


def test_a_life_that_goes_on_is_still_found_and_was_sent_when_it_was(file: Path, url: str, store: Store) -> None:
    (id,) = send(url, [WORKITEM])
    sent = store.record(id).sent

    async def retry(broker: Broker) -> None:
        consumer = broker.consumer("worker_t", reserve=2)
        (delivery,) = [one for one in await consumer.receive(limit=2) if one.workitem.id == id]
        await consumer.settle([Ended(delivery, Retry(3600.0))])

    run(url, retry)

    assert numbers(file)[id][1] == made_at(id)
    assert store.record(id).sent == sent == made_at(id) / 1e6
    assert store.cancel(id)


def test_what_was_lent_and_given_back_is_still_found(url: str, store: Store) -> None:
    (id,) = send(url, [WORKITEM])

    async def look(broker: Broker) -> None:
        await broker.consumer("worker_t", reserve=2).receive(limit=2)
        assert store.cancel(id)  # a wish, for somebody has it
        assert store.record(id).state == State.WAITING

    run(url, look)

    store.maintain(Keeping())
    assert store.record(id).state == State.CANCELLED
