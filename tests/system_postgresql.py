"""A whole system over PostgreSQL: what a test does to queues itself, it does through the broker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
from databases import PostgreSQL, with_schema
from installations import Installation
from system_store import StoreSystem


class PostgreSQLSystem(StoreSystem):
    """Daemons that have the rights of a carrier only, in a database of their own."""

    def __init__(self, installation: Installation, server: PostgreSQL, database: str = "") -> None:
        """In `database`, or in a new one."""
        self.server = server
        self.database = database or server.database(with_schema)
        super().__init__(installation, server.url(self.database))

    @contextlib.contextmanager
    def admin(self) -> Iterator[psycopg.Connection]:
        """A connection of the schema's owner."""
        with contextlib.closing(self.server.admin(self.database)) as connection:
            yield connection

    def rows(self, query: str, *arguments: object) -> list[tuple[object, ...]]:
        """What a query of the schema's owner finds."""
        with self.admin() as connection:
            return connection.execute(query.encode(), arguments).fetchall()

    def depth(self, queue: str) -> int | None:
        known = "EXISTS (SELECT FROM taskqueue.queues WHERE name = %s)"
        waiting = "(SELECT count(*) FROM taskqueue.workitems WHERE queue = %s AND state = 0 AND carrier IS NULL)"
        unread = "(SELECT count(*) FROM taskqueue.history WHERE results = %s)"
        ((there, count),) = self.rows(f"SELECT {known}, {waiting} + {unread}", queue, queue, queue)
        return int(str(count)) if there or count else None
