"""Starts a fresh interpreter as another user, with one socket and nothing else of its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from taskqueue.errors import PluginError

__all__ = [
    "Account",
    "Adopted",
    "Offspring",
    "account",
    "ended",
    "environment",
    "everything_of",
    "how_it_ended",
    "spawn",
    "spawn_inside",
    "tie_to",
]

_PR_SET_PDEATHSIG = 1
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A Unix user with everything that a process of it has."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


class Offspring(Protocol):
    """A child of this process; `returncode` is None until it has been waited for."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def wait(self) -> int:
        """Wait for its end: its exit status, or minus the signal's number."""


class Adopted:
    """A child that this process had before it became another program."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def account(name: str) -> Account | None:
    """The user `name`, or None where it does not exist here."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    groups = tuple(sorted(os.getgrouplist(name, entry.pw_gid)))
    return Account(
        name=name, uid=entry.pw_uid, gid=entry.pw_gid, groups=groups, home=entry.pw_dir, shell=entry.pw_shell
    )


def environment(user: Account, extra: Mapping[str, str]) -> dict[str, str]:
    """A clean environment for `user`: of the parent's only what names paths, language and time zone."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    own = {"HOME": user.home, "USER": user.name, "LOGNAME": user.name, "SHELL": user.shell}
    return {"PATH": os.defpath, **kept, **own, **extra}


def spawn(module: str, user: Account, extra: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start `python -m module FD` as `user`; returns it with the other end of its socket.

    In the child: own process group, groups, gid, uid, then PR_SET_PDEATHSIG (a change of credentials clears it),
    a look whether the parent is still there, no capabilities, no descriptors beside 0, 1, 2 and the socket, exec.

    Raises PluginError where this user can't be switched to, or can't run this interpreter.
    """
    switch = user.uid != os.geteuid()
    if switch and os.geteuid() != 0:
        raise PluginError(f"user {user.name!r}: only root can start processes of other users")
    try:
        if switch:
            _check_reachable(user)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise PluginError(f"user {user.name!r}: can't start a process: {error}") from None
    parent = os.getpid()

    def harden() -> None:
        if user.uid != 0 and not _drop_capabilities():
            os._exit(1)
        tie_to(parent)

    try:
        # -P: nothing from the current directory; -s: the same packages for every user.
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-m", module, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            cwd="/",
            env=environment(user, extra),
            user=user.uid if switch else None,
            group=user.gid if switch else None,
            extra_groups=user.groups if switch else None,
            umask=0o022,
            process_group=0,
            preexec_fn=harden,
        )
    except OSError as error:
        ours.close()
        raise PluginError(f"user {user.name!r} can't run {sys.executable}: {error.strerror}") from None
    finally:
        theirs.close()
    return process, ours


def spawn_inside(module: str, extra: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start `python -m module FD PID` as a part of this program; returns it with the other end of its socket.

    It has the program's user, environment (with `extra`), directory, and options of the interpreter.  The program may
    have threads, so no Python runs between fork and exec; therefore the child itself has to `tie_to(PID)`, which is to
    the life of the thread that calls this.

    Raises PluginError where that can't be done.
    """
    from multiprocessing.spawn import get_command_line  # which daemons need not wait for

    interpreter = get_command_line()[:-3]  # without the last option, -c, and what belongs to it
    if not interpreter:
        raise PluginError("can't start a process: this program is frozen, and no interpreter")
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise PluginError(f"can't start a process: {error}") from None
    try:
        process = subprocess.Popen(
            [*interpreter, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env={**os.environ, **extra},
            process_group=0,
        )
    except OSError as error:
        ours.close()
        raise PluginError(f"can't run {os.fsdecode(interpreter[0])}: {error.strerror}") from None
    finally:
        theirs.close()
    return process, ours


def tie_to(parent: int) -> None:
    """In a child: be killed when `parent`, or its thread that made it, dies (PR_SET_PDEATHSIG); end where it has."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
        os._exit(1)


def _drop_capabilities() -> bool:
    """A change of uid drops all but the inheritable ones; drop these, too.  True if there are none now."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Data(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    nothing = (Data * 2)()
    return bool(_libc.capset(ctypes.byref(Header(_CAPABILITY_VERSION_3, 0)), nothing) == 0)


def _check_reachable(user: Account) -> None:
    """Another user must be able to get at the interpreter and at this package; a home directory is often closed."""
    here = Path(__file__).resolve()
    for path in (Path(sys.executable), Path(sys.executable).resolve(), here):
        for part in (*reversed(path.parents), path):
            status = part.stat()
            needed = 0o1 if part.is_dir() else 0o4
            if status.st_uid == user.uid:
                allowed = status.st_mode >> 6
            elif status.st_gid in user.groups:
                allowed = status.st_mode >> 3
            else:
                allowed = status.st_mode
            if not allowed & needed:
                raise PluginError(
                    f"user {user.name!r} can't enter or read {part}, and so can't run {path}; "
                    "install taskqueue where every user can read it"
                )


def how_it_ended(returncode: int) -> str:
    """A returncode of subprocess in words: the signal's name, or the exit status."""
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def everything_of(process: Offspring, number: signal.Signals) -> None:
    """Send a signal to `process` and to its process group, while it has not been waited for."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) != process.pid:  # it has left its group
                os.kill(process.pid, number)


def ended(process: Offspring) -> int | None:
    """The returncode of `process` once it has ended, else None.

    Where it did not end in good order, what it has left in its process group is killed: its work is done again.
    """
    if process.returncode is None:
        try:
            end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # somebody else in this program has waited for it
            return process.wait()
        if end is None:
            return None
        if (end.si_code, end.si_status) != (os.CLD_EXITED, 0):
            everything_of(process, signal.SIGKILL)  # before it is reaped: its number can't be another's yet
    return process.wait()
