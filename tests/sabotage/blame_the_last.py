"""Promise 3: a crash is blamed on what was handed over last."""

TEST = "tests/test_system_outcomes.py::test_one_workitem_that_crashes_among_many_is_blamed_alone"


def apply() -> None:
    from taskqueue.carrier.worker_process import WorkerProcess

    WorkerProcess.started = lambda self: max(self._handed, default=0)
