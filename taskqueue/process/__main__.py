"""The worker process: `python -m taskqueue.process FD [PID]`.  Plugin code runs here, as the group's user.

It has no connection and no secret: one socket, on which workitems come and outcomes go.  PID: of the program that it is
a part of, and ends with.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from taskqueue.plugins import load
from taskqueue.process.line import Forwarder, Line
from taskqueue.process.protocol import inherited_socket
from taskqueue.process.serving import serve
from taskqueue.title import set_title

__all__: list[str] = []


def main() -> int:
    if len(sys.argv) > 2:
        from taskqueue.process.spawn import tie_to  # where nobody could do so between fork and exec

        tie_to(int(sys.argv[2]))
    set_title("worker starting")
    line = Line(inherited_socket(sys.argv))
    hello, marks = line.hello()
    set_title(f"worker {hello['label']} starting")
    forwarder = Forwarder(line)
    logging.basicConfig(level=hello["log_level"], handlers=[forwarder], format="%(message)s")
    return serve(line, hello, marks, lambda: _factory(hello)(), forwarder)


def _factory(hello: dict[str, Any]) -> Callable[[], Any]:
    if hello.get("program"):
        from multiprocessing.spawn import prepare  # the rules by which a main file is imported a second time

        prepare(hello["program"])
    if hello.get("is_elsewhere"):
        from taskqueue.brokers.memory.ends import MemoryProducer

        MemoryProducer.is_elsewhere = True
    return load(hello["entry_point"])


if __name__ == "__main__":
    try:
        status = main()
    except (BrokenPipeError, ConnectionResetError):  # the carrier is gone: what was under way is done again
        status = 0
    logging.shutdown()
    sys.stdout.flush()
    sys.exit(status)
