"""Huey's part of benchmarks/embedded.py: run by the interpreter of an environment that has huey; prints JSON."""

from __future__ import annotations

import json
import os
import sys
import time

from huey import SqliteHuey

huey = SqliteHuey(filename=os.environ["HUEY_FILE"])


@huey.task()
def echo(body: str) -> str:
    return body


def fill(count: int, body: str) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        echo(body)
    return count / (time.perf_counter() - begun)


def latencies(seconds: float, body: str) -> list[float]:
    found = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        echo(body)
        found.append(time.perf_counter() - begun)
    return found


def round_trips(count: int, body: str) -> list[float]:
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        assert echo(body).get(blocking=True, timeout=10) == body
        found.append(time.perf_counter() - begun)
        time.sleep(0.02)
    return found


if __name__ == "__main__":
    import huey_peer  # under the name by which the consumer knows the task

    verb, amount, body = sys.argv[1:]
    print(json.dumps(getattr(huey_peer, verb)(float(amount) if verb == "latencies" else int(amount), body)))
