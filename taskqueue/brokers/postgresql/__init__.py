"""PostgreSQL 13 and later through psycopg 3: many hosts, tasks beside business data, and a history of what ended."""

from __future__ import annotations

from collections.abc import Callable

from taskqueue.broker import Broker, Capabilities, Consumer, DeadLetters, Joined, Options, Producer
from taskqueue.brokers.postgresql.consumer import PostgreSQLConsumer
from taskqueue.brokers.postgresql.dead import PostgreSQLDeadLetters
from taskqueue.brokers.postgresql.engine import Engine
from taskqueue.brokers.postgresql.joined import PostgreSQLJoined, complete
from taskqueue.brokers.postgresql.line import Line
from taskqueue.brokers.postgresql.place import Place, parse
from taskqueue.brokers.postgresql.producer import PostgreSQLProducer
from taskqueue.brokers.postgresql.store import PostgreSQLStore
from taskqueue.clock import SYSTEM, Clock
from taskqueue.joining import join
from taskqueue.store import Store

__all__ = ["PostgreSQLBroker", "complete", "open_broker"]


class PostgreSQLBroker:
    """All consumers share one connection and one lease; each producer has its own connection."""

    def __init__(self, place: Place, options: Options, clock: Clock = SYSTEM) -> None:
        self.capabilities = Capabilities(several_hosts=True, priorities=True, store=True, transactions=True)
        self._place = place
        self._clock = clock
        self._options = options
        self._engine = Engine(place, clock)
        self._consumers: list[PostgreSQLConsumer] = []
        self._identity = ""

    def producer(self, wanted: Callable[[str], bool] | None = None) -> Producer:
        return PostgreSQLProducer(self._place, self._clock)

    def using(self, connection: object) -> Joined:
        return PostgreSQLJoined(self._place, self._clock, self._here, join(connection))

    def _here(self, wrong: bool) -> str:
        """The identity of the database; wrong: it has turned out to be another one, for it may have been restored."""
        if wrong:
            self._identity = ""
        elif not self._identity:
            line = Line(self._place)
            with line.opened() as connection:
                self._identity = line.call(connection, "version()")[2]
            line.close()
        return self._identity

    def consumer(self, queue: str, *, reserve: int) -> Consumer:
        consumer = PostgreSQLConsumer(self._engine, queue, reserve)
        self._consumers = [*(c for c in self._consumers if not c.closed), consumer]
        return consumer

    def dead_letters(self) -> DeadLetters:
        return PostgreSQLDeadLetters(self._place, self._clock)

    def watch(self, told: Callable[[str], None]) -> None:
        self._engine.watch(told)

    def store(self) -> Store:
        return PostgreSQLStore(self._place, self._options)

    def anew(self) -> Broker:
        return PostgreSQLBroker(self._place, self._options, self._clock)

    def apart(self) -> Options | None:
        return self._options

    async def declare(self, queue: str) -> bool:
        made: bool = await self._engine.call("declare", queue)
        return made

    async def exists(self, queue: str) -> bool:
        there: bool = await self._engine.call("has", queue)
        return there

    async def close(self) -> None:
        for consumer in self._consumers:
            await consumer.close()
        await self._engine.close()


def open_broker(options: Options) -> Broker:
    """The broker for `postgresql://...`, as libpq reads it, with schema=, heartrate= and notify= of ours."""
    return PostgreSQLBroker(parse(options.url), options)
