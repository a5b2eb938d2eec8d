"""The memory that a carrier shares with a worker process.

What lies in it: for each workitem that the process may run at once the start mark, which is the number of the
hand-over that it started there last, or 0; behind all these, for each of them, the number of the one that is to be
cancelled, or 0.  At the end the journal: frames of the process that are not in the socket yet, each with its length and
checksum.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import weakref
import zlib
from collections.abc import Iterator

__all__ = ["JOURNAL", "MARK", "Journal", "Marks", "mapped", "size", "unsent"]

MARK = struct.Struct("=Q")
Marks = ctypes.Array[ctypes.c_uint64]
"""All of that memory, as numbers of hand-overs."""
JOURNAL = 1 << 15  # bytes, at the end of that memory
_HEAD = struct.Struct("=II")
_NOTHING = _HEAD.pack(0, 0)


def size(slots: int) -> int:
    """Bytes of that memory for a process that runs up to `slots` workitems at once."""
    return -(-2 * slots * MARK.size // mmap.PAGESIZE) * mmap.PAGESIZE + JOURNAL


def mapped(file: int) -> Marks:
    """The memory in a shared file.  Not by the module mmap, which keeps a descriptor open."""
    length = os.fstat(file).st_size
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    marks = (ctypes.c_uint64 * (length // MARK.size)).from_address(address)
    # Not when the interpreter ends: other threads may still set marks then.
    weakref.finalize(marks, libc.munmap, address, length).atexit = False
    return marks


class Journal:
    """Keeps frames until they are sent, where the carrier finds them should this process die before."""

    def __init__(self, marks: Marks) -> None:
        self._memory = memoryview(marks).cast("B")[-JOURNAL:]
        self._frames: list[bytes] = []
        self._end = 0

    def keep(self, frame: bytes) -> bool:
        """Keep `frame` behind the others; False: there is no room for it."""
        begin = self._end + _HEAD.size
        end = begin + len(frame)
        if end > JOURNAL:
            return False
        self._memory[begin:end] = frame
        _HEAD.pack_into(self._memory, self._end, len(frame), zlib.crc32(frame))
        self._frames.append(frame)
        self._end = end
        return True

    @property
    def frames(self) -> bytes:
        """All that is kept."""
        return b"".join(self._frames)

    def clear(self) -> None:
        """They are sent.  Not before: what is not in the journal must be in the socket."""
        if self._frames:
            self._frames.clear()
            self._end = 0
            self._memory[: _HEAD.size] = _NOTHING


def unsent(journal: bytes) -> Iterator[bytes]:
    """The frames in a journal, up to the first that is not whole: its process may be writing to it just now.

    Behind them may be some that were sent long ago.
    """
    at = 0
    while at + _HEAD.size <= len(journal):
        length, checksum = _HEAD.unpack_from(journal, at)
        at += _HEAD.size
        frame = journal[at : at + length]
        if not length or len(frame) < length or zlib.crc32(frame) != checksum:
            return
        yield frame
        at += length
