"""The memory that the carrier shares with one worker process, seen from here."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

from taskqueue.process.shared import JOURNAL, MARK, size, unsent

__all__ = ["Shared"]


class Shared:
    """What `taskqueue.process.shared` describes.  Nothing in it is trusted: the process may write to it what it likes.

    file: its descriptor, which is the caller's.
    """

    def __init__(self, slots: int) -> None:
        self._marks = slots * MARK.size
        self.file = os.memfd_create("taskqueue-shared", os.MFD_CLOEXEC)
        os.ftruncate(self.file, size(slots))
        self._memory = mmap.mmap(self.file, size(slots))

    def started(self) -> list[int]:
        """The start marks, by slot."""
        return [number for (number,) in MARK.iter_unpack(self._memory[: self._marks])]

    def cancel(self, slot: int, number: int) -> None:
        """Say that the hand-over `number`, which runs in `slot`, is to be cancelled."""
        MARK.pack_into(self._memory, self._marks + slot * MARK.size, number)

    def unsent(self) -> Iterator[bytes]:
        """The frames that the process has written and may not have sent."""
        return unsent(self._memory[-JOURNAL:])

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()
