"""Workers inside a program: `with taskqueue.running(queue, worker, processes=2):`, over every broker."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import handlers
import pytest
from asking import KINDS, Asking, running
from databases import PostgreSQL, with_schema
from system import alive, until

import taskqueue

STORES = ("memory", "sqlite")
SERVERS = ("postgresql", "amqp")


@pytest.fixture(params=[*STORES, *(pytest.param(name, marks=pytest.mark.services) for name in SERVERS)])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "memory":
            return "memory://"
        case "sqlite":
            return f"sqlite:///{tmp_path}/queue.db"
        case "postgresql":
            server: PostgreSQL = request.getfixturevalue("postgresql")
            return server.url(server.database(with_schema))
        case _:
            return str(request.getfixturevalue("amqp_url"))


@pytest.fixture
def everywhere(any_url: str) -> Iterator[Asking]:
    """A queue on each broker."""
    asking = Asking(any_url)
    yield asking
    asking.close()


@pytest.fixture
def here() -> Iterator[Asking]:
    """A queue in memory: for what has nothing to do with brokers."""
    asking = Asking("memory://")
    yield asking
    asking.close()


@pytest.mark.parametrize("kind", KINDS)
class TestOverEveryBroker:
    def test_what_is_sent_is_run_by_as_many_at_once_as_there_are(
        self, everywhere: Asking, kind: str, tmp_path: Path
    ) -> None:
        (tmp_path / "met").mkdir()
        with running(everywhere, kind=kind, count=3):
            met = [everywhere.send("meet", str(tmp_path / "met"), 3) for _ in range(3)]
            assert [everywhere.reply(id) for id in met] == [3, 3, 3]
            doubled = [everywhere.send("double", n) for n in range(200)]
            assert [everywhere.reply(id) for id in doubled] == [2 * n for n in range(200)]
            assert everywhere.ask("fail") == "LookupError: nothing here"

    def test_leaving_finishes_what_runs_and_gives_the_rest_back(
        self, everywhere: Asking, kind: str, tmp_path: Path
    ) -> None:
        with running(everywhere, kind=kind):
            first = everywhere.send("hold", str(tmp_path))
            until((tmp_path / "started.1").exists)
            others = [everywhere.send("attempt") for _ in range(5)]
            threading.Timer(0.3, (tmp_path / "go").touch).start()  # while it is being left
        assert (tmp_path / "finished").exists()
        assert everywhere.reply(first) == 1
        assert everywhere.reply(others[0], timeout=0.1) is None

        with running(everywhere, kind=kind):
            assert [everywhere.reply(id) for id in others] == [1] * 5

    def test_what_does_not_finish_in_time_runs_again_and_its_late_answer_counts_nothing(
        self, everywhere: Asking, kind: str, tmp_path: Path
    ) -> None:
        with running(everywhere, kind=kind, stop_timeout=0.1):
            id = everywhere.send("hold", str(tmp_path))
            until((tmp_path / "started.1").exists)
        (tmp_path / "started.1").unlink()
        assert everywhere.reply(id, timeout=0.1) is None

        with running(everywhere, kind=kind):
            until((tmp_path / "started.1").exists)  # it counted as nothing
            (tmp_path / "go").touch()
            assert everywhere.reply(id) == 1
        assert everywhere.producer.next_reply(timeout=0.3) is None

    def test_two_blocks_share_a_queue_and_the_second_one_goes_on_after_the_first(
        self, everywhere: Asking, kind: str, tmp_path: Path
    ) -> None:
        (tmp_path / "met").mkdir()
        with running(everywhere, kind=kind):
            with running(everywhere, kind=kind):
                ids = [everywhere.send("meet", str(tmp_path / "met"), 2) for _ in range(2)]
                assert [everywhere.reply(id) for id in ids] == [2, 2]
            assert everywhere.ask("double", 4) == 8


class TestWorkerProcesses:
    def test_one_that_is_killed_is_replaced_and_its_workitem_tried_again(self, everywhere: Asking) -> None:
        with running(everywhere, kind="processes", count=2):
            assert everywhere.ask("crash_once") == 2
            before = everywhere.ask("where")["pid"]
            os.kill(before, signal.SIGKILL)
            until(lambda: not alive(before))
            assert everywhere.ask("where")["pid"] not in (before, os.getpid())

    def test_options_of_a_worker_section_hold(self, here: Asking) -> None:
        with running(here, kind="processes", max_crashes=1, time_limit=0.2):
            assert here.ask("crash_once") == "worker process crashed: SIGKILL"
            assert here.ask("spin", 60) == "timed out: time limit of 0.2 s"

    def test_one_that_has_had_enough_workitems_is_recycled(self, here: Asking) -> None:
        with running(here, kind="processes", max_tasks=2):
            assert len({here.ask("where")["pid"] for _ in range(6)}) == 3

    def test_it_has_the_surroundings_of_the_program_and_no_file_of_it(
        self, here: Asking, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("OF_THE_PROGRAM", "yes")
        monkeypatch.chdir(tmp_path)
        umask = os.umask(0o027)
        try:
            with running(here, kind="processes", environment={"MINE": "a b"}, settings={"colour": "red"}):
                found = here.ask("where")
        finally:
            os.umask(umask)
        assert (found["environment"]["OF_THE_PROGRAM"], found["environment"]["MINE"]) == ("yes", "a b")
        assert (found["directory"], found["umask"], found["settings"]) == (str(tmp_path), 0o027, {"colour": "red"})
        assert found["files"] == 5  # 0, 1, 2, its socket, and the one by which it counts
        assert found["thread"] == "MainThread"

    def test_what_they_log_is_logged_by_the_program_and_in_the_record(
        self, here: Asking, caplog: pytest.LogCaptureFixture
    ) -> None:
        with running(here, kind="processes"):
            id = here.send("say", "hello from there")
            here.reply(id)
            (attempt,) = here.queue.record(id).attempts
        assert attempt.log == ("hello from there",)
        (record,) = [r for r in caplog.records if "hello from there" in r.getMessage()]
        assert (record.name, record.levelno) == ("worker.default", logging.WARNING)

    def test_children_of_the_program_are_its_own_business(self, here: Asking) -> None:
        handler = signal.getsignal(signal.SIGCHLD)
        with running(here, kind="processes"):
            own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
            assert here.ask("double", 1) == 2
            assert own.wait() == 7
            assert signal.getsignal(signal.SIGCHLD) is handler

    def test_a_program_that_waits_for_every_child_does_no_harm(self, here: Asking) -> None:
        with running(here, kind="processes", max_crashes=2):
            pid = here.ask("where")["pid"]
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # we were faster
                os.waitpid(pid, 0)
            assert here.ask("where")["pid"] != pid


class TestThreads:
    def test_nothing_of_the_program_is_changed(self, here: Asking) -> None:
        def seen() -> tuple[object, ...]:
            root = logging.getLogger()
            handlers = [signal.getsignal(n) for n in signal.valid_signals()]
            return Path("/proc/self/cmdline").read_bytes(), root.level, list(root.handlers), handlers

        before = seen()
        with running(here, kind="threads", settings={"colour": "red"}):
            found = here.ask("where")
            assert seen() == before
        assert seen() == before
        assert (found["pid"], found["settings"]) == (os.getpid(), {"colour": "red"})
        assert found["thread"] != threading.main_thread().name

    def test_the_soft_time_limit_holds(self, here: Asking) -> None:
        with running(here, kind="threads", count=1, soft_time_limit=0.1):
            assert "ran longer than soft_time_limit of 0.1 s" in here.ask("spin", 60)

    def test_an_asynchronous_worker_runs_many_in_one_event_loop(self, here: Asking, tmp_path: Path) -> None:
        (tmp_path / "met").mkdir()
        with taskqueue.running(here.queue, handlers.Asynchronous, threads=1, concurrency=2):
            ids = here.producer.send(
                [here.queue.workitem("default", str(tmp_path / "met")) for _ in range(2)], reply=True
            )
            assert [here.reply(id) for id in ids] == [2, 2]

    def test_a_fault_in_one_gives_what_it_ran_back_and_new_ones_are_started(
        self, here: Asking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from taskqueue.process.desk import Desk

        end, faults = Desk.end, iter([MemoryError("for a test")])

        def faulty(self: Desk, *arguments: Any) -> None:
            if (fault := next(faults, None)) is not None:
                raise fault
            end(self, *arguments)

        monkeypatch.setattr(Desk, "end", faulty)
        with running(here, kind="threads", count=2):
            assert here.ask("attempt") == 2
        names = ("handler", "worker", "taskqueue")
        until(lambda: not any(thread.name.startswith(names) for thread in threading.enumerate()))
