"""Upgrades in place: the manager becomes its new version, and what runs is finished under the old one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from background import LOGGING, Background, background
from installations import TOP, Installation
from system import System, alive, until
from system_store import SQLiteSystem

pytestmark = pytest.mark.daemons

CONFIG = """[DEFAULT]
workers = 0
[echo]
workers = 2
[long]
workers = 2
file = {directory}/long
stop_timeout = 1
"""


@pytest.fixture(scope="module")
def own() -> Iterator[Installation]:
    """An installation that tests may change."""
    directory = Path(tempfile.mkdtemp(prefix="taskqueue-", dir="/tmp"))
    try:
        directory.chmod(0o755)
        plugins = TOP / "tests" / "plugins"
        yield Installation(directory, plugins=[plugins / "plain", plugins / "unruly"])
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def system(own: Installation) -> Iterator[SQLiteSystem]:
    with SQLiteSystem(own) as system:
        yield system


@pytest.fixture
def log(system: SQLiteSystem) -> Path:
    return system.directory / "log"


@pytest.fixture
def pool(system: SQLiteSystem, log: Path) -> Iterator[Background]:
    text = CONFIG.format(directory=system.open_directory) + LOGGING.format(path=str(log))
    with background(system, "workerpool", system.config(text)) as daemon:
        assert (daemon.done.returncode, daemon.done.stderr) == (0, "")
        yield daemon


def send(system: SQLiteSystem, type: str, body: str, **more: str) -> str:
    done = system.run("send", type, body, "--url", system.url, "--id", more.get("id", body.replace(" ", "")))
    assert done.returncode == 0
    return done.stdout.decode().strip()


def starts(system: SQLiteSystem) -> list[list[str]]:
    """Id, attempt and pid of every start of a long task."""
    file = system.open_directory / "long"
    return [line.split()[1:] for line in file.read_text().splitlines()] if file.exists() else []


def upgrade(system: System, pool: Background) -> tuple[int, str]:
    done = system.run("reload", "--upgrade", "--wait", "-p", pool.pid_file)
    return done.returncode, done.stderr.decode()


def echoes(system: SQLiteSystem, text: str) -> bool:
    return system.run("send", "echo", text, "--wait", "--url", system.url).stdout.decode() == f"{text}\n"


class Mark:
    """Something in the new version that can be seen: what it says of itself when it has taken over."""

    TEXT = "going on with what the version before has left"

    def __init__(self, own: Installation) -> None:
        self.file = own.site_packages / "taskqueue" / "workerpool" / "succession.py"
        self.before = self.file.read_text()

    def __enter__(self) -> None:
        self.file.write_text(
            self.before.replace("    carriers = {}\n", f"    log.info({self.TEXT!r})\n    carriers = {{}}\n")
        )

    def __exit__(self, *_: object) -> None:
        self.file.write_text(self.before)


class TestAnUpgrade:
    def test_what_runs_is_finished_by_the_old_version_while_the_new_one_takes_the_rest(
        self, system: SQLiteSystem, pool: Background, own: Installation, log: Path
    ) -> None:
        (carrier,), pid = pool.carriers, pool.pid
        send(system, "long", "sleep 8")
        until(lambda: len(starts(system)) == 1)
        before = set(pool.workers)
        worker = int(starts(system)[0][2])

        with Mark(own):
            assert upgrade(system, pool) == (0, "")

        assert Mark.TEXT in log.read_text()
        assert pool.status["pid"] == pid and pool.pid_file.read_text() == f"{pid}\n"
        assert pool.status["reloads"] == 1
        # Longer than its stop_timeout, which is for stops: an upgrade waits for as long as it takes.
        assert echoes(system, "meanwhile")
        until(lambda: len(pool.workers) == 4 and before & set(pool.workers) == {worker})
        assert carrier in pool.carriers and len(pool.carriers) == 2
        send(system, "long", "sleep 0.1")  # the other place of its group is taken by the new version
        until(lambda: len(starts(system)) == 2)
        assert alive(worker) and len(pool.workers) == 4  # never more than the configuration says

        until(lambda: not alive(carrier))
        until(lambda: len(pool.workers) == 4 and not alive(worker))
        results = [result for result in system.collect("results", 3) if result.body != b"meanwhile"]
        assert Counter(result.properties.correlation_id for result in results) == Counter(["sleep8", "sleep0.1"])
        assert {result.headers["attempt"] for result in results} == {1}
        assert [attempt for _, attempt, _ in starts(system)] == ["1", "1"]
        pool.wait_status(lambda status: status["state"] == "running")
        pool.stop()
        assert not pool.pid_file.exists() and not pool.status_file.exists()
        assert "died" not in log.read_text() and "Traceback" not in log.read_text()

    def test_nothing_is_lost_or_done_twice_under_load(self, system: SQLiteSystem, pool: Background) -> None:
        sent = 0
        for _ in range(3):
            done = system.run("send", "echo", "x", "--count", "1000", "--url", system.url)
            assert done.returncode == 0
            sent += 1000
            assert upgrade(system, pool) == (0, "")

        results = system.collect("results", sent)

        assert len({result.properties.correlation_id for result in results}) == sent
        assert {result.headers["attempt"] for result in results} == {1}
        until(lambda: len(pool.carriers) == 1 and len(pool.workers) == 4)
        assert system.depth("results") == system.depth("worker_echo") == 0
        pool.stop()

    def test_one_after_the_other_leaves_each_version_what_it_runs(self, system: SQLiteSystem, pool: Background) -> None:
        for number in range(2):
            send(system, "long", f"sleep {6 + number}")
            until(lambda number=number: len(starts(system)) == number + 1)  # type: ignore[misc]
            assert upgrade(system, pool) == (0, "")
        until(lambda: len(pool.carriers) == 3)  # two that finish what runs, and the present one

        results = system.collect("results", 2)

        assert {result.headers["attempt"] for result in results} == {1}
        assert [attempt for _, attempt, _ in starts(system)] == ["1", "1"]
        until(lambda: len(pool.carriers) == 1 and len(pool.workers) == 4)
        pool.stop()

    def test_a_crash_in_the_old_version_counts(self, system: SQLiteSystem, pool: Background) -> None:
        send(system, "long", "sleep 3")
        until(lambda: len(starts(system)) == 1)
        assert upgrade(system, pool) == (0, "")

        os.kill(int(starts(system)[0][2]), signal.SIGSEGV)

        (result,) = system.collect("results", 1)
        assert (result.headers["status"], result.headers["attempt"]) == ("succeeded", 2)
        until(lambda: len(pool.carriers) == 1)
        pool.stop()

    def test_a_stop_ends_both_versions_with_the_stop_timeout(self, system: SQLiteSystem, pool: Background) -> None:
        send(system, "long", "sleep 600")
        until(lambda: len(starts(system)) == 1)
        assert upgrade(system, pool) == (0, "")
        until(lambda: len(pool.carriers) == 2)
        below = [*pool.carriers, *pool.workers]

        pool.stop()

        assert not any(map(alive, below))
        assert system.depth("worker_long") == 1  # it will run again

    def test_the_death_of_the_old_carrier_has_its_work_done_again(
        self, system: SQLiteSystem, pool: Background, log: Path
    ) -> None:
        (carrier,) = pool.carriers
        send(system, "long", "sleep 3")
        until(lambda: len(starts(system)) == 1)
        assert upgrade(system, pool) == (0, "")

        os.kill(carrier, signal.SIGKILL)

        (result,) = system.collect("results", 1)
        assert (result.headers["status"], result.headers["attempt"]) == ("succeeded", 1)
        assert [attempt for _, attempt, _ in starts(system)] == ["1", "1"]
        assert f"carrier {carrier} died: SIGKILL" in log.read_text()
        until(lambda: len(pool.workers) == 4)
        pool.stop()

    @pytest.mark.parametrize(
        "moment", ["not upgraded|of the version before", "going on as the version", "carrier [0-9]+ started"]
    )
    def test_sigkill_of_the_manager_at_any_moment_ends_everything_and_loses_nothing(
        self, system: SQLiteSystem, pool: Background, log: Path, moment: str
    ) -> None:
        send(system, "long", "sleep 2")
        until(lambda: len(starts(system)) == 1)
        seen = len(re.findall(moment, log.read_text()))
        below = {*pool.carriers, *pool.workers}

        pool.signal(signal.SIGUSR2)
        until(lambda: len(re.findall(moment, log.read_text())) > seen)
        below |= {*pool.carriers, *pool.workers}
        os.kill(pool.pid, signal.SIGKILL)

        until(lambda: not any(map(alive, {pool.pid, *below})))
        with background(system, "workerpool", system.directory / "config.ini") as again:
            (result,) = system.collect("results", 1)
            assert (result.headers["status"], result.headers["attempt"]) == ("succeeded", 1)
            again.stop()

    def test_signals_that_come_meanwhile_are_not_lost(self, system: SQLiteSystem, pool: Background, log: Path) -> None:
        pool.signal(signal.SIGUSR2)
        until(lambda: "going on as the version" in log.read_text())
        for _ in range(20):
            pool.signal(signal.SIGHUP)  # it would end a program without a handler
        pool.signal(signal.SIGTERM)

        until(lambda: not alive(pool.pid))

        assert "Traceback" not in log.read_text() and "ended" in log.read_text().splitlines()[-1]


def test_over_rabbitmq_nothing_is_lost_or_done_twice_under_load(own: Installation, amqp_url: str) -> None:
    with System(own, amqp_url) as system:
        file = system.open_directory / "record"
        text = f"[DEFAULT]\nworkers = 0\n[record]\nworkers = 3\nfile = {file}\nseconds = 0.05\n"
        log = LOGGING.format(path=str(system.directory / "log"))
        with background(system, "workerpool", system.config(text + log)) as pool:
            system.publish_all("worker_record", [(str(n), {"message_id": str(n)}) for n in range(400)])
            for number in range(2):
                ended = 50 + 100 * number
                until(lambda ended=ended: file.exists() and file.read_text().count("end") >= ended)  # type: ignore[misc]
                assert upgrade(system, pool) == (0, "")

            results = system.collect("results", 400)

            assert Counter(result.properties.correlation_id for result in results) == Counter(map(str, range(400)))
            lines = [line.split() for line in file.read_text().splitlines()]
            assert Counter(line[1] for line in lines if line[0] == "start") == Counter(map(str, range(400)))
            assert len({line[4] for line in lines}) == 9  # each version had processes of its own
            until(lambda: system.depth("worker_record") == 0 and len(pool.carriers) == 1)
            pool.stop()
            said = (system.directory / "log").read_text()
            assert "died" not in said and "Traceback" not in said


class TestOneThatCanNotBe:
    def test_a_new_version_that_does_not_start_leaves_the_old_one_at_work(
        self, system: SQLiteSystem, pool: Background, own: Installation
    ) -> None:
        carriers, workers = pool.carriers, pool.workers
        broken = own.site_packages / "taskqueue" / "cli" / "daemons.py"
        before = broken.read_text()
        try:
            broken.write_text("raise ImportError('broken on purpose')\n")
            status = pool.status["reloads"]
            pool.signal(signal.SIGUSR2)
            problems = pool.wait_status(lambda now: now["reloads"] > status)["problems"]
        finally:
            broken.write_text(before)

        assert problems[-1] == "not upgraded: ImportError: broken on purpose"
        assert (pool.carriers, pool.workers) == (carriers, workers)
        assert echoes(system, "still")
        pool.stop()

    def test_a_configuration_that_is_invalid_is_said_and_the_old_version_goes_on(
        self, system: SQLiteSystem, pool: Background, own: Installation
    ) -> None:
        carriers, workers = pool.carriers, pool.workers
        path = system.write("[taskqueue]\nmax_body = much\n")
        (installed,) = own.site_packages.glob("taskqueue-*/METADATA")
        before = installed.read_text()
        try:
            installed.write_text(before.replace("\nVersion: ", "\nVersion: 9."))
            status, problems = upgrade(system, pool)
            said = system.run("status", "-p", pool.pid_file).stdout.decode().splitlines()[-1]
        finally:
            installed.write_text(before)

        assert status == 6
        version = pool.status["version"]
        assert said == (
            f"workerpool: it is version {version}; 9.{version} is installed: "
            f"taskqueue reload --upgrade --wait -p {pool.pid_file}"
        )
        assert problems.startswith(f"taskqueue: workerpool: not upgraded: {path}:2: [taskqueue] max_body")
        assert (pool.carriers, pool.workers) == (carriers, workers)
        assert echoes(system, "still")
        pool.stop()


def test_a_dispatcher_settles_what_it_took_and_goes_on_as_the_new_version(system: SQLiteSystem) -> None:
    log = system.directory / "dispatcher.log"
    with background(system, "dispatcher", system.config(LOGGING.format(path=str(log)))) as dispatcher:
        code = (
            "import sys\nfrom taskqueue.broker import connect\nfrom taskqueue.workitem import INCOMING, Workitem\n"
            "producer = connect(sys.argv[1]).producer()\n"
            "producer.send([Workitem(body=b'a x', type='', content_type='text/plain')] * 500, queue=INCOMING)\n"
        )
        subprocess.run([system.installation.python, "-c", code, system.url], check=True, env=system.environment())
        pid = dispatcher.pid

        assert upgrade(system, dispatcher) == (0, "")

        until(lambda: system.depth("worker_a") == 500)
        assert (dispatcher.status["pid"], dispatcher.pid_file.read_text()) == (pid, f"{pid}\n")
        assert "going on with the versions that are installed now" in log.read_text()
        dispatcher.stop()
        assert system.depth("worker_a") == 500
        assert not dispatcher.pid_file.exists()
