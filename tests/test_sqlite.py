"""What only a file can do wrong, and what SQLite does beyond the contract."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from taskqueue.broker import Broker, Consumer, Delivery, Ended, Options, connect
from taskqueue.brokers.sqlite import SQLiteBroker, open_broker
from taskqueue.brokers.sqlite.database import Database, _file_system
from taskqueue.brokers.sqlite.schema import VERSION
from taskqueue.errors import BrokerError
from taskqueue.outcome import Done, Payload, Rules
from taskqueue.workitem import Workitem

T = TypeVar("T")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue.db"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def run(url: str, work: Callable[[Broker], Awaitable[T]]) -> T:
    """Have `work` done with a broker, in an event loop, within a minute."""

    async def limited() -> T:
        broker = connect(url)
        try:
            return await asyncio.wait_for(work(broker), 60)
        finally:
            await broker.close()

    return asyncio.run(limited())


def send(url: str, *bodies: bytes, queue: str = "worker_t") -> list[str]:
    producer = connect(url).producer()
    try:
        return producer.send([Workitem(body=body) for body in bodies], queue=queue)
    finally:
        producer.close()


async def drain(consumer: Consumer, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    while len(found) < count:
        deliveries = await consumer.receive(limit=100)
        assert all(await consumer.settle([Ended(delivery, Done(None)) for delivery in deliveries]))
        found += deliveries
    return found


class TestAFile:
    def test_that_is_another_program_s_is_left_alone(self, tmp_path: Path, url: str) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as connection:
            connection.execute("CREATE TABLE orders (id)")

        with pytest.raises(BrokerError, match=r"queue\.db is another program's SQLite file; name another file"):
            send(url, b"work")

    def test_of_a_newer_version_is_left_alone(self, tmp_path: Path, url: str) -> None:
        send(url, b"work")
        with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as connection:
            connection.execute(f"PRAGMA user_version = {VERSION + 1}")

        with pytest.raises(BrokerError, match=r"written by a newer taskqueue .* install that version again"):
            send(url, b"work")

    def test_that_is_none_of_sqlite_is_said_so(self, tmp_path: Path, url: str) -> None:
        (tmp_path / "queue.db").write_bytes(b"shopping list" * 100)

        with pytest.raises(BrokerError, match=r"queue\.db: it is no SQLite file; name another file"):
            send(url, b"work")

    def test_that_is_damaged_is_said_so(self, tmp_path: Path, url: str) -> None:
        send(url, *[b"x" * 1000] * 100)
        file = tmp_path / "queue.db"
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = bytearray(file.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        file.write_bytes(content)

        with pytest.raises(BrokerError, match=r"queue\.db: it is damaged; stop all daemons, and save"):
            send(url, b"work")

    def test_in_a_directory_that_does_not_exist_is_said_so(self, tmp_path: Path) -> None:
        with pytest.raises(BrokerError, match=r"there is no directory .*nowhere; make it, or name another file"):
            send(f"sqlite:///{tmp_path}/nowhere/queue.db", b"work")

    def test_on_a_network_file_system_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mounts = tmp_path / "mountinfo"
        mounts.write_text(
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
            "30 22 0:50 / /mnt/a\\040share rw,relatime shared:5 - nfs4 server:/export rw\n"
        )
        assert _file_system(Path("/mnt/a share/queues"), mounts) == "nfs4"
        assert _file_system(Path("/mnt/elsewhere"), mounts) == "ext4"
        monkeypatch.setattr("taskqueue.brokers.sqlite.database._file_system", lambda directory: "nfs4")

        with pytest.raises(BrokerError, match=r"network file system \(nfs4\).*use amqp:// or postgresql://"):
            Database(tmp_path / "queue.db")

    @root_only
    def test_that_can_not_be_written_is_said_so(self, small_disk: Path) -> None:
        url = f"sqlite:///{small_disk}/queue.db"
        send(url, b"work")
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

        with pytest.raises(BrokerError, match=r"Read-only file system|can't be written|can't be opened"):
            send(url, b"work")

    @root_only
    def test_on_a_full_disk_keeps_what_it_has_and_goes_on_when_there_is_room(self, small_disk: Path) -> None:
        url = f"sqlite:///{small_disk}/queue.db"
        send(url, *[b"x" * 10_000] * 5)
        (ballast := small_disk / "ballast").touch()
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)

        with pytest.raises(BrokerError, match=r"the disk is full; nothing of this was stored"):
            send(url, *[b"y" * 10_000] * 50)

        async def work(broker: Broker) -> int:
            consumer = broker.consumer("worker_t", reserve=100)
            receiving = asyncio.create_task(drain(consumer, 5))
            await asyncio.sleep(0.5)  # it may get on or not: what counts is that nothing is lost
            ballast.unlink()
            return len(await receiving)

        assert run(url, work) == 5

    @pytest.mark.parametrize("url", ["sqlite:", "sqlite:///", "sqlite://host/file", "sqlite:///f?journal=off"])
    def test_is_named_by_a_url_with_three_slashes(self, url: str) -> None:
        with pytest.raises(BrokerError, match="SQLite URL"):
            connect(url)


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


def test_what_is_sent_and_settled_is_synced_and_what_is_lent_need_not_be(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PRAGMA synchronous is FULL (2), or NORMAL (1), where a transaction is committed."""
    commits: list[tuple[str, int]] = []
    commit = Database.commit

    def noting(self: Database) -> None:
        connection = self._connection
        (level,) = connection.execute("PRAGMA synchronous").fetchone()
        states = connection.execute("SELECT queue, state FROM workitems ORDER BY seq").fetchall()
        if states:  # not where the consumer makes its queue
            commits.append((str(states), level))
        commit(self)

    async def test(broker: Broker) -> None:
        consumer = broker.consumer("worker_t", reserve=1)
        receiving = asyncio.create_task(consumer.receive(limit=1))
        await asyncio.sleep(0.2)
        monkeypatch.setattr(Database, "commit", noting)
        await asyncio.to_thread(send, url, b"one", b"two")
        (first,) = await receiving
        results = Rules(results_routing_key="results")
        assert await consumer.settle([Ended(first, Done(Payload(b"1")), results)]) == [True]  # and the next one is lent
        monkeypatch.undo()

    run(url, test)

    sent = "('worker_t', 0), ('worker_t', 0)"
    lent = "('worker_t', 2), ('worker_t', 0)"
    settled = "('worker_t', 2), ('results', 0)"
    assert commits == [(f"[{sent}]", 2), (f"[{lent}]", 1), (f"[{settled}]", 2)]


