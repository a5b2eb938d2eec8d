"""Programs that fork while they have a SQLite file open: nothing is lost, and nobody waits for ever."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shop_tasks import num, space

import taskqueue
from taskqueue.brokers.sqlite.database import Database
from taskqueue.brokers.sqlite.place import LockFile
from taskqueue.errors import BrokerError

PATIENCE = 60
FORKS = 40
SENDER = "import sys, taskqueue; print(taskqueue.connect(sys.argv[1]).send('invoice', None))"


def in_a_child(work: Callable[[], object]) -> int:
    """Fork, and have `work` done there: it passes, or the status is not 0; a hang is an alarm's."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue.db"


@pytest.fixture
def queue(url: str) -> Iterator[taskqueue.Queue]:
    with taskqueue.connect(url) as queue:
        yield queue


def test_children_of_a_program_whose_threads_are_in_transactions_can_work(queue: taskqueue.Queue) -> None:
    ids: list[list[str]] = [[] for _ in range(3)]
    ended = threading.Event()

    def send(mine: list[str]) -> None:
        while not ended.is_set():
            mine.extend(queue.send_many([queue.workitem("invoice", None) for _ in range(20)]))
            mine.append(queue.send("invoice", None))
            queue.status(mine[0])

    threads = [threading.Thread(target=send, args=(mine,)) for mine in ids]
    for thread in threads:
        thread.start()
    try:
        for n in range(FORKS):
            assert status(in_a_child(functools.partial(queue.send, "paid", n))) == 0
    finally:
        ended.set()
        for thread in threads:
            thread.join()

    sent = [id for mine in ids for id in mine]
    assert len(sent) > FORKS
    assert {record.id for record in queue.history(type="invoice", limit=len(sent) + 1)} == set(sent)
    assert len(queue.history(type="paid")) == FORKS


def test_several_threads_may_fork_at_once(queue: taskqueue.Queue) -> None:
    queue.send("invoice", None)
    ended: list[int] = []

    def fork() -> None:
        for n in range(FORKS // 4):
            ended.append(status(in_a_child(functools.partial(queue.send, "paid", n))))
            queue.send("invoice", n)

    threads = [threading.Thread(target=fork, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert ended == [0] * FORKS
    assert len(queue.history(type="paid", limit=1000)) == FORKS


def test_what_a_child_sends_is_not_lost_when_its_parent_lets_go_of_the_file(url: str) -> None:
    said, say = os.pipe()
    heard, tell = os.pipe()
    queue = taskqueue.connect(url)
    queue.send("invoice", None)

    def work() -> None:
        queue.send("paid", 1)
        os.write(say, b".")
        os.read(heard, 1)
        queue.send("paid", 2)
        assert len(queue.history(type="invoice")) == 2

    child = in_a_child(work)
    os.read(said, 1)
    queue.close()
    subprocess.run([sys.executable, "-c", SENDER, url], check=True, timeout=PATIENCE)  # it makes a log of its own
    os.write(tell, b".")

    assert status(child) == 0
    subprocess.run([sys.executable, "-c", SENDER, url], check=True, timeout=PATIENCE)
    assert [len(queue.history(type=type)) for type in ("invoice", "paid")] == [3, 2]
    queue.close()
    for file in (said, say, heard, tell):
        os.close(file)


def test_the_lock_that_a_killed_program_held_is_not_its_childs(tmp_path: Path) -> None:
    forked, say = os.pipe()

    def work() -> None:
        os.setpgid(0, 0)
        lock = LockFile(tmp_path / "queue.db", "room")
        lock.take(wait=True)
        if not os.fork():
            os.write(say, b".")
        time.sleep(PATIENCE)

    program = in_a_child(work)
    os.read(forked, 1)
    with contextlib.closing(LockFile(tmp_path / "queue.db", "room")) as lock:
        assert not lock.take(wait=False)
        os.kill(program, signal.SIGKILL)
        assert status(program) == -signal.SIGKILL
        there = lock.take(wait=False)
    os.killpg(program, signal.SIGKILL)
    os.close(forked)
    os.close(say)
    assert there


def test_a_handler_of_a_signal_that_forks_in_a_transaction_makes_it_fail_and_the_next_ones_pass(tmp_path: Path) -> None:
    database = Database(tmp_path / "queue.db")

    def fork(*_: object) -> None:
        assert status(in_a_child(lambda: Database(tmp_path / "queue.db").close())) == 0

    before = signal.signal(signal.SIGUSR1, fork)
    try:
        with pytest.raises(BrokerError), database.writing() as connection:
            connection.execute("INSERT INTO queues (name) VALUES ('lost')")
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with database.writing() as connection:
        connection.execute("INSERT INTO queues (name) VALUES ('there')")

    with database.reading() as connection:
        assert connection.execute("SELECT name FROM queues").fetchall() == [("there",)]
    database.close()


def test_a_carrier_in_a_program_works_on_while_the_program_forks(queue: taskqueue.Queue) -> None:
    with taskqueue.running(queue, space, threads=2):
        deferreds: list[taskqueue.Deferred[int]] = []
        for n in range(FORKS):
            deferreds += [queue.submit(num, n) for _ in range(10)]
            assert status(in_a_child(functools.partial(queue.status, deferreds[-1].id))) == 0
        assert [deferred.result(PATIENCE) for deferred in deferreds] == [n for n in range(FORKS) for _ in range(10)]
