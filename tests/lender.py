"""A carrier in a process of its own, which tests kill and stop: borrows workitems, and settles them when told.

    python lender.py URL QUEUE COUNT

writes `lent ID ...` once it has COUNT; then for each line on its input settles them all, and writes what counted and
whether the lease was lost: `settled 1 0 ... lost`.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskqueue.broker import Delivery, Ended, connect
from taskqueue.outcome import Done, Payload, Rules


async def work(url: str, queue: str, count: int) -> None:
    broker = connect(url)
    consumer = broker.consumer(queue, reserve=count)
    held: list[Delivery] = []
    while len(held) < count:
        held += await consumer.receive(limit=count)
    print("lent", *(delivery.workitem.id for delivery in held), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    ended = [Ended(delivery, Done(Payload(b"late")), Rules(results_routing_key="results")) for delivery in held]
    counted = await consumer.settle(ended)
    print("settled", *map(int, counted), *["lost"] * held[0].lease.lost, flush=True)
    await broker.close()


def lending(url: str, queue: str, count: int) -> list[str]:
    """The command that starts such a process."""
    return [sys.executable, str(Path(__file__)), url, queue, str(count)]


@contextmanager
def lender(url: str, queue: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """Such a process, once it has what it wants; killed in the end."""
    process = subprocess.Popen(lending(url, queue, count), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline().startswith("lent ")
        yield process
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    if sabotage := os.environ.get("TASKQUEUE_SABOTAGE"):
        importlib.import_module(f"sabotage.{sabotage}")
    asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3])))
