"""Daemons as systemd runs them: over a real socket that hears what they say."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from background import background
from installations import Installation
from system import alive, until, users
from system_store import SQLiteSystem

pytestmark = pytest.mark.daemons

CONFIG = "[DEFAULT]\nworkers = 0\n[echo]\nworkers = 2\n[sleep]\nworkers = 1\n"


@pytest.fixture
def system(installation: Installation) -> Iterator[SQLiteSystem]:
    """Over a file, so that no server is needed."""
    with SQLiteSystem(installation) as system:
        yield system


class Systemd:
    """systemd's end of the socket; `said` are all lines so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o777)
        self._socket.setblocking(False)

    def hear(self) -> list[str]:
        """All that was said until now."""
        while True:
            try:
                self.said += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self.said

    def wait(self, line: str, count: int = 1) -> None:
        """Wait until a line that begins so has come `count` times."""
        until(lambda: sum(said.startswith(line) for said in self.hear()) >= count, f"{line} {count} times")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(system: SQLiteSystem) -> Iterator[Systemd]:
    systemd = Systemd(system.directory / "notify")
    yield systemd
    systemd.close()


def test_a_worker_pool_says_when_it_is_ready_reloads_stops_and_needs_more_time(
    system: SQLiteSystem, systemd: Systemd
) -> None:
    pool = system.workerpool(system.config(CONFIG), NOTIFY_SOCKET=str(systemd.path))
    systemd.wait("READY=1")
    assert len(pool.workers) == 3
    before = systemd.said.index("READY=1")
    assert all(line.startswith("STATUS=starting: ") for line in systemd.said[:before])
    assert systemd.said[before + 1] == "STATUS=running: 3 of 3 worker processes ready"

    system.write("[taskqueue]\nmax_body = much\n")
    pool.signal(signal.SIGHUP)
    systemd.wait("READY=1", 2)
    assert "RELOADING=1" in systemd.said and systemd.said[systemd.said.index("RELOADING=1") + 1].startswith("MONOTONIC")

    system.run("send", "sleep", "8", "--url", system.url)
    until(lambda: system.depth("worker_sleep") == 0)
    pool.signal(signal.SIGTERM)
    systemd.wait("EXTEND_TIMEOUT_USEC=15000000", 2)
    assert systemd.said.count("STOPPING=1") == 1
    assert pool.wait() == 0
    assert systemd.hear()[-1] != "READY=1"
    (result,) = system.collect("results", 1)
    assert result.headers["status"] == "succeeded"


def test_the_watchdog_of_a_worker_pool_is_fed_only_while_its_carrier_answers(
    system: SQLiteSystem, systemd: Systemd
) -> None:
    pool = system.workerpool(
        system.config(CONFIG), ready=3, NOTIFY_SOCKET=str(systemd.path), WATCHDOG_USEC="7000000"
    )  # fmt: skip
    systemd.wait("WATCHDOG=1", 3)

    os.kill(pool.carriers[0], signal.SIGSTOP)
    stopped, fed = time.monotonic(), systemd.hear().count("WATCHDOG=1")

    until(lambda: time.monotonic() - stopped > 10.5)  # three times that it would have been fed
    assert systemd.hear().count("WATCHDOG=1") <= fed + 1  # the last answer may have come just before
    os.kill(pool.carriers[0], signal.SIGCONT)
    systemd.wait("WATCHDOG=1", fed + 2)
    pool.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users")
def test_a_dispatcher_without_rights_tells_reloads_and_is_upgraded(system: SQLiteSystem, systemd: Systemd) -> None:
    with users("taskqueue-test-service"):
        place = system.directory / "dispatcher"
        place.mkdir()
        shutil.chown(place, "taskqueue-test-service", "taskqueue-test-service")
        system.directory.chmod(0o777)
        config = system.config("", user="taskqueue-test-service")
        with background(system, "dispatcher", config) as dispatcher:
            assert (dispatcher.done.returncode, dispatcher.done.stderr) == (0, "")
            assert dispatcher.status_file.owner() == "taskqueue-test-service"
            files = ("-p", dispatcher.pid_file)

            assert system.run("reload", "--wait", *files).returncode == 0
            assert system.run("reload", "--upgrade", "--wait", *files).returncode == 0
            dispatcher.wait_status(lambda status: status["state"] == "running" and status["reloads"] == 2)
            assert Path(f"/proc/{dispatcher.pid}").owner() == "taskqueue-test-service"

            system.run("send", "x", "y", "--url", system.url)
            dispatcher.stop()
            assert not alive(dispatcher.pid)
            assert list(place.iterdir()) == []
