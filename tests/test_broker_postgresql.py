"""The contracts, over PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from databases import PgBouncer, PostgreSQL, with_schema

from taskqueue.broker import Broker, connect
from taskqueue.testing import BrokerContract, StoreContract


class TestPostgreSQL(BrokerContract):
    """Several broker objects on one database, as several hosts have them; with the rights of a carrier."""

    @pytest.fixture
    def broker_factory(self, postgresql: PostgreSQL) -> Callable[[], Broker]:
        url = postgresql.url(postgresql.database(with_schema))
        return lambda: connect(url)


class TestPgBouncer(BrokerContract):
    """The same through a pgbouncer in transaction mode, found by polling alone."""

    @pytest.fixture
    def broker_factory(self, postgresql: PostgreSQL, pgbouncer: PgBouncer) -> Callable[[], Broker]:
        url = pgbouncer.url(postgresql.database(with_schema), "?notify=off")
        return lambda: connect(url)


class TestPostgreSQLStore(StoreContract):
    @pytest.fixture
    def broker_factory(self, postgresql: PostgreSQL) -> Callable[[], Broker]:
        url = postgresql.url(postgresql.database(with_schema))
        return lambda: connect(url)


class TestPgBouncerStore(StoreContract):
    @pytest.fixture
    def broker_factory(self, postgresql: PostgreSQL, pgbouncer: PgBouncer) -> Callable[[], Broker]:
        url = pgbouncer.url(postgresql.database(with_schema), "?notify=off")
        return lambda: connect(url)
