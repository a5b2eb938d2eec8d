"""What a store knows of workitems that real worker processes ran."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from installations import Installation
from system import System, children, until
from system_postgresql import PostgreSQLSystem
from system_store import SQLiteSystem

from taskqueue.broker import connect
from taskqueue.lifecycle import State
from taskqueue.record import Record
from taskqueue.workitem import Workitem

CONFIG = "[DEFAULT]\nworkers = 0\n[unruly]\nworkers = 1\nfile = {file}\n"
USER = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def system(installation: Installation, request: pytest.FixtureRequest) -> Iterator[System]:
    if request.param == "sqlite":
        made: System = SQLiteSystem(installation)
    else:
        made = PostgreSQLSystem(installation, request.getfixturevalue("postgresql"))
    with made as system:
        yield system


class Desk:
    """Sends, and asks what became of it."""

    def __init__(self, system: System) -> None:
        broker = connect(system.url)
        self.store = broker.store()
        self._producer = broker.producer()

    def close(self) -> None:
        self.store.close()
        self._producer.close()

    def send(self, body: str, **properties: Any) -> str:
        workitem = Workitem(body=body.encode(), content_type="text/plain", type="unruly", **properties)
        return self._producer.send([workitem])[0]

    def reaches(self, id: str, *states: State) -> Record:
        return until(lambda: record if (record := self.store.record(id)).state in states else None, f"{id}: {states}")


@pytest.fixture
def desk(system: System) -> Iterator[Desk]:
    with contextlib.closing(Desk(system)) as desk:
        yield desk


def start(system: System, more: str = "") -> Any:
    config = system.config(CONFIG.format(file=system.open_directory / "notes") + more)
    return system.workerpool(config, ready=1)


def test_a_record_says_who_ran_it_where_how_long_and_what_it_said(system: System, desk: Desk) -> None:
    start(system)

    id = desk.send("tell 2", reference="order:4711")
    running = desk.reaches(id, State.RUNNING)
    ended = desk.store.wait(id, timeout=60)

    assert running.running is not None and running.running.host == socket.gethostname()
    assert running.running.user == USER
    assert running.progress is not None and running.progress.note == "a quarter"
    (attempt,) = ended.attempts
    assert attempt.run is not None and attempt.run.ended is not None
    assert attempt.run.pid == running.running.pid
    assert 2 <= attempt.run.ended - attempt.run.started < 60
    assert attempt.run.cpu is not None and 0 <= attempt.run.cpu < 2
    assert attempt.run.memory is not None and attempt.run.memory > 1 << 20
    assert attempt.log == ("one of two", "two of two")
    assert ended.result is not None and ended.result.body == b"told"
    assert [record.id for record in desk.store.history(reference="order:4711")] == [id]


def test_failures_and_crashes_are_attempts_with_their_causes(system: System, desk: Desk) -> None:
    start(system, "retries = 1\nretry_delay = 0\nmax_crashes = 2\n")

    failed, crashed = desk.send("fail not today"), desk.send("segfault")

    record = desk.store.wait(failed, timeout=60)
    assert [(a.number, a.outcome, a.error) for a in record.attempts] == [
        (1, "failed", "ValueError: not today"), (2, "failed", "ValueError: not today"),
    ]  # fmt: skip
    assert (record.state, "raise ValueError" in record.attempts[1].traceback) == (State.FAILED, True)
    record = desk.store.wait(crashed, timeout=60)
    assert (record.state, [(a.outcome, a.error) for a in record.attempts]) == (State.DEAD, [("crashed", "SIGSEGV")] * 2)
    assert all(a.run is not None and a.run.pid > 0 for a in record.attempts)


def test_what_a_dead_carrier_ran_is_lost_and_seen_to_run_again(system: System, desk: Desk) -> None:
    pool = start(system)
    id = desk.send("tell 3")
    first = desk.reaches(id, State.RUNNING)

    os.kill(children(pool.pid, "taskqueue.carrier")[0], signal.SIGKILL)

    assert first.running is not None
    runs = {None, first.running}
    again = until(lambda: record if (record := desk.store.record(id)).running not in runs else None, "another run")
    assert again.state in (State.LOST, State.RUNNING)
    ended = desk.store.wait(id, timeout=60)
    assert ended.state == State.SUCCEEDED
    assert [(attempt.number, attempt.outcome) for attempt in ended.attempts] == [(1, "lost"), (1, "succeeded")]
    assert ended.attempts[0].run == first.running


@pytest.mark.parametrize(("history", "attempts"), [("outcome", 0), ("off", None)])
def test_a_group_may_have_less_or_no_history(system: System, desk: Desk, history: str, attempts: int | None) -> None:
    start(system, f"history = {history}\n")

    id = desk.send("echo hello")
    system.collect("results", 1)

    found = [(record.id, record.state, len(record.attempts), record.result) for record in desk.store.history()]
    assert found == ([] if attempts is None else [(id, State.SUCCEEDED, attempts, None)])


def test_the_command_line_lists_and_shows_workitems(system: System, desk: Desk, installation: Installation) -> None:
    start(system)
    done, failed = desk.send("tell 0", reference="order:1"), desk.send("fail \x1b[31mred", reference="order:2")
    for id in (done, failed):
        desk.store.wait(id, timeout=60)

    def run(*words: str, status: int = 0) -> str:
        command = [installation.bin("taskqueue"), *words, "--url", system.url]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == status, ran.stderr
        return ran.stdout + ran.stderr

    listed = [json.loads(line) for line in run("tasks", "--json").splitlines()]
    assert [(row["id"], row["state"], row["reference"]) for row in listed] == [
        (failed, "failed", "order:2"), (done, "succeeded", "order:1"),
    ]  # fmt: skip
    assert done in run("tasks", "--state", "succeeded") and failed not in run("tasks", "--state", "succeeded")
    assert failed in run("tasks", "--reference", "order:2")
    shown = json.loads(run("show", done, "--json"))
    assert (shown["id"], shown["attempts"][0]["outcome"], shown["result"]["body"]) == (done, "succeeded", "told")
    text = run("show", done, failed)
    assert "log: one of two" in text and "ValueError: \\x1b[31mred" in text and "\x1b" not in text
    assert "never-was: it was never sent here" in run("show", "never-was", status=1)


def test_a_carrier_does_the_chores_and_goes_on_when_other_things_are_to_be_kept(system: System, desk: Desk) -> None:
    with contextlib.closing(connect(system.url).producer()) as producer:
        producer.send([Workitem(body=b"") for _ in range(12)], queue="results")

    config = CONFIG.format(file=system.open_directory / "notes")
    daemon = system.workerpool(system.config(config, results_max_length=10), ready=1)
    until(lambda: system.depth("results") == 10, "the oldest results are dropped")
    carriers = daemon.carriers
    system.config(config, results_max_length=10, history_retention="2h")
    daemon.signal(signal.SIGHUP)
    daemon.logged("configuration read again")

    assert desk.store.wait(desk.send("echo 1"), timeout=60).state == State.SUCCEEDED
    assert daemon.carriers == carriers


def test_what_expired_or_died_is_a_dead_letter_without_a_dispatcher_too(system: System, desk: Desk) -> None:
    config = start(system)
    expired = desk.send("echo late", expiration=0.0)
    with contextlib.closing(connect(system.url).producer()) as producer:  # nobody ever claims from this one's queue
        nobody, *_ = producer.send([Workitem(body=b"", type="nobody", expiration=0.0)])
    failed = desk.send("fail no")

    def listed() -> dict[str, str]:
        shown = system.run("dead", "list", "--json", "--url", system.url).stdout
        return {row["id"]: row["reason"] for row in map(json.loads, shown.splitlines())}

    until(lambda: len(listed()) >= 2, "dead letters")
    assert system.run("maintain", "--url", system.url).returncode == 0
    wanted = {expired: "expired", nobody: "expired", failed: "failed"}
    assert until(lambda: letters if (letters := listed()) == wanted else None, "all three") == wanted
    assert [desk.store.record(id).state for id in wanted] == [State.EXPIRED, State.EXPIRED, State.FAILED]
    config.stop()


def test_without_dead_letters_the_record_says_what_became_of_it(system: System, desk: Desk) -> None:
    start(system, "dead_letters = off\n")

    record = desk.store.wait(desk.send("fail not today"), timeout=60)

    assert (record.state, record.attempts[0].error) == (State.FAILED, "ValueError: not today")
    assert system.run("dead", "list", "--json", "--url", system.url).stdout == b""
