"""Promise 8 broken: a lost channel is taken for one that still consumes."""

from __future__ import annotations

from taskqueue.brokers.amqp.consumer import AMQPConsumer

FAILS = ("test_amqp_faults.py::test_a_consumer_receives_again_after_its_connection_was_lost",)

end = AMQPConsumer._end


def forgetful(self, session, reason):
    end(self, session, reason)
    self._session = session


AMQPConsumer._end = forgetful
