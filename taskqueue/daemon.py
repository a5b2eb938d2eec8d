"""What makes a daemon of a program: what it starts with, its pid file and its user."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskqueue.config import Config
from taskqueue.errors import TaskQueueError
from taskqueue.process.spawn import Account
from taskqueue.service import Service

__all__ = ["PidFileError", "SetUpLog", "Startup", "become", "holder", "pid_file", "write_pid"]

SetUpLog = Callable[[Config], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """What a daemon starts with.

    path, url: where the configuration is; what goes before its url.
    arguments: of the command `taskqueue` that it goes on as when it is upgraded.
    set_up_log: called with each configuration before it is used.
    service: told how it is.
    pid_file: the descriptor of the pid file that it holds.
    left: what the program left that this process was before; None: there was none.
    """

    path: Path | None
    url: str = ""
    arguments: Sequence[str]
    set_up_log: SetUpLog = lambda config: None
    service: Service = field(default_factory=Service)
    pid_file: int | None = None
    left: Mapping[str, Any] | None = None


class PidFileError(TaskQueueError):
    """Another process holds the pid file, or it can't be made."""


@contextlib.contextmanager
def pid_file(path: Path | None, *, held: int | None = None) -> Iterator[int | None]:
    """Hold the pid file `path`; yields its descriptor.  `write_pid` writes to it, once in the background.

    held: the descriptor, where this process has held it since it was another program.

    It is held by a lock, which ends with its holder: a stale file stops nobody.  Raises PidFileError.
    """
    if path is None:
        yield None
        return
    path = path.absolute()  # the background has another current directory
    try:
        descriptor = _lock(path) if held is None else held
        os.set_inheritable(descriptor, False)
    except OSError as error:
        raise PidFileError(f"pid file {path}: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):  # after a change of user the directory may be closed to us: it is stale then
            path.unlink()
        os.close(descriptor)


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise PidFileError(f"pid file {path}: held by process {other or 'unknown'}: it runs already") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its last holder removed it between our two steps


def write_pid(descriptor: int | None) -> None:
    """Write this process' id to the pid file that it holds."""
    if descriptor is not None:
        text = f"{os.getpid()}\n".encode()
        os.pwrite(descriptor, text, 0)  # in this order: nobody must find it empty while the daemon runs
        os.ftruncate(descriptor, len(text))


def holder(path: Path) -> int:
    """The process that holds the pid file `path`; 0: nobody does.  Raises OSError where it can't be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, 32).strip()
        if not text.isdigit() or not Path(f"/proc/{int(text)}").exists():
            return 0  # without a try at the lock, which would keep a daemon from starting at this moment
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(text)
        return 0
    finally:
        os.close(descriptor)


def become(user: Account) -> None:
    """Change to `user` for good: groups, gid, uid, and what the environment says of it."""
    os.setgroups(user.groups)
    os.setgid(user.gid)
    os.setuid(user.uid)
    os.environ.update({"HOME": user.home, "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell})
