"""The same services under a real systemd."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machine import Machine
from operating import DAEMONS, drain, pip, publish, result, results, send, workers
from packages import NAMES
from system import until

pytestmark = [pytest.mark.deb, pytest.mark.timeout(300)]

UNIT = "python-taskqueue-{}.service"
CONFIG = "/etc/taskqueue/config.ini"
NO_RECORD = "[record]\nworkers = 0\n"  # a plugin for tests, which does not load without a setting


@pytest.fixture(scope="module")
def booted(
    debian: Callable[..., contextlib.AbstractContextManager[Machine]], files: dict[str, Path], wheels: dict[str, Path]
) -> Iterator[Machine]:
    """A Debian with systemd and RabbitMQ, in which all packages were installed."""
    with debian("booted", booted=True) as machine:
        until(lambda: systemctl(machine, "is-active", "rabbitmq-server", status=None) == "active\n", "RabbitMQ")
        machine.install(*(files[name] for name in NAMES))
        machine.write(CONFIG, NO_RECORD)
        pip(machine, wheels["plain"])
        yield machine
        print(machine.run("journalctl", "--unit=python-taskqueue-*", "--lines=200", status=None))


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    """The same; afterwards its configuration and units are the packages' again, and both run."""
    yield booted
    booted.write(CONFIG, NO_RECORD)
    systemctl(booted, "start", "rabbitmq-server")
    for daemon in DAEMONS:
        booted.run("rm", "--recursive", "--force", f"/run/systemd/system/{UNIT.format(daemon)}.d")
    systemctl(booted, "daemon-reload")
    for daemon in DAEMONS:
        systemctl(booted, "reset-failed", UNIT.format(daemon), status=None)
        systemctl(booted, "restart", UNIT.format(daemon))


def systemctl(machine: Machine, *words: str, status: int | None = 0) -> str:
    """What systemctl says."""
    return machine.run("systemctl", *words, status=status)


def shown(machine: Machine, daemon: str, name: str) -> str:
    """A property of a daemon's unit."""
    return systemctl(machine, "show", f"--property={name}", "--value", UNIT.format(daemon)).strip()


def set_options(machine: Machine, daemon: str, *options: str) -> None:
    """Have a unit restarted with other options, as `systemctl edit` does."""
    unit = UNIT.format(daemon)
    machine.write(f"/run/systemd/system/{unit}.d/test.conf", "\n".join(["[Service]", *options, ""]))
    systemctl(machine, "daemon-reload")
    systemctl(machine, "restart", unit)


def log(machine: Machine, daemon: str) -> str:
    """What a daemon has logged."""
    return machine.run("journalctl", "--output=cat", f"--unit={UNIT.format(daemon)}")


def test_the_units_are_right(machine: Machine) -> None:
    units = [f"/lib/systemd/system/{UNIT.format(daemon)}" for daemon in DAEMONS]

    assert [line for line in machine.run("systemd-analyze", "verify", *units).splitlines() if "taskqueue" in line] == []


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_service_runs_is_enabled_and_says_how_it_is(machine: Machine, daemon: str) -> None:
    assert systemctl(machine, "is-active", UNIT.format(daemon)) == "active\n"
    assert systemctl(machine, "is-enabled", UNIT.format(daemon)) == "enabled\n"
    until(lambda: shown(machine, daemon, "StatusText").startswith("running: "), "its status")
    machine.run(f"/etc/init.d/python-taskqueue-{daemon}", "status")


def test_a_message_comes_back_as_a_result(machine: Machine) -> None:
    drain(machine)
    publish(machine, "filestat /etc/hostname")

    assert json.loads(result(machine))["path"] == "/etc/hostname"


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_daemon_that_is_killed_is_started_again(machine: Machine, daemon: str) -> None:
    before = int(shown(machine, daemon, "MainPID"))

    machine.run("kill", "-KILL", before)

    until(lambda: shown(machine, daemon, "NRestarts") == "1", "its restart")
    until(lambda: shown(machine, daemon, "ActiveState") == "active", "the service")
    assert json.loads(send(machine, "filestat", "/etc/hostname"))["path"] == "/etc/hostname"
    assert machine.status("kill", "-0", before) != 0


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_daemon_that_hangs_is_killed_by_the_watchdog(machine: Machine, daemon: str) -> None:
    set_options(machine, daemon, "WatchdogSec=3")
    before = shown(machine, daemon, "MainPID")

    machine.run("kill", "-STOP", before)

    until(lambda: shown(machine, daemon, "NRestarts") == "1", "its restart")
    until(lambda: shown(machine, daemon, "ActiveState") == "active", "the service")
    assert shown(machine, daemon, "MainPID") != before
    assert "atchdog timeout" in log(machine, daemon)


def test_a_daemon_that_works_is_left_alone_by_the_watchdog(machine: Machine) -> None:
    for daemon in DAEMONS:
        set_options(machine, daemon, "WatchdogSec=10")  # the carrier is asked every 3 s

    assert send(machine, "sleep", "12") == "12\n"

    assert [shown(machine, daemon, "NRestarts") for daemon in DAEMONS] == ["0", "0"]


