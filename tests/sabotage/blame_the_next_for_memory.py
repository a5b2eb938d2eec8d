"""A process that one workitem left too large is used on: the next one is blamed for it."""

from __future__ import annotations

from taskqueue.carrier.limits import Limits

FAILS = ("test_system_recycling.py::TestMemoryLimit::test_what_those_before_it_left_behind_is_not_blamed_on_one",)

Limits.weigh = lambda self: None
