"""Promise 3 broken: of several that ran in a process that died, one alone is blamed."""

from __future__ import annotations

from taskqueue.carrier.worker_process import WorkerProcess

FAILS = (
    "test_worker_slots.py::TestSeveralAtOnce::test_all_that_ran_are_blamed_and_what_was_not_started_is_not",
    "test_worker_slots.py::TestSeveralAtOnce::test_memory_beyond_the_limit_may_be_the_fault_of_any",
)

started = WorkerProcess.started
WorkerProcess.started = lambda self: set(sorted(started(self))[:1])
