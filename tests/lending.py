"""One PostgreSQL database with the schema, and deliveries out of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from databases import PostgreSQL, with_schema

from taskqueue.broker import Consumer, Delivery, Ended
from taskqueue.outcome import Outcome, Rules

QUEUE = "worker_t"
RULES = Rules(results_routing_key="results", max_crashes=1, worker="host:7")


class Database:
    """One database, its owner's connection beside the URL."""

    def __init__(self, server: PostgreSQL) -> None:
        self.server = server
        self.name = server.database(with_schema)
        self.url = server.url(self.name)

    def rows(self, query: str, *arguments: object) -> list[tuple[object, ...]]:
        with contextlib.closing(self.server.admin(self.name)) as connection:
            cursor = connection.execute(query.encode(), arguments or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *arguments: object) -> object:
        ((value,),) = self.rows(query, *arguments)
        return value


async def lent(consumer: Consumer, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    while len(found) < count:
        found += await consumer.receive(limit=count - len(found))
    return found


async def settle(consumer: Consumer, deliveries: Sequence[Delivery], outcome: Outcome) -> list[bool]:
    return await consumer.settle([Ended(delivery, outcome, RULES) for delivery in deliveries])
