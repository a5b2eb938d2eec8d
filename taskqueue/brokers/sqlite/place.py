"""Where the file lies: on which file system, and what is beside it."""

from __future__ import annotations

import os
from pathlib import Path

from taskqueue.errors import BrokerError

__all__ = ["check_place", "lock_file", "places"]

_REMOTE = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs", "ncpfs"))


def places(path: Path) -> Path:
    """The directory beside the file that has locks and sockets."""
    return path.with_name(f"{path.name}.d")


def lock_file(path: Path, name: str) -> int:
    """Open the lock file `name`, which is made where it does not exist."""
    directory = places(path)
    # With the rights of the file's own directory, whoever may write the file may use its locks.
    directory.mkdir(mode=0o700 | path.parent.stat().st_mode & 0o070, exist_ok=True)
    return os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)


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
        point = before.split()[4].encode().decode("unicode_escape")
        if directory.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind
