"""Long tasks are normal (promise 5): a heartbeat of 2 s, and handlers that run for 15 s in three ways."""

from __future__ import annotations

from collections import Counter

from system import PATIENCE, System

SECONDS = 15


def test_long_tasks_run_once_and_the_connection_is_kept(system: System) -> None:
    file = system.open_directory / "long"
    text = f"[DEFAULT]\nworkers = 0\n[long]\nworkers = 3\nfile = {file}\n[amqp]\nheartbeat = 2\n"
    pool = system.workerpool(system.config(text), ready=3)

    system.publish_all(
        "worker_long", [(f"{way} {SECONDS}", {"message_id": way}) for way in ("sleep", "compute", "lock")]
    )
    results = system.collect("results", 3, timeout=1.8 * PATIENCE)

    assert {result.properties.correlation_id for result in results} == {"sleep", "compute", "lock"}
    for result in results:
        print(result.value)
        assert result.value["attempt"] == 1
        # The one that holds the lock is calibrated, on a machine that others use as well.
        assert result.value["seconds"] > (SECONDS if result.value["way"] != "lock" else SECONDS / 2)
    starts = Counter(line.split()[1] for line in file.read_text().splitlines())
    assert starts == {"sleep": 1, "compute": 1, "lock": 1}
    pool.stop()
    assert "lost" not in pool.log and pool.log.count("connected to") == 1
    assert (system.depth("worker_long"), system.depth("results")) == (0, 0)
