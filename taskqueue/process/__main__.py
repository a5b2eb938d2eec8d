"""The worker process: `python -m taskqueue.process FD`.  Plugin code runs here, as the group's user.

It has no connection and no secret: one socket, on which workitems come and outcomes go.
"""

from __future__ import annotations

import ctypes
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

from taskqueue import formats
from taskqueue.plugins import load
from taskqueue.process.calling import Answer, call, caller
from taskqueue.process.protocol import CANNOT_BOOT, Frames, Kind, inherited_socket, pack
from taskqueue.worker import CurrentWorkitem
from taskqueue.workitem import Workitem

__all__: list[str] = []

LONGEST_LOG = 1 << 16  # characters of a log record


class Line:
    """The socket to the carrier, seen from here: blocking, safe to use from any thread of this process."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self.pid = os.getpid()
        self._frames = Frames()

    def send(self, kind: Kind, meta: Any, payload: bytes = b"") -> None:
        """Send a frame.  A process that a handler forked must not speak here; its frames are left out."""
        if os.getpid() == self.pid:
            with self._sending:
                self._socket.sendall(pack(kind, meta, payload))

    def hello(self) -> tuple[dict[str, Any], ctypes.c_uint64]:
        """The carrier's first words, and the start mark in the memory that it shares."""
        data, files, _, _ = socket.recv_fds(self._socket, 1 << 16, 1)
        if not files:
            raise ConnectionResetError("the carrier was gone before it said anything")
        mark = shared_mark(files[0])
        os.close(files[0])
        while True:
            for _, meta, _ in self._frames.feed(data):
                return meta, mark
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


def shared_mark(file: int) -> ctypes.c_uint64:
    """The number at the beginning of a shared file.  Not by the module mmap, which keeps a descriptor open."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return ctypes.c_uint64.from_address(address)


class Forwarder(logging.Handler):
    """Hands log records to the carrier, which hands them to the manager: one log for all."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._line.send(Kind.LOG, [record.name, record.levelno, self.format(record)[:LONGEST_LOG]])
        except Exception:  # as every handler of the standard library does: a log record must not fail a task
            self.handleError(record)


def main() -> int:
    line = Line(inherited_socket(sys.argv))
    hello, mark = line.hello()
    logging.basicConfig(level=hello["log_level"], handlers=[Forwarder(line)], format="%(message)s")
    known = formats.known(**hello["formats"])
    try:
        worker = load(hello["entry_point"])()
        worker.settings = MappingProxyType(dict(hello["settings"]))
        handle = caller(worker, hello["max_result"], known)
        if hasattr(worker, "setup"):
            worker.setup()
    except BaseException as error:  # SystemExit, too
        line.send(Kind.BROKEN, [f"{type(error).__name__}: {error}", traceback.format_exc()])
        return CANNOT_BOOT
    line.send(Kind.READY, None)
    for kind, meta, payload in line.frames():
        if kind == Kind.STOP:
            break
        if kind == Kind.WORK:
            work(line, mark, worker, handle, known, hello, meta, payload)
    if hasattr(worker, "teardown"):
        worker.teardown()
    return 0


def work(
    line: Line,
    mark: ctypes.c_uint64,
    worker: Any,
    handle: Any,
    known: formats.Formats,
    hello: dict[str, Any],
    meta: dict[str, Any],
    bodies: bytes,
) -> None:
    """Handle one batch.

    Each completion is sent before the next workitem is started, and each start is marked, so the carrier knows which
    one runs.  What waited behind a long one is not started after `start_by`: the carrier gave it to others then.  The
    mark is set before the clock is read; so whatever starts in time is seen to have started.
    """
    type, max_result = hello["type"], hello["max_result"]
    offset = 0
    items: Sequence[Any] = meta["items"]
    for position, (number, size, item) in enumerate(items):
        body = bodies[offset : offset + size]
        offset += size
        mark.value = number
        if (position or not meta["idle"]) and time.monotonic() >= meta["start_by"]:
            mark.value = 0
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
        answer: Answer = call(handle, workitem, max_result, known)
        if os.getpid() != line.pid:  # a child that the handler forked came back: it is none of ours
            os._exit(0 if answer.meta[0] == "done" else 1)
        line.send(Kind.ENDED, [number, time.monotonic() - started, *answer.meta], answer.payload)


if __name__ == "__main__":
    try:
        status = main()
    except (BrokenPipeError, ConnectionResetError):  # the carrier is gone: what was under way is done again
        status = 0
    logging.shutdown()
    sys.stdout.flush()
    sys.exit(status)
