"""Promise 3 broken: a time limit of one workitem is counted for all that ran in its process."""

from __future__ import annotations

from taskqueue.carrier.worker_process import WorkerProcess

FAILS = (
    "test_worker_slots.py::TestSeveralAtOnce::test_a_time_limit_is_that_of_one_and_the_others_are_released",
    "test_system_several.py::test_a_time_limit_is_the_end_of_one_and_costs_the_others_nothing[threads-wait]",
)

condemn = WorkerProcess.condemn
WorkerProcess.condemn = lambda self, verdicts: condemn(
    self, dict.fromkeys(self._handed, next(iter(verdicts.values()))) if verdicts else verdicts
)
