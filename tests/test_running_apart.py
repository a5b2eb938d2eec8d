"""The carrier of a program over RabbitMQ and PostgreSQL: a process of its own, which no program holds up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import spawn
from pathlib import Path

import pytest
from asking import KINDS, Asking, running
from lending import Database
from system import PATIENCE, alive, children, until

from taskqueue.broker import Delivery, Options, connect
from taskqueue.errors import PluginError
from taskqueue.workerpool.processes import GRACE
from taskqueue.workitem import worker_queue

pytestmark = pytest.mark.services

HELD_UP = 7  # seconds
TESTS = Path(__file__).resolve().parent

SABOTAGE = """
import sys
sys.path.append("{}")
import sabotage.{}
"""
PROGRAM = """
import ctypes, sys, time
import taskqueue
from taskqueue.broker import Options, connect
from taskqueue.client import Queue

url, file, kind, seconds = sys.argv[1:]
space = taskqueue.TaskSpace("held")

def hold():
    ctypes.PyDLL(None).usleep(int(float(seconds) * 1e6))  # a call that keeps the interpreter lock

@space.task
def run(here):
    with open(file, "a") as notes:
        notes.write("ran\\n")
    hold() if here else time.sleep(float(seconds) + 1)
    return 5

if __name__ == "__main__":
    queue = Queue(connect(Options(url=url, heartbeat=2)))
    with taskqueue.running(queue, space, **{kind: 2}):
        deferred = queue.submit(run, kind == "threads")
        if kind == "processes":
            while not deferred.wait(0.2):
                hold()
        print(deferred.result(60))
