"""Looking broken: two look at the same time, and what both had goes back in the order of their ends."""

from __future__ import annotations

from taskqueue.brokers.amqp.connection import Channel
from taskqueue.brokers.amqp.dead import DEAD_LETTERS, AMQPDeadLetters
from taskqueue.brokers.amqp.settling import Session

FAILS = (
    "test_amqp_dead.py::test_who_looks_waits_for_the_other_and_neither_reorders",
    "test_amqp_dead.py::test_who_waits_too_long_is_told_why",
)


async def at_once(self, connection):
    session = Session()
    session.channel = await Channel.open(connection, lambda _: self._end(session))
    return session, session.channel, await self._link.ready(DEAD_LETTERS)


AMQPDeadLetters._turn = at_once
