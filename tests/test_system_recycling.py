"""Worker processes that are replaced between two workitems, and handlers that are stopped by a limit."""

from __future__ import annotations

import os
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from system import Daemon, Message, System

START = "[DEFAULT]\nworkers = 0\n[{type}]\nworkers = 1\nfile = {file}\n"
OWN_USER = {"user": "daemon"} if os.geteuid() == 0 else {}  # the carrier weighs processes of other users, too


def start(system: System, type: str, more: str) -> Daemon:
    return system.workerpool(system.config(START.format(type=type, file=notes(system)) + more, **OWN_USER), ready=1)


def notes(system: System) -> Path:
    return system.open_directory / "notes"


def noted(system: System, what: str) -> list[tuple[str, int, int, float]]:
    """Id, attempt, pid and time of what was noted so far."""
    lines = [line.split() for line in notes(system).read_text().splitlines()]
    if lines and len(lines[0]) == 5 and lines[0][0] in ("start", "end") and "." in lines[0][3]:  # the plugin record
        lines = [[word, id, attempt, pid, moment] for word, id, attempt, moment, pid in lines]
    return [(id, int(attempt), int(pid), float(moment)) for word, id, attempt, pid, moment in lines if word == what]


def ask(system: System, type: str, *bodies: str) -> list[Message]:
    """Publish and collect the results, in the order of `bodies`."""
    system.publish_all(f"worker_{type}", [(body, {"message_id": f"id{n}"}) for n, body in enumerate(bodies)])
    found = {message.properties.correlation_id: message for message in system.collect("results", len(bodies))}
    return [found[f"id{n}"] for n in range(len(bodies))]


class TestMaxTasks:
    def test_a_process_has_so_many_and_its_successor_goes_on_without_loss_doubles_or_crowding(
        self, system: System
    ) -> None:
        pool = start(system, "record", "max_tasks = 7\nseconds = 0.02\n")

        results = ask(system, "record", *["x"] * 60)

        starts, ends = noted(system, "start"), noted(system, "end")
        assert Counter((id, attempt) for id, attempt, *_ in starts) == Counter((f"id{n}", 1) for n in range(60))
        assert {result.headers["status"] for result in results} == {"succeeded"}
        per_process = Counter(pid for *_, pid, _ in starts)
        assert sorted(per_process.values(), reverse=True)[:-1] == [7] * (len(per_process) - 1)
        assert len(per_process) == 9
        for (*_, ended), (*_, began) in zip(ends, starts[1:], strict=False):
            assert ended <= began  # one process of the group works at a time, as `workers = 1` says
        gaps = [after[3] - before[3] for before, after in pairwise(starts) if before[2] != after[2]]
        print("from one process to the next", [f"{gap - 0.02:.3f}" for gap in gaps], "s")
        # Its start alone takes about as long, and longer on a busy machine; a pause before it would be in all of them.
        assert sorted(gaps)[1] < 0.2
        pool.stop()
        assert pool.log.count("is recycled: max_tasks = 7") >= 8
        assert not re.search(r"died|failing|WARNING taskqueue\.\S+: worker process", pool.log)

    def test_it_may_be_one(self, system: System) -> None:
        pool = start(system, "threads", "max_tasks = 1\n")

        results = ask(system, "threads", *["wait 0"] * 6)

        assert len({result.value["pid"] for result in results}) == 6
        pool.stop()
        assert len(noted(system, "teardown")) >= 6
        assert "died" not in pool.log

    def test_in_threads_what_runs_is_finished_first_while_the_successor_works(self, system: System) -> None:
        pool = start(system, "threads", "max_tasks = 4\nthreads = 2\n")

        results = ask(system, "threads", "wait 4", *["wait 0.1"] * 9)

        assert Counter(attempt for _, attempt, *_ in noted(system, "start")) == {1: 10}
        assert max(Counter(result.value["pid"] for result in results).values()) == 4
        assert [id for id, *_ in noted(system, "end")][-1] == "id0"
        pool.stop()
        assert "died" not in pool.log

    def test_one_that_does_not_end_is_killed_and_holds_up_nobody_for_long(self, system: System) -> None:
        pool = start(system, "unruly", "max_tasks = 1\nstop_timeout = 1\n")

        results = ask(system, "unruly", "threads x", "attempt x", "attempt x")

        assert [result.headers["status"] for result in results] == ["succeeded"] * 3
        assert [result.value for result in results[1:]] == [1, 1]
        pool.stop()


