"""Upgrades by apt: nothing is lost or done twice, and a long task goes on; also where the new version can not start."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine
from operating import DAEMONS, PRODUCER, drain, events, pip, publish, result, results, status
from packages import NAMES
from system import until

pytestmark = [pytest.mark.deb, pytest.mark.timeout(300)]

PAUSE = 0.005  # seconds between two workitems
LONG = 15  # seconds
CONFIG = "/etc/taskqueue/config.ini"
REMEDY = r"taskqueue reload --upgrade --wait -p /run/\S+\.pid"


@pytest.fixture
def machine(machine: Machine, earlier: dict[str, Path], files: dict[str, Path]) -> Iterator[Machine]:
    """The same with the version that upgrades begin with; afterwards with the present one again."""
    if earlier != files:  # which may have the same number
        machine.run("apt-get", "purge", "--yes", *NAMES)
        machine.install(*earlier.values())
    yield machine
    machine.install(*files.values())


def daemons(machine: Machine) -> tuple[list[int], set[str]]:
    """The pids of both, and the versions that they are."""
    said = status(machine, *DAEMONS)
    return [each["pid"] for each in said], {each["version"] for each in said}


def test_where_the_new_version_can_not_start_the_old_one_works_on_until_what_is_wrong_is_put_right(
    machine: Machine, later: dict[str, Path]
) -> None:
    before = daemons(machine)
    machine.write(CONFIG, "[taskqueue]\nlog_levle = debug\n")

    said = machine.install(*later.values())

    assert len(re.findall(rf"not upgraded: {CONFIG}:2: .*log_levle", said)) == len(DAEMONS)
    remedies = sorted(re.findall(REMEDY, said))
    assert len(remedies) == len(DAEMONS)
    assert machine.run("taskqueue", "--version") == "taskqueue 0.1.0+next\n"
    assert daemons(machine) == before
    assert re.findall(REMEDY, machine.run("taskqueue", "status")) == remedies
    drain(machine)
    publish(machine, "filestat /etc/hostname")
    assert json.loads(result(machine))["path"] == "/etc/hostname"

    machine.write(CONFIG, "[filestat]\nworkers = 2\n")
    for remedy in remedies:
        machine.run(*remedy.split())

    assert daemons(machine) == (before[0], {"0.1.0+next"})
    until(lambda: len(machine.pids("^taskqueue: worker filestat idle")) == 2, "the corrected configuration")
    assert re.findall(REMEDY, machine.run("taskqueue", "status")) == []


def test_an_upgrade_under_load_loses_nothing_and_does_nothing_twice(
    machine: Machine, later: dict[str, Path], wheels: dict[str, Path]
) -> None:
    pip(machine, wheels["plain"])
    record = "/var/tmp/record"
    machine.write(CONFIG, f"[record]\nworkers = 2\nfile = {record}\nseconds = 0.005\n")
    machine.run("taskqueue", "reload", "--wait")
    until(lambda: machine.pids("^taskqueue: worker record idle"), "the worker record")
    before, _ = daemons(machine)
    (long,) = machine.run("taskqueue", "send", "sleep", str(LONG)).split()
    until(lambda: machine.pids("^taskqueue: worker sleep running"), "the long task to be started")
    (old,) = machine.pids("^taskqueue: worker sleep running")

    with machine.running("python3", "-c", PRODUCER, PAUSE) as producer:
        until(lambda: len(events(machine, record)) > 50, "the load")
        machine.install(*later.values())
        amid = len(events(machine, record))
        until(lambda: len(events(machine, record)) > amid + 50, "the load after it")
        count = int(producer.communicate("")[0])

    found = results(machine, long, *map(str, range(count)), timeout=120)
    assert found.pop(long) == ("succeeded", str(LONG))
    assert found == {str(number): ("succeeded", str(number)) for number in range(count)}
    assert set(events(machine, record).values()) == {("start", "end")}
    assert daemons(machine) == (before, {"0.1.0+next"})
    until(lambda: old not in machine.pids("^taskqueue: "), "the end of the old worker process")
