"""The worker process' end of its socket: frames, and log records."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from taskqueue.process.protocol import Frames, Kind, pack
from taskqueue.process.shared import Journal, Marks, mapped

__all__ = ["Forwarder", "Line"]

LONGEST_LOG = 1 << 16  # characters of a log record
LONGEST_READ = 1 << 16  # bytes; more would be memory that comes from the kernel anew each time


class Line:
    """The socket to the carrier, seen from here: blocking, safe to use from any thread of this process.

    whole: the process is there for this line alone; False: it is a program that has it in some threads.
    """

    def __init__(self, sock: socket.socket, *, whole: bool = True) -> None:
        self.whole = whole
        self._socket = sock
        self._sending = threading.Lock()
        self.pid = os.getpid()
        self._frames = Frames()
        self._journal: Journal | None = None

    def send(self, kind: Kind, meta: Any, payload: bytes = b"") -> None:
        """Send a frame, after those that are kept.

        A process that a handler forked must not speak here; its frames are left out.
        """
        if os.getpid() == self.pid:
            with self._sending:
                self._send(pack(kind, meta, payload))

    def keep(self, frame: bytes) -> None:
        """Send a frame with the next one, or at `flush`: a system call for each costs more than a brief handler.

        Should this process die before, its carrier finds it all the same.  Not for a process that a handler forked.
        """
        with self._sending:
            if self._journal is None or not self._journal.keep(frame):
                self._send(frame)

    def flush(self) -> None:
        """Send what is kept."""
        with self._sending:
            self._send(b"")

    def _send(self, frame: bytes) -> None:
        if self._journal is not None:
            frame = self._journal.frames + frame
        if frame:
            self._socket.sendall(frame)
        if self._journal is not None:
            self._journal.clear()

    def hello(self) -> tuple[dict[str, Any], Marks]:
        """The carrier's first words, and the memory that it shares."""
        data, files, _, _ = socket.recv_fds(self._socket, LONGEST_READ, 1)
        if not files:
            raise ConnectionResetError("the carrier was gone before it said anything")
        marks = mapped(files[0])
        os.close(files[0])
        self._journal = Journal(marks)
        while True:
            for _, meta, _ in self._frames.feed(data):
                return meta, marks
            data = self._receive()

    def frames(self) -> Iterator[tuple[Kind, Any, bytes]]:
        """All further frames, until the carrier is gone."""
        while data := self._receive():
            yield from self._frames.feed(data)

    def arrived(self) -> Sequence[tuple[Kind, Any, bytes]] | None:
        """The frames that have arrived by now, for an event loop that watches `fileno`; None: the carrier is gone."""
        try:
            data = self._socket.recv(LONGEST_READ, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return ()
        except ConnectionResetError:
            return None
        return list(self._frames.feed(data)) if data else None

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def give_up(self) -> None:
        """End in such a way that the carrier sees at once that what runs here won't end."""
        if self.whole:
            os._exit(1)
        self.close()

    def close(self) -> None:
        """Nothing can be said or heard any more, by threads that wait for it now either.  May be called twice."""
        with contextlib.suppress(OSError):  # the carrier was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(LONGEST_READ)
        except OSError:  # reset, or closed here
            return b""


class Forwarder(logging.Handler):
    """Hands log records to the carrier, which hands them to the manager: one log for all."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line
        self.here: Callable[[], int] = lambda: 0  # the hand-over that a record is about
        self.keep: Callable[[int, str], None] | None = None  # where this process has to know its own log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            number, text = self.here(), self.format(record)[:LONGEST_LOG]
            self._line.send(Kind.LOG, [number, record.name, record.levelno, text])
            if self.keep is not None:
                self.keep(number, text)
        except Exception:  # as every handler of the standard library does: a log record must not fail a task
            self.handleError(record)
