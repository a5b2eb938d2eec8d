"""Promise 8 broken: a carrier that does not answer is waited for."""

from __future__ import annotations

from taskqueue.workerpool.carrier_end import CarrierEnd

FAILS = ("test_system_reload.py::TestAHungCarrier::test_it_is_killed_and_replaced_and_its_work_is_done_again",)

CarrierEnd._ping = lambda self: None
