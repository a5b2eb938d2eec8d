"""The contract, over SQLite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from taskqueue.broker import Broker, Options
from taskqueue.brokers.sqlite import open_broker
from taskqueue.testing import BrokerContract, StoreContract


class TestSQLite(BrokerContract):
    """Several broker objects on one file, as several carriers have them."""

    @pytest.fixture
    def broker_factory(self, tmp_path: Path) -> Callable[[], Broker]:
        return lambda: open_broker(Options(url=f"sqlite:///{tmp_path}/queue.db"))


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    def broker_factory(self, tmp_path: Path) -> Callable[[], Broker]:
        return lambda: open_broker(Options(url=f"sqlite:///{tmp_path}/queue.db"))
