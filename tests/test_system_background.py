"""Daemons in the background: whoever starts one hears whether it runs, and anybody can ask how it is."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from background import LOGGING, background
from installations import Installation
from servers import free_ports
from system import alive, until
from system_store import SQLiteSystem

from taskqueue.status import READY_WITHIN

NONE = "[DEFAULT]\nworkers = 0\n"
ECHO = f"{NONE}[echo]\nworkers = 2\n"
PROGRAMS = pytest.mark.parametrize("program", ["dispatcher", "workerpool"])


@pytest.fixture
def system(installation: Installation) -> Iterator[SQLiteSystem]:
    """Over a file, so that no server is needed."""
    with SQLiteSystem(installation) as system:
        yield system


@PROGRAMS
def test_the_command_returns_when_the_daemon_is_ready_and_its_status_says_so(
    system: SQLiteSystem, program: str
) -> None:
    with background(system, program, system.config(ECHO)) as daemon:
        assert (daemon.done.returncode, daemon.done.stdout, daemon.done.stderr) == (0, "", "")
        assert alive(daemon.pid)
        status = daemon.status
        assert (status["pid"], status["state"], status["reloads"], status["problems"]) == (
            daemon.pid, "running", 0, [],
        )  # fmt: skip
        if program == "workerpool":
            assert status["status"] == "2 of 2 worker processes ready"
            assert len(daemon.workers) == 2  # at once: the command has waited for them
        daemon.stop()
        assert not daemon.pid_file.exists() and not daemon.status_file.exists()


@PROGRAMS
def test_a_broker_that_is_not_there_yet_is_said_and_the_daemon_runs_degraded(
    system: SQLiteSystem, program: str
) -> None:
    (port,) = free_ports(1)
    url = f"amqp://someone:sesame-open@127.0.0.1:{port}/"
    with background(system, program, system.config(NONE, url=url)) as daemon:
        assert daemon.done.returncode == 0
        assert daemon.done.stderr.startswith(f"taskqueue-{program}: running, degraded: ")
        assert f"127.0.0.1:{port}" in daemon.done.stderr and "refused" in daemon.done.stderr
        assert daemon.status["state"] == "degraded"
        assert "sesame" not in daemon.done.stderr + daemon.status_file.read_text()
        daemon.stop()


def test_who_does_not_want_to_wait_for_the_start_leaves_the_daemon_as_it_is(system: SQLiteSystem) -> None:
    (port,) = free_ports(1)
    pid_file = system.directory / "pid"
    config = system.config(NONE, url=f"amqp://127.0.0.1:{port}/")
    command = [system.installation.bin("taskqueue-dispatcher"), "-c", config, "-p", pid_file]
    starting = subprocess.Popen(command, env=system.environment(), stderr=subprocess.DEVNULL)
    pid = int(until(lambda: pid_file.exists() and pid_file.read_text()))
    try:
        until(lambda: "starting" in system.run("status", "-p", pid_file).stdout.decode())
        starting.send_signal(signal.SIGINT)

        assert starting.wait(60) == 1

        assert alive(pid) and pid_file.read_text() == f"{pid}\n"
        os.kill(pid, signal.SIGTERM)
        until(lambda: not alive(pid))
        assert not pid_file.exists()
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_what_was_missing_and_comes_makes_it_run(system: SQLiteSystem) -> None:
    place = system.directory / "later"
    with background(system, "workerpool", system.config(ECHO, url=f"sqlite:///{place}/queue.db")) as daemon:
        assert "there is no directory" in daemon.done.stderr
        assert daemon.status["state"] == "degraded"

        place.mkdir()
        place.chmod(0o777)

        daemon.wait_status(lambda status: status["state"] == "running")
        daemon.stop()


def test_a_group_that_is_failing_is_said_at_the_start_and_stops_nobody(system: SQLiteSystem) -> None:
    with background(system, "workerpool", system.config(f"{ECHO}[broken]\nworkers = 1\n")) as daemon:
        assert daemon.done.returncode == 0
        assert "running, degraded: group broken is failing" in daemon.done.stderr
        daemon.wait_status(lambda status: status["status"].startswith("group broken is failing; 2 of"))
        daemon.stop()


@PROGRAMS
def test_a_wrong_configuration_is_said_on_the_terminal_with_its_exit_status(system: SQLiteSystem, program: str) -> None:
    with background(system, program, system.config("[DEFAULT]\nretries = many\n")) as daemon:
        assert daemon.done.returncode == 6
        assert "retries = 'many'" in daemon.done.stderr
        assert not daemon.pid_file.exists() and not daemon.status_file.exists()


@PROGRAMS
def test_what_goes_wrong_after_the_terminal_was_let_go_reaches_it(system: SQLiteSystem, program: str) -> None:
    """The log can't be set up: the first thing that a daemon does in the background."""
    text = ECHO + LOGGING.format(path=f"{system.directory}/no/such/directory/log")
    with background(system, program, system.config(text)) as daemon:
        assert daemon.done.returncode == 6
        assert "the log can't be set up" in daemon.done.stderr and "no/such/directory" in daemon.done.stderr
        assert not daemon.pid_file.exists()


