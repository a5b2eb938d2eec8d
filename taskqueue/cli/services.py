"""`taskqueue status` and `taskqueue reload`: how the daemons of this host are, and their new configuration."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from taskqueue.clock import SYSTEM
from taskqueue.daemon import holder
from taskqueue.errors import TaskQueueError
from taskqueue.status import Status, status_file

__all__ = ["PID_FILES", "add_parser"]

PID_FILES = (Path("/run/taskqueue-dispatcher/dispatcher.pid"), Path("/run/taskqueue-workerpool/workerpool.pid"))
"""Where the services of the packages have them."""
DEAD, STOPPED, REFUSED, NOT_RUNNING = 1, 3, 6, 7  # exit statuses; those but REFUSED are the LSB's for init scripts
PATIENCE = 90.0  # seconds that a reload may take
POLL = 0.05  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Daemon:
    """A daemon as its files show it.

    there: the pid file exists.  pid: of the process that holds it; 0: nobody does.
    status: what it says of itself; None: nothing that can be read.
    """

    pid_file: Path
    there: bool
    pid: int
    status: Status | None

    @property
    def name(self) -> str:
        return self.pid_file.stem


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add both commands to a program's commands."""
    status = subparsers.add_parser(
        "status",
        help="show how the daemons of this host are",
        description="Show how each daemon is.  The exit status is 0 where all run, 1 where one is dead, 3 where one "
        "does not run.",
    )
    status.set_defaults(run=show)
    reload = subparsers.add_parser(
        "reload",
        help="have the daemons of this host read their configuration again",
        description="Have each daemon read its configuration again.  The exit status is 7 where one does not run; with "
        "--wait 6 where one has refused the new configuration, and goes on with the old one.",
    )
    reload.add_argument("--wait", action="store_true", help="wait until it took, or say why it did not")
    reload.add_argument(
        "--upgrade", action="store_true",
        help="have them go on as the version that is installed now; what runs is finished in the old one",
    )  # fmt: skip
    reload.set_defaults(run=reload_all)
    for parser in (status, reload):
        parser.add_argument(
            "-p", "--pid-file", metavar="FILE", type=Path, action="append", dest="pid_files",
            help="of the daemon that is meant; may be given several times (default: those of the services)",
        )  # fmt: skip
    return [status, reload]


def _daemons(args: argparse.Namespace) -> list[_Daemon]:
    return [_look(path) for path in args.pid_files or [path for path in PID_FILES if path.exists()]]


def _look(path: Path) -> _Daemon:
    try:
        pid = holder(path)
    except FileNotFoundError:
        return _Daemon(pid_file=path, there=False, pid=0, status=None)
    except OSError as error:
        raise TaskQueueError(f"pid file {path}: {error.strerror}") from None
    return _Daemon(pid_file=path, there=True, pid=pid, status=_status(path, pid) if pid else None)


def _status(path: Path, pid: int) -> Status | None:
    """What the daemon `pid` says of itself; None: nothing."""
    try:
        status = Status.from_json(status_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status if status.pid == pid else None


def show(args: argparse.Namespace) -> int:
    """`taskqueue status`."""
    daemons = _daemons(args)
    installed = metadata.version("taskqueue")
    for daemon in daemons:
        if args.json:
            status = asdict(daemon.status) if daemon.status else {}
            shown = {"kind": "daemon", "name": daemon.name, "pid_file": str(daemon.pid_file), "running": daemon.pid > 0}
            print(json.dumps({**shown, **status}))
        elif daemon.pid:
            state, sentence = (daemon.status.state, daemon.status.status) if daemon.status else ("running", "no status")
            print(f"{daemon.name}: {state}, pid {daemon.pid}: {sentence}")
            for problem in daemon.status.problems if daemon.status else ():
                print(f"{daemon.name}: its new configuration was refused: {problem}")
            if daemon.status and daemon.status.version != installed:
                remedy = f"taskqueue reload --upgrade --wait -p {daemon.pid_file}"
                print(f"{daemon.name}: it is version {daemon.status.version}; {installed} is installed: {remedy}")
        else:
            print(f"{daemon.name}: {'dead, and its pid file is there' if daemon.there else 'not running'}")
    if not daemons:
        print(_none(), file=sys.stderr)
        return STOPPED
    if any(daemon.there and not daemon.pid for daemon in daemons):
        return DEAD
    return 0 if all(daemon.pid for daemon in daemons) else STOPPED


def _none() -> str:
    return f"taskqueue: no daemon runs: there is neither {' nor '.join(map(str, PID_FILES))}"


def reload_all(args: argparse.Namespace) -> int:
    """`taskqueue reload`."""
    daemons = _daemons(args)
    if not daemons:
        print(_none(), file=sys.stderr)
        return NOT_RUNNING
    number = signal.SIGUSR2 if args.upgrade else signal.SIGHUP
    for daemon in daemons:
        if daemon.pid:
            if args.wait and daemon.status is None:
                raise TaskQueueError(f"{daemon.name}: {status_file(daemon.pid_file)} can't be read: can't wait for it")
            try:
                os.kill(daemon.pid, number)
            except PermissionError:
                raise TaskQueueError(f"{daemon.name}: process {daemon.pid} is another user's") from None
        else:
            print(f"taskqueue: {daemon.name}: not running", file=sys.stderr)
    results = [_wait(daemon) if args.wait and daemon.pid else 0 if daemon.pid else NOT_RUNNING for daemon in daemons]
    return max(results)


def _wait(daemon: _Daemon) -> int:
    """Wait until the reload that `daemon` was told of has finished, and say what was wrong; the exit status."""
    assert daemon.status is not None
    deadline = SYSTEM.monotonic() + PATIENCE
    while True:
        now = _look(daemon.pid_file)
        if now.pid != daemon.pid:
            print(f"taskqueue: {daemon.name}: it has ended", file=sys.stderr)
            return NOT_RUNNING
        if now.status is not None and now.status.reloads > daemon.status.reloads:
            for problem in now.status.problems:
                print(f"taskqueue: {daemon.name}: {problem}", file=sys.stderr)
            return REFUSED if now.status.problems else 0
        if SYSTEM.monotonic() > deadline:
            raise TaskQueueError(f"{daemon.name}: it has not answered within {PATIENCE:g} s")
        time.sleep(POLL)
