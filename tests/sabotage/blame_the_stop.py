"""Promise 3 broken: what a stop does not wait for any longer counts as having taken its worker process down."""

from __future__ import annotations

from taskqueue.carrier.worker_process import WorkerProcess

FAILS = (
    "test_running.py::TestOverEveryBroker::"
    "test_what_does_not_finish_in_time_runs_again_and_its_late_answer_counts_nothing[memory-processes]",
    "test_running.py::TestOverEveryBroker::"
    "test_what_does_not_finish_in_time_runs_again_and_its_late_answer_counts_nothing[memory-threads]",
)

WorkerProcess.condemn = lambda self, verdicts: None
