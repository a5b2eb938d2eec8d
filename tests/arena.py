"""A running system to fire at, where every workitem is accounted for.

What was received and settled, and by whom, is recorded inside the daemons (tests/tracing.py); what was started and
ended, inside the handler; kills, here.  All times are CLOCK_MONOTONIC of this host.  A workitem that was received once
more than needed must be paid for: by a kill or a cut that fell between an earlier receive and its settle.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika
import pika.exceptions
from databases import PostgreSQL
from installations import Installation
from servers import RabbitMQ
from system import Daemon, Message, System, alive, until
from system_postgresql import PostgreSQLSystem
from system_store import SQLiteSystem, StoreSystem
from tracing import Received, read

from taskqueue.broker import Producer, connect
from taskqueue.errors import BrokerUnavailable
from taskqueue.workitem import Workitem

IN_FLIGHT = 0.5
"""Seconds: RabbitMQ does not confirm an acknowledgement.  It takes those to its grave that it has not yet stored, and
does not read those any more that come before the reset of a connection whose other end is dead."""
CONFIG = """\
[DEFAULT]
workers = 0
max_crashes = 1000000

[record]
workers = {groups}
seconds = 0.05
file = {file}

"""


@dataclass(frozen=True)
class Kill:
    """A SIGKILL; it fell somewhere between two times.  `pids` are what it took down; empty: the broker."""

    pids: frozenset[int]
    before: float
    after: float


@dataclass
class Sender:
    """A producer that sends `count` workitems, through the project's own client, and counts how often it had to.

    batch: how many it sends at a time; `pace` seconds later it sends the next ones.
    """

    url: str
    count: int
    pace: float
    batch: int = 1
    sends: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        producer = connect(self.url).producer()
        for start in range(0, self.count, self.batch):
            workitems = [
                Workitem(body=f"record {number}".encode(), id=f"item{number}", content_type="text/plain")
                for number in range(start, min(start + self.batch, self.count))
            ]
            while not self._send(producer, workitems):
                time.sleep(0.1)
            time.sleep(self.pace)
        producer.close()

    def _send(self, producer: Producer, workitems: list[Workitem]) -> bool:
        """Whether the broker has taken them, as far as anybody knows."""
        self.sends.update(workitem.id for workitem in workitems)
        try:
            producer.send(workitems, queue="taskqueue")
        except BrokerUnavailable:
            return False
        return True


class PlainSender(Sender):
    """The same over AMQP, by plain pika: sends again what was not confirmed."""

    def run(self) -> None:
        number = 0
        while number < self.count:
            with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                connection = pika.BlockingConnection(pika.URLParameters(self.url))
                try:
                    channel = connection.channel()
                    channel.confirm_delivery()
                    while number < self.count:
                        number += self._publish(channel, number)
                finally:
                    with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                        connection.close()
            time.sleep(0.1)

    def _publish(self, channel: Any, number: int) -> bool:
        """Whether the broker has taken it."""
        id = f"item{number}"
        properties = pika.BasicProperties(content_type="text/plain", message_id=id, delivery_mode=2)
        self.sends[id] += 1
        try:
            channel.basic_publish("", "taskqueue", f"record {number}", properties, mandatory=True)
        except pika.exceptions.NackError:
            return False
        time.sleep(self.pace)
        return True


@dataclass
class Handled:
    """One line `start` of the handler's record, with its line `end`, if it came to that."""

    id: str
    attempt: int
    at: float
    pid: int
    ended: float = float("inf")


def handled(record: Path) -> list[Handled]:
    """What the handlers did, in order."""
    found: list[Handled] = []
    for line in record.read_text().splitlines():
        kind, id, attempt, at, pid = line.split()
        if kind == "start":
            found.append(Handled(id, int(attempt), float(at), int(pid)))
        else:
            next(h for h in reversed(found) if h.id == id and h.pid == int(pid)).ended = float(at)
    return found