def test_one_that_dies_without_a_word_is_said_to_have_died(system: SQLiteSystem) -> None:
    code = system.directory / "kill.py"
    code.write_text(
        "import os, sys\n"
        "from taskqueue.workerpool.pool import WorkerPool\n"
        "WorkerPool.configure = lambda self, installed: os.kill(os.getpid(), 9)\n"
        "from taskqueue.cli import workerpool\n"
        "sys.exit(workerpool())\n"
    )
    pid_file = system.directory / "pid"

    done = subprocess.run(
        [system.installation.python, code, "-c", system.config(), "-p", pid_file],
        env=system.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr == "taskqueue-workerpool: it died while it started, without a word; its log may say why\n"


def test_no_process_of_a_daemon_holds_the_terminal_and_each_has_its_three_streams(system: SQLiteSystem) -> None:
    """Else `ssh host service x start` would never return; and without streams of its own, what a handler prints would
    go into whatever file or socket has their numbers.
    """
    with background(system, "workerpool", system.config(ECHO)) as daemon:
        shown = daemon.carriers if os.geteuid() == 0 else ()  # one that holds a password hides what it has open
        for pid in (daemon.pid, *shown, *daemon.workers):
            for number in range(3):
                assert str(Path(f"/proc/{pid}/fd/{number}").readlink()) == os.devnull
        files = [str(path.readlink()) for path in Path(f"/proc/{daemon.pid}/fd").iterdir()]
        assert not [file for file in files if file.startswith("pipe:")]
        daemon.stop()


def test_a_relative_path_means_the_same_in_the_background(system: SQLiteSystem) -> None:
    system.config(ECHO)
    with background(system, "workerpool", "config.ini", cwd=system.directory) as daemon:
        assert (daemon.done.returncode, daemon.done.stderr) == (0, "")
        daemon.signal(signal.SIGHUP)
        assert daemon.wait_status(lambda status: status["reloads"] == 1)["problems"] == []
        daemon.stop()


@PROGRAMS
def test_a_reload_says_what_was_wrong_and_that_it_took(system: SQLiteSystem, program: str) -> None:
    with background(system, program, system.config(ECHO)) as daemon:
        system.write("[taskqueue]\nmax_body = much\n")
        daemon.signal(signal.SIGHUP)
        status = daemon.wait_status(lambda status: status["reloads"] == 1)
        (problem,) = status["problems"]
        assert "config.ini:2" in problem and "max_body" in problem
        assert status["state"] == "running"

        system.config(ECHO)
        daemon.signal(signal.SIGHUP)
        assert daemon.wait_status(lambda status: status["reloads"] == 2)["problems"] == []
        daemon.stop()


@PROGRAMS
def test_a_reload_that_is_asked_for_while_another_goes_on_is_answered(system: SQLiteSystem, program: str) -> None:
    with background(system, program, system.config(NONE)) as daemon:
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
        before = children.read_text()
        daemon.signal(signal.SIGHUP)
        until(lambda: children.read_text() != before, "its look at what is installed")

        daemon.signal(signal.SIGHUP)

        daemon.wait_status(lambda status: status["reloads"] > 0)
        daemon.stop()


def test_a_log_that_can_not_be_set_up_changes_nothing_at_a_reload(system: SQLiteSystem) -> None:
    log = system.directory / "log"
    text = ECHO + LOGGING.format(path=str(log))
    with background(system, "workerpool", system.config(text)) as daemon:
        before = daemon.workers
        system.config(ECHO.replace("2", "1") + LOGGING.format(path=f"{system.directory}/no/log"))
        daemon.signal(signal.SIGHUP)
        status = daemon.wait_status(lambda status: status["reloads"] == 1)
        assert "the log can't be set up" in status["problems"][0]
        until(lambda: "not reloaded: " in log.read_text())  # in the old one
        assert daemon.workers == before
        daemon.stop()


def test_the_start_takes_no_longer_than_it_says() -> None:
    assert READY_WITHIN == 5.0
