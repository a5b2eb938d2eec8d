"""What a forked child must not have of its parent's: connections to the file, and the locks of lock files.

SQLite keeps in memory which locks its process holds, and a child has that memory without those locks: it would wait for
a transaction of the parent's for ever, and its commits could be lost with the write-ahead log that others take for
theirs alone (https://www.sqlite.org/howtocorrupt.html, section 2.6).  So no connection is open while a process forks.
The lock of a file is shared with a child (flock(2)), which would hold on to it when its parent is dead.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet

__all__ = ["Kept", "keep"]


class Kept(Protocol):
    """What is told of forks.  None of it raises."""

    def before_fork(self) -> None:
        """Wait until nobody uses it, and keep it so."""

    def after_fork(self, *, child: bool) -> None:
        """Let it be used again; in the child, let go of it."""


_kept: WeakSet[Kept] = WeakSet()
_keeping = threading.Lock()
_forking = threading.Lock()  # one at a time, whatever thread forks
_told: list[Kept] = []


def keep(kept: Kept) -> None:
    """Have `kept` told of forks as long as it exists."""
    with _keeping:
        _kept.add(kept)


def _before() -> None:
    """Not with the lock held while it waits: who is waited for may be about to `keep` something."""
    _forking.acquire()
    while True:
        with _keeping:
            _told.extend(_kept)
        for kept in _told:
            kept.before_fork()
        _keeping.acquire()
        if _kept <= set(_told):
            return
        _tell(child=False)


def _tell(*, child: bool) -> None:
    _keeping.release()
    for kept in _told:
        kept.after_fork(child=child)
    _told.clear()


def _after(*, child: bool) -> None:
    _tell(child=child)
    _forking.release()


os.register_at_fork(
    before=_before, after_in_parent=lambda: _after(child=False), after_in_child=lambda: _after(child=True)
)
