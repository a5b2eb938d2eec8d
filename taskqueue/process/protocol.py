"""The framed protocol between manager, carrier and worker processes.

A frame is kind, JSON and bytes.  Nothing that comes from a worker process is ever unpickled or trusted: a frame that
is no frame raises ValueError, and its sender is killed.

    carrier -> worker process   HELLO (and the shared memory), WORK, CANCEL, LEAVE, STOP
    worker process -> carrier   READY, BROKEN, ENDED, UNSTARTED, PROGRESS, COMPLETING, LOG
    manager -> carrier          CONFIG, PROCESS (and its socket), DIED, RETIRE, DRAIN, STATE, PING, PONG
    carrier -> manager          UP, DOWN, WORKED, KILL, RECYCLE, DRAINED, LOG, PING, PONG, BROKER
"""

from __future__ import annotations

import enum
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["CANNOT_BOOT", "MAX_FRAME", "Frames", "Kind", "framed", "inherited_socket", "pack"]

_HEAD = struct.Struct("!BII")
MAX_FRAME = 1 << 28
CANNOT_BOOT = 3
"""Exit status of a worker process whose plugin did not load."""


class Kind(enum.IntEnum):
    """What a frame says; the JSON of each is described where it is sent."""

    HELLO = 1
    WORK = 2
    STOP = 3
    READY = 4
    BROKEN = 5
    ENDED = 6
    UNSTARTED = 7
    LOG = 8
    CONFIG = 9
    PROCESS = 10
    DIED = 11
    RETIRE = 12
    DRAIN = 13
    STATE = 14
    UP = 15
    DOWN = 16
    KILL = 17
    DRAINED = 18
    RECYCLE = 19
    PING = 20
    PONG = 21
    BROKER = 22
    PROGRESS = 23
    WORKED = 24
    COMPLETING = 25
    CANCEL = 26
    LEAVE = 27


def pack(kind: Kind, meta: Any = None, payload: bytes = b"") -> bytes:
    """One frame.  Values of headers that JSON does not know (bytes, times) travel as text."""
    return framed(kind, _encoder.encode(meta), payload)


def framed(kind: Kind, meta: str, payload: bytes) -> bytes:
    """The same for what is JSON already."""
    text = meta.encode()
    return b"".join((_HEAD.pack(kind, len(text), len(payload)), text, payload))


def _text(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


# Made once: it costs as much as what they do.
_encoder = json.JSONEncoder(separators=(",", ":"), default=_text)
_decoder = json.JSONDecoder()
_KINDS = {kind.value: kind for kind in Kind}


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def rest(self) -> bytes:
        """What came of a frame that is not complete yet."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[Kind, Any, bytes]]:
        """The frames that `data` completes.  Raises ValueError for what is no frame."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _HEAD.size:
                kind, meta_size, payload_size = _HEAD.unpack_from(buffer, start)
                if meta_size + payload_size > MAX_FRAME:
                    raise ValueError(f"a frame of {meta_size + payload_size} bytes")
                middle = start + _HEAD.size + meta_size
                end = middle + payload_size
                if len(buffer) < end:
                    break
                text = buffer[start + _HEAD.size : middle].decode()
                meta, read = _decoder.raw_decode(text)
                if read != len(text) or kind not in _KINDS:
                    raise ValueError(f"a frame of kind {kind}, with {text[read:]!r} behind its JSON")
                payload = bytes(buffer[middle:end])
                start = end
                yield _KINDS[kind], meta, payload
        except RecursionError:
            raise ValueError("a frame that nests too deep") from None
        finally:
            del buffer[:start]


def inherited_socket(argv: Sequence[str]) -> socket.socket:
    """The socket whose descriptor the parent named in `argv`; this process' own children don't get it."""
    number = int(argv[1])
    os.set_inheritable(number, False)
    return socket.socket(fileno=number)
