"""Promise 5 broken: in a program the carrier is where a handler can hold it up, over PostgreSQL and RabbitMQ, too."""

from __future__ import annotations

from taskqueue.brokers.amqp import AMQPBroker
from taskqueue.brokers.postgresql import PostgreSQLBroker

FAILS = (
    "test_running_apart.py::TestTheCarrier::test_while_its_program_is_held_up_what_runs_is_run_once[amqp-threads]",
    "test_running_apart.py::test_another_host_is_not_lent_what_runs_in_a_program_that_is_held_up[threads]",
)

AMQPBroker.apart = PostgreSQLBroker.apart = lambda self: None
