"""Several workitems at once in one worker process: in threads, and in an event loop."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from system import Daemon, Message, System, alive, title, until

WAYS = {"threads": "threads", "loop": "concurrency"}


def start(system: System, type: str, more: str = "", *, count: int = 4, workers: int = 1, **options: str) -> Daemon:
    text = f"[DEFAULT]\nworkers = 0\n[{type}]\nworkers = {workers}\n{WAYS[type]} = {count}\nfile = {notes(system)}\n"
    return system.workerpool(system.config(text + more, **options), ready=workers)


def notes(system: System) -> Path:
    return system.open_directory / "notes"


def noted(system: System, what: str) -> list[tuple[str, int, int, float]]:
    """Id, attempt, pid and time of what was noted so far."""
    lines = notes(system).read_text().splitlines() if notes(system).exists() else []
    found = [re.fullmatch(rf"{what} (\S+) (\d+) (\d+) (\S+)", line) for line in lines]
    return [(match[1], int(match[2]), int(match[3]), float(match[4])) for match in found if match]


def publish(system: System, type: str, *bodies: str) -> None:
    system.publish_all(f"worker_{type}", [(body, {"message_id": f"id{n}"}) for n, body in enumerate(bodies)])


def results(system: System, count: int) -> dict[str, Message]:
    found = {message.properties.correlation_id: message for message in system.collect("results", count)}
    assert len(found) == count
    return found


def most_at_once(system: System) -> int:
    """How many ran at a time."""
    steps = [(moment, 1) for *_, moment in noted(system, "start")] + [
        (moment, -1) for *_, moment in noted(system, "end")
    ]
    now = most = 0
    for _, step in sorted(steps):
        now += step
        most = max(most, now)
    return most


@pytest.mark.parametrize("type", WAYS)
def test_as_many_run_at_once_as_the_group_says_and_each_sees_its_own_workitem(system: System, type: str) -> None:
    pool = start(system, type, count=5)
    publish(system, type, *["wait 0.3"] * 20)

    found = results(system, 20)

    (process,) = pool.ready()
    for id, result in found.items():
        assert (result.value["id"], result.value["pid"], result.headers["status"]) == (id, process, "succeeded")
    assert most_at_once(system) == 5
    threads = {result.value["thread"] for result in found.values()}
    assert len(threads) == (5 if type == "threads" else 1)
    pool.stop()
    assert len(noted(system, "setup")) == len(noted(system, "teardown")) == 1
    assert Counter(id for id, *_ in noted(system, "start")) == Counter(list(found))


@pytest.mark.parametrize("type", WAYS)
def test_a_short_one_is_not_kept_waiting_by_long_ones(system: System, type: str) -> None:
    pool = start(system, type, count=3)
    publish(system, type, "wait 600", "wait 600", "wait 0", "wait 0", "wait 0")

    found = results(system, 3)

    assert found.keys() == {"id2", "id3", "id4"}
    assert re.search("running 2 of 3", title(pool.ready()[0]))
    pool.signal(signal.SIGTERM)
    pool.logged("stopping")
    pool.stop()
    assert system.depth(f"worker_{type}") == 2


@pytest.mark.parametrize("type", WAYS)
def test_a_stop_waits_for_all_that_run_and_gives_the_rest_back(system: System, type: str) -> None:
    pool = start(system, type, count=3)
    publish(system, type, *["wait 1"] * 8)
    until(lambda: len(noted(system, "start")) >= 3)

    pool.stop()

    ended = len(noted(system, "end"))
    assert len(noted(system, "start")) == ended == 3
    assert (system.depth("results"), system.depth(f"worker_{type}")) == (ended, 8 - ended)
    assert "died" not in pool.log


@pytest.mark.parametrize(("type", "verb"), [("threads", "wait"), ("loop", "wait"), ("loop", "block")])
def test_a_time_limit_is_the_end_of_one_and_costs_the_others_nothing(system: System, type: str, verb: str) -> None:
    pool = start(system, type, "time_limit = 2\n", count=3)
    publish(system, type, f"{verb} 600")
    until(lambda: noted(system, "start"))
    (_, _, process, since), *_ = noted(system, "start")
    until(lambda: time.monotonic() > since + 1)
    system.publish_all(f"worker_{type}", [("wait 1.5", {"message_id": f"other{n}"}) for n in range(2)])

    found = results(system, 3)

    assert "time limit of 2 s" in found["id0"].headers["error"]
    assert {(m.headers["status"], m.headers["attempt"]) for id, m in found.items() if id != "id0"} == {("succeeded", 1)}
    (letter,) = system.dead_letters(1)
    assert (letter.headers["reason"], letter.properties.message_id) == ("timed out", "id0")
    until(lambda: not alive(process))
    began = Counter(id for id, *_ in noted(system, "start"))
    assert began == {"id0": 1, **({"other0": 2, "other1": 2} if verb == "wait" else {"other0": 1, "other1": 1})}
    if verb == "wait":
        assert len(re.findall(r"while it ran workitem other\d \(attempt 1\): Release", pool.log)) == 2
    pool.stop()


def test_a_crash_is_blamed_on_all_that_ran_until_each_has_run_alone(system: System) -> None:
    """Only the guilty one is given up, although it is there whenever its neighbours are tried again."""
    pool = start(system, "threads", "max_crashes = 2\ncrowd = 4\n", count=4)
    publish(system, "threads", "wait 1", "wait 1", "kill x", "wait 1", "wait 0", "wait 0")

    found = results(system, 6)

    (letter,) = system.dead_letters(1)
    assert (letter.properties.message_id, letter.headers["crashes"]) == ("id2", 2)
    assert found["id2"].headers["error"] == "worker process crashed: SIGKILL"
    attempts = {id: message.headers["attempt"] for id, message in found.items()}
    assert attempts == {"id0": 2, "id1": 2, "id2": 2, "id3": 2, "id4": 1, "id5": 1}
    assert {message.headers["status"] for id, message in found.items() if id != "id2"} == {"succeeded"}
    pool.stop()


@pytest.mark.parametrize(("type", "body"), [("threads", "lock 3"), ("loop", "block 3")])
def test_what_a_busy_process_does_not_start_goes_to_another_one(system: System, type: str, body: str) -> None:
    pool = start(system, type, count=8, workers=2)
    publish(system, type, body)
    until(lambda: noted(system, "start"))
    system.publish_all(f"worker_{type}", [("wait 0", {"message_id": f"other{n}"}) for n in range(6)])

    found = results(system, 6)  # before the long one

    assert "id0" not in found
    assert {message.headers["attempt"] for message in found.values()} == {1}
    assert results(system, 1).keys() == {"id0"}
    assert max(Counter(id for id, *_ in noted(system, "start")).values()) == 1
    pool.stop()
    assert "died" not in pool.log


def test_what_handlers_in_a_loop_raise_is_theirs_alone(system: System) -> None:
    pool = start(system, "loop", count=4)
    publish(system, "loop", "wait 0.5", "fail on purpose", "exit 3", "wait 0.5")

    found = results(system, 4)

    assert found["id1"].headers["error"] == "ValueError: on purpose"
    assert found["id2"].headers["error"] == "SystemExit: 3"
    assert {found[id].headers["status"] for id in ("id0", "id3")} == {"succeeded"}
    pool.stop()
    assert "died" not in pool.log


def test_a_group_whose_options_do_not_fit_its_plugin_is_an_error_of_that_group_alone(system: System) -> None:
    config = system.config(
        "[DEFAULT]\nworkers = 0\n[loop]\nworkers = 1\nthreads = 4\n[threads]\nworkers = 1\nconcurrency = 5\n"
        "[older-loop]\nworkers = 1\n[echo]\nworkers = 1\n"
    )
    pool = system.workerpool(config)

    pool.logged("group loop does not load: PluginError: threads = 4: .* `async def`.*; expected concurrency = 4")
    pool.logged("group threads does not load: PluginError: concurrency = 5: .*; expected threads = 5")
    pool.logged("group older-loop does not load: PluginError: handle_task.*, the older form, can't be an `async def`")
    system.publish("worker_echo", "fine", message_id="fine")

    assert results(system, 1).keys() == {"fine"}
    pool.stop()
    assert "Traceback" not in pool.log
