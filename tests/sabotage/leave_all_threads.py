"""Promise 2 broken in programs: where one task takes too long, all that runs in the program's threads is left alone."""

from __future__ import annotations

from taskqueue.config.values import Group

FAILS = (
    "test_client_limits.py::test_threads_that_are_left_alone_disturb_no_others[memory]",
    "test_leaving.py::test_it_ends_alone_whatever_its_handler_says_then",
)

Group.can_be_killed = True