def test_a_reload_has_taken_effect_when_it_returns(machine: Machine) -> None:
    before = shown(machine, "workerpool", "MainPID")
    machine.write(CONFIG, NO_RECORD + "[filestat]\nworkers = 3\n")

    systemctl(machine, "reload", UNIT.format("workerpool"))

    assert shown(machine, "workerpool", "MainPID") == before
    until(lambda: len(workers(machine, "filestat")) == 3, "three worker processes")


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_wrong_configuration_fails_the_reload_and_changes_nothing(machine: Machine, daemon: str) -> None:
    before = shown(machine, daemon, "MainPID")
    machine.write(CONFIG, "[taskqueue]\nlog_level = loud\n")

    systemctl(machine, "reload", UNIT.format(daemon), status=1)

    assert systemctl(machine, "is-active", UNIT.format(daemon)) == "active\n"
    assert shown(machine, daemon, "MainPID") == before
    errors = machine.run("journalctl", "--output=cat", "--priority=err", f"--unit={UNIT.format(daemon)}")
    assert re.search(f"{CONFIG}.*log_level.*loud", errors)


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_wrong_configuration_at_the_start_is_said_once_and_not_tried_again(machine: Machine, daemon: str) -> None:
    machine.write(CONFIG, "[taskqueue]\nlog_level = louder\n")

    systemctl(machine, "restart", UNIT.format(daemon), status=1)

    assert shown(machine, daemon, "ActiveState") == "failed"
    assert shown(machine, daemon, "ExecMainStatus") == "6"
    assert shown(machine, daemon, "NRestarts") == "0"
    assert len(re.findall("louder", log(machine, daemon))) == 1


def test_a_stop_waits_for_what_runs_longer_than_systemd_would(machine: Machine) -> None:
    set_options(machine, "workerpool", "TimeoutStopSec=3")
    until(lambda: machine.pids("^taskqueue: worker sleep idle"), "the worker sleep")
    (id,) = machine.run("taskqueue", "send", "sleep", "12").split()
    until(lambda: machine.pids("^taskqueue: worker sleep running"), "the workitem to be started")

    systemctl(machine, "stop", UNIT.format("workerpool"))

    assert results(machine, id) == {id: ("succeeded", "12")}
    assert shown(machine, "workerpool", "Result") == "success"
    assert machine.pids("^taskqueue: (workerpool|carrier|worker)") == []


def test_without_their_broker_they_are_active_and_say_that_it_is_missing(machine: Machine) -> None:
    for daemon in DAEMONS:
        systemctl(machine, "stop", UNIT.format(daemon))
    systemctl(machine, "stop", "rabbitmq-server")

    for daemon in DAEMONS:
        systemctl(machine, "start", UNIT.format(daemon))

    for daemon in DAEMONS:
        assert shown(machine, daemon, "StatusText").startswith("degraded: ")
    systemctl(machine, "start", "rabbitmq-server")
    for daemon in DAEMONS:
        until(lambda daemon=daemon: shown(machine, daemon, "StatusText").startswith("running: "), "the broker")  # type: ignore[misc]
    assert json.loads(send(machine, "filestat", "/etc/hostname"))["path"] == "/etc/hostname"


def test_everything_runs_as_its_user_and_gains_no_rights(machine: Machine) -> None:
    expected = {"workerpool": "root", "dispatcher": "taskqueue", "carrier": "taskqueue", "worker ": "taskqueue-worker"}
    for title, user in expected.items():
        for pid in until(lambda title=title: machine.pids(f"^taskqueue: {title}"), title):  # type: ignore[misc]
            assert machine.run("stat", "--format=%U", f"/proc/{pid}").strip() == user
            assert "NoNewPrivs:\t1" in machine.path(f"/proc/{pid}/status").read_text()


def test_an_upgrade_keeps_the_daemons_and_what_they_run(machine: Machine, later: dict[str, Path]) -> None:
    before = [shown(machine, daemon, "MainPID") for daemon in DAEMONS]
    until(lambda: machine.pids("^taskqueue: worker sleep idle"), "the worker sleep")
    (id,) = machine.run("taskqueue", "send", "sleep", "15").split()
    until(lambda: machine.pids("^taskqueue: worker sleep running"), "the workitem to be started")

    machine.install(*later.values())

    assert machine.pids("^taskqueue: worker sleep running"), "the upgrade has waited for it"
    assert [shown(machine, daemon, "MainPID") for daemon in DAEMONS] == before
    assert [shown(machine, daemon, "NRestarts") for daemon in DAEMONS] == ["0", "0"]
    assert results(machine, id) == {id: ("succeeded", "15")}
    assert [shown(machine, daemon, "ActiveState") for daemon in DAEMONS] == ["active", "active"]


def test_purged_packages_leave_nothing_but_the_users(booted: Machine) -> None:
    booted.run("apt-get", "purge", "--yes", *NAMES)

    found = booted.run(
        "find", "/etc", "/lib/systemd", "/run", "/usr/lib/python3", "/var/lib", "-xdev", "-iname", "*taskqueue*"
    )
    assert [path for path in found.splitlines() if not path.startswith("/var/lib/dpkg/")] == []
    assert booted.pids("^taskqueue: ") == []
    assert UNIT.format("dispatcher") not in systemctl(booted, "list-unit-files")
