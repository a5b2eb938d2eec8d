"""A whole system over PostgreSQL: what a test does to queues itself, it does by plain SQL."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from types import SimpleNamespace

import psycopg
from databases import PostgreSQL, with_schema
from installations import Installation
from system import PATIENCE, Message, System, until

TAKE = """
DELETE FROM taskqueue.workitems WHERE seq IN (
    SELECT seq FROM taskqueue.workitems WHERE queue = %s AND state = 0 ORDER BY seq LIMIT %s
) RETURNING seq, id, content_type, properties, body
"""


class PostgreSQLSystem(System):
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
        waiting = "(SELECT count(*) FROM taskqueue.workitems WHERE queue = %s AND state = 0)"
        ((there, count),) = self.rows(f"SELECT {known}, {waiting}", queue, queue)
        return int(str(count)) if there else None

    def collect(self, queue: str, count: int, *, timeout: float = PATIENCE) -> list[Message]:
        found: list[Message] = []

        def taken() -> bool:
            with self.admin() as connection:
                rows = connection.execute(TAKE, (queue, count - len(found))).fetchall()
            for _, id, content_type, properties, body in sorted(rows):
                known = json.loads(properties or "{}")
                more = {name: known.get(name) for name in ("correlation_id", "reply_to", "headers")}
                found.append(Message(body, SimpleNamespace(message_id=id, content_type=content_type or None, **more)))
            return len(found) == count

        until(taken, f"{count} messages in {queue}", timeout=timeout)
        return found
