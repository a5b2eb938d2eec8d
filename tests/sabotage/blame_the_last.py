"""Promise 3 broken: a crash is blamed on what was handed over last."""

from __future__ import annotations

from taskqueue.carrier.worker_process import WorkerProcess

FAILS = (
    "test_worker_process.py::TestWorkerProcess::test_the_one_that_was_started_is_blamed_alone",
    "test_worker_process.py::TestWorkerProcess::test_what_was_handed_over_and_not_started_is_not_blamed",
)

WorkerProcess.started = lambda self: {max(self._handed)} if self._handed else set()
