"""Workitems that somebody wants no more while real worker processes run them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from installations import Installation
from system import Daemon, System, alive, until
from system_postgresql import PostgreSQLSystem
from system_store import SQLiteSystem

from taskqueue.broker import connect
from taskqueue.lifecycle import ENDED, State
from taskqueue.record import Record
from taskqueue.workitem import Workitem


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def system(installation: Installation, request: pytest.FixtureRequest) -> Iterator[System]:
    if request.param == "sqlite":
        made: System = SQLiteSystem(installation)
    else:
        made = PostgreSQLSystem(installation, request.getfixturevalue("postgresql"))
    with made as system:
        yield system


class Desk:
    """Sends to the workers of `type`, cancels, and asks what became of it."""

    def __init__(self, system: System, type: str) -> None:
        self._broker = connect(system.url)
        self._type = type
        self._notes = system.open_directory / "notes"
        self._producer = self._broker.producer()
        self.store = self._broker.store()

    def close(self) -> None:
        self.store.close()
        self._producer.close()

    def send(self, body: str, **properties: Any) -> str:
        workitem = Workitem(body=body.encode(), content_type="text/plain", type=self._type, **properties)
        return self._producer.send([workitem])[0]

    def started(self, id: str) -> int:
        """Wait until it has been started; the pid of its worker process."""
        until(lambda: id in self.starts(), f"{id} is started")
        return int(next(line.split()[-1] for line in reversed(self._noted()) if line.split()[1] == id))

    def starts(self) -> list[str]:
        """The ids of what was started, in order."""
        return [line.split()[1] for line in self._noted()]

    def _noted(self) -> list[str]:
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [line for line in lines if line.startswith("start ")]

    def ends(self, id: str) -> Record:
        return until(lambda: record if (record := self.store.record(id)).state in ENDED else None, f"the end of {id}")

    def told(self, id: str) -> tuple[State, list[str], str]:
        """How it ended: its state, what became of its attempts, and the error of the last."""
        record = self.ends(id)
        outcomes = [attempt.outcome for attempt in record.attempts]
        return record.state, outcomes, record.attempts[-1].error if outcomes else ""


@pytest.fixture
def desk(system: System) -> Iterator[Desk]:
    with contextlib.closing(Desk(system, "unruly")) as desk:
        yield desk


def start(system: System, more: str = "", *, name: str = "unruly", workers: int = 1) -> Daemon:
    text = f"[DEFAULT]\nworkers = 0\n[{name}]\nworkers = {workers}\nfile = {system.open_directory / 'notes'}\n"
    return system.workerpool(system.config(f"{text}retries = 3\nretry_delay = 0\n{more}"), ready=workers)


@pytest.mark.parametrize("verb", ["heed", "heed_progress"])
def test_a_handler_that_checks_ends_at_its_next_check_and_its_process_goes_on(
    system: System, desk: Desk, verb: str
) -> None:
    daemon = start(system, "cancel_timeout = 10m\n")
    id = desk.send(f"{verb} 600")
    pid = desk.started(id)

    assert desk.store.cancel(id)

    state, outcomes, error = desk.told(id)
    assert (state, outcomes) == (State.CANCELLED, ["cancelled"])
    assert error == "taskqueue.errors.TaskCancelled: somebody wants this workitem no more"
    assert desk.ends(desk.send("echo 1")).state == State.SUCCEEDED
    assert daemon.workers == [pid]
    assert system.run("dead", "list", "--json", "--url", system.url).stdout == b""


def test_a_handler_that_ends_in_good_order_has_succeeded(system: System, desk: Desk) -> None:
    start(system, "cancel_timeout = 10m\n")
    id = desk.send("heed_well 600")
    desk.started(id)

    assert desk.store.cancel(id)

    record = desk.ends(id)
    assert record.state == State.SUCCEEDED
    assert record.result is not None and record.result.body == b"as far as it came"


@pytest.mark.parametrize(("verb", "how"), [("doze", "SIGTERM"), ("resist", "SIGKILL")])
def test_one_that_does_not_hear_is_terminated_then_killed_and_not_tried_again(
    system: System, desk: Desk, verb: str, how: str
) -> None:
    daemon = start(system, "cancel_timeout = 2s\n")
    id = desk.send(f"{verb} 600")
    pid = desk.started(id)

    assert desk.store.cancel(id)

    assert desk.told(id) == (State.CANCELLED, ["cancelled"], how)
    assert not alive(pid)
    daemon.logged(rf"worker process {pid} of unruly goes on with what was cancelled: {how}")
    assert desk.ends(desk.send("echo 1")).state == State.SUCCEEDED
    assert desk.starts().count(id) == 1


def test_its_neighbours_in_the_same_process_are_run_again(system: System) -> None:
    start(system, "threads = 3\ncancel_timeout = 2s\n", name="threads")
    with contextlib.closing(Desk(system, "threads")) as desk:
        neighbours = [desk.send("wait 5") for _ in range(2)]
        id = desk.send("wait 600")
        until(lambda: {*neighbours, id} <= set(desk.starts()), "all are started")

        assert desk.store.cancel(id)

        assert desk.told(id) == (State.CANCELLED, ["cancelled"], "SIGTERM")
        for each in neighbours:
            assert desk.told(each)[:2] == (State.SUCCEEDED, ["released", "succeeded"])


@pytest.mark.parametrize(("type", "option", "error"), [
    ("threads", "threads", "taskqueue.errors.TaskCancelled: somebody wants this workitem no more"),
    ("loop", "concurrency", "asyncio.exceptions.CancelledError"),
])  # fmt: skip
def test_of_several_at_once_only_the_one_that_is_meant_hears_of_it(
    system: System, type: str, option: str, error: str
) -> None:
    daemon = start(system, f"{option} = 3\ncancel_timeout = 10m\n", name=type)
    (pid,) = daemon.workers
    with contextlib.closing(Desk(system, type)) as desk:
        neighbours = [desk.send("heed 4") for _ in range(2)]
        id = desk.send("heed 600")
        until(lambda: id in desk.starts(), "it is started")

        assert desk.store.cancel(id)

        assert desk.told(id) == (State.CANCELLED, ["cancelled"], error)
        for each in neighbours:
            assert desk.told(each)[:2] == (State.SUCCEEDED, ["succeeded"])
        assert daemon.workers == [pid]


@pytest.mark.parametrize("who", ["worker process", "carrier", "manager"])
def test_the_wish_outlives_every_process(system: System, desk: Desk, who: str) -> None:
    daemon = start(system, "cancel_timeout = 10m\n", workers=2)
    id, other = desk.send("doze 600"), desk.send("heed 4")
    pid = desk.started(id)
    desk.started(other)

    assert desk.store.cancel(id)
    if who == "manager":
        daemon.kill()
        start(system)
    else:
        os.kill(pid if who == "worker process" else daemon.carriers[0], signal.SIGKILL)

    assert desk.ends(id).state == State.CANCELLED
    assert desk.ends(other).state == State.SUCCEEDED
    assert desk.starts().count(id) == 1


def test_what_is_wanted_no_more_while_nobody_is_there_is_never_started(system: System, desk: Desk) -> None:
    daemon = start(system)
    id = desk.send("doze 600")
    desk.started(id)
    daemon.kill()

    assert desk.store.cancel(id)
    start(system)

    assert desk.ends(id).state == State.CANCELLED
    assert desk.ends(desk.send("echo 1")).state == State.SUCCEEDED
    assert desk.starts() == [id]


def test_a_stop_goes_on_cancelling(system: System, desk: Desk) -> None:
    daemon = start(system, "cancel_timeout = 2s\nstop_timeout = 10m\n")
    id = desk.send("doze 600")
    desk.started(id)
    daemon.signal(signal.SIGTERM)
    daemon.logged("stopping")

    assert desk.store.cancel(id)

    assert desk.told(id) == (State.CANCELLED, ["cancelled"], "SIGTERM")
    assert daemon.wait() == 0


def test_the_command_line_cancels_and_says_what_it_did(system: System, desk: Desk) -> None:
    start(system, "cancel_timeout = 2s\n")
    running, waiting = desk.send("doze 600"), desk.send("echo \x1b[31m1")
    desk.started(running)

    def run(*words: str) -> tuple[int, str, str]:
        ran = system.run("cancel", *words, "--url", system.url)
        return ran.returncode, ran.stdout.decode(), ran.stderr.decode()

    assert run(waiting) == (0, f"{waiting}: cancelled\n", "")
    status, said, _ = run(running)
    assert status == 0 and said.endswith(", is told to end\n")
    assert desk.ends(running).state == State.CANCELLED
    assert run(running) == (1, "", f"taskqueue: workitem {running} has ended before: cancelled\n")
    status, said, _ = run(running, "--json")
    assert (status, json.loads(said)) == (1, {"id": running, "cancelled": False, "state": "cancelled"})
    status, said, error = run("never-was")
    assert (status, said) == (1, "") and "never-was: it was never sent here" in error
