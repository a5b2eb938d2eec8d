"""Which process a carrier is, so that its neighbours on the same host see at once that it is gone."""

from __future__ import annotations

import contextlib
import os
import uuid
from functools import cache
from pathlib import Path

__all__ = ["began", "home", "is_gone"]


@cache
def home() -> str:
    """A name for this boot of this host, and this namespace of process ids; one of its own where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return uuid.uuid4().hex


def began(pid: int) -> int:
    """When a process of this namespace began, in ticks since boot; 0: there is none."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    return 0


def is_gone(pid: int, since: int) -> bool:
    """Whether the process of this namespace that began at `since` has ended; one that is hidden from us may live."""
    now = began(pid)
    if not now:
        with contextlib.suppress(ProcessLookupError):
            try:
                os.kill(pid, 0)
            except PermissionError:  # /proc is mounted with hidepid, and it is another user's
                return False
    return now != since
