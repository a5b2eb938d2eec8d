"""Nothing is raised in a handler that runs too long."""

from __future__ import annotations

from taskqueue.process import limits, looping, running

FAILS = (
    "test_system_recycling.py::TestSoftTimeLimit::"
    "test_a_sleep_is_interrupted_and_one_that_ends_in_good_order_has_not_failed",
    "test_system_recycling.py::TestSoftTimeLimit::"
    "test_it_is_an_exception_in_the_handler_which_can_clean_up_and_has_failed[loop]",
)

running.by_alarm = lambda handle, seconds: handle
limits._raise_in = lambda thread, error: None
call_async = looping.call_async
looping.call_async = lambda handle, workitem, max_result, limit, known: call_async(
    handle, workitem, max_result, None, known
)
