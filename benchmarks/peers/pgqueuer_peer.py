"""PgQueuer's part of benchmarks/postgresql.py: run by the interpreter of an environment that has pgqueuer and asyncpg.

python pgqueuer_peer.py single|bulk|latency|paced|work AMOUNT BODY, with BENCH_DSN; prints a rate, or
how many it has sent.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from datetime import timedelta

import asyncpg
from pacing import paced
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

BULK = 1000
PAUSE = 0.05  # seconds between two workitems whose latency is measured


async def single(queries: Queries, count: int, body: bytes) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        await queries.enqueue("echo", body)
    return count / (time.perf_counter() - begun)


async def bulk(queries: Queries, count: int, body: bytes) -> float:
    begun = time.perf_counter()
    for _ in range(count // BULK):
        await queries.enqueue(["echo"] * BULK, [body] * BULK, [0] * BULK)
    return count / (time.perf_counter() - begun)


async def latency(queries: Queries, count: int, body: bytes) -> float:
    for _ in range(count):
        await queries.enqueue("stamp", str(time.monotonic()).encode())
        await asyncio.sleep(PAUSE)
    return 0.0


async def at_rate(queries: Queries, rate: int, body: bytes) -> float:
    sent = 0
    for count in paced(rate):
        now = str(time.monotonic()).encode()
        await queries.enqueue(["stamp"] * count, [now] * count, [0] * count)
        sent += count
    return sent


async def work(connection: asyncpg.Connection, batch: int) -> None:
    manager = PgQueuer(AsyncpgDriver(connection))
    file = os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    @manager.entrypoint("echo")
    async def echo(job: Job) -> None:
        pass

    @manager.entrypoint("stamp")
    async def stamp(job: Job) -> None:
        assert job.payload is not None
        os.write(file, f"{time.monotonic() - float(job.payload)}\n".encode())

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, manager.shutdown.set)
    await manager.run(batch_size=batch, dequeue_timeout=timedelta(seconds=30))


async def main(verb: str, amount: int, body: str) -> None:
    connection = await asyncpg.connect(os.environ["BENCH_DSN"])
    if verb == "work":
        await work(connection, amount)
    else:
        verbs = {"single": single, "bulk": bulk, "latency": latency, "paced": at_rate}
        print(await verbs[verb](Queries(AsyncpgDriver(connection)), amount, body.encode()))
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