def test_results_are_bounded(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/queue.db"
    send(url, *[b"%d" % n for n in range(30)])

    async def work() -> tuple[int, bytes]:
        broker = open_broker(Options(url=url, results_max_length=10))
        consumer = broker.consumer("worker_t", reserve=30)
        deliveries = await consumer.receive(limit=30)
        rules = Rules(results_routing_key="results")
        await consumer.settle([Ended(d, Done(Payload(d.workitem.body)), rules) for d in deliveries])
        for _ in range(100):
            with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as connection:
                count, first = connection.execute(
                    "SELECT count(*), min(body) FROM workitems WHERE queue = 'results'"
                ).fetchone()
            if count <= 10:
                break
            await asyncio.sleep(0.1)
        await broker.close()
        return count, first

    assert asyncio.run(work()) == (10, b"20")


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


class Moving:
    """A clock that moves when told."""

    now = 1_000_000.0
    monotonic = staticmethod(time.monotonic)

    def wall(self) -> float:
        return self.now


def test_a_dead_letter_is_kept_for_its_retention_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskqueue.brokers.sqlite.engine.LOOK_EVERY", 0.02)
    monkeypatch.setattr("taskqueue.brokers.sqlite.engine.CHORES_EVERY", 1)
    clock = Moving()
    options = Options(url="", dead_retention=3600.0)

    async def test() -> None:
        broker = SQLiteBroker(tmp_path / "queue.db", options, clock=clock)
        producer, view = broker.producer(), broker.dead_letters()
        done: list[None] = []
        monkeypatch.setattr(broker._engine, "_chores", lambda connection: done.append(broker._chores(connection)))

        async def kept() -> list[str]:
            return [delivery.workitem.id async for delivery in view.look()]

        async def chores() -> None:
            """Wait until they have been done twice."""
            for _ in range(2):
                before = len(done)
                while len(done) == before:
                    await asyncio.sleep(0.01)

        producer.send([Workitem(body=b"", id="old")], queue="taskqueue.dead")
        producer.send([Workitem(body=b"", id="other")])
        await broker.declare("started")
        await chores()
        clock.now += 1800
        producer.send([Workitem(body=b"", id="young")], queue="taskqueue.dead")
        await chores()
        clock.now += 1799
        await chores()
        assert await kept() == ["old", "young"]
        clock.now += 2
        await chores()
        assert await kept() == ["young"]
        clock.now += 1800
        await chores()
        assert await kept() == []
        producer.close()
        await view.close()
        await broker.close()

    asyncio.run(asyncio.wait_for(test(), 60))
    assert [body for (body,) in rows(tmp_path / "queue.db")] == ["other"]


def rows(file: Path) -> list[tuple[str]]:
    """The ids of all that is in the file."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return connection.execute("SELECT id FROM workitems").fetchall()


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
