"""Wakes carriers and clients of the same file: a datagram to the socket of each, once work for them is committed."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["Bell", "Ringer"]

_SUFFIX = ".bell"
TICK, COARSE_TICK = 20_000_000, 2_000_000_000
"""Nanoseconds in which a directory may change twice at the same time: a jiffy of Linux; FAT's."""


class Bell:
    """A socket in the file's directory; `heard` says for which queues it rang."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"{uuid.uuid4().hex}{_SUFFIX}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        with _short(self._path.parent) as directory:
            self.socket.bind(str(directory / self._path.name))
        self._path.chmod(0o660)

    def heard(self) -> set[str]:
        """The queues that got something since the last call."""
        queues: set[str] = set()
        with contextlib.suppress(BlockingIOError):
            while data := self.socket.recv(1 << 16):
                queues.update(data.decode().split("\n"))
        return queues

    def close(self) -> None:
        """Whoever waits for it wakes up.  May be called twice."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


class Ringer:
    """Rings the bells of everybody else's; keeps what that needs open.  Not to be used by two threads at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._bells: list[str] = []
        self._listed = 0  # the directory's time of change that they are of, ns

    def ring(self, queues: Iterable[str]) -> None:
        """Tell everybody that these queues got something.  Who is missed finds out by itself within a second."""
        bells = self._there()
        message = "\n".join(sorted(set(queues))).encode()[: 1 << 15] if bells else b""
        if message:
            for bell in bells:
                self._ring(bell, message)

    def _there(self) -> list[str]:
        changed = os.fstat(self._directory).st_mtime_ns
        if changed != self._listed:
            # In the same tick of the file system's clock there may be another change.
            tick = TICK if changed % 1_000_000_000 else COARSE_TICK
            self._listed = changed if time.time_ns() - changed > tick else 0
            names = os.listdir(self._directory)  # noqa: PTH208 (no path leads there that is short enough)
            self._bells = [f"/proc/self/fd/{self._directory}/{name}" for name in names if name.endswith(_SUFFIX)]
        return self._bells

    def _ring(self, bell: str, message: bytes) -> None:
        try:
            self._socket.sendto(message, bell)
        except ConnectionRefusedError:  # its owner died
            with contextlib.suppress(OSError):
                Path(bell).unlink()
        except OSError:  # full: it has rung already; gone; not ours to ring
            pass

    def close(self) -> None:
        """May be called twice."""
        directory, self._directory = self._directory, -1
        if directory >= 0:
            os.close(directory)
            self._socket.close()


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[Path]:
    """A short name for `directory`: the path of a socket has room for 107 bytes only (unix(7))."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
