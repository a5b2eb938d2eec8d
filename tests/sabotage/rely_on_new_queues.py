"""Promise 1 broken: a confirm on a quorum queue is relied upon before the queue survives its broker's death."""

from __future__ import annotations

from taskqueue.brokers.amqp.link import Link

FAILS = (
    "test_amqp_faults.py::test_a_confirm_on_a_new_quorum_queue_is_not_relied_upon_until_it_is_ripe",
    "test_amqp_faults.py::test_send_returns_when_a_new_quorum_queue_is_ripe",
)

Link.ripens_in = lambda self, queue: 0.0