class Arena:
    """One running system, with everything that is needed to account for it."""

    def __init__(
        self,
        installation: Installation,
        server: RabbitMQ | PostgreSQL | None,
        *,
        count: int,
        pace: float,
        batch: int = 1,
        managers: int = 1,
        groups: str = "abcdefgh",
    ) -> None:
        """Over RabbitMQ or PostgreSQL, or over a SQLite file where there is no `server`.

        count: workitems that are sent, `batch` at a time (not over AMQP), with `pace` seconds between two such times.
        groups: names of groups of one process each.
        """
        self.server = server
        self.groups = groups
        if server is None:
            self.system: System = SQLiteSystem(installation)
            self.sender: Sender = Sender(self.system.url, count, pace, batch)
        elif isinstance(server, PostgreSQL):
            self.system = PostgreSQLSystem(installation, server)
            self.sender = Sender(self.system.url, count, pace, batch)
        else:
            self.system = System(installation, server.url(server.vhost()))
            self.sender = PlainSender(self.system.url, count, pace)
        self.handlers = self.system.open_directory / "handlers"
        self.handlers.touch()
        self.handlers.chmod(0o666)
        self.loops = self.system.open_directory / "loops"
        sections = "".join(f"[record_{group}]\nworkers = 1\n" for group in groups)
        self.config = self.system.config(CONFIG.format(groups=", ".join(groups), file=self.handlers) + sections)
        self.pools: list[Daemon] = []
        self._managers = managers
        self.kills: list[Kill] = []
        self.results: list[Message] = []
        self.dead: list[Message] = []

    def start(self) -> None:
        self.dispatcher = self.system.dispatcher(self.config)
        self.pools = [self.system.workerpool(self.config) for _ in range(self._managers)]
        for pool in self.pools:
            pool.wait_ready(len(self.groups))
        self.system.wait_queue("taskqueue")

    def kill(self, victim: Daemon | int | RabbitMQ | PostgreSQL) -> None:
        pids: frozenset[int] = frozenset()
        if isinstance(victim, Daemon):
            pids = frozenset((victim.pid, *victim.carriers, *victim.workers))
            before = time.monotonic()
            victim.kill()
        elif isinstance(victim, RabbitMQ | PostgreSQL):
            self.system.disconnect()
            before = time.monotonic()
            victim.kill()
        else:
            below = [pid for pool in self.pools if victim in pool.carriers for pid in pool.workers]
            pids = frozenset((victim, *below))
            before = time.monotonic()
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:  # it has just ended because of an earlier kill
                return
            until(lambda: not alive(victim))
        self.kills.append(Kill(pids, before, time.monotonic()))

    def kill_one(self, what: str, chance: random.Random) -> None:
        """Kill one process of a kind; start again what nobody else starts."""
        place = chance.randrange(len(self.pools))
        pool = self.pools[place]
        match what:
            case "worker" if workers := pool.ready():
                self.kill(chance.choice(workers))
            case "carrier" if carriers := pool.carriers:
                self.kill(chance.choice(carriers))
            case "manager":
                self.kill(pool)
                self.pools[place] = self.system.workerpool(self.config)
            case "dispatcher":
                self.kill(self.dispatcher)
                self.dispatcher = self.system.dispatcher(self.config)
            case "broker" if self.server is not None:
                self.kill(self.server)
                time.sleep(chance.uniform(0, 1))
                self.server.start()

    def hits(self) -> int:
        """How many kills hit a running handler: one whose process has begun a workitem and never came to its end."""
        hit = {one.pid for one in handled(self.handlers) if one.ended == float("inf")}
        return sum(not hit.isdisjoint(kill.pids) for kill in self.kills)

    def finish(self) -> None:
        """Wait until every workitem has its result, or is dead; then stop all in good order."""
        expected = {f"item{number}" for number in range(self.sender.count)}
        known: set[str] = set()
        deadline = time.monotonic() + 180
        while known < expected:
            assert time.monotonic() < deadline, f"no trace of {sorted(expected - known)[:10]}, {len(known)} are there"
            self.results += self._take("results")
            self.dead += self._take("taskqueue.dead")
            known = {message.properties.correlation_id for message in self.results}
            known |= {message.properties.message_id for message in self.dead}
            time.sleep(0.1)
        for pool in self.pools:
            pool.stop()
        self.dispatcher.stop()
        self.results += self._take("results")
        self.dead += self._take("taskqueue.dead")
        for queue in ("taskqueue", "worker_record", "taskqueue.dropped"):
            self.system.wait_queue(queue, 0)

    def _take(self, queue: str) -> list[Message]:
        depth = self.system.depth(queue)
        return self.system.collect(queue, depth) if depth else []

    def account(self) -> dict[str, int]:
        """Check every workitem; returns figures."""
        received: dict[str, list[Received]] = defaultdict(list)
        for one in read(self.loops):
            received[one.id].append(one)
        starts: dict[str, list[Handled]] = defaultdict(list)
        for start in handled(self.handlers):
            starts[start.id].append(start)
        results = Counter(message.properties.correlation_id for message in self.results)
        dead = Counter(message.properties.message_id for message in self.dead)
        assert not dead, f"nothing may die here: {dead}"
        again = 0
        for id in sorted(received):
            lent = [one for one in received[id] if one.queue == "worker_record"]
            dispatched = [one for one in received[id] if one.queue == "taskqueue"]
            paid = sum(self._cut(one, starts[id]) for one in received[id]) + self.sender.sends[id] - 1
            released = sum(one.outcome == "Release" and one.counted for one in lent)  # given back, never started
            story = f"{id}: {received[id]} {starts[id]} results {results[id]}"
            assert len(dispatched) >= 1, story
            assert 1 <= len(lent) <= 1 + paid + released, f"received more often than kills explain: {story}"
            assert 1 <= len(starts[id]) <= 1 + paid, f"started more often than kills explain: {story}"
            assert len(starts[id]) <= len(lent) - released, f"started more often than received: {story}"
            assert 1 <= results[id] <= len(starts[id]), f"more results than starts, or none: {story}"
            again += len(starts[id]) - 1
        assert len(received) == self.sender.count
        return {"kills": len(self.kills), "hits": self.hits(), "started again": again}

    def _cut(self, one: Received, starts: list[Handled]) -> bool:
        """Whether a kill fell between the receive and the settle of `one`, and concerned it."""
        pids = {one.pid, *(start.pid for start in starts if one.at <= start.at <= one.settled)}
        # One that was killed after it had set its mark and before its handler's first line: there is no start of it.
        unseen = one.outcome == "Crashed"
        end = one.settled if isinstance(self.system, StoreSystem) else one.settled + IN_FLIGHT
        return any(
            one.at <= kill.after and kill.before <= end
            if kill.pids & pids or unseen
            else not kill.pids and one.at <= kill.after and kill.before <= one.settled + IN_FLIGHT
            for kill in self.kills
        )