class TestMaxMemory:
    def test_a_process_that_has_grown_is_replaced_between_two_workitems(self, system: System) -> None:
        pool = start(system, "memory", "max_memory = 200M\n")

        results = ask(system, "memory", *["keep 100"] * 6)

        pids = [result.value for result in results]
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]
        assert {result.headers["attempt"] for result in results} == {1}
        pool.stop()
        assert len(pool.logged(r"is recycled: its memory of 2\d\d\.?\d* MiB exceeds max_memory \(200 MiB\)")) >= 2
        assert "died" not in pool.log


class TestMemoryLimit:
    def test_what_runs_in_a_process_beyond_it_crashes_with_that_reason(self, system: System) -> None:
        pool = start(system, "memory", "memory_limit = 200M\nmax_crashes = 2\n")

        grown, child, failed = ask(system, "memory", "grow 300", "child 300", "error 1")

        reason = r"memory limit of 200 MiB exceeded: [23]\d\d\.?\d* MiB"
        assert re.fullmatch(f"worker process crashed: {reason}", grown.headers["error"])
        assert (grown.headers["attempt"], child.headers["status"]) == (2, "succeeded")
        assert failed.headers["error"] == "MemoryError: too little of it"
        letters = {letter.properties.message_id: letter.headers for letter in system.dead_letters(2)}
        assert (letters["id0"]["reason"], letters["id0"]["crashes"]) == ("crashed", 2)
        assert re.fullmatch(reason, letters["id0"]["detail"])
        assert (letters["id2"]["reason"], letters["id2"]["crashes"]) == ("failed", 0)
        pool.stop()

    def test_what_those_before_it_left_behind_is_not_blamed_on_one(self, system: System) -> None:
        pool = start(system, "memory", "memory_limit = 50M\n")

        results = ask(system, "memory", *["keep 4"] * 12, "child 1")  # each of them is quick, but for the last

        assert {(result.headers["status"], result.headers["attempt"]) for result in results} == {("succeeded", 1)}
        assert results[0].value != results[-1].value
        pool.stop()
        assert re.search(r"is recycled: its memory of 5\d\.?\d* MiB exceeds memory_limit \(50 MiB\)", pool.log)
        assert "died" not in pool.log


class TestSoftTimeLimit:
    @pytest.mark.parametrize(
        ("type", "more", "verb"),
        [("threads", "", "naps"), ("threads", "threads = 3\n", "naps"), ("loop", "concurrency = 3\n", "wait")],
        ids=["one", "threads", "loop"],
    )
    def test_it_is_an_exception_in_the_handler_which_can_clean_up_and_has_failed(
        self, system: System, type: str, more: str, verb: str
    ) -> None:
        pool = start(system, type, f"{more}soft_time_limit = 0.5\ntime_limit = 50\nretries = 1\nretry_delay = 0.1\n")

        late, quick = ask(system, type, f"{verb} 600", "wait 0")

        expected = "taskqueue.errors.SoftTimeLimitExceeded: ran longer than soft_time_limit of 0.5 s"
        assert (late.headers["error"], late.headers["attempt"]) == (expected, 2)
        assert "Traceback" in late.headers["traceback"]
        assert [(id, attempt) for id, attempt, *_ in noted(system, "cleaned-up")] == [("id0", 1), ("id0", 2)]
        (letter,) = system.dead_letters(1)
        assert (letter.headers["reason"], letter.headers["crashes"]) == ("failed", 0)
        assert quick.headers["status"] == "succeeded"
        pool.stop()
        assert len(noted(system, "setup")) == 1 and "died" not in pool.log

    def test_a_sleep_is_interrupted_and_one_that_ends_in_good_order_has_not_failed(self, system: System) -> None:
        pool = start(system, "threads", "soft_time_limit = 0.5\n")

        results = ask(system, "threads", "wait 600", "swallow 600", *["wait 0"] * 20)

        assert "SoftTimeLimitExceeded" in results[0].headers["error"]
        assert {result.headers["status"] for result in results[1:]} == {"succeeded"}
        pool.stop()
        assert "died" not in pool.log
