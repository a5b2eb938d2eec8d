"""Our part of benchmarks/client.py.

python client_ours.py independent|chain|fan|executor COUNT, with BENCH_URL; prints seconds.  Its worker processes are
another program's, as those of the others are (client_ours.py serve), but for memory://: there they are its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import taskqueue

space = taskqueue.TaskSpace("bench")


@space.task
def num(value: int) -> int:
    return value


@space.task
def plus(value: int, more: int) -> int:
    return value + more


@space.task
def add(values: list[int]) -> int:
    return sum(values)


@space.task
def work(value: int) -> int:
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
    return value


@contextlib.contextmanager
def served(queue: taskqueue.Queue) -> Iterator[None]:
    if os.environ["BENCH_URL"].startswith("memory:"):
        with taskqueue.running(queue, space, processes=2):
            yield
        return
    with subprocess.Popen([sys.executable, __file__, "serve"], stdin=subprocess.PIPE) as program:
        yield
        program.communicate()


def serve() -> None:
    with taskqueue.connect(os.environ["BENCH_URL"]) as queue, taskqueue.running(queue, space, processes=2):
        sys.stdin.read()  # until the other program has its values


def main(what: str, count: int) -> float:
    with taskqueue.connect(os.environ["BENCH_URL"]) as queue, served(queue):
        assert queue.submit(num, 1).result() == 1
        begun = time.perf_counter()
        if what == "independent":
            assert list(queue.map(num, range(count), chunksize=1000, ahead=count)) == list(range(count))
        elif what == "chain":
            assert queue.reduce(plus, [1] * (count - 1), 0).result() == count - 1
        elif what == "fan":
            numbers = queue.submit_many(num, range(count))
            assert queue.submit(add, numbers).result() == sum(range(count))
        else:
            assert [each.result() for each in [queue.submit(work, n) for n in range(count)]] == list(range(count))
        return time.perf_counter() - begun


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        print(main(sys.argv[1], int(sys.argv[2])))
