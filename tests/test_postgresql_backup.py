"""A backup of PostgreSQL that is taken during work: what is in it, and what runs again after it has been restored."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from arena import handled
from databases import PostgreSQL
from installations import Installation
from system import Daemon, until
from system_postgresql import PostgreSQLSystem

from taskqueue.broker import connect
from taskqueue.workitem import Workitem

COUNT = 300
CONFIG = "[DEFAULT]\nworkers = 0\n[record]\nworkers = 4\nseconds = {seconds}\nfile = {file}\n"


def start(system: PostgreSQLSystem, seconds: float) -> Daemon:
    file = system.open_directory / "record"
    file.touch()
    file.chmod(0o666)
    return system.workerpool(system.config(CONFIG.format(file=file, seconds=seconds)), ready=4)


def ids(system: PostgreSQLSystem, query: str) -> list[str]:
    return [str(id) for (id,) in system.rows(f"SELECT id FROM taskqueue.{query}")]


def send(system: PostgreSQLSystem, accepted: list[str], enough: threading.Event) -> None:
    """Send more than is done, some of them delayed, until it is enough."""
    producer = connect(system.url).producer()
    number = 0
    while not enough.wait(0.002):
        delayed = {"due": 4e9} if number % 10 == 0 else {}  # long after this test
        workitem = Workitem(body=b"x", id=f"item{number}", type="record", **delayed)  # type: ignore[arg-type]
        accepted += producer.send([workitem])
        number += 1
    producer.close()


def test_what_was_not_over_runs_again_and_what_was_does_not(
    start_postgresql: Callable[..., PostgreSQL], installation: Installation
) -> None:
    server = start_postgresql()
    with PostgreSQLSystem(installation, server) as before:
        pool = start(before, 0.05)
        accepted: list[str] = []
        enough = threading.Event()
        sending = threading.Thread(target=send, args=(before, accepted, enough))
        sending.start()
        try:
            until(lambda: len(ids(before, "history")) > COUNT, "some work done")
            early = list(accepted)
            backup = server.back_up(before.database)
            late = len(accepted)
            until(lambda: len(accepted) > late + COUNT, "some sent that is not in the backup")
        finally:
            enough.set()
            sending.join()
        pool.stop()

    with PostgreSQLSystem(installation, server, server.restore(backup)) as after:
        over, not_over = ids(after, "history"), ids(after, "workitems WHERE queue = 'worker_record'")
        lent = ids(after, "workitems WHERE queue = 'worker_record' AND carrier IS NOT NULL")
        delayed = ids(after, "workitems WHERE queue = 'worker_record' AND state = 1")
        results = after.depth("results")
        assert lent and delayed
        assert Counter(over + not_over).most_common(1)[0][1] == 1
        assert set(early) <= set(over + not_over) < set(accepted)
        assert results == len(over)

        pool = start(after, 0.0)
        producer = connect(after.url).producer()
        producer.send([Workitem(body=b"x", id="new", type="record")])
        producer.close()
        again = {*not_over, "new"} - set(delayed)
        until(lambda: len(ids(after, "history")) >= len(over) + len(again), "the end of all that was not over")
        pool.stop()

        assert Counter(ids(after, "history")) == Counter([*over, *again])
        assert Counter(one.id for one in handled(after.open_directory / "record")) == Counter(again)
        assert after.depth("results") == results + len(again)
        assert set(ids(after, "workitems WHERE state = 1")) == set(delayed)
        assert after.rows("SELECT id FROM taskqueue.carriers") == []
