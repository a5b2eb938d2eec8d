"""What `ps` shows of each process."""

from __future__ import annotations

import re

from system import System, title, until


def test_each_process_says_what_it_is_and_does(system: System) -> None:
    config = system.config(
        "[DEFAULT]\nworkers = 0\n[sleep]\nworkers = one, two\n[sleep_one]\nworkers = 1\n[sleep_two]\nworkers = 0\n"
        f"[threads]\nworkers = 1\nthreads = 3\nfile = {system.open_directory / 'notes'}\nsecret = sesame-open\n"
    )
    pool, dispatcher = system.workerpool(config, ready=2), system.dispatcher(config)
    (sleep,), (threads,), (carrier,) = pool.ready("sleep_one"), pool.ready("threads"), pool.carriers

    def shows(pid: int, pattern: str) -> bool:
        return (
            until(lambda: re.fullmatch(f"taskqueue: {pattern}", title(pid)), f"{pattern} in {title(pid)}") is not None
        )

    assert shows(sleep, r"worker sleep \[one\] idle") and shows(threads, "worker threads idle")
    assert shows(pool.pid, "workerpool, 2 of 2 worker processes ready")
    assert shows(carrier, "carrier, 0 workitems held, 0 of them in 2 worker processes")
    assert shows(dispatcher.pid, "dispatcher, 0 messages passed on")
    system.publish("taskqueue", "sleep 7", message_id="a\nb" + "c" * 200)
    system.publish("taskqueue", "threads wait 7", "threads wait 7")
    assert shows(sleep, r"worker sleep \[one\] running a\\nbc{76}, attempt 1")
    assert shows(threads, "worker threads running 2 of 3")
    assert shows(carrier, "carrier, 3 workitems held, 3 of them in 2 worker processes")
    assert shows(dispatcher.pid, "dispatcher, 3 messages passed on")
    system.collect("results", 3)
    assert shows(sleep, r"worker sleep \[one\] idle") and shows(threads, "worker threads idle")
    pool.stop()
    dispatcher.stop()
