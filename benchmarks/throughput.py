"""Rates of the whole path on AMQP, and of each stage by itself: `make bench`, or this file with --help.

Starts a private RabbitMQ, installs the project into a directory of its own, and measures real daemons with the worker
type `echo` of tests/plugins, whose handler returns its body.  Bodies have about 230 bytes; queues are durable (quorum),
messages persistent and confirmed, results are published and confirmed before a delivery is acknowledged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pika

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests"))

from installations import Installation  # noqa: E402
from servers import RabbitMQ  # noqa: E402

from taskqueue.broker import Producer, connect  # noqa: E402
from taskqueue.workitem import INCOMING, Workitem, worker_queue  # noqa: E402

BODY = json.dumps({"worker_type": "echo", "workitem": {"number": 0, "padding": "x" * 190}}).encode()
BARE = json.dumps({"number": 0, "padding": "x" * 190}).encode()


class Counter:
    """Consumes a queue in a thread and counts; so slowly done with pika that it costs what a real consumer costs."""

    def __init__(self, url: str, queue: str) -> None:
        self.count = 0
        self._wanted = 0
        self._reached = threading.Event()
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = self._connection.channel()
        channel.basic_consume(queue, self._arrived, auto_ack=True)
        self._channel = channel
        self._thread = threading.Thread(target=channel.start_consuming, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._connection.add_callback_threadsafe(self._channel.stop_consuming)
        self._thread.join()
        self._connection.close()

    def _arrived(self, *_: object) -> None:
        self.count += 1
        if self.count == self._wanted:
            self._reached.set()

    def wait(self, wanted: int, timeout: float = 300) -> None:
        """Wait until `wanted` messages have come since the start."""
        self._wanted = wanted
        if self.count < wanted and not self._reached.wait(timeout):
            raise TimeoutError(f"{self.count} of {wanted} messages")
        self._reached.clear()


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of processes that are alive."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Bench:
    """The broker, the installation and the daemons."""

    def __init__(self, directory: Path, processes: int) -> None:
        self.rabbitmq = RabbitMQ()
        self.rabbitmq.start()
        self.installation = Installation(directory)
        self.config = directory / "config.ini"
        # Only the measured type runs: idle processes of the other plugins would take time and memory.
        self.config.write_text(f"[DEFAULT]\nworkers: 0\n[echo]\nworkers: {processes}\n")
        self.log = directory / "daemons.log"

    @contextlib.contextmanager
    def daemon(self, name: str, url: str) -> Iterator[int]:
        """Run a daemon; yields its pid once it is connected."""
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [self.installation.bin("taskqueue"), name, "-f", "-c", self.config, "--url", url],
                stderr=log,
                start_new_session=True,
            )
        ready = "connected to" if name == "dispatcher" else "is ready"
        try:
            while ready not in self.log.read_text()[before:]:
                if process.poll() is not None:
                    raise RuntimeError(self.log.read_text())
                time.sleep(0.01)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def close(self) -> None:
        self.rabbitmq.close()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def send(producer: Producer, count: int, queue: str) -> None:
    body = BODY if queue == INCOMING else BARE
    workitem = Workitem(body=body, content_type="application/json")
    for start in range(0, count, 1000):
        producer.send([workitem] * min(1000, count - start), queue=queue)


def one_round(bench: Bench, count: int) -> dict[str, float]:
    """Every stage once, each on queues that nobody used before."""
    rates: dict[str, float] = {}
    url = bench.rabbitmq.url(bench.rabbitmq.vhost())
    producer = connect(url).producer()
    for queue in (worker_queue("echo"), INCOMING):  # a new queue keeps its first sender waiting for a second
        producer.send([Workitem(body=BODY, content_type="application/json")], queue=queue)
    rates["send, 1000 at a time"] = count / timed(lambda: send(producer, count, INCOMING))

    with bench.daemon("dispatcher", url):
        arrived = Counter(url, worker_queue("echo"))
        rates["dispatch, with a consumer of worker_echo running"] = count / timed(lambda: arrived.wait(count + 2))
        arrived.close()
    producer.close()

    url = bench.rabbitmq.url(bench.rabbitmq.vhost())
    producer = connect(url).producer()
    send(producer, count, worker_queue("echo"))
    producer.send([Workitem(body=b"first")], queue="results")
    results = Counter(url, "results")
    with bench.daemon("workerpool", url) as manager:
        results.wait(1 + count // 10)
        carrier_and_workers = children(manager)
        cpu, start = cpu_seconds(carrier_and_workers), time.perf_counter()
        before = results.count
        results.wait(1 + count)
        done = results.count - before
        rates["handle, results on, with a consumer of results running"] = done / (time.perf_counter() - start)
        spent = cpu_seconds(carrier_and_workers) - cpu
        rates["  CPU of carrier and worker processes, us per workitem"] = spent / done * 1e6

    with bench.daemon("dispatcher", url), bench.daemon("workerpool", url):
        target = results.count + 1
        send(producer, 1, INCOMING)  # through queues that are new: waits until they are a second old
        results.wait(target)
        target += count
        rates["end to end, with a consumer of results running"] = count / timed(
            lambda: (send(producer, count, INCOMING), results.wait(target))[1]
        )
        round_trips = []
        for _ in range(200):
            start = time.perf_counter()
            producer.send([Workitem(body=BODY, content_type="application/json")], queue=INCOMING, reply=True)
            assert producer.next_reply(timeout=10) is not None
            round_trips.append((time.perf_counter() - start) * 1000)
        round_trips.sort()
        rates["round trip when idle, p50, ms"] = statistics.median(round_trips)
        rates["round trip when idle, p99, ms"] = round_trips[int(len(round_trips) * 0.99)]
    results.close()
    producer.close()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="workitems per stage")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="worker processes")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="taskqueue-bench-", dir="/tmp"))
    directory.chmod(0o755)
    bench = Bench(directory, args.processes)
    try:
        rabbitmq = bench.rabbitmq.ctl("version").strip()
        print(
            f"{os.cpu_count()} CPUs, {platform.platform()}, Python {platform.python_version()}, RabbitMQ {rabbitmq} "
            f"(one node, one scheduler thread), pika {metadata.version('pika')}; {args.count} workitems a stage, "
            f"{args.processes} worker processes; median (lowest-highest) of {args.rounds} rounds; rates per second"
        )
        rounds = [one_round(bench, args.count) for _ in range(args.rounds)]
        for name in rounds[0]:
            values = sorted(each[name] for each in rounds)
            form = ",.0f" if values[0] > 100 else ".2f"
            print(f"{name:58} {statistics.median(values):{form}} ({values[0]:{form}}-{values[-1]:{form}})")
    finally:
        bench.close()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
