"""Promise 6 broken: a delayed workitem goes back to its queue at once, and waits in the consumer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from taskqueue.brokers.amqp import settling
from taskqueue.brokers.amqp.consumer import AMQPConsumer

FAILS = ("test_broker_amqp.py::TestQuorumQueues::test_what_is_delayed_takes_no_room",)

delivered = AMQPConsumer._delivered


def held(self: AMQPConsumer, session: Any, method: Any, properties: Any, body: bytes) -> None:
    wait = (properties.headers or {}).get("taskqueue_due", 0.0) - time.time()
    asyncio.get_running_loop().call_later(max(0.0, wait), delivered, self, session, method, properties, body)


settling.delay_exchange = lambda level: ""
AMQPConsumer._delivered = held
