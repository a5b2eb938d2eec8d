"""Signals, kills and changes of the configuration: what ends, what stays, what is done again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from system import Daemon, System, alive, children, until

RECORD = "[record]\nworkers = {workers}\nfile = {file}\nseconds = {seconds}\n"
ENDS = ("start", "end")
NONE = "[DEFAULT]\nworkers = 0\n"


def record(system: System, *, workers: int = 2, seconds: float = 0.01, more: str = "") -> str:
    file = system.open_directory / "record"
    return NONE + RECORD.format(workers=workers, file=file, seconds=seconds) + more


def events(system: System, event: str) -> list[tuple[str, int]]:
    """Id and attempt of every `start` or `end` so far."""
    try:
        lines = (system.open_directory / "record").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(id, int(attempt)) for what, id, attempt, *_ in map(str.split, lines) if what == event]


def publish(system: System, *ids: str, queue: str = "worker_record") -> None:
    system.publish_all(queue, [(id, {"message_id": id}) for id in ids])


def result_ids(system: System, count: int) -> Counter[str]:
    return Counter(message.properties.correlation_id for message in system.collect("results", count))


def state(pool: Daemon, type: str, pattern: str) -> str:
    """Have the state written; its line on `type` where that has `pattern`, else nothing.  To be called again."""
    pool.signal(signal.SIGUSR1)
    lines = re.findall(rf"type {type}: (.*)", pool.log)
    return lines[-1] if lines and re.search(pattern, lines[-1]) else ""


class TestTheWorkerManager:
    def test_sigterm_finishes_what_runs_and_gives_the_reserve_back(self, system: System) -> None:
        config = system.config(record(system, seconds=1, more="prefetch = 20\n"))
        pool = system.workerpool(config, ready=2)
        publish(system, *map(str, range(30)))
        until(lambda: len(events(system, "start")) >= 2)

        pool.stop()

        started, ended = events(system, "start"), events(system, "end")
        assert sorted(started) == sorted(ended) and 2 <= len(ended) < 30
        assert (system.depth("results"), system.depth("worker_record")) == (len(ended), 30 - len(ended))
        assert "died" not in pool.log

        pool = system.workerpool(system.config(record(system, more="prefetch = 20\n")), ready=2)
        assert result_ids(system, 30) == Counter(map(str, range(30)))
        pool.stop()
        assert set(events(system, "start")) == {(str(n), 1) for n in range(30)}
        assert len(events(system, "start")) == 30

    def test_what_does_not_finish_within_stop_timeout_is_killed_and_runs_again(self, system: System) -> None:
        pool = system.workerpool(system.config(record(system, seconds=600, more="stop_timeout = 0.5\n")), ready=2)
        publish(system, "long")
        until(lambda: events(system, "start"))

        pool.stop()

        assert "stop_timeout of 0.5 s: killed; what it ran is released, and will run again" in pool.log
        assert (system.depth("worker_record"), system.depth("results")) == (1, 0)
        pool = system.workerpool(system.config(record(system)), ready=2)
        assert result_ids(system, 1) == Counter(["long"])
        assert events(system, "start") == [("long", 1), ("long", 1)]
        pool.stop()

    def test_a_second_sigterm_ends_it_at_once(self, system: System) -> None:
        pool = system.workerpool(system.config(record(system, seconds=600)), ready=2)
        publish(system, "long")
        until(lambda: events(system, "start"))

        pool.signal(signal.SIGTERM)
        pool.logged("stopping")
        pool.stop(timeout=30)

        assert "what runs is killed, and will run again" in pool.log
        assert (system.depth("worker_record"), system.depth("results")) == (1, 0)

    def test_a_process_that_is_still_loading_holds_up_no_stop(self, system: System) -> None:
        pool = system.workerpool(system.config(NONE + "[slow-setup]\nworkers = 1\nseconds = 1\n"))
        until(lambda: pool.workers)

        pool.stop()

        assert "Traceback" not in pool.log and "died" not in pool.log

    def test_sighup_restarts_only_what_has_changed(self, system: System) -> None:
        def config(echo: int, whoami: int, variable: str) -> str:
            return f"{NONE}[echo]\nworkers = {echo}\n[whoami]\nworkers = {whoami}\nenvironment = A={variable}\n"

        system.config(config(2, 1, "one"))
        pool = system.workerpool(system.directory / "config.ini", ready=3)
        carriers, echo, whoami = pool.carriers, pool.ready("echo"), pool.ready("whoami")

        def reload(text: str, count: int, **options: str) -> None:
            read = pool.log.count("read again")
            system.config(text, **options)
            pool.signal(signal.SIGHUP)
            pool.logged("read again", count=read + 1)
            pool.wait_ready(count)

        reload(config(2, 1, "two"), 3)
        until(lambda: pool.ready("whoami") not in (whoami, []))
        assert pool.ready("echo") == echo

        whoami = pool.ready("whoami")
        reload(config(3, 1, "two"), 4)
        assert set(echo) < set(pool.ready("echo"))
        assert pool.ready("whoami") == whoami

        echo = pool.ready("echo")
        reload(config(1, 1, "two"), 2)
        assert set(pool.ready("echo")) < set(echo)
        assert pool.ready("whoami") == whoami

        reload(config(1, 0, "two"), 1)
        assert not any(map(alive, whoami))
        assert pool.carriers == carriers

        before = pool.workers
        system.write("[echo]\nworkers = many\n")
        pool.signal(signal.SIGHUP)
        pool.logged(r"not reloaded: .*config.ini:2: .*workers")
        assert (pool.workers, pool.carriers) == (before, carriers)

        reload(config(1, 0, "two"), 1, url=f"{system.url}?connection_attempts=1")
        until(lambda: pool.carriers and pool.carriers != carriers)
        pool.wait_ready(1)
        assert "DEBUG" not in pool.log
        reload(config(1, 0, "two"), 1, log_level="debug")
        pool.logged("DEBUG.*worker process [0-9]+ of echo started")
        publish(system, "after", queue="worker_echo")
        assert result_ids(system, 1) == Counter(["after"])
        pool.stop()
        assert not re.search("died|Traceback", pool.log)

    def test_a_new_url_waits_for_what_runs(self, system: System) -> None:
        pool = system.workerpool(system.config(record(system, seconds=2)), ready=2)
        carriers = pool.carriers
        publish(system, "one")
        until(lambda: events(system, "start"))

        system.config(record(system), url=f"{system.url}?connection_attempts=1")
        pool.signal(signal.SIGHUP)
        until(lambda: pool.carriers and pool.carriers != carriers)
        pool.wait_ready(2)

        assert result_ids(system, 1) == Counter(["one"])
        publish(system, "two")
        assert result_ids(system, 1) == Counter(["two"])
        assert events(system, "start") == events(system, "end") == [("one", 1), ("two", 1)]
        pool.stop()
        assert "died" not in pool.log

    def test_sigusr1_writes_the_state_of_everything(self, system: System) -> None:
        pool = system.workerpool(system.config(record(system)), ready=2)
        publish(system, *map(str, range(5)))
        system.collect("results", 5)

        # Settled is what was acknowledged: soon after its result has come.
        line = until(lambda: state(pool, "record", "receiving, held 0 .*settled 5, discarded 0, processes:"))
        pool.logged(rf"carrier: pid {pool.carriers[0]}")
        pool.logged("group record: 2 wanted, 2 there, 2 ready")
        assert {int(pid) for pid in re.findall(r"(\d+) ready", line)} == set(pool.workers)
        pool.stop()

    def test_sigkill_of_it_ends_everything_at_once(self, system: System) -> None:
        text = f"{NONE}[long]\nworkers = 2\nfile = {system.open_directory / 'long'}\n[echo]\nworkers = 1\n"
        pool = system.workerpool(system.config(text), ready=3)
        system.publish("worker_long", "lock 30", "sleep 30")
        until(lambda: (system.open_directory / "long").exists())
        until(lambda: (system.open_directory / "long").read_text().count("start") == 2)
        below = [*pool.carriers, *pool.workers]
        assert len(below) == 4

        pool.process.kill()

        until(lambda: not any(map(alive, below)), timeout=2.0)
        until(lambda: system.depth("worker_long") == 2)

    def test_sigkill_of_the_carrier_replaces_everything_and_counts_as_nothing(self, system: System) -> None:
        pool = system.workerpool(system.config(record(system, seconds=0.1, more="prefetch = 10\n")), ready=2)
        publish(system, "first")
        # A new quorum queue takes a second for its first confirm; later ones take milliseconds.
        until(lambda: state(pool, "record", "settled 1,"))
        publish(system, *map(str, range(40)))
        until(lambda: len(events(system, "end")) >= 8)
        (carrier,), workers = pool.carriers, pool.workers

        os.kill(carrier, signal.SIGKILL)

        pool.logged(rf"carrier {carrier} died: SIGKILL")
        until(lambda: not any(map(alive, workers)))
        lines = [line.split() for line in (system.open_directory / "record").read_text().splitlines()]
        before = {what: {line[1] for line in lines if line[0] == what and int(line[-1]) in workers} for what in ENDS}
        pool.wait_ready(2)
        until(lambda: len(set(events(system, "end"))) == 41 and system.depth("worker_record") == 0)
        pool.stop()
        starts = Counter(events(system, "start"))
        assert starts.keys() == {(id, 1) for id in ("first", *map(str, range(40)))}  # no attempt was counted
        twice = {id for (id, _), count in starts.items() if count > 1}
        print("run twice:", sorted(twice))
        # What ran is run again; and what had ended and was not acknowledged yet may be.
        assert before["start"] - before["end"] <= twice < before["start"]
        results = result_ids(system, system.depth("results") or 0)
        assert results.keys() == {"first", *map(str, range(40))}
        assert system.depth("taskqueue.dead") in (None, 0)

    def test_a_killed_process_costs_its_workitem_one_attempt(self, system: System) -> None:
        pool = system.workerpool(system.config(record(system, seconds=1)), ready=2)
        publish(system, "one")
        until(lambda: events(system, "start"))
        (line,) = (system.open_directory / "record").read_text().splitlines()

        os.kill(int(line.split()[-1]), signal.SIGKILL)

        (result,) = system.collect("results", 1)
        assert (result.headers["status"], result.headers["attempt"]) == ("succeeded", 2)
        assert events(system, "start") == [("one", 1), ("one", 2)]
        pool.stop()

    def test_a_plugin_that_does_not_import_is_reported_once_and_stops_nobody(self, system: System) -> None:
        pool = system.workerpool(system.config(NONE + "[broken]\nworkers = 3\n[echo]\nworkers = 1\n"))
        pool.wait_ready(1, "echo")
        pool.logged("worker process .* of broken died: exit status 3", count=9)
        pool.logged("group broken is failing")

        pool.signal(signal.SIGUSR1)
        pool.logged("group broken: 3 wanted, .* failing")
        publish(system, "fine", queue="worker_echo")

        assert result_ids(system, 1) == Counter(["fine"])
        assert pool.log.count("ImportError: broken on purpose\nTraceback") == 1
        assert not re.search("WARNING .*worker process .* of broken died", pool.log)
        pool.stop()

    def test_one_that_comes_to_life_again_takes_up_its_work(self, system: System) -> None:
        """The pause and the new start of receiving, when all processes are gone for a while."""
        config = system.config(record(system, workers=1))
        pool = system.workerpool(config, ready=1)
        publish(system, "one")
        assert result_ids(system, 1) == Counter(["one"])
        system.config(record(system, workers=0))
        pool.signal(signal.SIGHUP)
        until(lambda: not pool.workers)
        publish(system, "two", "three")
        system.config(record(system, workers=1))
        pool.signal(signal.SIGHUP)

        assert result_ids(system, 2) == Counter(["two", "three"])
        pool.stop()


class TestPidFiles:
    @pytest.fixture
    def pid_file(self, system: System) -> Path:
        return system.directory / "daemon.pid"

    @pytest.mark.parametrize("program", ["dispatcher", "workerpool"])
    def test_it_is_held_by_one_and_a_stale_one_stops_nobody(self, system: System, pid_file: Path, program: str) -> None:
        pid_file.write_text(f"{os.getpid()}\n")  # alive, and no daemon
        start = getattr(system, program)
        config = system.config(NONE)
        first: Daemon = start(config, "-p", pid_file)
        until(lambda: pid_file.read_text() == f"{first.pid}\n")

        second: Daemon = start(config, "-p", pid_file)

        assert second.wait() == 1
        assert second.log == f"taskqueue: pid file {pid_file}: held by process {first.pid}: it runs already\n"
        first.logged("connected|carrier .* started")
        first.kill()
        assert pid_file.read_text() == f"{first.pid}\n"
        third: Daemon = start(config, "-p", pid_file)
        until(lambda: pid_file.read_text() == f"{third.pid}\n")
        third.logged("connected|carrier .* started")
        third.stop()
        assert not pid_file.exists()

    def test_one_that_can_not_be_made_is_an_error_in_one_line(self, system: System) -> None:
        path = system.directory / "missing" / "daemon.pid"
        pool = system.workerpool(system.config(NONE), "-p", path)
        assert pool.wait() == 1
        assert pool.log == f"taskqueue: pid file {path}: No such file or directory\n"

    def test_in_the_background(self, system: System, pid_file: Path) -> None:
        config = system.config(record(system, workers=1))
        command = [system.installation.bin("taskqueue-workerpool"), "-c", config, "-p", pid_file]

        def run() -> subprocess.CompletedProcess[str]:
            environment = system.environment()
            return subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=system.directory
            )

        done = run()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        pid = int(until(lambda: pid_file.exists() and pid_file.read_text()))
        try:
            until(lambda: children(pid, "taskqueue.process"))
            again = run()
            assert again.returncode == 1
            assert f"held by process {pid}: it runs already" in again.stderr
            publish(system, "one")
            assert result_ids(system, 1) == Counter(["one"])
            os.kill(pid, signal.SIGTERM)
            until(lambda: not alive(pid))
            assert not pid_file.exists()
        finally:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
