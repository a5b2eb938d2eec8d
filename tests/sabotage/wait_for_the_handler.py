"""Promise 5 broken: the carrier waits while a handler runs, as one with a connection in the handler's process would."""

from __future__ import annotations

import time

from taskqueue.carrier.worker_process import WorkerProcess

FAILS = ("test_system_long.py::test_long_tasks_run_once_and_the_connection_is_kept",)


hand_over = WorkerProcess.hand_over


def wait(self: WorkerProcess, deliveries: object) -> None:
    hand_over(self, deliveries)
    time.sleep(12)


WorkerProcess.hand_over = wait
