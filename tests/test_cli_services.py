"""`taskqueue status` and `taskqueue reload`, over real daemons."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from background import Background, background
from installations import Installation
from system import alive, until
from system_store import SQLiteSystem

ECHO = "[DEFAULT]\nworkers = 0\n[echo]\nworkers = {workers}\n"
WRONG = "[taskqueue]\nmax_body = much\n"


@pytest.fixture
def system(installation: Installation) -> Iterator[SQLiteSystem]:
    """Over a file, so that no server is needed."""
    with SQLiteSystem(installation) as system:
        yield system


@pytest.fixture
def pool(system: SQLiteSystem) -> Iterator[Background]:
    with background(system, "workerpool", system.config(ECHO.format(workers=1))) as daemon:
        yield daemon


@pytest.fixture
def dispatcher(system: SQLiteSystem) -> Iterator[Background]:
    with background(system, "dispatcher", system.config(ECHO.format(workers=1))) as daemon:
        yield daemon


def run(system: SQLiteSystem, *words: object) -> tuple[int, str, str]:
    done = system.run(*words)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class TestStatus:
    def test_it_says_how_each_daemon_is(self, system: SQLiteSystem, pool: Background, dispatcher: Background) -> None:
        files = ("-p", pool.pid_file, "-p", dispatcher.pid_file)
        assert run(system, "status", *files) == (
            0,
            f"workerpool: running, pid {pool.pid}: 1 of 1 worker processes ready\n"
            f"dispatcher: running, pid {dispatcher.pid}: 0 messages passed on\n",
            "",
        )
        status, shown, _ = run(system, "status", "--json", *files)
        first, second = map(json.loads, shown.splitlines())
        assert status == 0
        assert (first["name"], first["running"], first["state"], first["pid"]) == (
            "workerpool", True, "running", pool.pid,
        )  # fmt: skip
        assert second["pid_file"] == str(dispatcher.pid_file)

        dispatcher.stop()
        status, shown, _ = run(system, "status", *files)
        assert status == 3
        assert shown.splitlines()[1] == "dispatcher: not running"

    def test_one_that_was_killed_is_dead_and_its_number_means_nothing(
        self, system: SQLiteSystem, pool: Background
    ) -> None:
        below = [*pool.carriers, *pool.workers]
        os.kill(pool.pid, signal.SIGKILL)
        until(lambda: not any(map(alive, [pool.pid, *below])))
        dead = (1, "workerpool: dead, and its pid file is there\n", "")
        assert run(system, "status", "-p", pool.pid_file) == dead

        pool.pid_file.write_text(f"{os.getpid()}\n")  # another program has the number by now
        pool.pid = 0
        assert run(system, "status", "-p", pool.pid_file) == dead
        assert run(system, "reload", "-p", pool.pid_file)[0] == 7

    def test_where_none_was_ever_started_none_runs(self, system: SQLiteSystem) -> None:
        missing = system.directory / "no.pid"
        assert run(system, "status", "-p", missing) == (3, "no: not running\n", "")
        assert run(system, "reload", "-p", missing) == (7, "", "taskqueue: no: not running\n")

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
    def test_everybody_may_ask(self, system: SQLiteSystem, pool: Background) -> None:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", system.installation.bin("taskqueue")]
        done = subprocess.run(
            [*command, "status", "-p", pool.pid_file], env=system.environment(), capture_output=True, check=False
        )
        assert done.returncode == 0
        done = subprocess.run(
            [*command, "reload", "-p", pool.pid_file], env=system.environment(), capture_output=True, check=False
        )
        assert (done.returncode, b"is another user's" in done.stderr) == (1, True)


class TestReload:
    def test_it_waits_until_the_new_configuration_has_been_taken(
        self, system: SQLiteSystem, pool: Background, dispatcher: Background
    ) -> None:
        system.config(ECHO.format(workers=2))

        assert run(system, "reload", "--wait", "-p", pool.pid_file, "-p", dispatcher.pid_file) == (0, "", "")

        assert (pool.status["reloads"], dispatcher.status["reloads"]) == (1, 1)
        until(lambda: len(pool.workers) == 2)

    def test_one_that_is_refused_is_said_with_its_problems(
        self, system: SQLiteSystem, pool: Background, dispatcher: Background
    ) -> None:
        path = system.write(WRONG)

        status, shown, problems = run(system, "reload", "--wait", "-p", pool.pid_file, "-p", dispatcher.pid_file)

        assert (status, shown) == (6, "")
        for line, name in zip(problems.splitlines(), ("workerpool", "dispatcher"), strict=True):
            assert line.startswith(f"taskqueue: {name}: {path}:2: [taskqueue] max_body = 'much': ")
        assert (
            f"workerpool: its new configuration was refused: {path}:2" in run(system, "status", "-p", pool.pid_file)[1]
        )

    def test_without_waiting_it_only_tells_them(self, system: SQLiteSystem, pool: Background) -> None:
        system.write(WRONG)

        assert run(system, "reload", "-p", pool.pid_file) == (0, "", "")

        pool.wait_status(lambda status: status["reloads"] == 1 and status["problems"])

    def test_one_that_ends_meanwhile_is_not_waited_for(self, system: SQLiteSystem, pool: Background) -> None:
        os.kill(pool.pid, signal.SIGSTOP)
        waiting = subprocess.Popen(
            [system.installation.bin("taskqueue"), "reload", "--wait", "-p", pool.pid_file],
            env=system.environment(), stderr=subprocess.PIPE,
        )  # fmt: skip
        below = [*pool.carriers, *pool.workers]
        os.kill(pool.pid, signal.SIGKILL)
        until(lambda: not any(map(alive, [pool.pid, *below])))

        _, problems = waiting.communicate(timeout=60)

        assert waiting.returncode == 7
        assert problems.decode() in (
            "taskqueue: workerpool: it has ended\n", "taskqueue: workerpool: not running\n",
        )  # fmt: skip
