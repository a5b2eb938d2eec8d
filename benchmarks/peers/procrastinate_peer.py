"""Procrastinate's part of benchmarks/postgresql.py: run by the interpreter of an environment that has it.

python procrastinate_peer.py single|bulk|latency|paced|work AMOUNT BODY, with BENCH_DSN; prints a rate, or
how many it has sent.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from pacing import paced
from procrastinate import App, PsycopgConnector

BULK = 1000
PAUSE = 0.05  # seconds between two workitems whose latency is measured

app = App(connector=PsycopgConnector(conninfo=os.environ["BENCH_DSN"]))


@app.task(name="echo", queue="echo")
async def echo(body: str) -> None:
    pass


@app.task(name="stamp", queue="echo")
async def stamp(sent: float) -> None:
    with open(os.environ["BENCH_STAMPS"], "a") as file:
        file.write(f"{time.monotonic() - sent}\n")


async def single(count: int, body: str) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        await echo.defer_async(body=body)
    return count / (time.perf_counter() - begun)


async def bulk(count: int, body: str) -> float:
    begun = time.perf_counter()
    for _ in range(count // BULK):
        await echo.batch_defer_async(*[{"body": body}] * BULK)
    return count / (time.perf_counter() - begun)


async def latency(count: int, body: str) -> float:
    for _ in range(count):
        await stamp.defer_async(sent=time.monotonic())
        await asyncio.sleep(PAUSE)
    return 0.0


async def at_rate(rate: int, body: str) -> float:
    sent = 0
    for count in paced(rate):
        await stamp.batch_defer_async(*[{"sent": time.monotonic()}] * count)
        sent += count
    return sent


async def main(verb: str, amount: int, body: str) -> None:
    async with app.open_async():
        if verb == "work":
            await app.run_worker_async(concurrency=amount)
        else:
            verbs = {"single": single, "bulk": bulk, "latency": latency, "paced": at_rate}
            print(await verbs[verb](amount, body))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
