"""The worker process: `python -m taskqueue.process FD`.  Plugin code runs here, as the group's user.

It has no connection and no secret: one socket, on which workitems come and outcomes go.
"""

from __future__ import annotations

import logging
import sys
import traceback
from types import MappingProxyType

from taskqueue import formats
from taskqueue.errors import PluginError
from taskqueue.plugins import load
from taskqueue.process.desk import Desk
from taskqueue.process.line import Forwarder, Line
from taskqueue.process.protocol import CANNOT_BOOT, Kind, inherited_socket
from taskqueue.process.running import way
from taskqueue.title import set_title
from taskqueue.worker import BaseWorker

__all__: list[str] = []


def main() -> int:
    set_title("worker starting")
    line = Line(inherited_socket(sys.argv))
    hello, marks = line.hello()
    set_title(f"worker {hello['label']} starting")
    forwarder = Forwarder(line)
    logging.basicConfig(level=hello["log_level"], handlers=[forwarder], format="%(message)s")
    known = formats.known(**hello["formats"])
    try:
        worker = load(hello["entry_point"])()
        worker.settings = MappingProxyType(dict(hello["settings"]))
        runs = way(worker, hello, known)
        if hasattr(worker, "setup"):
            runs.call(worker.setup)
    except BaseException as error:  # SystemExit, too
        told = "" if isinstance(error, PluginError) else traceback.format_exc()
        line.send(Kind.BROKEN, [f"{type(error).__name__}: {error}", told])
        return CANNOT_BOOT
    desk = Desk(line, marks, hello)
    forwarder.here = desk.here
    if isinstance(worker, BaseWorker):
        worker.say_progress = desk.progress
        worker.is_unwanted = desk.is_unwanted
        if worker.completes:
            from taskqueue.process.completing import Completing  # what others shall not wait for

            desk.completing = Completing(line, hello, known)
            forwarder.keep = desk.completing.lines.add
            worker.end_by = desk.complete
    line.send(Kind.READY, None if desk.completing is None else "completes")
    runs.run(line, desk)
    if hasattr(worker, "teardown"):
        runs.call(worker.teardown)
    return 0


if __name__ == "__main__":
    try:
        status = main()
    except (BrokenPipeError, ConnectionResetError):  # the carrier is gone: what was under way is done again
        status = 0
    logging.shutdown()
    sys.stdout.flush()
    sys.exit(status)
