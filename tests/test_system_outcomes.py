"""What becomes of workitems whose handlers fail, wait, crash, hang and misbehave; all over a real system."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

from system import Daemon, System, alive, until

UNRULY = """\
[DEFAULT]
workers = 0
retry_delay = 0.3

[unruly]
workers = 2
stop_timeout = 20
max_crashes = {max_crashes}
file = {file}
"""


def start(system: System, more: str = "", *, workers: int = 2, max_crashes: int = 1, **options: object) -> Daemon:
    """Worker processes of type unruly; the queue is made by the manager, no dispatcher runs."""
    text = UNRULY.format(file=notes(system), max_crashes=max_crashes).replace("workers = 2", f"workers = {workers}")
    return system.workerpool(system.config(text + more, **options), ready=workers)


def notes(system: System) -> Path:
    return system.open_directory / "notes"


def ask(system: System, *bodies: str, **properties: Any) -> list[Any]:
    """Publish to unruly and collect the results, in the order of `bodies`."""
    messages = [(body, {**properties, "message_id": f"id{n}"}) for n, body in enumerate(bodies)]
    system.publish_all("worker_unruly", messages)
    results = {message.properties.correlation_id: message for message in system.collect("results", len(bodies))}
    return [results[f"id{n}"] for n in range(len(bodies))]


def test_failures_come_back_with_traceback_and_become_dead_letters(system: System) -> None:
    pool = start(system)
    bodies = {
        "fail on purpose": "ValueError: on purpose",
        "exit 0": "SystemExit: 0",
        "odd_result object": "can't be sent",
        "odd_result set": "can't be sent",
        "odd_result nan": "can't be sent",
        "odd_result key": "can't be sent",
        "long_result 3000000": "3000000 bytes, more than max_body (2097152)",
        "long_error 40000000": "ValueError: xxxxx",
        "retry_wrongly inf": "is no number of seconds to wait",
        "retry_wrongly soon": "could not convert string to float",
    }
    pool.stop()
    pool = start(system, max_body="2M")

    results = ask(system, *bodies)

    for result, (body, expected) in zip(results, bodies.items(), strict=True):
        assert (result.headers["status"], result.body) == ("failed", b"null"), body
        assert expected in result.headers["error"], body
        assert "Traceback" in result.headers["traceback"] or body.startswith("long_error"), body
    dead = {message.properties.message_id: message for message in system.dead_letters(len(bodies))}
    for number, body in enumerate(bodies):
        letter = dead[f"id{number}"]
        assert letter.body == body.encode()
        assert (letter.headers["reason"], letter.headers["attempts"], letter.headers["crashes"]) == ("failed", 1, 0)
        assert letter.headers["from"] == "worker_unruly"
    pool.stop()
    assert "died" not in pool.log


def test_handlers_may_print_log_fork_and_ignore_signals(system: System) -> None:
    pool = start(system, workers=1)

    said, logged, forked, failed, ignored, rejected, oddly, echoed = ask(
        system, "say hello", "log a line of mine", "fork_and_return x", "fork_and_fail x", "signals x",
        "reject never works", "reject_oddly 5", "echo done",
    )  # fmt: skip

    (process,) = pool.ready("unruly")
    assert (said.body, logged.body, forked.value, failed.value) == (b"said", b"logged", process, 1)
    assert (ignored.body, echoed.body) == (b"ignored", b"done")
    assert "rejected: never works" in rejected.headers["error"]
    assert "rejected: 5" in oddly.headers["error"]
    letters = system.dead_letters(2)
    assert {(m.headers["reason"], m.headers["detail"]) for m in letters} == {
        ("rejected", "never works"),
        ("rejected", "5"),
    }
    pool.stop()
    assert f"WARNING worker.unruly: {process} unruly: a line of mine" in pool.log
    assert "hello" in pool.log
    assert system.depth("results") == 0


def test_a_thread_that_never_ends_holds_up_no_stop_for_ever(system: System) -> None:
    pool = start(system, workers=1, max_crashes=1)
    (threads,) = ask(system, "threads x")
    assert threads.value >= 2
    (process,) = pool.ready("unruly")

    pool.stop()

    assert not alive(process)


def test_retries_wait_in_the_broker_and_then_succeed_or_fail(system: System) -> None:
    pool = start(system, "retries = 2\n")

    slow, failed, asked = ask(system, "fail_until 3", "fail for ever", "retry 0.5")

    assert (slow.value, slow.headers["attempt"]) == (3, 3)
    assert (failed.headers["error"], failed.headers["attempt"]) == ("ValueError: for ever", 3)
    assert asked.value == 2
    times = [float(line.split()[2]) for line in notes(system).read_text().splitlines()]
    assert times[1] - times[0] >= 0.15 and times[2] - times[1] >= 0.3  # half of retry_delay, and of its double
    (letter,) = system.dead_letters(1)
    assert (letter.headers["reason"], letter.headers["attempts"]) == ("failed", 3)
    assert "ValueError: for ever" in letter.headers["traceback"]
    pool.stop()


def test_a_failed_ruote_workitem_comes_back_whole(system: System) -> None:
    pool = start(system)
    dispatcher = system.dispatcher(system.directory / "config.ini")
    # The worker gets the whole object, and can do nothing with it.
    ruote = {"fei": {"wfid": "4711"}, "fields": {"n": 1, "params": {"worker_type": "unruly"}}}

    system.publish("taskqueue", json.dumps(ruote), content_type="application/json")
    (result,) = system.collect("results", 1)

    value = result.value
    assert result.headers["status"] == "failed"
    assert "AttributeError" in value.pop("error")
    assert "Traceback" in value.pop("trace")
    assert value == ruote
    pool.stop()
    dispatcher.stop()


def test_a_time_limit_ends_the_handler_and_its_children(system: System) -> None:
    pool = start(system, "time_limit = 1\n", workers=2)

    results = ask(system, "grandchild x", "leave_group x", "echo quick")

    pids = [int(word) for line in notes(system).read_text().splitlines() for word in line.split()]
    assert len(pids) == 3
    until(lambda: not any(map(alive, pids)), f"the end of {pids}")
    assert "timed out: time limit of 1 s" in results[0].headers["error"]
    assert "timed out: time limit of 1 s" in results[1].headers["error"]
    assert results[2].body == b"quick"
    for letter in system.dead_letters(2):
        assert (letter.headers["reason"], letter.headers["attempts"]) == ("timed out", 1)
        assert letter.headers["crashes"] == 0
    pool.wait_ready(2)
    pool.stop()


def test_a_workitem_that_timed_out_is_tried_again_where_retries_are_left(system: System) -> None:
    pool = start(system, "time_limit = 0.5\nretries = 1\n", workers=1)

    (result,) = ask(system, "grandchild x")

    assert result.headers["attempt"] == 2
    assert "timed out" in result.headers["error"]
    (letter,) = system.dead_letters(1)
    assert (letter.headers["reason"], letter.headers["attempts"]) == ("timed out", 2)
    pool.stop()


def test_processes_that_go_mute_or_speak_nonsense_are_replaced_and_nothing_is_lost(system: System) -> None:
    pool = start(system)
    bodies = ["close_all 600", "garbage 1", "garbage 2"]
    bodies += [f"lie {about}" for about in ("number", "kind", "answer", "time", "priority", "queue")]

    results = ask(system, *bodies, "echo fine", "close_all 0")

    assert results[-2].body == b"fine"
    assert results[-1].headers["status"] == "succeeded"  # it could not say so any more, and had written it down
    for result, body in zip(results, bodies, strict=False):
        assert "worker process crashed" in result.headers["error"], body
    letters = {letter.body.decode(): letter for letter in system.dead_letters(len(bodies))}
    assert letters.keys() == set(bodies)
    for letter in letters.values():
        assert (letter.headers["reason"], letter.headers["crashes"]) == ("crashed", 1)
    assert len(pool.logged(r"carrier (\d+) started")) == 1  # it has survived all of it
    pool.stop()


def test_the_older_form(system: System) -> None:
    config = system.config("[DEFAULT]\nworkers = 0\n[worker1]\nworkers = 2\n")
    pool = system.workerpool(config, ready=2)
    bodies = ["publish a text", "value", "reject it", "silent one"]

    system.publish_all("worker_worker1", [(body, {"message_id": body}) for body in bodies])
    results = {message.properties.correlation_id: message for message in system.collect("results", 4)}

    assert results["publish a text"].body == b"a text"
    assert "status" not in results["publish a text"].headers  # its own message, and no other
    assert results["value"].body == b"VALUE"
    assert results["value"].headers["status"] == "succeeded"
    assert "rejected" in results["reject it"].headers["error"]
    assert "without having acknowledged" in results["silent one"].headers["error"]
    reasons = {letter.body: letter.headers["reason"] for letter in system.dead_letters(2)}
    assert reasons == {b"reject it": "rejected", b"silent one": "failed"}
    pool.stop()
    assert (system.depth("results"), system.depth("taskqueue.dead")) == (0, 0)


def test_one_workitem_that_crashes_among_many_is_blamed_alone(system: System) -> None:
    seed = random.randrange(1 << 30)
    place = random.Random(seed).randrange(501)
    print("seed", seed, "place", place)
    pool = start(system, "prefetch = 100\n", max_crashes=3)
    ask(system, *["echo warm"] * 100)  # the run time is known now: many are handed over at a time
    bodies = [(f"echo {n}", {"message_id": f"good{n}"}) for n in range(500)]
    bodies.insert(place, ("segfault x", {"message_id": "bad"}))

    system.publish_all("worker_unruly", bodies)
    results = system.collect("results", 501)

    (letter,) = system.dead_letters(1)
    assert letter.properties.message_id == "bad"
    assert (letter.headers["reason"], letter.headers["detail"]) == ("crashed", "SIGSEGV")
    assert (letter.headers["attempts"], letter.headers["crashes"]) == (3, 3)
    failed = [result for result in results if result.headers["status"] != "succeeded"]
    assert [result.properties.correlation_id for result in failed] == ["bad"]
    assert all(result.headers["attempt"] == 1 for result in results if result not in failed)
    assert len({result.properties.correlation_id for result in results}) == 501
    pool.wait_ready(2)
    pool.stop()
    assert pool.log.count("died: SIGSEGV") == 3
    assert (system.depth("results"), system.depth("worker_unruly")) == (0, 0)


def test_a_dead_process_is_replaced_soon(system: System) -> None:
    pool = start(system, workers=1)
    before = pool.ready()

    killed = time.monotonic()
    system.publish("worker_unruly", "segfault x")
    until(lambda: pool.workers and pool.workers != before, timeout=5.0)
    started = time.monotonic() - killed
    pool.logged("is ready", count=2, timeout=5.0)
    print(f"published to replaced {started:.3f} s, to ready {time.monotonic() - killed:.3f} s")

    stamps = re.findall(r"\S+ (\d+):(\d+):([\d,]+) .*?(died: SIGSEGV|is ready)", pool.log)
    seconds = [int(h) * 3600 + int(m) * 60 + float(s.replace(",", ".")) for h, m, s, _ in stamps]
    print(f"from death to ready {(seconds[2] - seconds[1]) % 86400:.3f} s")
    assert [what for *_, what in stamps] == ["is ready", "died: SIGSEGV", "is ready"]
    assert (seconds[2] - seconds[1]) % 86400 < 2
    pool.signal(signal.SIGTERM)
    assert pool.wait() == 0
