"""How much memory a worker process uses, seen from outside: what runs in it may be too busy to say."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os

__all__ = ["Memory", "mebibytes"]

log = logging.getLogger(__name__)


class Memory:
    """The resident memory of one process, by a file that every user may read; 0.5 microseconds a look."""

    def __init__(self, pid: int) -> None:
        self._file: int | None = None
        try:
            self._file = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            log.warning("the memory of worker process %d can't be seen, its limits don't hold: %s", pid, error)

    def resident(self) -> int:
        """Bytes, those shared with other processes included; 0 where it can't be seen, or is no more."""
        if self._file is None:
            return 0
        try:
            return int(os.pread(self._file, 256, 0).split()[1]) * mmap.PAGESIZE
        except (OSError, IndexError):
            return 0

    def close(self) -> None:
        """Let go of it.  May be called twice."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None


def mebibytes(size: int) -> str:
    """`size` bytes for people."""
    return f"{size / (1 << 20):.4g} MiB"
