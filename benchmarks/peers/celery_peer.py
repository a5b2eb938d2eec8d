"""Celery's part of benchmarks/client.py: run by the interpreter of an environment that has it.

python celery_peer.py independent|chain|fan COUNT, with BENCH_REDIS; prints seconds.  Its workers:
celery -A celery_peer worker --concurrency 2 --prefetch-multiplier N
"""

from __future__ import annotations

import os
import sys
import time

from celery import Celery, chain, chord, group

URL = os.environ["BENCH_REDIS"]
app = Celery("bench", broker=URL, backend=URL)
app.conf.update(
    worker_prefetch_multiplier=int(os.environ.get("BENCH_SETTING", "4")),
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)


@app.task
def num(value: int) -> int:
    return value


@app.task
def plus(value: int, more: int) -> int:
    return value + more


@app.task
def add(values: list[int]) -> int:
    return sum(values)


def main(what: str, count: int) -> float:
    begun = time.perf_counter()
    if what == "independent":
        assert group(num.s(n) for n in range(count)).apply_async().get(interval=0.01) == list(range(count))
    elif what == "chain":
        assert chain(num.s(0), *[plus.s(1)] * (count - 1)).apply_async().get(interval=0.01) == count - 1
    else:
        assert chord((num.s(n) for n in range(count)), add.s()).apply_async().get(interval=0.01) == sum(range(count))
    return time.perf_counter() - begun


if __name__ == "__main__":
    import celery_peer  # under the name that its workers know its tasks by

    celery_peer.num.delay(1).get()
    print(celery_peer.main(sys.argv[1], int(sys.argv[2])))
