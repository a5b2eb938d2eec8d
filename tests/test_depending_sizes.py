"""A hundred thousand that depend on one, and one that depends on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from databases import PostgreSQL, with_schema

from taskqueue.broker import Broker, connect
from taskqueue.testing.bench import Contract
from taskqueue.testing.sizes import SizesContract

MANY = 100_000


@pytest.mark.long
class TestMemory(SizesContract, Contract):
    many = MANY

    @pytest.fixture
    def broker_factory(self) -> Callable[[], Broker]:
        broker = connect("memory://")
        return lambda: broker


@pytest.mark.long
class TestSQLite(SizesContract, Contract):
    many = MANY

    @pytest.fixture
    def broker_factory(self, tmp_path: Path) -> Callable[[], Broker]:
        return lambda: connect(f"sqlite:///{tmp_path}/queue.db")


@pytest.mark.long
class TestPostgreSQL(SizesContract, Contract):
    many = MANY

    @pytest.fixture
    def broker_factory(self, postgresql: PostgreSQL) -> Callable[[], Broker]:
        url = postgresql.url(postgresql.database(with_schema))
        return lambda: connect(url)
