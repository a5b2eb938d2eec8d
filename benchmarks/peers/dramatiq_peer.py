"""Dramatiq's part of benchmarks/client.py: run by the interpreter of an environment that has it.

python dramatiq_peer.py independent|chain COUNT, with BENCH_REDIS; prints seconds.  Its workers:
dramatiq dramatiq_peer --processes 2 --threads N
"""

from __future__ import annotations

import os
import sys
import time

import dramatiq
from dramatiq import group, pipeline
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

URL = os.environ["BENCH_REDIS"]
sys.setrecursionlimit(100_000)  # a pipeline nests its messages: without, 1,000 are too many
broker = RedisBroker(url=URL, socket_timeout=600)
broker.add_middleware(Results(backend=RedisBackend(url=URL, socket_timeout=600)))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def num(value: int) -> int:
    return value


@dramatiq.actor(store_results=True)
def plus(value: int, more: int) -> int:
    return value + more


def main(what: str, count: int) -> float:
    begun = time.perf_counter()
    if what == "independent":
        found = group(num.message(n) for n in range(count)).run().get_results(block=True, timeout=600_000)
        assert list(found) == list(range(count))
    else:
        steps = pipeline([num.message(0), *(plus.message(1) for _ in range(count - 1))]).run()
        assert steps.get_result(block=True, timeout=600_000) == count - 1
    return time.perf_counter() - begun


if __name__ == "__main__":
    num.send(1).get_result(block=True, timeout=60_000)
    print(main(sys.argv[1], int(sys.argv[2])))
