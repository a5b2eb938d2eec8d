"""Many tasks in one program: memory, threads, and time that does not grow with what is outstanding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from shop_tasks import add, num, space
from tasking import STORES, make_url

import taskqueue

OUTSTANDING = """\
import sys, threading, time
import taskqueue
sys.path.insert(0, {tests!r})
from shop_tasks import num

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

queue = taskqueue.connect({url!r})
assert not queue.submit(num, 1).wait(0.1)
before = resident()
if {results}:
    deferreds = queue.submit_many(num, range({count}))
    gathered = queue.gather(*deferreds)
    assert not gathered.wait(5.0)
else:
    nothing = queue.options(ignore_result=True).submit_many(num, range({count}))
print(resident() - before, threading.active_count(), len(queue) if queue.broker.capabilities.store else {count} + 1)
import os
os._exit(0)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [*STORES, pytest.param("amqp", marks=[pytest.mark.services, pytest.mark.long])])
def test_a_hundred_thousand_outstanding_results_are_small(request: pytest.FixtureRequest, kind: str) -> None:
    def measure(results: bool) -> int:
        program = OUTSTANDING.format(
            tests=str(Path(__file__).parent), url=make_url(request, kind), count=100_000, results=results
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=250)
        size, threads, waiting = map(int, done.stdout.split())
        assert threads <= 4 and waiting == 100_001
        return size

    size = measure(results=True)
    if kind == "memory":  # where the workitems are in the same program
        size -= measure(results=False)
    assert size <= 50 << 20


@pytest.mark.timeout(300)
def test_the_values_of_many_are_one_argument(tmp_path: Path) -> None:
    count = 20_000
    with (
        taskqueue.connect(f"sqlite:///{tmp_path}/queue.db") as queue,
        taskqueue.running(queue, space, threads=1),
    ):
        numbers = queue.submit_many(num, range(count))
        assert queue.submit(add, [each.argument for each in numbers]).result(200) == sum(range(count))
