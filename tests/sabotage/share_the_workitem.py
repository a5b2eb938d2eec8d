"""Handlers that run at once see the workitem that was started last, whosever it is."""

from __future__ import annotations

from taskqueue import worker
from taskqueue.process import running
from taskqueue.worker import CurrentWorkitem

FAILS = (
    "test_system_several.py::test_as_many_run_at_once_as_the_group_says_and_each_sees_its_own_workitem[threads]",
    "test_system_several.py::test_as_many_run_at_once_as_the_group_says_and_each_sees_its_own_workitem[loop]",
)


class Shared:
    """One for all."""

    latest: CurrentWorkitem | None = None

    def set(self, workitem: CurrentWorkitem) -> None:
        self.latest = workitem

    def get(self) -> CurrentWorkitem | None:
        return self.latest


running.handled_here = worker.handled_here = Shared()
