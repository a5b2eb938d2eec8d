"""Several hosts over PostgreSQL, of which one dies or vanishes: who takes over when, and whose answer counts.

The hosts are network namespaces; one that is dead altogether has a namespace of process ids, too, so that the others
can't see its processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from arena import handled
from databases import PostgreSQL
from embedded import run
from hosts import Network, lacking
from installations import Installation
from lender import lending
from system import Daemon, until
from system_postgresql import PostgreSQLSystem

from taskqueue.broker import Consumer, Delivery, connect
from taskqueue.workitem import Workitem

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())

HEARTRATE = 2.0
WITHIN = 2 * HEARTRATE + 5.0  # seconds until somebody else has what a dead host had


class Hosts:
    """Two hosts, and a server for both."""

    def __init__(self, network: Network, server: PostgreSQL, system: PostgreSQLSystem) -> None:
        self.network = network
        self.server = server
        self.system = system
        self.record = system.open_directory / "record"
        self.record.touch()
        self.record.chmod(0o666)

    def url(self, host: str, heartrate: float = HEARTRATE) -> str:
        address = self.network.address(host)
        return self.server.url(self.system.database, host=address, options=f"?heartrate={heartrate:g}")

    @property
    def local(self) -> str:
        """The URL for this test itself, which is on no host."""
        return f"{self.server.admin_url(self.system.database)}&heartrate={HEARTRATE:g}"

    def workerpool(
        self, host: str, *, seconds: float, heartrate: float = HEARTRATE, enter: tuple[str, ...] = ()
    ) -> Daemon:
        """A worker manager on `host`, with one worker process that takes `seconds` for a workitem; it is ready."""
        text = f"[DEFAULT]\nworkers = 0\n[record]\nworkers = 1\nseconds = {seconds}\nfile = {self.record}\n"
        config = self.system.config(text, name=f"{host}.ini", url=self.url(host, heartrate))
        pool = self.system.workerpool(config, prefix=[*self.network.enter(host), *enter])
        pool.logged(r"worker process \d+ of record is ready")
        return pool

    def send(self, id: str) -> None:
        self.system.rows("SELECT taskqueue.send('record', '\"x\"', id => %s)", id)

    def started(self, count: int) -> float:
        """When the workitem that was started as number `count` was."""
        until(lambda: len(handled(self.record)) >= count, f"start {count}")
        return handled(self.record)[count - 1].at

    def history(self, count: int) -> list[tuple[object, ...]]:
        """What has ended, once that is `count` workitems."""
        query = "SELECT id, state, attempt, worker FROM taskqueue.history ORDER BY ended"
        until(lambda: len(self.system.rows(query)) >= count, f"the end of {count} workitems")
        return self.system.rows(query)


@pytest.fixture
def hosts(start_postgresql: Callable[..., PostgreSQL], installation: Installation) -> Iterator[Hosts]:
    with contextlib.closing(Network("a", "b")) as network:
        server = start_postgresql(namespace=network.server)
        with PostgreSQLSystem(installation, server) as system:
            yield Hosts(network, server, system)


def test_a_dead_carrier_is_noticed_at_once_by_its_own_manager(hosts: Hosts) -> None:
    pool = hosts.workerpool("a", seconds=1, heartrate=3600)
    hosts.send("one")
    hosts.started(1)

    os.kill(pool.carriers[0], signal.SIGKILL)

    hosts.started(2)
    assert [row[:3] for row in hosts.history(1)] == [("one", "succeeded", 1)]
    pool.stop()


def test_what_a_dead_host_had_is_done_by_another_one_in_time(hosts: Hosts) -> None:
    alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    dying = hosts.workerpool("a", seconds=600, enter=alone)
    hosts.send("one")
    hosts.started(1)
    other = hosts.workerpool("b", seconds=0.01)

    hosts.network.cut("a")
    dying.kill()
    dead = time.monotonic()

    assert HEARTRATE < hosts.started(2) - dead <= WITHIN
    assert len(hosts.history(1)) == 1
    other.stop()


def test_what_a_host_had_that_vanished_is_done_once_and_its_late_answer_counts_for_nothing(hosts: Hosts) -> None:
    vanishing = hosts.workerpool("a", seconds=12)
    hosts.send("one")
    hosts.started(1)
    other = hosts.workerpool("b", seconds=0.01)

    hosts.network.cut("a")
    cut = time.monotonic()

    assert HEARTRATE < hosts.started(2) - cut <= WITHIN
    (ended,) = hosts.history(1)
    (worker,) = other.ready()
    assert str(ended[3]).endswith(f":{worker}")

    hosts.network.join("a")
    vanishing.logged("workitem one of worker_record: its delivery was lost, somebody else has it now; Done discarded")
    other.stop()
    hosts.send("two")
    hosts.started(3)  # it is a member again
    assert hosts.history(1) == [ended]
    assert hosts.system.depth("results") == 1


def test_a_host_that_vanishes_in_the_middle_of_a_claim_holds_nothing_up(hosts: Hosts) -> None:
    sent = [Workitem(body=b"", id="small"), Workitem(body=bytes(16 << 20), id="large")]
    producer = connect(hosts.local).producer()
    hosts.network.slow_down("a", "4mbit")
    producer.send(sent[:1], queue="worker_t")
    command = [*hosts.network.enter("a"), *lending(hosts.url("a"), "worker_t", 2)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        until(
            lambda: hosts.system.rows("SELECT 1 FROM taskqueue.workitems WHERE carrier IS NOT NULL"),
            "the small one lent",
        )
        producer.send(sent[1:], queue="worker_t")
        writing = "SELECT 1 FROM pg_stat_activity WHERE usename = 'taskqueue' AND wait_event = 'ClientWrite'"
        until(lambda: hosts.system.rows(writing), "the large one on its way")

        hosts.network.cut("a")
        cut = time.monotonic()

        found = run(hosts.local, lambda broker: lent(broker.consumer("worker_t", reserve=2)))
        assert {delivery.workitem.id for delivery in found} == {"small", "large"}
        assert time.monotonic() - cut <= WITHIN
    finally:
        process.kill()
        process.wait()
        producer.close()


HIDDEN = """\
mount -o remount,hidepid=2 /proc
sleep 600 & pid=$!
since=$(cut -d ' ' -f 22 /proc/$pid/stat)
check() {
    setpriv --reuid nobody --regid nogroup --clear-groups "$1" -c "
from taskqueue.brokers.postgresql.process import began, is_gone
print(bool(began($pid)), is_gone($pid, $since))"
}
check "$1"
kill -9 $pid
wait $pid
check "$1"
"""


def test_a_process_that_is_hidden_is_not_taken_for_gone(installation: Installation) -> None:
    apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [*apart, "sh", "-c", HIDDEN, "sh", installation.bin("python")]

    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")

    assert done.stdout.splitlines() == ["False False", "False True"]


async def lent(consumer: Consumer) -> list[Delivery]:
    """Two deliveries."""
    found: list[Delivery] = []
    while len(found) < 2:
        found += await consumer.receive(limit=2)
    return found
