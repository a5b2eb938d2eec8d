"""What SQLite does beyond the contract."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from embedded import drain, run, send

from taskqueue.broker import Broker, Ended, Options, connect
from taskqueue.brokers.sqlite import SQLiteBroker, engine, open_broker, queues
from taskqueue.brokers.sqlite.history import ENDED_COLUMNS
from taskqueue.brokers.sqlite.outbox import ENDED, Outbox
from taskqueue.brokers.sqlite.place import LockFile
from taskqueue.brokers.sqlite.queues import Claimed
from taskqueue.outcome import Done, Payload, Rules
from taskqueue.record import Run
from taskqueue.testing.recorded import RUN
from taskqueue.upkeep import Keeping
from taskqueue.workitem import Workitem


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue.db"


def write(url: str, number: int, count: int) -> None:
    producer = connect(url).producer()
    for n in range(count):
        producer.send([Workitem(body=b"", id=f"{number}-{n}")], queue="worker_t")
    producer.close()


def test_eight_processes_write_at_once_and_none_starves(url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write, args=(url, number, 100)) for number in range(8)]
    for writer in writers:
        writer.start()

    found = run(url, lambda broker: drain(broker.consumer("worker_t", reserve=100), 800))
    for writer in writers:
        writer.join()

    assert [writer.exitcode for writer in writers] == [0] * 8
    assert Counter(delivery.workitem.id.split("-")[0] for delivery in found) == {str(n): 100 for n in range(8)}
    for number in range(8):
        own = [d.workitem.id for d in found if d.workitem.id.startswith(f"{number}-")]
        assert own == [f"{number}-{n}" for n in range(100)]


def die_holding(url: str, started: Any) -> None:
    async def hold(broker: Broker) -> None:
        deliveries = await broker.consumer("worker_t", reserve=3).receive(limit=3)
        started.send(len(deliveries))
        await asyncio.Event().wait()

    run(url, hold)


def test_what_a_dead_carrier_had_is_lent_again_soon(url: str) -> None:
    send(url, b"1", b"2", b"3")
    here, there = multiprocessing.Pipe()
    carrier = multiprocessing.get_context("spawn").Process(target=die_holding, args=(url, there))
    carrier.start()
    assert here.recv() == 3

    async def work(broker: Broker) -> list[bytes]:
        consumer = broker.consumer("worker_t", reserve=3)
        with pytest.raises(TimeoutError):  # as long as it lives, its deliveries are its own
            await asyncio.wait_for(consumer.receive(limit=3), 2.5)
        carrier.kill()
        return [delivery.workitem.body for delivery in await drain(consumer, 3)]

    assert run(url, work) == [b"1", b"2", b"3"]
    carrier.join()


def test_a_carrier_that_waits_costs_next_to_nothing(url: str) -> None:
    async def work(broker: Broker) -> float:
        consumer = broker.consumer("worker_t", reserve=1)
        receiving = asyncio.create_task(consumer.receive(limit=1))
        await asyncio.sleep(1)
        before = time.process_time()
        await asyncio.sleep(5)
        spent = time.process_time() - before
        receiving.cancel()
        return spent / 5

    idle = run(url, work)

    print(f"idle: {idle:.2%} of a core")
    assert idle < 0.02  # of processor time, not of the clock's: another program's load makes no difference


def test_transactions_are_short_once_somebody_else_was_seen_to_wait(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(url, *[b""] * 3000)
    other = threading.Thread(target=send, args=(url, b""))
    claim, rooms = queues.claim, list[int]()

    def claiming(connection: sqlite3.Connection, outbox: Outbox, queue: str, room: int, *more: Any) -> list[Claimed]:
        rooms.append(room)
        if len(rooms) == 1:
            door = LockFile(tmp_path / "queue.db", "door")
            other.start()
            while door.take(wait=False):
                door.leave()
                time.sleep(0.001)
            door.close()
        return claim(connection, outbox, queue, room, *more)

    monkeypatch.setattr(queues, "claim", claiming)
    monkeypatch.setattr(engine, "SHARED_FOR", 3600.0)

    found = run(url, lambda broker: drain(broker.consumer("worker_t", reserve=3000), 3001))
    other.join()

    assert len(found) == 3001
    assert rooms[0] == engine.LARGE
    assert max(rooms[1:]) == engine.SHARED


def test_a_carrier_that_waits_is_woken_up_by_the_bell(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskqueue.brokers.sqlite.engine.LOOK_EVERY", 3600.0)  # else it would find out by itself

    async def work(broker: Broker) -> list[float]:
        consumer = broker.consumer("worker_t", reserve=1)
        producer = connect(url).producer()
        taken = []
        for _ in range(20):
            receiving = asyncio.create_task(drain(consumer, 1))
            await asyncio.sleep(0.05)
            start = time.monotonic()
            await asyncio.to_thread(producer.send, [Workitem(body=b"")], queue="worker_t")
            await receiving
            taken.append(time.monotonic() - start)
        producer.close()
        return sorted(taken)

    taken = run(url, work)

    print(f"send, receive and settle: median {taken[10] * 1000:.1f} ms")
    assert len(taken) == 20


def test_a_transaction_rings_for_the_results_that_stay_in_records() -> None:
    outbox = Outbox(0.0)
    columns = len(ENDED_COLUMNS.split(","))

    outbox.record([(None,) * columns])
    assert outbox.told == {ENDED}
    outbox.record([(*(None,) * (columns - 1), "results")])
    assert outbox.told == {ENDED, "results"}


@pytest.mark.parametrize("run", [None, RUN], ids=["sent", "in records"])
def test_results_are_bounded(tmp_path: Path, run: Run | None) -> None:
    url = f"sqlite:///{tmp_path}/queue.db"
    send(url, *[b"%d" % n for n in range(30)])

    async def work() -> list[bytes]:
        broker = open_broker(Options(url=url, results_max_length=10))
        consumer = broker.consumer("worker_t", reserve=30)
        for delivery in await consumer.receive(limit=30):
            done = Done(Payload(delivery.workitem.body))
            await consumer.settle([Ended(delivery, done, Rules(results_routing_key="results"), run)])
        with contextlib.closing(broker.store()) as store:
            await asyncio.to_thread(store.maintain, Keeping())
        results = broker.consumer("results", reserve=100)
        found = await results.receive(limit=100)
        await broker.close()
        return [delivery.workitem.body for delivery in found]

    assert asyncio.run(work()) == [b"%d" % n for n in range(20, 30)]


def test_threads_of_one_program_may_send_while_others_wait_for_replies(url: str) -> None:
    producer = connect(url).producer()
    sent: list[str] = []
    threads = [
        threading.Thread(target=lambda: sent.extend(producer.send([Workitem(body=b"")], queue="worker_t", reply=True)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def work(broker: Broker) -> None:
        consumer = broker.consumer("worker_t", reserve=4)
        deliveries = await consumer.receive(limit=4)
        await consumer.settle([Ended(delivery, Done(Payload(b"7"))) for delivery in deliveries])

    run(url, work)
    replies = [producer.next_reply(timeout=10) for _ in range(4)]
    producer.close()

    assert sorted(reply.correlation_id for reply in replies if reply is not None) == sorted(sent)


def test_a_carrier_waits_for_a_program_that_knows_nothing_of_turns(tmp_path: Path, url: str) -> None:
    """Such as an sqlite3 shell: it has the file for a while, and nothing is lost or said to be wrong."""

    async def test(broker: Broker) -> None:
        await asyncio.to_thread(send, url, b"one")
        consumer = broker.consumer("worker_t", reserve=2)
        (first,) = await consumer.receive(limit=1)
        shell = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        settling = asyncio.create_task(consumer.settle([Ended(first, Done(None))]))
        await asyncio.sleep(0.5)  # in which the event loop runs
        assert not settling.done()
        shell.execute("COMMIT")
        shell.close()
        assert await settling == [True]

    run(url, test)


def test_a_number_that_was_given_back_is_given_to_no_other_workitem(tmp_path: Path, url: str) -> None:
    def number() -> int:
        send(url, b"body")
        with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as connection:
            (seq,) = connection.execute("SELECT seq FROM workitems").fetchone()
        run(url, lambda broker: drain(broker.consumer("worker_t", reserve=1), 1))
        return int(seq)

    numbers = [number() for _ in range(3)]

    assert sorted(set(numbers)) == numbers


class Moving:
    """A clock that moves when told."""

    now = 1_000_000.0
    monotonic = staticmethod(time.monotonic)

    def wall(self) -> float:
        return self.now


def test_workitems_that_are_sent_when_the_clock_has_been_set_back_come_after_those_before(tmp_path: Path) -> None:
    clock = Moving()
    producer = SQLiteBroker(tmp_path / "queue.db", Options(url=""), clock=clock).producer()

    for back in range(3):
        clock.now = 1_000_000.0 - back
        producer.send([Workitem(body=b"%d" % back)] * 2, queue="worker_t")
    producer.close()

    bodies = run(f"sqlite:///{tmp_path}/queue.db", lambda broker: drain(broker.consumer("worker_t", reserve=9), 6))
    assert b"".join(delivery.workitem.body for delivery in bodies) == b"001122"
