"""concurrent.futures' part of benchmarks/client.py: python executor_peer.py COUNT; prints seconds.  Tasks of 1 ms."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor


def work(value: int) -> int:
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
    return value


def main(count: int) -> float:
    with ProcessPoolExecutor(2) as pool:
        assert pool.submit(work, 1).result() == 1
        begun = time.perf_counter()
        assert [each.result() for each in [pool.submit(work, n) for n in range(count)]] == list(range(count))
        return time.perf_counter() - begun


if __name__ == "__main__":
    print(main(int(sys.argv[1])))
