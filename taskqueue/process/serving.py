"""Serves one carrier: makes the worker, and runs what is handed over until the carrier says stop."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from taskqueue import formats
from taskqueue.errors import PluginError
from taskqueue.process.desk import Desk
from taskqueue.process.line import Forwarder, Line
from taskqueue.process.protocol import CANNOT_BOOT, Kind
from taskqueue.process.running import way
from taskqueue.process.shared import Marks
from taskqueue.worker import BaseWorker

__all__ = ["serve"]


def serve(
    line: Line, hello: dict[str, Any], marks: Marks, make: Callable[[], Any], forwarder: Forwarder | None = None
) -> int:
    """Do so, and return the exit status for a process that does nothing else.

    make: makes the worker.  forwarder: hands on what is logged in the process, where that is there for the line alone.

    Raises BrokenPipeError or ConnectionResetError once the carrier is gone.
    """
    with contextlib.ExitStack() as stack:
        return _serve(line, hello, marks, make, forwarder, stack)


def _serve(
    line: Line,
    hello: dict[str, Any],
    marks: Marks,
    make: Callable[[], Any],
    forwarder: Forwarder | None,
    stack: contextlib.ExitStack,
) -> int:
    known = formats.known(**hello["formats"])
    try:
        worker = make()
        worker.settings = MappingProxyType(dict(hello["settings"]))
        runs = way(worker, hello, known, whole=line.whole)
        if not line.whole:
            stack.callback(runs.close)
        if hasattr(worker, "setup"):
            runs.call(worker.setup)
    except BaseException as error:  # SystemExit, too
        told = "" if isinstance(error, PluginError) else traceback.format_exc()
        line.send(Kind.BROKEN, [f"{type(error).__name__}: {error}", told])
        return CANNOT_BOOT
    desk = Desk(line, marks, hello)
    if forwarder is not None:
        forwarder.here = desk.here
    if isinstance(worker, BaseWorker):
        worker.say_progress = desk.progress
        worker.is_unwanted = desk.is_unwanted
        if worker.completes:
            from taskqueue.process.completing import Completing  # what others shall not wait for

            desk.completing = Completing(line, hello, known)
            if forwarder is not None:
                forwarder.keep = desk.completing.lines.add
            worker.end_by = desk.complete
    line.send(Kind.READY, None if desk.completing is None else "completes")
    runs.run(line, desk)
    if hasattr(worker, "teardown") and not desk.left:  # what goes on still needs what it would close
        runs.call(worker.teardown)
    return 0
