"""Which queues there are, and with which arguments they are declared where they don't exist yet."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from taskqueue.workitem import DEAD_LETTERS, DROPPED, INCOMING

__all__ = ["DELAYS", "QUEUES", "Declaration", "declaration", "delay_exchange", "delay_level"]

DELAYS = tuple(250 << level for level in range(18))
"""Milliseconds of the delay queues: 250 ms to 9 hours.  A longer or odd delay passes through several."""
QUEUES = "taskqueue.queues"
"""The exchange through which our queues are published to: it leads to those that survive their broker's death."""

LOOKS = 1_000_000_000
"""How often a dead letter may be looked at.  RabbitMQ counts that as deliveries, and 4.x would drop it after 20."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """A queue with its arguments, and the exchange in front of it."""

    queue: str
    arguments: dict[str, Any]
    exchange: str = QUEUES
    exchange_type: str = "direct"


def delay_level(delay: float) -> int:
    """The longest level, in ms, that is not longer than `delay` seconds, or the shortest of all."""
    return max((level for level in DELAYS if level <= delay * 1000), default=DELAYS[0])


def delay_exchange(level: int) -> str:
    """Where to publish what is to wait `level` ms.  The routing key is the queue to go to then."""
    return f"taskqueue.delay.{level}"


@functools.lru_cache(maxsize=4096)
def declaration(
    queue: str, *, queue_type: str, results_queue: str, results_max_length: int, dead_retention: float
) -> Declaration | None:
    """How to make `queue`; None for a queue that is not ours to make."""
    quorum: dict[str, Any] = {"x-queue-type": "quorum"} if queue_type == "quorum" else {}
    # What a quorum queue passes on, it keeps until the next queue has it; that needs reject-publish.
    safely = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"} if quorum else {}
    if queue == DEAD_LETTERS:
        looks = {"x-delivery-limit": LOOKS} if quorum else {}
        return Declaration(queue, {**quorum, **looks, "x-message-ttl": int(dead_retention * 1000)})
    if queue == DROPPED:
        return Declaration(queue, quorum)
    if queue == INCOMING or queue.startswith("worker_"):
        priority = {} if quorum else {"x-max-priority": 10}
        dropped = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": DROPPED}
        return Declaration(queue, {**quorum, **priority, **dropped, **safely})
    if queue.startswith("taskqueue.delay."):
        ttl = {"x-message-ttl": int(queue.rpartition(".")[2]), "x-dead-letter-exchange": ""}
        return Declaration(queue, {**quorum, **ttl, **safely}, exchange=queue, exchange_type="fanout")
    if queue == results_queue:
        return Declaration(queue, {**quorum, "x-max-length": results_max_length, "x-overflow": "drop-head"})
    return None
