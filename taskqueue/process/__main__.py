"""The worker process: `python -m taskqueue.process FD`.  Plugin code runs here, as the group's user.

It has no connection and no secret: one socket, on which workitems come and outcomes go.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

from taskqueue.plugins import load
from taskqueue.process.calling import Answer, call, caller
from taskqueue.process.protocol import START_MARK, Frames, Kind, inherited_socket, pack
from taskqueue.worker import CurrentWorkitem
from taskqueue.workitem import Workitem

__all__: list[str] = []

CANNOT_BOOT = 3
"""Exit status of a worker process whose plugin did not load."""


class Line:
    """The socket to the carrier, seen from here: blocking, safe to use from any thread of this process."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self._pid = os.getpid()
        self._frames = Frames()

    def send(self, kind: Kind, meta: Any, payload: bytes = b"") -> None:
        """Send a frame.  A process that a handler forked must not speak here; its frames are left out."""
        if os.getpid() == self._pid:
            with self._sending:
                self._socket.sendall(pack(kind, meta, payload))

    def hello(self) -> tuple[dict[str, Any], mmap.mmap]:
        """The carrier's first words, and the memory that it shares."""
        data, files, _, _ = socket.recv_fds(self._socket, 1 << 16, 1)
        memory = mmap.mmap(files[0], mmap.PAGESIZE)
        os.close(files[0])
        while True:
            for _, meta, _ in self._frames.feed(data):
                return meta, memory
            data = self._receive()

    def frames(self) -> Iterator[tuple[Kind, Any, bytes]]:
        """All further frames, until the carrier is gone."""
        while data := self._receive():
            yield from self._frames.feed(data)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 18)
        except ConnectionResetError:
            return b""


class Forwarder(logging.Handler):
    """Hands log records to the carrier, which hands them to the manager: one log for all."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._line.send(Kind.LOG, [record.name, record.levelno, self.format(record)])
        except OSError:
            self.handleError(record)


def main() -> int:
    line = Line(inherited_socket(sys.argv))
    hello, memory = line.hello()
    logging.basicConfig(level=hello["log_level"], handlers=[Forwarder(line)], format="%(message)s")
    try:
        worker = load(hello["entry_point"])()
        worker.settings = MappingProxyType(dict(hello["settings"]))
        handle = caller(worker)
        if hasattr(worker, "setup"):
            worker.setup()
    except BaseException as error:
        line.send(Kind.BROKEN, [f"{type(error).__name__}: {error}", traceback.format_exc()])
        return CANNOT_BOOT
    line.send(Kind.READY, None)
    for kind, meta, payload in line.frames():
        if kind == Kind.STOP:
            break
        if kind == Kind.WORK:
            work(line, memory, worker, handle, hello["type"], meta, payload)
    if hasattr(worker, "teardown"):
        worker.teardown()
    return 0


def work(
    line: Line, memory: mmap.mmap, worker: Any, handle: Any, type: str, meta: dict[str, Any], bodies: bytes
) -> None:
    """Handle one batch.

    Each completion is sent before the next workitem is started, and each start is marked, so the carrier knows which
    one runs.  What waited behind a long one is not started after `start_by`: the carrier gave it to others then.  The
    mark is set before the clock is read; so whatever starts in time is seen to have started.
    """
    offset = 0
    items: Sequence[Any] = meta["items"]
    for position, (number, size, item) in enumerate(items):
        body = bodies[offset : offset + size]
        offset += size
        START_MARK.pack_into(memory, 0, number)
        if (position or not meta["idle"]) and time.monotonic() >= meta["start_by"]:
            START_MARK.pack_into(memory, 0, 0)
            line.send(Kind.UNSTARTED, [number for number, _, _ in items[position:]])
            return
        started = time.monotonic()
        workitem = Workitem(body=body, type=type, **item)
        worker.workitem = CurrentWorkitem(
            raw=body,
            id=workitem.id,
            type=type,
            content_type=workitem.content_type,
            headers=workitem.headers,
            attempt=workitem.attempt,
            reference=workitem.reference,
        )
        answer: Answer = call(handle, workitem)
        line.send(Kind.ENDED, [number, time.monotonic() - started, *answer.meta], answer.payload)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.exit(status)
