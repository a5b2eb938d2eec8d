"""Promise 1 broken: a delivery is acknowledged when its effects are on their way, not when they are safe."""

from __future__ import annotations

from taskqueue.brokers.amqp.settling import Settling

FAILS = (
    "test_amqp_faults.py::test_a_delivery_is_acknowledged_only_after_its_result_has_been_confirmed",
    "test_amqp_dead.py::test_a_letter_is_gone_only_after_its_workitem_has_been_confirmed",
)

publish = Settling._publish


def hasty(self, index, delivery, targets):
    publish(self, index, delivery, targets)
    self._acknowledge(index, delivery)


Settling._publish = hasty
