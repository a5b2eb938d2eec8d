"""The contract, by RabbitMQ with quorum queues and with classic queues."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskqueue.broker import Broker, Options, connect
from taskqueue.brokers.amqp import link
from taskqueue.testing import BrokerContract


@pytest.fixture(autouse=True)
def no_waiting_for_new_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual host of its own for each test means new queues only; test_amqp_new_queues.py is about them."""
    monkeypatch.setattr(link, "RIPE", 0.0)


class TestQuorumQueues(BrokerContract):
    queue_type = "quorum"

    @pytest.fixture
    def broker_factory(self, amqp_url: str) -> Callable[[], Broker]:
        return lambda: connect(Options(url=amqp_url, queue_type=self.queue_type))


class TestClassicQueues(TestQuorumQueues):
    queue_type = "classic"
