"""The manager's and the carrier's ends of the protocol, in an asyncio loop."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taskqueue.clock import SYSTEM
from taskqueue.process.protocol import Frames, Kind, pack

__all__ = ["NONSENSE", "Wire"]

NONSENSE = (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError)
"""What is raised for a frame that no honest process sends."""
LONGEST_READ = 1 << 16  # bytes; more would be memory that comes from the kernel anew each time


class Wire:
    """One end of a stream socket in an asyncio loop: frames both ways, and open files along with them.

    Never blocks: what the other end does not take yet is kept.  `on_end` is called once, with the reason.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_frame: Callable[[Kind, Any, bytes], None],
        on_end: Callable[[str], None],
        *,
        takes_files: bool = False,
        rest: bytes = b"",
    ) -> None:
        """`rest`: of a frame, which was read from `sock` before."""
        self._socket = sock
        self._takes_files = takes_files  # from a worker process nothing is taken but bytes
        self._on_frame = on_frame
        self._on_end = on_end
        self._frames = Frames()
        list(self._frames.feed(rest))
        self._outbox: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._received: deque[int] = deque()
        self._loop = asyncio.get_running_loop()
        self._waiting = False  # for the other end to take more
        self.backlog = 0  # bytes that the other end has not taken yet
        self.ended = ""
        sock.setblocking(False)
        self._loop.add_reader(sock, self.read)

    def send(self, kind: Kind, meta: Any = None, payload: bytes = b"", files: Sequence[int] = ()) -> None:
        """Send a frame; `files` are duplicated to the other end, and closed here when they have left."""
        if self.ended:
            _close(files)
            return
        self._outbox.append((memoryview(pack(kind, meta, payload)), files))
        self.backlog += len(self._outbox[-1][0])
        if len(self._outbox) == 1:
            self._write()

    def _write(self) -> None:
        try:
            while self._outbox:
                data, files = self._outbox[0]
                if files:
                    sent = socket.send_fds(self._socket, [data], files)
                    _close(files)
                else:
                    sent = self._socket.send(data)
                self.backlog -= sent
                if sent < len(data):
                    self._outbox[0] = (data[sent:], ())
                else:
                    self._outbox.popleft()
        except BlockingIOError:
            if not self._waiting:
                self._waiting = True
                self._loop.add_writer(self._socket, self._write)
            return
        except OSError as error:
            # The other end is gone.  What it still said is read before that is told, and not inside of a `send`.
            self._loop.call_soon(self._broken, error.strerror or "broken")
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._socket)

    def _broken(self, reason: str) -> None:
        self.read()
        self.close(reason)

    def flush(self, timeout: float) -> bool:
        """Wait until the other end has taken everything; False where it did not within `timeout` seconds."""
        deadline = SYSTEM.monotonic() + timeout
        while self._outbox and not self.ended:
            left = deadline - SYSTEM.monotonic()
            if left <= 0:
                return False
            select.select([], [self._socket], [], left)
            self._write()
        return True

    @property
    def rest(self) -> bytes:
        """What was read of a frame that has not come to its end."""
        return self._frames.rest

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def take_file(self) -> int:
        """The next open file that came with a frame; it is now the caller's."""
        return self._received.popleft()

    def read(self) -> None:
        """Take up everything that has arrived."""
        while not self.ended:
            try:
                if self._takes_files:
                    data, files, _, _ = socket.recv_fds(self._socket, LONGEST_READ, 8)
                    self._received.extend(files)
                else:
                    data = self._socket.recv(LONGEST_READ)
            except BlockingIOError:
                return
            except OSError as error:
                self.close(error.strerror or "broken")
                return
            if not data:
                self.close("closed")
                return
            try:
                for kind, meta, payload in self._frames.feed(data):
                    self._on_frame(kind, meta, payload)
            except NONSENSE as error:
                self.close(f"nonsense: {error}")
                return
            if len(data) < LONGEST_READ:
                return

    def close(self, reason: str = "closed here") -> None:
        """End it.  May be called twice."""
        if self.ended:
            return
        self.ended = reason
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        _close(self._received)
        for _, files in self._outbox:
            _close(files)
        self._outbox.clear()
        self._on_end(reason)


def _close(files: Iterable[int]) -> None:
    for file in files:
        os.close(file)