"""

IDLE = """
import sys
import handlers, taskqueue
with taskqueue.connect(sys.argv[1]) as queue, taskqueue.running(queue, handlers.Worker, threads=4):
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["postgresql", "amqp"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "amqp":
        return str(request.getfixturevalue("amqp_url"))
    return Database(request.getfixturevalue("postgresql")).url


@pytest.fixture
def asking(url: str) -> Iterator[Asking]:
    asking = Asking(url)
    yield asking
    asking.close()


def carriers() -> list[int]:
    return children(os.getpid(), "taskqueue.carrier")


@pytest.mark.parametrize("kind", KINDS)
class TestTheCarrier:
    def test_it_is_there_as_long_as_the_block_and_leaves_nothing_behind(self, asking: Asking, kind: str) -> None:
        def seen() -> tuple[object, ...]:
            gc.collect()
            files = [str(f.readlink()) for f in Path("/proc/self/fd").iterdir() if f.is_symlink()]
            return threading.active_count(), len(files), Path(f"/proc/self/task/{os.getpid()}/children").read_text()

        asking.send("double", 1)
        before = seen()
        for _ in range(2):
            with running(asking, kind=kind):
                assert asking.ask("double", 1) == 2
                assert len(carriers()) == 1
            assert carriers() == []
        until(lambda: seen() == before)

    def test_one_that_is_killed_is_replaced_and_what_it_had_is_done_again(
        self, asking: Asking, kind: str, tmp_path: Path
    ) -> None:
        with running(asking, kind=kind, count=2):
            for _ in range(2):
                id = asking.send("hold", str(tmp_path))
                until((tmp_path / "started.1").exists)
                (carrier,) = carriers()
                os.kill(carrier, signal.SIGKILL)
                (tmp_path / "started.1").unlink()
                until((tmp_path / "started.1").exists)  # it counted as nothing
                assert carriers() != [carrier]
                (tmp_path / "go").touch()
                assert asking.reply(id) == 1
                for name in ("started.1", "go"):
                    (tmp_path / name).unlink()
            assert [asking.ask("double", n) for n in range(3)] == [0, 2, 4]
        assert asking.producer.next_reply(timeout=0.3) is None

    def test_one_that_dies_while_the_block_is_left_is_not_waited_for(
        self, asking: Asking, kind: str, tmp_path: Path
    ) -> None:
        with running(asking, kind=kind):
            id = asking.send("hold", str(tmp_path))
            until((tmp_path / "started.1").exists)
            (carrier,) = carriers()
            threading.Timer(0.3, os.kill, (carrier, signal.SIGKILL)).start()
        assert carriers() == []
        (tmp_path / "go").touch()
        with running(asking, kind=kind):
            assert asking.reply(id) == 1

    def test_leaving_does_not_wait_for_one_that_is_to_be_replaced(self, asking: Asking, kind: str) -> None:
        with running(asking, kind=kind):
            for _ in range(4):  # the delay grows
                until(carriers)
                (carrier,) = carriers()
                os.kill(carrier, signal.SIGKILL)
                until(lambda gone=carrier: not alive(gone))
            time.sleep(0.5)  # workers have been started meanwhile
            begun = time.monotonic()
        assert time.monotonic() - begun < GRACE

    def test_it_ends_with_its_program(self, url: str, kind: str, tmp_path: Path) -> None:
        with program(url, tmp_path / "notes", kind, 60) as held:
            until((tmp_path / "notes").exists)
            (carrier,) = children(held.pid, "taskqueue.carrier")
            held.kill()
            until(lambda: not alive(carrier))

    def test_while_its_program_is_held_up_what_runs_is_run_once(self, url: str, kind: str, tmp_path: Path) -> None:
        notes = tmp_path / "notes"
        with program(url, notes, kind, HELD_UP) as held:
            said, _ = held.communicate(timeout=PATIENCE)

        assert (said, notes.read_text()) == ("5\n", "ran\n")


@contextlib.contextmanager
def program(url: str, notes: Path, kind: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """One that is held up for so long: in threads by its handler, with worker processes by itself."""
    file = notes.with_name("main.py")
    sabotage = os.environ.get("TASKQUEUE_SABOTAGE")
    file.write_text(SABOTAGE.format(TESTS, sabotage) + PROGRAM if sabotage else PROGRAM)
    command = [sys.executable, str(file), url, str(notes), kind, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as held:
        try:
            yield held
        finally:
            held.kill()


def test_a_program_that_is_stopped_keeps_nothing_from_others(asking: Asking, url: str) -> None:
    command = [sys.executable, "-c", IDLE, url]
    with subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as idle:
        try:
            assert idle.stdout is not None and idle.stdout.readline() == "up\n"
            quick = [asking.send("double", n) for n in range(200)]
            assert [asking.reply(id) for id in quick] == [2 * n for n in range(200)]
            idle.send_signal(signal.SIGSTOP)
            more = [asking.send("double", n) for n in range(100)]
            with running(asking, kind="threads"):
                assert [asking.reply(id) for id in more] == [2 * n for n in range(100)]
            idle.send_signal(signal.SIGCONT)
            assert asking.ask("double", 7) == 14  # by the one that was stopped
        finally:
            idle.kill()


@pytest.mark.parametrize("kind", KINDS)
def test_another_host_is_not_lent_what_runs_in_a_program_that_is_held_up(
    postgresql: object, kind: str, tmp_path: Path
) -> None:
    database = Database(postgresql)  # type: ignore[arg-type]
    url, notes, seconds = f"{database.url}?heartrate=2", tmp_path / "notes", 9

    async def takes_over() -> list[Delivery]:
        broker = connect(Options(url=url))
        found: list[Delivery] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds - 1):
                found += await broker.consumer(worker_queue("default"), reserve=1).receive(limit=1)
        await broker.close()
        return found

    with program(url, notes, kind, seconds) as held:
        until(notes.exists)
        database.rows("UPDATE taskqueue.carriers SET home = 'elsewhere'")
        begun = time.monotonic()
        assert asyncio.run(takes_over()) == []
        assert time.monotonic() - begun < seconds and held.poll() is None
        said, _ = held.communicate(timeout=PATIENCE)
    assert (said, notes.read_text()) == ("5\n", "ran\n")


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("/bin/false", "the carrier can't be started: process [0-9]+ ended with exit status 1"),
        ("/no/such", "can't run /no/such: No such file"),
    ],
)
def test_where_it_cannot_be_started_the_block_does_not_begin(
    asking: Asking, monkeypatch: pytest.MonkeyPatch, program: str, told: str
) -> None:
    before = spawn.get_executable()
    spawn.set_executable(program)
    try:
        with pytest.raises(PluginError, match=told), running(asking, kind="threads"):
            raise AssertionError("the block began")
    finally:
        spawn.set_executable(before)


def test_it_finds_what_its_program_finds(url: str, tmp_path: Path) -> None:
    """Where the program itself says where its modules are."""
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{IDLE}", url]
    ran = subprocess.run(command, cwd=TESTS, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    assert (ran.stdout, ran.returncode) == ("up\n", 0), ran.stderr


def test_why_it_cannot_work_is_told(asking: Asking, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for driver in ("pika", "psycopg"):
        (tmp_path / f"{driver}.py").write_text("raise ImportError('no driver here')")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(PluginError) as error, running(asking, kind="threads"):
        raise AssertionError("the block began")
    assert "the carrier can't be started: process" in str(error.value) and "no driver here" in str(error.value)


def test_where_it_cannot_be_replaced_yet_that_is_tried_again(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    before = spawn.get_executable()
    with running(asking, kind="threads"):
        (carrier,) = carriers()
        try:
            spawn.set_executable("/no/such")
            os.kill(carrier, signal.SIGKILL)
            until(lambda: "there is no carrier: can't run /no/such" in caplog.text)
        finally:
            spawn.set_executable(before)
        assert asking.ask("double", 2) == 4
