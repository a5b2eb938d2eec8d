"""Looking broken: the letters that are shown are acknowledged, and gone."""

from __future__ import annotations

from taskqueue.brokers.amqp.dead import AMQPDeadLetters

FAILS = (
    "test_broker_amqp.py::TestQuorumQueues::test_looking_changes_nothing",
    "test_amqp_dead.py::test_a_look_that_is_killed_changes_nothing_whatever_comes_meanwhile",
)

delivered = AMQPDeadLetters._delivered


def taken(self, session, method, properties, body):
    delivered(self, session, method, properties, body)
    session.channel.raw.basic_ack(method.delivery_tag)


AMQPDeadLetters._delivered = taken
