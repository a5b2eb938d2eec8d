"""The block of `running`: how it begins and ends, and what may be said of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import handlers
import pytest
from asking import KINDS, Asking, running
from databases import PostgreSQL, with_schema
from system import PATIENCE, until

import taskqueue
from taskqueue.carrier.lane import Lane
from taskqueue.errors import BrokerUnavailable, ConfigError, PluginError
from taskqueue.inside import manager, place
from taskqueue.lifecycle import State
from taskqueue.upkeep import Keep

STORES = ("memory", "sqlite")


@pytest.fixture
def here() -> Iterator[Asking]:
    """A queue in memory: for what has nothing to do with brokers."""
    asking = Asking("memory://")
    yield asking
    asking.close()


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
