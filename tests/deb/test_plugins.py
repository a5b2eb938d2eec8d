"""Plugins that come, change and go while the services run, and nobody runs a command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine
from operating import add_egg, add_module, manager, pip, remove_egg, results, send, workers
from packages import next_version
from system import until

pytestmark = [pytest.mark.deb, pytest.mark.timeout(300)]

WITHIN = 5.0  # seconds that a plugin's workers have, as documented


@pytest.fixture(autouse=True)
def nothing_else_changes(machine: Machine) -> Iterator[None]:
    """Whatever a test does: the manager and the workers of other plugins go on as they were."""
    until(lambda: machine.pids("^taskqueue: worker filestat idle"), "the worker filestat")
    before = manager(machine), workers(machine, "filestat")
    yield
    assert (manager(machine), workers(machine, "filestat")) == before


def soon(machine: Machine, type: str, count: int) -> list[int]:
    """Wait until there are `count` worker processes of a type; they."""

    def ready() -> bool:
        return len(machine.pids(f"^taskqueue: worker {type} idle")) == len(workers(machine, type)) == count

    until(ready, f"{count} worker processes of {type}", timeout=WITHIN)
    return workers(machine, type)


def test_a_package_with_a_plugin_brings_its_workers_and_its_section_and_takes_them_with_it(
    machine: Machine, example: Path, tmp_path: Path
) -> None:
    machine.install(example)

    first = soon(machine, "wordcount", 2)
    assert json.loads(send(machine, "wordcount", "to be or not to be that is it")) == {"to": 2, "be": 2, "or": 1}

    next_version([example], tmp_path)
    machine.install(*tmp_path.glob("*.deb"))

    until(lambda: not set(first) & set(workers(machine, "wordcount")), "new workers", timeout=WITHIN)
    soon(machine, "wordcount", 2)

    machine.run("apt-get", "remove", "--yes", "python3-taskqueue-wordcount")

    soon(machine, "wordcount", 0)
    machine.run("dpkg", "--purge", "python3-taskqueue-wordcount")
    assert machine.run("ls", "/etc/taskqueue/conf.d") == ""


def test_a_removed_plugin_finishes_what_it_runs(machine: Machine, wheels: dict[str, Path]) -> None:
    pip(machine, wheels["plain"])
    soon(machine, "sleep", 1)
    (id,) = machine.run("taskqueue", "send", "sleep", "8").split()
    until(lambda: machine.pids("^taskqueue: worker sleep running"), "the workitem to be started")

    machine.run("pip", "uninstall", "--quiet", "--yes", "--break-system-packages", "taskqueue-test-plain")

    soon(machine, "echo", 0)
    assert machine.pids("^taskqueue: worker sleep running")
    assert results(machine, id) == {id: ("succeeded", "8")}
    soon(machine, "sleep", 0)


def test_pip_brings_workers_and_takes_them_with_it(machine: Machine, wheels: dict[str, Path]) -> None:
    pip(machine, wheels["worker2"])

    soon(machine, "worker2", 1)
    assert json.loads(send(machine, "worker2", "hello"))["body"] == "hello"

    machine.run("pip", "uninstall", "--quiet", "--yes", "--break-system-packages", "taskqueue-test-worker2")

    soon(machine, "worker2", 0)


def test_a_zipped_egg_brings_workers_and_takes_them_with_it(machine: Machine) -> None:
    """Which once killed daemons: python-daemon closes what the metadata finder holds open."""
    add_egg(machine)

    soon(machine, "zipped", 1)
    assert "zipped-1.0-py3.11.egg/zipped.py" in send(machine, "zipped", "")

    remove_egg(machine)

    soon(machine, "zipped", 0)


def test_a_plugin_that_does_not_load_harms_no_other(machine: Machine) -> None:
    add_module(machine, "broken", "raise SystemExit(3)\n", {"broken": "broken:Worker"})

    until(lambda: re.search("broken", machine.path("/var/log/syslog").read_text()), "its report", timeout=WITHIN)

    assert json.loads(send(machine, "filestat", "/etc/hostname"))["path"] == "/etc/hostname"
