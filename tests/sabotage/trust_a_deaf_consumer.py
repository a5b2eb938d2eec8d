"""Promise 8 broken: nobody asks why nothing comes."""

from __future__ import annotations

from taskqueue.brokers.amqp.consumer import AMQPConsumer

FAILS = ("test_amqp_faults.py::test_a_deaf_consumer_is_noticed[0]",)


async def trusting(self):
    pass


AMQPConsumer._check_stall = trusting
