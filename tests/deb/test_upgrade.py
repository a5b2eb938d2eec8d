"""An upgrade under load: nothing is lost, nothing is done twice, and a long task goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from machine import Machine
from operating import PRODUCER, events, manager, pip, results, status
from system import until

pytestmark = [pytest.mark.deb, pytest.mark.timeout(300)]

COUNT = 1500
PAUSE = 0.005  # seconds between two of them
LONG = 20  # seconds


def test_an_upgrade_under_load_loses_nothing_and_does_nothing_twice(
    machine: Machine, later: dict[str, Path], files: dict[str, Path], wheels: dict[str, Path]
) -> None:
    pip(machine, wheels["plain"])
    record = "/var/tmp/record"
    machine.write("/etc/taskqueue/config.ini", f"[record]\nworkers = 2\nfile = {record}\nseconds = 0.005\n")
    machine.run("taskqueue", "reload", "--wait")
    until(lambda: machine.pids("^taskqueue: worker record idle"), "the worker record")
    before = manager(machine)
    (long,) = machine.run("taskqueue", "send", "sleep", str(LONG)).split()
    until(lambda: machine.pids("^taskqueue: worker sleep running"), "the long task to be started")
    (old,) = machine.pids("^taskqueue: worker sleep running")

    with machine.running("python3", "-c", PRODUCER, 0, COUNT, PAUSE) as producer:
        until(lambda: len(events(machine, record)) > 50, "the load")
        machine.install(*later.values())
        amid = len(events(machine, record))
        assert producer.wait(120) == 0

    assert amid < COUNT, "the upgrade was not under load"
    found = results(machine, long, *map(str, range(COUNT)), timeout=120)
    assert found.pop(long) == ("succeeded", str(LONG))
    assert found == {str(number): ("succeeded", str(number)) for number in range(COUNT)}
    assert set(events(machine, record).values()) == {("start", "end")}
    assert manager(machine) == before
    assert {each["version"] for each in status(machine, "dispatcher", "workerpool")} == {"0.1.0+next"}
    until(lambda: old not in machine.pids("^taskqueue: "), "the end of the old worker process")
    machine.install(*files.values())
