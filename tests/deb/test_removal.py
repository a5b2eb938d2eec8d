"""What removing, purging and upgrading the packages leaves."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machine import Machine, bare, mirrors
from packages import NAMES

pytestmark = [pytest.mark.deb, pytest.mark.timeout(300)]

DAEMONS = ("dispatcher", "workerpool")
USERS = ("taskqueue", "taskqueue-worker")
KNOWN_ELSEWHERE = (  # files of dpkg, RabbitMQ and others that name what was installed once
    "/debs/", "/var/lib/dpkg/", "/var/lib/rabbitmq/", "/var/cache/", "/var/log/", "/proc/", "/sys/",
)  # fmt: skip


@pytest.fixture(scope="module")
def machine(
    debian: Callable[..., contextlib.AbstractContextManager[Machine]], files: dict[str, Path], example: Path
) -> Iterator[Machine]:
    """A Debian; the tests below are one story in it."""
    with debian("removal") as machine:
        machine.run("/etc/init.d/rabbitmq-server", "start")
        machine.install(*(files[name] for name in NAMES), example)
        yield machine


def running(machine: Machine) -> list[int]:
    """Everything of the project that runs."""
    return machine.pids("taskqueue-(dispatcher|workerpool)|taskqueue: ")


def left(machine: Machine) -> list[str]:
    """Files that are named after the project, or belong to its users."""
    users = ["-o", "-user", "taskqueue", "-o", "-user", "taskqueue-worker"]
    found = machine.run("find", "/", "-xdev", "(", "-iname", "*taskqueue*", "-o", "-iname", "*wordcount*", *users, ")")
    found += machine.run("find", "/run", "-iname", "*taskqueue*")
    return [path for path in found.splitlines() if not path.startswith(KNOWN_ELSEWHERE)]


def test_an_upgrade_keeps_the_administrators_configuration(machine: Machine, later: dict[str, Path]) -> None:
    edited = "[DEFAULT]\nworkers = 1\n# edited\n"
    machine.write("/etc/taskqueue/config.ini", edited)
    machine.run("chgrp", "daemon", "/etc/taskqueue/config.ini")
    for daemon in DAEMONS:
        machine.run(f"/etc/init.d/python-taskqueue-{daemon}", "status")

    machine.install(*later.values())

    assert machine.run("taskqueue", "--version") == "taskqueue 0.1.0+next\n"
    assert machine.path("/etc/taskqueue/config.ini").read_text() == edited
    assert machine.run("stat", "--format=%U:%G %a", "/etc/taskqueue/config.ini") == "root:daemon 640\n"
    assert "A later version" in machine.path("/etc/taskqueue/config.ini.dpkg-dist").read_text()
    machine.run("chgrp", "taskqueue", "/etc/taskqueue/config.ini")
    for daemon in DAEMONS:
        machine.run(f"/etc/init.d/python-taskqueue-{daemon}", "status")


def test_removed_packages_leave_their_configuration_only_and_nothing_runs(machine: Machine) -> None:
    for daemon in DAEMONS:
        machine.run(f"/etc/init.d/python-taskqueue-{daemon}", "start")

    machine.run("apt-get", "remove", "--yes", *NAMES)

    assert running(machine) == []
    assert machine.path("/etc/taskqueue/config.ini").exists()
    assert machine.path("/etc/taskqueue/conf.d/wordcount.ini").exists()
    assert not machine.path("/usr/lib/python3/dist-packages/taskqueue").exists()
    for daemon in DAEMONS:  # the scripts stay, as configuration; Debian's policy wants them harmless
        machine.run("sh", f"/etc/init.d/python-taskqueue-{daemon}", "start")
    assert running(machine) == []


def test_purged_packages_leave_nothing_but_the_users(machine: Machine) -> None:
    machine.run("dpkg", "--purge", *NAMES, "python3-taskqueue-wordcount")

    assert left(machine) == []
    for user in USERS:
        machine.run("getent", "passwd", user)
    assert [line for line in machine.run("dpkg", "--list").splitlines() if "taskqueue" in line] == []


def test_they_can_be_installed_again(machine: Machine, files: dict[str, Path]) -> None:
    machine.install(*(files[name] for name in NAMES))

    assert machine.run("stat", "--format=%U:%G %a", "/etc/taskqueue/config.ini") == "root:taskqueue 640\n"
    for daemon in DAEMONS:
        machine.run(f"/etc/init.d/python-taskqueue-{daemon}", "status")


@pytest.mark.timeout(600)
def test_piuparts_finds_nothing(base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    assert shutil.which("piuparts", path="/usr/sbin") is not None
    tmp_path.chmod(0o755)

    done = subprocess.run(
        [
            "piuparts", "--distribution=bookworm", f"--basetgz={bare(base)}", f"--mirror={mirrors()[0]} main",
            "--warn-on-debsums-errors", "--no-eatmydata", f"--tmpdir={tmp_path}", *map(str, files.values()),
        ],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    assert re.findall("PASS: All tests", done.stdout)
