"""Where the file lies: on which file system, and what is beside it."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from taskqueue.brokers.sqlite.forking import keep
from taskqueue.errors import BrokerError

__all__ = ["LockFile", "check_place", "places"]

_REMOTE = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs", "ncpfs"))
_ESCAPED = re.compile(r"\\([0-7]{3})")  # not unicode_escape, a module that one thread would import while another forks


def places(path: Path) -> Path:
    """The directory beside the file that has locks and sockets."""
    return path.with_name(f"{path.name}.d")


class LockFile:
    """The lock of the file `name`, which is made where it does not exist; not that of a child as well.

    The kernel lets go of it with the process.
    """

    def __init__(self, path: Path, name: str) -> None:
        directory = places(path)
        # With the rights of the file's own directory, whoever may write the file may use its locks.
        directory.mkdir(mode=0o700 | path.parent.stat().st_mode & 0o070, exist_ok=True)
        self._file = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        keep(self)

    def take(self, *, wait: bool) -> bool:
        """Hold it; False where somebody else does, and `wait` is not set."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def leave(self) -> None:
        """Hold it no more.  Not where it has been closed meanwhile."""
        if self._file >= 0:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Hold it no more.  May be called twice."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def before_fork(self) -> None:
        pass

    def after_fork(self, *, child: bool) -> None:
        if child:
            self.close()


def check_place(path: Path) -> None:
    """SQLite's WAL needs shared memory, and flock one kernel: one host only.  Raises BrokerError."""
    if not path.parent.is_dir():
        raise BrokerError(f"{path}: there is no directory {path.parent}; make it, or name another file in the URL")
    kind = _file_system(path.parent.resolve())
    if kind in _REMOTE:
        raise BrokerError(
            f"{path} is on a network file system ({kind}), where SQLite's locks don't hold; "
            "name a file on a local disk, or use amqp:// or postgresql:// for several hosts"
        )


def _file_system(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that `directory` is on; empty where that can't be told (proc(5))."""
    best, kind = "", ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), before.split()[4])
        if directory.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind
