"""The contract, by the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskqueue.broker import Broker, connect
from taskqueue.testing import BrokerContract, StoreContract


class TestMemory(BrokerContract):
    @pytest.fixture
    def broker_factory(self) -> Callable[[], Broker]:
        broker = connect("memory://")
        return lambda: broker


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def broker_factory(self) -> Callable[[], Broker]:
        broker = connect("memory://")
        return lambda: broker
