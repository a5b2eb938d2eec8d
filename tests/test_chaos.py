"""Promises 1, 3 and 4 under fire: SIGKILL of everything, at random, and every workitem accounted for.

What was received and settled, and by whom, is recorded inside the daemons (tests/tracing.py); what was started and
ended, inside the handler; kills, here.  All times are CLOCK_MONOTONIC of this host.  A workitem that was received once
more than needed must be paid for: by a kill or a cut that fell between an earlier receive and its settle.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika
import pika.exceptions
import pytest
from installations import Installation
from servers import RabbitMQ
from system import Daemon, Message, System, alive, until
from tracing import Received, read, tracing

COUNT = 3000
SECONDS = 30.0
LONGEST = 120.0  # seconds of killing, where a slow machine needs more of them for HITS
HITS = 30
SELDOM = ("broker", "broker", "manager", "manager", "dispatcher", "dispatcher", "dispatcher", *["carrier"] * 4)
GROUPS = "abcdefgh"  # one process each: a group that keeps dying is restarted more and more slowly
CONFIG = f"""\
[DEFAULT]
workers = 0
max_crashes = 1000000

[record]
workers = {", ".join(GROUPS)}
seconds = 0.05
file = %s

"""


@dataclass(frozen=True)
class Kill:
    """A SIGKILL; it fell somewhere between two times.  `pids` are what it took down; empty: the broker."""

    pids: frozenset[int]
    before: float
    after: float


@dataclass
class Sender:
    """A plain AMQP producer that sends `count` workitems and counts how often it had to send each."""

    url: str
    count: int
    pace: float
    sends: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        number = 0
        while number < self.count:
            with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                connection = pika.BlockingConnection(pika.URLParameters(self.url))
                try:
                    channel = connection.channel()
                    channel.confirm_delivery()
                    while number < self.count:
                        number += self._send(channel, number)
                finally:
                    with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                        connection.close()
            time.sleep(0.1)

    def _send(self, channel: Any, number: int) -> bool:
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

    def __init__(self, installation: Installation, server: RabbitMQ, count: int, pace: float) -> None:
        self.server = server
        self.system = System(installation, server.url(server.vhost()))
        self.handlers = self.system.open_directory / "handlers"
        self.handlers.touch()
        self.handlers.chmod(0o666)
        self.loops = self.system.open_directory / "loops"
        self.config = self.system.config(
            CONFIG % self.handlers + "".join(f"[record_{g}]\nworkers = 1\n" for g in GROUPS)
        )
        self.sender = Sender(self.system.url, count, pace)
        self.kills: list[Kill] = []
        self.results: list[Message] = []
        self.dead: list[Message] = []

    def start(self) -> None:
        self.dispatcher = self.system.dispatcher(self.config)
        self.pool = self.system.workerpool(self.config, ready=len(GROUPS))
        self.system.wait_queue("taskqueue")

    def kill(self, victim: Daemon | int | RabbitMQ) -> None:
        pids: frozenset[int] = frozenset()
        before = time.monotonic()
        if isinstance(victim, Daemon):
            pids = frozenset((victim.pid, *victim.carriers, *victim.workers))
            victim.kill()
        elif isinstance(victim, RabbitMQ):
            self.system.disconnect()
            victim.kill()
        else:
            pids = frozenset((victim, *(self.pool.workers if victim in self.pool.carriers else ())))
            os.kill(victim, signal.SIGKILL)
            until(lambda: not alive(victim))
        self.kills.append(Kill(pids, before, time.monotonic()))

    def kill_one(self, what: str, chance: random.Random) -> None:
        """Kill one process of a kind; start again what nobody else starts."""
        match what:
            case "worker" if workers := self.pool.ready():
                self.kill(chance.choice(workers))
            case "carrier" if carriers := self.pool.carriers:
                self.kill(chance.choice(carriers))
            case "manager":
                self.kill(self.pool)
                self.pool = self.system.workerpool(self.config)
            case "dispatcher":
                self.kill(self.dispatcher)
                self.dispatcher = self.system.dispatcher(self.config)
            case "broker":
                self.kill(self.server)
                time.sleep(chance.uniform(0, 1))
                self.server.start()

    def hits(self) -> int:
        """How many kills of one process hit a running handler."""
        runs = defaultdict(list)
        for one in handled(self.handlers):
            runs[one.pid].append(one)
        return sum(
            any(one.at <= kill.before and one.ended == float("inf") for pid in kill.pids for one in runs[pid])
            for kill in self.kills
        )

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
        self.pool.stop()
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
            story = f"{id}: {received[id]} {starts[id]} results {results[id]}"
            assert len(dispatched) >= 1, story
            assert 1 <= len(lent) <= 1 + paid, f"received more often than kills explain: {story}"
            assert 1 <= len(starts[id]) <= len(lent), f"started more often than received: {story}"
            assert 1 <= results[id] <= len(starts[id]), f"more results than starts, or none: {story}"
            again += len(starts[id]) - 1
        assert len(received) == self.sender.count
        return {"kills": len(self.kills), "hits": self.hits(), "started again": again}

    def _cut(self, one: Received, starts: list[Handled]) -> bool:
        """Whether a kill fell between the receive and the settle of `one`, and concerned it."""
        pids = {one.pid, *(start.pid for start in starts if one.at <= start.at <= one.settled)}
        return any(
            (not kill.pids or kill.pids & pids) and one.at <= kill.after and kill.before <= one.settled
            for kill in self.kills
        )


@pytest.fixture
def arena(
    installation: Installation, start_rabbitmq: Callable[..., RabbitMQ]
) -> Iterator[Callable[[int, float], Arena]]:
    """Make an arena: number of workitems, and seconds between two sends."""
    arenas: list[Arena] = []

    def make(count: int, pace: float) -> Arena:
        made = Arena(installation, start_rabbitmq(), count, pace)
        arenas.append(made)
        stack.enter_context(tracing(installation, made.loops))
        stack.enter_context(made.system)
        made.start()
        return made

    with contextlib.ExitStack() as stack:
        yield make


@pytest.mark.chaos
@pytest.mark.timeout(420)
def test_no_workitem_is_lost_or_done_again_without_reason_while_everything_is_killed(
    arena: Callable[[int, float], Arena],
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    fight = arena(COUNT, SECONDS / COUNT)
    thread = threading.Thread(target=fight.sender.run, daemon=True)
    thread.start()
    until(lambda: fight.handlers.stat().st_size, "the first workitem")
    time.sleep(1.5)  # queues that a single node has just made are not in its books yet

    seldom = sorted((chance.uniform(0, SECONDS), what) for what in SELDOM)
    start = time.monotonic()
    while (now := time.monotonic() - start) < SECONDS or ((seldom or fight.hits() < HITS) and now < LONGEST):
        time.sleep(chance.uniform(0.05, 0.4))
        due = [what for at, what in seldom if at <= now]
        fight.kill_one(due[0] if due else "worker", chance)
        seldom = seldom[len(due[:1]) :]
    thread.join(120)
    fight.finish()

    figures = fight.account()
    print(f"{figures} in {now:.0f} s")
    assert not seldom
    assert figures["hits"] >= HITS


@pytest.mark.chaos
def test_without_kills_every_workitem_is_received_and_done_exactly_once(arena: Callable[[int, float], Arena]) -> None:
    peace = arena(500, 0.0)

    peace.sender.run()
    peace.finish()

    figures = peace.account()
    assert figures == {"kills": 0, "hits": 0, "started again": 0}
