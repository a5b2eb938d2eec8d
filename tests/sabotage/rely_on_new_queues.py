"""Promise 1 broken: a quorum queue is relied upon before it survives its broker's death."""

from __future__ import annotations

from typing import Any

from taskqueue.brokers.amqp import link

FAILS = (
    "test_amqp_new_queues.py::test_nothing_is_published_to_a_new_quorum_queue_until_it_is_ripe",
    "test_amqp_new_queues.py::test_the_new_quorum_queue_of_somebody_else_is_not_relied_upon_either",
    "test_amqp_new_queues.py::test_send_returns_when_a_new_quorum_queue_is_ripe",
)

ripened = link.Link._ripened


async def at_once(*arguments: Any) -> None:
    ripe, link.RIPE = link.RIPE, 0.0
    try:
        await ripened(*arguments)
    finally:
        link.RIPE = ripe


link.Link._ripened = at_once
