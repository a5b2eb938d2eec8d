"""SQLite: one host, nothing to install.  Everything is in one file, with locks and sockets in a directory beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from taskqueue.broker import Broker, Capabilities, Consumer, DeadLetters, Joined, Options, Producer
from taskqueue.brokers.sqlite import names
from taskqueue.brokers.sqlite.consumer import SQLiteConsumer
from taskqueue.brokers.sqlite.dead import SQLiteDeadLetters
from taskqueue.brokers.sqlite.engine import Engine
from taskqueue.brokers.sqlite.joined import SQLiteJoined, complete
from taskqueue.brokers.sqlite.producer import SQLiteProducer
from taskqueue.brokers.sqlite.store import SQLiteStore
from taskqueue.clock import SYSTEM, Clock
from taskqueue.errors import BrokerError
from taskqueue.joining import join
from taskqueue.store import Store

__all__ = ["SQLiteBroker", "complete", "open_broker"]


class SQLiteBroker:
    """All consumers share one connection, in a thread of its own; each producer has one."""

    def __init__(self, path: Path, options: Options, *, synchronous: str = "full", clock: Clock = SYSTEM) -> None:
        self.capabilities = Capabilities(several_hosts=False, priorities=True, store=True, transactions=True)
        self._path = path
        self._options = options
        self._synchronous = synchronous
        self._clock = clock
        self._engine = Engine(path, synchronous, clock)
        self._consumers: list[SQLiteConsumer] = []

    def producer(self, wanted: Callable[[str], bool] | None = None) -> Producer:
        return SQLiteProducer(self._path, self._synchronous, self._clock)

    def using(self, connection: object) -> Joined:
        return SQLiteJoined(self._path, self._clock, join(connection))

    def consumer(self, queue: str, *, reserve: int) -> Consumer:
        consumer = SQLiteConsumer(self._engine, queue, reserve)
        self._consumers = [*(c for c in self._consumers if not c.closed), consumer]
        return consumer

    def dead_letters(self) -> DeadLetters:
        return SQLiteDeadLetters(self._path, self._synchronous, self._clock)

    def watch(self, told: Callable[[str], None]) -> None:
        self._engine.watch(told)

    def store(self) -> Store:
        return SQLiteStore(self._path, self._synchronous, self._clock, self._options)

    def anew(self) -> Broker:
        return SQLiteBroker(self._path, self._options, synchronous=self._synchronous, clock=self._clock)

    def apart(self) -> Options | None:
        return None

    async def declare(self, queue: str) -> bool:
        return await self._engine.write(lambda connection, told: names.declare(connection, queue))

    async def exists(self, queue: str) -> bool:
        return await self._engine.read(lambda connection: names.exists(connection, queue))

    async def close(self) -> None:
        for consumer in self._consumers:
            await consumer.close()
        await self._engine.close()


def open_broker(options: Options) -> Broker:
    """The broker for `sqlite:///FILE` (absolute: `sqlite:////FILE`), with `?synchronous=full` (default) or `normal`."""
    parts = urlsplit(options.url)
    query = parse_qs(parts.query)
    synchronous = query.pop("synchronous", ["full"])[-1].lower()
    path = unquote(parts.path)[1:]
    if parts.netloc or not path:
        raise BrokerError("a SQLite URL has three slashes and a file: sqlite:///file, or sqlite:////path/of/file")
    if synchronous not in ("full", "normal") or query:
        raise BrokerError("a SQLite URL knows the option synchronous=full or synchronous=normal, and no others")
    return SQLiteBroker(Path(path).absolute(), options, synchronous=synchronous)
