"""Records what the daemons of an installation receive and settle, with monotonic times, from inside them.

A `.pth` file makes every interpreter of the installation import the recorder, which wraps the one loop of dispatchers
and carriers; the project's own code knows nothing of it.  Lines of the record:

    receive PID QUEUE ID TAG TIME
    settled PID QUEUE ID TAG TIME OUTCOME COUNTED
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from installations import Installation

_RECORDER = """
import os, sys, time
from pathlib import Path

def install(record):
    from taskqueue.loop import Loop
    file = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    original = Loop.__init__

    def write(*words):
        os.write(file, (" ".join(map(str, words)) + "\\n").encode())

    def traced(self, consumer, handle, *, reserve):
        settle = consumer.settle

        def traced_handle(deliveries):
            for d in deliveries:
                write("receive", os.getpid(), d.queue, d.workitem.id, d.tag, time.monotonic())
            return handle(deliveries)

        async def traced_settle(ended):
            counted = await settle(ended)
            for e, counts in zip(ended, counted):
                d = e.delivery
                outcome = type(e.outcome).__name__
                write("settled", os.getpid(), d.queue, d.workitem.id, d.tag, time.monotonic(), outcome, int(counts))
            return counted

        consumer.settle = traced_settle
        original(self, consumer, traced_handle, reserve=reserve)

    Loop.__init__ = traced

record = Path(__file__).with_suffix(".to")
words = " ".join(sys.orig_argv)
if record.exists() and ("taskqueue.carrier" in words or "dispatcher" in words):
    install(record.read_text())
"""


@dataclass(slots=True)
class Received:
    """One delivery, as dispatcher or carrier `pid` had it; `settled` is infinite where it never was."""

    pid: int
    queue: str
    id: str
    tag: str
    at: float
    settled: float = field(default=float("inf"))
    outcome: str = ""
    counted: bool = False


def read(record: Path) -> list[Received]:
    """Everything that was received, in order."""
    found: list[Received] = []
    open_: dict[tuple[str, ...], Received] = {}
    for line in record.read_text().splitlines():
        kind, pid, queue, id, tag, at, *rest = line.split()
        if kind == "receive":
            one = Received(int(pid), queue, id, tag, float(at))
            found.append(one)
            open_[pid, queue, id, tag] = one
        else:
            one = open_.pop((pid, queue, id, tag))  # a delivery is settled once
            one.settled, one.outcome, one.counted = float(at), rest[0], rest[1] == "1"
    return found


@contextlib.contextmanager
def tracing(installation: Installation, record: Path) -> Iterator[None]:
    """Record to the file `record` while the block runs, in daemons that are started in it."""
    module = installation.site_packages / "taskqueue_recorder.py"
    files = {
        module: _RECORDER,
        module.with_suffix(".to"): str(record),
        module.with_suffix(".pth"): "import taskqueue_recorder\n",
    }
    try:
        for path, text in files.items():
            path.write_text(text)
        yield
    finally:
        for path in files:
            path.unlink()
