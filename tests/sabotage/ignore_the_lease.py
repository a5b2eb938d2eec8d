"""Promise 4 broken: whoever once had a delivery settles it, though somebody else has it now."""

from __future__ import annotations

from taskqueue.brokers.amqp.settling import Session
from taskqueue.brokers.memory.ends import MemoryConsumer

FAILS = (
    "test_amqp_faults.py::test_an_answer_whose_channel_is_gone_is_discarded",
    "test_broker_memory.py::TestMemory::test_a_late_answer_loses",
)

settle = MemoryConsumer._settle


def any_tag(self, ended):
    self._lent.setdefault(ended.delivery.tag, (0, 0, 0.0, ended.delivery.workitem))
    object.__setattr__(ended.delivery, "lease", self._lease)
    return settle(self, ended)


Session.claim = lambda self, delivery: True
MemoryConsumer._settle = any_tag
