"""Workers inside a program: `with taskqueue.running(queue, worker, processes=2):`, over every broker."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import handlers
import pytest
from asking import KINDS, Asking, running
from databases import PostgreSQL, with_schema
from system import PATIENCE, alive, until

import taskqueue
from taskqueue.carrier.lane import Lane
from taskqueue.errors import BrokerUnavailable, ConfigError, PluginError
from taskqueue.inside import manager, place
from taskqueue.lifecycle import State
from taskqueue.upkeep import Keep

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


@pytest.mark.parametrize("kind", KINDS)
class TestTheBlock:
    def test_it_leaves_no_thread_process_or_file_behind(self, here: Asking, kind: str) -> None:
        def seen() -> tuple[object, ...]:
            gc.collect()
            files = sorted(str(f.readlink()) for f in Path("/proc/self/fd").iterdir() if f.is_symlink())
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
            maps = Path("/proc/self/maps").read_text().count("taskqueue-start-marks")
            return threading.active_count(), len(files), children, maps

        with running(here, kind=kind, soft_time_limit=30):
            here.ask("double", 1)
        before = seen()
        for _ in range(3):
            with running(here, kind=kind, soft_time_limit=30):
                here.ask("double", 1)
        until(lambda: seen() == before)

    def test_a_worker_that_cannot_be_loaded_is_an_error_with_its_traceback(self, here: Asking, kind: str) -> None:
        for worker, told in (
            ("no_such_module:Worker", "ModuleNotFoundError: No module named 'no_such_module'"),
            ("handlers:Missing", "AttributeError: module 'handlers' has no attribute 'Missing'"),
            (handlers.Unready, 'in setup\n    raise LookupError("no such table")'),
        ):
            with pytest.raises(PluginError) as error, running(here, worker, kind=kind, count=2):
                raise AssertionError("the block began")
            assert told in str(error.value)
            assert "Traceback (most recent call last)" in str(error.value)

    def test_an_error_of_the_block_comes_out_after_the_drain(self, here: Asking, kind: str, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), running(here, kind=kind):
            id = here.send("hold", str(tmp_path))
            until((tmp_path / "started.1").exists)
            (tmp_path / "go").touch()
            _ = 1 / 0
        assert here.queue.status(id) == State.SUCCEEDED

    def test_it_may_be_in_any_thread(self, here: Asking, kind: str) -> None:
        found = []

        def work() -> None:
            with running(here, kind=kind):
                found.append(here.ask("double", 21))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [42]

    def test_it_may_be_in_a_coroutine_whose_event_loop_goes_on(self, here: Asking, kind: str, tmp_path: Path) -> None:
        async def main() -> Any:
            async with running(here, kind=kind):
                id = here.send("hold", str(tmp_path))
                while not (tmp_path / "started.1").exists():
                    await asyncio.sleep(0.005)
                asyncio.get_running_loop().call_later(0.2, (tmp_path / "go").touch)  # while it is being left
            return here.reply(id)

        assert asyncio.run(main()) == 1

    def test_a_handler_may_end_its_workitem_in_a_transaction_of_its_own(self, kind: str, tmp_path: Path) -> None:
        file = tmp_path / "queue.db"
        with (
            taskqueue.connect(f"sqlite:///{file}") as queue,
            taskqueue.running(queue, handlers.Completing, **{kind: 2}),  # type: ignore[arg-type]
        ):
            ids = [queue.send("default", str(file)) for _ in range(4)]
            assert [queue.result(id, timeout=PATIENCE) for id in ids] == ["completed"] * 4
        with contextlib.closing(sqlite3.connect(file)) as connection:
            assert {id for (id,) in connection.execute("SELECT id FROM done")} == set(ids)

    def test_a_child_that_is_forked_in_it_leaves_it_alone(self, here: Asking, kind: str) -> None:
        with running(here, kind=kind) as block:
            child = os.fork()
            if not child:
                try:
                    block.__exit__(None, None, None)
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert here.ask("double", 1) == 2

    def test_it_is_for_one_use(self, here: Asking, kind: str) -> None:
        block = running(here, kind=kind)
        with block:
            pass
        with pytest.raises(RuntimeError), block:
            pass

    @pytest.mark.parametrize("store", STORES)
    def test_a_fault_of_the_carrier_comes_out_and_what_it_had_is_lent_again(
        self, kind: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asking = Asking("memory://" if store == "memory" else f"sqlite:///{tmp_path}/queue.db")

        def faulty(self: Lane, *arguments: object) -> None:
            raise ArithmeticError("for a test")

        with monkeypatch.context() as patch:
            patch.setattr(Lane, "ended", faulty)
            with pytest.raises(ArithmeticError), running(asking, kind=kind) as block:
                id = asking.send("double", 3)
                until(lambda: block._fault)
        with running(asking, kind=kind):
            assert asking.reply(id) == 6
        asking.close()

    @pytest.mark.services
    def test_a_broker_that_is_gone_for_good_does_not_keep_a_program_in_it(
        self, kind: str, tmp_path: Path, start_postgresql: Callable[[], PostgreSQL], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(manager, "GRACE", 0.5)
        server = start_postgresql()
        asking = Asking(server.url(server.database(with_schema), options="?heartrate=1"))
        told = "what was taken is done again"
        with pytest.raises(BrokerUnavailable, match=told), running(asking, kind=kind, stop_timeout=0.2):
            id = asking.send("hold", str(tmp_path))
            until((tmp_path / "started.1").exists)
            server.stop()
            (tmp_path / "go").touch()
        server.start()
        with running(asking, kind=kind):
            until(lambda: asking.queue.status(id) == State.SUCCEEDED)
        asking.close()

    def test_results_go_to_no_queue_unless_it_is_named(self, here: Asking, kind: str) -> None:
        for options, expected in (({}, 0), ({"results_routing_key": "mine"}, 1)):
            with running(here, kind=kind, **options):
                here.ask("double", 1)
            assert len(here.queue.broker.waiting("results" if not options else "mine")) == expected  # type: ignore[attr-defined]


class TestArguments:
    @pytest.mark.parametrize("counts", [{}, {"processes": 1, "threads": 1}])
    def test_there_are_either_processes_or_threads(self, here: Asking, counts: Mapping[str, int]) -> None:
        with pytest.raises(TypeError, match="either processes or threads"):
            taskqueue.running(here.queue, handlers.Worker, **counts)

    @pytest.mark.parametrize("count", [0, -1, "2", 1.5])
    def test_there_is_at_least_one(self, here: Asking, count: Any) -> None:
        with pytest.raises(ValueError, match="a whole number from 1 on"):
            taskqueue.running(here.queue, handlers.Worker, processes=count)

    def test_options_are_read_as_in_a_worker_section(self, here: Asking) -> None:
        with pytest.raises(ConfigError) as error:
            running(here, kind="processes", retries=-1, retires=2, time_limit=1, soft_time_limit=2.5, colour="red")
        assert error.value.problems == (
            "taskqueue.running: [default] retries = '-1': expected a whole number, not below 0",
            "taskqueue.running: [default] retires: there is no such option; did you mean retries?",
            "taskqueue.running: [default] colour: there is no such option; what is the worker's own goes into settings",
            "taskqueue.running: [default] soft_time_limit = '2.500000000': expected a soft_time_limit below "
            "time_limit, and for default they are 2.5 s and 1 s",
        )

    @pytest.mark.parametrize(
        ("kind", "options"),
        [("processes", {"user": "nobody"}), ("threads", {"time_limit": 3}), ("threads", {"max_tasks": 3})],
    )
    def test_what_only_daemons_or_processes_can_do_is_refused(
        self, here: Asking, kind: str, options: Mapping[str, object]
    ) -> None:
        with pytest.raises(TypeError, match=f"{next(iter(options))}: not for {kind} of a program"):
            running(here, kind=kind, **options)


class TestWhereAWorkerIs:
    @pytest.mark.parametrize(
        ("worker", "found"),
        [
            (handlers.Worker, "handlers:Worker.factory"),
            (handlers.Worker.factory, "handlers:Worker.factory"),
            (handlers.make, "handlers:make"),
            (handlers.space, "handlers:space.factory"),
            (handlers.space.factory, "handlers:space.factory"),
            ("elsewhere:Worker", "elsewhere:Worker"),
        ],
    )
    def test_it_is_named_by_the_module_that_has_it(self, worker: object, found: str) -> None:
        assert place.entry_point(worker) == found
        if found.startswith("handlers"):
            assert isinstance(place.factory(found)(), handlers.Worker)
        assert (not isinstance(worker, str) and isinstance(place.factory(worker)(), handlers.Worker)) or worker == found

    @pytest.mark.parametrize(
        "worker", [lambda: None, handlers.Space("handlers"), type("Local", (handlers.Worker,), {})]
    )
    def test_what_has_no_name_there_is_an_error_that_says_what_helps(self, worker: object) -> None:
        with pytest.raises(PluginError, match=r"can't be found by worker processes.*'module:attribute'"):
            place.entry_point(worker)

    def test_what_makes_no_worker_is_an_error_that_says_what_does(self) -> None:
        with pytest.raises(PluginError, match="is no worker"):
            place.entry_point(4711)


def test_chores_are_done_for_its_own_type_and_drop_nothing_of_others(here: Asking) -> None:
    keeping = running(here, kind="threads", history_retention="2h", history_max=7).keeping

    assert keeping.types == {"default": Keep(7200.0, 7)}
    assert min(keeping.default.age, keeping.statistics) > 9 * 365 * 86400
